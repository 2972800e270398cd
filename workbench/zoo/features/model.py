"""Features that are drawn and never trained, and the kernels they tend to.

With x~ = (x, 1), M heads and N keys (Fu et al. 2023, arXiv 2307.11353; ReLU in place of softmax):

    attention   (1/N) sum_i relu(x~_0' W_m x~_i) x~_i for every head m: M (d + 1) features
    MLP         relu(w_m' (x_0, x_1, ..., x_N, 1)), as many

W_m is Gaussian: with mean zero, with mean c I on the coordinates (biased attention), or, as a
control, with the same mean on the constant alone, which does not compare query with key.  With
infinitely many heads of mean zero the features are those of a kernel in closed form: a mean of
products of ReLUs is the arc-cosine kernel (Cho and Saul 2009).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from workbench.zoo.features.task import Inputs, Task

Features = Callable[[Inputs], np.ndarray]
Kernel = Callable[[Inputs, Inputs], np.ndarray]
# Added to a kernel by its mean diagonal: what rounding may take from its smallest eigenvalue.
_JITTER = 1e-10


def padded(x: np.ndarray) -> np.ndarray:
    """x with a last coordinate of 1."""
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)


def attention(task: Task, heads: int, rng: np.random.Generator, mean: np.ndarray) -> Features:
    """Features [input, head * coordinate] of heads drawn around `mean`, [coordinate, coordinate].

    `mean` is in deviations of a weight.
    """
    weights = rng.standard_normal((heads, task.d + 1, task.d + 1)) + mean

    def features(inputs: Inputs) -> np.ndarray:
        query, keys = padded(inputs.query), padded(inputs.keys)
        asked = np.tensordot(query, weights, axes=(1, 1))
        scores = np.maximum(asked @ keys.swapaxes(1, 2), 0.0)
        return (scores @ keys).reshape(len(keys), -1) / task.keys

    return features


def comparing(task: Task, strength: float) -> np.ndarray:
    """The mean that compares query with key: `strength` times the identity on the coordinates."""
    return strength * np.diag([*np.ones(task.d), 0.0])


def constant(task: Task, strength: float) -> np.ndarray:
    """The mean that raises every score alike."""
    return strength * np.diag([*np.zeros(task.d), 1.0])


def mlp(task: Task, units: int, rng: np.random.Generator) -> Features:
    """Features [input, unit] of a two-layer network on query and keys side by side."""
    weights = rng.standard_normal((units, (task.keys + 1) * task.d + 1))
    return lambda inputs: np.maximum(_joined(inputs) @ weights.T, 0.0)


def _joined(inputs: Inputs) -> np.ndarray:
    every = np.concatenate([inputs.query[:, None], inputs.keys], axis=1)
    return padded(every.reshape(len(every), -1))


def arc_cosine(cosine: np.ndarray) -> np.ndarray:
    """E relu(w'a) relu(w'b) for a, b of length 1 and w ~ N(0, I) (Cho and Saul 2009).

    >>> arc_cosine(np.array([1.0, -1.0])).round(9).tolist()
    [0.5, 0.0]
    """
    cosine = np.clip(cosine, -1.0, 1.0)
    angle = np.arccos(cosine)
    return (np.sin(angle) + (np.pi - angle) * cosine) / (2.0 * np.pi)


def attention_kernel(one: Inputs, other: Inputs) -> np.ndarray:
    """The features' inner product by head, infinitely many heads of mean zero, [input, input].

    Cost: one arc-cosine per pair of keys of every pair of inputs.
    """
    a, b = padded(one.keys), padded(other.keys)
    # A score matrix x~_0 x~_i' has length |x~_0| |x~_i|, here 2.
    queries = padded(one.query) @ padded(other.query).T / 2.0
    total = np.zeros_like(queries)
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            keys = a[:, i] @ b[:, j].T
            total += 4.0 * arc_cosine(queries * keys / 2.0) * keys
    return total / (a.shape[1] * b.shape[1])


def mlp_kernel(one: Inputs, other: Inputs) -> np.ndarray:
    """The features' inner product by unit, infinitely many units, [input, input]."""
    a, b = _joined(one), _joined(other)
    size = float((a[0] ** 2).sum())
    return size * arc_cosine(a @ b.T / size)


def embedded(kernel: Kernel, anchors: Inputs) -> Features:
    """Features whose inner products are the kernel's, at the anchors and against them."""
    own = kernel(anchors, anchors)
    own[np.diag_indices_from(own)] += _JITTER * own.diagonal().mean()
    root = cholesky(own, lower=True)
    return lambda inputs: solve_triangular(root, kernel(anchors, inputs), lower=True).T
