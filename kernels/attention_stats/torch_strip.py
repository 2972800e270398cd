"""One strip: the weights of n queries over the keys they can see, and every statistic of them.

The largest term of a row is kept apart from the sum of the others: near 1 float32 cannot hold what
the entropy of a sharp row is made of.

Dims: U key heads and G query heads per key head in the group, n queries i0..i1, W keys lo..hi;
position of query i is i + offset. See `torch_blockwise` for the numerics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workbench.kernels.attention_stats.torch_columns import Columns
from workbench.kernels.attention_stats.torch_distance import BY_DISTANCE
from workbench.kernels.attention_stats.torch_plan import Listed, Plan
from workbench.kernels.attention_stats.torch_rows import RowSums
from workbench.kernels.attention_stats.torch_terms import LN2, LOG2E, Group, Scores

if TYPE_CHECKING:
    from workbench.kernels.attention_stats.torch_problem import Problem

# Columns of one block in the search for the first maximum.
_BLOCK = 64


@dataclass(frozen=True)
class Weights:
    """Of one strip, each [U, G, n, W]: `p`, 0 where hidden; `ranked`, the same with hidden entries
    below all others (or p, where none is negative); `spare`, memory to use; `logs`, log2 p where
    key_entropy is wanted."""

    p: torch.Tensor
    ranked: torch.Tensor
    spare: torch.Tensor
    logs: torch.Tensor | None = None


class Strips:
    """The strips of one group, in order, over buffers that the worker keeps."""

    def __init__(self, problem: Problem, group: Group) -> None:
        self.problem, self.prompt = problem, problem.prompts[group.batch]
        self.want, self.terms = problem.want, problem.terms
        self.scores = Scores(problem, group)
        self.floor = self.scores.floor
        sink = self.terms["sink_logit"]
        self.sink = None if sink is None else self.scores.heads_of(sink)[..., 0] * LOG2E
        self.topk = self.terms["topk"] if self.want & {"top_keys", "top_probs"} else 0

    def weights(self, plan: Plan) -> tuple[Weights, dict[str, torch.Tensor]]:
        """The weights, 0 in invalid rows, and the statistics [U, G, n] that only scores tell."""
        s, spare = self.scores.of(plan)
        if self.terms["activation"] == "softmax":
            return self._softmax(plan, s, spare)
        return self._activated(plan, s, spare)

    def _softmax(
        self, plan: Plan, s: torch.Tensor, spare: torch.Tensor
    ) -> tuple[Weights, dict[str, torch.Tensor]]:
        want, wide = self.want, self.problem.wide
        sharp = "entropy" in want
        top, index = first_max(s) if sharp or "argmax" in want else (s.amax(-1), None)
        # By score: weights below the smallest float32 keep their order.
        best, keys = self._top(plan, s)
        blind = top <= self.floor
        shift = top if self.sink is None else torch.maximum(top, self.sink)
        z = s.sub_(shift[..., None])
        keep = sharp or "key_entropy" in want
        e = torch.exp2(z, out=spare if keep else z)
        if sharp and index is not None:
            e.scatter_(-1, index[..., None], 0.0)
        first = torch.exp2(top - shift).to(wide)
        others = e.sum(-1).to(wide) - (0.0 if sharp else first)
        null = 0.0 if self.sink is None else torch.exp2((self.sink - shift).to(wide))
        # One of `first` and `null` is exactly 1: what is left is small and exact.
        log_total = torch.log1p(others + (first - 1.0) + null)
        inverse = torch.where(blind, 0.0, torch.exp(-log_total))
        logs = self._logs(z, log_total, blind)
        top_p = first * inverse
        found = {"max_prob": top_p}
        if sharp:
            spread = z.mul_(e).sum(-1) + first * (top - shift)
            found["entropy"] = (log_total * (others + first) - LN2 * spread) * inverse
        if index is not None:
            found["argmax"] = torch.where(blind, 0, index + plan.lo)
        if best is not None and keys is not None:
            found["top_keys"] = keys
            found["top_probs"] = torch.exp2(best - shift[..., None]) * inverse[..., None]
        if "lse" in want:
            bare = -math.inf if self.sink is None else self.sink * LN2
            found["lse"] = torch.where(blind, bare, shift.to(wide) * LN2 + log_total)
        if self.sink is not None:
            alone = (self.sink > -math.inf).to(wide)
            found["null_mass"] = torch.where(blind, alone, null * inverse)
        p = e.mul_(inverse.to(e.dtype)[..., None])
        if sharp and index is not None:
            p.scatter_(-1, index[..., None], top_p.to(p.dtype)[..., None])
        return Weights(p, p, z if keep else spare, logs), found

    def _logs(
        self, z: torch.Tensor, log_total: torch.Tensor, blind: torch.Tensor
    ) -> torch.Tensor | None:
        """log2 p of z in units of log 2, at most -1e30 where there is none."""
        if "key_entropy" not in self.want:
            return None
        total = torch.where(blind, 1e30, log_total * LOG2E)
        return z - total.to(z.dtype)[..., None]

    def _activated(
        self, plan: Plan, s: torch.Tensor, spare: torch.Tensor
    ) -> tuple[Weights, dict[str, torch.Tensor]]:
        """Rows that are no softmax; n are the visible keys of the row."""
        seen = s > self.floor
        if self.terms["activation"] == "sigmoid":
            s.sigmoid_()
        else:
            s = s.clamp_(min=0.0) if self.terms["activation"] == "relu" else s
            s.div_(seen.sum(-1, keepdim=True).clamp(min=1))
        ranked = torch.where(seen, s, s.new_tensor(self.floor), out=spare)
        p = s.masked_fill_(~seen, 0.0)
        top, index = first_max(ranked) if "argmax" in self.want else (ranked.amax(-1), None)
        blind = top <= self.floor
        found = {"max_prob": torch.where(blind, 0.0, top)}
        if index is not None:
            found["argmax"] = torch.where(blind, 0, index + plan.lo)
        best, keys = self._top(plan, ranked)
        if best is not None and keys is not None:
            found |= {"top_keys": keys, "top_probs": torch.where(keys < 0, 0.0, best)}
        return Weights(p, ranked, torch.empty_like(p)), found

    def _top(
        self, plan: Plan, ranked: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The topk largest entries of every row and their keys, -1 for hidden ones."""
        if not self.topk:
            return None, None
        best, index = first_topk(ranked, min(self.topk, plan.width), self.floor)
        return best, torch.where(best <= self.floor, -1, index + plan.lo)


