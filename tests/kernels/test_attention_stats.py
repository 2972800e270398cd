"""How a call may be made: layouts, views, modes and threads of torch, dtypes of a mask or bias,
ties. What the numbers are is the contract's business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.kernels.cases import extras, make, relative_error, some_bias, some_mask
from workbench.kernels.attention_stats import (
    BACKENDS,
    STATS,
    attention_stats,
    available_backends,
    pattern,
)

FAST = tuple(name for name in BACKENDS if name in available_backends("cpu") and name != "naive")
FEW = ["lse", "key_mass", "self_mass", "n_visible", "key_count"]
Agree = Callable[..., dict[str, float]]
Supported = Callable[..., list[str]]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(x.nan_to_num(-7), other[name].nan_to_num(-7)) for name, x in one.items())


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("shape", [(2, 4), (1, 1), (2, 1), (1, 4)])
def test_masks_and_biases_broadcast(
    shape: tuple[int, int], backend: str, agree: Agree, supported: Supported, poisoned: None
) -> None:
    """One for all prompts, all heads, all queries, all keys; a bias of another dtype."""
    q, k = make(2, 4, 2, 70, 77, 32)
    bias, mask = some_bias(*shape, 70, 77), some_mask(*shape, 70, 77)
    cases: list[dict[str, Any]] = [
        {"mask": mask},
        {"mask": mask[..., :1]},
        {"bias": bias, "causal": True, "query_offset": 3},
        {"bias": bias[:, :, :1], "mask": mask, "sink_logit": torch.randn(4)},
        {"bias": bias[..., :1].bfloat16()},
        {"bias": bias[0, 0], "mask": mask[0, 0, 0]},
    ]
    for terms in cases:
        want = supported(backend, q, k, [*FEW, "entropy", "max_prob", "key_max"], **terms)
        if want:
            agree(q, k, 2e-5, want, backend, **terms)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("n_k", [3, 70, 300, 512])
def test_ties_go_to_the_first_key(backend: str, n_k: int, supported: Supported) -> None:
    """Also across blocks of a search and their ragged end."""
    q, k = torch.zeros(1, 2, 40, 8), torch.zeros(1, 2, n_k, 8)
    q[..., 0] = 1.0
    for first in (0, n_k // 2, n_k - 2):
        k[..., 0] = torch.where(torch.arange(n_k) < first, -1.0, 0.0)
        names = supported(backend, q, k, ["argmax", "top_keys"], topk=2)
        found = attention_stats(q, k, names, topk=2, backend=backend)
        if "argmax" in names:
            assert bool((found["argmax"] == first).all())
        if "top_keys" in names:
            assert found["top_keys"][0, 0, 0].tolist() == [first, first + 1]
            assert bool((found["top_keys"] == found["top_keys"][0, 0, 0]).all())


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("n", [60, 500])
def test_same_bits_at_any_number_of_threads(n: int, backend: str, supported: Supported) -> None:
    if backend == "triton" and n > 60:
        pytest.skip("one thread at 5 ms a tile: the interpreter has no threads")
    q, k = make(1, 6, 3, n, n, 64)
    terms: dict[str, Any] = extras(1, 3, n, n) | {"causal": True}
    names = supported(backend, q, k, STATS, **terms)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(attention_stats(q, k, names, backend=backend, **terms))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert equal(runs[0], runs[1])
    assert equal(runs[0], runs[2])


@pytest.mark.parametrize("backend", FAST)
def test_modes_of_torch(backend: str, supported: Supported) -> None:
    """Gradients are not recorded; inference mode gives the same bits, on many threads too."""
    n = 60 if backend == "triton" else 300
    q, k = make(2, 8, 4, n, n, 16)
    terms = extras(2, 4, n, n) | {"causal": True, "backend": backend}
    names = supported(backend, q, k, STATS, **{x: y for x, y in terms.items() if x != "backend"})
    plain = attention_stats(q, k, names, **terms)
    recorded = attention_stats(q.requires_grad_(), k, names, **terms)
    assert not any(x.requires_grad for x in recorded.values())
    with torch.inference_mode():
        inferred = attention_stats(q, k, names, **terms)
    assert equal(plain, recorded)
    assert equal(plain, inferred)


@pytest.mark.parametrize("backend", FAST)
def test_layouts_of_models(backend: str, supported: Supported) -> None:
    """q, k, v as views of [batch, tokens, heads, width], expanded keys, every second token and
    dimension (torch's own CPU kernel gives wrong numbers, without a word, where the last stride of
    q is not 1)."""
    q, k = make(2, 4, 2, 60, 60, 32)
    more = extras(2, 2, 60, 60)
    names = supported(backend, q, k, STATS, causal=True, **more)

    def call(q: torch.Tensor, k: torch.Tensor, **terms: Any) -> dict[str, torch.Tensor]:
        return attention_stats(q, k, names, causal=True, backend=backend, **more | terms)

    view_q, view_k, view_v = (
        x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, more["v"])
    )
    wide = torch.randn(2, 4, 120, 64, generator=torch.Generator().manual_seed(0))
    one, strided = k[:, :1].expand(2, 2, 60, 32), wide[:, :, ::2, ::2]
    k2 = strided[:, :2]
    for found, plain in (
        (call(view_q, view_k, v=view_v), call(q, k)),
        (call(q, one), call(q, one.contiguous())),
        (call(strided, k2, v=k2), call(strided.contiguous(), k2.contiguous(), v=k2.contiguous())),
    ):
        for name, x in found.items():
            largest = float(plain[name].nan_to_num().abs().max())
            assert relative_error(x, plain[name], max(1e-6, largest)) < 2e-6, name


@pytest.mark.parametrize("rows", [None, slice(3, 5), slice(-40, None), slice(7, 7), slice(90, 2)])
@pytest.mark.parametrize("backend", FAST)
def test_pattern_of_some_rows(rows: slice | None, backend: str, poisoned: None) -> None:
    q, k = make(2, 4, 2, 140, 203, 32)
    terms: dict[str, Any] = {"causal": True, "sink_logit": torch.randn(4)}
    found = pattern(q, k, rows=rows, backend=backend, **terms)
    whole = pattern(q.double(), k.double(), backend="naive", **terms)
    assert relative_error(found, whole[:, :, rows or slice(None)]) < 2e-5
