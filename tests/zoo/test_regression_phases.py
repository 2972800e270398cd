"""Phases and fates of runs are read from planted curves as they were planted."""

import numpy as np
import pytest
import xarray as xr

from workbench.zoo.regression import fates, phases

STEPS = [0, 10, 20, 40, 80, 160, 320, 640]


def planted(risk, zero_sum, size, setting="h2") -> xr.Dataset:
    """A run of two heads with these curves; `size` is |omega| of both."""
    size = np.array(size, float)
    return xr.Dataset(
        {
            "risk": ("step", np.array(risk, float)),
            "zero_sum": ("step", np.array(zero_sum, float)),
            "omega": (("step", "head"), np.stack([size, -size], axis=1)),
            "mu": (("step", "head", "task"), np.ones((len(STEPS), 2, 1))),
        },
        coords={"step": STEPS, "setting": setting},
    )


SLOW = [0.1, 0.2, 0.4, 0.5, 0.5, 0.4, 0.3, 0.2]
WHOLE = planted([1.1, 1.0, 0.5, 0.4, 0.4, 0.3, 0.25, 0.245], [1, 1, 1, 1, 0.8, 0.3, 0.01, 0], SLOW)


def test_a_run_through_all_phases():
    assert phases.begin(WHOLE) == {
        "one-head plateau": 20, "symmetry breaking": 80, "zero sum": 320, "slow slide": 320,
    }  # fmt: skip
    assert list(phases.begin(WHOLE)) == list(phases.WORDS)
    assert {*phases.NEEDS} <= {*WHOLE.variables}


def test_a_stuck_run_has_the_plateau_alone():
    stuck = planted([1.1, 1.0, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4], [1] * 8, SLOW[:4] + [0.5] * 4)
    assert phases.begin(stuck) == {"one-head plateau": 20}


def test_heads_of_both_signs_pass_no_plateau():
    both = planted([1.1, 0.9, 0.4, 0.3, 0.26, 0.25, 0.245, 0.245], [0.3] * 3 + [0.01] * 5, SLOW)
    assert phases.begin(both) == {"zero sum": 40, "slow slide": 160}


def test_phases_are_for_good():
    """A sum that is zero for a moment is not the phase, and without a falling |omega| no slide."""
    zero_sum = [0.01, 1, 1, 1, 0.02, 0.5, 0.01, 0.01]
    risk = WHOLE["risk"].to_numpy()
    assert phases.begin(planted(risk, zero_sum, SLOW))["zero sum"] == 320
    kept = planted(risk, zero_sum, [*SLOW[:4], 0.5, 0.5, 0.5, 0.5])
    assert "slow slide" not in phases.begin(kept)
    untrained = planted([1.1] * 8, [0.01] * 8, [0.01] * 8)
    assert phases.begin(untrained) == {}


@pytest.mark.parametrize(
    ("end", "word"), [((0.25, 0.24, 0.24), "solved"), ((0.4, 0.4, 0.25), "late"),
                      ((0.4, 0.4, 0.4), "stuck")],
)  # fmt: skip
def test_fates_are_those_of_the_laws_where_their_bounds_apply(end, word):
    risk = [1.1, 1.0, 0.5, 0.4, 0.4, *end]
    assert fates.fate(planted(risk, [1] * 8, SLOW)) == word and word in fates.WORDS
    for other in ("coloured", "tasks-h2"):
        assert fates.fate(planted(risk, [1] * 8, SLOW, other)) == ""
