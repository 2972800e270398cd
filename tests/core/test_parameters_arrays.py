"""Statistics that are captured only when asked for: of arrays that are given, and of models that
only return their maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM

import workbench as wb
from tests.core.test_parameters import GROUPS, SET, TEXT, by_hand

N = 11
NAMES = set(by_hand(np.ones((1, 1, 1, 1)), np.ones((1, 1), bool), np.ones((1, 1, 1))))


def random_maps(rng: np.random.Generator, layers: int = 2, heads: int = 3) -> np.ndarray:
    maps = np.tril(rng.random((layers, heads, N, N)) ** 4)
    return maps / maps.sum(-1, keepdims=True)


def check(stats: wb.HeadStats, maps: np.ndarray, without: set[str], v_norm: np.ndarray) -> None:
    expected = by_hand(maps, np.tril(np.ones(maps.shape[-2:])) > 0, v_norm)
    for name in NAMES - without:
        got = stats[name].to_numpy()[0]
        assert np.allclose(got, expected[name], rtol=1e-3, atol=1e-6, equal_nan=True), name
    assert set(stats.provenance.missing) == without
    for name in without:
        with pytest.raises(wb.SchemaError, match="does not follow from"):
            stats[name]


def test_of_given_patterns_and_of_given_q_and_k() -> None:
    rng = np.random.default_rng(0)
    maps = random_maps(rng)
    stats = wb.view(maps, want=GROUPS, parameters=SET)
    check(stats, maps, {"value_mass"}, np.ones((2, 3, N)))
    assert stats["block_max"]["key_block"].to_numpy().tolist() == [0, 4, 8]
    q, k, v = (rng.normal(size=(2, 3, N, 8)) for _ in range(3))
    scores = np.where(np.tril(np.ones((N, N))) > 0, q @ k.swapaxes(-1, -2) / 8**0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    of_qk = wb.view(q=q, k=k, v=v, causal=True, want=GROUPS, parameters=SET)
    check(of_qk, weights, set(), np.linalg.norm(v, axis=-1))
    check(
        wb.view(q=q, k=k, causal=True, want=GROUPS, parameters=SET), weights, {"value_mass"},
        np.ones((2, 3, N)),
    )  # fmt: skip


def test_of_given_arrays_nothing_is_ignored() -> None:
    maps = random_maps(np.random.default_rng(1))
    assert "waad" not in wb.view(maps) and "entropy" in wb.view(maps)
    with pytest.raises(wb.WorkbenchError, match="pool=4 is given"):
        wb.view(maps, parameters=wb.Parameters(pool=4))
    with pytest.raises(wb.WorkbenchError, match=r"lse.* follows from these arrays"):
        wb.view(maps, want="lse")


def test_of_a_family_read_from_its_maps() -> None:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 100, "rotary_dim": 4}
    net = GPTJForCausalLM(GPTJConfig(**shape, bos_token_id=1, eos_token_id=2)).eval()
    model = wb.load(net)
    stats = wb.capture(model, [TEXT[:N], TEXT[:5]], want=GROUPS, parameters=SET)
    with torch.no_grad():
        out = net(torch.tensor([TEXT[:N]]), output_attentions=True)
    maps = np.stack([m[0].double().numpy() for m in out.attentions])
    check(stats.prompt(0), maps, {"value_mass"}, np.ones((2, 4, N)))
    assert stats.prompt(1)["block_mass"].sizes["key_block"] == 2
