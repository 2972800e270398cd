"""The parts of the strips, against loops and closed forms, and what they may cost.

Allowed: 2e-5 for float32 (achieved: 1e-6 to 5e-6), 1e-10 for float64.
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
    errors,
    extras,
    make,
    names_for,
    relative_error,
    sequences,
    some_bias,
)
from workbench.kernels.attention_stats import (
    STATS,
    LowRankBias,
    Neighbourhood,
    Strided,
    attention_stats,
    pattern,
    torch_blockwise,
    torch_problem,
)
from workbench.kernels.attention_stats.torch_columns import pooled
from workbench.kernels.attention_stats.torch_distance import Skew
from workbench.kernels.attention_stats.torch_rows import Features, diagonal
from workbench.kernels.attention_stats.torch_strip import first_topk

# Descriptions of visibility and bias that a strip works out for itself, as functions of (Q, K).
RULES: dict[str, Callable[[int, int], Terms]] = {
    "neighbourhood": lambda n, m: {"mask": Neighbourhood((m,), (5,))},
    "strided": lambda n, m: {"mask": Strided(2, 5)},
    "sequences": lambda n, m: sequences(1, n, m),
    "low rank": lambda n, m: {
        "bias": LowRankBias(some_bias(1, 2, n, 3), some_bias(1, 1, m, 3, seed=4))
    },
    "alibi": lambda n, m: {"alibi": torch.tensor([0.1, 0.5])},
}


def test_any_shape_and_mixture() -> None:
    """Every statistic, under terms drawn together."""
    hypothesis = pytest.importorskip("hypothesis")
    settings = hypothesis.settings(
        max_examples=30, deadline=None, derandomize=True, phases=[hypothesis.Phase.generate]
    )
    settings(hypothesis.given(data=hypothesis.strategies.data())(check_drawn))()


def check_drawn(data: Any) -> None:
    from hypothesis import strategies as st

    draw = data.draw
    b, h_kv, per_key = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    n_q, n_k, d = draw(st.integers(1, 200)), draw(st.integers(1, 200)), draw(st.integers(1, 24))
    h = h_kv * per_key
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    seed = draw(st.integers(0, 99))
    q, k = make(b, h, h_kv, n_q, n_k, d, seed=seed, dtype=dtype)
    g = torch.Generator().manual_seed(seed)
    terms: Terms = {"causal": draw(st.booleans())}
    terms["window"] = draw(st.none() | st.integers(1, 200))
    terms["query_offset"] = draw(st.none() | st.integers(-50, 50))
    terms["softcap"] = draw(st.none() | st.just(4.0))
    for name in draw(st.sets(st.sampled_from(["key_valid", "query_valid"]))):
        terms[name] = torch.rand(b, n_k if name == "key_valid" else n_q, generator=g) > 0.3
    for name in draw(st.sets(st.sampled_from(["alibi", "sink_logit"]))):
        terms[name] = torch.rand(h, generator=g)
    if draw(st.booleans()):
        terms |= sequences(b, n_q, n_k)
    mask = draw(st.sampled_from(["none", "tensor", "strided"]))
    if mask != "none":
        seen = torch.rand(draw(st.sampled_from([1, b])), 1, n_q, n_k, generator=g) > 0.2
        terms["mask"] = seen if mask == "tensor" else Strided(3, 4)
    terms |= extras(b, h_kv, n_q, n_k, vocabulary=draw(st.sampled_from([1, 5, 100])))
    low, pool = draw(st.integers(0, 150)), st.integers(1, 300)
    terms["horizon"] = (low, draw(st.none() | st.integers(low, 200)))
    terms["pool"] = (draw(pool), draw(pool))
    terms["topk"], terms["power"] = draw(st.integers(1, 250)), draw(st.sampled_from([2, 1.5]))
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    found = errors("torch", q, k, STATS, terms)
    wrong = {name: error for name, error in found.items() if not error <= tolerance}
    assert not wrong, wrong


@pytest.mark.parametrize("n", [60, 500])
def test_same_bits_at_any_number_of_threads(n: int) -> None:
    q, k = make(2, 6, 3, n, n, 32)
    terms: Terms = extras(2, 3, n, n) | {"causal": True, "query_valid": torch.rand(2, n) > 0.1}
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(attention_stats(q, k, STATS, backend="torch", **terms))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for name, x in runs[0].items():
        assert all(torch.equal(x.nan_to_num(-7), y[name].nan_to_num(-7)) for y in runs[1:]), name


@pytest.mark.parametrize("name", STATS)
def test_a_statistic_alone_is_what_it_is_among_others(name: str) -> None:
    """Asking for less skips work; the values stay."""
    q, k = make(1, 4, 2, 150, 150, 16)
    terms: Terms = extras(1, 2, 150, 150) | {"causal": True}
    # Of one sign, so that a sum is as large as its terms.
    terms |= {x: terms[x].abs() for x in ("v", "key_features", "query_features")}
    together = attention_stats(q, k, STATS, backend="torch", **terms)[name]
    alone = attention_stats(q, k, [name], backend="torch", **terms)
    assert list(alone) == [name]
    # Rounding of the sums of p and p^2 shows where a variance is small.
    small = 1e-3 if name == "key_var" else 1e-6
    assert relative_error(alone[name], together, small) < 5e-6


def largest_of(n: int, terms: Terms) -> int:
    """Elements of the largest tensor that any operation made."""
    from tests.kernels.test_torch_bands import Work

    q, k = make(1, 2, 1, n, n, 8)
    given: Terms = extras(1, 1, n, n) | {"pool": n // 8, "keys": torch.arange(4)} | terms
    with Work() as work:
        attention_stats(q, k, names_for(terms), backend="torch", **given)
    return work.largest


@pytest.mark.parametrize("name", RULES)
def test_memory_is_linear_in_length(name: str) -> None:
    """No statistic and no description makes a matrix of queries x keys."""
    short, long = (largest_of(n, RULES[name](n, n) | {"causal": True}) for n in (600, 1200))
    print(f"{name}: largest tensor {long / 1200**2:.2f} of the map")
    assert long < 2.2 * short
    assert long < 0.25 * 2 * 1200**2


def test_memory_of_the_counts_is_linear_in_length() -> None:
    for name in ("neighbourhood", "strided"):
        made = []
        for n in (600, 1200):
            from tests.kernels.test_torch_bands import Work

            with Work() as work:
                attention_stats(*make(1, 2, 1, n, n, 8), ["n_visible"], **RULES[name](n, n))
            made.append(work.largest)
        assert made[1] < 2.2 * made[0]


def test_plans_that_are_kept_stay_small() -> None:
    """What heads share is kept per strip only while it is linear in length."""
    n = 3000
    q, k = make(1, 1, 1, n, n, 4)
    ids = torch.zeros(1, n, dtype=torch.long)
    for terms in ({"mask": Strided(2, 5)}, {"query_ids": ids, "key_ids": ids}, {"window": 40}):
        given: Terms = {
            "query_offset": 0,
            "causal": True,
            "window": None,
            "activation": "softmax",
        } | terms
        problem = torch_problem.Problem.of(
            q, k, ("duplicate_mass",) if "key_ids" in terms else (), given
        )
        prompt = problem.prompts[0]
        for i0 in range(0, n, problem.rows):
            assert prompt.plan(i0, min(n, i0 + problem.rows)) is not None
        kept = sum(plan.bytes for plan in prompt.plans.values() if plan is not None)
        assert kept <= 2048 * n
        assert ("window" in terms) == (len(prompt.plans) == -(-n // problem.rows))


@pytest.mark.parametrize(
    "mask",
    [
        Neighbourhood((200,), (5,)),
        Neighbourhood((200,), (7,), (9,)),
        Neighbourhood((10, 20), (3, 5)),
        Neighbourhood((20, 10), (5, 3), (3, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("offset", [-30, 0, 60])
def test_the_reach_of_a_neighbourhood_holds_all_it_sees(mask: Neighbourhood, offset: int) -> None:
    """Strips are cut to the rows of the grid that a window may touch: none too many is lost, and
    a small window does not cost the whole map."""
    q, k = make(1, 1, 1, 150, 200, 4)
    given: Terms = {
        "query_offset": offset,
        "causal": False,
        "window": None,
        "activation": "softmax",
    }
    problem = torch_problem.Problem.of(q, k, (), given | {"mask": mask})
    seen = mask.visible(torch.arange(150)[:, None] + offset, torch.arange(200)[None])
    for i0 in range(0, 150, 10):
        lo, hi = problem.geometry.span(i0, i0 + 10)
        where = seen[i0 : i0 + 10].any(0).nonzero()[:, 0]
        assert where.numel() == 0 or (lo <= int(where[0]) and int(where[-1]) < hi)
    step = (mask.dilation or (1,))[0]
    below = 200 // mask.grid[0]
    lo, hi = problem.geometry.span(70, 71)
    assert hi - lo <= (2 * mask.window[0] * step + 1) * below


def test_padding_of_values_and_features_does_not_leak_but_a_seen_nan_shows() -> None:
    """A NaN with mass is the caller's: the rows that give it weight are NaN, no others."""
    q, k = make(1, 2, 2, 40, 40, 8)
    v = torch.randn(1, 2, 40, 3)
    v[0, 1, 20] = math.nan
    found = attention_stats(q, k, ["output", "value_mass"], v=v, causal=True, backend="torch")
    for x in (found["output"].isnan().any(-1), found["value_mass"].isnan()):
        assert not x[0, 0].any()
        assert torch.equal(x[0, 1], torch.arange(40) >= 20)
    v[0, 1, 20] = math.inf
    valid = torch.arange(40)[None] != 20
    padded = attention_stats(q, k, ["output"], v=v, key_valid=valid, backend="torch")["output"]
    assert padded.isfinite().all()
    assert Features.of(v[0, :1]).spoils is None


