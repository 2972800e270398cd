"""Which patterns tell queries apart: softmax, linear attention over its sum, and InLine.

Linear attention with features phi weights a key by phi(q)'phi(k_j) / sum_s phi(q)'phi(k_s).  Only
the direction of phi(q) is left of the query, so different queries get the same weights; softmax
over keys that span their space and do not lie on a plane q'k = const gives each query its own (Han
et al. 2024, arXiv 2412.06590, section 4.1).  Their InLine attention divides by nothing:

    phi(q)'phi(k_j) - mean_s phi(q)'phi(k_s) + 1/N

Its weights sum to one and may be negative.  It cannot tell apart what phi does not: under ReLU, a
negative coordinate of the query may be anything.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.special import softmax as normalised

from workbench.errors import WorkbenchError

Feature = Callable[[np.ndarray], np.ndarray]
PATTERNS = ("softmax", "linear, ReLU", "linear, ELU + 1", "InLine, ReLU", "InLine, ELU + 1")
PAIRS = ("q and 2 q", "q and its twin", "one coordinate of q below zero")


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0): not injective."""
    return np.maximum(x, 0.0)


def elu(x: np.ndarray) -> np.ndarray:
    """x + 1 above zero, e^x below: injective, onto the positive numbers.

    >>> elu(np.array([0.0, 2.0])).tolist()
    [1.0, 3.0]
    """
    return np.where(x > 0, x + 1.0, np.exp(np.minimum(x, 0.0)))


def from_elu(y: np.ndarray) -> np.ndarray:
    """The x whose `elu` is y > 0."""
    return np.where(y > 1, y - 1.0, np.log(np.minimum(y, 1.0)))


def softmax(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Pattern [query, key] of keys [key, d] and queries [query, d], scale 1/sqrt d."""
    return normalised(queries @ keys.T / np.sqrt(keys.shape[1]), axis=-1)


def linear(keys: np.ndarray, queries: np.ndarray, feature: Feature) -> np.ndarray:
    """Pattern [query, key] of linear attention over its sum; raises where that sum is zero."""
    products = feature(queries) @ feature(keys).T
    total = products.sum(axis=1, keepdims=True)
    if (total == 0).any():
        raise WorkbenchError(
            f"query {int((total == 0).argmax())} has no feature in common with any key, so its "
            "weights cannot be divided by their sum; take other features or leave that query out."
        )
    return products / total


def inline(keys: np.ndarray, queries: np.ndarray, feature: Feature) -> np.ndarray:
    """Pattern [query, key] of InLine attention (Han et al. 2024, arXiv 2412.06590, eq. 4)."""
    products = feature(queries) @ feature(keys).T
    return products - products.mean(axis=1, keepdims=True) + 1.0 / len(keys)


def pattern(name: str, keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Pattern [query, key] by its name in `PATTERNS`."""
    if name not in PATTERNS:
        raise WorkbenchError(f"pattern {name!r} is not known; known: {', '.join(PATTERNS)}.")
    if name == "softmax":
        return softmax(keys, queries)
    kind, _, feature = name.partition(", ")
    return {"linear": linear, "InLine": inline}[kind](
        keys, queries, {"ReLU": relu, "ELU + 1": elu}[feature]
    )


def twin(queries: np.ndarray, times: float = 2.0) -> np.ndarray:
    """Queries whose ELU features are `times` as large: others, to linear attention the same."""
    return from_elu(times * elu(queries))


def pairs(queries: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Two different queries per row [query, coordinate], in three ways (`PAIRS`).

    The last coordinate of the third kind is -1 and -2, the others are kept.
    """
    below = [queries.copy(), queries.copy()]
    for value, changed in zip((-1.0, -2.0), below, strict=True):
        changed[:, -1] = value
    return {
        PAIRS[0]: (queries, 2.0 * queries),
        PAIRS[1]: (queries, twin(queries)),
        PAIRS[2]: (below[0], below[1]),
    }


def draw(seed: int, keys: int, queries: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian keys [key, coordinate] and queries whose first coordinate is positive.

    Without one positive coordinate ReLU features of a query are all zero.
    """
    rng = np.random.default_rng(seed)
    k, q = rng.standard_normal((keys, d)), rng.standard_normal((queries, d))
    q[:, 0] = np.abs(q[:, 0])
    return k, q


def distances(seed: int, keys: int = 16, queries: int = 64, d: int = 8) -> pd.DataFrame:
    """One row per pattern and kind of pair: mean L1 `distance` of the two rows of weights, `sum`
    furthest from one and smallest weight `least` over all of them."""
    k, q = draw(seed, keys, queries, d)
    rows = []
    for pair, (one, other) in pairs(q).items():
        for name in PATTERNS:
            a, b = pattern(name, k, one), pattern(name, k, other)
            rows.append(
                {
                    "pattern": name,
                    "pair": pair,
                    "seed": seed,
                    "distance": float(np.abs(a - b).sum(axis=1).mean()),
                    "off_one": float(np.abs(np.stack([a, b]).sum(axis=-1) - 1.0).max()),
                    "least": float(min(a.min(), b.min())),
                }
            )
    return pd.DataFrame(rows)
