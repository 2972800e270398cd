"""Row statistics of the specification against torch, scipy, and loops over the definitions of the
papers: never against a formula of ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.kernels.cases import extras, make, relative_error, some_mask
from workbench.kernels.attention_stats import ROW_STATS, attention_stats
from workbench.kernels.attention_stats.terms import INT_STATS

B, H, HKV, Q, K, D = 2, 4, 2, 23, 31, 8
OFFSET = K - Q
ALLOWED = 1e-11


def the_map(hidden: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """q, k in float64, and torch's softmax of their scores; hidden is True where masked."""
    q, k = make(B, H, HKV, Q, K, D, seed=seed, dtype=torch.float64)
    s = q @ k.repeat_interleave(H // HKV, 1).transpose(2, 3) / D**0.5
    return q, k, torch.softmax(s.masked_fill(hidden, -torch.inf), -1)


def future() -> torch.Tensor:
    return torch.ones(Q, K, dtype=torch.bool).triu(OFFSET + 1)


def naive(q: torch.Tensor, k: torch.Tensor, want: list[str], **terms: Any) -> dict:
    return attention_stats(q, k, want, backend="naive", **terms)


def loops(p: torch.Tensor, weight: Any) -> torch.Tensor:
    """sum_j weight(b, t, j) p[b, h, i, j], one term after the other; t = i + OFFSET."""
    out = torch.zeros(B, H, Q, dtype=torch.float64)
    for b in range(B):
        for i in range(Q):
            for j in range(K):
                out[b, :, i] += weight(b, i + OFFSET, j) * p[b, :, i, j]
    return out


def test_entropy_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    q, k, p = the_map(future())
    found = naive(q, k, ["entropy", "null_mass"], causal=True)
    assert relative_error(found["entropy"], stats.entropy(p.numpy(), axis=-1)) < ALLOWED
    assert not found["null_mass"].any()


@pytest.mark.parametrize("power", [2, 3, 1.5])
def test_participation_is_a_norm(power: float) -> None:
    q, k, p = the_map(future())
    found = naive(q, k, ["participation"], causal=True, power=power)["participation"]
    assert relative_error(found, torch.linalg.vector_norm(p, power, -1) ** power) < ALLOWED
    default = naive(q, k, ["participation"], causal=True)["participation"]
    assert (power == 2) == torch.equal(found, default)


def test_top_keys_are_torchs() -> None:
    """Also more keys than a row can see: -1 and 0 there."""
    hidden = future()
    q, k, p = the_map(hidden)
    for topk in (1, 5, K, K + 4):
        found = naive(q, k, ["top_keys", "top_probs"], causal=True, topk=topk)
        value, index = torch.topk(p, min(topk, K), -1)
        n = min(topk, K)
        beyond = (torch.arange(n) >= (~hidden).sum(-1)[:, None]).expand_as(index)
        assert torch.equal(found["top_keys"][..., :n], index.masked_fill(beyond, -1))
        assert relative_error(found["top_probs"][..., :n], value.masked_fill(beyond, 0)) < ALLOWED
        assert bool((found["top_keys"][..., n:] == -1).all())
        assert not found["top_probs"][..., n:].any()
        assert found["top_keys"].shape[-1] == topk


@pytest.mark.parametrize("causal", [False, True])
def test_output_and_features_are_sdpas(causal: bool) -> None:
    """Values are carried by torch's attention, so is any feature of the keys; value_mass is what
    it does to the norms; a one-hot of the segments gives the role masses."""
    q, k, _ = the_map(future())
    more = extras(B, HKV, Q, K, d_v=5)
    v, features = more["v"].double(), more["key_features"].double()
    segments = torch.nn.functional.one_hot(more["key_segments"] + 1, 4)[..., 1:].double()
    mask = ~future() if causal else None

    def carried(x: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, x, attn_mask=mask, enable_gqa=True)

    want = ["output", "feature_mass", "value_mass", "role_mass"]
    found = naive(q, k, want, causal=causal, **more)
    assert relative_error(found["output"], carried(v), 1e-2) < ALLOWED
    assert relative_error(found["feature_mass"], carried(features), 1e-2) < ALLOWED
    assert (
        relative_error(found["value_mass"], carried(v.norm(dim=-1, keepdim=True))[..., 0]) < ALLOWED
    )
    roles = carried(segments[:, None].expand(B, HKV, K, 3))
    assert relative_error(found["role_mass"], roles) < ALLOWED
    shared = naive(q, k, ["feature_mass"], causal=causal, key_features=more["key_features"][:, 0])
    one_head = carried(features[:, :1].expand_as(features))
    assert relative_error(shared["feature_mass"], one_head, 1e-2) < ALLOWED


def test_offsets_are_diagonals_and_keys_columns() -> None:
    q, k, p = the_map(torch.zeros(Q, K, dtype=torch.bool))
    offsets = (0, 1, 7, -3, K)
    keys = torch.tensor([[0, 5, 5, K - 1], [3, 2, 1, 0]])
    want = [
        "offset_mass",
        "keys_mass",
        "self_mass",
        "prev_mass",
        "first_mass",
        "max_prob",
        "argmax",
    ]
    terms = {"query_offset": OFFSET, "offsets": offsets, "keys": keys}
    found = naive(q, k, want, **terms, first_key=torch.tensor([4, 0]))
    for n, back in enumerate(offsets):
        line = p.diagonal(OFFSET - back, -2, -1)
        own = found["offset_mass"][..., n]
        first = max(0, back - OFFSET)
        assert relative_error(own[..., first : first + line.shape[-1]], line) < ALLOWED
        assert own.count_nonzero() == line.count_nonzero()
    assert torch.equal(found["self_mass"], found["offset_mass"][..., 0])
    assert torch.equal(found["prev_mass"], found["offset_mass"][..., 1])
    for b in range(B):
        assert relative_error(found["keys_mass"][b], p[b][..., keys[b]]) < ALLOWED
        assert relative_error(found["first_mass"][b], p[b, ..., (4, 0)[b]]) < ALLOWED
    assert torch.equal(found["argmax"], p.argmax(-1))
    assert relative_error(found["max_prob"], p.amax(-1)) < ALLOWED
    each = torch.arange(Q).flip(0).expand(B, Q)
    found = naive(q, k, ["first_mass"], query_offset=OFFSET, first_key=each)["first_mass"]
    assert relative_error(found, p[..., torch.arange(Q), each[0]]) < ALLOWED


@pytest.mark.parametrize("window", [1, 10, 10 * K])
def test_waad_by_its_definition(window: int) -> None:
    """Definition 4.1: WAAD_t = sum over s <= t of A_ts min(t - s, W); all t - s with a wide W."""
    q, k, p = the_map(future())
    found = naive(q, k, ["waad", "distance"], causal=True, waad_window=window)
    expected = loops(p, lambda b, t, s: min(t - s, window) if s <= t else 0)
    assert relative_error(found["waad"], expected) < ALLOWED
    if window > K:
        assert relative_error(found["distance"], found["waad"]) < ALLOWED


def test_distances_by_loops() -> None:
    """In both directions."""
    q, k, p = the_map(torch.zeros(Q, K, dtype=torch.bool))
    want = ["distance", "distance_sq", "waad", "local_mass"]
    found = naive(q, k, want, query_offset=OFFSET, waad_window=4, local_window=3)
    expected = {
        "distance": loops(p, lambda b, t, j: abs(t - j)),
        "distance_sq": loops(p, lambda b, t, j: (t - j) ** 2),
        "waad": loops(p, lambda b, t, j: min(abs(t - j), 4)),
        "local_mass": loops(p, lambda b, t, j: float(j in (t - 2, t - 1, t, t + 1, t + 2))),
    }
    for name, x in expected.items():
        assert relative_error(found[name], x) < ALLOWED, name


def test_repeats_by_loops() -> None:
    """Duplicate: earlier keys of the same token. Induction: keys whose predecessor is one, up to
    the query. Padding is no earlier token, even where its id is the same."""
    q, k, p = the_map(future())
    g = torch.Generator().manual_seed(4)
    text = torch.randint(5, (B, K), generator=g)
    valid = torch.rand(B, K, generator=g) > 0.2

    def earlier(b: int, t: int, j: int) -> float:
        return float(0 <= j < t and text[b, j] == text[b, t] and valid[b, j])

    terms = {"query_ids": text[:, OFFSET:], "key_ids": text, "causal": True}
    want = ["duplicate_mass", "induction_mass"]
    hidden = future() | ~valid[:, None, None, :]
    q, k, p = the_map(hidden)
    p = p.nan_to_num(0.0)
    found = naive(q, k, want, key_valid=valid, **terms)
    assert relative_error(found["duplicate_mass"], loops(p, earlier)) < ALLOWED
    after = loops(p, lambda b, t, j: earlier(b, t, j - 1))
    assert relative_error(found["induction_mass"], after) < ALLOWED
    assert after.any()


def test_rows_that_are_not_valid_hold_nothing() -> None:
    q, k = make(B, H, HKV, Q, K, D)
    valid = torch.rand(B, Q, generator=torch.Generator().manual_seed(0)) > 0.4
    terms = extras(B, HKV, Q, K)
    plain = naive(q, k, list(ROW_STATS), **terms)
    found = naive(q, k, list(ROW_STATS), query_valid=valid, **terms)
    for name, x in found.items():
        rows = x.movedim(1, 2)
        assert torch.equal(rows[valid], plain[name].movedim(1, 2)[valid]), name
        empty = rows[~valid]
        if name in INT_STATS:
            assert bool((empty == (-1 if name == "top_keys" else 0)).all()), name
        else:
            assert bool(empty.isnan().all()), name


def test_n_visible_is_a_count() -> None:
    q, k = make(B, H, HKV, Q, K, D)
    mask = some_mask(B, H, Q, K)
    found = naive(q, k, ["n_visible"], mask=mask, causal=True)["n_visible"]
    assert np.array_equal(found.numpy(), (mask & ~future()).numpy().sum(-1))
