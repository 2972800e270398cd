"""What the contract of the kernels is tested on: draws, terms of a map by name, and the comparison.

A comparison is by relative error. Sums are measured against the same sum over |p| (and |v|, |F|):
where terms of both signs cancel, that is what their rounding is proportional to; where they do not,
it is the expected value itself.

Dims: B batch, H query heads, Hkv key/value heads, Q queries, K keys, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from workbench.kernels.attention_stats import (
    MAP_TERMS,
    LowRankBias,
    Neighbourhood,
    Strided,
    attention_stats,
    pattern,
    stats_from_pattern,
)
from workbench.kernels.attention_stats.terms import INT_STATS, SOFTMAX_ONLY, STATS

# Below this a mass is compared as if it were this large.
SMALL = 1e-6
# No sums of p with weights: compared with the value itself.
NOT_SUMS = (
    "lse", "entropy", "key_entropy", "key_var", "argmax", "top_keys", "n_visible", "key_count",
    "max_prob", "key_max", "block_max", "top_probs", "null_mass",
)  # fmt: skip
# What a backend has only as the difference of two larger numbers, as its module says: entropy from
# lse, waad from its window.
DIFFERENCES = {"stock": ("entropy", "waad"), "triton": ("waad",)}
VISIBILITY = (
    "causal", "query_offset", "window", "mask", "key_valid", "key_lengths", "query_sequence",
    "key_sequence",
)  # fmt: skip

Terms = dict[str, Any]


def make(
    b: int, h: int, h_kv: int, n_q: int, n_k: int, d: int, *, seed: int = 0, spread: float = 2.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """q, k with logits of standard deviation `spread`."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(b, h, n_q, d, generator=g) * spread
    return q.to(dtype), torch.randn(b, h_kv, n_k, d, generator=g).to(dtype)


