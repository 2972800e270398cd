"""Masks and biases by description: what would be a matrix of queries x keys, as a rule that is read
where a strip or a tile needs it. They work on numpy arrays and torch tensors alike.

Give one as `mask=` or `bias=` of `attention_stats`. Positions are those of the tokens: query i
sits at i + query_offset, key j at j.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any


@dataclass(frozen=True)
class Neighbourhood:
    """Every query sees the `window` keys around it on a grid (Hassani et al. 2023,
    arXiv:2204.07143, with dilation arXiv:2209.15001): near an edge the window is shifted inward, so
    that it always holds as many keys.

    grid: tokens per axis, row-major, (length,) or (height, width); window: odd number of keys per
    axis; dilation: the step between keys, per axis. Grid x window must fit: dilation * window <=
    tokens of the axis.

    >>> import numpy as np
    >>> line = Neighbourhood(grid=(6,), window=(3,))
    >>> line.visible(np.arange(6)[:, None], np.arange(6)[None]).astype(int)[:2].tolist()
    [[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    """

    grid: tuple[int, ...]
    window: tuple[int, ...]
    dilation: tuple[int, ...] | None = None

    def check(self, shape: tuple[int, int, int, int]) -> None:
        """ValueError unless the grid is the tokens of `shape` = (B, H, Q, K)."""
        steps = self.dilation or (1,) * len(self.grid)
        if not len(self.grid) == len(self.window) == len(steps) or len(self.grid) not in (1, 2):
            raise ValueError(
                f"mask has grid {self.grid}, window {self.window} and dilation {self.dilation}; "
                f"expected one number per axis for one or two axes."
            )
        for n, size, step in zip(self.grid, self.window, steps, strict=True):
            if size < 1 or size % 2 == 0 or step < 1 or size * step > n:
                raise ValueError(
                    f"mask has window {self.window} with dilation {steps} on a grid {self.grid}; "
                    f"expected odd windows with window * dilation at most the grid."
                )
        if shape[2] > prod(self.grid) or shape[3] != prod(self.grid):
            raise ValueError(
                f"mask has a grid of {prod(self.grid)} tokens for {shape[2]} queries and "
                f"{shape[3]} keys; expected the keys to be the grid."
            )

    def visible(self, i: Any, j: Any) -> Any:
        """Bool of positions i and j, broadcast against each other; outside the grid nothing."""
        steps = self.dilation or (1,) * len(self.grid)
        seen = (i >= 0) & (i < prod(self.grid)) & (j >= 0) & (j < prod(self.grid))
        for axis, (n, size, step) in enumerate(zip(self.grid, self.window, steps, strict=True)):
            below = prod(self.grid[axis + 1 :])
            x, y = i // below % n, j // below % n
            group = x % step
            # Tokens of the query's dilation group along this axis, and the first one it sees.
            in_group = (n - group + step - 1) // step
            first = (x // step - size // 2).clip(0)
            last_start = in_group - size
            first = first - (first - last_start).clip(0)
            seen = seen & (y % step == group) & (y // step >= first) & (y // step < first + size)
        return seen


@dataclass(frozen=True)
class Strided:
    """Keys less than `local` tokens away, and every key whose distance is a multiple of `stride`
    (Child et al. 2019, arXiv:1904.10509, section 4.3). Symmetric; add causal=True for a decoder."""

    local: int
    stride: int

    def check(self, shape: tuple[int, int, int, int]) -> None:  # noqa: ARG002 - fits every shape
        """ValueError for a number below 1."""
        if self.local < 1 or self.stride < 1:
            raise ValueError(
                f"mask has local {self.local} and stride {self.stride}; expected at least 1 each."
            )

    def visible(self, i: Any, j: Any) -> Any:
        """Bool of positions i and j, broadcast against each other."""
        away = abs(i - j)
        return (away < self.local) | (away % self.stride == 0)


@dataclass(frozen=True)
class LowRankBias:
    """The bias left @ right^T, from left [B or 1, H or 1, Q, R] and right [B or 1, H or 1, K, R]
    (position and pair biases are often of low rank; FlashBias, arXiv:2505.12044)."""

    left: Any
    right: Any

    def check(self, shape: tuple[int, int, int, int]) -> None:
        """ValueError unless both sides broadcast to `shape` = (B, H, Q, K)."""
        b, h, n_q, n_k = shape
        for name, x, n in (("left", self.left, n_q), ("right", self.right, n_k)):
            fits = len(x.shape) == 4 and x.shape[0] in (1, b) and x.shape[1] in (1, h)
            if not fits or x.shape[2] != n or x.shape[3] != self.left.shape[-1]:
                raise ValueError(
                    f"bias.{name} has shape {tuple(x.shape)}; expected [{b} or 1, {h} or 1, {n}, R]"
                    f" with the same R on both sides."
                )


MASKS = (Neighbourhood, Strided)
BIASES = (LowRankBias,)
