"""Sums over queries: the statistics of the keys and of the map as a whole, strip by strip.

A strip adds to accumulators (float64 where many terms meet) and `finish` makes statistics of them.

key_var is the mean of p^2 less the square of the mean, all in float64. key_entropy is that of the
shares x = p / max p of a column, log sum x - sum x log x / sum x, from log p: every term is
positive and the largest x is exactly 1, so that neither a sharp peak nor a p too small for float32
loses anything. Accumulators of two strips merge after scaling to the larger maximum.

Dims: B batch, H heads, Q queries, K keys, S segments, G query features; U, G heads of the group, n
queries i0..i1, W keys lo..hi of a strip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from workbench.kernels.attention_stats.terms import histogram_bins
from workbench.kernels.attention_stats.torch_distance import Ruler
from workbench.kernels.attention_stats.torch_plan import Plan
from workbench.kernels.attention_stats.torch_rows import membership
from workbench.kernels.attention_stats.torch_terms import LN2

if TYPE_CHECKING:
    from workbench.kernels.attention_stats.torch_problem import Problem
    from workbench.kernels.attention_stats.torch_strip import Weights
    from workbench.kernels.attention_stats.torch_terms import Group

# Accumulators and the statistics that need them.
_USED_BY = {
    "mass": {"key_mass", "key_mean", "key_var"},
    "square": {"key_var"},
    "best": {"key_max"},
    "top": {"key_entropy"},
    "share": {"key_entropy"},
    "spread": {"key_entropy"},
    "later": {"fai"},
    "featured": {"query_feature_mass"},
    "diagonal": {"diagonal_mass", "distance_histogram"},
    "block_mass": {"block_mass"},
    "block_max": {"block_max"},
    "segment": {"segment_mean"},
}

# A key whose largest log2 p is no more has no mass: the smallest float64, as in the specification.
_NO_MASS = -1074.0


def accumulators(problem: Problem) -> dict[str, torch.Tensor]:
    """Those that are wanted, [B, H, ...]: zeros, maxima at the most negative value."""
    (b, h, n_q, _), n_k, terms = problem.q.shape, problem.k.shape[2], problem.terms
    n_segments = terms["n_segments"] or 0
    shapes: dict[str, tuple[int, ...]] = {}
    if terms["query_features"] is not None:
        shapes["featured"] = (n_k, terms["query_features"].shape[-1])
    if problem.ruler is not None:
        shapes["diagonal"] = (problem.ruler.size,)
    if terms["pool"] is not None:
        rows, columns = terms["pool"]
        shapes["block_mass"] = shapes["block_max"] = (-(-n_q // rows), -(-n_k // columns))
    shapes["segment"] = (n_segments, n_segments)
    out = {}
    for name, users in _USED_BY.items():
        if not users & problem.want:
            continue
        narrow = name in ("best", "block_mass", "block_max")
        dtype = problem.dtype if narrow else problem.wide
        start = torch.finfo(dtype).min if name in ("best", "block_max") else 0.0
        start = _NO_MASS if name == "top" else start
        shape = (b, h, *shapes.get(name, (n_k,)))
        out[name] = torch.full(shape, start, dtype=dtype, device=problem.q.device)
    return out


class Columns:
    """The accumulators of one group."""

    def __init__(self, problem: Problem, group: Group, sums: dict[str, torch.Tensor]) -> None:
        self.problem, self.terms = problem, problem.terms
        self.sums = {name: group.own(x) for name, x in sums.items()}
        self.wanted = frozenset(self.sums)
        dtype = problem.dtype
        if "featured" in self.wanted:
            x = self.terms["query_features"][group.batch].to(dtype)
            valid = self.terms["query_valid"]
            # Padding may hold anything, and 0 * NaN is not 0.
            self.features = x if valid is None else x.masked_fill(~valid[group.batch, :, None], 0)
        if "segment" in self.wanted:
            self.members = membership(self.terms, "query_segments", group.batch, dtype)

    def add(
        self,
        plan: Plan,
        weights: Weights,
        roles: torch.Tensor | None,
        laid: torch.Tensor | None,
    ) -> None:
        """Adds a strip: its weights, p by segments of keys [U, G, n, S], p by distance
        [U * G, n, C]; None where nothing wanted reads it."""
        p, ranked = weights.p, weights.ranked
        at = slice(plan.lo, plan.hi)
        here = {name: x[:, :, at] for name, x in self.sums.items() if name in _BY_KEY}
        if "square" in here:
            # What is left of p^2 after the squared mean may be a millionth of it.
            wide = p.to(here["square"].dtype)
            here["mass"] += wide.sum(-2)
            here["square"] += wide.square().sum(-2)  # not in place: float64 p is `wide` itself
        elif "mass" in here:
            here["mass"] += p.sum(-2)
        if "best" in here:
            torch.maximum(here["best"], ranked.amax(-2), out=here["best"])
        if weights.logs is not None and "top" in here:
            self._add_entropy(here, weights.logs)
        if "later" in self.wanted:
            self.add_later(plan, p)
        if "featured" in here:
            g = self.features[plan.i0 : plan.i1]
            here["featured"] += p.transpose(-1, -2) @ g
        if laid is not None and "diagonal" in self.wanted and self.problem.ruler is not None:
            start = self.problem.ruler.start(plan.i0, plan.lo)
            total = laid.sum(1).unflatten(0, (-1, self.problem.groups))
            self.sums["diagonal"][..., start : start + laid.shape[-1]] += total
        if roles is not None and "segment" in self.wanted:
            self.sums["segment"] += self.members[:, plan.i0 : plan.i1] @ roles
        self._add_blocks(plan, p, ranked)

    def add_later(self, plan: Plan, p: torch.Tensor) -> None:
        """Adds p of the queries within the horizon of each key."""
        low, high = self.terms["horizon"]
        first = plan.i0 + self.problem.geometry.offset
        last = first + plan.i1 - plan.i0 - 1
        a = plan.lo if high is None else max(plan.lo, first - high)
        b = min(plan.hi, last - low + 1)
        # Columns that the horizon of every row holds.
        c = a if high is None else min(max(a, last - high), b)
        d = min(max(c, first - low + 1), b)
        later = self.sums["later"]
        if c < d:
            later[..., c:d] += p[..., c - plan.lo : d - plan.lo].sum(-2)
        position = torch.arange(first, last + 1, device=p.device)[:, None]
        for x, y in ((a, c), (d, b)):
            if x >= y:
                continue
            back = position - torch.arange(x, y, device=p.device)
            inside = back >= low if high is None else (back >= low) & (back <= high)
            part = p[..., x - plan.lo : y - plan.lo]
            later[..., x:y] += torch.where(inside, part, 0.0).sum(-2)

    def _add_entropy(self, here: dict[str, torch.Tensor], logs: torch.Tensor) -> None:
        top = logs.amax(-2)
        z = logs.sub_(top[..., None, :])
        x, seen, wide = torch.exp2(z), top > _NO_MASS, here["top"].dtype
        # float64: what the shares add to 1 may be tiny.
        share = torch.where(seen, x.sum(-2, dtype=wide), 0.0)
        spread = torch.where(seen, z.mul_(x).sum(-2), 0.0).to(wide)
        best = torch.maximum(here["top"], top)
        old, new = here["top"] - best, top - best
        here["spread"].add_(here["share"] * old).mul_(old.exp2())
        here["spread"].add_((spread + share * new).mul_(new.exp2()))
        here["share"].mul_(old.exp2()).add_(share * new.exp2())
        here["top"].copy_(best)

    def _add_blocks(self, plan: Plan, p: torch.Tensor, ranked: torch.Tensor) -> None:
        for name, x in (("block_mass", p), ("block_max", ranked)):
            if name not in self.wanted:
                continue
            rows, columns = self.terms["pool"]
            reduce = torch.sum if name == "block_mass" else torch.amax
            part = pooled(pooled(x, -2, plan.i0, rows, reduce), -1, plan.lo, columns, reduce)
            i, j = plan.i0 // rows, plan.lo // columns
            block = self.sums[name][:, :, i : i + part.shape[-2], j : j + part.shape[-1]]
            if name == "block_mass":
                block += part
            else:
                torch.maximum(block, part, out=block)


# Accumulators with one entry per key.
_BY_KEY = ("mass", "square", "best", "top", "share", "spread", "featured")


def pooled(
    x: torch.Tensor, dim: int, start: int, size: int, reduce: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """x reduced along dim -1 or -2 within blocks that begin at multiples of `size`, where entry 0
    has index `start`: the first and last may be cut."""
    n = x.shape[dim]
    head = min(-start % size, n)
    whole = (n - head) // size
    parts = []
    if head:
        parts.append(reduce(x.narrow(dim, 0, head), dim, keepdim=True))
    if whole:
        blocks = x.narrow(dim, head, whole * size).unflatten(dim, (whole, size))
        parts.append(reduce(blocks, dim))
    if head + whole * size < n:
        rest = n - head - whole * size
        parts.append(reduce(x.narrow(dim, n - rest, rest), dim, keepdim=True))
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def finish(
    problem: Problem, sums: dict[str, torch.Tensor], counts: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The wanted statistics of keys and map, from the accumulators and the counts of queries."""
    makers: dict[str, Callable[[], torch.Tensor]] = {
        "key_mass": lambda: sums["mass"],
        "key_mean": lambda: _mean(sums["mass"], counts["key_count"]),
        "key_max": lambda: _largest(sums["best"]),
        "key_var": lambda: _variance(sums, counts["key_count"]),
        "key_entropy": lambda: _entropy(sums),
        "fai": lambda: _mean(sums["later"], counts["later_count"]),
        "query_feature_mass": lambda: sums["featured"],
        "diagonal_mass": lambda: _ruler(problem).diagonals(sums["diagonal"]),
        "distance_histogram": lambda: _histogram(problem, sums["diagonal"]),
        "block_mass": lambda: sums["block_mass"],
        "block_max": lambda: _largest(sums["block_max"]),
        "segment_mean": lambda: _mean(sums["segment"], _pairs(problem)),
    }
    return {name: make().to(problem.dtype) for name, make in makers.items() if name in problem.want}


