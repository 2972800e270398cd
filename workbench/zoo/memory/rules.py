"""How items are stored in a matrix and read from it (Qiao 2025, arXiv 2508.08289).

    Hebb             S += v k'                 linear attention without normalisation
    delta            S += (v - S k) k'         only what the memory does not yet say
    pseudo-inverse   S  = V' K'^+              least squares over all items at once

Keys and values are [list, item, coordinate], a memory is [list, value coordinate, key coordinate].
"""

from __future__ import annotations

import numpy as np


def hebb(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sum of outer products."""
    return values.swapaxes(-1, -2) @ keys


def delta(keys: np.ndarray, values: np.ndarray, read: np.ndarray | None = None) -> np.ndarray:
    """One pass of the delta rule with rate 1.

    `read` are the keys at which the memory is asked what it says already: the items' own.
    """
    asked = keys if read is None else read
    memory = np.zeros((len(keys), values.shape[-1], keys.shape[-1]))
    for i in range(keys.shape[1]):
        said = np.einsum("lvk,lk->lv", memory, asked[:, i])
        memory += (values[:, i] - said)[:, :, None] * keys[:, i, None, :]
    return memory


def pseudo_inverse(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The memory of least squared error over the items."""
    return (np.linalg.pinv(keys) @ values).swapaxes(-1, -2)


def retrieve(memory: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """What the memory says at each key, [list, item, value coordinate]."""
    return keys @ memory.swapaxes(-1, -2)


def squared_errors(memory: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """||S k - v||^2 of every item, [list, item]; values have length 1."""
    return ((retrieve(memory, keys) - values) ** 2).sum(axis=-1)
