"""Parity of the Triton backend against the float64 specification, for the GPU benchmark: every
statistic it supports, at sizes for which the whole map fits, and the same bits twice.

Dims: B batch, H heads, Hkv key/value heads, Q queries, K keys, D width, S segments.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from workbench.kernels.attention_stats import BACKENDS, NEEDS, STATS, attention_stats, pattern
from workbench.kernels.attention_stats.checks import check_qk, check_terms
from workbench.kernels.attention_stats.terms import INT_STATS, MAP_TERMS, TERMS

if TYPE_CHECKING:
    import torch

# Allowed relative error; smaller values are compared as if they were this large.
ALLOWED, SHARP, SMALL = 2e-5, 1e-4, 1e-6
# Seconds for trying statistics one by one, each of which compiles.
_ALONE = 40.0
# What each variant differs in from the first, which is what is timed.
_SHAPES = {
    "narrow": (1, 8, 2, 512, 512, 64), "ragged": (2, 4, 2, 333, 401, 80),
    "padded": (2, 4, 2, 333, 401, 64), "wide": (1, 2, 1, 256, 256, 256),
}  # fmt: skip
_DTYPES = {"half": "float16", "single": "float32"}
_SPREAD = {"sharp": 20.0}


def parity(variant: str, device: str, smoke: bool) -> dict[str, Any]:
    """Errors per statistic, what is refused, and the statistics that are wrong ("unequal")."""
    q, k, terms = problem(variant, device, smoke)
    want, refused = supported(q, k, terms)
    if not want:
        return {"refused": refused, "unequal": [], "errors": {}}
    terms = {name: terms[name] for name in _used(want, terms)}
    double = {name: _double(x) for name, x in terms.items()}
    expected = attention_stats(q.double().cpu(), k.double().cpu(), want, backend="naive", **double)
    map_terms = {name: x for name, x in double.items() if name in MAP_TERMS}
    p = pattern(q.double().cpu(), k.double().cpu(), backend="naive", **map_terms)
    allowed = SHARP if variant == "sharp" else ALLOWED
    found, failed = _computed(q, k, [want], terms)
    groups = [want]
    if failed:
        # One by one, so that one statistic does not hide the others.
        groups = [(name,) for name in want]
        found, failed = _computed(q, k, groups, terms)
        failed = failed or {"all together": "fails, and each alone does not"}
    errors: dict[str, float | str] = dict(failed)
    for name, x in found.items():
        errors[name] = error_of(name, x.cpu(), expected[name], p)
    unequal = [name for name, e in errors.items() if isinstance(e, str) or not e <= allowed]
    # The same calls again: another grouping may add in another order.
    again, _ = _computed(q, k, [names for names in groups if names[0] in found], terms)
    moved = [name for name in again if not _same(found[name], again[name])]
    return {
        "refused": refused, "unequal": unequal, "bits_differ": moved, "errors": errors,
        "allowed": allowed,
    }  # fmt: skip


def _computed(
    q: torch.Tensor, k: torch.Tensor, groups: list[tuple[str, ...]], terms: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(statistics, {first name of a group: what it failed with}) of one call per group."""
    from concurrent.futures import ThreadPoolExecutor

    found: dict[str, torch.Tensor] = {}
    failed: dict[str, str] = {}
    stop = time.monotonic() + _ALONE
    with ThreadPoolExecutor(1) as pool:
        for names in groups:
            if time.monotonic() > stop:
                failed[names[0]] = "not tried: no time left"
                continue
            own = {name: terms[name] for name in _used(names, terms)}
            done = pool.submit(attention_stats, q, k, names, backend="triton", **own)
            error = done.exception()
            if error is None:
                found |= done.result()
            else:
                failed[names[0]] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return found, failed


def _used(want: tuple[str, ...], terms: dict[str, Any]) -> list[str]:
    """Names of the given terms that describe the map, or that a wanted statistic reads."""
    needed = {argument for name in want for argument in NEEDS.get(name, ())}
    kept = {*MAP_TERMS, "query_valid", "lse", *needed}
    return [name for name in terms if name in kept]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    return bool(((a == b) | (torch.isnan(a) & torch.isnan(b))).all())


def _double(x: Any) -> Any:
    """On the CPU, floats as float64."""
    if hasattr(x, "is_floating_point"):
        return x.cpu().double() if x.is_floating_point() else x.cpu()
    return x


