"""Laws that hold whatever the numbers are, for every backend that runs here and every statistic it
has: masses are conserved; how a call is cut, padded, shifted or grouped changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.kernels.cases import (
    DIFFERENCES,
    Terms,
    extras,
    make,
    ragged,
    relative_error,
    sequences,
    some_mask,
    variance_size,
)
from workbench.kernels.attention_stats import (
    BACKENDS,
    BLOCK_STATS,
    COLUMN_STATS,
    ROW_STATS,
    STATS,
    attention_stats,
    available_backends,
)
from workbench.kernels.attention_stats.terms import INT_STATS

HERE = tuple(name for name in BACKENDS if name in available_backends("cpu"))
# Achieved by float32 against float32; the scores of the two sides round differently.
ALLOWED = 2e-5
SIZE = {"triton": (20, 40)}
ADDED = (
    "key_mass", "key_count", "query_feature_mass", "distance_histogram",
)  # fmt: skip
# numpy inside triton's interpreter, about the maximum of a tile of padding, which is thrown away.
NAN_TILES = pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
Supported = Callable[..., list[str]]


def case(backend: str, heads: tuple[int, int] = (4, 2), d: int = 32) -> tuple:
    n_q, n_k = SIZE.get(backend, (150, 203))
    q, k = make(2, *heads, n_q, n_k, d)
    return q, k, extras(2, heads[1], n_q, n_k)


def same(found: Terms, expected: Terms, backend: str) -> None:
    """Every statistic equal to rounding; a variance, sums of both signs and what a backend has as a
    difference by what their rounding is proportional to."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if name in INT_STATS:
            assert torch.equal(found[name], x), name
            continue
        small = 1.0 if name == "lse" or name in DIFFERENCES.get(backend, ()) else 1e-6
        if name in ("output", "feature_mass", "query_feature_mass"):
            small = float(x.abs().nanmean())
        size = variance_size(x, expected["key_mean"]) if name == "key_var" else None
        assert relative_error(found[name], x, small, size) < ALLOWED, name


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_mass_is_conserved(backend: str, sinks: bool, causal: bool, supported: Supported) -> None:
    """Rows sum to one less the null mass; columns, diagonals, distances, blocks and segments to
    the number of valid rows less theirs."""
    q, k, more = case(backend)
    n_q, n_k = q.shape[2], k.shape[2]
    valid = ragged(2, n_q)
    everyone = {
        "query_segments": torch.zeros(2, n_q, dtype=torch.long),
        "key_segments": torch.zeros(2, n_k, dtype=torch.long), "n_segments": 1,
        "key_features": torch.ones(2, n_k, 1), "query_features": torch.ones(2, n_q, 1),
        "v": torch.ones(2, 2, n_k, 1), "topk": n_k, "offsets": tuple(range(-n_k, n_k + n_q)),
        "keys": torch.arange(n_k), "local_window": n_q + n_k, "waad_window": 1,
    }  # fmt: skip
    terms = more | everyone | {"causal": causal, "query_valid": valid}
    if sinks:
        terms["sink_logit"] = torch.tensor([0.5, -math.inf, 3.0, -1.0])
    rows = [
        "role_mass", "feature_mass", "output", "value_mass", "top_probs", "offset_mass",
        "keys_mass", "local_mass",
    ]  # fmt: skip
    whole = ["key_mass", "query_feature_mass", "diagonal_mass", "distance_histogram", "block_mass"]
    names = supported(backend, q, k, [*rows, *whole, "segment_mean", "null_mass", "waad",
                                      "self_mass"], **terms)  # fmt: skip
    found = attention_stats(q, k, names, backend=backend, **terms)
    held = 1 - found["null_mass"].double()
    total = held.nan_to_num(0.0).sum(-1)
    for name in rows:
        if name in found:
            x = found[name] if found[name].dim() == 3 else found[name].double().sum(-1)
            assert relative_error(x, held) < 5e-6, name
    for name in whole:
        if name in found:
            assert relative_error(found[name].double().flatten(2).sum(-1), total) < 5e-6, name
    if "segment_mean" in found:
        area = valid.sum(-1)[:, None] * n_k
        assert relative_error(found["segment_mean"][..., 0, 0] * area, total) < 5e-6
    if "waad" in found:  # distance clipped at one: everything that is not on the query itself
        assert relative_error(found["waad"].double() + found["self_mass"], held) < 5e-6
    if not sinks:
        assert relative_error(total, valid.sum(-1)[:, None].expand_as(total)) < 5e-6


