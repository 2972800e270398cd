"""Maps whose statistics are known on paper, on every backend that runs here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.kernels.cases import DIFFERENCES, relative_error, variance_size
from workbench.kernels.attention_stats import BACKENDS, attention_stats, available_backends

HERE = tuple(name for name in BACKENDS if name in available_backends("cpu"))
Supported = Callable[..., list[str]]
N, W = 60, 10
# Its numbers are exponentials of differences of log-sum-exps; the others reach a few 1e-7.
ALLOWED = {"stock": 2e-5}


def compute(
    supported: Supported, backend: str, q: torch.Tensor, k: torch.Tensor, want: Any, **terms: Any
) -> dict[str, torch.Tensor]:
    """The statistics of `want` that the backend has, of the first head; the rest is refused."""
    names = supported(backend, q, k, want, **terms)
    found = attention_stats(q, k, names, backend=backend, **terms)
    return {name: x[0, 0] for name, x in found.items()}


def looks_at(keys: list[int], n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k such that query i looks at keys[i] and at nothing else: one-hot keys, large queries."""
    k = torch.eye(n)[None, None]
    return 1000.0 * k[:, :, keys], k


@pytest.mark.parametrize("backend", HERE)
def test_uniform_attention_over_the_past(backend: str, supported: Supported) -> None:
    """q = 0, row i over i + 1 keys. key_mass_j = H_N - H_j, distance i / 2, and
    WAAD = W - W (W + 1) / 2 / (i + 1) once i >= W - 1 (all of i / 2 before)."""
    q, k = torch.zeros(1, 2, N, 8), torch.randn(1, 2, N, 8)
    i = torch.arange(N).double()
    one = 1 / (i + 1)
    harmonic = torch.cat([torch.zeros(1), one.cumsum(0)]).double()
    mass = harmonic[-1] - harmonic[:-1]
    count = N - i
    squares = one.square().flip(0).cumsum(0).flip(0)
    lower = torch.ones(N, N).tril().double() * one[:, None]
    expected = {
        "lse": (i + 1).log(),
        "entropy": (i + 1).log(),
        "participation": one,
        "max_prob": one,
        "argmax": 0 * i,
        "self_mass": one,
        "prev_mass": one * (i > 0),
        "first_mass": one,
        "null_mass": 0 * i,
        "distance": i / 2,
        "distance_sq": i * (2 * i + 1) / 6,
        "waad": torch.where(i >= W - 1, W - W * (W + 1) / 2 * one, i / 2),
        "local_mass": (i + 1).clamp(max=W) * one,
        "value_mass": torch.full((N,), 3.0),
        "output": torch.full((N, 9), 1.0),
        "n_visible": i + 1,
        "top_probs": torch.where(torch.arange(4) <= i[:, None], one[:, None], 0.0),
        "top_keys": torch.where(torch.arange(4) <= i[:, None], torch.arange(4), -1),
        "offset_mass": torch.stack([one * (i >= d) for d in (0, 3, 70)], -1),
        "key_mass": mass,
        "key_mean": mass / count,
        "key_max": one,
        "key_count": count,
        "fai": torch.tensor(
            [float(one[j + 2 : j + 6].mean()) if j + 2 < N else math.nan for j in range(N)]
        ),
        "diagonal_mass": torch.cat([torch.zeros(N - 1), mass]),
        "block_max": torch.nn.functional.max_pool2d(lower[None], (7, 9), ceil_mode=True)[0],
        "segment_mean": torch.tensor([[float(mass.sum()) / N**2]]),
    }
    found = compute(
        supported, backend, q, k, expected, causal=True, waad_window=W, local_window=W,
        v=torch.ones(1, 2, N, 9), topk=4, offsets=(0, 3, 70), horizon=(2, 5), pool=(7, 9),
        query_segments=torch.zeros(1, N, dtype=torch.long),
        key_segments=torch.zeros(1, N, dtype=torch.long), n_segments=1,
    )  # fmt: skip
    for name, x in found.items():
        small = 1.0 if name in DIFFERENCES.get(backend, ()) else 1e-6
        assert relative_error(x, expected[name].double(), small) < ALLOWED.get(backend, 2e-6), name
    more = compute(supported, backend, q, k, ["key_var", "key_entropy"], causal=True)
    if "key_var" in more:
        variance = (squares / count - (mass / count) ** 2).clamp(min=0)
        size = variance_size(variance, mass / count)
        assert relative_error(more["key_var"], variance, 1e-12, size) < 2e-5
    if "key_entropy" in more:
        # -sum p/m log(p/m) with p = 1/i: log m + sum log(i) / (i m).
        logs = (one * (i + 1).log()).flip(0).cumsum(0).flip(0)
        assert relative_error(more["key_entropy"], mass.log() + logs / mass, 1.0) < 2e-6


