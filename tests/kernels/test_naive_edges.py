"""The ends of what may be asked of the specification: nothing to see, nobody to see it, one token,
padding that holds NaN, more keys wanted than there are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels.cases import Terms, extras, make, ragged, some_mask
from workbench.kernels.attention_stats import (
    BLOCK_STATS,
    COLUMN_STATS,
    ROW_STATS,
    STATS,
    attention_stats,
    pattern,
    stats_from_pattern,
)
from workbench.kernels.attention_stats import naive as naive_module
from workbench.kernels.attention_stats.terms import INT_STATS, MEAN_STATS, WIDE_ROWS

B, H, HKV, Q, K, D = 2, 4, 2, 13, 17, 8
MAP_ONLY = tuple(name for name in STATS if name != "lse")


def naive(q: torch.Tensor, k: torch.Tensor, want: Any = STATS, **terms: Any) -> dict:
    return attention_stats(q, k, want, backend="naive", **terms)


def shapes(n_q: int, n_k: int, more: Terms) -> dict[str, tuple[int, ...]]:
    """What the package promises, in its own words."""
    rows, columns = more["pool"]
    last = {
        "role_mass": more["n_segments"],
        "feature_mass": more["key_features"].shape[-1],
        "offset_mass": len(more["offsets"]),
        "keys_mass": more["keys"].shape[-1],
        "top_keys": more["topk"],
        "top_probs": more["topk"],
        "output": more["v"].shape[-1],
    }
    assert set(last) == set(WIDE_ROWS)
    found = {name: (B, H, n_q, *([last[name]] if name in last else [])) for name in ROW_STATS}
    found |= {name: (B, H, n_k) for name in COLUMN_STATS}
    found["query_feature_mass"] = (B, H, n_k, more["query_features"].shape[-1])
    blocks = (B, H, math.ceil(n_q / rows), math.ceil(n_k / columns))
    found |= {"block_mass": blocks, "block_max": blocks}
    found["segment_mean"] = (B, H, more["n_segments"], more["n_segments"])
    found["diagonal_mass"] = (B, H, n_q + n_k - 1)
    return found


@pytest.mark.parametrize("n_q", [0, 1, Q])
@pytest.mark.parametrize("n_k", [1, K])
@pytest.mark.parametrize("causal", [False, True])
def test_shapes_and_dtypes(n_q: int, n_k: int, causal: bool) -> None:
    """As documented, also without queries; int64, float32, and float64 for float64."""
    more = extras(B, HKV, n_q, n_k)
    for dtype in (torch.float32, torch.float64):
        found = naive(*make(B, H, HKV, n_q, n_k, D, dtype=dtype), causal=causal, **more)
        assert tuple(found) == STATS
        for name, shape in shapes(n_q, n_k, more).items():
            assert tuple(found[name].shape) == shape, name
            assert found[name].dtype == (torch.int64 if name in INT_STATS else dtype), name
        if n_q == 0:
            for name in COLUMN_STATS + BLOCK_STATS:
                nothing = found[name].nan_to_num(-1.0)
                mean_of_nothing = name in MEAN_STATS or name == "segment_mean"
                assert bool((nothing == (-1 if mean_of_nothing else 0)).all()), name


@pytest.mark.parametrize("sinks", [False, True])
def test_rows_that_see_nothing(sinks: bool) -> None:
    """Masses, entropy, argmax and n_visible 0; lse -inf, or the sink logit, which then holds all;
    no key to list."""
    q, k = make(B, H, HKV, Q, K, D)
    more = extras(B, HKV, Q, K)
    logits = torch.tensor([1.5, -math.inf, 0.0, -3.0])
    terms: Terms = {"mask": some_mask(B, H, Q, K), "sink_logit": logits if sinks else None}
    found = naive(q, k, ROW_STATS, **terms, **more)
    row = Q // 2
    for name, x in found.items():
        expected = torch.zeros_like(x[:, :, row])
        if name == "lse":
            expected = (logits if sinks else torch.full((H,), -math.inf)).expand(B, H)
        elif name == "null_mass" and sinks:
            expected = torch.tensor([1.0, 0.0, 1.0, 1.0]).expand(B, H)
        elif name == "top_keys":
            expected = expected - 1
        assert torch.equal(x[:, :, row], expected), name


def test_keys_that_nobody_sees() -> None:
    """0, and NaN for what is a mean."""
    q, k = make(B, H, HKV, Q, K, D)
    more = extras(B, HKV, Q, K) | {"horizon": (0, None), "query_offset": K}
    found = naive(q, k, COLUMN_STATS, mask=some_mask(B, H, Q, K), **more)
    for name, x in found.items():
        column = x[:, :, K // 3]
        assert bool(column.isnan().all() if name in MEAN_STATS else (column == 0).all()), name
        assert x.isnan().any() == (name in MEAN_STATS)


def test_nothing_valid_at_all() -> None:
    """No query is valid, or no key: no statistic invents a number."""
    q, k = make(B, H, HKV, Q, K, D)
    more = extras(B, HKV, Q, K)
    none = {"query_valid": torch.zeros(B, Q, dtype=torch.bool)}
    found = naive(q, k, **none, **more)
    for name, x in found.items():
        if name in INT_STATS:
            assert bool((x == (-1 if name == "top_keys" else 0)).all()), name
        elif name in (*ROW_STATS, *MEAN_STATS, "segment_mean"):
            assert bool(x.isnan().all()), name
        else:
            assert not x.any(), name
    found = naive(q, k, key_valid=torch.zeros(B, K, dtype=torch.bool), **more)
    for name, x in found.items():
        mean = name in MEAN_STATS
        if name not in ("lse", "top_keys"):
            assert bool(x.isnan().all() if mean else (x == 0).all()), name


@pytest.mark.parametrize("given", ["scores", "map"])
def test_padding_may_hold_anything(given: str) -> None:
    """NaN in whatever belongs to padding changes no bit of any statistic."""
    q, k = make(B, H, HKV, Q, Q, D)
    valid = ragged(B, Q)
    more = extras(B, HKV, Q, Q)
    dirty, terms = dict(more), {"key_valid": valid, "query_valid": valid, "causal": True}
    hole = ~valid[:, None, :, None]
    for name in ("v", "key_features"):
        dirty[name] = more[name].masked_fill(hole, math.nan)
    dirty["query_features"] = more["query_features"].masked_fill(hole[:, 0], math.nan)
    if given == "scores":
        clean = naive(q, k, **terms, **more)
        found = naive(
            q.masked_fill(hole, math.nan), k.masked_fill(hole, math.nan), **terms, **dirty
        )
    else:
        p = torch.softmax(torch.randn(B, H, Q, Q), -1)
        clean = stats_from_pattern(p, MAP_ONLY, **terms, **more)
        p = p.masked_fill(hole, math.nan).masked_fill(hole.mT, math.nan)
        found = stats_from_pattern(p, MAP_ONLY, **terms, **dirty)
    for name, x in found.items():
        assert torch.equal(x.isnan(), clean[name].isnan()), name
        assert torch.equal(x.nan_to_num(-1.0), clean[name].nan_to_num(-1.0)), name


def test_biases_that_hide() -> None:
    """-inf, the lowest float32 and -1e30 count as masks; -1e29 is a very small weight."""
    q, k = make(B, H, HKV, Q, K, D)
    mask, more = some_mask(1, 1, Q, K), extras(B, HKV, Q, K)
    expected = naive(q, k, mask=mask, **more)
    for hiding in (-math.inf, torch.finfo(torch.float32).min, -1.1e30):
        bias = torch.zeros(1, 1, Q, K).masked_fill(~mask, hiding)
        found = naive(q, k, bias=bias, **more)
        assert all(torch.equal(x.nan_to_num(), expected[n].nan_to_num()) for n, x in found.items())
    bias = torch.zeros(1, 1, Q, K).masked_fill(~mask, -1e29)
    assert bool((naive(q, k, ["n_visible"], bias=bias)["n_visible"] == K).all())


def test_ties_go_to_the_first_key() -> None:
    q, k = torch.zeros(1, 1, 3, D), torch.zeros(1, 1, K, D)
    mask = torch.ones(3, K, dtype=torch.bool)
    mask[:, :4] = False
    found = naive(q, k, ["argmax", "top_keys"], mask=mask, topk=3)
    assert found["argmax"].tolist() == [[[4, 4, 4]]]
    assert found["top_keys"].tolist() == [[[[4, 5, 6]] * 3]]


def test_a_weight_of_zero_is_still_seen() -> None:
    """Underflow is not a mask: the key is counted, and listed after those with weight."""
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([[[[-5000.0], [0.0], [-5000.0]]]])
    want = ["top_keys", "top_probs", "n_visible", "key_mean", "key_count"]
    found = naive(q, k, want, topk=3, scale=1.0)
    assert found["top_keys"].flatten().tolist() == [1, 0, 2]
    assert found["top_probs"].flatten().tolist() == [1.0, 0.0, 0.0]
    assert found["n_visible"].item() == 3
    assert found["key_mean"].flatten().tolist() == [0.0, 1.0, 0.0]
    assert found["key_count"].flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", MAP_ONLY)
def test_numpy_equals_torch(name: str) -> None:
    """Every statistic of a map in numpy, with numpy arguments, is the one in torch."""
    p = torch.softmax(torch.randn(B, H, Q, K, generator=torch.Generator().manual_seed(0)), -1)
    terms = extras(B, HKV, Q, K) | {"causal": True, "query_valid": ragged(B, Q)}
    arrays: Terms = {n: x.numpy() if isinstance(x, torch.Tensor) else x for n, x in terms.items()}
    found = stats_from_pattern(p.double().numpy(), [name], **arrays)[name]
    expected = stats_from_pattern(p.double(), [name], **terms)[name]
    assert isinstance(found, np.ndarray)
    assert found.dtype == (np.int64 if name in INT_STATS else np.float64)
    np.testing.assert_array_equal(found, expected.numpy())


def test_maps_of_low_precision() -> None:
    """bfloat16 rows may sum to more than one: the null mass is then 0, never negative. Empty rows
    have none."""
    p = torch.full((1, 1, 3, 7), 1 / 7).to(torch.bfloat16)
    p[0, 0, 2] = 0
    found = stats_from_pattern(p, ["null_mass", "entropy", "key_mass"])
    assert found["null_mass"].min() == 0
    assert found["null_mass"].max() < 4e-3
    assert found["null_mass"][0, 0, 2] == 0
    assert found["entropy"].dtype == torch.float32
    assert found["entropy"][0, 0, 2] == 0


def test_numpy_alone() -> None:
    """The specification called as it stands, without the checks that fill in defaults: ends
    aligned when causal, terms as arrays."""
    q, k = make(B, H, HKV, Q, K, D, dtype=torch.float64)
    slopes = torch.linspace(0.0, 0.3, H)
    p = naive_module.pattern(q.numpy(), k.numpy(), causal=True, window=9, alibi=slopes.numpy())
    terms: Terms = {"causal": True, "window": 9, "alibi": slopes, "backend": "naive"}
    np.testing.assert_array_equal(p, pattern(q, k, **terms).numpy())
    want = ["distance", "self_mass", "key_count"]
    found = naive_module.attention_stats(q.numpy(), k.numpy(), want, causal=True, window=9)
    expected = attention_stats(q, k, want, causal=True, window=9, backend="naive")
    for name in want:
        np.testing.assert_array_equal(found[name], expected[name].numpy())
    again = naive_module.stats_from_pattern(
        naive_module.pattern(q.numpy(), k.numpy(), causal=True, window=9), want, causal=True,
        window=9,
    )  # fmt: skip
    for name in want:
        np.testing.assert_array_equal(again[name], expected[name].numpy())
