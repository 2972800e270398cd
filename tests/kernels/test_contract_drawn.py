"""The contract on shapes and mixtures of terms that hypothesis draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.kernels.cases import (
    errors,
    extras,
    make,
    names_for,
    sequences,
    some_bias,
    some_mask,
)
from workbench.kernels.attention_stats import BACKENDS, Strided, available_backends

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

# The interpreter of triton takes a second and more for a drawn size.
FAST = tuple(
    name
    for name in BACKENDS
    if name in available_backends("cpu") and name not in ("naive", "triton")
)
Supported = Callable[..., list[str]]


def drawn(draw: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Any shape, any mixture of terms that go together."""
    b, h_kv, per_key = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n_q, n_k = draw(st.integers(1, 170)), draw(st.integers(1, 190))
    d, seed = draw(st.sampled_from([1, 7, 32])), draw(st.integers(0, 99))
    h = h_kv * per_key
    q, k = make(b, h, h_kv, n_q, n_k, d, seed=seed)
    terms = extras(b, h_kv, n_q, n_k, vocabulary=draw(st.sampled_from([1, 5, 100])))
    terms |= {
        "causal": draw(st.booleans()),
        "query_offset": draw(st.none() | st.integers(-50, 50)),
        "window": draw(st.none() | st.integers(1, 200)),
        "waad_window": draw(st.integers(1, 200)),
        "local_window": draw(st.integers(1, 200)),
        "horizon": draw(st.sampled_from([(0, 0), (3, 9), (1, None), (500, None)])),
        "pool": draw(st.tuples(st.integers(1, 80), st.integers(1, 80))),
        "topk": draw(st.integers(1, 12)),
        "power": draw(st.sampled_from([2, 3, 1.25])),
        "offsets": tuple(draw(st.lists(st.integers(-60, 60), min_size=1, max_size=4))),
    }
    g = torch.Generator().manual_seed(seed)
    maybe: dict[str, Callable[[], Any]] = {
        "key_valid": lambda: torch.rand(b, n_k, generator=g) > 0.3,
        "key_lengths": lambda: torch.randint(n_k + 1, (b,), generator=g),
        "query_valid": lambda: torch.rand(b, n_q, generator=g) > 0.3,
        "mask": lambda: draw(st.sampled_from([some_mask(b, 1, n_q, n_k), Strided(4, 9)])),
        "bias": lambda: some_bias(1, h, n_q, n_k),
        "alibi": lambda: torch.rand(h, generator=g) / 4,
        "sink_logit": lambda: torch.randn(h, generator=g),
        "softcap": lambda: 4.0,
    }
    for name, value in maybe.items():
        if draw(st.integers(0, 3)) == 0:
            terms[name] = value()
    if draw(st.integers(0, 3)) == 0:
        terms |= sequences(b, n_q, n_k)
    if "sink_logit" not in terms and draw(st.integers(0, 4)) == 0:
        terms["activation"] = draw(st.sampled_from(["relu", "sigmoid"]))
    return q, k, terms


@pytest.mark.parametrize("backend", FAST)
@hypothesis.settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    # A mixture that fails is printed as drawn: shrinking it takes minutes.
    phases=[hypothesis.Phase.generate],
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=st.data())
def test_any_mixture(backend: str, supported: Supported, data: Any) -> None:
    q, k, terms = drawn(data.draw)
    want = supported(backend, q, k, names_for(terms), **terms)
    if not want:
        return  # refused by name
    found = errors(backend, q, k, want, terms)
    wrong = {name: f"{error:.1e}" for name, error in found.items() if not error <= 2e-5}
    assert not wrong, f"allowed 2e-05, reached {wrong}"
