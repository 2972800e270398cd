"""What could go wrong without a word: positions under padding, mixed runs, shared taps, modes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from transformers import (
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaModel,
)

import workbench as wb
from tests.tiny import IDS, tiny
from workbench.capturing import capture_inputs

Edit = wb.Intervention
PROMPTS = [IDS, IDS[:4], IDS[2:]]
_SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 100}


def small_llama(seed: int = 0, **more) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**_SHAPE, intermediate_size=64, **more))


def under(model, edit, prompts, **settings):
    with wb.intervening(model, edit):
        return wb.capture(model, prompts, **settings)


def test_the_first_capture_may_be_an_edited_one() -> None:
    fresh = wb.load(small_llama())
    edited = under(fresh, Edit.zero("L1H1"), [IDS])
    assert float(edited["z_norm"].sel(layer=1, head=1).max()) == 0
    assert fresh.verified is not None


RNG = np.random.default_rng(0)
BY_POSITION = RNG.normal(size=(1, len(IDS), 8)).astype(np.float32)
PLACED = {
    "index": Edit.zero("L1H1", at=[0, -1]),
    "last": Edit.zero("L1H1", at="last"),
    "edges": Edit.block("L1H1", -1, 0),
    "key": Edit.drop_keys("L1H1", [0]),
    "values": Edit.resample("L1H1", BY_POSITION),
}


@pytest.mark.parametrize("padding", ["right", "left", "packed"])
@pytest.mark.parametrize("name", PLACED)
def test_positions_are_those_of_each_prompt(name: str, padding: str) -> None:
    model, edit = tiny("llama"), PLACED[name]
    together = under(model, edit, PROMPTS, padding=padding)
    plain = wb.capture(model, PROMPTS)
    for i, ids in enumerate(PROMPTS):
        alone, one = under(model, edit, [ids]), together.prompt(i)
        for variable in ("z_norm", "key_mass", "entropy"):
            assert np.allclose(one[variable], alone[variable], atol=2e-5, equal_nan=True), variable
        assert not np.allclose(one["z_norm"], plain.prompt(i)["z_norm"], atol=1e-3)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_a_pattern_is_laid_over_each_prompt(padding: str) -> None:
    model = tiny("llama")
    both = under(model, Edit.pattern("L1H1", np.eye(4)), [IDS[:4], IDS[4:8]], padding=padding)
    assert np.allclose(both["self_mass"].sel(layer=1, head=1), 1)
    with pytest.raises(wb.WorkbenchError, match="9 queries"):
        under(model, Edit.pattern("L1H1", np.eye(4)), PROMPTS, padding=padding)


def test_two_pattern_edits_of_one_head_add_up() -> None:
    eye = np.eye(len(IDS))
    edits = [Edit.pattern("L1H1", eye, 3), Edit.pattern("L1H1", eye, 5)]
    mass = under(tiny("llama"), edits, [IDS])["self_mass"].sel(layer=1, head=1)[0]
    assert np.allclose(mass[[3, 5]], 1) and float(mass[4]) < 0.99


def test_encoder_positions_follow_each_prompt() -> None:
    model = tiny("t5")
    edit = Edit.zero("E0H1", at=[-1])
    together = under(model, edit, PROMPTS, kind="encoder")
    for i, ids in enumerate(PROMPTS):
        silent = together.prompt(i)["z_norm"].sel(layer=0, head=1).to_numpy()[0] == 0
        assert silent.nonzero()[0].tolist() == [len(ids) - 1]


def test_roberta_counts_positions_from_its_padding_index() -> None:
    torch.manual_seed(0)
    model = wb.load(RobertaModel(RobertaConfig(**_SHAPE, intermediate_size=64, pad_token_id=1)))
    left = wb.capture(model, PROMPTS, padding="left")
    for i, ids in enumerate(PROMPTS):
        assert np.allclose(left.prompt(i)["lse"], wb.capture(model, [ids])["lse"], atol=1e-5)


def test_labels_in_one_string_keep_their_towers() -> None:
    model = tiny("t5")
    with wb.intervening(model, Edit.zero("E0H0, L1H1")):
        encoder, decoder = (wb.capture(model, [IDS], kind=k)["z_norm"] for k in ("encoder", "text"))
    assert (
        float(encoder.sel(layer=0, head=0).max()) == 0 < float(encoder.sel(layer=1, head=1).max())
    )
    assert float(decoder.sel(layer=1, head=1).max()) == 0
    with pytest.raises(wb.WorkbenchError, match="the text tower is captured"):
        wb.capture(tiny("llama"), [IDS], patterns="V0H0")


def test_a_mask_is_not_a_list_of_indices() -> None:
    with pytest.raises(wb.WorkbenchError, match="flatnonzero"):
        Edit.zero("L0H0", at=np.array([True, False]))


def test_one_tap_per_network_and_thread() -> None:
    net = small_llama()
    a, b = wb.load(net), wb.load(net)
    with (
        wb.intervening(a, Edit.zero("L1H1")),
        pytest.raises(wb.CaptureError, match="another Model"),
    ):
        wb.capture(b, [IDS])
    caught: list[Exception] = []

    def other() -> None:
        try:
            wb.capture(a, [IDS])
        except wb.CaptureError as error:
            caught.append(error)

    with wb.intervening(a, Edit.zero("L1H1")):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(caught) == 1 and "another thread" in str(caught[0])
    assert net.config._attn_implementation == "sdpa"


def test_models_that_share_a_configuration_do_not_disturb_each_other() -> None:
    first = small_llama()
    second = LlamaForCausalLM(first.config)
    a, b = wb.load(first), wb.load(second)
    plain = b.logits(IDS)
    outer = wb.intervening(a, Edit.zero("L1H1"))
    outer.__enter__()
    with wb.intervening(b, Edit.zero("L1H1")):
        inside = b.logits(IDS)
        outer.__exit__(None, None, None)  # the first to open is the first to close
        assert torch.equal(b.logits(IDS), inside)
    assert not torch.equal(inside, plain) and torch.equal(b.logits(IDS), plain)
    assert first.config._attn_implementation == "sdpa"


def test_other_weights_do_not_resume_a_run(tmp_path) -> None:
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wb.capture(
            wb.load(small_llama(0)), PROMPTS, batch_size=1, out=tmp_path / "r", progress=stop
        )
    with pytest.raises(wb.WorkbenchError, match="r"):
        wb.capture(wb.load(small_llama(1)), PROMPTS, batch_size=1, out=tmp_path / "r")


def test_training_mode_is_left_and_does_not_reach_the_numbers() -> None:
    model = wb.load(small_llama(attention_dropout=0.5).train())
    a, b = wb.capture(model, [IDS]), wb.capture(model, [IDS])
    assert np.array_equal(a["z_norm"], b["z_norm"]) and model.net.training


def test_segments_end_with_their_capture() -> None:
    model = tiny("llama")
    prompt = wb.Prompt(token_ids=tuple(IDS), segments={"story": (2, 4)})
    with wb.intervening(model, Edit.drop_keys("L1H1", "story")):
        wb.capture(model, [prompt])
        with pytest.raises(wb.WorkbenchError, match="no role or segment"):
            model.logits(IDS)


@pytest.mark.parametrize("asked", [{"positions": "last"}, {"generate": 2}, {"keep_qk": True}])
def test_families_read_from_maps_refuse_what_they_cannot(asked: dict) -> None:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 100, "rotary_dim": 4}
    model = wb.load(GPTJForCausalLM(GPTJConfig(**shape, bos_token_id=1, eos_token_id=2)))
    with pytest.raises(wb.WorkbenchError, match="maps it returns"):
        wb.capture(model, [IDS], **asked)
    with pytest.raises(wb.CaptureError, match="none of what was asked for"):
        wb.capture(model, [IDS], want="lse")


def test_never_an_empty_capture_nor_a_half_seen_text() -> None:
    with pytest.raises(wb.CaptureError, match="none of what was asked for"):
        wb.capture(tiny("t5"), [IDS], kind="cross", want="self_mass")
    with pytest.raises(wb.WorkbenchError, match="positions= is not available"):
        wb.capture(tiny("t5"), [IDS], kind="cross", positions="last")
    model = tiny("llama")
    with torch.no_grad():
        cache = model.net(torch.tensor([IDS]), use_cache=True).past_key_values
    with pytest.raises(wb.WorkbenchError, match="no filled cache"):
        capture_inputs(model, {"input_ids": torch.tensor([[3]]), "past_key_values": cache})


def test_a_text_longer_than_the_learned_positions_is_refused() -> None:
    torch.manual_seed(0)
    model = wb.load(RobertaModel(RobertaConfig(**_SHAPE, max_position_embeddings=20)))
    with pytest.raises(wb.WorkbenchError, match=r"prompt 1 has 30 tokens, but .* has 20 positions"):
        wb.capture(model, [IDS, [5] * 30])


def test_a_slice_that_selects_nothing_and_a_bare_network_are_refused() -> None:
    with pytest.raises(wb.WorkbenchError, match="selects nothing of a prompt of 9 tokens"):
        wb.capture(tiny("llama"), [IDS], positions=slice(50, 60))
    with pytest.raises(wb.WorkbenchError, match=r"wb\.capture\(wb\.load\(net\)"):
        wb.capture(tiny("llama").net, [IDS])


@pytest.mark.parametrize(
    "edit", [Edit.zero("L1H1", at=50), Edit.drop_keys("L1H1", [0, 50]), Edit.block("L1H1", 50, 0)]
)
def test_a_position_beyond_the_text_is_refused_unless_it_grows(edit) -> None:
    model = tiny("llama")
    with wb.intervening(model, edit):
        with pytest.raises(wb.WorkbenchError, match=r"position 50 lies beyond .* 9 tokens"):
            model.logits(IDS)
        with pytest.raises(wb.WorkbenchError, match="lies beyond"):
            wb.capture(model, [IDS])
        model.generate(IDS, 3)
        wb.capture(model, [IDS], generate=2)
    late = Edit.zero("L1H1", at=len(IDS) + 1)
    grown = under(model, late, [IDS], generate=4)["z_norm"].sel(layer=1, head=1).to_numpy()[0]
    assert np.flatnonzero(grown == 0).tolist() == [len(IDS) + 1]