@pytest.mark.parametrize("backend", HERE)
def test_share_of_the_first_key(backend: str) -> None:
    """Uniform attention gives key 0 H_T / T of all mass: .0741 at T = 64, the null of a sink."""
    q, k = torch.zeros(1, 1, 64, 8), torch.randn(1, 1, 64, 8)
    found = attention_stats(q, k, ["key_mass"], causal=True, backend=backend)["key_mass"]
    assert float(found[0, 0, 0]) / 64 == pytest.approx(0.0741, abs=5e-5)


ZERO = [0.0] * N
CONSTRUCTED: dict[str, tuple[list[int], dict[str, list[float]]]] = {
    "identity": (
        list(range(N)),
        {
            "self_mass": [1.0] * N, "distance": ZERO, "distance_sq": ZERO, "waad": ZERO,
            "key_mass": [1.0] * N, "key_max": [1.0] * N, "prev_mass": ZERO,
            "key_entropy": ZERO, "fai": [*([0.0] * (N - 1)), math.nan],
            "diagonal_mass": [*([0.0] * (N - 1)), float(N), *([0.0] * (N - 1))],
            "distance_histogram": [float(N), *([0.0] * 6)],
        },
    ),
    "previous": (
        [max(i - 1, 0) for i in range(N)],
        {
            "prev_mass": [0.0, *([1.0] * (N - 1))], "waad": [0.0, *([1.0] * (N - 1))],
            "distance": [0.0, *([1.0] * (N - 1))], "key_mass": [2.0, *([1.0] * (N - 2)), 0.0],
            "local_mass": [1.0, *([0.0] * (N - 1))],
            "distance_histogram": [1.0, N - 1.0, *([0.0] * 5)],
        },
    ),
    "first": (
        [0] * N,
        {
            "first_mass": [1.0] * N, "distance": [float(i) for i in range(N)],
            "waad": [float(min(i, W)) for i in range(N)],
            "distance_sq": [float(i * i) for i in range(N)],
            "key_mass": [float(N), *([0.0] * (N - 1))],
            "key_mean": [1.0, *([0.0] * (N - 1))], "key_var": ZERO,
            "key_entropy": [math.log(N), *([0.0] * (N - 1))],
            "fai": [1.0, *([0.0] * (N - 2)), math.nan],
            "distance_histogram": [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, N - 32.0],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("name", CONSTRUCTED)
def test_constructed_heads(name: str, backend: str, supported: Supported) -> None:
    """The map holds ones and zeros, the answers are integers: equal, not close, but logarithms."""
    keys, expected = CONSTRUCTED[name]
    q, k = looks_at(keys)
    always = {"entropy": ZERO, "max_prob": [1.0] * N, "participation": [1.0] * N}
    found = compute(
        supported, backend, q, k, [*expected, *always, "argmax", "top_keys"], scale=1.0,
        causal=True, waad_window=W, local_window=1, horizon=(1, None), topk=1,
    )  # fmt: skip
    for statistic, x in found.items():
        if statistic in ("argmax", "top_keys"):
            assert x.flatten().tolist() == keys
            continue
        value = torch.tensor((expected | always)[statistic], dtype=x.dtype)
        if statistic == "key_entropy" or backend == "stock":  # its sums are exponentials of an lse
            assert relative_error(x, value, 1.0) < 2e-6
        else:
            assert torch.equal(x.isnan(), value.isnan()), statistic
            assert torch.equal(x.nan_to_num(), value.nan_to_num()), statistic


@pytest.mark.parametrize("backend", HERE)
def test_planted_induction(backend: str) -> None:
    """A block repeated: a head that looks right after the earlier copy has induction 1 in the
    second half, one that looks at the copy has duplicate 1."""
    half = N // 2
    ids = torch.arange(half).repeat(2)[None]
    want = ("induction_mass", "duplicate_mass")
    terms: dict[str, Any] = {"query_ids": ids, "key_ids": ids, "causal": True, "scale": 1.0}
    for shift, present, absent in ((1, *want), (0, *want[::-1])):
        q, k = looks_at([0] * half + [i + shift for i in range(half)])
        found = attention_stats(q, k, want, backend=backend, **terms)
        assert found[present][0, 0].tolist() == [0.0] * half + [1.0] * half
        assert not found[absent].any()


@pytest.mark.parametrize("backend", HERE)
def test_random_heads_show_nothing(backend: str) -> None:
    """Negative control: a map without structure gives chance, 1 / (i + 1), for induction, repeats
    and the first key; H_N / N for the mass of a key; half the past for the distance."""
    half, heads = N // 2, 32
    ids = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:half].repeat(2)[None]
    g = torch.Generator().manual_seed(5)
    q, k = (torch.randn(1, heads, N, 16, generator=g) for _ in range(2))
    second = torch.arange(half, N)
    for spread in (0.0, 0.3):
        found = attention_stats(
            q * spread, k, ["induction_mass", "duplicate_mass", "first_mass", "distance"],
            causal=True, query_ids=ids, key_ids=ids, backend=backend,
        )  # fmt: skip
        null = {"distance": float((second / 2).mean())}
        for name, x in found.items():
            chance = null.get(name, float((1 / (second + 1.0)).mean()))
            ratio = float(x[..., half:].mean()) / chance
            assert ratio == pytest.approx(1.0, abs=1e-5 if spread == 0 else 0.1), name
            if name.endswith(("duplicate_mass", "induction_mass")):
                assert not x[..., :half].any()


@pytest.mark.parametrize("backend", HERE)
def test_one_key_a_thousand_times_heavier(backend: str, supported: Supported) -> None:
    """Row i holds 1000 + i parts: first_mass 1000 / (1000 + i), and every statistic follows."""
    q = torch.zeros(1, 1, N, 8)
    q[..., 0] = 1.0
    k = torch.zeros(1, 1, N, 8)
    k[:, :, 0, 0] = math.log(1000.0)
    i = torch.arange(N).double()
    heavy, light = 1000 / (1000 + i), 1 / (1000 + i)
    expected = {
        "lse": (1000 + i).log(),
        "first_mass": heavy,
        "max_prob": heavy,
        "entropy": -heavy * heavy.log() - i * light * light.log(),
        "participation": heavy**2 + i * light**2,
        "distance": i * heavy + i * (i - 1) / 2 * light,
        "key_mass": torch.cat([heavy.sum()[None], light.flip(0).cumsum(0).flip(0)[1:]]),
        "key_max": torch.cat([heavy[:1], light[1:]]),
    }
    found = compute(supported, backend, q, k, expected, scale=1.0, causal=True)
    for name, x in found.items():
        small = math.log(1000.0) if name in DIFFERENCES.get(backend, ()) else 1e-6
        assert relative_error(x, expected[name], small) < ALLOWED.get(backend, 2e-6), name
