"""Windows of curves with a known jump, and of curves without one."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.circuits.phase import by_chance, overlap, window


@pytest.mark.parametrize("jump", range(1, 9))
def test_a_step_is_found_where_it_is(jump: int) -> None:
    curve = np.where(np.arange(9) < jump, 0.05, 0.9)
    rng = np.random.default_rng(jump)
    noisy = curve + rng.normal(0, 0.02, 9)
    assert window(noisy, 0.2) == (jump - 1, jump)
    assert window(-noisy, -0.2) == (jump - 1, jump)
    assert window(-noisy, 0.2) is None, "it falls, and should rise"


def test_a_curve_that_does_not_move_has_no_window() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        assert window(rng.normal(0, 0.02, 12), 0.2) is None


def test_a_slope_has_a_window_of_more_than_half() -> None:
    first, last = window(np.linspace(0, 1, 10), 0.2) or (0, 0)
    assert last - first == 5


def test_there_and_back_is_no_change() -> None:
    assert window([0, 0, 1, 1, 0, 0], 0.2) is None


def test_two_checkpoints_or_slopes_overlap_wherever_they_are() -> None:
    rise = window([0.0, 0.9], 0.2)
    assert overlap(rise, rise) == 1 and by_chance(rise, rise, 1) == (1, 1)
    slope = window(np.linspace(0, 1, 10), 0.2)
    least, share = by_chance(slope, slope, 9)
    assert least == pytest.approx(1 / 9) and share == 1, "5 + 5 of 9 steps have one in common"
    assert by_chance(None, rise, 1) == (0, 0)


def test_places_of_windows_are_counted() -> None:
    """Two of three steps each against single steps: of 2 x 3 places 2 x 2 overlap."""
    least, share = by_chance((0, 2), (1, 2), 3)
    assert least == 0 and share == pytest.approx(4 / 6)


def test_overlap_counts_steps_between_checkpoints() -> None:
    assert overlap((3, 4), (3, 4)) == 1
    assert overlap((2, 5), (4, 7)) == pytest.approx(1 / 5)
    assert overlap((3, 4), (4, 5)) == 0, "they share a checkpoint and no step"
    assert overlap((3, 4), None) == overlap(None, None) == 0
