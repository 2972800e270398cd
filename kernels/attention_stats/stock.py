"""Statistics from the fused attention kernels that ship with torch, and nothing else: a fallback
where triton is not, and a cross-check of the other backends, with which it shares no sweep.

A fused kernel returns o = P V and the log-sum-exp of the rows (FlashAttention, Dao et al. 2022,
arXiv:2205.14135). What is made of the two:

    lse             as returned
    anything that is linear in the rows, sum_j p_ij f_j: V := f
    entropy         lse_i - E_p[s_ij], and E_p[s_ij] = scale * q_i . (P K): V := K
    participation   sum_j p_ij^a = exp(lse of the scores times a - a lse_i)
    distance        |i - j| = (i - a) + (a - j) for the keys left of a block of queries that begins
                    at a: V := (a - j, (a - j)^2), whose terms are all positive; likewise to the
                    right; the block itself from its tile of weights
    key_mass        the transposed call: keys as queries, queries as keys, scores s_ij - lse_i; its
                    lse is log(sum_i p_ij), and V := features of the queries gives P^T G. The -lse_i
                    is one more head dimension, or three in half precision, which add up to it. With
                    both sequences flipped "no earlier query" is a causal mask
and what looks at few keys per query goes, with that lse, to the strips of `torch_blockwise`.

Kernels know masks that start at a corner: a causal map with any offset is cut into a square on the
diagonal and rectangles. A key that is not valid is hidden by another head dimension. Cost: one
sweep for the rows (one more per D features, for participation and for distance), one for the
columns. In half precision outputs are rounded to 3 digits, so only what comes from an lse is
offered; the exponential of torch's half kernels on a CPU is right to 1.5e-4, so a column, which
takes two of them, to 3e-4 (float32: 2e-5). Entropy is a difference of two numbers of the size of
the scores: right to 1e-6 of those, not of itself.

The CUDA calls follow the schema of torch; they have not run on a GPU yet.

Dims: B batch, H query heads, Hkv key/value heads, G = H // Hkv, Q queries, K keys, D head width, F
features, S segments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from workbench.kernels.attention_stats import torch_blockwise
from workbench.kernels.attention_stats.stock_sweeps import (
    HALF,
    KERNELS,
    Sweeps,
    kernel_of,
    width_of,
)
from workbench.kernels.attention_stats.terms import COUNTS, GIVEN_LSE, MAP_TERMS, ROW_STATS, TERMS
from workbench.kernels.attention_stats.tiles import tile
from workbench.kernels.attention_stats.torch_rows import hide_padding
from workbench.kernels.attention_stats.variants import BIASES, MASKS

# Queries of a block whose distances to one another are weighted one by one.
_NEAR = 256
# Scales for which what the extra dimensions hold fits float16.
_SCALES = (1e-4, 1e4)

# Linear in the rows: what V has to be is in `_features`.
_LINEAR = ("entropy", "role_mass", "feature_mass", "value_mass", "output", "segment_mean")
_DISTANCES = ("distance", "distance_sq")
_COLUMNS = ("key_mass", "key_mean", "query_feature_mass")
_OWN = ("lse", "participation", *_LINEAR, *_DISTANCES, *_COLUMNS)
# Read from the output of a kernel, which has the precision of the input; in waad the error of the
# lse counts `waad_window` times.
_FULL_PRECISION = (*_LINEAR, *_DISTANCES, "query_feature_mass", "waad")


def available(device_type: str) -> bool:
    """Where torch has a kernel that returns the lse; Apple's GPU has none."""
    return any(device == device_type for device, _ in KERNELS)


def refuses(q: torch.Tensor, want: Sequence[str], terms: dict[str, Any]) -> str | None:
    """The first term or statistic that is not supported, or None."""
    refused = _refused_term(q, terms)
    if refused:
        return refused
    handed_on = [name for name in want if _handed_on(name, terms)]
    for name in want:
        if name not in (*_OWN, *handed_on) and not _open_ended(name, terms):
            return name
        if q.dtype in HALF and name in _FULL_PRECISION:
            return f"{name} of {q.dtype}"
        if name == "entropy" and terms.get("bias") is not None:
            return "entropy with a bias"
    return torch_blockwise.refuses(q, handed_on, terms) if handed_on else None


def _refused_term(q: torch.Tensor, terms: dict[str, Any]) -> str | None:
    device, kernel = q.device.type, kernel_of(q)
    for name in ("softcap", "window", "alibi", "query_sequence"):
        if terms.get(name) is not None:
            return name
    for name, described in (("mask", MASKS), ("bias", BIASES)):
        if isinstance(terms.get(name), described):
            return f"a {name} by description"
        if terms.get(name) is not None and not kernel.takes_mask:
            return f"{name} on {device}"
    if terms.get("activation") not in (None, "softmax"):
        return f"activation {terms['activation']!r}"
    scale = terms.get("scale")
    if scale is not None and not _SCALES[0] <= abs(scale) <= _SCALES[1]:
        return f"a scale of {scale}"
    if device != "cpu" and q.dtype == torch.float64:
        return f"float64 on {device}"
    return f"heads of width {q.shape[-1]}" if width_of(q) > kernel.widest else None


