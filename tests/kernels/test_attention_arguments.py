"""What is refused, in which words; backends; what importing costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from workbench.kernels.attention_stats import (
    BACKENDS,
    COLUMN_STATS,
    ROW_STATS,
    LowRankBias,
    Neighbourhood,
    Strided,
    attention_stats,
    available_backends,
    dispatch,
    pattern,
    stats_from_pattern,
)

B, H, HKV, Q, K, D = 2, 4, 2, 5, 7, 8
LONG = torch.long


def call(
    want: Any = ("lse",), q: Any = None, k: Any = None, **terms: Any
) -> dict[str, torch.Tensor]:
    q = torch.randn(B, H, Q, D) if q is None else q
    k = torch.randn(B, HKV, K, D) if k is None else k
    return attention_stats(q, k, want, **terms)


BAD = {
    "unknown statistic": (
        {"want": ["entrpy"]},
        "unknown statistic 'entrpy'; expected some of lse, entropy",
    ),
    "missing ids": (
        {"want": ["duplicate_mass"]},
        "the statistic 'duplicate_mass' needs the argument query_ids",
    ),
    "missing key ids": (
        {"want": ["induction_mass"], "query_ids": torch.zeros(B, Q, dtype=LONG)},
        "the statistic 'induction_mass' needs the argument key_ids",
    ),
    "missing segments": (
        {"want": ["role_mass"]},
        "the statistic 'role_mass' needs the argument key_segments",
    ),
    "no segments": (
        {"want": ["role_mass"], "key_segments": torch.zeros(B, K, dtype=LONG)},
        "the statistic 'role_mass' needs the argument n_segments",
    ),
    "segment out of range": (
        {"key_segments": torch.full((B, K), 3), "n_segments": 3},
        r"key_segments holds 3 to 3; expected -1 \(none\) to 2",
    ),
    "dims": ({"q": torch.randn(H, Q, D)}, r"q has shape \(4, 5, 8\); expected 4 dims"),
    "heads": ({"q": torch.randn(B, 3, Q, D)}, "q has 3 heads and k has 2; expected a multiple"),
    "width": ({"q": torch.randn(B, H, Q, 9)}, "q has batch 2 and width 9, k has 2 and 8"),
    "dtype": (
        {"q": torch.randn(B, H, Q, D).half()},
        "q has dtype torch.float16 and k has dtype torch.float32",
    ),
    "integers": (
        {"q": torch.zeros(B, H, Q, D, dtype=LONG), "k": torch.zeros(B, HKV, K, D, dtype=LONG)},
        "q has dtype torch.int64; expected float16",
    ),
    "device": (
        {"k": torch.randn(B, HKV, K, D, device="meta")},
        "q is on cpu and k on meta; expected the same device",
    ),
    "no keys": (
        {"k": torch.randn(B, HKV, 0, D)},
        r"k has shape \(2, 2, 0, 8\); expected at least one key",
    ),
    "mask shape": (
        {"mask": torch.ones(B, 3, Q, K, dtype=torch.bool)},
        r"mask has shape \(2, 3, 5, 7\); expected one that broadcasts to .* = \[2, 4, 5, 7\]",
    ),
    "mask dtype": ({"mask": torch.ones(B, 1, Q, K)}, "mask has dtype torch.float32; expected bool"),
    "bias dtype": (
        {"bias": torch.ones(B, 1, Q, K, dtype=torch.bool)},
        "bias has dtype torch.bool; expected float",
    ),
    "mask device": (
        {"mask": torch.ones(B, 1, Q, K, dtype=torch.bool, device="meta")},
        "mask is on meta; expected cpu, where q and k are",
    ),
    "sink": ({"sink_logit": torch.zeros(HKV)}, r"sink_logit has shape \(2,\); expected \[4\]"),
    "key_valid": (
        {"key_valid": torch.ones(B, Q, dtype=torch.bool)},
        r"key_valid has shape \(2, 5\); expected \[2, 7\]",
    ),
    "first_key": (
        {"first_key": torch.zeros(B, K, dtype=LONG)},
        r"first_key has shape \(2, 7\); expected \[2\] or \[2, 5\]",
    ),
    "first_key range": (
        {"first_key": torch.tensor([0, K])},
        "first_key holds 0 to 7; expected key indices from 0 to 6",
    ),
    "keys range": (
        {"keys": torch.tensor([0, K])},
        "keys holds 0 to 7; expected key indices from 0 to 6",
    ),
    "keys shape": (
        {"keys": torch.zeros(3, 2, dtype=LONG)},
        r"keys has shape \(3, 2\); expected \[N\] or \[2, N\], N at least 1",
    ),
    "no keys to look at": (
        {"keys": torch.zeros(0, dtype=LONG)},
        r"keys has shape \(0,\); expected \[N\] or \[2, N\], N at least 1",
    ),
    "keys as a list": ({"keys": [0, 1]}, "keys is a list; expected a tensor"),
    "a numpy mask": (
        {"mask": np.ones((Q, K), bool)},
        "mask is a ndarray; expected a tensor",
    ),
    "no offsets": ({"offsets": ()}, "offsets is empty; expected at least one distance in tokens"),
    "missing offsets": ({"want": ["offset_mass"]}, "'offset_mass' needs the argument offsets"),
    "missing horizon": ({"want": ["fai"]}, "'fai' needs the argument horizon"),
    "horizon order": ({"horizon": (5, 3)}, r"horizon is \(5, 3\); expected \(low, high\)"),
    "horizon length": ({"horizon": (5,)}, r"horizon is \(5,\); expected \(low, high\)"),
    "pool": ({"pool": 0}, "pool is 0; expected at least 1, or a pair"),
    "pool length": ({"pool": (1, 2, 3)}, r"pool is \(1, 2, 3\); expected at least 1, or a pair"),
    "topk": ({"topk": 0}, "topk is 0; expected at least 1 key"),
    "waad_window": ({"waad_window": 0}, "waad_window is 0; expected at least 1 token"),
    "power": ({"power": 1}, "power is 1; expected a number above 1"),
    "power of what may be negative": (
        {"power": 1.5, "activation": "linear", "want": ["participation"]},
        "power is 1.5 with activation 'linear', whose weights may be negative",
    ),
    "activation": (
        {"activation": "gelu", "want": ["key_mass"]},
        "activation is 'gelu'; expected one of softmax, relu, sigmoid, linear",
    ),
    "entropy of no distribution": (
        {"activation": "relu", "want": ["entropy"]},
        "the statistic 'entropy' needs rows that are a softmax; activation is 'relu'",
    ),
    "a sink without denominator": (
        {"activation": "sigmoid", "want": ["key_mass"], "sink_logit": torch.zeros(H)},
        "sink_logit is given with activation 'sigmoid', whose rows have no denominator",
    ),
    "one sequence": (
        {"query_sequence": torch.zeros(B, Q, dtype=LONG)},
        "key_sequence is missing; expected both query_sequence and key_sequence",
    ),
    "falling sequence": (
        {
            "query_sequence": torch.zeros(B, Q, dtype=LONG),
            "key_sequence": torch.zeros(B, K, dtype=LONG) - torch.arange(K),
        },
        "key_sequence decreases along the tokens",
    ),
    "v heads": (
        {"v": torch.randn(B, H, K, D)},
        r"v has shape \(2, 4, 7, 8\); expected \[2, 2, 7, D\]",
    ),
    "key_features": (
        {"key_features": torch.randn(B, Q, 3)},
        r"key_features has shape \(2, 5, 3\); expected \[2, 7, F\] or \[2, 2, 7, F\]",
    ),
    "query_features": (
        {"query_features": torch.randn(B, Q, 0)},
        r"query_features has shape \(2, 5, 0\); expected \[2, 5, G\]",
    ),
    "neighbourhood of other tokens": (
        {"mask": Neighbourhood((4, 2), (3, 1))},
        "mask has a grid of 8 tokens for 5 queries and 7 keys",
    ),
    "even neighbourhood": (
        {"mask": Neighbourhood((7,), (4,))},
        r"mask has window \(4,\) with dilation \(1,\) on a grid \(7,\); expected odd windows",
    ),
    "stride": ({"mask": Strided(1, 0)}, "mask has local 1 and stride 0; expected at least 1 each"),
    "low rank": (
        {"bias": LowRankBias(torch.zeros(1, 1, Q, 2), torch.zeros(1, 1, K, 3))},
        r"bias.right has shape \(1, 1, 7, 3\); expected .* with the same R on both sides",
    ),
    "low rank of integers": (
        {"bias": LowRankBias(torch.zeros(1, 1, Q, 2, dtype=LONG), torch.zeros(1, 1, K, 2))},
        "bias.left has dtype torch.int64; expected float",
    ),
    "low rank elsewhere": (
        {"bias": LowRankBias(torch.zeros(1, 1, Q, 2), torch.zeros(1, 1, K, 2, device="meta"))},
        "bias.right is on meta; expected cpu, where q and k are",
    ),
    "window": ({"window": 0}, "window is 0; expected at least 1 key"),
    "softcap": ({"softcap": 0.0}, "softcap is 0.0; expected a positive number"),
    "scale": ({"scale": float("nan")}, "scale is nan; expected a finite number"),
    "backend": ({"backend": "cuda"}, "unknown backend 'cuda'; expected auto, naive, torch"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_in_one_sentence(name: str) -> None:
    arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        call(**arguments)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text


def test_pattern_refuses() -> None:
    q, k = torch.randn(B, H, Q, D), torch.randn(B, HKV, K, D)
    with pytest.raises(ValueError, match="pattern has no argument 'query_valid'"):
        pattern(q, k, query_valid=torch.ones(B, Q, dtype=torch.bool))
    with pytest.raises(ValueError, match="rows has step 2"):
        pattern(q, k, rows=slice(0, 4, 2))


def test_a_map_has_no_lse() -> None:
    with pytest.raises(ValueError, match="'lse' is not available from a map"):
        stats_from_pattern(torch.rand(1, 1, 3, 3), ["lse"])
    with pytest.raises(ValueError, match="expected 4 dims"):
        stats_from_pattern(torch.rand(3, 3), ["entropy"])
    with pytest.raises(ValueError, match="has no argument 'softcap'"):
        stats_from_pattern(torch.rand(1, 1, 3, 3), ["entropy"], softcap=1.0)
    with pytest.raises(ValueError, match="4 heads are given with 3 of v; expected a multiple"):
        stats_from_pattern(torch.rand(1, 4, 3, 3), ["output"], v=torch.rand(1, 3, 3, 2))
    with pytest.raises(ValueError, match="keys is a list; expected an array"):
        listed: Any = [0]
        stats_from_pattern(np.zeros((1, 1, 3, 3)), ["keys_mass"], keys=listed)


def test_a_term_a_backend_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An explicit backend refuses it; auto takes the next one."""
    limited = SimpleNamespace(
        refuses=lambda q, want, terms: "softcap" if terms["softcap"] else None,
        available=lambda kind: kind == "cpu",
        attention_stats=lambda *a, **t: {},
    )
    monkeypatch.setitem(BACKENDS, "triton", lambda: limited)
    monkeypatch.setattr(dispatch, "AUTO_ORDER", ("triton", "torch"))
    assert available_backends("cpu")[0] == "triton"
    assert call(backend="triton") == {}
    with pytest.raises(ValueError, match="the backend 'triton' does not support softcap"):
        call(backend="triton", softcap=2.0)
    assert "lse" in call(softcap=2.0)


def test_backends_of_a_device() -> None:
    usable = available_backends()
    assert usable[0] == "torch"
    assert {"torch", "naive", "stock"} <= set(usable) <= set(BACKENDS)
    assert "torch" not in available_backends("meta")
    with pytest.raises(ValueError, match="the backend 'torch' does not run on meta"):
        q, k = torch.randn(B, H, Q, D, device="meta"), torch.randn(B, HKV, K, D, device="meta")
        call(q=q, k=k, backend="torch")


def test_want_keeps_its_order_once() -> None:
    assert list(call(["max_prob", "lse", "max_prob"])) == ["max_prob", "lse"]
    assert not set(ROW_STATS) & set(COLUMN_STATS)
    assert call([]) == {}


def test_the_numpy_side_never_loads_torch(root: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from workbench.kernels.attention_stats import naive, stats_from_pattern\n"
        "q = np.random.randn(1, 2, 4, 8)\n"
        "p = naive.pattern(q, q, causal=True)\n"
        "stats_from_pattern(p, ['entropy', 'key_mass'], causal=True)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
