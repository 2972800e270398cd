"""Prompts of in-context linear regression: labelled points of a function that is new each time.

    x_l, x_q ~ N(0, Sigma),  beta_t ~ N(0, I / |S_t|) on the coordinates S_t of task t, else zero
    y_lt = beta_t' x_l + noise,  y_qt = beta_t' x_q + noise

The settings of He et al. 2025 (arXiv 2503.12734) in one convention: labels have the variance
1 + noise at Sigma = I, and the target of the query is as noisy as the labels, so every risk holds
the noise.  Their two-task code draws labels twice as large and leaves the query without noise: its
risk is 4 (ours - noise).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from workbench.errors import WorkbenchError


@dataclass(frozen=True, eq=False)
class Prompts:
    """`x` [prompt, key, coordinate], `y` [prompt, key, task], `x_q` [prompt, coordinate], `y_q`
    [prompt, task], all float32."""

    x: np.ndarray
    y: np.ndarray
    x_q: np.ndarray
    y_q: np.ndarray

    @property
    def z(self) -> np.ndarray:
        """Points and labels as the network sees them, [prompt, key, coordinate + task]."""
        return np.concatenate([self.x, self.y], axis=-1)

    def part(self, rows: slice) -> Prompts:
        """Some of the prompts."""
        return Prompts(self.x[rows], self.y[rows], self.x_q[rows], self.y_q[rows])

    def first(self, points: int) -> Prompts:
        """The same prompts cut to their first labelled points; the query stays."""
        return Prompts(self.x[:, :points], self.y[:, :points], self.x_q, self.y_q)

    def raised(self, by: float) -> Prompts:
        """The same prompts with every label `by` higher."""
        return Prompts(self.x, self.y + np.float32(by), self.x_q, self.y_q + np.float32(by))


@dataclass(frozen=True)
class Task:
    """`d` coordinates, `length` labelled points, `noise` the variance of the label noise.

    Sigma_ij = correlation^|i-j|.  `supports` are the coordinates of each task's function; by
    default one task with all of them.
    """

    d: int = 5
    length: int = 40
    noise: float = 0.1
    correlation: float = 0.0
    supports: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.d < 1 or self.length < 2 or self.noise < 0:
            raise WorkbenchError(
                f"d {self.d}, length {self.length}, noise {self.noise}: give at least 1 coordinate "
                "and 2 points, and noise that is not negative."
            )
        if not -1 < self.correlation < 1:
            raise WorkbenchError(f"correlation {self.correlation} is not between -1 and 1.")
        if not self.supports:
            object.__setattr__(self, "supports", (tuple(range(self.d)),))
        if any(not s or set(s) - set(range(self.d)) for s in self.supports):
            raise WorkbenchError(
                f"supports {self.supports} must each name coordinates below {self.d}."
            )

    @property
    def n_tasks(self) -> int:
        return len(self.supports)

    @cached_property
    def masks(self) -> np.ndarray:
        """Which coordinates matter, [task, coordinate], 0 or 1."""
        masks = np.zeros((self.n_tasks, self.d))
        for task, support in enumerate(self.supports):
            masks[task, list(support)] = 1
        return masks

    @cached_property
    def covariance(self) -> np.ndarray:
        """Sigma, [coordinate, coordinate]."""
        places = np.arange(self.d)
        # 0 ** 0 is 1: without correlation this is the identity.
        return float(self.correlation) ** np.abs(places[:, None] - places)

    @cached_property
    def _root(self) -> np.ndarray:
        return np.linalg.cholesky(self.covariance).astype(np.float32)

    @cached_property
    def _spread(self) -> np.ndarray:
        """Deviation of each coefficient, [task, coordinate]."""
        return (self.masks / np.sqrt(self.masks.sum(axis=1, keepdims=True))).astype(np.float32)

    def prompts(self, count: int, seed: int | list[int], length: int | None = None) -> Prompts:
        """`count` prompts that `seed` decides, of `length` points (default: the task's own)."""
        rng = np.random.default_rng(seed)
        keys = (self.length if length is None else length) + 1
        x = rng.standard_normal((count, keys, self.d), np.float32)
        if self.correlation:
            x = x @ self._root.T
        beta = rng.standard_normal((count, self.n_tasks, self.d), np.float32) * self._spread
        errors = rng.standard_normal((count, keys, self.n_tasks), np.float32)
        y = x @ beta.swapaxes(1, 2) + np.float32(np.sqrt(self.noise)) * errors
        return Prompts(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1])