def attention_stats(
    q: torch.Tensor, k: torch.Tensor, want: tuple[str, ...], **terms: Any
) -> dict[str, torch.Tensor]:
    """The statistics `want` of checked arguments; definitions in the package."""
    terms = {name: terms.get(name) for name in TERMS}
    handed_on = tuple(name for name in want if _handed_on(name, terms))
    own = frozenset(want) - set(handed_on)
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        if own or set(handed_on) - COUNTS:
            sweeps = Sweeps(q, k, terms)
            found = _row_statistics(sweeps, own)
            if own & set(_DISTANCES):
                found |= _distances(sweeps, q, k, found["lse"])
            found |= _column_statistics(sweeps, own, found["lse"])
            found = {name: x.to(sweeps.dtype) for name, x in found.items()}
            terms["lse"] = found["lse"]
        if handed_on:
            found |= torch_blockwise.attention_stats(q, k, handed_on, **terms)
    hide_padding({name: found[name] for name in own & set(ROW_STATS)}, terms["query_valid"])
    return {name: found[name] for name in want}


def pattern(q: torch.Tensor, k: torch.Tensor, rows: slice, **terms: Any) -> torch.Tensor:
    """Probabilities [B, H, R, K], by the strips: no fused kernel hands out its weights."""
    return torch_blockwise.pattern(q, k, rows, **terms)


def _open_ended(name: str, terms: dict[str, Any]) -> bool:
    """Whether `name` is a fai over all later queries: a column pass with a shifted diagonal."""
    return name == "fai" and terms["horizon"][1] is None


def _handed_on(name: str, terms: dict[str, Any]) -> bool:
    return name in COUNTS | GIVEN_LSE - {"lse"} and not _open_ended(name, terms)


def _row_statistics(sweeps: Sweeps, own: frozenset[str]) -> dict[str, torch.Tensor]:
    """lse, and what is linear in the rows or a sum of powers; 0 where nothing is visible."""
    given, sink = sweeps.terms["lse"], _sink(sweeps)
    values, where = _features(sweeps, own)
    if values is None and given is not None:
        found = {"lse": torch.where(sweeps.blind, sink, given.double())}
    else:
        of_keys, mean = sweeps.rows(values)
        lse = torch.logaddexp(of_keys, sink) if given is None else given.double()
        found = {"lse": torch.where(sweeps.blind, sink, lse)}
        share = sweeps.share(of_keys, found["lse"], slice(None))
        if mean is not None:
            linear = mean * share.to(mean.dtype)[..., None]
            found |= {name: linear[..., part] for name, part in where.items()}
        if "entropy" in own:
            scores = sweeps.scale * (sweeps.q.double() * found["entropy"]).sum(-1)
            entropy = (share * found["lse"] - scores).masked_fill(sweeps.blind, 0.0)
            found["entropy"] = entropy.clamp(min=0.0)
    if "value_mass" in own:
        found["value_mass"] = found["value_mass"][..., 0]
    if "segment_mean" in own:
        found["segment_mean"] = _segment_mean(sweeps, found["segment_mean"])
    if "participation" in own:
        power = float(sweeps.terms["power"])
        sharpened, _ = sweeps.rows(None, power)
        found["participation"] = sweeps.share(sharpened, power * found["lse"], slice(None))
    return found


def _sink(sweeps: Sweeps) -> torch.Tensor:
    """The sink logit [1, H or 1, 1], -inf for none."""
    sink = sweeps.terms["sink_logit"]
    none = torch.full((1,), -math.inf, dtype=torch.float64, device=sweeps.q.device)
    return (none if sink is None else sink.double())[None, :, None]


def _features(sweeps: Sweeps, own: frozenset[str]) -> tuple[torch.Tensor | None, dict[str, slice]]:
    """What V has to be, [B, 1 or Hkv, K, F], and which of its columns belong to a statistic. What
    nobody sees may hold anything and is 0."""
    terms, parts, where, n = sweeps.terms, [], {}, 0
    makers = {
        "entropy": lambda: sweeps.k,
        "role_mass": lambda: _one_hot(terms, "key_segments").transpose(1, 2)[:, None],
        "segment_mean": lambda: _one_hot(terms, "key_segments").transpose(1, 2)[:, None],
        "feature_mass": lambda: terms["key_features"],
        "value_mass": lambda: terms["v"].to(sweeps.dtype).norm(dim=-1, keepdim=True),
        "output": lambda: terms["v"],
    }
    for name in _LINEAR:
        if name in own:
            x = makers[name]().to(sweeps.dtype)
            where[name] = slice(n, n + x.shape[-1])
            n += x.shape[-1]
            parts.append(x.expand(-1, sweeps.k.shape[1], -1, -1).masked_fill(sweeps.unseen, 0.0))
    return (torch.cat(parts, -1) if parts else None), where


