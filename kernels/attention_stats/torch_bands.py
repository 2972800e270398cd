"""Statistics that look at few keys per query, given the lse of the rows: O(L * band * D), no sweep
over the map.

The weight of one key is exp(s - lse), so a strip needs scores of the keys it looks at only: bands
of distances, named keys, keys that hold a token again. waad is the band's own sum and the window
times the mass outside it, which is what the rows sum to less the mass inside.

Dims: U key heads and G query heads per key head in the group, n queries i0..i1, W keys looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from workbench.kernels.attention_stats.torch_columns import Columns
from workbench.kernels.attention_stats.torch_plan import SHIFTS, Listed, Plan
from workbench.kernels.attention_stats.torch_rows import RowSums
from workbench.kernels.attention_stats.torch_strip import store
from workbench.kernels.attention_stats.torch_terms import LOG2E, Group, Scores

if TYPE_CHECKING:
    from workbench.kernels.attention_stats.torch_problem import Problem


@dataclass
class Band:
    """Distances low..high, and the statistics that lie in them; `offsets` are (column of
    offset_mass, distance)."""

    low: int
    high: int
    names: set[str] = field(default_factory=set)
    offsets: list[tuple[int, int]] = field(default_factory=list)

    def join(self, other: Band) -> None:
        """Take in another band."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.names |= other.names
        self.offsets += other.offsets


def bands_of(problem: Problem) -> list[Band]:
    """The distances that the wanted statistics look at, joined where strips of them would meet."""
    geometry, terms, want = problem.geometry, problem.terms, problem.want
    found = [Band(0, 0, {"self_mass"}), Band(1, 1, {"prev_mass"})]
    for name, argument in (("waad", "waad_window"), ("local_mass", "local_window")):
        reach = (terms[argument] or 1) - 1
        found.append(Band(-reach, reach, {name}))
    low, high = terms["horizon"] or (0, 0)
    farthest = geometry.n_q - 1 + geometry.offset
    found.append(Band(low, farthest if high is None else high, {"fai"}))
    found = [band for band in found if band.names <= want]
    if "offset_mass" in want:
        found += [Band(d, d, {"offset_mass"}, [(n, d)]) for n, d in enumerate(terms["offsets"])]
    joined: list[Band] = []
    for band in sorted(found, key=lambda x: x.low):
        if joined and band.low <= joined[-1].high + problem.rows:
            joined[-1].join(band)
        else:
            joined.append(band)
    return joined