def test_topk_with_ties() -> None:
    """Among equal scores the first keys, also where `topk` itself may choose freely."""
    g = torch.Generator().manual_seed(0)
    for width, levels in ((5, 2), (300, 3), (300, 1000)):
        s = torch.randint(levels, (2, 1, 40, width), generator=g).float()
        s[..., width // 2 :: 7] = -1e30
        for count in (1, 3, min(width, 50), width):
            value, index = first_topk(s, count, -1e30)
            order = [
                sorted(range(width), key=lambda j, row=row: (-row[j], j))[:count]
                for row in s.flatten(0, 2).tolist()
            ]
            expected = torch.tensor(order).view(2, 1, 40, count)
            shown = value > -1e30
            assert torch.equal(value, s.gather(-1, expected))
            assert torch.equal(index[shown], expected[shown])


def test_weights_that_underflow_keep_their_order() -> None:
    """Keys whose p is 0 in float32 are still ordered by their scores."""
    q, k = torch.full((1, 1, 1, 1), 1.0), torch.tensor([0.0, -300.0, -200.0, -400.0])
    found = attention_stats(
        q, k.view(1, 1, 4, 1), ["top_keys", "top_probs"], topk=6, scale=1.0, backend="torch"
    )
    assert found["top_keys"].flatten().tolist() == [0, 2, 1, 3, -1, -1]
    assert found["top_probs"].flatten().tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("start", [0, 3, 7, 64])
@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_pooling_of_a_strip(start: int, size: int) -> None:
    x = torch.rand(2, 1, 13, 100)
    for dim, n in ((-1, 100), (-2, 13)):
        found = pooled(x, dim, start, size, torch.sum)
        block = (torch.arange(n) + start) // size - start // size
        shape = list(x.shape)
        shape[dim] = int(block.max()) + 1
        expected = torch.zeros(shape).index_add_(dim, block, x)
        assert relative_error(found, expected) < 1e-6


def test_strips_laid_out_by_distance() -> None:
    """One memory, strips of different widths and rows after one another: entry c of every row lies
    c - (N - 1) + row keys in."""
    skew = Skew(16, torch.float32, torch.device("cpu"))
    for u, n, width in ((2, 16, 40), (1, 5, 7), (2, 16, 41), (3, 16, 12), (1, 16, 200), (2, 3, 1)):
        p = torch.rand(u, 1, n, width)
        laid = skew.lay(p)
        assert laid.shape == (u, n, width + 15)
        for c in range(width + 15):
            assert torch.equal(laid[..., c], diagonal(p, c - 15)[:, 0])


def test_uniform_rows_in_closed_form() -> None:
    """Causal and all scores equal, p[i, j] = 1 / (i + 1): sums over queries across six strips."""
    n = 700
    q, k = torch.zeros(1, 2, n, 4), torch.zeros(1, 2, n, 4)
    found = attention_stats(
        q, k, ["key_entropy", "key_var", "key_mean", "fai", "block_max", "distance_histogram"],
        causal=True, horizon=(10, 50), pool=100, backend="torch",
    )  # fmt: skip
    row = 1.0 / torch.arange(1, n + 1, dtype=torch.float64)
    for j in (0, 1, 127, 128, 500, n - 2, n - 1):
        seen = row[j:]
        share = seen / seen.sum()
        expected = {
            "key_entropy": -(share * share.log()).sum(),
            "key_mean": seen.mean(),
            "fai": row[j + 10 : j + 51].mean(),
        }
        for name, x in expected.items():
            assert relative_error(found[name][0, :, j], x.expand(2)) < 2e-5, (name, j)
        if 0 < j < 600:
            variance = seen.var(unbiased=False).expand(2)
            assert relative_error(found["key_var"][0, :, j], variance, 1e-12) < 1e-4
    assert found["key_entropy"][0, 0, -1] < 1e-30
    assert relative_error(found["block_max"][0, 0, 3, :4], row[300].expand(4)) < 1e-6
    assert not found["block_max"][0, 0, 3, 4:].any()
    assert found["distance_histogram"].shape[-1] == 11
    assert relative_error(found["distance_histogram"].sum(-1), torch.full((1, 2), float(n))) < 1e-6


def test_a_profile_with_one_sharp_peak() -> None:
    """A key that one query of many strips loves, the others hardly: its entropy is a millionth of a
    nat and right to 1e-4 of itself."""
    n = 400
    bias = torch.full((n, n), 0.0)
    bias[:, 3] = -12.0
    bias[200, 3] = 30.0
    q, k = torch.zeros(1, 1, n, 4), torch.zeros(1, 1, n, 4)
    terms: Terms = {"bias": bias}
    found = attention_stats(q, k, ["key_entropy"], backend="torch", **terms)["key_entropy"]
    expected = attention_stats(q.double(), k.double(), ["key_entropy"], backend="naive", **terms)
    assert 0 < expected["key_entropy"][0, 0, 3] < 1e-3
    assert relative_error(found, expected["key_entropy"], 1e-12) < 1e-4


def test_a_profile_too_small_for_float32() -> None:
    """Received shares do not depend on how little is received in all: p of 1e-50 and less."""
    n = 300
    g = torch.Generator().manual_seed(0)
    bias = torch.zeros(n, n)
    bias[:, 5] = torch.randn(n, generator=g) * 3
    q, k = torch.zeros(1, 1, n, 4), torch.zeros(1, 1, n, 4)
    want = ["key_entropy", "key_mass"]
    usual = attention_stats(q, k, want, bias=bias, backend="torch")
    bias[:, 5] -= 120.0
    found = attention_stats(q, k, want, bias=bias, backend="torch")
    exact = attention_stats(q.double(), k.double(), want, bias=bias.double(), backend="naive")
    assert found["key_mass"][0, 0, 5] == 0
    assert relative_error(found["key_entropy"], exact["key_entropy"]) < 2e-5
    assert not torch.equal(usual["key_mass"], found["key_mass"])


@pytest.mark.parametrize("name", MAPS)
def test_nothing_is_refused(name: str) -> None:
    terms = MAPS[name](2, 4, 30, 40)
    q = torch.zeros(2, 4, 30, 8)
    assert torch_blockwise.refuses(q, STATS, terms) is None
    assert pattern(q, torch.zeros(2, 2, 40, 8), backend="torch", **terms).shape == (2, 4, 30, 40)
