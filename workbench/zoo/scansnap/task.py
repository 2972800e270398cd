"""Texts that end in one of a few next tokens: common tokens tell nothing, distinct ones tell which.

A text of class n is T tokens drawn from P(l | n); its query token is psi(n), another for every
class, and its next token is n (Tian et al. 2023, arXiv 2305.16380, Syn-Small).  A common token has
weight 1 under every class.  Every class has distinct tokens of its own, whose weights rise evenly
from `rarest` to 1.  There are no positions, so a text is its counts of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from workbench.errors import WorkbenchError


@dataclass(frozen=True)
class Task:
    """`common` tokens of all classes, `distinct` ones for each of `classes`.

    With `mixed` every class has the mean distribution of all: no token tells anything.
    """

    common: int = 10
    distinct: int = 10
    classes: int = 2
    rarest: float = 0.1
    mixed: bool = False

    def __post_init__(self) -> None:
        if self.common < 1 or self.distinct < 2 or self.classes < 2:
            raise WorkbenchError(
                f"{self.common} common tokens, {self.distinct} distinct ones, {self.classes} "
                "classes: give at least 1 common token, 2 distinct ones and 2 classes."
            )
        if not 0 < self.rarest <= 1:
            raise WorkbenchError(
                f"weight {self.rarest} of the rarest token must be above 0 and at most 1."
            )

    @property
    def tokens(self) -> int:
        """Number of tokens that texts consist of."""
        return self.common + self.classes * self.distinct

    @property
    def vocabulary(self) -> int:
        """All tokens: those of texts, a query token and a next token per class."""
        return self.tokens + 2 * self.classes

    @cached_property
    def own(self) -> np.ndarray:
        """Places of the distinct tokens of each class, the rarest first, [class, rank]."""
        ranks = np.arange(self.classes * self.distinct).reshape(self.classes, self.distinct)
        return self.common + ranks

    @cached_property
    def frequencies(self) -> np.ndarray:
        """P(l | n), [class, token]; rows sum to 1."""
        weights = np.zeros((self.classes, self.tokens))
        weights[:, : self.common] = 1.0
        np.put_along_axis(weights, self.own, np.linspace(self.rarest, 1.0, self.distinct), axis=1)
        if self.mixed:
            weights[:] = weights.mean(axis=0)
        return weights / weights.sum(axis=1, keepdims=True)

    @property
    def names(self) -> list[str]:
        """Labels of tokens: c0, c1, ... common, then d0.0, d0.1, ... of class 0, and so on."""
        common = [f"c{i}" for i in range(self.common)]
        return common + [f"d{n}.{i}" for n in range(self.classes) for i in range(self.distinct)]

    def texts(self, count: int, length: int, seed: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Counts [text, token] of `count` texts of `length` tokens, and their classes [text]."""
        rng = np.random.default_rng(seed)
        classes = rng.integers(self.classes, size=count)
        return rng.multinomial(length, self.frequencies[classes]), classes
