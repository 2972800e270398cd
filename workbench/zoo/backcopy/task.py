"""Text of the Bigram-Backcopy task, with the exact distribution of every next symbol.

    x_0 = <s>;  x_1 ~ frequencies of the chain, triggers left out
    x_{n+1} = x_{n-1}        if x_n is a trigger       ("backcopy", certain)
    x_{n+1} ~ P[x_n, .]      otherwise                 ("bigram")

Triggers are the most frequent symbols (Guo et al. 2024, arXiv 2410.13835).  Two triggers never
follow one another, so what is copied is never a trigger, and never `<s>`.  The chain is synthetic,
or counted in a text file.  The control has no copying: a trigger is then a symbol like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from workbench.errors import WorkbenchError

BEGIN = "<s>"
# Rows of the synthetic chain are drawn around Zipf's law: few successors each, none impossible.
_CONCENTRATION, _FLOOR = 0.1, 0.02


@dataclass(frozen=True, eq=False)
class Chain:
    """A first-order language: rows of `matrix` [state, next] and `frequencies` [state] sum to 1."""

    symbols: tuple[str, ...]
    matrix: np.ndarray
    frequencies: np.ndarray


def synthetic_chain(states: int = 64, seed: int = 0) -> Chain:
    """A random chain: row ~ .98 Dirichlet(.1 · states · Zipf) + .02 Zipf, with its stationary law.

    >>> chain = synthetic_chain(8)
    >>> bool(np.allclose(chain.frequencies @ chain.matrix, chain.frequencies))
    True
    """
    zipf = 1.0 / np.arange(1, states + 1)
    zipf /= zipf.sum()
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(_CONCENTRATION * states * zipf, size=states)
    matrix = (1 - _FLOOR) * rows + _FLOOR * zipf
    # The stationary law solves f (P - 1) = 0 with f summing to one: one equation per state and one.
    equations = np.vstack([matrix.T - np.eye(states), np.ones(states)])
    frequencies = np.linalg.lstsq(equations, np.r_[np.zeros(states), 1.0], rcond=None)[0]
    width = len(str(states - 1))
    return Chain(tuple(f"w{i:0{width}d}" for i in range(states)), matrix, frequencies)


def text_chain(path: str | Path) -> Chain:
    """The chain of a text file: its characters in order of code point, adjacent pairs counted."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"{path} cannot be read as UTF-8 text ({error}).") from None
    symbols = sorted(set(text))
    if len(symbols) < 8:
        raise WorkbenchError(
            f"{path} has {len(symbols)} different characters; a chain needs 8 or more."
        )
    place = {symbol: i for i, symbol in enumerate(symbols)}
    ids = np.array([place[symbol] for symbol in text])
    counts = np.zeros((len(symbols), len(symbols)))
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    if not counts.sum(axis=1).all():
        raise WorkbenchError(
            f"{path} ends with {text[-1]!r}, which occurs nowhere else, so nothing follows it; "
            "cut the last character."
        )
    frequencies = np.bincount(ids, minlength=len(symbols)) / len(ids)
    return Chain(tuple(symbols), counts / counts.sum(axis=1, keepdims=True), frequencies)


@dataclass(frozen=True, eq=False)
class Task:
    """Texts of `length` + 1 symbols: the first `length` are input, the last `length` targets."""

    chain: Chain
    length: int
    n_triggers: int = 3

    def __post_init__(self) -> None:
        if self.length < 16:
            raise WorkbenchError(f"length {self.length} is too short to measure; give 16 or more.")
        if not 1 <= self.n_triggers <= len(self.chain.symbols) // 2:
            raise WorkbenchError(
                f"{self.n_triggers} triggers of {len(self.chain.symbols)} symbols; "
                "give at least one and at most half of them."
            )

    @property
    def tokens(self) -> tuple[str, ...]:
        """Text of every id; the last one is `<s>`."""
        return (*self.chain.symbols, BEGIN)

    @property
    def begin(self) -> int:
        """Id of `<s>`."""
        return len(self.chain.symbols)

    @cached_property
    def is_trigger(self) -> np.ndarray:
        """bool [token]: the most frequent symbols."""
        found = np.zeros(len(self.tokens), bool)
        found[np.argsort(-self.chain.frequencies, kind="stable")[: self.n_triggers]] = True
        return found

    @cached_property
    def _first(self) -> np.ndarray:
        """[copies (no, yes), token]: distribution of x_1."""
        plain = np.r_[self.chain.frequencies, 0.0]
        without = np.where(self.is_trigger, 0.0, plain)
        return np.stack([plain / plain.sum(), without / without.sum()])

    @cached_property
    def _rows(self) -> np.ndarray:
        """[token, next token]: the chain with a last column for `<s>`, which never comes again."""
        rows = np.pad(self.chain.matrix, ((0, 1), (0, 1)))
        rows[-1] = self._first[0]
        return rows

    @cached_property
    def _cumulative(self) -> np.ndarray:
        return _cumulate(self._rows)

    def texts(self, uniforms: np.ndarray, copies: np.ndarray) -> np.ndarray:
        """Texts from uniform numbers: int64 [text, length + 1].

        `uniforms` [text, length] in [0, 1) decide every free choice; `copies` bool [text] says
        which texts follow the rule (the others are the control, the bare chain).
        """
        rows = np.arange(len(uniforms))
        ids = np.empty((len(uniforms), self.length + 1), np.int64)
        ids[:, 0] = self.begin
        first = _cumulate(self._first)[copies.astype(int)]
        ids[:, 1] = (first <= uniforms[:, :1]).sum(axis=1)
        for n in range(1, self.length):
            drawn = (self._cumulative[ids[rows, n]] <= uniforms[:, n, None]).sum(axis=1)
            ids[:, n + 1] = np.where(self.is_trigger[ids[:, n]] & copies, ids[:, n - 1], drawn)
        return ids

    def oracle(self, ids: np.ndarray, copies: np.ndarray) -> np.ndarray:
        """Exact next-symbol probabilities, float64 [text, length, token].

        `ids` [text, length] are inputs; row q is the distribution of x_{q+1} given what precedes.
        """
        out = self._rows[ids]
        out[:, 0] = self._first[copies.astype(int)]
        texts, places = np.nonzero(self.is_trigger[ids] & copies[:, None])
        out[texts, places] = 0.0
        out[texts, places, ids[texts, places - 1]] = 1.0
        return out


def _cumulate(rows: np.ndarray) -> np.ndarray:
    """Cumulative probabilities that end at exactly one, so that every u < 1 picks a symbol."""
    sums = np.cumsum(rows, axis=-1)
    return sums / sums[..., -1:]
