"""The log-sum-exp of the model's own forward: taken where it spares a sweep, never where the scores
are others, and without moving a bit of the output."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from tests.tiny import IDS, tiny
from workbench import measuring
from workbench.record import Recorder
from workbench.schema import expand_want

CHEAP = ("first_mass", "prev_mass", "waad")
PROMPTS = [IDS, IDS[:4], IDS[2:]]
SET = {"waad_window": 10, "horizon": (10, 50), "local_window": 16}


@pytest.fixture
def given(monkeypatch) -> list[bool]:
    """Whether each call of the kernels was given an lse."""
    seen: list[bool] = []
    original = measuring.attention_stats

    def spy(*args, **terms):
        seen.append(terms.get("lse") is not None)
        return original(*args, **terms)

    monkeypatch.setattr(measuring, "attention_stats", spy)
    return seen


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "bert"])
def test_it_is_that_of_the_scores_and_the_output_keeps_its_bits(name: str) -> None:
    model = tiny(name)
    ids = torch.tensor([IDS, IDS[::-1]])
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with torch.no_grad():
        plain = model.net(input_ids=ids, attention_mask=mask)[0]
        found = []
        with model.open_tap(found.append, lse_of="text"):
            tapped = model.net(input_ids=ids, attention_mask=mask)[0]
    assert torch.equal(plain, tapped)
    for call in found:
        scores = call.q.double() @ call.k.double().repeat_interleave(
            call.q.shape[1] // call.k.shape[1], 1
        ).transpose(-1, -2)
        scores = scores * call.terms["scale"]
        visible = call.terms["mask"].expand_as(scores)
        expected = scores.masked_fill(~visible, -torch.inf).logsumexp(-1)
        sighted = visible.any(-1)
        assert sighted.sum() > 2 * len(IDS)
        error = (call.lse.double() - expected)[sighted].abs().max() / expected[sighted].abs().max()
        assert error < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("padding", ["right", "left", "packed"])
def test_statistics_are_those_without_it(name: str, padding: str, given, monkeypatch) -> None:
    model = tiny(name)
    want = [*expand_want("rhythm"), *CHEAP[:2], "lse"]
    cheap = wb.capture(model, PROMPTS, want=want, padding=padding)
    # Counting the pairs of `fai` takes no scores.
    assert any(given)
    del given[:]
    monkeypatch.setattr(Recorder, "lse_of", None)
    swept = wb.capture(model, PROMPTS, want=want, padding=padding)
    assert given and not any(given)
    for variable in want:
        one, other = cheap[variable].to_numpy(), swept[variable].to_numpy()
        assert (np.isnan(one) == np.isnan(other)).all(), variable
        assert np.allclose(one, other, rtol=2e-5, atol=1e-6, equal_nan=True), variable


def test_it_is_asked_for_only_where_it_spares_a_sweep(given) -> None:
    model = tiny("llama")
    wb.capture(model, [IDS])
    wb.capture(model, [IDS], want=["entropy", "first_mass"])
    assert given and not any(given)
    del given[:]
    wb.capture(model, [IDS], want=CHEAP)
    wb.capture(model, [IDS], want="columns", generate=2)
    assert all(given)


def test_other_scores_and_other_backends_do_without(given) -> None:
    model = tiny("llama")
    edit = wb.Intervention.block("L1H1", keys=0)
    with wb.intervening(model, edit):
        edited = wb.capture(model, [IDS], want=CHEAP)
    # Layer 0 runs as ever, layer 1 on scores of its own.
    assert given[:2] == [True, False]
    assert float(edited["first_mass"].sel(layer=1, head=1).max()) == 0
    assert float(edited["first_mass"].sel(layer=1, head=2).max()) > 0
    del given[:]
    model.net.set_attn_implementation("eager")
    try:
        wb.capture(model, [IDS], want=CHEAP)
    finally:
        model.net.set_attn_implementation("sdpa")
    assert given and not any(given)


def test_rows_that_see_nothing_have_none(given) -> None:
    """Left padding with positions of its own: rows before the prompt see no key at all."""
    model = tiny("gpt2")
    found = []
    ids = torch.tensor([IDS])
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    recorder = Recorder(model.net, "text", ("lse", *CHEAP), None, parameters=SET)
    with model.open_tap(recorder, lse_of=recorder.lse_of) as tap, torch.no_grad():
        tap.listeners.append(found.append)
        model.net(input_ids=ids, attention_mask=mask)
        tap.listeners.remove(found.append)
    blind = ~found[0].terms["mask"][0, 0].any(-1).numpy()
    rows = recorder.chunks[found[0].site.name][0].rows
    assert given and all(given)
    assert (np.isneginf(rows["lse"][0, 0]) == blind).all()
    assert (rows["waad"][0, :, blind] == 0).all()


def test_a_mask_that_is_a_rule_is_described_as_one() -> None:
    long = [int(i) for i in np.random.default_rng(3).integers(1, 99, 30)]
    calls = []
    model = tiny("mistral")
    with model.open_tap(calls.append):
        model.logits(long)
    assert {call.terms.get("window") for call in calls} == {model.spec.sites[0].window}
    assert all("mask" not in call.terms and call.terms["causal"] for call in calls)
    # An edit of the scores gets the whole mask back: nothing outside the window becomes visible.
    with wb.intervening(model, wb.Intervention.block("L0H0", queries=29, keys=28)):
        stats = wb.capture(model, [long], want=["n_visible", "distance"], patterns=["L0H0"])
    pattern = stats["pattern"].to_numpy()[0, 0]
    back = np.arange(30)[:, None] - np.arange(30)
    assert pattern[back >= model.spec.sites[0].window].max() == 0 and pattern[29, 28] == 0
    assert np.allclose(pattern.sum(-1), 1, atol=1e-5)
