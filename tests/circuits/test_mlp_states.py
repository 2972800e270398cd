"""States of an MLP against the weights themselves, in float64, for every way of writing an MLP."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

import workbench as wb
from tests.tiny import IDS, tiny
from workbench.circuits import attribute, mlp_states
from workbench.circuits.mlp_states import feed, states_around
from workbench.errors import CaptureError, WorkbenchError

SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
         "intermediate_size": 48, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2}  # fmt: skip
GATED = {"llama": F.silu, "phi3": F.silu, "gemma2": lambda x: F.gelu(x, approximate="tanh")}
PLAIN = {"gpt2": lambda x: F.gelu(x, approximate="tanh"), "gpt_neox": F.gelu, "opt": F.relu}
LAYER = 1


def _net(name: str) -> torch.nn.Module:
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE, mlp_bias=True))
    if name == "phi3":
        return Phi3ForCausalLM(Phi3Config(**SHAPE))
    if name == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=8))
    if name == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE))
    if name == "opt":
        shape = {k: v for k, v in SHAPE.items() if k != "intermediate_size"}
        return OPTForCausalLM(OPTConfig(**shape, ffn_dim=48, word_embed_proj_dim=32))
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=4, n_embd=32, n_inner=48, vocab_size=60))


@cache
def model(name: str):
    torch.manual_seed(0)
    net = _net(name).double().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return wb.load(net)


def maps(name: str) -> tuple:
    """gate, up and down of the layer as functions."""
    net = model(name).net
    if name in ("llama", "gemma2"):
        mlp = net.model.layers[LAYER].mlp
        return mlp.gate_proj, mlp.up_proj, mlp.down_proj
    if name == "phi3":
        mlp = net.model.layers[LAYER].mlp
        return (
            lambda x: mlp.gate_up_proj(x)[..., :48],
            lambda x: mlp.gate_up_proj(x)[..., 48:],
            mlp.down_proj,
        )
    if name == "opt":
        block = net.model.decoder.layers[LAYER]
        return None, block.fc1, block.fc2
    if name == "gpt_neox":
        mlp = net.gpt_neox.layers[LAYER].mlp
        return None, mlp.dense_h_to_4h, mlp.dense_4h_to_h
    mlp = net.transformer.h[LAYER].mlp
    return None, mlp.c_fc, mlp.c_proj


@pytest.mark.parametrize("name", [*GATED, *PLAIN])
def test_states_are_those_of_the_weights(name: str) -> None:
    states = states_around(model(name), IDS, LAYER)
    gate, up, down = maps(name)
    with torch.no_grad():
        x = torch.tensor(states["input"])
        expected = {"up": up(x)}
        if name in GATED:
            expected["gate"] = gate(x)
            expected["act"] = GATED[name](expected["gate"])
            expected["product"] = expected["act"] * expected["up"]
        else:
            expected["act"] = expected["product"] = PLAIN[name](expected["up"])
        expected["down"] = down(expected["product"])
        hidden = model(name).net(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    for state, value in expected.items():
        np.testing.assert_allclose(states[state], value.numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(states["resid_pre"], hidden[LAYER][0].numpy())
    order = ["input", "gate", "up", "act", "product", "down"]
    kept = mlp_states(model(name), IDS, LAYER)
    assert list(kept) == [s for s in order if s in expected or s == "input"]
    # The last block's state is read before the final norm, which the model's own list lacks.
    first = states_around(model(name), IDS, 0)["resid_post"]
    np.testing.assert_array_equal(first, hidden[1][0].numpy())


@pytest.mark.parametrize("name", [*GATED, *PLAIN])
def test_contributions_sum_to_the_output_without_its_bias(name: str) -> None:
    direction = np.random.default_rng(0).normal(size=32)
    table = attribute(model(name), IDS, LAYER, 4, direction, top=None)
    unit = direction / np.linalg.norm(direction)
    down = maps(name)[2]
    written = states_around(model(name), IDS, LAYER)["down"][4] @ unit
    bias = 0.0 if getattr(down, "bias", None) is None else float(down.bias.detach().numpy() @ unit)
    assert abs(bias) > 0.01 or name in ("phi3", "gemma2")
    assert table["contribution"].sum() == pytest.approx(written - bias, rel=1e-12)
    assert table.attrs["output"] == pytest.approx(written, rel=1e-12)
    assert table.attrs["bias"] == pytest.approx(bias, rel=1e-12)
    assert table["share"].sum() == pytest.approx(1, rel=1e-9) and len(table) == 48
    assert list(table["contribution"].abs()) == sorted(table["contribution"].abs(), reverse=True)
    # One neuron by hand: what the output loses when its product is set to zero.
    row = table.iloc[3]
    product = torch.tensor(states_around(model(name), IDS, LAYER)["product"])
    with torch.no_grad():
        whole = down(product)[4]
        product[4, int(row["neuron"])] = 0
        lost = float((whole - down(product)[4]) @ torch.tensor(unit))
    assert row["contribution"] == pytest.approx(lost, rel=1e-9)


@pytest.mark.parametrize("name", [*GATED, *PLAIN])
def test_feeding_an_mlp_gives_what_its_maps_give(name: str) -> None:
    x = np.random.default_rng(1).normal(size=(45, 32))
    gate, up, down = maps(name)
    with torch.no_grad():
        given = torch.tensor(x)
        if name in GATED:
            expected = down(GATED[name](gate(given)) * up(given))
        else:
            expected = down(PLAIN[name](up(given)))
    np.testing.assert_allclose(feed(model(name), LAYER, x), expected.numpy(), rtol=1e-10)


def test_what_cannot_be_read_is_refused_in_one_sentence() -> None:
    with pytest.raises(WorkbenchError, match=r"layer 7 of .* has no MLP .*layers 0, 1, 2 have"):
        mlp_states(tiny("llama"), IDS, 7)
    torch.manual_seed(0)
    experts = MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=2))
    with pytest.raises(WorkbenchError, match="no layer has one"):
        mlp_states(wb.load(experts.eval()), IDS, 0)
    with pytest.raises(WorkbenchError, match="sequence-to-sequence"):
        mlp_states(tiny("t5"), IDS, 0)
    net = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    # An activation that is a bare function runs unseen; attribution does not need it.
    mlp = net.model.layers[0].mlp
    del mlp.act_fn
    mlp.act_fn = F.silu
    with pytest.raises(CaptureError, match="the activation of the MLP of layer 0"):
        mlp_states(wb.load(net), IDS, 0)
    assert len(attribute(wb.load(net), IDS, 0, 3, np.ones(32), top=5)) == 5
    assert "act" in mlp_states(wb.load(net), IDS, 1)


def test_nothing_is_left_behind() -> None:
    llama = model("llama")
    before, hooks = llama.logits(IDS), _n_hooks(llama.net)
    mlp_states(llama, IDS, LAYER)
    feed(llama, LAYER, np.zeros((3, 32)))
    assert torch.equal(llama.logits(IDS), before)
    with pytest.raises(RuntimeError):
        feed(llama, LAYER, np.zeros((3, 7)))
    assert _n_hooks(llama.net) == hooks


def _n_hooks(net: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())