def _variance(sums: dict[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor:
    mean = _mean(sums["mass"], count)
    return (_mean(sums["square"], count) - mean * mean).clamp(min=0)


def _entropy(sums: dict[str, torch.Tensor]) -> torch.Tensor:
    share = sums["share"]
    share = share.where(share > 0, 1.0)
    return share.log() - sums["spread"] / share * LN2


def _largest(best: torch.Tensor) -> torch.Tensor:
    """Maxima, 0 where nothing was seen."""
    return best.masked_fill(best <= torch.finfo(best.dtype).min, 0.0)


def _ruler(problem: Problem) -> Ruler:
    assert problem.ruler is not None
    return problem.ruler


def _histogram(problem: Problem, sums: torch.Tensor) -> torch.Tensor:
    geometry = problem.geometry
    bins = histogram_bins(geometry.n_q, geometry.n_k, geometry.offset)
    return _ruler(problem).by_octave(sums, bins)


def _pairs(problem: Problem) -> torch.Tensor:
    """Pairs of a valid query of segment a and a key of segment b, [B, 1, S, S]."""
    each = []
    for b, prompt in enumerate(problem.prompts):
        rows = membership(problem.terms, "query_segments", b, problem.wide)
        columns = membership(problem.terms, "key_segments", b, problem.wide)
        rows = rows if prompt.query_valid is None else rows * prompt.query_valid
        each.append(rows.sum(-1)[:, None] * columns.sum(-1))
    return torch.stack(each)[:, None]


def _mean(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """total / count, NaN where there is nothing to average."""
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan)
