"""Column and map statistics of the specification against torch's backward and pooling, numpy and
scipy, and loops over the definitions of the papers: never against a formula of ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, max_pool2d, scaled_dot_product_attention

from tests.kernels.cases import make, ragged, relative_error, some_mask
from workbench.kernels.attention_stats import attention_stats

B, H, HKV, Q, K, D = 2, 4, 2, 23, 31, 8
OFFSET = K - Q
ALLOWED = 1e-11


def naive(q: torch.Tensor, k: torch.Tensor, want: list[str], **terms: Any) -> dict:
    return attention_stats(q, k, want, backend="naive", **terms)


def masked_case() -> tuple[torch.Tensor, ...]:
    """q, k, a mask [B, H, Q, K] with an empty row and a key nobody sees, valid queries [B, Q], and
    torch's map without the invalid rows."""
    q, k = make(B, H, HKV, Q, K, D, dtype=torch.float64)
    mask, valid = some_mask(B, H, Q, K), ragged(B, Q)
    s = q @ k.repeat_interleave(H // HKV, 1).transpose(2, 3) / D**0.5
    p = torch.softmax(s.masked_fill(~mask, -torch.inf), -1).nan_to_num(0.0)
    return q, k, mask, valid, p * valid[:, None, :, None]


@pytest.mark.parametrize("causal", [False, True])
def test_sums_over_queries_are_gradients_of_v(causal: bool) -> None:
    """dV = P^T dO: with dO = 1 the column sums, with dO = G the sums of the features of the
    queries; grouped heads by expanding v, whose gradient is then per query head."""
    q, k = make(B, H, HKV, Q, Q, D, dtype=torch.float64)
    features = torch.randn(B, Q, 3, generator=torch.Generator().manual_seed(1)).double()
    v = torch.zeros(B, H, Q, 4, dtype=torch.float64, requires_grad=True)
    expanded = k.repeat_interleave(H // HKV, 1)
    out = scaled_dot_product_attention(q, expanded, v, is_causal=causal)
    ones = torch.ones(B, H, Q, 1, dtype=torch.float64)
    upstream = torch.cat([ones, features[:, None].expand(B, H, Q, 3)], -1)
    (grad,) = torch.autograd.grad(out, v, upstream)
    want = ["key_mass", "query_feature_mass"]
    found = naive(q, k, want, causal=causal, query_features=features)
    assert relative_error(found["key_mass"], grad[..., 0]) < ALLOWED
    assert relative_error(found["query_feature_mass"], grad[..., 1:], 1e-2) < ALLOWED


def test_moments_of_a_column_are_numpys() -> None:
    """Over the queries that are valid and can see the key; NaN and 0 where there are none."""
    q, k, mask, valid, p = masked_case()
    want = ["key_mass", "key_mean", "key_max", "key_var", "key_count"]
    found = naive(q, k, want, mask=mask, query_valid=valid)
    seen = mask & valid[:, None, :, None]
    for b, h, j in np.ndindex(B, H, K):
        column = p[b, h, seen[b, h, :, j], j].numpy()
        own = {name: float(x[b, h, j]) for name, x in found.items()}
        assert own["key_count"] == column.size
        if column.size == 0:
            assert np.isnan([own["key_mean"], own["key_var"]]).all()
            assert own["key_mass"] == own["key_max"] == 0.0
            continue
        expected = [column.sum(), column.mean(), column.max(), np.var(column)]
        assert [own[name] for name in want[:4]] == pytest.approx(expected, rel=1e-10, abs=1e-18)
    assert bool((found["key_count"] == 0).any())


def test_entropy_of_a_column_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    q, k, mask, valid, p = masked_case()
    found = naive(q, k, ["key_entropy"], mask=mask, query_valid=valid)["key_entropy"]
    received = p.sum(-2) > 0
    columns = p.transpose(2, 3)[received].numpy()
    assert relative_error(found[received], stats.entropy(columns, axis=-1)) < ALLOWED
    assert not found[~received].any()
    assert bool((~received).any())


@pytest.mark.parametrize("horizon", [(0, 0), (1, 4), (10, 50), (3, None), (K + 1, None)])
def test_fai_by_its_definition(horizon: tuple[int, int | None]) -> None:
    """Definition 4.2: T(s) = {t: s + lo <= t <= min(N, s + hi)}, FAI_s the mean of A_ts over it;
    undefined where T(s) is empty. Rows are the response: invalid queries are not in it."""
    q, k = make(B, H, HKV, K, K, D, dtype=torch.float64)
    s = q @ k.repeat_interleave(H // HKV, 1).transpose(2, 3) / D**0.5
    causal = torch.ones(K, K, dtype=torch.bool).tril()
    a = torch.softmax(s.masked_fill(~causal, -torch.inf), -1)
    response = torch.arange(K).expand(B, K) >= 6
    lo, hi = horizon
    found = naive(q, k, ["fai"], causal=True, horizon=horizon, query_valid=response)["fai"]
    for key in range(K):
        last = K - 1 if hi is None else min(K - 1, key + hi)
        rows = [t for t in range(key + lo, last + 1) if t >= 6]
        if not rows:
            assert bool(found[..., key].isnan().all())
            continue
        mean = sum(a[:, :, t, key] for t in rows) / len(rows)
        assert relative_error(found[..., key], mean) < ALLOWED


def test_fai_counts_only_queries_that_can_see_the_key() -> None:
    """A window of 4 hides a key from queries 4 and more tokens later: they are no zeros of the
    mean."""
    q, k = make(1, 1, 1, 12, 12, D, dtype=torch.float64)
    wide = naive(q, k, ["fai", "key_mass"], causal=True, window=4, horizon=(0, None))
    narrow = naive(q, k, ["fai"], causal=True, window=4, horizon=(0, 3))
    assert torch.equal(wide["fai"], narrow["fai"])
    seen = torch.tensor([4.0] * 9 + [3.0, 2.0, 1.0]).double()
    assert relative_error(wide["fai"][0, 0], wide["key_mass"][0, 0] / seen) < ALLOWED


@pytest.mark.parametrize("pool", [1, 4, (5, 7), (Q, K), (100, 100)])
def test_blocks_are_torchs_pooling(pool: Any) -> None:
    """Ragged ends included: ceil_mode, and a sum is an average without its divisor."""
    q, k, mask, valid, p = masked_case()
    want = ["block_mass", "block_max"]
    found = naive(q, k, want, mask=mask, query_valid=valid, pool=pool)
    rows, columns = (pool, pool) if isinstance(pool, int) else pool
    # torch drops a window that starts beyond the end, and wants one no larger than its input.
    size = (min(rows, Q), min(columns, K))
    total = avg_pool2d(p, size, ceil_mode=True, divisor_override=1)
    assert relative_error(found["block_mass"], total) < ALLOWED
    assert relative_error(found["block_max"], max_pool2d(p, size, ceil_mode=True)) < ALLOWED


def test_diagonals_are_traces() -> None:
    q, k, mask, valid, p = masked_case()
    found = naive(q, k, ["diagonal_mass"], mask=mask, query_valid=valid)["diagonal_mass"]
    assert found.shape == (B, H, Q + K - 1)
    for n in range(Q + K - 1):
        back = n - (K - 1)  # i - j
        trace = np.trace(p.numpy(), offset=-back, axis1=-2, axis2=-1)
        assert relative_error(found[..., n], torch.from_numpy(trace)) < ALLOWED


@pytest.mark.parametrize("offset", [0, OFFSET, -40, 90])
def test_distances_are_numpys_histogram(offset: int) -> None:
    """Bins 0, 1, 2-3, 4-7, ...: as many as the longest distance needs, none of them lost."""
    q, k, mask, valid, p = masked_case()
    terms = {"mask": mask, "query_valid": valid, "query_offset": offset}
    found = naive(q, k, ["distance_histogram"], **terms)["distance_histogram"]
    away = np.abs(np.arange(Q)[:, None] + offset - np.arange(K))
    edges = np.array([0, 1, *(2**n for n in range(1, 12))])
    last = int(np.searchsorted(edges, away.max(), side="right"))
    assert found.shape[-1] == last
    for b, h in np.ndindex(B, H):
        expected, _ = np.histogram(away, bins=edges[: last + 1], weights=p[b, h].numpy())
        assert relative_error(found[b, h], torch.from_numpy(expected)) < ALLOWED


def test_segments_are_means_of_submatrices() -> None:
    """M_ab = mean over (rows of sentence a) x (columns of sentence b), zeros counting; NaN for a
    sentence without tokens. Overlapping sentences as bool."""
    q, k, mask, valid, p = masked_case()
    g = torch.Generator().manual_seed(2)
    rows, columns = (torch.randint(-1, 3, (B, n), generator=g) for n in (Q, K))
    terms = {"mask": mask, "query_valid": valid, "n_segments": 4}
    found = naive(q, k, ["segment_mean"], query_segments=rows, key_segments=columns, **terms)
    found = found["segment_mean"]
    for b, h, x, y in np.ndindex(B, H, 4, 4):
        inside = p[b, h][(rows[b] == x) & valid[b]][:, columns[b] == y].numpy()
        expected = inside.mean() if inside.size else np.nan
        assert float(found[b, h, x, y]) == pytest.approx(expected, rel=1e-11, nan_ok=True)
    assert bool(found[:, :, 3].isnan().all())
    assert not found[:, :, :3, :3].isnan().any()
    members = torch.stack([rows >= 0, rows == 1], 1), torch.stack([columns >= 0, columns == 1], 1)
    terms["n_segments"] = 2
    found = naive(
        q, k, ["segment_mean"], query_segments=members[0], key_segments=members[1], **terms
    )
    for b, x, y in np.ndindex(B, 2, 2):
        inside = p[b][:, members[0][b, x] & valid[b]][:, :, members[1][b, y]]
        assert relative_error(found["segment_mean"][b, :, x, y], inside.mean((1, 2))) < ALLOWED
