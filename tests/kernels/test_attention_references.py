"""Every backend against torch.softmax directly, so that a mistake of the specification cannot hide
one of theirs; and the statistics of a map that somebody else made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels.cases import DIFFERENCES, make, relative_error
from workbench.kernels.attention_stats import (
    BACKENDS,
    attention_stats,
    available_backends,
    pattern,
    stats_from_pattern,
)

HERE = tuple(name for name in BACKENDS if name in available_backends("cpu"))
Supported = Callable[..., list[str]]


def softmax_map(q: torch.Tensor, k: torch.Tensor, hidden: torch.Tensor) -> tuple:
    """(logits, probabilities) in float64 by torch, heads expanded."""
    k = k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    s = q.double() @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    s = s.masked_fill(hidden, -torch.inf)
    return s, torch.softmax(s, -1)


@pytest.mark.parametrize("backend", HERE)
def test_torch_softmax(backend: str, supported: Supported) -> None:
    """Causal GQA, K > Q: every statistic that is one reduction of the map."""
    n_q, n_k = (20, 40) if backend == "triton" else (150, 213)
    q, k = make(2, 4, 2, n_q, n_k, 32)
    back = torch.arange(n_q)[:, None] + (n_k - n_q) - torch.arange(n_k)
    s, p = softmax_map(q, k, back < 0)
    seen = (back >= 0).expand(2, 4, -1, -1)
    expected = {
        "lse": s.logsumexp(-1),
        "entropy": torch.special.entr(p).sum(-1),
        "max_prob": p.amax(-1),
        "argmax": p.argmax(-1),
        "self_mass": p.diagonal(n_k - n_q, -2, -1),
        "prev_mass": p.diagonal(n_k - n_q - 1, -2, -1),
        "first_mass": p[..., 0],
        "distance": (p * back).sum(-1),
        "distance_sq": (p * back**2).sum(-1),
        "participation": p.square().sum(-1),
        "top_keys": p.topk(3, -1).indices,
        "top_probs": p.topk(3, -1).values,
        "key_mass": p.sum(-2),
        "key_mean": p.sum(-2) / seen.sum(-2),
        "key_max": p.amax(-2),
        "block_mass": torch.nn.functional.avg_pool2d(p, 9, ceil_mode=True, divisor_override=1),
        "n_visible": seen.sum(-1),
        "key_count": seen.sum(-2),
    }
    terms: dict[str, Any] = {"causal": True, "topk": 3, "pool": 9}
    names = supported(backend, q, k, expected, **terms)
    found = attention_stats(q, k, names, backend=backend, **terms)
    for name in names:
        if name in ("argmax", "top_keys"):
            assert torch.equal(found[name], expected[name])
            continue
        small = 1.0 if name in ("lse", *DIFFERENCES.get(backend, ())) else 1e-6
        assert relative_error(found[name], expected[name], small) < 2e-5, name
    assert relative_error(pattern(q, k, causal=True, backend=backend), p) < 2e-5


@pytest.mark.parametrize("backend", HERE)
def test_a_learned_sink_is_one_more_column(backend: str, supported: Supported) -> None:
    """Its share is the null mass; the keys keep the rest."""
    q, k = make(1, 2, 2, 40, 60, 16)
    sink = torch.tensor([0.7, -2.0])
    s = (q @ k.transpose(2, 3) * 0.5).double()
    column = sink[None, :, None, None].expand(1, 2, 40, 1)
    full = torch.softmax(torch.cat([s, column], -1), -1)
    p = full[..., :-1]
    expected = {
        "null_mass": full[..., -1],
        "key_mass": p.sum(-2),
        "max_prob": p.amax(-1),
        "entropy": torch.special.entr(p).sum(-1),
        "lse": torch.cat([s, column], -1).logsumexp(-1),
    }
    terms: dict[str, Any] = {"scale": 0.5, "sink_logit": sink}
    names = supported(backend, q, k, expected, **terms)
    found = attention_stats(q, k, names, backend=backend, **terms)
    for name in names:
        small = 1.0 if name in ("lse", *DIFFERENCES.get(backend, ())) else 1e-6
        assert relative_error(found[name], expected[name], small) < 2e-5, name


@pytest.mark.parametrize("backend", HERE)
def test_overlapping_segments(backend: str, supported: Supported) -> None:
    """Bool membership equals labels where it is a partition, and counts a key twice where segments
    overlap; more segments than one sweep may hold."""
    q, k = make(2, 4, 2, 40, 70, 32)
    labels = torch.randint(-1, 40, (2, 70), generator=torch.Generator().manual_seed(0))
    each = torch.stack([labels == n for n in range(40)], 1)
    members = torch.cat([each, (labels >= 0)[:, None]], 1)
    terms: dict[str, Any] = {"causal": True, "backend": backend}
    for n, segments in ((40, labels), (41, members)):
        own = {"key_segments": segments, "n_segments": n}
        assert supported(backend, q, k, ["role_mass"], causal=True, **own) == ["role_mass"]
    one, two = (
        attention_stats(q, k, ["role_mass"], key_segments=x, n_segments=n, **terms)["role_mass"]
        for x, n in ((labels, 40), (members, 41))
    )
    assert relative_error(two[..., :40], one) < 2e-5
    assert relative_error(two[..., 40], one.sum(-1)) < 2e-5


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_statistics_of_a_given_map(kind: str) -> None:
    """The same numbers from the map; rows that sum to less report the rest as null mass."""
    q, k = make(2, 4, 2, 60, 80, 32, dtype=torch.float64)
    sink = torch.randn(4, generator=torch.Generator().manual_seed(0)).double()
    p = pattern(q, k, causal=True, sink_logit=sink)
    ids = torch.randint(6, (2, 80), generator=torch.Generator().manual_seed(1))
    want = [
        "entropy", "argmax", "null_mass", "distance", "induction_mass", "n_visible", "key_mass",
        "key_count",
    ]  # fmt: skip
    terms: dict[str, Any] = {"causal": True, "query_ids": ids[:, -60:], "key_ids": ids}
    expected = attention_stats(q, k, want, sink_logit=sink, **terms)
    found = stats_from_pattern(p.numpy() if kind == "numpy" else p, want, **terms)
    for name in want:
        assert isinstance(found[name], np.ndarray if kind == "numpy" else torch.Tensor)
        assert relative_error(torch.as_tensor(found[name]), expected[name]) < 1e-9, name
