"""What a strip of queries needs to know before any head's scores exist: made once, used by every
head.

Dims: B batch, Q queries, K keys, U, G heads; a strip holds n queries i0..i1 and W keys lo..hi;
position of query i is i + offset.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.kernels.attention_stats.torch_geometry import Geometry, Hidden

# A plan of more bytes per row is made again for each group of heads instead of kept, so that plans
# never grow with the square of the length.
_KEPT = 2048


@dataclass(frozen=True)
class Plan:
    """One strip of one prompt: queries i0..i1 against keys lo..hi. `skip` [n] marks padding,
    `hidden` what cannot be seen."""

    i0: int
    i1: int
    lo: int
    hi: int
    skip: torch.Tensor | None
    hidden: list[Hidden]
    repeats: dict[str, Repeats] = field(default_factory=dict)

    @property
    def rows(self) -> slice:
        """The queries, to index with."""
        return slice(self.i0, self.i1)

    @property
    def columns(self) -> slice:
        """The keys, to index with."""
        return slice(self.lo, self.hi)

    @property
    def width(self) -> int:
        """W, the keys of the strip."""
        return self.hi - self.lo

    def find(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The strip's columns of some keys, and which of them it has (the others stand at any)."""
        index = keys - self.lo
        return index.clamp(0, self.width - 1), (index >= 0) & (index < self.width)

    @property
    def bytes(self) -> int:
        """Memory that keeping the plan costs."""
        pairs = sum(x.flat.numel() for x in self.repeats.values())
        return sum(x.numel() for _, _, x in self.hidden) + 16 * pairs


