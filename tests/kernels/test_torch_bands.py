"""Statistics of few keys given the lse: the same numbers as the whole map, without its work.

Allowed: 2e-5 for float32, 1e-10 for float64. waad is measured against its window: it is the window
times one minus the mass inside, which float32 holds to 1e-7 of the window.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.cases import MAPS, SMALL, Terms, extras, make, ragged, relative_error
from workbench.kernels.attention_stats import attention_stats, passes, torch_blockwise
from workbench.kernels.attention_stats.terms import GIVEN_LSE, MAP_TERMS

SOFTMAX = [name for name, terms in MAPS.items() if "activation" not in terms(2, 4, 150, 203)]
WANT = tuple(sorted(GIVEN_LSE))


@pytest.fixture
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strips of the whole map are out of reach."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a sweep over the map")

    monkeypatch.setattr(torch_blockwise, "Reduction", refuse)


def check(q: torch.Tensor, k: torch.Tensor, terms: Terms, tolerance: float = 2e-5) -> None:
    """Every statistic of few keys against the specification; `lse` of the terms, or the true one
    rounded to the dtype of the results."""
    exact = attention_stats(q.double(), k.double(), WANT, backend="naive", **terms)
    lse = exact["lse"] if q.dtype == torch.float64 else exact["lse"].float()
    terms = {"lse": lse} | terms
    found = attention_stats(q, k, WANT, backend="torch", **terms)
    errors = {}
    for name in WANT:
        # lse is a logarithm: its absolute error is the relative one of the sum behind it.
        size = torch.full_like(exact[name], terms["waad_window"]) if name == "waad" else None
        small = 1.0 if name == "lse" else SMALL
        errors[name] = relative_error(found[name], exact[name], small, size)
    worst = max(errors, key=lambda name: errors[name])
    print(f"largest relative error {errors[worst]:.1e} ({worst}), allowed {tolerance:.0e}")
    wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f"allowed {tolerance:.0e}, reached {wrong}"


def true_lse(q: torch.Tensor, k: torch.Tensor, terms: Terms) -> torch.Tensor:
    """From the float64 specification."""
    own = {name: x for name, x in terms.items() if name in MAP_TERMS}
    return attention_stats(q.double(), k.double(), ["lse"], backend="naive", **own)["lse"].float()


@pytest.mark.parametrize("name", SOFTMAX)
def test_every_term(name: str, no_sweep: None, poisoned: None) -> None:
    """Near and far offsets, into the future too; a window that holds all keys."""
    q, k = make(2, 4, 2, 90, 121, 32)
    terms: Terms = extras(2, 2, 90, 121) | MAPS[name](2, 4, 90, 121)
    check(q, k, terms | {"offsets": (0, 1, 5, -2, 100, 5), "waad_window": 40, "horizon": (0, 0)})
    check(q, k, terms | {"offsets": (-80,), "waad_window": 500, "horizon": (70, 100)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype, no_sweep: None) -> None:
    q, k = make(2, 4, 2, 150, 203, 32, dtype=dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    check(q, k, extras(2, 2, 150, 203) | {"causal": True}, tolerance)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 6, 2, 1, 65), (1, 2, 1, 33, 1)])
def test_small_shapes(shape: tuple[int, ...], no_sweep: None, poisoned: None) -> None:
    b, h, h_kv, n_q, n_k = shape
    q, k = make(b, h, h_kv, n_q, n_k, 8)
    check(q, k, extras(b, h_kv, n_q, n_k) | {"causal": True})


def test_padding_and_blind_rows_may_hold_anything(no_sweep: None, poisoned: None) -> None:
    """NaN in q, k and the lse of padding; +inf where nothing is visible, as in some kernels."""
    n = 150
    q, k = make(3, 4, 2, n, n, 32)
    valid = ragged(3, n)
    valid[2] = False
    seen = torch.ones(n, n, dtype=torch.bool)
    seen[7] = False
    terms: Terms = extras(3, 2, n, n) | {"key_valid": valid, "query_valid": valid, "mask": seen}
    lse = true_lse(q, k, terms)
    lse = lse.masked_fill(lse == -math.inf, math.inf).masked_fill(~valid[:, None], math.nan)
    padding = ~valid[:, None, :, None]
    q, k = q.masked_fill(padding, math.nan), k.masked_fill(padding, math.nan)
    for name in ("v", "key_features"):
        terms[name] = terms[name].masked_fill(padding, math.nan)
    for causal in (False, True):
        own = lse
        if causal:
            own = true_lse(q.nan_to_num(), k.nan_to_num(), terms | {"causal": True})
        check(q, k, terms | {"causal": causal, "lse": own})


def test_a_window_of_everything_is_exact(no_sweep: None) -> None:
    """Where no key lies outside the band the mass outside is none, not a rounding."""
    q, k = make(1, 2, 2, 140, 140, 16, spread=9.0)
    terms: Terms = {"causal": True, "waad_window": 1000, "lse": true_lse(q, k, {"causal": True})}
    found = attention_stats(q, k, ["waad"], backend="torch", **terms)["waad"]
    expected = attention_stats(q.double(), k.double(), ["waad"], backend="naive", **terms)["waad"]
    assert relative_error(found, expected) < 2e-5


def test_any_shape_and_mixture() -> None:
    """Drawn by hypothesis."""
    hypothesis = pytest.importorskip("hypothesis")
    settings = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
    settings(hypothesis.given(data=hypothesis.strategies.data())(check_drawn))()


def check_drawn(data: Any) -> None:
    from hypothesis import strategies as st

    draw = data.draw
    b, h_kv, per_key = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    n_q, n_k = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    h = h_kv * per_key
    q, k = make(
        b, h, h_kv, n_q, n_k, draw(st.sampled_from([1, 7, 32])), seed=draw(st.integers(0, 99))
    )
    far = st.integers(1, 300)
    low = draw(st.integers(0, 200))
    terms: Terms = {
        "causal": draw(st.booleans()),
        "window": draw(st.none() | far),
        "query_offset": draw(st.none() | st.integers(-50, 50)),
        "waad_window": draw(far),
        "local_window": draw(far),
        "horizon": (low, low + draw(st.integers(0, 200))),
        "offsets": tuple(draw(st.lists(st.integers(-300, 300), min_size=1, max_size=5))),
    }
    if draw(st.booleans()):
        terms["key_valid"] = torch.rand(b, n_k) > 0.3
    if draw(st.booleans()):
        terms["query_valid"] = torch.rand(b, n_q) > 0.3
    if draw(st.booleans()):
        terms["mask"] = torch.rand(draw(st.sampled_from([1, b])), 1, n_q, n_k) > 0.2
    if draw(st.booleans()):
        terms["first_key"] = torch.randint(n_k, (b, n_q))
    vocabulary = draw(st.sampled_from([1, 5, 100]))
    check(q, k, extras(b, h_kv, n_q, n_k, vocabulary=vocabulary) | terms)


@pytest.mark.parametrize("statistic", sorted(GIVEN_LSE))
def test_what_costs_no_sweep(statistic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of `terms.passes` is what runs: with the lse no sweep, without it one."""
    q, k = make(1, 2, 2, 20, 20, 8)
    terms: Terms = extras(1, 2, 20, 20) | {"causal": True}
    lse = true_lse(q, k, terms)
    assert not set(passes([statistic], lse=True, horizon=(2, 20))) - {"band"}
    asked = []

    class Watched(torch_blockwise.Reduction):
        def run(self) -> None:
            asked.append(statistic)
            super().run()

    monkeypatch.setattr(torch_blockwise, "Reduction", Watched)
    attention_stats(q, k, [statistic], backend="torch", lse=lse, **terms)
    assert not asked
    attention_stats(q, k, [statistic], backend="torch", **terms)
    assert asked
    asked.clear()
    terms["horizon"] = (3, None)
    attention_stats(q, k, ["fai"], backend="torch", lse=lse, **terms)
    assert asked


