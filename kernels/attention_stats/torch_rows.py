"""Statistics of a row that are sums of p over keys of the strip, and the outputs they go to.

Dims: B batch, H heads, Q queries; U key heads and G query heads per key head in the group, n
queries i0..i1, W keys of a plan, F features, S segments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from workbench.kernels.attention_stats.terms import COUNTS, INT_STATS, ROW_STATS
from workbench.kernels.attention_stats.torch_plan import Listed, Plan

if TYPE_CHECKING:
    from workbench.kernels.attention_stats.torch_problem import Problem
    from workbench.kernels.attention_stats.torch_terms import Group


@dataclass(frozen=True)
class Features:
    """Values of keys, transposed for skinny products: [1 or U, F, K]. Keys with a NaN or infinity
    hold zeros, and `spoils` [1 or U, 1, K] gives their mass."""

    values: torch.Tensor
    spoils: torch.Tensor | None

    @staticmethod
    def of(x: torch.Tensor) -> Features:
        """From [1 or U, K, F]."""
        good = x.isfinite().all(-1, keepdim=True)
        values = x.masked_fill(~good, 0.0).transpose(1, 2).contiguous()
        return Features(values, None if bool(good.all()) else (~good).to(x.dtype).transpose(1, 2))

    def under(self, p: torch.Tensor, plan: Plan) -> torch.Tensor:
        """Sums over the keys [U, G, n, F]; NaN in rows with mass on a spoilt key."""
        found = _product(self.values, p, plan)
        if self.spoils is None:
            return found
        return found.masked_fill(_product(self.spoils, p, plan) > 0, math.nan)


def _product(x: torch.Tensor, p: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Sum over the keys of [1 or U, F, K] times p [U, G, n, W]: [U, G, n, F]."""
    x = x[..., plan.columns]
    if x.shape[0] == 1:
        return torch.mm(x[0], p.flatten(0, 2).t()).view(-1, *p.shape[:3]).movedim(0, -1)
    sums = torch.bmm(x, p.flatten(1, 2).transpose(1, 2))
    return sums.unflatten(-1, p.shape[1:3]).movedim(1, -1)


