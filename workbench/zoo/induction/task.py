"""Texts in which copying from the context pays, with the exact next-token distribution.

    o_a ~ uniform over the words, for every word a, new in every text: its favourite
    x_0 = <s>;  x_1 ~ frequencies of the chain
    x_{t+1} = o_{x_t}        with probability `favour`
    x_{t+1} ~ P[x_t, .]      otherwise, P a chain that is the same in all texts

The chain is in the weights, the favourites are in the context alone: what followed the current
word before is likely to follow it again.  Given what followed a word so far, the posterior of its
favourite is exact, and so is the prediction (`oracle`).  With `favour` 0 there is nothing to find
in the context: the control.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from workbench.errors import WorkbenchError
from workbench.zoo.backcopy.task import Chain, synthetic_chain


@dataclass(frozen=True)
class Language:
    """`states` words; texts of `length` + 1 tokens: the first `length` input, the last targets."""

    states: int = 24
    length: int = 32
    favour: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.favour < 1:
            raise WorkbenchError(
                f"favour {self.favour} is no probability below 1; give one, 0 for the control."
            )
        if self.states < 2 or self.length < 16:
            raise WorkbenchError(
                f"{self.states} words and texts of {self.length}: give at least 2 words and 16 "
                "tokens, fewer are too short to measure."
            )

    @cached_property
    def chain(self) -> Chain:
        """What is the same in all texts."""
        return synthetic_chain(self.states)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Text of every id; the last one is `<s>`."""
        return (*self.chain.symbols, "<s>")

    @property
    def begin(self) -> int:
        """Id of `<s>`."""
        return self.states

    def texts(self, count: int, seed: int | list[int]) -> np.ndarray:
        """`count` texts that `seed` decides, int64 [text, length + 1]."""
        rng = np.random.default_rng(seed)
        favourites = rng.integers(0, self.states, (count, self.states))
        taken = rng.random((count, self.length)) < self.favour
        drawn = rng.random((count, self.length))
        rows = np.vstack([self.chain.matrix, self.chain.frequencies]).cumsum(axis=1)
        rows /= rows[:, -1:]
        ids = np.full((count, self.length + 1), self.begin)
        every = np.arange(count)
        for t in range(self.length):
            now = ids[:, t]
            ids[:, t + 1] = (rows[now] <= drawn[:, t, None]).sum(axis=1)
            if t:
                ids[:, t + 1] = np.where(taken[:, t], favourites[every, now], ids[:, t + 1])
        return ids

    def oracle(self, ids: np.ndarray) -> np.ndarray:
        """Exact next-token probabilities, float64 [text, length, token], of texts [text, length].

        Row t is the distribution of x_{t+1} given x_0 .. x_t: the posterior of o_{x_t}, which is
        proportional to prod favour 1[s = o] + (1 - favour) P[x_t, s] over its successors s so far.
        """
        count, length = ids.shape
        every, one = np.arange(count), np.eye(self.states)
        posterior = np.full((count, self.states, self.states), 1.0 / self.states)
        out = np.zeros((count, length, self.states + 1))
        out[:, 0, :-1] = self.chain.frequencies
        for t in range(1, length):
            now = ids[:, t]
            rest = (1 - self.favour) * self.chain.matrix[now]
            out[:, t, :-1] = self.favour * posterior[every, now] + rest
            if t + 1 < length:
                came = ids[:, t + 1]
                weight = posterior[every, now] * (self.favour * one[came] + rest[every, came, None])
                posterior[every, now] = weight / weight.sum(axis=1, keepdims=True)
        return out

    def without_context(self, ids: np.ndarray) -> np.ndarray:
        """The chain, with every favourite as likely as any other: the oracle where a word is new.

        Probabilities [text, length, token] of texts [text, length].  Frequencies over
        many texts do a little better: a word that is its own favourite is met more often.
        """
        rows = (1 - self.favour) * self.chain.matrix + self.favour / self.states
        rows = np.pad(np.vstack([rows, self.chain.frequencies]), ((0, 0), (0, 1)))
        return rows[ids]


def repeated(language: Language, count: int, seed: int) -> tuple[np.ndarray, int]:
    """`<s> r_1..r_n r_1..r_n` of distinct random words, int64 [text, 2 n + 1], and n."""
    n = min(language.states, (language.length - 1) // 2)
    rng = np.random.default_rng(seed)
    half = np.stack([rng.permutation(language.states)[:n] for _ in range(count)])
    begin = np.full((count, 1), language.begin)
    return np.concatenate([begin, half, half], axis=1), n