def of_eighty(b: int, h: int, h_kv: int, n_q: int, n_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k of width 64 with logits beyond +-80."""
    q, k = make(b, h, h_kv, n_q, n_k, 64, spread=20.0)
    s = torch.einsum("bhqd,bhkd->bhqk", q, k.repeat_interleave(h // h_kv, 1)) / 8
    assert s.max() > 80
    assert s.min() < -80
    return q, k


def with_a_heavy_key(b: int, h: int, h_kv: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k of width 32 in which every logit of key 0 is log(1000) above what it was: one more
    dimension says so."""
    q, k = make(b, h, h_kv, n, n, 31, spread=0.3)
    q = torch.cat([q, torch.full_like(q[..., :1], 32**0.5)], -1)
    k = torch.cat([k, torch.zeros_like(k[..., :1])], -1)
    k[:, :, 0, -1] = math.log(1000.0)
    return q, k


def padded_with_nan(h: int) -> tuple[torch.Tensor, torch.Tensor, Terms]:
    """q, k whose padding holds NaN, and the terms that say so: left padding, a hole, a prompt of
    nothing; one kv head, 50 positions of width 32."""
    q, k = make(3, h, 1, 50, 50, 32)
    valid = ragged(3, 50)
    valid[2] = False
    padding = ~valid[:, None, :, None]
    q, k = q.masked_fill(padding, math.nan), k.masked_fill(padding, math.nan)
    return q, k, {"causal": True, "key_valid": valid, "query_valid": valid}


def extras(
    b: int, h_kv: int, n_q: int, n_k: int, *, d_v: int = 5, seed: int = 1, vocabulary: int = 11
) -> Terms:
    """Every argument that a statistic needs: ids with many repeats, segments with gaps, features
    and values of both signs, a v whose width is not that of q and k."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (b, max(n_q, n_k)), generator=g)
    return {
        "query_ids": ids[:, ids.shape[1] - n_q :],
        "key_ids": ids[:, ids.shape[1] - n_k :],
        "query_segments": torch.randint(-1, 3, (b, n_q), generator=g),
        "key_segments": torch.randint(-1, 3, (b, n_k), generator=g),
        "n_segments": 3,
        "first_key": torch.randint(min(4, n_k), (b,), generator=g),
        "v": torch.randn(b, h_kv, n_k, d_v, generator=g),
        "query_features": torch.randn(b, n_q, 2, generator=g),
        "key_features": torch.randn(b, h_kv, n_k, 3, generator=g),
        "keys": torch.randint(n_k, (b, 4), generator=g),
        "offsets": (0, 1, 5, -2),
        "horizon": (2, 20),
        "waad_window": 6,
        "local_window": 4,
        "pool": (16, 7),
        "topk": 5,
        "power": 3,
    }


def names_for(terms: Terms) -> tuple[str, ...]:
    """All statistics that are defined for the activation."""
    if terms.get("activation", "softmax") == "softmax":
        return STATS
    return tuple(name for name in STATS if name not in SOFTMAX_ONLY)


def map_terms(terms: Terms) -> Terms:
    """Those of a call that describe the map."""
    return {name: x for name, x in terms.items() if name in MAP_TERMS}


def relative_error(found: Any, expected: Any, small: float = SMALL, size: Any = None) -> float:
    """Largest |found - expected| / max(size, small), size = |expected| unless given; NaN and
    infinities must sit in the same places."""
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    assert found.shape == expected.shape
    assert torch.equal(found.isnan(), expected.isnan())
    ends = expected.isinf()
    assert torch.equal(found[ends], expected[ends])
    usual = ~(ends | expected.isnan())
    if not bool(usual.any()):
        return 0.0
    size = expected.abs() if size is None else torch.as_tensor(size).double()
    return float(((found - expected).abs() / size.clamp(min=small))[usual].max())


def errors(
    backend: str, q: torch.Tensor, k: torch.Tensor, want: Iterable[str], terms: Terms
) -> dict[str, float]:
    """Relative error of every statistic of `want` against `naive` on the same values."""
    want = tuple(want)
    found = attention_stats(q, k, want, backend=backend, **terms)
    assert tuple(found) == want
    exact = (q.double(), k.double())
    beside = () if "activation" in terms else ("lse",)
    expected = attention_stats(
        *exact, (*want, "key_mean", "key_mass", *beside), backend="naive", **terms
    )
    p = pattern(*exact, backend="naive", **map_terms(terms))
    sizes = _sizes(backend, p, want, expected, terms)
    # Scores that are not exponentiated have the error of their own size, not of their difference.
    least = float(p.abs().mean()) if terms.get("activation") in ("relu", "linear") else SMALL
    out = {}
    for name in want:
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        assert found[name].dtype == (torch.int64 if name in INT_STATS else wide), name
        if name in ("argmax", "top_keys"):
            out[name] = _weight_lost(p, found[name], expected[name], terms, least)
        else:
            # lse is a logarithm: its absolute error is the relative one of the sum behind it.
            small = {"lse": 1.0, "key_var": least**2}.get(name, least)
            out[name] = relative_error(found[name], expected[name], small, sizes.get(name))
    return out


def variance_size(var: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """A variance moves by 2 std rms when p moves by its own rounding; asked for down to a std of a
    hundredth of the rms, where the rounding of a mean square in float32 shows."""
    square = var + mean**2
    return torch.maximum(torch.sqrt(var * square), 1e-2 * square)


def _sizes(
    backend: str, p: torch.Tensor, want: tuple[str, ...], expected: Terms, terms: Terms
) -> dict[str, torch.Tensor]:
    """What rounding is proportional to: for sums the same sums over |p| with weights |v|, |F| and
    |G|; for differences the larger of the two."""
    names = [name for name in want if name not in NOT_SUMS]
    own = {
        name: x
        for name, x in terms.items()
        if name in VISIBILITY or (name not in MAP_TERMS and name != "lse")
    }
    for name in ("v", "query_features", "key_features"):
        if own.get(name) is not None:
            own[name] = own[name].abs()
    out = stats_from_pattern(p.double().abs(), names, **own)
    if "participation" in want:  # p^a moves a times as far as p
        out["participation"] = out["participation"] * terms.get("power", 2)
    if "key_var" in want:
        out["key_var"] = variance_size(expected["key_var"], expected["key_mean"])
    if "key_entropy" in want:
        # Shares of less than float32 can hold to seven digits have no entropy to compare.
        none = expected["key_mass"] < 1e-30
        out["key_entropy"] = expected["key_entropy"].masked_fill(none, 1.0)
    for name in DIFFERENCES.get(backend, ()):
        if name in want:
            larger = expected["lse"] if name == "entropy" else torch.tensor(terms["waad_window"])
            out[name] = torch.maximum(expected[name], larger.abs().clamp(min=1.0))
    return out


def _weight_lost(
    p: torch.Tensor, found: torch.Tensor, expected: torch.Tensor, terms: Terms, small: float
) -> float:
    """Two keys closer than rounding may swap: what counts is the weight. -1, and 0 in rows of
    invalid queries, are compared exactly; no key comes twice."""
    chosen, best = (x if x.dim() == 4 else x[..., None] for x in (found, expected))
    assert torch.equal(chosen < 0, best < 0)
    valid = terms.get("query_valid")
    if valid is not None and found.dim() == 3:
        assert not found[~valid[:, None].expand_as(found)].any()
        p = p.masked_fill(~valid[:, None, :, None], 0.0)
    order = chosen.sort(-1).values
    assert not ((order[..., 1:] == order[..., :-1]) & (order[..., 1:] >= 0)).any()
    weight, expected_weight = (
        p.gather(-1, x.clamp(min=0)).masked_fill(x < 0, 0.0) for x in (chosen, best)
    )
    return relative_error(weight, expected_weight, small)


def ragged(b: int, n: int) -> torch.Tensor:
    """Bool [B, n]: left padding and a hole in the first prompt, right padding in the others."""
    valid = torch.ones(b, n, dtype=torch.bool)
    valid[0, : n // 5] = False
    valid[0, n // 2 : n // 2 + 3] = False
    valid[1:, n - n // 4 :] = False
    return valid


def sequences(b: int, n_q: int, n_k: int) -> Terms:
    """Packed texts of unequal lengths; the last key sequence has no query."""
    queries = torch.arange(n_q).mul(4).div(max(1, n_q), rounding_mode="floor")
    keys = torch.arange(n_k).mul(5).div(max(1, n_k), rounding_mode="floor")
    return {
        "query_sequence": queries.expand(b, n_q).contiguous(),
        "key_sequence": keys.expand(b, n_k).contiguous(),
    }


def some_mask(*shape: int, seed: int = 2) -> torch.Tensor:
    """Random visibility with one row that sees nothing and one key that nobody sees."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) > 0.4
    if mask.dim() > 1 and mask.shape[-2] > 1:
        mask[..., mask.shape[-2] // 2, :] = False
    mask[..., mask.shape[-1] // 3] = False
    return mask


def some_bias(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _grid(n_k: int) -> tuple[int, int]:
    height = next(x for x in range(math.isqrt(n_k), 0, -1) if n_k % x == 0)
    return height, n_k // height


# Terms of a map by name, each a function of (B, H, Q, K).
MAPS: dict[str, Callable[..., Terms]] = {
    "full": lambda b, h, n, m: {},
    "causal": lambda b, h, n, m: {"causal": True},
    "window": lambda b, h, n, m: {"causal": True, "window": 19},
    "window of one": lambda b, h, n, m: {"causal": True, "window": 1},
    "two-sided window": lambda b, h, n, m: {"window": 19},
    "window with offset": lambda b, h, n, m: {"window": 30, "query_offset": 25},
    "offset before the keys": lambda b, h, n, m: {"causal": True, "query_offset": -40},
    "offset beyond the keys": lambda b, h, n, m: {"causal": True, "query_offset": 2 * m},
    "window that left the keys": lambda b, h, n, m: {
        "causal": True, "query_offset": m - 20, "window": 15,
    },
    "scale": lambda b, h, n, m: {"causal": True, "scale": 0.3},
    "scale below zero": lambda b, h, n, m: {"scale": -0.2},
    "softcap": lambda b, h, n, m: {"causal": True, "softcap": 3.0},
    "sink": lambda b, h, n, m: {
        "causal": True,
        "sink_logit": torch.tensor([-math.inf, 0.0, 30.0, -3.0, 2.0, 1.0])[:h],
    },
    "mask": lambda b, h, n, m: {"mask": some_mask(b, h, n, m)},
    "mask of all heads": lambda b, h, n, m: {"mask": some_mask(b, 1, n, m)},
    "mask of keys": lambda b, h, n, m: {"mask": some_mask(m), "causal": True},
    "bias": lambda b, h, n, m: {"bias": some_bias(1, h, n, m)},
    "bias of keys, causal": lambda b, h, n, m: {"bias": some_bias(b, 1, 1, m), "causal": True},
    "bias of minus infinity": lambda b, h, n, m: {
        "bias": torch.zeros(b, 1, n, m).masked_fill(~some_mask(b, 1, n, m), -math.inf)
    },
    "bias of the lowest float": lambda b, h, n, m: {
        "bias": some_bias(n, m).masked_fill(~some_mask(n, m), torch.finfo(torch.float32).min),
        "causal": True,
    },
    "low-rank bias": lambda b, h, n, m: {
        "bias": LowRankBias(some_bias(1, h, n, 3), some_bias(b, 1, m, 3, seed=4))
    },
    "neighbourhood": lambda b, h, n, m: {"mask": Neighbourhood((m,), (7,), (3,))},
    "neighbourhood of a grid": lambda b, h, n, m: {
        "mask": Neighbourhood(_grid(m), (3, 5)), "query_offset": m - n,
    },
    "strided": lambda b, h, n, m: {"mask": Strided(3, 7), "causal": True},
    "alibi": lambda b, h, n, m: {
        "alibi": torch.tensor([0.5, 0.25, 0.02, 0.0, 1.0, 0.1])[:h], "causal": True,
    },
    "two-sided alibi": lambda b, h, n, m: {"alibi": torch.full((h,), 0.06)},
    "key_valid": lambda b, h, n, m: {"key_valid": ragged(b, m)},
    "key_lengths": lambda b, h, n, m: {
        "key_lengths": torch.arange(b) * (m // 2) + m // 3, "causal": True,
    },
    "key_valid and key_lengths": lambda b, h, n, m: {
        "key_valid": ragged(b, m), "key_lengths": torch.full((b,), m - m // 3),
    },
    "sequences": lambda b, h, n, m: sequences(b, n, m),
    "causal sequences": lambda b, h, n, m: {"causal": True, **sequences(b, n, m)},
    "relu": lambda b, h, n, m: {"activation": "relu", "causal": True},
    "linear": lambda b, h, n, m: {"activation": "linear", "key_valid": ragged(b, m)},
    "sigmoid": lambda b, h, n, m: {"activation": "sigmoid", "causal": True, "softcap": 4.0},
    "everything at once": lambda b, h, n, m: {
        "causal": True, "window": 60, "softcap": 5.0, "scale": 0.2, "query_offset": m - n + 3,
        "sink_logit": torch.linspace(-1, 1, h), "bias": some_bias(1, 1, n, m),
        "mask": some_mask(b, h, n, m), "alibi": torch.linspace(0, 0.1, h),
        "key_valid": ragged(b, m), **sequences(b, n, m),
    },
}  # fmt: skip
