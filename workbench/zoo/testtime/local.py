"""How near patterns look: the mass on neighbours, and what is lost without them.

Han et al. 2024 (arXiv 2412.06590, section 4.2) find that softmax attention of trained vision
transformers puts more weight on the 3 x 3 neighbourhood of a token than linear attention, and
depends more on it.  Here the same is asked of smooth random fields on a torus, without training:
a token's key and query are the field at its place, its value the field with noise, and attention
is to recover the field.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from scipy.special import softmax as normalised

from workbench.zoo.testtime import injectivity

SIDE, CHANNELS = 14, 8  # tokens along a side, as in small vision transformers; entries of a key
SMOOTH, NOISE = 2.0, 0.5  # correlation length in tokens; deviation of the noise on values
HIDDEN = 9
Patterns = Callable[[np.ndarray, np.ndarray], np.ndarray]


def field(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth field and the same with noise, [token, channel], channels of variance one."""
    rng = np.random.default_rng(seed)
    rough = rng.standard_normal((SIDE, SIDE, CHANNELS))
    smooth = gaussian_filter(rough, (SMOOTH, SMOOTH, 0), mode="wrap").reshape(-1, CHANNELS)
    smooth = (smooth - smooth.mean(0)) / smooth.std(0)
    return smooth, smooth + NOISE * rng.standard_normal(smooth.shape)


def neighbours() -> np.ndarray:
    """Which tokens lie in the 3 x 3 around each on the torus, itself included, [query, key].

    >>> neighbours().sum(axis=1).tolist() == [9] * SIDE**2
    True
    """
    place = np.stack(np.divmod(np.arange(SIDE**2), SIDE))
    apart = np.abs(place[:, :, None] - place[:, None, :])
    return np.minimum(apart, SIDE - apart).max(axis=0) <= 1


def local_mass(pattern: np.ndarray, near: np.ndarray) -> float:
    """Mean over queries of the weight on neighbours; `pattern` [query, key], rows sum to one."""
    return float((pattern * near).sum(axis=1).mean())


def others(seed: int) -> np.ndarray:
    """As many tokens per query, the query itself and eight drawn at random, [query, key]."""
    rng = np.random.default_rng([seed, HIDDEN])
    order = rng.random((SIDE**2, SIDE**2))
    np.fill_diagonal(order, -1.0)
    return order.argsort(axis=1).argsort(axis=1) < HIDDEN


def softmax(keys: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Softmax of k'k with scale one over the keys `seen` [query, key]."""
    return normalised(np.where(seen, keys @ keys.T, -np.inf), axis=1)


def linear(keys: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Linear attention of ELU + 1 features over its sum, over the keys `seen`."""
    features = injectivity.elu(keys)
    products = np.where(seen, features @ features.T, 0.0)
    return products / products.sum(axis=1, keepdims=True)


def measured(seed: int) -> pd.DataFrame:
    """One row per pattern: `local_mass`, that of the same keys at `shuffled` places, and the
    `error` (share of the field's variance), with neighbours `hidden`, with `random` tokens hidden.
    """
    clean, noisy = field(seed)
    near, every = neighbours(), np.ones((SIDE**2, SIDE**2), bool)
    moved = np.random.default_rng([seed, 1]).permutation(SIDE**2)
    rows = []
    for name, of in (("softmax", softmax), ("linear, ELU + 1", linear)):

        def lost(seen: np.ndarray, of: Patterns = of) -> float:
            return float(((of(clean, seen) @ noisy - clean) ** 2).mean())

        rows.append(
            {
                "pattern": name,
                "seed": seed,
                "local_mass": local_mass(of(clean, every), near),
                "shuffled": local_mass(of(clean[moved], every), near),
                "error": lost(every),
                "error_hidden": lost(~near),
                "error_random": lost(~others(seed)),
            }
        )
    return pd.DataFrame(rows)