def supported(
    q: torch.Tensor, k: torch.Tensor, terms: dict[str, Any]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """(statistics the Triton backend takes with these terms, {statistic: what it refuses})."""
    refuses = BACKENDS["triton"]().refuses
    given = dict.fromkeys(TERMS) | {"causal": False} | terms
    checked = check_terms(check_qk(q, k), given, q.device, k.shape[1])
    want, refused = [], {}
    for name in STATS:
        used = set(_used((name,), terms))
        own = {t: x for t, x in checked.items() if t in used or terms.get(t) is None}
        reason = refuses(q, (name,), own)
        if reason is None:
            want.append(name)
        else:
            refused[name] = reason
    return tuple(want), refused


def problem(
    variant: str, device: str, smoke: bool
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """(q [B, H, Q, D], k [B, Hkv, K, D], terms) of a variant; values drawn on the CPU."""
    import torch

    shape = _SHAPES.get(variant, (1, 8, 2, 512, 512, 128))
    if smoke:
        shape = (1, 2, 1, 24, 24, 16) if shape[3] == shape[4] else (1, 2, 1, 21, 25, 24)
    b, h, h_kv, n_q, n_k, d = shape
    # The interpreter multiplies the bit patterns of bfloat16.
    usual = "float32" if device == "cpu" else "bfloat16"
    dtype = getattr(torch, _DTYPES.get(variant, usual))
    made = torch.Generator().manual_seed(0)
    spread = _SPREAD.get(variant, 2.0)
    q = (torch.randn(b, h, n_q, d, generator=made) * spread).to(dtype)
    k = torch.randn(b, h_kv, n_k, d, generator=made).to(dtype)
    terms = arguments(shape, made) | variations(variant, q, k, made)
    moved = {name: x.to(device) if hasattr(x, "device") else x for name, x in terms.items()}
    moved["v"] = moved["v"].to(dtype)
    return q.to(device), k.to(device), moved


def arguments(shape: tuple[int, int, int, int, int, int], made: torch.Generator) -> dict[str, Any]:
    """What the statistics need beside q and k. Features are positive: sums that cancel have no
    relative error."""
    import torch

    b, _, h_kv, n_q, n_k, d = shape

    def whole(low: int, high: int, n: int) -> torch.Tensor:
        return torch.randint(low, high, (b, n), generator=made)

    ids = whole(0, 7, max(n_q, n_k))
    return {
        "causal": True,
        "v": torch.rand(b, h_kv, n_k, d, generator=made),
        "query_ids": ids[:, ids.shape[1] - n_q :], "key_ids": ids[:, ids.shape[1] - n_k :],
        "query_segments": whole(-1, 3, n_q), "key_segments": whole(-1, 3, n_k), "n_segments": 3,
        "query_features": torch.rand(b, n_q, 5, generator=made),
        "key_features": torch.rand(b, n_k, 5, generator=made),
        "offsets": (0, 1, 3, 17), "keys": torch.tensor([0, n_k // 2, n_k - 1]),
        "horizon": (1, 20), "waad_window": 10, "local_window": 8, "topk": 4,
        "pool": max(16, n_k // 128),
    }  # fmt: skip


def variations(
    variant: str, q: torch.Tensor, k: torch.Tensor, made: torch.Generator
) -> dict[str, Any]:
    """The terms a variant adds; "padded" also spoils q and k where they are padding."""
    import math

    import torch

    (b, h, n_q, _), n_k = q.shape, k.shape[2]
    if variant == "not_causal":
        return {"causal": False}
    if variant == "window":
        sink = torch.randn(h, generator=made)
        return {"window": max(n_k // 3, 2), "softcap": 20.0, "sink_logit": sink}
    if variant == "padded":
        queries, keys = torch.ones(b, n_q, dtype=torch.bool), torch.ones(b, n_k, dtype=torch.bool)
        queries[:, :3] = keys[:, :3] = keys[:, -2:] = queries[:, -2:] = False
        q.masked_fill_(~queries[:, None, :, None], math.nan)
        k.masked_fill_(~keys[:, None, :, None], math.nan)
        return {"key_valid": keys, "query_valid": queries}
    if variant == "packed":
        rows = torch.arange(n_q).mul(3).div(n_q, rounding_mode="floor").expand(b, n_q).contiguous()
        return {"query_sequence": rows, "key_sequence": rows.clone()}
    if variant == "alibi":
        return {"alibi": 2.0 ** -torch.arange(1, h + 1).float()}
    if variant == "lse_given":
        exact = attention_stats(q.double(), k.double(), ["lse"], causal=True, backend="naive")
        return {"lse": exact["lse"].float()}
    return {}


def error_of(name: str, found: torch.Tensor, expected: torch.Tensor, p: torch.Tensor) -> float:
    """Largest |found - expected| / max(|expected|, SMALL), infinite where NaN or infinities are
    elsewhere. Keys are compared by their weight in p [B, H, Q, K]: two may tie."""
    import torch

    if name in ("argmax", "top_keys"):
        a, b = (x if name == "top_keys" else x[..., None] for x in (found, expected))
        none = (a < 0) | (b < 0)
        if bool(((a < 0) != (b < 0)).any()):
            return float("inf")
        found, expected = (p.gather(-1, x.clamp(min=0)).masked_fill(none, 0.0) for x in (a, b))
    elif name in INT_STATS:
        return 0.0 if torch.equal(found, expected) else float("inf")
    found, expected = found.double(), expected.double()
    odd = ~torch.isfinite(expected)
    if not torch.equal(
        torch.nan_to_num(found[odd], nan=7e77), torch.nan_to_num(expected[odd], nan=7e77)
    ):
        return float("inf")
    # lse is a logarithm: its absolute error is the relative error of the sum behind it.
    small = 1.0 if name == "lse" else SMALL
    off = ((found - expected).abs() / expected.abs().clamp(min=small))[~odd]
    if not off.numel():
        return 0.0
    return float("inf") if bool(off.isnan().any()) else float(off.max())