class Work(TorchDispatchMode):
    """Elements that operations wrote, views not counted, and the largest result of one."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.largest = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        kinds = [x.alias_info for x in func._schema.returns]
        if any(kind is not None and not kind.is_write for kind in kinds):
            return found
        for x in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(x, torch.Tensor):
                self.elements += x.numel()
                self.largest = max(self.largest, x.numel())
        return found


def work_of(n: int, other: Terms, lse: bool) -> Work:
    q, k = make(1, 1, 1, n, n, 8)
    ids = torch.randint(n // 4, (1, n), generator=torch.Generator().manual_seed(0))
    terms: Terms = {
        "causal": True, "waad_window": 50, "local_window": 9, "horizon": (4, 30), "query_ids": ids,
        "key_ids": ids, "offsets": (1, 2, n // 2), "keys": torch.tensor([0, 5]),
    }  # fmt: skip
    terms |= other
    # Values do not matter here.
    given_lse = torch.zeros(1, 1, n) if lse else None
    with Work() as work:
        attention_stats(q, k, WANT, backend="torch", lse=given_lse, **terms)
    return work


def test_work_and_memory_grow_with_the_length() -> None:
    """At 20000 tokens nothing comes near the 4e8 entries of the map; twice the length is twice the
    work, where a sweep's goes up fourfold."""
    work = work_of(20000, {}, lse=True)
    print(f"{work.elements / 20000:.0f} elements a token, largest {work.largest / 20000:.1f}")
    assert work.largest <= 16 * 20000
    assert work.elements < 20000**2 / 2
    for terms in ({}, {"alibi": torch.ones(1)}, {"window": 300, "sink_logit": torch.zeros(1)}):
        short, long = (work_of(n, terms, lse=True).elements for n in (3000, 6000))
        assert long < 2.3 * short
    short, long = (work_of(n, {}, lse=False).elements for n in (1500, 3000))
    assert long > 3.0 * short


def test_same_bits_at_any_number_of_threads() -> None:
    n = 500
    q, k = make(2, 6, 3, n, n, 32)
    terms: Terms = extras(2, 3, n, n) | {"causal": True}
    terms["lse"] = true_lse(q, k, terms)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(attention_stats(q, k, WANT, backend="torch", **terms))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        same = [
            torch.equal(x.nan_to_num(-7), other[name].nan_to_num(-7)) for name, x in runs[0].items()
        ]
        assert all(same)
