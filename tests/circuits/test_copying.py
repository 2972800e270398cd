"""Copying scores: against eigenvalues of the whole circuit, in two families, and a planted head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import workbench as wb
from tests import planted_induction as planted
from tests.tiny import tiny
from workbench.circuits.copying import copying_scores
from workbench.errors import WorkbenchError


def whole_circuit(embedded, w_v, w_o, unembedding) -> float:
    """Score from all eigenvalues of the vocabulary by vocabulary circuit."""
    circuit = (embedded.double() @ w_v.double() @ w_o.double() @ unembedding.double().T).detach()
    values = np.linalg.eigvals(circuit.numpy())
    return float((values.sum() / np.abs(values).sum()).real)


def test_a_llama_with_fewer_value_heads_agrees_with_the_whole_circuit() -> None:
    model = tiny("llama")
    net, scores = model.net, copying_scores(model)
    embedding, unembedding = net.get_input_embeddings().weight, net.lm_head.weight
    assert scores.shape == (3, 4)
    for layer, block in enumerate(net.model.layers):
        embedded = block.input_layernorm(embedding)
        w_v, w_o = block.self_attn.v_proj.weight.T, block.self_attn.o_proj.weight.T
        for head in range(4):
            kv = head // 2
            expected = whole_circuit(
                embedded, w_v[:, 8 * kv : 8 * kv + 8], w_o[8 * head : 8 * head + 8], unembedding
            )
            assert np.isclose(scores[layer, head], expected, rtol=1e-3, atol=1e-5)


def test_biases_do_not_count() -> None:
    model = wb.load(planted.network(planted.COPIES))
    before = copying_scores(model)
    with torch.no_grad():
        for block in model.net.transformer.h:
            block.attn.c_attn.bias.normal_()
            block.ln_1.bias.normal_()
    assert np.allclose(copying_scores(model), before, atol=1e-3)


def test_the_planted_head_copies_and_its_negative_does_the_opposite() -> None:
    model = wb.load(planted.network(planted.COPIES))
    scores = copying_scores(model).to_numpy()
    assert scores[1, 0] > 0.99
    assert np.abs(np.delete(scores.ravel(), 2)).max() < 0.5, "heads that write elsewhere"
    with torch.no_grad():
        model.net.transformer.h[1].attn.c_proj.weight.mul_(-1)
    assert copying_scores(model).to_numpy()[1, 0] < -0.99


def test_a_draw_of_the_vocabulary_comes_near_the_whole() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=8,
        vocab_size=4000, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    net = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        attention = net.model.layers[0].self_attn
        attention.o_proj.weight.add_(attention.v_proj.weight.T)
        net.lm_head.weight.copy_(net.get_input_embeddings().weight)
    model = wb.load(net)
    whole = copying_scores(model, tokens=4000).to_numpy()
    assert whole.min() > 0.3 and whole.max() < 0.99, whole
    drawn = copying_scores(model, tokens=1000).to_numpy()
    assert np.abs(drawn - whole).max() < 0.1 and (drawn != whole).any()


def test_a_model_of_few_positions_is_read_alike() -> None:
    """The circuit does not depend on how many embeddings go through the model at once."""
    scores = []
    for places in (16, 64):
        torch.manual_seed(0)
        config = GPT2Config(
            n_layer=1, n_head=2, n_embd=8, vocab_size=600, n_positions=places,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        net = GPT2LMHeadModel(config).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            net.transformer.wte.weight.normal_()
            for weight in (net.transformer.h[0].attn.c_attn, net.transformer.h[0].attn.c_proj):
                weight.weight.normal_()
        scores.append(copying_scores(wb.load(net)).to_numpy())
    assert np.allclose(*scores, atol=1e-6) and np.isfinite(scores).all()


def test_embeddings_of_another_width_are_refused() -> None:
    config = OPTConfig(
        num_hidden_layers=1, hidden_size=16, word_embed_proj_dim=8, num_attention_heads=2,
        ffn_dim=16, vocab_size=40, max_position_embeddings=32, do_layer_norm_before=False,
    )  # fmt: skip
    with pytest.raises(WorkbenchError, match="embeddings of width 8 and blocks of width 16"):
        copying_scores(wb.load(OPTForCausalLM(config).eval()))


def test_an_encoder_has_no_copying_scores() -> None:
    with pytest.raises(WorkbenchError, match="predicts no next token, so no head of it"):
        copying_scores(tiny("bert"))
