"""Patterns of attention as fits of values to keys: which weight each value gets in the prediction.

Every prediction is pattern @ values; for a query q, with z_j = k_j - q and Gaussian weights
w_j = exp(-|z_j|^2 / 2 h^2), divided by the largest:

    softmax       w_j / sum w: the constant b that minimises sum_j w_j |v_j - b|^2
    linear        step * k_j'q / n: one step of gradient descent from zero on 1/(2n) sum |v - W k|^2
    mesa          k_j' (K'K + penalty I)^-1 q: the ridge regression v = W k without intercept
    local linear  the b that minimises 1/2 sum_j w_j |v_j - b - W z_j|^2 + penalty |W|^2:
                  S = sum w z z' + 2 penalty I, m = sum w z, rho = S^-1 m,
                  w_j (1 - z_j'rho) / (sum w - m'rho)

Softmax attention is a kernel regression with this kernel where keys have equal norms; the mesa
layer and local linear attention are those of Zuo et al. 2025 (arXiv 2510.01450), the closed form of
the last is derived here.  The weights of softmax and local linear attention sum to one, those of
the latter may be negative.  As h grows local linear attention becomes least squares with an
intercept, as the penalty grows softmax.  Cost: n d per query for linear, n d + n d^2 for the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax as normalised

from workbench.errors import WorkbenchError

PENALTY = 1e-6  # of local linear attention, relative to the weight of the nearest key


def causal(length: int) -> np.ndarray:
    """The mask under which query t sees keys 0 to t, [query, key].

    To predict each value of a sequence before it is known, pass keys[:-1] and keys[1:] as queries.

    >>> causal(3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    return np.tri(length, dtype=bool)


def softmax(
    keys: np.ndarray, queries: np.ndarray, bandwidth: float, seen: np.ndarray | None = None
) -> np.ndarray:
    """Pattern [..., query, key] of keys [..., key, coordinate], queries [..., query, coordinate].

    `bandwidth` in the unit of the keys; `seen` [query, key] is true where a key may be looked at.
    Raises for a bandwidth that is not positive, and where a query sees no key.
    """
    return normalised(_scores(keys, queries, bandwidth, seen), axis=-1)


def linear(
    keys: np.ndarray, queries: np.ndarray, step: float, seen: np.ndarray | None = None
) -> np.ndarray:
    """Pattern [..., query, key] of linear attention, divided by the number of keys seen."""
    seen = _seen(keys, queries, seen)
    return step * np.where(seen, queries @ np.swapaxes(keys, -1, -2), 0.0) / _counted(seen)


def mesa(
    keys: np.ndarray, queries: np.ndarray, penalty: float, seen: np.ndarray | None = None
) -> np.ndarray:
    """Pattern [..., query, key] of ridge regression on the keys seen; `penalty` > 0."""
    if penalty <= 0:
        raise WorkbenchError(f"penalty {penalty} of the mesa layer is not above 0; raise it.")
    d = keys.shape[-1]
    seen = _seen(keys, queries, seen)
    # One solve serves all queries that see the same keys.
    each = seen if (seen != seen[:1]).any() else seen[:1]
    gram = np.einsum("qk,...ki,...kj->...qij", each.astype(float), keys, keys, optimize=True)
    asked = np.linalg.solve(gram + penalty * np.eye(d), queries[..., None])[..., 0]
    return np.where(seen, asked @ np.swapaxes(keys, -1, -2), 0.0)


def local_linear(
    keys: np.ndarray,
    queries: np.ndarray,
    bandwidth: float,
    seen: np.ndarray | None = None,
    penalty: float = PENALTY,
) -> np.ndarray:
    """Pattern [..., query, key] of local linear attention; raises as `softmax` does."""
    if penalty <= 0:
        raise WorkbenchError(f"penalty {penalty} is not above 0; raise it.")
    scores = _scores(keys, queries, bandwidth, seen)
    w = np.exp(scores - scores.max(axis=-1, keepdims=True))
    z = keys[..., None, :, :] - queries[..., None, :]
    weighted = w[..., None] * z
    m = weighted.sum(axis=-2)
    s = np.swapaxes(weighted, -1, -2) @ z + 2.0 * penalty * np.eye(keys.shape[-1])
    rho = np.linalg.solve(s, m[..., None])
    tilted = w * (1.0 - (z @ rho)[..., 0])
    return tilted / (w.sum(axis=-1) - (m[..., None, :] @ rho)[..., 0, 0])[..., None]


def recurrent_mesa(keys: np.ndarray, values: np.ndarray, penalty: float) -> np.ndarray:
    """Predictions [key, value] of the mesa layer for each key before its value, as a recurrence.

    The state is the inverse of K'K + penalty I and the map so far, d^2 + d * value numbers; each
    key changes both by one rank (Sherman and Morrison).  `keys` [key, coordinate].
    """
    inverse = np.eye(keys.shape[1]) / penalty
    fitted = np.zeros((values.shape[1], keys.shape[1]))
    predicted = np.empty(values.shape)
    for t, (key, value) in enumerate(zip(keys, values, strict=True)):
        predicted[t] = fitted @ key
        gain = inverse @ key / (1.0 + key @ inverse @ key)
        fitted += np.outer(value - predicted[t], gain)
        inverse -= np.outer(gain, key @ inverse)
    return predicted


@dataclass(frozen=True)
class Estimator:
    """A pattern with one setting, `what` it is in words, and the values it is chosen from."""

    name: str
    what: str
    grid: tuple[float, ...]
    pattern: Callable[..., np.ndarray]


_BANDWIDTHS = (0.15, 0.22, 0.32, 0.45, 0.65, 0.95, 1.4, 2.0, 3.0, 5.0, 50.0)
ESTIMATORS = {
    e.name: e
    for e in (
        Estimator("softmax", "bandwidth", _BANDWIDTHS, softmax),
        Estimator("linear", "step", tuple(np.linspace(0.05, 1.0, 20)), linear),
        Estimator("mesa", "penalty", (1e-6, 1e-2, 0.1, 1.0, 10.0), mesa),
        Estimator("local linear", "bandwidth", _BANDWIDTHS, local_linear),
    )
}


def _seen(keys: np.ndarray, queries: np.ndarray, seen: np.ndarray | None) -> np.ndarray:
    """The mask, by default every key for every query; raises where a query sees none."""
    shape = queries.shape[-2], keys.shape[-2]
    if seen is None:
        return np.ones(shape, bool)
    if seen.shape != shape or not seen.any(axis=1).all():
        raise WorkbenchError(
            f"mask of shape {seen.shape} for {shape[0]} queries and {shape[1]} keys: give [query, "
            "key] with at least one key for each query."
        )
    return seen


def _counted(seen: np.ndarray) -> np.ndarray:
    return seen.sum(axis=1, keepdims=True)


def _scores(
    keys: np.ndarray, queries: np.ndarray, bandwidth: float, seen: np.ndarray | None
) -> np.ndarray:
    """-|k - q|^2 / 2 h^2, [..., query, key], minus infinity where a key is not seen."""
    if bandwidth <= 0:
        raise WorkbenchError(f"bandwidth {bandwidth} is not above 0; raise it.")
    squares = (
        (queries**2).sum(-1)[..., :, None]
        + (keys**2).sum(-1)[..., None, :]
        - 2.0 * queries @ np.swapaxes(keys, -1, -2)
    )
    return np.where(_seen(keys, queries, seen), -squares / (2.0 * bandwidth**2), -np.inf)
