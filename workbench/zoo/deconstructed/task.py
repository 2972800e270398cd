"""Texts of a small language with three abilities in it, and the exact law of every next symbol.

    after a word   another word by the chain's row, or `~`, or a name         ("chain")
    after `~`      the word before it again, certain                         ("copy")
    after a name   its word, drawn anew in each text: certain where the name has occurred before
                   ("recall"), and before that uniform over the words ("first")

Chain needs the last symbol alone.  Copy needs the symbol at distance one: a place, the same in
every text.  Recall needs what followed the same name earlier: a place that the text decides, to be
found by content (the induction of Olsson et al. 2022, arXiv 2209.11895).  So the risk above the
oracle, rule by rule, says which ability a network has lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from workbench.errors import WorkbenchError
from workbench.zoo.backcopy.task import BEGIN, Chain, synthetic_chain

COPY_MARK = "~"
RULES = ("chain", "copy", "recall")
# Rule at a query: an index into RULES, or the first time of a name.
FIRST = len(RULES)


@dataclass(frozen=True)
class Task:
    """`words` symbols of the chain, `names`, and `length` input symbols per text.

    `copies` and `calls` are the chances that `~` or a name follows a word.
    """

    words: int = 16
    names: int = 3
    length: int = 32
    copies: float = 0.1
    calls: float = 0.5

    def __post_init__(self) -> None:
        if self.words < 2 or self.names < 1 or self.length < 8:
            raise WorkbenchError(
                f"{self.words} words, {self.names} names, length {self.length}: give at least 2 "
                "words, 1 name and 8 symbols."
            )
        if min(self.copies, self.calls) <= 0 or self.copies + self.calls >= 1:
            raise WorkbenchError(
                f"chances {self.copies} of {COPY_MARK} and {self.calls} of a name must be "
                "positive, with a sum below 1."
            )

    @cached_property
    def chain(self) -> Chain:
        return synthetic_chain(self.words)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Text of every id: words, `~`, names, `<s>`."""
        names = tuple(f"n{i}" for i in range(self.names))
        return (*self.chain.symbols, COPY_MARK, *names, BEGIN)

    @property
    def mark(self) -> int:
        """Id of `~`."""
        return self.words

    @property
    def first_name(self) -> int:
        """Id of the first name."""
        return self.words + 1

    @property
    def begin(self) -> int:
        """Id of `<s>`."""
        return self.words + 1 + self.names

    def is_name(self, ids: np.ndarray) -> np.ndarray:
        """Which ids are names, bool."""
        return (ids >= self.first_name) & (ids < self.begin)

    @cached_property
    def rows(self) -> np.ndarray:
        """Law of the next symbol by the last one, [token, token]; NaN after `~` and names."""
        rows = np.full((len(self.tokens), len(self.tokens)), np.nan)
        rows[: self.words] = 0.0
        rows[: self.words, : self.words] = (1.0 - self.copies - self.calls) * self.chain.matrix
        rows[: self.words, self.mark] = self.copies
        rows[: self.words, self.first_name : self.begin] = self.calls / self.names
        rows[self.begin] = 0.0
        rows[self.begin, : self.words] = self.chain.frequencies
        return rows

    def texts(self, count: int, seed: int | list[int]) -> np.ndarray:
        """`count` texts that `seed` decides: int64 [text, length + 1], inputs and targets."""
        rng = np.random.default_rng(seed)
        uniforms = rng.random((count, self.length))
        values = rng.integers(self.words, size=(count, self.names))
        sums = np.nan_to_num(np.cumsum(self.rows, axis=1))
        # Sums that end at exactly one, so that every uniform number picks a symbol.
        sums /= np.where(sums[:, -1:] > 0, sums[:, -1:], 1.0)
        ids = np.full((count, self.length + 1), self.begin, np.int64)
        each = np.arange(count)
        for n in range(1, self.length + 1):
            last = ids[:, n - 1]
            drawn = (sums[last] <= uniforms[:, n - 1, None]).sum(axis=1)
            named = values[each, np.where(self.is_name(last), last - self.first_name, 0)]
            copied = ids[:, max(n - 2, 0)]
            ids[:, n] = np.where(
                last == self.mark, copied, np.where(self.is_name(last), named, drawn)
            )
        return ids

    def rules(self, ids: np.ndarray) -> np.ndarray:
        """Rule of what follows each symbol: int [text, query], index into `RULES`, or `FIRST`."""
        same = ids[:, :, None] == ids[:, None, :]
        before = np.tril(same, -1).any(axis=-1)
        named = np.where(before, RULES.index("recall"), FIRST)
        return np.where(
            self.is_name(ids), named, np.where(ids == self.mark, RULES.index("copy"), 0)
        )

    def oracle(self, ids: np.ndarray) -> np.ndarray:
        """Exact law of the next symbol, float64 [text, query, token], given what precedes.

        `ids` [text, query] are inputs, begin token first.
        """
        out = self.rows[ids]
        rules = self.rules(ids)
        out[rules == FIRST] = np.arange(len(self.tokens)) < self.words
        out[rules == FIRST] /= self.words
        for rule in ("copy", "recall"):
            for text, place in zip(*np.nonzero(rules == RULES.index(rule)), strict=True):
                if rule == "copy":
                    source = place - 1
                else:
                    source = int(np.nonzero(ids[text, :place] == ids[text, place])[0][0]) + 1
                out[text, place] = 0.0
                out[text, place, ids[text, source]] = 1.0
        return out
