"""The scores of a strip: q k^T and every term that changes or hides them.

Scores are kept in units of log 2 where a softmax follows (exp2 is three times faster than exp on a
CPU). Hidden ones are the most negative finite value, never -inf: 0 * inf is NaN.

Dims: U key heads and G query heads per key head in the group, n queries, W keys of a plan, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workbench.kernels.attention_stats.torch_geometry import HIDING_BIAS
from workbench.kernels.attention_stats.torch_plan import Listed, Plan
from workbench.kernels.attention_stats.variants import LowRankBias

if TYPE_CHECKING:
    from workbench.kernels.attention_stats.torch_problem import Problem

LN2, LOG2E = math.log(2.0), 1.0 / math.log(2.0)


@dataclass(frozen=True)
class Group:
    """One work item: some key heads of one prompt, and the query heads that read them."""

    batch: int
    heads: slice
    per_key: int

    @property
    def query_heads(self) -> slice:
        """Their query heads, among H."""
        return slice(self.heads.start * self.per_key, self.heads.stop * self.per_key)

    def own(self, x: torch.Tensor) -> torch.Tensor:
        """This group's part [U, G, ...] of a tensor [B, H, ...]."""
        return x[self.batch].unflatten(0, (-1, self.per_key))[self.heads]

    def cut(
        self,
        x: torch.Tensor,
        rows: slice | torch.Tensor,
        columns: slice | torch.Tensor = slice(None),
    ) -> torch.Tensor:
        """This group's part of a term [1 or B, 1 or H, 1 or Q, 1 or K]: it broadcasts to [U, G, n,
        W]."""
        x = x[self.batch if x.shape[0] > 1 else 0]
        x = x[self.query_heads].unflatten(0, (-1, self.per_key)) if x.shape[0] > 1 else x[None]
        both = min(x.shape[2:]) > 1
        if both and isinstance(rows, torch.Tensor) and isinstance(columns, torch.Tensor):
            return x[:, :, rows[:, None], columns]
        x = x[:, :, rows] if x.shape[2] > 1 else x
        return x[..., columns] if x.shape[3] > 1 else x


class Scores:
    """Scores of one group, strip by strip, over buffers that the worker keeps."""

    def __init__(self, problem: Problem, group: Group) -> None:
        self.problem, self.group, self.terms = problem, group, problem.terms
        self.holes = problem.prompts[group.batch].holes
        dtype, alibi = problem.dtype, problem.terms["alibi"]
        self.floor = torch.finfo(dtype).min
        self.unit = LOG2E if self.terms["activation"] == "softmax" else 1.0
        self.q = group.own(problem.q)
        self.k = problem.k[group.batch, group.heads].to(dtype).contiguous()
        self.slope = None
        if alibi is not None:
            self.slope = self.heads_of(alibi) * self.unit
            geometry, device = problem.geometry, problem.q.device
            self.key = torch.arange(geometry.n_k, device=device, dtype=dtype)
            self.position = torch.arange(geometry.n_q, device=device) + geometry.offset
            self.position = self.position.to(dtype)

    def heads_of(self, x: torch.Tensor) -> torch.Tensor:
        """A term [H] for this group: [U, G, 1, 1]."""
        x = x[self.group.query_heads].to(self.problem.dtype)
        return x.view(-1, self.group.per_key, 1, 1)

    def of(self, plan: Plan | Listed) -> tuple[torch.Tensor, torch.Tensor]:
        """Masked scores [U, G, n, W], and a second buffer of the same shape."""
        problem, cap = self.problem, self.terms["softcap"]
        factor = self.terms["scale"] * (self.unit if cap is None else 1.0 / cap)
        q = self.q[:, :, plan.rows].to(problem.dtype) * factor
        shape = (*q.shape[:3], plan.width)
        s, spare = (x[: math.prod(shape)].view(shape) for x in problem.buffers(math.prod(shape)))
        torch.bmm(q.flatten(1, 2), self.k[:, plan.columns].transpose(1, 2), out=s.flatten(1, 2))
        if cap is not None:
            s.tanh_().mul_(cap * self.unit)
        shown = self._add(s, plan)
        if shown is not None:
            s, spare = torch.where(shown, s, s.new_tensor(self.floor), out=spare), s
        for a, b, hidden in plan.hidden:
            s[..., a:b].masked_fill_(hidden, self.floor)
        if self.holes is not None:
            s.masked_fill_(self.holes[plan.columns], self.floor)
        if plan.skip is not None:
            s.masked_fill_(plan.skip[:, None], self.floor)
        return s, spare

    def _add(self, s: torch.Tensor, plan: Plan | Listed) -> torch.Tensor | None:
        """Adds bias and alibi to the scores; what mask and bias show, where they are tensors."""
        mask, bias, rows = self.terms["mask"], self.terms["bias"], plan.rows
        shown = None
        if isinstance(mask, torch.Tensor):
            shown = self.group.cut(mask, rows, plan.columns)
        if isinstance(bias, torch.Tensor):
            added = self.group.cut(bias, rows, plan.columns)
            s.add_(added.to(s.dtype), alpha=self.unit)
            seen = ~(added <= HIDING_BIAS)
            shown = seen if shown is None else shown & seen
        elif isinstance(bias, LowRankBias):
            left = self.group.cut(bias.left, rows).to(s.dtype)
            right = self.group.cut(bias.right, plan.columns).to(s.dtype)
            s.add_(left @ right.transpose(-1, -2), alpha=self.unit)
        if self.slope is not None:
            away = (self.position[rows, None] - self.key[plan.columns]).abs_()
            s.addcmul_(away, self.slope, value=-1.0)
        return shown
