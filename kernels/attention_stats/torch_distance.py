"""Everything that depends on how far a key is: a strip laid out so that a distance is a column.

Row r of a strip whose key 0 is `lo` has its keys at distance i0 + r + offset - lo - c. Written with
rows one entry further apart than they are read, the same memory shows column c shifted by r: one
copy, and distances are sums over columns, diagonals sums over rows.

Dims: U, G heads, n queries of at most N per strip, W keys, C = W + N - 1 distances.
"""

from __future__ import annotations

from typing import Any

import torch

from workbench.kernels.attention_stats.torch_geometry import Geometry

# Row sums of p times a weight that is a function of the distance.
WEIGHTED = ("distance", "distance_sq", "waad", "local_mass")
BY_DISTANCE = frozenset({*WEIGHTED, "diagonal_mass", "distance_histogram"})


class Skew:
    """Scratch memory of one worker, for strips of up to N rows; grows with their width."""

    def __init__(self, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.width = rows, 0
        self.flat = torch.zeros(0, dtype=dtype, device=device)

    def lay(self, p: torch.Tensor) -> torch.Tensor:
        """p [U, G, n, W] by distance: [U * G, n, C], column c of any row at the distance of row 0
        from key c - (N - 1); valid until the next call."""
        u, (n, width), around = p.shape[0] * p.shape[1], p.shape[2:], self.rows - 1
        if width > self.width:
            self.width = max(width, 2 * self.width)
            self.flat = self.flat.new_zeros(0)
        if self.flat.numel() < u * self._block():
            # Zeros: what lies left of a row is never written.
            self.flat = self.flat.new_zeros(u * self._block())
        step, size = self.width + around, width + around
        body = self.flat.as_strided((u, n, size), (self._block(), step, 1), around)
        body[..., :width].copy_(p.flatten(0, 1))
        body[..., width:].zero_()
        return self.flat.as_strided((u, n, size), (self._block(), step + 1, 1))

    def _block(self) -> int:
        return self.rows * (self.width + self.rows)


class Ruler:
    """The weights of WEIGHTED by distance, and which of them a strip's columns are."""

    def __init__(
        self, geometry: Geometry, rows: int, want: frozenset[str], terms: dict[str, Any]
    ) -> None:
        self.names = [name for name in WEIGHTED if name in want]
        self.n_q, self.n_k = geometry.n_q, geometry.n_k
        # From the last query's distance to key 0 (and N - 1 more, where rows are shorter) down.
        self.farthest = geometry.n_q - 1 + geometry.offset + rows - 1
        self.size = geometry.n_q + geometry.n_k + rows - 2
        weights = [self._weight(name, terms) for name in self.names]
        self.table = torch.stack(weights) if weights else None

    def _weight(self, name: str, terms: dict[str, Any]) -> torch.Tensor:
        steps = torch.arange(self.size, device=terms["device"])
        away = (self.farthest - steps).abs()
        if name == "local_mass":
            return (away < terms["local_window"]).to(terms["dtype"])
        x = away.to(terms["dtype"])
        return {
            "distance": lambda: x,
            "distance_sq": lambda: x * x,
            "waad": lambda: x.clamp(max=terms["waad_window"]),
        }[name]()

    def start(self, i0: int, lo: int) -> int:
        """The entry of a table by distance at which the columns of a strip begin."""
        return self.n_q - 1 - i0 + lo

    def measure(self, laid: torch.Tensor, i0: int, lo: int) -> torch.Tensor:
        """The row sums of `names` [names, U * G, n] of a strip laid out by distance."""
        assert self.table is not None
        start, (u, n, width) = self.start(i0, lo), laid.shape
        sums = torch.mm(self.table[:, start : start + width], laid.reshape(u * n, width).t())
        return sums.view(-1, u, n)

    def diagonals(self, sums: torch.Tensor) -> torch.Tensor:
        """Sums by distance [..., size] as [..., Q + K - 1], entry n at i - j = n - (K - 1)."""
        return sums[..., self.size - self.n_q - self.n_k + 1 :].flip(-1)

    def by_octave(self, sums: torch.Tensor, bins: int) -> torch.Tensor:
        """Sums by distance [..., size] as a histogram [..., bins] of |d|: 0, 1, 2-3, 4-7, ..."""
        away = (self.farthest - torch.arange(self.size, device=sums.device)).abs()
        octave = torch.frexp(away.to(sums.dtype))[1].long()
        # Beyond the last bin lie only the entries that pad a strip.
        found = sums.new_zeros(*sums.shape[:-1], bins)
        return found.index_add_(-1, octave.clamp(max=bins - 1), sums)
