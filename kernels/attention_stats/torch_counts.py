"""How many keys a query sees, and how many queries see a key, without scores.

What a query sees is an interval of keys unless a mask, a description or a bias may hide more: then
prefix sums of validity count, O(Q + K). Else visibility is looked at strip by strip.

Dims: B batch, H heads, Q queries, K keys; n queries and W keys of a strip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from workbench.kernels.attention_stats.torch_geometry import HIDING_BIAS
from workbench.kernels.attention_stats.torch_plan import Plan, Prompt
from workbench.kernels.attention_stats.torch_terms import Group

if TYPE_CHECKING:
    from workbench.kernels.attention_stats.torch_problem import Problem

# Statistics and the counts behind them.
_NEEDED = {
    "n_visible": "n_visible",
    "key_count": "key_count",
    "key_mean": "key_count",
    "key_var": "key_count",
    "fai": "later_count",
}


def count(problem: Problem) -> dict[str, torch.Tensor]:
    """Of n_visible [B, 1 or H, Q], key_count and later_count [B, 1 or H, K] what is needed, int64;
    later_count is key_count within the horizon."""
    needed = {_NEEDED[name] for name in problem.want if name in _NEEDED}
    if not needed:
        return {}
    mask, bias = problem.terms["mask"], problem.terms["bias"]
    hiding = [x for x in (mask, bias) if isinstance(x, torch.Tensor)]
    if not hiding and problem.geometry.described is None:
        each = [_intervals(problem, prompt) for prompt in problem.prompts]
    else:
        heads = max((x.shape[1] for x in hiding), default=1)
        each = [_by_strips(problem, b, heads, needed) for b in range(len(problem.prompts))]
    return {name: torch.stack([found[name] for found in each]) for name in needed}


def _valid(problem: Problem, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """Validity of the prompt's queries and keys."""
    n_q, n_k, device = problem.geometry.n_q, problem.geometry.n_k, problem.q.device
    queries, keys = prompt.query_valid, prompt.key_valid
    return (
        torch.ones(n_q, dtype=torch.bool, device=device) if queries is None else queries,
        torch.ones(n_k, dtype=torch.bool, device=device) if keys is None else keys,
    )


def _intervals(problem: Problem, prompt: Prompt) -> dict[str, torch.Tensor]:
    geometry, device = problem.geometry, problem.q.device
    query_valid, key_valid = _valid(problem, prompt)
    key = torch.arange(geometry.n_k, device=device)
    lo, hi = geometry.keys_of(torch.arange(geometry.n_q, device=device) + geometry.offset)
    first, last = geometry.queries_of(key)
    own, theirs = prompt.own, prompt.theirs
    if own is not None and theirs is not None:
        lo = torch.maximum(lo, torch.searchsorted(theirs, own))
        hi = torch.minimum(hi, torch.searchsorted(theirs, own, right=True))
        first = torch.maximum(first, torch.searchsorted(own, theirs))
        last = torch.minimum(last, torch.searchsorted(own, theirs, right=True))
    found = {
        "n_visible": _between(key_valid, lo, hi),
        "key_count": _between(query_valid, first, last) * key_valid,
    }
    if problem.terms["horizon"] is not None:
        low, high = problem.terms["horizon"]
        at = key - geometry.offset
        first = torch.maximum(first, at + low)
        last = last if high is None else torch.minimum(last, at + high + 1)
        found["later_count"] = _between(query_valid, first, last) * key_valid
    return {name: x[None] for name, x in found.items()}


def _between(flags: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor) -> torch.Tensor:
    """Number of true flags [N] in [lo, hi), for every pair of bounds: int64."""
    prefix = torch.nn.functional.pad(flags.to(torch.int64).cumsum(-1), (1, 0))
    n = flags.shape[-1]
    return (prefix[hi.clamp(0, n)] - prefix[lo.clamp(0, n)]).clamp(min=0)


def _by_strips(
    problem: Problem, index: int, heads: int, needed: set[str]
) -> dict[str, torch.Tensor]:
    prompt, geometry = problem.prompts[index], problem.geometry
    query_valid, key_valid = _valid(problem, prompt)
    n_visible = torch.zeros(heads, geometry.n_q, dtype=torch.int64, device=problem.q.device)
    key_count = n_visible.new_zeros(heads, geometry.n_k)
    later_count = torch.zeros_like(key_count)
    low, high = problem.terms["horizon"] or (0, None)
    for i0 in range(0, geometry.n_q, problem.rows):
        i1 = min(geometry.n_q, i0 + problem.rows)
        lo, hi = prompt.span(i0, i1)
        if needed == {"later_count"}:
            hi = min(hi, i1 + geometry.offset - low)
            lo = lo if high is None else max(lo, i0 + geometry.offset - high)
        plan = prompt.part(i0, i1, lo, hi) if lo < hi else None
        if plan is None:
            continue
        seen = _seen(problem, index, heads, plan) & key_valid[lo:hi]
        n_visible[:, i0:i1] = seen.sum(-1)
        seen &= query_valid[i0:i1, None]
        key_count[:, lo:hi] += seen.sum(-2)
        if "later_count" in needed:
            position = torch.arange(i0, i1, device=seen.device)[:, None] + geometry.offset
            back = position - torch.arange(lo, hi, device=seen.device)
            inside = back >= low if high is None else (back >= low) & (back <= high)
            later_count[:, lo:hi] += (seen & inside).sum(-2)
    return {"n_visible": n_visible, "key_count": key_count, "later_count": later_count}


def _seen(problem: Problem, index: int, heads: int, plan: Plan) -> torch.Tensor:
    """Bool [heads, n, W] of a strip: positions, sequences, mask and bias."""
    shape = (heads, plan.i1 - plan.i0, plan.width)
    seen = torch.ones(shape, dtype=torch.bool, device=problem.q.device)
    for a, b, hidden in plan.hidden:
        seen[..., a:b] &= ~hidden
    every = Group(index, slice(0, problem.k.shape[1]), problem.groups)
    rows = slice(plan.i0, plan.i1)
    for name in ("mask", "bias"):
        x = problem.terms[name]
        if isinstance(x, torch.Tensor):
            x = every.cut(x, rows, plan.columns).flatten(0, 1)
            seen &= x if name == "mask" else ~(x <= HIDING_BIAS)
    return seen
