"""What positions alone tell: which keys a strip of queries can reach, and which pairs are hidden.

Dims: Q queries, K keys; a strip holds n queries i0..i1 and W keys lo..hi. Position of query i is
i + offset, of key j is j.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from workbench.kernels.attention_stats.variants import Neighbourhood, Strided

# A bias at or below this hides its key, as in `naive`.
HIDING_BIAS = -1e30
# Columns a..b of a strip, counted from its first key, and the hidden pairs among them [n, b - a].
Hidden = tuple[int, int, torch.Tensor]


@dataclass(frozen=True)
class Geometry:
    """The part of the visibility that follows from positions, the same for every prompt."""

    n_q: int
    n_k: int
    offset: int
    causal: bool
    window: int | None
    described: Neighbourhood | Strided | None = None

    def span(self, i0: int, i1: int) -> tuple[int, int]:
        """Key range [lo, hi) that queries i0..i1 can see between them; may be empty."""
        first, last = i0 + self.offset, i1 - 1 + self.offset
        lo = 0 if self.window is None else max(0, first - self.window + 1)
        hi = self.n_k if self.window is None else last + self.window
        hi = min(self.n_k, last + 1 if self.causal else hi)
        if isinstance(self.described, Neighbourhood):
            near = _rows_around(self.described, first, last)
            lo, hi = max(lo, near[0]), min(hi, near[1])
        return lo, max(lo, hi)

    def hidden(self, i0: int, i1: int, lo: int, hi: int, device: torch.device) -> list[Hidden]:
        """Columns of the strip in which some pair is hidden.

        Only the diagonal and the edges of the window need it: a causal strip masks n columns, not
        L. A description needs all of them.
        """
        out = []
        first, last = i0 + self.offset, i1 - 1 + self.offset
        position = torch.arange(first, last + 1, device=device)[:, None]
        if self.causal:
            a = max(lo, first + 1)
            if a < hi:
                out.append((a - lo, hi - lo, torch.arange(a, hi, device=device) > position))
        elif self.window is not None:
            a = max(lo, first + self.window)
            if a < hi:
                far = torch.arange(a, hi, device=device) - position >= self.window
                out.append((a - lo, hi - lo, far))
        if self.window is not None:
            b = min(hi, last - self.window + 1)
            if lo < b:
                far = position - torch.arange(lo, b, device=device) >= self.window
                out.append((0, b - lo, far))
        if self.described is not None:
            seen = self.described.visible(position, torch.arange(lo, hi, device=device)[None])
            out.append((0, hi - lo, ~seen))
        return out

    def seen(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """The visible pairs of any queries [n] and keys [m]: bool [n, m]."""
        position = queries[:, None] + self.offset
        back = position - keys
        seen = torch.ones_like(back, dtype=torch.bool)
        if self.causal:
            seen &= back >= 0
        if self.window is not None:
            seen &= (back if self.causal else back.abs()) < self.window
        if self.described is not None:
            seen &= self.described.visible(position, keys[None])
        return seen

    def keys_of(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds [lo, hi) of the keys that queries at these positions see, without a description;
        unclipped."""
        near = self.window
        lo = torch.zeros_like(position) if near is None else position - near + 1
        if self.causal:
            return lo, position + 1
        return lo, torch.full_like(position, self.n_k) if near is None else position + near

    def queries_of(self, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds [first, last) of the queries that see these keys, likewise."""
        near, index = self.window, key - self.offset  # the query at the key's own position
        last = torch.full_like(index, self.n_q) if near is None else index + near
        if self.causal:
            return index, last
        return torch.zeros_like(index) if near is None else index - near + 1, last


def _rows_around(grid: Neighbourhood, first: int, last: int) -> tuple[int, int]:
    """Bounds of the tokens in the rows of a grid that positions first..last may see: a window
    shifted inward at an edge reaches size * step tokens at most."""
    step = grid.dilation[0] if grid.dilation else 1
    below, reach = prod(grid.grid[1:]), grid.window[0] * step
    rows = grid.grid[0]
    low, high = (min(max(x, 0), rows * below - 1) // below for x in (first, last))
    return max(0, low - reach) * below, min(rows, high + reach + 1) * below
