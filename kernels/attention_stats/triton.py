"""The Triton path: a row pass that keeps running sums, a column pass that is given their lse, and
band kernels for what looks at few keys per query.

The kernels (`triton_*_kernels.py`) write unnormalised float32 sums; the modules beside them launch
them and do what is linear in length in float64: totals, the sink logit, entropy, means. triton is
imported when something is computed, not before.

Cost: what `passes` says, and one more sweep for top_keys and top_probs. duplicate_mass and
induction_mass take a row pass also where the lse is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch

from workbench.kernels.attention_stats import torch_blockwise
from workbench.kernels.attention_stats.terms import BLOCK_STATS, COLUMN_STATS, COUNTS, passes
from workbench.kernels.attention_stats.triton_bands import band_statistics
from workbench.kernels.attention_stats.triton_call import INTERPRETED, LOG2E, Call
from workbench.kernels.attention_stats.triton_columns import column_statistics
from workbench.kernels.attention_stats.triton_reach import NO_ROW
from workbench.kernels.attention_stats.triton_rows import REPEATS, Rows
from workbench.kernels.attention_stats.triton_topk import top_statistics

_TOP = frozenset({"top_keys", "top_probs"})
_BAND = frozenset(
    {"self_mass", "prev_mass", "first_mass", "offset_mass", "keys_mass", "waad", "local_mass"}
)


def refuses(q: torch.Tensor, want: Sequence[str], terms: dict[str, Any]) -> str | None:  # noqa: ARG001
    """The first term or dtype that is not supported, or None; every statistic is."""
    dtype = str(q.dtype).removeprefix("torch.")
    # The interpreter keeps bfloat16 as integers and multiplies those.
    if dtype == "float64" or (dtype == "bfloat16" and INTERPRETED):
        return dtype
    if q.shape[3] > 256:
        return "head widths over 256"
    for name in ("mask", "bias"):
        x = terms.get(name)
        if x is not None and not isinstance(x, torch.Tensor):
            return f"a {name} by description ({type(x).__name__})"
    if terms.get("activation", "softmax") != "softmax":
        return f"the activation {terms['activation']!r}"
    return None


def available(device_type: str) -> bool:
    """CUDA and ROCm devices; every device torch computes on when the interpreter is on."""
    kinds = ("cuda", "hip", "cpu") if INTERPRETED else ("cuda", "hip")
    return device_type in kinds and find_spec("triton") is not None


def attention_stats(
    q: torch.Tensor, k: torch.Tensor, want: tuple[str, ...], **terms: Any
) -> dict[str, torch.Tensor]:
    """The statistics `want` of checked arguments; definitions in the package."""
    here = torch.cuda.device(q.device) if q.device.type == "cuda" else nullcontext()
    with torch.no_grad(), here:
        call = Call.of(q, k, terms)
        found = _scored(call, frozenset(want) - COUNTS)
        if COUNTS & set(want):
            found |= call.counts()
        return {name: call.finish(name, found[name]) for name in want}


def _scored(call: Call, want: frozenset[str]) -> dict[str, torch.Tensor]:
    """What scores are needed for."""
    given, horizon = call.terms["lse"] is not None, call.terms["horizon"]
    # A ranking needs no lse, the weights of what it finds do.
    own = want - _TOP | ({"lse"} if "top_probs" in want else set())
    found: dict[str, torch.Tensor] = {}
    lse = None
    if "rows" in passes(own, lse=given, horizon=horizon) or own & REPEATS:
        rows = Rows(call, want)
        found, lse = rows.statistics(want), rows.lse()
    elif own:
        lse = _given_lse(call)
        sink = -math.inf if call.terms["sink_logit"] is None else call.terms["sink_logit"].double()
        null = torch.exp(torch.as_tensor(sink, device=lse.device).view(1, -1, 1) - lse)
        found = {"lse": lse, "null_mass": torch.where(lse.isneginf(), 0.0, null)}
    if want & _TOP:
        found |= top_statistics(call, want, lse)
    if lse is None:
        return found
    # fai looks at few queries per key, unless its horizon has no end.
    near = {"fai"} if horizon is not None and horizon[1] is not None else set()
    band = want & (_BAND | near)
    if band:
        found |= band_statistics(call, tuple(sorted(band)), lse)
    columns = want & (set(COLUMN_STATS + BLOCK_STATS) - {"segment_mean"} - near)
    if columns:
        found |= column_statistics(call, tuple(sorted(columns)), _lse2(call, lse))
    return found


def _given_lse(call: Call) -> torch.Tensor:
    """The caller's lse, float64 [B, H, Q]. A row that sees nothing has the sink logit or -inf,
    whatever it says: fused attention leaves 0 there."""
    lse, sink = call.terms["lse"].double(), call.terms["sink_logit"]
    bare = lse.new_tensor(-math.inf) if sink is None else sink.double()
    return torch.where(call.counts()["n_visible"] > 0, lse, bare.view(1, -1, 1))


def _lse2(call: Call, lse: torch.Tensor) -> torch.Tensor:
    """lse over log 2 for the column pass, float32 [B, H, Q]; NO_ROW for rows without a pattern and
    queries that are none."""
    off = lse.isneginf()
    if call.terms["query_valid"] is not None:
        off = off | ~call.terms["query_valid"][:, None]
    return torch.where(off, NO_ROW, lse * LOG2E).float()


# The probabilities of some rows are a matrix that has to exist anyway: strips do it as well.
pattern = torch_blockwise.pattern