class Bands:
    """Every wanted statistic of one group."""

    def __init__(
        self,
        problem: Problem,
        group: Group,
        rows: dict[str, torch.Tensor],
        sums: dict[str, torch.Tensor],
    ) -> None:
        self.problem, self.prompt = problem, problem.prompts[group.batch]
        self.want, self.terms = problem.want, problem.terms
        self.scores, self.row_sums = Scores(problem, group), RowSums(problem, group)
        self.columns = Columns(problem, group, sums)
        self.out = {name: group.own(x) for name, x in rows.items()}
        lse = group.own(self.terms["lse"]).to(problem.dtype)
        sink = self.terms["sink_logit"]
        self.null = torch.zeros_like(lse)
        if sink is not None:
            self.null = torch.exp(self.scores.heads_of(sink)[..., 0] - lse)
        # Rows that see nothing, and padding, which may hold anything.
        self.full = lse.isfinite()
        self.lse = torch.where(self.full, lse, torch.inf)
        self.null = torch.where(self.full, self.null, 0.0)
        self.bands = bands_of(problem)

    def run(self) -> None:
        """Fill this group's part of the outputs."""
        if "lse" in self.out:
            self.out["lse"].copy_(torch.where(self.full, self.lse, -torch.inf))
        if "null_mass" in self.out:
            self.out["null_mass"].copy_(self.null)
        n_q, step = self.problem.geometry.n_q, self.problem.rows
        for i0 in range(0, n_q, step):
            i1 = min(n_q, i0 + step)
            lo, hi = self.prompt.span(i0, i1)
            for band in self.bands:
                self._band(band, i0, i1, lo, hi)
            if self.want & {"first_mass", "keys_mass"}:
                self._named(i0, i1)
        if self.prompt.repeated:
            for queries in self.prompt.by_token().split(step):
                self._repeats(queries)

    def _weights(self, plan: Plan | Listed) -> torch.Tensor:
        """p [U, G, n, W] of the keys of the plan."""
        s, _ = self.scores.of(plan)
        return s.sub_(self.lse[:, :, plan.rows, None] * LOG2E).exp2_()

    def _band(self, band: Band, i0: int, i1: int, lo: int, hi: int) -> None:
        """The statistics of one band in one strip whose rows see keys of lo..hi."""
        offset = self.problem.geometry.offset
        a, b = max(lo, i0 + offset - band.high), min(hi, i1 + offset - band.low)
        plan = self.prompt.part(i0, i1, a, b) if a < b else None
        if plan is None:
            if "waad" in band.names and lo < hi:
                self.out["waad"][:, :, i0:i1] = self._mass(i0, i1) * self.terms["waad_window"]
            return
        p, found = self._weights(plan), {}
        for name, back in (("self_mass", 0), ("prev_mass", 1)):
            if name in band.names:
                found[name] = self.row_sums.at_distance(plan, p, back)
        for n, back in band.offsets:
            at = self.out["offset_mass"][:, :, i0:i1, n]
            at.copy_(self.row_sums.at_distance(plan, p, back))
        if band.names & {"waad", "local_mass"}:
            found |= self.row_sums.by_distance(plan, self.problem.skew.lay(p))
        if "waad" in band.names and (a, b) != (lo, hi):
            outside = (self._mass(i0, i1) - p.sum(-1)).clamp(min=0.0)
            found["waad"] = found["waad"] + outside * self.terms["waad_window"]
        if "fai" in band.names:
            self.columns.add_later(plan, p)
        self._store(plan, found)

    def _mass(self, i0: int, i1: int) -> torch.Tensor:
        """What the rows sum to, [U, G, n]."""
        return torch.where(self.full[:, :, i0:i1], 1.0 - self.null[:, :, i0:i1], 0.0)

    def _named(self, i0: int, i1: int) -> None:
        """first_mass and keys_mass: the keys of all rows together."""
        first, keys = self.row_sums.first_key, self.row_sums.keys
        looked = [] if keys is None else [keys]
        if "first_mass" in self.want:
            looked.append(first if first.shape[0] == 1 else first[i0:i1])
        queries = torch.arange(i0, i1, device=first.device)
        plan = self.prompt.listed(queries, torch.cat(looked).unique())
        self._store(plan, self.row_sums.at_keys(plan, self._weights(plan)))

    def _repeats(self, queries: torch.Tensor) -> None:
        """duplicate_mass and induction_mass of queries ordered by token: the keys that hold the
        tokens lie side by side in the list of keys by token."""
        if not queries.numel():
            return
        start = self.prompt.start[queries]
        stop = start + self.prompt.count[queries]
        a, b = int(start.min()), int(stop.max())
        column = torch.arange(a, b, device=queries.device)
        own = (column >= start[:, None]) & (column < stop[:, None])
        for name in self.prompt.repeated:
            keys = self.prompt.keys[a:b] + SHIFTS[name]
            plan = self.prompt.listed(queries, keys.clamp(max=self.problem.geometry.n_k - 1))
            inside = own & (keys < self.problem.geometry.n_k)
            p = self._weights(plan).masked_fill_(~inside, 0.0)
            self._store(plan, {name: p.sum(-1)})

    def _store(self, plan: Plan | Listed, found: dict[str, torch.Tensor]) -> None:
        for name, value in found.items():
            store(self.out[name], plan, value)
