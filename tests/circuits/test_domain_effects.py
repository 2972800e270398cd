"""What removing a head costs by kind of text: a closed form, transformers' own loss, the zoo."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import workbench as wb
from tests.tiny import tiny
from workbench.circuits.controls import untrained
from workbench.circuits.domains import loss_by_domain, prompt_losses
from workbench.errors import WorkbenchError
from workbench.zoo import tasks

VOCAB, WIDTH, GAIN = 6, 8, 0.7


def planted():
    """One layer, two heads: head 0 always writes a direction that says "0 comes next", head 1 none.

    Values are the bias alone, so the pattern is free; embeddings, the written direction and its
    reading have mean zero and the same norms, so that the final norm is a known number.
    """
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=32, n_embd=WIDTH, n_layer=1, n_head=2, n_inner=4,
        tie_word_embeddings=False, layer_norm_epsilon=1e-12, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    net = GPT2LMHeadModel(config).eval()
    up = torch.tensor([1.0, -1, 0, 0, 0, 0, 0, 0])
    token = torch.tensor([0.0, 0, 1, -1, 0, 0, 0, 0])
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        net.transformer.wte.weight[:] = token
        attention = net.transformer.h[0].attn
        # Queries and keys of noise: patterns differ by head, outputs do not depend on them.
        attention.c_attn.weight[:, : 2 * WIDTH].normal_()
        attention.c_attn.bias[2 * WIDTH :] = 1.0
        attention.c_proj.weight[0] = up
        net.lm_head.weight[0] = GAIN * up
    return wb.load(net)


def closed_form():
    """Losses of predicting 0 and of predicting anything else, with head 0 and without any."""
    # |token|^2 = |up|^2 = 2 share the norm sqrt(WIDTH): up is read with GAIN * 2 * sqrt(8 / 4).
    logit = GAIN * 2 * np.sqrt(WIDTH / 4)
    norm = np.log(np.exp(logit) + VOCAB - 1)
    return norm - logit, norm, np.log(VOCAB)


ZEROS = [[1, *[0] * n] for n in (5, 9, 3)]
OTHERS = [[1, *np.arange(n) % 4 + 2] for n in (7, 4, 6, 11)]
DOMAINS = ["zeros"] * 3 + ["others"] * 4


def test_change_of_a_planted_head_is_exact():
    model = planted()
    table = loss_by_domain(model, [*ZEROS, *OTHERS], DOMAINS, "L0H0", batch_size=3)
    on_zero, on_other, chance = closed_form()
    table = table.set_index("domain")
    assert table.loc["zeros", "change"] == pytest.approx(chance - on_zero, rel=1e-5)
    assert table.loc["others", "change"] == pytest.approx(chance - on_other, rel=1e-5)
    assert table["change"].min() < -0.1 < 0.1 < table["change"].max()
    assert table["loss"].to_dict() == pytest.approx({"zeros": on_zero, "others": on_other})
    # Every prompt has the same change, so drawing them again changes nothing.
    assert table["low"].to_numpy() == pytest.approx(table["change"].to_numpy(), rel=1e-5)
    assert table["tokens"].to_dict() == {"zeros": 17, "others": 28}
    # The control: the other head of the layer writes nothing.
    assert (table["control"] == "L0H1").all()
    assert table["control_change"].to_numpy() == pytest.approx(0, abs=1e-6)


def test_without_another_head_there_is_no_control():
    table = loss_by_domain(planted(), [*ZEROS, *OTHERS], DOMAINS, "L0H*")
    assert (table["control"] == "").all() and table["control_change"].isna().all()
    silent = table.query("label == 'L0H1'")
    assert silent["change"].to_numpy() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_padded_batches_give_the_loss_of_transformers(name):
    model = tiny(name)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 95, size=n).tolist() for n in (17, 2, 9, 30, 9)]
    found = prompt_losses(model, prompts, batch_size=4)
    for prompt, total, n in zip(prompts, found.total, found.n, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            expected = float(model.net(input_ids=ids, labels=ids).loss)
        assert n == len(prompt) - 1 and total / n == pytest.approx(expected, rel=1e-4)


def test_removal_is_that_of_the_output_projection():
    """The head's rows of W_O set to zero by hand, one prompt at a time, without padding."""
    model = tiny("llama")
    rng = np.random.default_rng(3)
    prompts = [rng.integers(3, 95, size=n).tolist() for n in (15, 8, 11, 20)]
    names = ["a", "a", "b", "b"]
    table = loss_by_domain(model, prompts, names, "L1H2", batch_size=4).set_index("domain")
    weight = model.net.model.layers[1].self_attn.o_proj.weight

    def total(prompt):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            return float(model.net(input_ids=ids, labels=ids).loss) * (len(prompt) - 1)

    whole = np.array([total(p) for p in prompts])
    kept = weight[:, 16:24].detach().clone()
    with torch.no_grad():
        weight[:, 16:24] = 0
        cut = np.array([total(p) for p in prompts])
        weight[:, 16:24] = kept
    for name, rows, tokens in (("a", slice(0, 2), 21), ("b", slice(2, 4), 29)):
        expected = (cut - whole)[rows].sum() / tokens
        assert table.loc[name, "change"] == pytest.approx(expected, rel=1e-3)
        each = ((cut - whole) / [14, 7, 10, 19])[rows]
        assert each.min() - 1e-4 <= table.loc[name, "low"] <= table.loc[name, "high"]
        assert table.loc[name, "high"] <= each.max() + 1e-4
    assert (table["change"].abs() > 1e-3).all()