@dataclass(frozen=True)
class Listed:
    """Any queries [n] against any keys [m] of one prompt."""

    rows: torch.Tensor
    columns: torch.Tensor
    skip: torch.Tensor | None
    hidden: list[Hidden]

    @property
    def width(self) -> int:
        """m, the keys."""
        return self.columns.shape[0]

    def find(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Plan.find`, where the columns ascend."""
        index = torch.searchsorted(self.columns, keys).clamp(max=self.width - 1)
        return index, self.columns[index] == keys


@dataclass(frozen=True)
class Repeats:
    """(row, column) pairs of a strip: `flat` indexes its [n * W] entries."""

    flat: torch.Tensor
    row: torch.Tensor

    @staticmethod
    def of(row: torch.Tensor, key: torch.Tensor, plan: Plan) -> Repeats:
        """Those outside the strip carry no mass and are dropped."""
        column, inside = plan.find(key)
        row, column = row[inside], column[inside]
        return Repeats(row * plan.width + column, row)

    def mass(self, p: torch.Tensor) -> torch.Tensor:
        """Row sums [U, G, n] of p [U, G, n, W] over the pairs."""
        # One by one and many: float64 (float32 on Apple's GPU, which has none).
        wide = torch.float32 if p.device.type == "mps" else torch.float64
        picked = p.flatten(2).index_select(-1, self.flat).to(wide)
        return picked.new_zeros(p.shape[:-1]).index_add_(-1, self.row, picked)


# One key further on is where a repeated token was followed by something.
SHIFTS = {"duplicate_mass": 0, "induction_mass": 1}


class Prompt:
    """One element of the batch: its padding, its sequences, its token repeats, its strips."""

    def __init__(
        self, index: int, geometry: Geometry, want: frozenset[str], terms: dict[str, Any]
    ) -> None:
        self.geometry, self.device = geometry, terms["device"]
        self.query_valid = _of(terms["query_valid"], index)
        self.key_valid = _of(terms["key_valid"], index)
        self.first, self.last, self.holes = 0, geometry.n_k, None
        if self.key_valid is not None:
            where = self.key_valid.nonzero()
            # Padding at either end is never computed; invalid keys in between are masked.
            self.first, self.last = (int(where[0]), int(where[-1]) + 1) if where.numel() else (0, 0)
            if where.shape[0] < self.last - self.first:
                self.holes = ~self.key_valid
        self.own, self.theirs = (
            None if terms[name] is None else terms[name][index].long().contiguous()
            for name in ("query_sequence", "key_sequence")
        )
        self.repeated = [name for name in ("duplicate_mass", "induction_mass") if name in want]
        if self.repeated:
            self._sort_tokens(terms["query_ids"][index], terms["key_ids"][index])
        self.plans: dict[int, Plan | None] = {}

    def plan(self, i0: int, i1: int) -> Plan | None:
        """The plan of queries i0..i1; None when none is valid or no key is in reach."""
        if i0 in self.plans:
            return self.plans[i0]
        lo, hi = self.span(i0, i1)
        plan = None if lo >= hi else self.part(i0, i1, lo, hi)
        if plan is not None and self.repeated:
            plan.repeats.update(self._repeats(plan))
        if plan is None or plan.bytes <= _KEPT * (i1 - i0):
            self.plans[i0] = plan
        return plan

    def part(self, i0: int, i1: int, lo: int, hi: int) -> Plan | None:
        """A plan of some of the keys within `span`, without repeats; None when no query is
        valid."""
        skip = self._skip(slice(i0, i1))
        if skip is not None and bool(skip.all()):
            return None
        hidden = self.geometry.hidden(i0, i1, lo, hi, self.device)
        if self.own is not None and self.theirs is not None and self.own[i0] != self.own[i1 - 1]:
            hidden.append((0, hi - lo, self.own[i0:i1, None] != self.theirs[lo:hi]))
        return Plan(i0, i1, lo, hi, skip, hidden)

    def listed(self, queries: torch.Tensor, keys: torch.Tensor) -> Listed:
        """Any queries against any keys."""
        seen = self.geometry.seen(queries, keys)
        if self.own is not None and self.theirs is not None:
            seen &= self.own[queries, None] == self.theirs[keys]
        if self.key_valid is not None:
            seen &= self.key_valid[keys]
        return Listed(queries, keys, self._skip(queries), [(0, keys.shape[0], ~seen)])

    def _skip(self, rows: slice | torch.Tensor) -> torch.Tensor | None:
        """Which of the queries are padding; None where none is."""
        skip = None if self.query_valid is None else ~self.query_valid[rows]
        return skip if skip is not None and bool(skip.any()) else None

    def span(self, i0: int, i1: int) -> tuple[int, int]:
        """Key range [lo, hi) without padding at its ends and without foreign sequences."""
        lo, hi = self.geometry.span(i0, i1)
        lo, hi = max(lo, self.first), min(hi, self.last)
        if self.own is not None and self.theirs is not None:
            lo = max(lo, int(torch.searchsorted(self.theirs, self.own[i0])))
            hi = min(hi, int(torch.searchsorted(self.theirs, self.own[i1 - 1], right=True)))
        return lo, hi

    def _repeats(self, plan: Plan) -> dict[str, Repeats]:
        """The pairs of a strip with an earlier same token."""
        start, count = self.start[plan.rows], self.count[plan.rows]
        row = torch.repeat_interleave(count)
        before = count.cumsum(0) - count
        nth = torch.arange(row.shape[0], device=row.device) - before[row]
        key = self.keys[start[row] + nth]
        return {name: Repeats.of(row, key + SHIFTS[name], plan) for name in self.repeated}

    def by_token(self) -> torch.Tensor:
        """Queries with an earlier same token, ordered by token, then position."""
        some = self.count > 0
        some = (some if self.query_valid is None else some & self.query_valid).nonzero()[:, 0]
        return some[self.start[some].argsort(stable=True)]

    def _sort_tokens(self, query_ids: torch.Tensor, key_ids: torch.Tensor) -> None:
        """Valid keys ordered by token, then position; earlier ones of query i and its sequence are
        keys[start[i]:][:count[i]].

        A sort and two binary searches, O(L log L), in place of comparing all pairs.
        """
        n_k = key_ids.shape[0]
        position = torch.arange(query_ids.shape[0], device=key_ids.device) + self.geometry.offset
        where = (
            torch.arange(n_k, device=key_ids.device)
            if self.key_valid is None
            else self.key_valid.nonzero()[:, 0]
        )
        self.keys, self.start = where, torch.zeros_like(position)
        self.count = torch.zeros_like(position)
        if where.numel() == 0:
            return
        tokens, rank = key_ids[where].long().unique(return_inverse=True)
        order = rank.argsort(stable=True)
        self.keys = where[order]
        # One sortable number per key: token rank first, position second.
        code = rank[order] * (n_k + 1) + self.keys
        own = torch.searchsorted(tokens, query_ids.long()).clamp(max=tokens.numel() - 1)
        # One key beyond the window: what follows it may be seen.
        near = self.geometry.window
        lo = torch.zeros_like(position) if near is None else (position - near).clamp(0, n_k)
        hi = position.clamp(0, n_k)
        if self.own is not None and self.theirs is not None:
            lo = torch.maximum(lo, torch.searchsorted(self.theirs, self.own))
            hi = torch.minimum(hi, torch.searchsorted(self.theirs, self.own, right=True))
        self.start = torch.searchsorted(code, own * (n_k + 1) + lo)
        stop = torch.searchsorted(code, own * (n_k + 1) + torch.maximum(lo, hi))
        self.count = torch.where(tokens[own] == query_ids, stop - self.start, 0)


def _of(x: torch.Tensor | None, index: int) -> torch.Tensor | None:
    return None if x is None else x[index]