def _one_hot(terms: dict[str, Any], name: str) -> torch.Tensor:
    """Membership [B, S, N] of labels [B, N], or of bool [B, S, N]."""
    x = terms[name]
    if x.dim() == 3:
        return x.double()
    return (x[:, None] == torch.arange(terms["n_segments"], device=x.device)[:, None]).double()


def _segment_mean(sweeps: Sweeps, of_rows: torch.Tensor) -> torch.Tensor:
    """[B, H, S, S] from the mass [B, H, Q, S] of every row on the segments of the keys."""
    rows, columns = (_one_hot(sweeps.terms, f"{side}_segments") for side in ("query", "key"))
    if sweeps.terms["query_valid"] is not None:
        rows = rows * sweeps.terms["query_valid"][:, None]
    total = torch.einsum("bsq,bhqt->bhst", rows, of_rows.double())
    area = (rows.sum(-1)[:, :, None] * columns.sum(-1)[:, None])[:, None]
    return (total / area.clamp(min=1.0)).masked_fill(area == 0, math.nan)


def _distances(
    sweeps: Sweeps, q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor
) -> dict[str, torch.Tensor]:
    """distance and distance_sq, [B, H, Q]."""
    terms, device = sweeps.terms, q.device
    offset, n_k = terms["query_offset"], k.shape[2]
    on_map = {name: terms[name] for name in MAP_TERMS}
    one, two = torch.zeros_like(lse), torch.zeros_like(lse)
    for r0 in range(0, q.shape[2], _NEAR):
        rows = slice(r0, min(q.shape[2], r0 + _NEAR))
        # Positions of the first and the last query; keys below lo lie left of all of them.
        first, last = rows.start + offset, rows.stop - 1 + offset
        lo, hi = (min(n_k, max(0, x)) for x in (first, last + 1))
        p = tile(q, k, lse, rows, slice(lo, hi), backend="torch", **on_map).double()
        position = torch.arange(first, last + 1, device=device, dtype=torch.float64)
        key = torch.arange(n_k, device=device, dtype=torch.float64)
        away = (position[:, None] - key[lo:hi]).abs()
        one[:, :, rows], two[:, :, rows] = (p * away).sum(-1), (p * away**2).sum(-1)
        sides = [(slice(0, lo), position - first, first - key[:lo])]
        if not terms["causal"]:
            sides.append((slice(hi, n_k), last - position, key[hi:] - last))
        for keys, a, b in sides:
            if keys.start == keys.stop:
                continue
            part, mean = sweeps.piece(rows, keys, False, torch.stack([b, b * b], -1)[None, None])
            assert mean is not None
            m0, m1, m2 = sweeps.share(part, lse, rows), *mean.double().unbind(-1)
            one[:, :, rows] += m0 * (a + m1)
            two[:, :, rows] += m0 * (a * a + 2.0 * a * m1 + m2)
    blind = sweeps.blind
    return {"distance": one.masked_fill(blind, 0.0), "distance_sq": two.masked_fill(blind, 0.0)}


def _column_statistics(
    sweeps: Sweeps, own: frozenset[str], lse: torch.Tensor
) -> dict[str, torch.Tensor]:
    """key_mass, key_mean, query_feature_mass, and fai without an end."""
    terms, found = sweeps.terms, {}
    causal, offset, unseen = terms["causal"], terms["query_offset"], sweeps.key_count == 0
    if own & set(_COLUMNS):
        values = None
        if "query_feature_mass" in own:
            valid = terms["query_valid"]
            values = terms["query_features"][:, None]
            values = values if valid is None else values.masked_fill(~valid[:, None, :, None], 0.0)
        mass, total = sweeps.columns(lse, causal, offset, values)
        found["key_mass"] = mass.masked_fill(unseen, 0.0)
        found["key_mean"] = mass.masked_fill(unseen, math.nan) / sweeps.key_count
        if total is not None:
            found["query_feature_mass"] = total.masked_fill(unseen[..., None], 0.0)
    if "fai" in own:
        # Queries at least `low` positions later: the causal map of queries that far ahead.
        ahead = offset - terms["horizon"][0]
        count = sweeps.counts(terms | {"causal": True, "query_offset": ahead})["key_count"]
        mass, _ = sweeps.columns(lse, True, ahead, None)
        found["fai"] = mass.masked_fill(count == 0, math.nan) / count
    return found
