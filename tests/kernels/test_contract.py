"""One contract for every backend that runs here: each statistic under each term either agrees with
the float64 specification by relative error, on memory that held NaN, or is refused by name.

Allowed: 2e-5 for float32, float16 and bfloat16 input (the values are compared as they are), 1e-10
for float64; 1e-4 for logits of +-80, whose scores carry 80 * 2^-24 * a few. The triton backend
takes part where TRITON_INTERPRET=1; `test_triton.py` starts processes for it otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.kernels.cases import (
    MAPS,
    Terms,
    extras,
    make,
    map_terms,
    names_for,
    ragged,
    relative_error,
    sequences,
    some_mask,
)
from workbench.kernels.attention_stats import (
    BACKENDS,
    MAP_TERMS,
    STATS,
    LowRankBias,
    Neighbourhood,
    attention_stats,
    available_backends,
    pattern,
)
from workbench.kernels.attention_stats.terms import NEEDS, STAT_TERMS

HERE = tuple(name for name in BACKENDS if name in available_backends("cpu"))
FAST = tuple(name for name in HERE if name != "naive")
ALLOWED = {torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5, torch.float64: 1e-10}
# torch's own half-precision kernels have a fast exponential.
STOCK_HALF = 1e-4
# Queries and keys: several strips of the torch path; the interpreter needs 5 ms for every tile.
SIZE = {"triton": (20, 40)}
# numpy inside triton's interpreter, about the maximum of a tile of padding, which is thrown away.
NAN_TILES = pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
Agree = Callable[..., dict[str, float]]
Supported = Callable[..., list[str]]


def case(backend: str, *, heads: tuple[int, int] = (4, 2), d: int = 32, **options: Any) -> tuple:
    """(q, k, extras) of two prompts in the size of the backend."""
    n_q, n_k = SIZE.get(backend, (150, 203))
    q, k = make(2, *heads, n_q, n_k, d, **options)
    return q, k, extras(2, heads[1], n_q, n_k)


def check(
    agree: Agree, supported: Supported, backend: str, q: torch.Tensor, k: torch.Tensor,
    terms: Terms, tolerance: float | None = None,
) -> list[str]:  # fmt: skip
    """Every statistic agrees or is refused; the names of those that agree."""
    want = supported(backend, q, k, names_for(terms), **terms)
    if tolerance is None:
        half = backend == "stock" and q.dtype in (torch.float16, torch.bfloat16)
        tolerance = STOCK_HALF if half else ALLOWED[q.dtype]
    if want:
        agree(q, k, tolerance, want, backend, **terms)
    return want


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("backend", FAST)
def test_every_statistic_under_every_term(
    backend: str, name: str, agree: Agree, supported: Supported, poisoned: None
) -> None:
    q, k, more = case(backend)
    terms = more | MAPS[name](*q.shape[:3], k.shape[2])
    check(agree, supported, backend, q, k, terms)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("backend", FAST)
def test_pattern_under_every_term(backend: str, name: str, poisoned: None) -> None:
    q, k, _ = case(backend)
    terms = MAPS[name](*q.shape[:3], k.shape[2])
    whole = pattern(q.double(), k.double(), backend="naive", **terms)
    activation = terms.get("activation", "softmax")
    small = float(whole.abs().mean()) if activation != "softmax" else 1e-6
    for rows in (slice(None), slice(3, 5), slice(-7, None), slice(7, 7)):
        try:
            found = pattern(q, k, rows=rows, backend=backend, **terms)
        except ValueError as refusal:
            assert f"the backend {backend!r} does not support" in str(refusal)
            continue
        assert found.dtype == torch.float32
        assert relative_error(found, whole[:, :, rows], small) < 2e-5


CHANGED: dict[str, Callable[..., Terms]] = {
    "scale": MAPS["scale"],
    "causal": MAPS["causal"],
    "query_offset": lambda b, h, n, m: {"causal": True, "query_offset": 4},
    "window": MAPS["two-sided window"],
    "softcap": MAPS["softcap"],
    "sink_logit": MAPS["sink"],
    "mask": MAPS["mask"],
    "bias": MAPS["bias"],
    "alibi": MAPS["two-sided alibi"],
    "key_valid": MAPS["key_valid"],
    "key_lengths": MAPS["key_lengths"],
    "query_sequence": MAPS["sequences"],
    "key_sequence": lambda b, h, n, m: {
        "query_sequence": torch.zeros(b, n, dtype=torch.long),
        "key_sequence": sequences(b, n, m)["key_sequence"],
    },
    "activation": lambda b, h, n, m: {"activation": "sigmoid"},
}


@pytest.mark.parametrize("term", MAP_TERMS)
@pytest.mark.parametrize("backend", HERE)
def test_no_term_of_the_map_is_ignored(backend: str, term: str) -> None:
    """With the term the result is another one than without it, or the term is refused."""
    q, k, _ = case(backend)
    terms = CHANGED[term](*q.shape[:3], k.shape[2])
    assert term in terms
    plain = {x: value for x, value in terms.items() if x != term}
    if term in ("query_sequence", "key_sequence"):
        plain = {}
    want = ["key_mass"]
    without = attention_stats(q, k, want, backend=backend, **plain)
    try:
        found = attention_stats(q, k, want, backend=backend, **terms)
    except ValueError as refusal:
        assert f"the backend {backend!r} does not support" in str(refusal)
        return
    assert all(not torch.equal(found[name], without[name]) for name in want)


OTHER: dict[str, tuple[str, Any]] = {
    # a term that only some statistics read: one of those, another value of the term
    "v": ("output", lambda x: x.flip(2)),
    "query_valid": ("key_mass", lambda x: torch.ones(2, 1, dtype=torch.bool)),
    "first_key": ("first_mass", lambda x: x + 3),
    "query_ids": ("duplicate_mass", lambda x: x.flip(1)),
    "key_ids": ("induction_mass", lambda x: x.flip(1)),
    "query_segments": ("segment_mean", lambda x: torch.stack([x >= 0, x == 1, x < 1], 1)),
    "key_segments": ("role_mass", lambda x: torch.stack([x >= 0, x == 1, x < 1], 1)),
    "n_segments": ("role_mass", lambda x: 4),
    "query_features": ("query_feature_mass", lambda x: -x),
    "key_features": ("feature_mass", lambda x: x[:, :1]),
    "offsets": ("offset_mass", lambda x: (2, 3)),
    "keys": ("keys_mass", lambda x: x[0]),
    "horizon": ("fai", lambda x: (0, None)),
    "waad_window": ("waad", lambda x: 90),
    "local_window": ("local_mass", lambda x: 90),
    "pool": ("block_max", lambda x: 5),
    "topk": ("top_probs", lambda x: 1000),
    "power": ("participation", lambda x: 1.5),
}


@pytest.mark.parametrize("term", OTHER)
@pytest.mark.parametrize("backend", FAST)
def test_other_values_of_the_arguments(
    backend: str, term: str, agree: Agree, supported: Supported, poisoned: None
) -> None:
    """Also forms that were not in the cases above: overlapping segments, one feature head for all,
    one block size, keys for all prompts, more keys than there are, an open horizon, a power that is
    no integer."""
    statistic, change = OTHER[term]
    q, k, more = case(backend)
    more |= {"causal": True, "query_valid": ragged(2, q.shape[2])}
    value = change(more[term])
    value = ragged(2, q.shape[2]).flip(1) if term == "query_valid" else value
    value = value[:, 0] if term == "key_features" else value
    names = {name for name, needs in NEEDS.items() if term in needs} | {statistic}
    usable = supported(backend, q, k, sorted(names), **more | {term: value})
    if usable:
        agree(q, k, 2e-5, usable, backend, **more | {term: value})
    before, after = (
        attention_stats(q, k, [statistic], backend="naive", **more | {term: x})[statistic]
        for x in (more[term], value)
    )
    assert before.shape != after.shape or not torch.equal(before, after)


def test_the_cases_are_complete() -> None:
    """Every term and every statistic is in some case above."""
    given = set().union(*(terms(2, 4, 150, 203) for terms in MAPS.values()))
    assert given == set(MAP_TERMS)
    assert set(CHANGED) == set(MAP_TERMS)
    assert set(OTHER) == set(STAT_TERMS) - {"lse"}
    assert set(names_for({})) == set(STATS)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("d", [32, 80, 128, 256])
def test_widths_and_dtypes(
    d: int, dtype: torch.dtype, backend: str, agree: Agree, supported: Supported
) -> None:
    q, k, more = case(backend, d=d, dtype=dtype)
    more = {name: x.to(dtype) if _floats(x) else x for name, x in more.items()}
    check(agree, supported, backend, q, k, more | {"causal": True})


def _floats(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


SHAPES = {
    # B, H, Hkv, Q, K, D
    "one of everything": (1, 1, 1, 1, 1, 1),
    "one query, a cache": (2, 6, 2, 1, 65, 16),
    "one key": (1, 2, 1, 33, 1, 8),
    "more queries than keys": (1, 2, 1, 90, 33, 16),
    "few queries, many keys": (1, 4, 2, 3, 300, 16),
    "one key head": (3, 5, 1, 40, 41, 7),
    "as many key heads": (1, 3, 3, 65, 64, 24),
    "no queries": (1, 2, 1, 0, 5, 8),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("backend", FAST)
def test_shapes(
    backend: str, shape: tuple, causal: bool, agree: Agree, supported: Supported, poisoned: None
) -> None:
    b, _, h_kv, n_q, n_k, _ = shape
    terms = extras(b, h_kv, n_q, n_k) | {"causal": causal}
    check(agree, supported, backend, *make(*shape), terms)


@NAN_TILES
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("causal", [False, True])
def test_padding_may_hold_anything(
    causal: bool, backend: str, agree: Agree, supported: Supported, poisoned: None
) -> None:
    """NaN in q, k, v and both features where the token is padding; one prompt is nothing else."""
    n = 40 if backend == "triton" else 150
    q, k = make(3, 4, 2, n, n, 32)
    valid = ragged(3, n)
    valid[2] = False
    terms = extras(3, 2, n, n) | {"key_valid": valid, "query_valid": valid, "causal": causal}
    padding = ~valid[:, None, :, None]
    q, k = q.masked_fill(padding, math.nan), k.masked_fill(padding, math.nan)
    for name in ("v", "key_features"):
        terms[name] = terms[name].masked_fill(padding, math.nan)
    terms["query_features"] = terms["query_features"].masked_fill(padding[:, 0], math.nan)
    check(agree, supported, backend, q, k, terms)
    sink = torch.tensor([0.5, -math.inf, 2.0, 0.0])
    check(agree, supported, backend, q, k, terms | {"sink_logit": sink})


@NAN_TILES
@pytest.mark.parametrize("backend", FAST)
def test_keys_hidden_by_a_mask_may_hold_anything(
    backend: str, agree: Agree, supported: Supported, poisoned: None
) -> None:
    q, k, more = case(backend)
    seen = torch.ones(k.shape[2], dtype=torch.bool)
    seen[20:33] = False
    hidden = ~seen[:, None]
    for name in ("v", "key_features"):
        more[name] = more[name].masked_fill(hidden, math.nan)
    check(agree, supported, backend, q, k.masked_fill(hidden, math.nan), more | {"mask": seen})


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("causal", [False, True])
def test_logits_of_eighty(causal: bool, backend: str, agree: Agree, supported: Supported) -> None:
    """Sharp rows: the entropy is a millionth of a nat and is still right to 1e-4 of itself."""
    q, k, more = case(backend, d=64, spread=20.0)
    s = torch.einsum("bhqd,bhkd->bhqk", q[:, ::2], k) / 8
    assert s.max() > 80
    assert s.min() < -80
    check(agree, supported, backend, q, k, more | {"causal": causal}, 1e-4)


@pytest.mark.parametrize("backend", FAST)
def test_one_key_a_thousand_times_heavier(backend: str, agree: Agree, supported: Supported) -> None:
    """A sink by one more dimension: every logit of key 0 is log(1000) above what it was."""
    q, k, more = case(backend, d=31, spread=0.3)
    q = torch.cat([q, torch.full_like(q[..., :1], 32**0.5)], -1)
    k = torch.cat([k, torch.zeros_like(k[..., :1])], -1)
    k[:, :, 0, -1] = math.log(1000.0)
    check(agree, supported, backend, q, k, more | {"causal": True})
    heavy = attention_stats(q, k, ["key_mass", "key_mean"], causal=True, backend=backend)
    assert heavy["key_mean"][..., 0].min() > 0.7
    assert heavy["key_mass"][..., 0].min() > 50 * heavy["key_mass"][..., 1:].max()


@pytest.mark.parametrize("backend", FAST)
def test_what_one_backend_refuses_another_answers(backend: str) -> None:
    """A refusal names the statistic or a term that was given; "auto" and "naive" answer all the
    same."""
    q, k = make(1, 4, 2, 20, 30, 16)
    more = extras(1, 2, 20, 30)
    for name, terms in MAPS.items():
        given = terms(1, 4, 20, 30)
        for statistic in ("key_mass", "output", "block_max"):
            try:
                attention_stats(q, k, [statistic], backend=backend, **more, **given)
            except ValueError as refusal:
                assert any(word in str(refusal) for word in (statistic, *given)), name
                for other in ("auto", "naive"):
                    found = attention_stats(q, k, [statistic], backend=other, **more, **given)
                    assert statistic in found


def test_descriptions_equal_matrices() -> None:
    """A mask and a bias by rule are the matrices they stand for, on every backend that takes
    both."""
    q, k, more = case("torch", d=16)
    n_q, n_k = q.shape[2], k.shape[2]
    rule = Neighbourhood((n_k,), (9,), (2,))
    dense = rule.visible(torch.arange(n_q)[:, None], torch.arange(n_k)[None])
    low = LowRankBias(torch.randn(2, 4, n_q, 3), torch.randn(1, 1, n_k, 3))
    matrix = low.left @ low.right.transpose(2, 3)
    pairs: tuple[tuple[Terms, Terms], ...] = (
        ({"mask": rule}, {"mask": dense}),
        ({"bias": low}, {"bias": matrix}),
        ({"mask": some_mask(n_q, n_k)}, {"mask": some_mask(n_q, n_k).expand(2, 4, n_q, n_k)}),
    )
    for one, other in pairs:
        for backend in HERE:
            want = ["lse", "key_mass", "n_visible", "key_count", "entropy"]
            try:
                found = [attention_stats(q, k, want, backend=backend, **x) for x in (one, other)]
            except ValueError as refusal:
                assert "does not support" in str(refusal)
                continue
            for name in want:
                assert relative_error(found[0][name], found[1][name], 1e-6) < 2e-5, name
    assert map_terms(more) == {}
