"""A null logit against transformers' own eager softmax with a sink (GPT-OSS)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

import workbench as wb
from tests.tiny import IDS, tiny
from workbench.interventions import Intervention
from workbench.patterns import pattern_of

LOGIT = 0.7
N_HEADS = 4
null = Intervention.null_logit


class Sinks(nn.Module):
    """What the eager function of GPT-OSS reads off its module."""

    def __init__(self, sinks: torch.Tensor, groups: int) -> None:
        super().__init__()
        self.sinks, self.num_key_value_groups = sinks, groups


def eager(call, logit: float, heads: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(z, pattern) of a call with the logit in the denominator of `heads`."""
    n_query, n_key = call.q.shape[2], call.k.shape[2]
    hidden = torch.ones(n_query, n_key).triu(1).bool()
    mask = torch.zeros(1, 1, n_query, n_key).masked_fill(hidden, torch.finfo(torch.float32).min)
    sinks = torch.full((N_HEADS,), -torch.inf)
    sinks[heads] = logit
    module = Sinks(sinks, N_HEADS // call.k.shape[1]).eval()
    return eager_attention_forward(module, call.q, call.k, call.v, mask, call.terms["scale"])


def calls_of(model, edits, ids=IDS) -> dict:
    found: dict = {}
    with wb.intervening(model, edits), model.open_tap(lambda c: found.setdefault(c.site.layer, c)):
        model.logits(ids)
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_output_pattern_and_statistics_are_those_of_the_eager_sink(name: str) -> None:
    model = tiny(name)
    call = calls_of(model, [])[1]
    z, p = eager(call, LOGIT, [1, 2])
    got = calls_of(model, null("L1H1-2", LOGIT))[1]
    torch.testing.assert_close(got.z, z, rtol=1e-5, atol=1e-6)
    assert torch.equal(got.z[:, :, [0, 3]], call.z[:, :, [0, 3]])
    assert (z - call.z).abs().max() > 0.05
    with wb.intervening(model, null("L1H1-2", LOGIT)):
        stats = wb.capture(model, [IDS], patterns="L1H*", keep_qk=True)
    plain = wb.capture(model, [IDS], patterns="L1H*")
    p = p[0].double().numpy()
    kept = stats["pattern"].to_numpy()[0]
    np.testing.assert_allclose(kept, p, atol=1e-6)
    exact = {
        "null_mass": 1 - p.sum(-1),
        "first_mass": p[..., 0],
        "max_prob": p.max(-1),
        "entropy": -(p * np.log(np.where(p > 0, p, 1))).sum(-1),
        "key_mass": p.sum(-2),
        "z_norm": np.linalg.norm(z[0].numpy(), axis=-1).T,
    }
    for statistic, expected in exact.items():
        measured = stats[statistic].sel(layer=1).to_numpy()[0]
        np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-5, err_msg=statistic)
        # The other heads are measured as if nothing had been done.
        untouched = plain[statistic].sel(layer=1).to_numpy()[0]
        assert np.array_equal(measured[[0, 3]], untouched[[0, 3]]), statistic
    assert stats["null_mass"].sel(layer=1).to_numpy()[0, 1].min() > 1e-3
    # Asked for these alone, a capture takes the log-sum-exp of the forward, which is without it.
    few = ["null_mass", "first_mass"]
    with wb.intervening(model, null("L1H1-2", LOGIT)):
        cheap = wb.capture(model, [IDS], want=few)
    for statistic in few:
        np.testing.assert_allclose(cheap[statistic], stats[statistic], atol=1e-6)
    recomputed = np.stack([pattern_of(stats, 0, f"L1H{h}") for h in range(N_HEADS)])
    np.testing.assert_allclose(recomputed, p, atol=1e-6)


