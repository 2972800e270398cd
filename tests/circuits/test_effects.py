"""Losses against transformers' own, changes against runs of the test's own making."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from tests.tiny import IDS, tiny
from workbench.circuits.controls import untrained
from workbench.circuits.effects import LOSS, TURN, effects, next_token_loss, predicts
from workbench.errors import WorkbenchError

PROMPTS = [IDS, IDS[::-1] + IDS[:4]]


@pytest.mark.parametrize("name", ("llama", "gpt2", "mistral"))
def test_the_loss_is_the_one_transformers_computes(name: str) -> None:
    model = tiny(name)
    for ids in PROMPTS:
        tensor = torch.tensor([ids])
        with torch.no_grad():
            expected = float(model.net(input_ids=tensor, labels=tensor).loss)
        found = next_token_loss(model, ids)
        assert len(found) == len(ids) - 1
        assert np.isclose(found.mean(), expected, rtol=1e-5)


def test_a_change_is_measured_from_the_position_asked_for() -> None:
    model = tiny("llama")
    edits = {
        "nothing": [wb.Intervention.scale("L0H0", 1.0)],
        "without L1": [wb.Intervention.zero("L1H*")],
    }
    table = effects(model, PROMPTS, edits, first=3)
    assert table["unit"].eq(LOSS).all()
    assert table.query("edit == 'nothing'")["change"].eq(0).all()
    changed = table.query("edit == 'without L1'").set_index("prompt")
    # The same by hand: W_O of the layer gives nothing.
    hook = model.net.model.layers[1].self_attn.o_proj.register_forward_hook(
        lambda _, __, out: torch.zeros_like(out)
    )
    for number, ids in enumerate(PROMPTS):
        with torch.no_grad():
            log_p = model.net(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        by_hand = -log_p[np.arange(len(ids) - 1), ids[1:]][3:].mean()
        assert np.isclose(changed["edited"][number], float(by_hand), rtol=1e-5)
        assert changed["n"][number] == len(ids) - 4
        assert changed["change"][number] != 0
    hook.remove()


def test_encoders_are_compared_by_their_final_states() -> None:
    model = tiny("bert")
    assert not predicts(model)
    edits = {
        "nothing": [wb.Intervention.add("L0H0", np.zeros(8))],
        "everything": [wb.Intervention.zero("L0-2H*")],
    }
    table = effects(model, PROMPTS, edits).groupby("edit")["change"].mean()
    assert abs(table["nothing"]) < 1e-6
    assert table["everything"] > 1e-3
    assert effects(model, PROMPTS, edits)["unit"].eq(TURN).all()


def test_progress_reaches_its_end_and_bad_input_is_one_sentence() -> None:
    seen: list[tuple[int, int]] = []
    edits = {"a": [wb.Intervention.zero("L0H0")]}
    effects(
        tiny("llama"), PROMPTS, edits, progress=lambda done, total, _: seen.append((done, total))
    )
    assert seen[-1] == (4, 4)
    with pytest.raises(WorkbenchError, match="over before position 20"):
        effects(tiny("llama"), PROMPTS, edits, first=20)
    with pytest.raises(WorkbenchError, match="predicts no next token"):
        next_token_loss(tiny("bert"), IDS)
    with pytest.raises(WorkbenchError, match="one token"):
        next_token_loss(tiny("llama"), [5])


def test_the_untrained_control_is_the_same_network_with_other_weights() -> None:
    model = wb.load("zoo:mix-3l")
    state = torch.get_rng_state()
    fresh, again = untrained(model), untrained(model)
    assert torch.equal(state, torch.get_rng_state())
    assert fresh.spec == model.spec
    assert fresh.tokenizer is model.tokenizer
    pairs = list(zip(fresh.net.parameters(), again.net.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    text = model.tokenizer.decode(range(20, 60))
    assert not torch.allclose(model.logits(text), fresh.logits(text), atol=0.1)