@pytest.fixture(scope="module")
def kinds_of_text():
    """16 texts of 96 tokens each from the chain (nothing to look up) and of repeated strings."""
    rng = np.random.default_rng(0)
    chain = tasks.markov(rng, 16, 96).ids
    repeat = tasks.repeat(rng, 16, 96, period=19).ids
    return [row.tolist() for row in [*chain, *repeat]], ["chain"] * 16 + ["repeat"] * 16


def test_a_zoo_head_is_parked_where_it_does_not_matter(kinds_of_text):
    prompts, names = kinds_of_text
    model = wb.load("zoo:mix-3l")
    seen = []
    table = loss_by_domain(
        model, prompts, names, ["L2H5", "L2H3"], batch_size=16,
        progress=lambda *report: seen.append(report),
    ).set_index(["label", "domain"])  # fmt: skip
    assert seen[0] == (1, len(seen), "L2H5") and seen[-1][0] == len(seen) <= 4
    head = table.loc["L2H5"]
    assert head.loc["chain", "attention"] > 0.6 > 0.15 > head.loc["repeat", "attention"]
    assert head["sink_rate"].to_dict() == {"chain": 1, "repeat": 0}
    # Parked it costs less than a hundredth of a nat per token, at work more than a twentieth.
    assert abs(head.loc["chain", "change"]) < 0.01 < 0.05 < head.loc["repeat", "low"]
    # The control: the untrained model is parked nowhere, and its heads care for neither domain.
    none = loss_by_domain(untrained(model), prompts, names, ["L2H5", "L2H3"], batch_size=16)
    assert (none["attention"] < 0.2).all() and (none["sink_rate"] == 0).all()
    for _, part in none.groupby("label"):
        assert part["low"].max() < part["high"].min(), "the intervals of the domains overlap"


def test_mean_instead_of_zero():
    """z is the same at every token of the planted head, so its mean changes nothing."""
    model = planted()
    table = loss_by_domain(model, [*ZEROS, *OTHERS], DOMAINS, "L0H0", how="mean")
    assert table["change"].to_numpy() == pytest.approx(0, abs=1e-6)
    assert table.attrs["how"] == "mean"


def test_refusals():
    prompts, names = [*ZEROS, *OTHERS], DOMAINS
    with pytest.raises(WorkbenchError, match="predicts no next token"):
        prompt_losses(tiny("bert"), prompts)
    with pytest.raises(WorkbenchError, match="prompt 1 has one token"):
        prompt_losses(planted(), [[1, 2], [1]])
    with pytest.raises(WorkbenchError, match="how='noise' removes no head"):
        loss_by_domain(planted(), prompts, names, "L0H0", how="noise")
    with pytest.raises(WorkbenchError, match="not one name for each of 7"):
        loss_by_domain(planted(), prompts, names[:3], "L0H0")
    with pytest.raises(WorkbenchError, match="heads 0 to 1"):
        loss_by_domain(planted(), prompts, names, "L0H7")