def test_two_logits_add_up_and_join_a_sink_the_model_has() -> None:
    """exp(a) + exp(b) in the denominator: as two edits, and as a parameter of GPT-OSS."""
    model = tiny("llama")
    both = calls_of(model, [null("L1H1", 0.3), null("L1H1", -0.5)])[1].z
    z, _ = eager(calls_of(model, [])[1], float(np.logaddexp(0.3, -0.5)), [1])
    torch.testing.assert_close(both, z, rtol=1e-5, atol=1e-6)

    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=16, num_local_experts=2,
        num_experts_per_tok=1, sliding_window=4, pad_token_id=0,
    )  # fmt: skip
    net = GptOssForCausalLM(config).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    oss = wb.load(net)
    with wb.intervening(oss, null("L0H2", LOGIT)):
        got = oss.logits(IDS)
        measured = wb.capture(oss, [IDS], want=["null_mass", "entropy"])
    plain = oss.logits(IDS)
    sinks = net.model.layers[0].self_attn.sinks
    sinks.data[2] = torch.logaddexp(sinks.data[2], torch.tensor(LOGIT))
    expected, known = oss.logits(IDS), wb.capture(oss, [IDS], want=["null_mass", "entropy"])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert (plain - expected).abs().max() > 1e-3
    for name in ("null_mass", "entropy"):
        np.testing.assert_allclose(measured[name], known[name], rtol=1e-4, atol=1e-6)


def test_a_very_small_logit_takes_nothing_and_a_large_one_all() -> None:
    model = tiny("llama")
    with wb.intervening(model, null("L*H*", -60.0)):
        none = model.logits(IDS)
    torch.testing.assert_close(none, model.logits(IDS), rtol=1e-5, atol=1e-5)
    with wb.intervening(model, null("L1H1", 60.0)):
        all_of_it = model.logits(IDS)
    with wb.intervening(model, Intervention.zero("L1H1")):
        torch.testing.assert_close(all_of_it, model.logits(IDS), rtol=1e-5, atol=1e-5)
    assert (all_of_it - model.logits(IDS)).abs().max() > 1e-2


def test_with_edits_of_scores_and_patterns() -> None:
    """Blocked keys leave the null its share; a pattern put in place before shrinks with the row,
    one moved afterwards keeps its smaller sum."""
    model = tiny("llama")
    block = Intervention.block("L1H1", keys=[0, 1])
    with wb.intervening(model, [null("L1H1", LOGIT), block]):
        stats = wb.capture(model, [IDS], patterns="L1H1")
    row_sum = stats["pattern"].to_numpy()[0, 0].sum(-1)
    got = stats["null_mass"].sel(layer=1, head=1).to_numpy()[0]
    np.testing.assert_allclose(got, 1 - row_sum, atol=1e-6)
    assert np.allclose(got[:2], 1) and (got[2:] > 0).all()  # rows that see nothing are all null
    plain = calls_of(model, [])[1]
    _, p = eager(plain, LOGIT, [1])
    sums = p[0, 1].sum(-1).numpy()
    move = Intervention.redistribute("L1H1", [0], [1, 3], 0.5)
    for edits in ([null("L1H1", LOGIT), move], [move, null("L1H1", LOGIT)]):
        call = calls_of(model, edits)[1]
        np.testing.assert_allclose(call.patterns[1][0].sum(-1), sums, rtol=1e-5)
        torch.testing.assert_close(
            call.z[0, :, 1], call.patterns[1][0] @ call.v[0, 0], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("padding", ["right", "left", "packed"])
def test_padding_and_generation(padding: str) -> None:
    model = tiny("mistral")
    edit = null("L*H*", 2.0)
    with wb.intervening(model, edit):
        alone = wb.capture(model, [IDS[:4]])
        both = wb.capture(model, [IDS, IDS[:4]], padding=padding).prompt(1)
        cached = model.generate(IDS, 5)
        ids = list(IDS)
        for _ in range(5):
            ids.append(int(model.logits(ids)[-1].argmax()))
    for name in ("null_mass", "entropy"):
        np.testing.assert_allclose(both[name], alone[name], rtol=1e-4, atol=1e-5)
    assert cached == ids[len(IDS) :] and cached != model.generate(IDS, 5)


def test_a_logit_must_be_a_number() -> None:
    with pytest.raises(wb.WorkbenchError, match="not finite"):
        null("L0H0", float("inf"))
    again = Intervention.from_json(null("L0H0", LOGIT).to_json())
    assert again == null("L0H0", LOGIT) != null("L0H0", 0.0)


def test_the_provenance_says_that_rows_no_longer_sum_to_one() -> None:
    model = tiny("llama")
    with wb.intervening(model, wb.Intervention.null_logit("L0H1", 1.0)):
        notes = wb.capture(model, [IDS], want="rows").provenance.notes
    assert any("a learned sink logit takes part" in note for note in notes)
    assert not wb.capture(model, [IDS], want="rows").provenance.notes