class RowSums:
    """The row sums of one group."""

    def __init__(self, problem: Problem, group: Group) -> None:
        self.problem, self.want, self.terms = problem, problem.want, problem.terms
        self.products = self._features(group)
        first, keys = self.terms["first_key"], self.terms["keys"]
        self.first_key = torch.zeros(1, dtype=torch.int64, device=problem.q.device)
        if first is not None:
            self.first_key = first[group.batch].long().reshape(-1)
        self.keys = None if keys is None else keys[group.batch].long()

    def _features(self, group: Group) -> dict[str, Features]:
        """What is multiplied with p, by statistic; `segment_mean` sums those of `role_mass`."""
        terms, dtype, found = self.terms, self.problem.dtype, {}
        if self.want & {"role_mass", "segment_mean"}:
            member = membership(terms, "key_segments", group.batch, dtype)
            found["role_mass"] = Features(member[None], None)
        if "feature_mass" in self.want:
            x = terms["key_features"][group.batch].to(dtype)
            found["feature_mass"] = Features.of(x if x.shape[0] == 1 else x[group.heads])
        if self.want & {"value_mass", "output"}:
            v = terms["v"][group.batch, group.heads].to(dtype)
            if "value_mass" in self.want:
                found["value_mass"] = Features.of(v.norm(dim=-1, keepdim=True))
            if "output" in self.want:
                found["output"] = Features.of(v)
        return found

    def of(self, plan: Plan, p: torch.Tensor) -> dict[str, torch.Tensor]:
        """All that are wanted, [U, G, n] or [U, G, n, .], but for those by distance."""
        found = {name: repeats.mass(p) for name, repeats in plan.repeats.items()}
        found |= {name: x.under(p, plan) for name, x in self.products.items()}
        if "value_mass" in found:
            found["value_mass"] = found["value_mass"][..., 0]
        for name, back in (("self_mass", 0), ("prev_mass", 1)):
            if name in self.want:
                found[name] = self.at_distance(plan, p, back)
        if "offset_mass" in self.want and self.terms["offsets"]:
            each = [self.at_distance(plan, p, back) for back in self.terms["offsets"]]
            found["offset_mass"] = torch.stack(each, -1)
        return found | self.at_keys(plan, p)

    def at_distance(self, plan: Plan, p: torch.Tensor, back: int) -> torch.Tensor:
        """p at the key `back` positions before each query: [U, G, n]."""
        return diagonal(p, plan.i0 + self.problem.geometry.offset - back - plan.lo)

    def at_keys(self, plan: Plan | Listed, p: torch.Tensor) -> dict[str, torch.Tensor]:
        """first_mass [U, G, n] and keys_mass [U, G, n, N]."""
        found = {}
        if "first_mass" in self.want:
            found["first_mass"] = self._first_mass(plan, p)
        if "keys_mass" in self.want and self.keys is not None:
            column, inside = plan.find(self.keys)
            found["keys_mass"] = torch.where(inside, p.index_select(-1, column), 0.0)
        return found

    def _first_mass(self, plan: Plan | Listed, p: torch.Tensor) -> torch.Tensor:
        one = self.first_key.shape[0] == 1
        if one and isinstance(plan, Plan):
            column = int(self.first_key) - plan.lo
            return p[..., column] if 0 <= column < plan.width else p.new_zeros(p.shape[:-1])
        column, inside = plan.find(self.first_key if one else self.first_key[plan.rows])
        picked = p.gather(-1, column[:, None].expand(*p.shape[:-1], 1))[..., 0]
        return torch.where(inside, picked, 0.0)

    def by_distance(self, plan: Plan, laid: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those of WEIGHTED that are wanted [U, G, n], of a strip laid out by distance."""
        ruler = self.problem.ruler
        if ruler is None or not ruler.names:
            return {}
        sums = ruler.measure(laid, plan.i0, plan.lo)
        return dict(zip(ruler.names, sums.unflatten(1, (-1, self.problem.groups)), strict=True))


def membership(terms: dict[str, Any], name: str, index: int, dtype: torch.dtype) -> torch.Tensor:
    """Membership of a prompt's tokens in segments, as floats [S, N]."""
    x = terms[name][index]
    if x.dim() == 1:
        x = x == torch.arange(terms["n_segments"], device=x.device)[:, None]
    return x.to(dtype)


def diagonal(p: torch.Tensor, column: int) -> torch.Tensor:
    """p[..., r, column + r] for every row r, 0 outside: [U, G, n]."""
    out = p.new_zeros(p.shape[:-1])
    if -p.shape[-2] < column < p.shape[-1]:
        part = p.diagonal(column, -2, -1)
        start = max(0, -column)
        out[..., start : start + part.shape[-1]] = part
    return out


def outputs(problem: Problem) -> dict[str, torch.Tensor]:
    """The row statistics as they stand where no key is visible: [B, H, Q] or [B, H, Q, .]."""
    terms, (b, h, n_q, _) = problem.terms, problem.q.shape
    size = {
        "role_mass": terms["n_segments"],
        "feature_mass": _last(terms["key_features"]),
        "offset_mass": len(terms["offsets"] or ()),
        "keys_mass": _last(terms["keys"]),
        "top_keys": terms["topk"],
        "top_probs": terms["topk"],
        "output": _last(terms["v"]),
    }
    sink, out = terms["sink_logit"], {}
    for name in ROW_STATS:
        if name not in problem.want - COUNTS:
            continue
        shape = (b, h, n_q, size[name]) if name in size else (b, h, n_q)
        dtype = torch.int64 if name in INT_STATS else problem.dtype
        empty = {"lse": -math.inf, "top_keys": -1}.get(name, 0)
        out[name] = torch.full(shape, empty, dtype=dtype, device=problem.q.device)
        if sink is not None and name in ("lse", "null_mass"):
            alone = sink if name == "lse" else sink > -math.inf
            out[name].copy_(alone.to(dtype)[:, None].expand(shape))
    return out


def _last(x: torch.Tensor | None) -> int:
    return 0 if x is None else x.shape[-1]


def hide_padding(out: dict[str, torch.Tensor], query_valid: torch.Tensor | None) -> None:
    """NaN (0 for integers, -1 for top_keys) in the rows of invalid queries."""
    if query_valid is None:
        return
    for name in ROW_STATS:
        if name not in out:
            continue
        x = out[name]
        row = ~query_valid[:, None][(..., *[None] * (x.dim() - 3))]
        empty = -1 if name == "top_keys" else 0 if name in INT_STATS else math.nan
        x.masked_fill_(row, empty)
