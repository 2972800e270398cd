"""The terms of a map in the specification: which key a query sees, what is added to a score, what
takes the place of the softmax. Against torch, transformers and loops over the definitions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.kernels.cases import make, ragged, relative_error, some_bias, some_mask
from workbench.kernels.attention_stats import (
    LowRankBias,
    Neighbourhood,
    Strided,
    attention_stats,
    pattern,
    stats_from_pattern,
)

B, H, HKV, Q, K, D = 2, 4, 2, 19, 27, 8
ALLOWED = 1e-11


def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(2, 3) / D**0.5


def naive_pattern(q: torch.Tensor, k: torch.Tensor, **terms: Any) -> torch.Tensor:
    return pattern(q, k, backend="naive", **terms)


def seen_by(n_q: int, n_k: int, **terms: Any) -> np.ndarray:
    """Bool [Q, K] that the specification uses: where all scores are equal, p is not 0."""
    q, k = torch.zeros(1, 1, n_q, D), torch.zeros(1, 1, n_k, D)
    return naive_pattern(q, k, **terms)[0, 0].numpy() > 0


def window_of(x: int, n: int, size: int, step: int) -> set[int]:
    """Neighbourhood attention along one axis, from its definition: of the tokens that share x's
    residue modulo the dilation, the run of `size` whose centre is nearest to x."""
    group = [y for y in range(n) if y % step == x % step]
    runs = [group[start : start + size] for start in range(len(group) - size + 1)]
    return set(min(runs, key=lambda run: abs(run[size // 2] - x)))


@pytest.mark.parametrize(
    ("n", "size", "step"),
    [(9, 3, 1), (9, 9, 1), (10, 5, 2), (11, 3, 3), (17, 5, 3), (7, 1, 4), (8, 1, 1), (12, 3, 4)],
)
def test_neighbourhood_on_a_line(n: int, size: int, step: int) -> None:
    """The middle, both edges, residues of unequal size; every query sees as many keys."""
    expected = [[j in window_of(i, n, size, step) for j in range(n)] for i in range(n)]
    rule = Neighbourhood((n,), (size,), (step,))
    found = seen_by(n, n, mask=rule)
    assert np.array_equal(found, expected)
    assert (found.sum(-1) == size).all()
    both = [rule.visible(i[:, None], i[None]) for i in (np.arange(n), torch.arange(n))]
    assert np.array_equal(both[0], both[1].numpy())


@pytest.mark.parametrize(
    ("grid", "window", "steps"),
    [
        ((5, 7), (3, 5), None),
        ((6, 8), (3, 3), (2, 1)),
        ((9, 7), (3, 1), (3, 2)),
        ((1, 6), (1, 3), None),
    ],
)
def test_neighbourhood_on_a_grid(grid: tuple, window: tuple, steps: tuple | None) -> None:
    n = grid[0] * grid[1]
    places = list(itertools.product(range(grid[0]), range(grid[1])))
    axes = [
        [window_of(x, grid[a], window[a], (steps or (1, 1))[a]) for x in range(grid[a])]
        for a in (0, 1)
    ]
    expected = [[y in axes[0][r] and x in axes[1][c] for y, x in places] for r, c in places]
    rule = Neighbourhood(grid, window, steps)
    assert np.array_equal(seen_by(n, n, mask=rule), expected)
    # The last rows of the same grid: positions, not row numbers, decide.
    part = seen_by(4, n, mask=rule, query_offset=n - 4)
    assert np.array_equal(part, np.array(expected)[-4:])


def test_strided_by_loops() -> None:
    """Child et al.: the last `local` positions, and every stride-th."""
    expected = [[j <= i and (i - j < 4 or (i - j) % 5 == 0) for j in range(K)] for i in range(K)]
    assert np.array_equal(seen_by(K, K, mask=Strided(4, 5), causal=True), expected)
    expected = [[abs(i - j) < 4 or abs(i - j) % 5 == 0 for j in range(K)] for i in range(K)]
    assert np.array_equal(seen_by(K, K, mask=Strided(4, 5)), expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize("offset", [None, 0, 5, -3])
def test_windows_by_loops(causal: bool, window: int | None, offset: int | None) -> None:
    """Query i sits at i + offset, the ends aligned when causal and nothing is said."""
    first = (K - Q if causal else 0) if offset is None else offset

    def sees(t: int, j: int) -> bool:
        if causal and j > t:
            return False
        return window is None or abs(t - j) < window

    expected = [[sees(i + first, j) for j in range(K)] for i in range(Q)]
    found = seen_by(Q, K, causal=causal, window=window, query_offset=offset)
    assert np.array_equal(found, expected)


def test_masks_biases_and_padding_are_sdpas() -> None:
    """Everything torch takes as attn_mask, through the output: bool, float, -inf, low rank, padded
    keys by flags, by lengths and by both, packed sequences as a block diagonal."""
    q, k = make(B, H, HKV, Q, K, D, dtype=torch.float64)
    v = torch.randn(B, HKV, K, 3, generator=torch.Generator().manual_seed(1)).double()
    mask, bias = some_mask(B, H, Q, K), some_bias(1, H, Q, K).double()
    mask[:, :, Q // 2] = True
    valid, lengths = ragged(B, K), torch.tensor([K, 9])
    inside = torch.arange(K) < lengths[:, None]
    own, theirs = torch.arange(Q) // 5, torch.arange(K) // 7
    low = LowRankBias(some_bias(1, H, Q, 2).double(), some_bias(B, 1, K, 2, seed=5).double())
    half = LowRankBias(low.left.bfloat16(), low.right.bfloat16())
    packed = {"query_sequence": own.expand(B, Q), "key_sequence": theirs.expand(B, K)}
    both = {"key_valid": valid, "key_lengths": lengths}
    cases: list[tuple[dict[str, Any], torch.Tensor]] = [
        ({"mask": mask}, mask),
        ({"bias": bias}, bias),
        ({"bias": bias, "mask": mask}, bias.masked_fill(~mask, -torch.inf)),
        ({"bias": torch.zeros(B, H, Q, K).masked_fill(~mask, -torch.inf)}, mask),
        ({"bias": low}, low.left @ low.right.mT),
        ({"bias": half}, half.left.double() @ half.right.double().mT),
        ({"key_valid": valid}, valid[:, None, None]),
        ({"key_lengths": lengths}, inside[:, None, None]),
        (both, (inside & valid)[:, None, None]),
        (packed, (own[:, None] == theirs)[None, None]),
    ]
    for terms, attn_mask in cases:
        expected = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, enable_gqa=True)
        found = attention_stats(q, k, ["output", "n_visible"], v=v, backend="naive", **terms)
        assert relative_error(found["output"], expected, 1e-2) < ALLOWED, list(terms)
        shown = attn_mask if attn_mask.dtype == torch.bool else attn_mask > -torch.inf
        count = shown.expand(B, H, Q, K).sum(-1)
        assert torch.equal(found["n_visible"], count), list(terms)


def test_softcap_scale_and_sink_by_torch() -> None:
    """Order: scale, softcap, bias, then one more column that only the denominator sees (gpt-oss);
    its share is sigmoid(sink - lse of the keys alone)."""
    q, k = make(1, H, HKV, Q, K, D, dtype=torch.float64)
    bias = some_bias(1, H, Q, K).double()
    sink = torch.tensor([0.7, -2.0, -math.inf, 40.0]).double()
    raw = q @ k.repeat_interleave(2, 1).mT
    s = 5.0 * torch.tanh(raw * 0.5 / 5.0) + bias
    full = torch.softmax(torch.cat([s, sink[None, :, None, None].expand(1, H, Q, 1)], -1), -1)
    terms: dict[str, Any] = {"scale": 0.5, "softcap": 5.0, "bias": bias, "backend": "naive"}
    want = ["null_mass", "lse", "key_mass"]
    found = attention_stats(q, k, want, sink_logit=sink, **terms)
    alone = attention_stats(q, k, ["lse", "null_mass"], **terms)
    assert relative_error(pattern(q, k, sink_logit=sink, **terms), full[..., :-1]) < ALLOWED
    assert relative_error(found["null_mass"], full[..., -1]) < ALLOWED
    assert relative_error(found["null_mass"], torch.sigmoid(sink[:, None] - alone["lse"])) < ALLOWED
    together = torch.logaddexp(s.logsumexp(-1), sink[None, :, None].expand(1, H, Q))
    assert relative_error(found["lse"], together, 1.0) < ALLOWED
    # From the two lse alone: the keys hold exp(lse of the keys - lse with the sink).
    assert relative_error(1 - found["null_mass"], (alone["lse"] - found["lse"]).exp()) < 1e-9
    assert relative_error(found["key_mass"].sum(-1), full[..., :-1].sum((-2, -1))) < ALLOWED
    assert not alone["null_mass"].any()


def test_alibi_is_a_geometric_series() -> None:
    """q = 0 and slope m: p is proportional to r^d with r = e^-m."""
    m = torch.tensor([0.25, 1.0, 0.0625, 0.7]).double()
    zeros = torch.zeros(1, H, K, D, dtype=torch.float64)
    want = ["lse", "self_mass", "prev_mass"]
    found = attention_stats(zeros, zeros, want, alibi=m, causal=True, backend="naive")
    r, n = torch.exp(-m)[:, None], torch.arange(1, K + 1)
    series = (1 - r**n) / (1 - r)
    assert relative_error(found["lse"][0], series.log(), 1.0) < ALLOWED
    assert relative_error(found["self_mass"][0], 1 / series) < ALLOWED
    assert relative_error(found["prev_mass"][0, :, 1:], (r / series)[:, 1:]) < ALLOWED


def test_alibi_is_blooms() -> None:
    """Bloom adds slope * j: the same map, because a row may be shifted; 4 and 6 heads."""
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    for heads in (4, 6):
        q, k = make(1, heads, heads, K, K, D, dtype=torch.float64)
        added = bloom.build_alibi_tensor(torch.ones(1, K), heads, torch.float64)
        causal = torch.ones(K, K, dtype=torch.bool).tril()
        s = (scores(q, k) + added[None]).masked_fill(~causal, -torch.inf)
        slopes = added[:, 0, 1] - added[:, 0, 0]
        found = naive_pattern(q, k, alibi=slopes, causal=True)
        assert relative_error(found, torch.softmax(s, -1)) < 1e-9


def test_other_activations_are_torchs() -> None:
    q, k = make(B, H, HKV, Q, K, D, dtype=torch.float64)
    mask, bias = some_mask(B, H, Q, K), some_bias(1, H, Q, K).double()
    s, n = scores(q, k) + bias, mask.sum(-1, keepdim=True).clamp(min=1)
    expected = {"relu": torch.relu(s) / n, "linear": s / n, "sigmoid": torch.sigmoid(s)}
    for activation, p in expected.items():
        terms: dict[str, Any] = {"mask": mask, "bias": bias, "activation": activation}
        p = p.masked_fill(~mask, 0.0)
        assert relative_error(naive_pattern(q, k, **terms), p) < 1e-9
        want = ["key_mass", "max_prob", "argmax", "participation", "distance", "key_max"]
        found = attention_stats(q, k, want, backend="naive", **terms)
        away = (torch.arange(Q)[:, None] - torch.arange(K)).abs()
        hidden = p.masked_fill(~mask, -torch.inf)
        rows = mask.any(-1)
        assert relative_error(found["key_mass"], p.sum(-2), 1e-3) < ALLOWED
        assert relative_error(found["participation"], p.square().sum(-1)) < ALLOWED
        assert relative_error(found["distance"], (p * away).sum(-1), 1e-1) < ALLOWED
        assert relative_error(found["max_prob"][rows], hidden.amax(-1)[rows], 1e-3) < ALLOWED
        assert torch.equal(found["argmax"][rows], hidden.argmax(-1)[rows])
        seen = mask.any(-2)
        assert relative_error(found["key_max"][seen], hidden.amax(-2)[seen], 1e-3) < ALLOWED
        assert not found["key_max"][~seen].any()


def test_packed_texts_do_not_see_each_other_in_ids_either() -> None:
    """The first token of a text follows the last of the one before: no induction across."""
    ids = torch.tensor([[5, 1, 2, 5, 5, 3, 5]])
    sequence = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    q = k = torch.zeros(1, 1, 7, D)
    want = ["induction_mass", "duplicate_mass"]
    found = attention_stats(
        q, k, want, causal=True, query_ids=ids, key_ids=ids, query_sequence=sequence,
        key_sequence=sequence, backend="naive",
    )  # fmt: skip
    # Row 3 repeats key 0, so induction looks at key 1; row 6 repeats key 4, and looks at key 5.
    assert found["induction_mass"][0, 0].tolist() == pytest.approx([0, 0, 0, 1 / 4, 0, 0, 1 / 3])
    assert found["duplicate_mass"][0, 0].tolist() == pytest.approx([0, 0, 0, 1 / 4, 0, 0, 1 / 3])


def test_a_given_map_knows_the_same_terms() -> None:
    """numpy in, numpy out: the visibility terms hide entries and count; scores have no meaning."""
    p = np.random.default_rng(0).random((B, H, Q, K))
    terms: dict[str, Any] = {
        "causal": True, "window": 9, "key_valid": ragged(B, K).numpy(),
        "key_lengths": np.array([K, K - 6]), "mask": some_mask(Q, K).numpy(),
        "query_sequence": np.arange(Q)[None].repeat(B, 0) // 12,
        "key_sequence": np.arange(K)[None].repeat(B, 0) // 14,
    }  # fmt: skip
    tensors = {x: torch.from_numpy(y) if isinstance(y, np.ndarray) else y for x, y in terms.items()}
    zeros = torch.zeros(B, H, Q, D), torch.zeros(B, H, K, D)
    seen = naive_pattern(*zeros, **tensors).numpy() > 0
    want = ["n_visible", "key_count", "key_mass", "max_prob", "key_mean", "null_mass"]
    found = stats_from_pattern(p / p.sum(-1, keepdims=True), want, **terms)
    shown = np.where(seen, p / p.sum(-1, keepdims=True), 0.0)
    with np.errstate(invalid="ignore"):
        expected = {
            "n_visible": seen.sum(-1), "key_count": seen.sum(-2), "key_mass": shown.sum(-2),
            "max_prob": shown.max(-1), "key_mean": shown.sum(-2) / seen.sum(-2),
            "null_mass": np.where(seen.any(-1), 1 - shown.sum(-1), 0.0),
        }  # fmt: skip
    for name, x in expected.items():
        assert isinstance(found[name], np.ndarray)
        assert relative_error(torch.from_numpy(found[name]), torch.from_numpy(x)) < 1e-9, name