@pytest.mark.parametrize("backend", HERE)
def test_columns_are_gradients_of_sdpa(backend: str, supported: Supported) -> None:
    """dV = P^T dO, with torch's own attention and its backward."""
    q, k, more = case(backend, (2, 2))
    n_q, n_k = q.shape[2], k.shape[2]
    features = more["query_features"]
    v = torch.zeros(2, 2, n_k, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(n_q, n_k, dtype=torch.bool).tril(n_k - n_q)
    out = scaled_dot_product_attention(q.double(), k.double(), v, attn_mask=mask)
    upstream = torch.cat([torch.ones(2, n_q, 1), features], -1)[:, None].expand(2, 2, n_q, 3)
    (grad,) = torch.autograd.grad(out, v, upstream.double())
    want = supported(backend, q, k, ["key_mass", "query_feature_mass"], causal=True, **more)
    found = attention_stats(q, k, want, causal=True, backend=backend, **more)
    assert relative_error(found["key_mass"], grad[..., 0]) < ALLOWED
    if "query_feature_mass" in found:
        assert relative_error(found["query_feature_mass"], grad[..., 1:], 0.1) < ALLOWED


@pytest.mark.parametrize("backend", HERE)
def test_grouped_heads_equal_expanded_heads(backend: str, supported: Supported) -> None:
    q, k, more = case(backend, (6, 2))
    terms = more | {"causal": True}
    wide = terms | {name: more[name].repeat_interleave(3, 1) for name in ("v", "key_features")}
    names = supported(backend, q, k, STATS, **terms)
    one = attention_stats(q, k, names, backend=backend, **terms)
    two = attention_stats(q, k.repeat_interleave(3, 1), names, backend=backend, **wide)
    same(one, two, backend)


@pytest.mark.parametrize("backend", HERE)
def test_permuted_heads_permute_the_results(backend: str, supported: Supported) -> None:
    q, k, more = case(backend, (4, 4))
    order = torch.tensor([2, 0, 3, 1])
    terms = more | {"causal": True, "sink_logit": torch.linspace(-1, 1, 4)}
    moved = terms | {name: more[name][:, order] for name in ("v", "key_features")}
    moved["sink_logit"] = terms["sink_logit"][order]
    names = supported(backend, q, k, STATS, **terms)
    one = attention_stats(q, k, names, backend=backend, **terms)
    two = attention_stats(q[:, order], k[:, order], names, backend=backend, **moved)
    same(two, {name: x[:, order] for name, x in one.items()}, backend)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("window", [None, 60])
def test_queries_may_come_in_parts(backend: str, window: int | None, supported: Supported) -> None:
    """Rows of two calls are the rows of one; sums over queries add, maxima combine."""
    q, k, more = case(backend)
    n_q, n_k = q.shape[2], k.shape[2]
    cut, offset = n_q // 2 + 3, n_k - n_q
    terms: Terms = {"causal": True, "window": window}
    names = supported(backend, q, k, [*ROW_STATS, *ADDED, "key_max"], **terms, **more)
    if not names:
        return  # the map is refused, by name
    whole = attention_stats(q, k, names, backend=backend, **terms, **more)
    parts = []
    for i, j in ((0, cut), (cut, n_q)):
        own = {x: more[x][:, i:j] for x in ("query_ids", "query_segments", "query_features")}
        own |= {"query_offset": offset + i, "backend": backend}
        parts.append(attention_stats(q[:, :, i:j], k, names, **terms, **more | own))
    joined = {name: join(name, *(part[name] for part in parts)) for name in names}
    same(joined, whole, backend)


def join(name: str, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Of the two parts of the queries."""
    if name in ROW_STATS:
        return torch.cat([first, second], 2)
    if name == "key_max":
        return torch.maximum(first, second)
    if name == "distance_histogram":  # the earlier queries may have fewer distances
        n = max(first.shape[2], second.shape[2])
        first, second = (torch.nn.functional.pad(x, (0, n - x.shape[2])) for x in (first, second))
    return first + second


@NAN_TILES
@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("how", ["key_valid", "key_lengths", "mask"])
def test_hidden_keys_may_be_appended(backend: str, how: str, supported: Supported) -> None:
    """17 more keys of NaN that nobody sees: the old statistics, and nothing for the new keys."""
    q, k, more = case(backend)
    n_k, extra = k.shape[2], 17
    longer = dict(more)
    for name in ("v", "key_features"):
        longer[name] = torch.nn.functional.pad(more[name], (0, 0, 0, extra), value=math.nan)
    longer["key_ids"] = torch.nn.functional.pad(more["key_ids"], (0, extra), value=3)
    longer["key_segments"] = torch.nn.functional.pad(more["key_segments"], (0, extra), value=-1)
    wide = torch.nn.functional.pad(k, (0, 0, 0, extra), value=math.nan)
    inside = torch.arange(n_k + extra) < n_k
    hiding: Terms = {
        "key_valid": {"key_valid": inside.expand(2, -1)},
        "key_lengths": {"key_lengths": torch.full((2,), n_k)},
        "mask": {"mask": inside},
    }[how]
    terms: Terms = {"window": 90, "query_offset": 3}
    names = [name for name in STATS if name not in ("diagonal_mass", "block_mass", "block_max")]
    names = supported(backend, q, k, names, **terms, **more)
    names = supported(backend, q, wide, names, **terms, **longer, **hiding)
    if not names:
        return  # the map is refused, by name
    one = attention_stats(q, k, names, backend=backend, **terms, **more)
    two = attention_stats(q, wide, names, backend=backend, **terms, **longer, **hiding)
    for name in names:
        if name in COLUMN_STATS or name == "distance_histogram":
            old = one[name].shape[2]
            new = two[name][:, :, old:]
            assert not new[~new.isnan()].any(), name
            two[name] = two[name][:, :, :old]
    same(two, one, backend)


@pytest.mark.parametrize("backend", HERE)
def test_positions_may_be_shifted(backend: str, supported: Supported) -> None:
    """Hidden keys in front and an offset that is as much larger: distances are what they were."""
    q, k, more = case(backend)
    n_q, n_k, shift = q.shape[2], k.shape[2], 13
    terms: Terms = {"causal": True, "window": 80, "alibi": torch.linspace(0.0, 0.2, 4)}
    moved = dict(more)
    for name in ("v", "key_features"):
        moved[name] = torch.nn.functional.pad(more[name], (0, 0, shift, 0))
    moved["key_ids"] = torch.nn.functional.pad(more["key_ids"], (shift, 0))
    moved["key_segments"] = torch.nn.functional.pad(more["key_segments"], (shift, 0), value=-1)
    moved["keys"], moved["first_key"] = more["keys"] + shift, more["first_key"] + shift
    valid = (torch.arange(n_k + shift) >= shift).expand(2, -1)
    longer = torch.nn.functional.pad(k, (0, 0, shift, 0))
    names = [name for name in (*ROW_STATS, *COLUMN_STATS) if name not in ("argmax", "top_keys")]
    names = supported(backend, q, k, names, **terms, **more)
    if not names:
        return  # the map is refused, by name
    terms |= {"backend": backend}
    one = attention_stats(q, k, names, query_offset=n_k - n_q, **terms, **more)
    two = attention_stats(
        q, longer, names, query_offset=n_k - n_q + shift, key_valid=valid, **terms, **moved
    )
    for name in names:
        if name in COLUMN_STATS:
            two[name] = two[name][:, :, shift:]
    same(two, one, backend)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("causal", [False, True])
def test_packed_texts_equal_separate_calls(
    backend: str, causal: bool, supported: Supported
) -> None:
    """Three texts in one row of tokens, each as if it were alone. Few ids, so that the last token
    of one text often equals the first of the next."""
    q, k = make(1, 4, 2, 70, 70, 16)
    more = extras(1, 2, 70, 70, vocabulary=2)
    more["key_ids"] = more["query_ids"]
    ends = (0, 21, 22, 70)
    own = torch.bucketize(torch.arange(70), torch.tensor(ends[1:-1]), right=True)[None]
    terms: Terms = {"causal": causal, "query_offset": 0}
    packed = {"query_sequence": own, "key_sequence": own}
    names = [
        name for name in (*ROW_STATS, *COLUMN_STATS)
        if name not in ("argmax", "top_keys", "first_mass", "keys_mass")
    ]  # fmt: skip
    names = supported(backend, q, k, names, **terms, **packed, **more)
    if not names:
        return  # the map is refused, by name
    found = attention_stats(q, k, names, backend=backend, **terms, **packed, **more)
    for i, j in pairwise(ends):
        part = {
            name: x[:, i:j]
            for name, x in more.items()
            if name in ("query_ids", "key_ids", "query_segments", "key_segments", "query_features")
        } | {name: more[name][:, :, i:j] for name in ("v", "key_features")}
        part |= {"first_key": None, "keys": None}
        alone = attention_stats(
            q[:, :, i:j], k[:, :, i:j], names, backend=backend, **terms, **more | part
        )
        same({name: x[:, :, i:j] for name, x in found.items()}, alone, backend)


@pytest.mark.parametrize("backend", HERE)
def test_a_decode_step_is_the_last_row(backend: str, supported: Supported) -> None:
    q, k = make(2, 6, 2, 65, 65, 16)
    more = extras(2, 2, 65, 65)
    last = {name: more[name][:, -1:] for name in ("query_ids", "query_segments", "query_features")}
    names = supported(backend, q, k, ROW_STATS, causal=True, **more)
    whole = attention_stats(q, k, names, causal=True, backend=backend, **more)
    step = attention_stats(q[:, :, -1:], k, names, causal=True, backend=backend, **more | last)
    same(step, {name: x[:, :, -1:] for name, x in whole.items()}, backend)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"causal": True, "window": 30, "softcap": 4.0},
        {"causal": True, "sink_logit": torch.tensor([1.0, -math.inf, 3.0, -2.0])},
        {"mask": "some", "key_valid": "ragged"},
    ],
    ids=["full", "window", "sink", "mask"],
)
def test_a_given_lse_changes_nothing(backend: str, terms: Terms, supported: Supported) -> None:
    """Alone, where it saves a pass, and with everything else."""
    q, k, more = case(backend)
    values = {"some": some_mask(2, 4, q.shape[2], k.shape[2]), "ragged": ragged(2, k.shape[2])}
    terms = {name: values[x] if isinstance(x, str) else x for name, x in terms.items()}
    lse = attention_stats(q.double(), k.double(), ["lse"], backend="naive", **terms)["lse"].float()
    names = supported(backend, q, k, STATS, **terms, **more)
    if not names:
        return  # the map is refused, by name
    without = attention_stats(q, k, names, backend=backend, **terms, **more)
    assert names == supported(backend, q, k, names, lse=lse, **terms, **more)
    found = attention_stats(q, k, names, backend=backend, lse=lse, **terms, **more)
    same(found, without, backend)
    alone: Terms = {}
    for name in names:
        alone |= attention_stats(q, k, [name], backend=backend, lse=lse, **terms, **more)
    same(alone, without, backend)


@pytest.mark.parametrize("backend", HERE)
def test_same_bits_twice_and_alone(backend: str, supported: Supported) -> None:
    """Asked for again, the same bits; asked for alone, the same value."""
    q, k, more = case(backend)
    terms = more | {"causal": True, "query_valid": ragged(2, q.shape[2])}
    names = supported(backend, q, k, STATS, **terms)
    once, twice = (attention_stats(q, k, names, backend=backend, **terms) for _ in range(2))
    assert tuple(once) == tuple(names)
    alone: Terms = {}
    for name in names:
        assert torch.equal(once[name].nan_to_num(-7.0), twice[name].nan_to_num(-7.0)), name
        one = attention_stats(q, k, [name], backend=backend, **terms)
        assert list(one) == [name]
        alone |= one
    same(alone, once, backend)


@pytest.mark.parametrize("backend", HERE)
def test_the_arguments_are_left_as_they_were(backend: str, supported: Supported) -> None:
    q, k, more = case(backend)
    terms: Terms = more | {
        "key_valid": ragged(2, k.shape[2]),
        **sequences(2, q.shape[2], k.shape[2]),
    }
    before = {
        n: x.clone() for n, x in {"q": q, "k": k, **terms}.items() if isinstance(x, torch.Tensor)
    }
    names = supported(backend, q, k, STATS, **more)
    attention_stats(q, k, names, backend=backend, **more)
    for given in (terms, more | {"key_valid": terms["key_valid"]}):
        usable = supported(backend, q, k, names, **given)
        if usable:
            attention_stats(q, k, usable, backend=backend, **given)
    after = {"q": q, "k": k, **terms}
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert not set(BLOCK_STATS) & set(ROW_STATS)
