"""Items to store: keys and values of unit length, [list, item, coordinate].

A key of another list is never read, so lists are repetitions of one experiment.
"""

from __future__ import annotations

import math

import numpy as np

from workbench.errors import WorkbenchError


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Independent directions, uniform on the sphere of the last dim."""
    drawn = rng.standard_normal(shape)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def orthogonal(rng: np.random.Generator, lists: int, items: int, d: int) -> np.ndarray:
    """Keys that do not interfere, [list, item, d]; raises for more items than coordinates."""
    if items > d:
        raise WorkbenchError(f"{items} orthogonal keys need as many coordinates; give d over {d}.")
    return np.linalg.qr(rng.standard_normal((lists, d, items)))[0].swapaxes(1, 2)


def coherent(items: int, d: int) -> np.ndarray:
    """Keys whose every inner product is 1 / sqrt(d), [list 1, item, d].

    None of that coherence interfere more.  Raises for more items than coordinates.
    """
    if items > d:
        raise WorkbenchError(f"{items} keys of one inner product need d of {items}, not {d}.")
    c = 1.0 / math.sqrt(d)
    gram = (1.0 - c) * np.eye(items) + c
    return np.pad(np.linalg.cholesky(gram), ((0, 0), (0, d - items)))[None]


def aligned(items: int, d: int) -> np.ndarray:
    """One value for every item, [list 1, item, d]: errors add up instead of crossing."""
    return np.broadcast_to(np.eye(d)[0], (1, items, d))
