"""Tiles and pyramids against the same part, or the direct reduction, of the whole float64 map.

Allowed: 2e-5 of each weight for float32 input (achieved: 2e-6), 1e-11 for float64.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.kernels.cases import relative_error
from workbench.kernels.attention_stats import (
    LowRankBias,
    Neighbourhood,
    Strided,
    attention_stats,
    pattern,
)
from workbench.kernels.attention_stats.tiles import pyramid, tile

B, H, H_KV, Q, K, D = 2, 4, 2, 44, 60, 16


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(n_q: int = Q, n_k: int = K, dtype: torch.dtype = torch.float64) -> tuple:
    return random(B, H, n_q, D).mul(2).to(dtype), random(B, H_KV, n_k, D, seed=1).to(dtype)


def dense_mask(*shape: int) -> torch.Tensor:
    """One row in it sees nothing."""
    mask = random(*shape, seed=2) > -0.3
    mask[..., shape[-2] // 2, :] = False
    return mask


def hiding_bias() -> torch.Tensor:
    bias = random(B, H, Q, K, seed=3)
    return bias.masked_fill(random(B, H, Q, K, seed=4) > 0.8, -torch.inf)


def runs(n: int) -> torch.Tensor:
    """Three packed sequences, of other lengths in each prompt."""
    return torch.stack([torch.arange(n) * 3 // n, (torch.arange(n) > n // 4).long() * 2])


# Every argument that describes a map, alone and with others.
TERMS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "scale": {"scale": 0.3},
    "offset": {"causal": True, "query_offset": 5},
    "offset before the keys": {"causal": True, "query_offset": -7},
    "window": {"causal": True, "window": 9},
    "two-sided window": {"window": 9, "query_offset": 8},
    "softcap": {"softcap": 3.0},
    "sink": {"causal": True, "sink_logit": torch.tensor([-math.inf, 0.0, 9.0, -3.0])},
    "mask": {"mask": dense_mask(B, H, Q, K)},
    "mask of keys": {"mask": dense_mask(1, 1, 3, K)[:, :, :1]},
    "two-dim mask": {"mask": dense_mask(Q, K)},
    "neighbourhood": {"mask": Neighbourhood((6, 10), (3, 5)), "query_offset": 4},
    "strided": {"mask": Strided(3, 5), "causal": True},
    "bias": {"bias": hiding_bias(), "causal": True},
    "low rank": {"bias": LowRankBias(random(1, H, Q, 2, seed=5), random(B, 1, K, 2, seed=6))},
    "alibi": {"alibi": torch.tensor([0.1, 0.5, 0.0, 1.0]), "causal": True},
    "two-sided alibi": {"alibi": torch.tensor([0.1, 0.5, 0.0, 1.0]), "query_offset": 3},
    "padding": {"key_valid": dense_mask(B, 2, K)[:, 0], "causal": True},
    "lengths": {"key_lengths": torch.tensor([K, 11])},
    "sequences": {"query_sequence": runs(Q), "key_sequence": runs(K)},
    "relu": {"activation": "relu", "causal": True, "mask": dense_mask(1, H, Q, K)},
    "linear": {"activation": "linear", "causal": True, "window": 9},
    "sigmoid": {"activation": "sigmoid", "mask": Strided(3, 5), "softcap": 3.0},
}
# Corners, the middle, all of it, one entry.
RECTANGLES = [
    (slice(0, 7), slice(0, 9)),
    (slice(0, 7), slice(-9, None)),
    (slice(-7, None), slice(0, 9)),
    (slice(-7, 99), slice(-9, 99)),
    (slice(20, 31), slice(17, 40)),
    (slice(None), slice(None)),
    (slice(22, 23), slice(30, 31)),
]


def rows_of(q: torch.Tensor, k: torch.Tensor, terms: dict[str, Any]) -> torch.Tensor | None:
    """lse as stored; none for rows that are no softmax."""
    if "activation" in terms:
        return None
    return attention_stats(q, k, ["lse"], backend="naive", **terms)["lse"]


@pytest.mark.parametrize("backend", ["naive", "torch"])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_tiles_are_parts_of_the_map(terms: dict[str, Any], backend: str) -> None:
    q, k = make()
    whole = pattern(q, k, backend="naive", **terms)
    assert whole.count_nonzero() > 500
    lse = rows_of(q, k, terms)
    errors = []
    for rows, keys in RECTANGLES:
        found = tile(q, k, lse, rows, keys, backend=backend, **terms)
        expected = whole[:, :, rows, keys]
        assert torch.equal(found == 0, expected == 0)
        errors.append(relative_error(found, expected, 1e-300))
    assert max(errors) < 1e-11, f"{max(errors):.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    q, k = make(dtype=dtype)
    whole = pattern(q.double(), k.double(), causal=True, backend="naive")
    lse = attention_stats(q, k, ["lse"], causal=True)["lse"]
    found = tile(q, k, lse, slice(5, 40), slice(10, 50), causal=True)
    assert found.dtype == torch.float32
    assert relative_error(found, whole[:, :, 5:40, 10:50]) < 2e-5


def test_every_map_term_is_tried() -> None:
    from workbench.kernels.attention_stats import MAP_TERMS

    tried = {name for terms in TERMS.values() for name in terms}
    assert tried == set(MAP_TERMS)


def test_rows_that_see_nothing_and_rows_of_padding() -> None:
    """Whatever lse such a row was given by a kernel, it is 0; NaN is kept."""
    q, k = make()
    mask = dense_mask(1, 1, Q, K)
    lse = attention_stats(q, k, ["lse"], mask=mask)["lse"]
    assert bool(lse[..., Q // 2].isneginf().all())
    lse[..., 3] = math.nan
    for value in (-math.inf, 0.0, torch.finfo(torch.float32).min):
        lse[..., Q // 2] = value
        found = tile(q, k, lse, slice(None), slice(0, 20), mask=mask)
        assert not found[:, :, Q // 2].any()
        assert bool(found[:, :, 3].isnan().all())
        assert int(found.isnan().any(-1)[0, 0].sum()) == 1


def test_keys_that_nobody_sees_may_hold_anything() -> None:
    q, k = make()
    valid = torch.arange(K)[None].expand(B, K) < 50
    dirty = k.clone()
    dirty[:, :, 50:] = math.nan
    lse = attention_stats(q, k, ["lse"], key_valid=valid)["lse"]
    part = (slice(4, 9), slice(45, 60))
    assert torch.equal(*(tile(q, x, lse, *part, key_valid=valid) for x in (k, dirty)))


@pytest.mark.parametrize("part", [(slice(9, 9), slice(0, 4)), (slice(0, 4), slice(K, None))])
def test_an_empty_slice_gives_an_empty_tile(part: tuple[slice, slice]) -> None:
    q, k = make(dtype=torch.bfloat16)
    found = tile(q, k, torch.zeros(B, H, Q), *part)
    assert found.shape == torch.empty(B, H, Q, K)[:, :, *part].shape
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": slice(0, 9, 2)}, "rows has step 2"),
        ({"lse": None}, "lse is None"),
        ({"lse": torch.zeros(1, H, Q)}, r"lse has shape \(1, 4, 44\)"),
        ({"activation": "relu"}, "lse is given with activation 'relu'"),
        ({"pool": 3}, "tile has no argument 'pool'"),
        ({"mask": torch.ones(3, 5).bool()}, "mask has shape"),
        ({"backend": "fast"}, "unknown backend 'fast'"),
    ],
)
def test_bad_tiles_are_refused(change: dict[str, Any], message: str) -> None:
    q, k = make()
    terms = {"lse": torch.zeros(B, H, Q), "rows": slice(0, 9), "keys": slice(0, 9)} | change
    with pytest.raises(ValueError, match=message):
        tile(q, k, **terms)


def test_a_tile_of_a_hundred_thousand_tokens() -> None:
    """The map would hold 10^10 entries. lse of the rows of the tile is written out in float64; no
    tensor the size of a row strip is made on the way."""
    n, rows, keys = 100_000, slice(99_000, 99_100), slice(98_950, 99_020)
    q, k = random(1, 2, n, 8), random(1, 1, n, 8, seed=1)
    s = q[:, :, rows].double() @ k.double().transpose(2, 3) * 8**-0.5
    later = torch.arange(n) > torch.arange(n)[rows, None]
    s.masked_fill_(later, -math.inf)
    lse = torch.zeros(1, 2, n)
    lse[:, :, rows] = s.logsumexp(-1)
    sequence = torch.zeros(1, n, dtype=torch.long)
    terms = {"causal": True, "query_sequence": sequence, "key_sequence": sequence}
    with torch.profiler.profile(profile_memory=True) as seen:
        found = tile(q, k, lse, rows, keys, backend="naive", **terms)
    expected = (s - lse[:, :, rows, None].double()).exp()[..., keys]
    assert relative_error(found, expected) < 2e-5
    largest = max(event.cpu_memory_usage for event in seen.events() or [])
    assert largest < 1 << 20


def blocks(p: torch.Tensor, size: int, reduce: str) -> torch.Tensor:
    """Blocks of size x size of a whole map, one at a time."""
    n, m = (math.ceil(x / size) for x in p.shape[2:])
    out = torch.zeros(*p.shape[:2], n, m, dtype=p.dtype)
    for a in range(n):
        for b in range(m):
            block = p[:, :, a * size : (a + 1) * size, b * size : (b + 1) * size]
            kinds = {"max": block.amax, "sum": block.sum, "mean": block.mean}
            out[:, :, a, b] = kinds[reduce]((2, 3))
    return out


@pytest.mark.parametrize("backend", ["naive", "torch"])
@pytest.mark.parametrize("reduce", ["max", "sum", "mean"])
@pytest.mark.parametrize(
    ("n_q", "n_k", "size"), [(44, 60, 16), (61, 61, 7), (1, 60, 8), (9, 5, 99)]
)
def test_pyramid(n_q: int, n_k: int, size: int, reduce: str, backend: str) -> None:
    """Every level is the reduction of the map itself, ragged ends included."""
    q, k = make(n_q, n_k)
    terms: dict[str, Any] = {"causal": True, "sink_logit": random(H, seed=9)}
    whole = pattern(q, k, backend="naive", **terms)
    levels = pyramid(q, k, size=size, reduce=reduce, backend=backend, **terms)
    pool = math.ceil(max(n_q, n_k) / size)
    assert max(levels[0].shape[2:]) <= size
    assert levels[-1].shape == (B, H, 1, 1)
    for n, level in enumerate(levels):
        assert relative_error(level, blocks(whole, pool << n, reduce)) < 1e-11
    assert len(levels) == 1 + max(0, math.ceil(math.log2(max(levels[0].shape[2:]))))


def test_pyramid_of_padded_prompts() -> None:
    q, k = make()
    terms = {"key_valid": dense_mask(B, 2, K)[:, 0], "query_valid": dense_mask(B, 2, Q)[:, 0]}
    whole = pattern(q, k, backend="naive", key_valid=terms["key_valid"])
    whole = whole * terms["query_valid"][:, None, :, None]
    for reduce in ("max", "sum"):
        for n, level in enumerate(pyramid(q, k, size=5, reduce=reduce, backend="naive", **terms)):
            assert relative_error(level, blocks(whole, 12 << n, reduce)) < 1e-11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"reduce": "median"}, "reduce is 'median'; expected one of max, sum, mean"),
        ({"activation": "linear"}, "weights may be negative"),
        ({"pool": 3}, "pyramid has no argument 'pool'"),
        ({"q": torch.zeros(B, H, 0, D).double()}, "q has 0 queries"),
    ],
)
def test_bad_pyramids_are_refused(change: dict[str, Any], message: str) -> None:
    q, k = make()
    with pytest.raises(ValueError, match=message):
        pyramid(**({"q": q, "k": k} | change))
