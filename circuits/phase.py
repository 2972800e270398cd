"""Do two curves over training move in the same window?

The window of a curve is the shortest stretch of checkpoints in which it makes more than half of its
whole change.  Olsson et al. 2022 (arXiv 2209.11895) call it a phase change when in-context learning
and prefix matching have one window.  A curve that hardly moves has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHARE = 0.5


def window(values: Sequence[float] | np.ndarray, least: float) -> tuple[int, int] | None:
    """First and last checkpoint of the shortest stretch with more than half of the whole change.

    `values` [checkpoint]; the whole change is that from the first to the last one.  None where it
    does not go beyond `least`, which is above 0 for a curve that should rise and below for one that
    should fall.  Of stretches of equal length the one of largest change.

    >>> window([0.0, 0.0, 0.1, 0.8, 0.9], 0.1), window([0.5, 0.4, 0.5], 0.1)
    ((2, 3), None)
    """
    curve = np.asarray(values, dtype=float) * np.sign(least)
    whole = curve[-1] - curve[0]
    if not whole > abs(least):
        return None
    for length in range(1, len(curve)):
        moves = curve[length:] - curve[:-length]
        if moves.max() > SHARE * whole:
            first = int(moves.argmax())
            return first, first + length
    raise AssertionError("the whole curve makes the whole change")


def by_chance(
    one: tuple[int, int] | None, other: tuple[int, int] | None, steps: int
) -> tuple[float, float]:
    """Least overlap that windows of these lengths can have among `steps` steps between checkpoints,
    and the share of their places in which they overlap at all; 0, 0 without a window.

    The least is above 0 where both cannot stand beside each other: then overlap says nothing.

    >>> by_chance((0, 1), (0, 1), 1), by_chance((2, 3), (0, 1), 4)
    ((1.0, 1.0), (0.0, 0.25))
    """
    if one is None or other is None:
        return 0.0, 0.0
    first, second = one[1] - one[0], other[1] - other[0]
    found = [
        overlap((a, a + first), (b, b + second))
        for a in range(steps - first + 1)
        for b in range(steps - second + 1)
    ]
    return min(found), float(np.mean(np.array(found) > 0))


def overlap(one: tuple[int, int] | None, other: tuple[int, int] | None) -> float:
    """Steps between checkpoints that both windows have, by those that either has; 0 without one.

    >>> overlap((2, 4), (3, 4)), overlap((0, 1), (1, 2)), overlap(None, (1, 2))
    (0.5, 0.0, 0.0)
    """
    if one is None or other is None:
        return 0.0
    first, second = set(range(*one)), set(range(*other))
    return len(first & second) / len(first | second)
