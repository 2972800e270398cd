"""Errors and capacities of an associative memory in closed form, for keys and values of length 1.

That capacity is of order sqrt(d_k) guaranteed and of order d_k on average is Qiao's (2025, arXiv
2508.08289); the constants and the other formulas are derived here and compared with simulation.
Values of different items are independent with mean zero unless another is said.

    random keys       E error^2 = (N - 1) / d_k: every other item adds cos^2 of its angle
    coherent keys     error = (N - 1) / sqrt(d_k), all inner products 1 / sqrt(d_k), values alike;
                      by the triangle inequality no keys of that coherence do worse
    pseudo-inverse    E error^2 = 1 - d_k / N for N > d_k, else 0
    L layers          1 + E error^2 = (1 + (N - 1) / d_k)^L, fresh keys in each
    H heads           E error^2 = ((N + 1) + (N - 1) / d) / (H d_k) + (N - 1) / d, items in d
                      coordinates, heads that project them to d_k, averaged
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import roots_gegenbauer
from scipy.stats import norm


def average_error(items: int, d: int) -> float:
    """E error^2 of random keys under Hebb."""
    return (items - 1) / d


def worst_error(items: int, d: int) -> float:
    """The error (not squared) of coherent keys with values alike under Hebb."""
    return (items - 1) / math.sqrt(d)


def average_capacity(eps: float, d: float) -> float:
    """Items at which E error^2 is eps^2.

    >>> average_capacity(0.5, 64), guaranteed_capacity(0.5, 64)
    (17.0, 5.0)
    """
    return 1.0 + eps**2 * d


def guaranteed_capacity(eps: float, d: int) -> float:
    """Items at which the worst error is eps."""
    return 1.0 + eps * math.sqrt(d)


def inverse_error(items: int, d: int) -> float:
    """E error^2 of the pseudo-inverse, random keys."""
    return max(0.0, 1.0 - d / items)


def depth_error(items: int, d: int, layers: int) -> float:
    """E error^2 after layers that each store what the one before returned."""
    return (1.0 + average_error(items, d)) ** layers - 1.0


def heads_error(items: int, d_head: int, heads: int, overlap: float) -> float:
    """E error^2 of averaged heads with fresh Gaussian projections.

    `overlap` is the mean squared inner product of two items: 1 / d_model for random ones, 0 for
    orthogonal ones; (items - 1) * overlap is the floor that no number of heads goes below.
    """
    spread = (2.0 + (items - 1) * (1.0 + overlap)) / (heads * d_head)
    return spread + (items - 1) * overlap


def delta_errors(items: int, d: int) -> np.ndarray:
    """E error^2 of every item after one pass of the delta rule over random keys, [item].

    Reading item j undoes what was stored after it: with u = (I - k k') ... k_j over the later keys
    k, the memory says v_j (k_j'u) plus an independent value for each later item and for what the
    earlier ones left.  |u|^2 shrinks by 1 - 1/d per later item; the first two moments of a = k_j'u
    follow a linear recursion.
    """
    found = np.empty(items)
    size, mean, square = 1.0, 1.0, 1.0
    for later in range(items):
        j = items - 1 - later
        # What m random items leave in a memory says 1 - (1 - 1/d)^m on an independent unit key.
        before = 1.0 - (1.0 - 1.0 / d) ** j
        after = 1.0 - (1.0 - 1.0 / d) ** later
        found[j] = 1.0 - 2.0 * mean + square + before * (size - square) + after
        square = square * (1.0 - 2.0 / d) + (size + 2.0 * square) / (d * (d + 2.0))
        mean, size = mean * (1.0 - 1.0 / d), size * (1.0 - 1.0 / d)
    return found


def decoding_share(items: int, d: int) -> float:
    """Share of lists of which every item is decoded as the nearest value, d_k = d_v = d > 2.

    Item i beats item j at j's key when (1 - k) (1 - v) is less than what the N - 2 others add, k
    and v the inner products of the two keys and of the two values.  What the others add is taken as
    normal of variance 2 (1 - v) (N - 2) / d^2, and the N (N - 1) comparisons as independent: an
    approximation.
    """
    # An inner product of random directions has density (1 - t^2)^((d - 3) / 2).
    inner, weights = roots_gegenbauer(60, d / 2 - 1)
    weights = weights / weights.sum()
    spread = math.sqrt(2.0 * max(items - 2, 1)) / d
    beaten = norm.sf((1.0 - inner)[:, None] * np.sqrt(1.0 - inner) / spread)
    return float((1.0 - weights @ beaten @ weights) ** (items * (items - 1)))