class Reduction:
    """Every wanted statistic of one group."""

    def __init__(
        self,
        problem: Problem,
        group: Group,
        rows: dict[str, torch.Tensor],
        sums: dict[str, torch.Tensor],
    ) -> None:
        self.problem, self.strips = problem, Strips(problem, group)
        self.out = {name: group.own(x) for name, x in rows.items()}
        self.row_sums = RowSums(problem, group)
        self.columns = Columns(problem, group, sums)

    def run(self) -> None:
        """Fill this group's part of the outputs."""
        n_q, step = self.problem.geometry.n_q, self.problem.rows
        ends = [(i0, min(n_q, i0 + step)) for i0 in range(0, n_q, step)]
        spans = [(i0, i1, *self.strips.prompt.span(i0, i1)) for i0, i1 in ends]
        # Sized once for the widest: causal strips grow, and scratch that grew with them would leave
        # a hole in the heap for each, in all the square of the length.
        heads = math.prod(self.strips.scores.q.shape[:2])
        sizes = (heads * (i1 - i0) * max(0, hi - lo) for i0, i1, lo, hi in spans)
        self.problem.buffers(max(sizes, default=0))
        for i0, i1 in ends:
            plan = self.strips.prompt.plan(i0, i1)
            if plan is not None:
                self._reduce(plan)

    def _reduce(self, plan: Plan) -> None:
        weights, found = self.strips.weights(plan)
        p, want = weights.p, self.problem.want
        found |= self.row_sums.of(plan, p)
        laid = self.problem.skew.lay(p) if want & BY_DISTANCE else None
        if laid is not None:
            found |= self.row_sums.by_distance(plan, laid)
        if "participation" in want:
            power = self.problem.terms["power"]
            square = power == 2
            powers = torch.mul(p, p, out=weights.spare) if square else p.pow(power)
            found["participation"] = powers.sum(-1)
        self.columns.add(plan, weights, found.get("role_mass"), laid)
        for name, value in found.items():
            if name in self.out:
                store(self.out[name], plan, value)


def store(out: torch.Tensor, plan: Plan | Listed, value: torch.Tensor) -> None:
    """Write the rows of a strip, [U, G, n] or [U, G, n, .], where the last dim may fall short."""
    out = out[..., : value.shape[-1]] if value.dim() == 4 else out
    # Only a slice takes values of another dtype.
    out[:, :, plan.rows] = value if isinstance(plan, Plan) else value.to(out.dtype)


def first_max(s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest value of every row and the index of its first occurrence, each [U, G, n].

    Block maxima first, then an argmax inside one block: argmax over the whole row does not
    vectorise on a CPU and costs five times as much.
    """
    blocks = s.shape[-1] // _BLOCK
    if blocks < 4:
        index = s.argmax(-1, keepdim=True)
        return s.gather(-1, index)[..., 0], index[..., 0]
    cut = blocks * _BLOCK
    best, block = s[..., :cut].unflatten(-1, (blocks, _BLOCK)).amax(-1).max(-1, keepdim=True)
    inner = block * _BLOCK + torch.arange(_BLOCK, device=s.device)
    index = (block * _BLOCK + s.gather(-1, inner).argmax(-1, keepdim=True))[..., 0]
    best = best[..., 0]
    if cut < s.shape[-1]:
        tail, where = s[..., cut:].max(-1)
        index = torch.where(tail > best, where + cut, index)
        best = torch.maximum(tail, best)
    return best, index


def first_topk(s: torch.Tensor, count: int, floor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest values of every row, largest first, and where they stand; of equal ones
    the first. Hidden entries (at the floor) may stand anywhere."""
    value, index = s.topk(count, -1)
    last = value[..., -1:]
    # `topk` may keep any of the values that equal the smallest kept: sort those rows whole.
    unsure = ((s >= last).sum(-1) > count) & (last[..., 0] > floor)
    if bool(unsure.any()):
        whole = torch.sort(s[unsure], stable=True, dim=-1, descending=True)
        value[unsure], index[unsure] = whole.values[:, :count], whole.indices[:, :count]
    index, order = index.sort(-1)
    value, by = torch.sort(value.gather(-1, order), stable=True, dim=-1, descending=True)
    return value, index.gather(-1, by)
