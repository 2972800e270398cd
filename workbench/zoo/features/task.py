"""A query x_0, keys x_1 ... x_N on the unit sphere, and functions of them to be learned.

    f(X) = mean_i <x_0, x_i>^q <beta, x_i>^p

Means over keys of one function of query and key are what random-feature attention is made for (Fu
et al. 2023, arXiv 2307.11353); a function of the first key alone is the control.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import WorkbenchError


@dataclass(frozen=True)
class Target:
    """A function: power `q` of <x_0, x_i>, power `p` of <beta, x_i>, mean over keys or one key."""

    name: str
    p: int
    q: int = 0
    one_key: bool = False


SQUARE = Target("mean <β,x>²", 2)
FOURTH = Target("mean <β,x>⁴", 4)
CORRELATED = Target("mean <x₀,x><β,x>", 1, 1)
TWICE = Target("mean <x₀,x>²<β,x>", 1, 2)
ONE_KEY = Target("first key <β,x>²", 2, one_key=True)
TARGETS = (SQUARE, FOURTH, CORRELATED, TWICE, ONE_KEY)


@dataclass(frozen=True, eq=False)
class Inputs:
    """`query` [input, coordinate] and `keys` [input, key, coordinate], all of length 1."""

    query: np.ndarray
    keys: np.ndarray

    def shuffled(self, rng: np.random.Generator) -> Inputs:
        """The same keys, in an order of its own for every input."""
        order = rng.random(self.keys.shape[:2]).argsort(axis=1)
        return Inputs(self.query, np.take_along_axis(self.keys, order[:, :, None], axis=1))


@dataclass(frozen=True)
class Task:
    """`d` coordinates of the query and of each of `keys` keys."""

    d: int = 8
    keys: int = 8

    def __post_init__(self) -> None:
        if self.d < 2 or self.keys < 2:
            raise WorkbenchError(f"d {self.d}, keys {self.keys}: give at least 2 of each.")

    def inputs(self, count: int, rng: np.random.Generator) -> Inputs:
        """Inputs drawn uniformly."""
        drawn = rng.standard_normal((count, 1 + self.keys, self.d))
        drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
        return Inputs(drawn[:, 0], drawn[:, 1:])

    def direction(self, rng: np.random.Generator) -> np.ndarray:
        """beta of length 1, [coordinate]."""
        beta = rng.standard_normal(self.d)
        return beta / np.linalg.norm(beta)


def values(target: Target, inputs: Inputs, beta: np.ndarray) -> np.ndarray:
    """The function at every input, [input]."""
    scores = np.einsum("ni,nki->nk", inputs.query, inputs.keys)
    each = scores**target.q * (inputs.keys @ beta) ** target.p
    return each[:, 0] if target.one_key else each.mean(axis=1)
