"""Texts without a natural sink: exact cases, the rotary bound, exemptions, and the proxy."""

import numpy as np
import pytest
import torch
import transformers

import workbench as wb
from tests.tiny import tiny
from workbench.circuits import sink_free
from workbench.circuits.controls import untrained
from workbench.circuits.sink_free import (
    proxy_pattern,
    proxy_sink_rate,
    repeated_token,
    sink_free_checks,
)
from workbench.errors import WorkbenchError
from workbench.families import FAMILIES
from workbench.kernels.attention_stats import pattern
from workbench.probes import first_token_sink_rate
from workbench.zoo import tasks
from workbench.zoo.backcopy import model as backcopy

T = 64
HARMONIC = sum(1 / t for t in range(1, T + 1)) / T
SHAPE = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def peaked(net):
    """Weights large enough for peaked patterns, so that an even row is not even by default."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return wb.load(net.eval())


def without_positions(name):
    if name == "GPT-NeoX":
        config = transformers.GPTNeoXConfig(**SHAPE, rotary_pct=0.0)
        return peaked(transformers.GPTNeoXForCausalLM(config))
    config = transformers.SmolLM3Config(**SHAPE, num_key_value_heads=2, no_rope_layers=[0, 0, 0])
    return peaked(transformers.SmolLM3ForCausalLM(config))


@pytest.mark.parametrize("name", ["GPT-NeoX", "SmolLM3"])
def test_without_positions_attention_to_equal_tokens_is_exactly_even(name):
    model = without_positions(name)
    table = repeated_token(model)
    assert len(table) == 12 and (table["encoding"] == "none").all()
    assert round(HARMONIC, 4) == 0.0741
    assert table["value"].to_numpy() == pytest.approx(HARMONIC, rel=1e-5)
    assert table["bound"].to_numpy() == pytest.approx(HARMONIC)
    assert table["null"].to_numpy() == pytest.approx(HARMONIC)
    assert (table["xi"] == 0).all() and table["excess"].max() < 1e-5
    assert (table["verdict"] == "holds").all() and table["excludes_sink"].all()
    # The control: on other tokens the same heads are anything but even.
    stats = wb.capture(model, model.repeated_tokens(T, 2), want=["max_prob", "n_visible"])
    assert float((stats["max_prob"] * stats["n_visible"]).sel(query=50).max()) > 3


def test_rotary_bound_holds_and_follows_from_the_norms():
    model = tiny("llama")
    table = repeated_token(model, n=1)
    assert (table["encoding"] == "rotary").all() and (table["verdict"] == "holds").all()
    assert (table["excess"] <= 0).all() or table["excess"].max() < 1e-6
    token = model.repeated_tokens(T, 1)[0].token_ids[0]
    want = ["q_norm", "k_norm", "first_mass"]
    stats = wb.capture(model, [[token] * T], want=want)
    n = np.arange(1, T + 1)
    for row in table.itertuples():
        q, k = (stats[name].sel(layer=row.layer, head=row.head) for name in ("q_norm", "k_norm"))
        xi = float(q.max() * k.max()) / np.sqrt(8)
        assert row.xi == pytest.approx(xi, rel=1e-4)
        bound = np.exp(2 * xi) / (np.exp(2 * xi) + n - 1)
        assert row.bound == pytest.approx(bound.mean(), rel=1e-4)
        first = stats["first_mass"].sel(layer=row.layer, head=row.head)
        assert row.value == pytest.approx(float(first.mean()), rel=1e-4)
        assert (first.to_numpy() <= bound + 1e-6).all()
        assert row.excludes_sink == (bound.mean() <= 0.3)


def test_weak_rotary_heads_are_bounded_below_a_sink():
    """With small weights xi is small, and the bound itself rules a sink out."""
    config = transformers.LlamaConfig(**SHAPE, num_key_value_heads=2)
    torch.manual_seed(0)
    table = repeated_token(wb.load(transformers.LlamaForCausalLM(config).eval()))
    assert (table["encoding"] == "rotary").all() and (table["verdict"] == "holds").all()
    assert table["excludes_sink"].all() and (table["value"] < table["bound"]).all()
    # The control: peaked heads have bounds that hold and say nothing.
    assert not repeated_token(tiny("llama"))["excludes_sink"].any()


def test_learned_positions_are_exempt():
    table = repeated_token(tiny("gpt2"), T=30)
    assert (table["encoding"] == "states").all() and table["bound"].isna().all()
    assert table["verdict"].str.startswith("not applicable: equal tokens have states").all()
    assert not table["excludes_sink"].any()
    # The measurement itself: without its learned positions the same network is exact.
    model = tiny("gpt2")
    positions = model.net.transformer.wpe.weight
    kept = positions.detach().clone()
    with torch.no_grad():
        positions.zero_()
        even = repeated_token(model, T=30)
        positions.copy_(kept)
    assert (even["encoding"] == "none").all() and (even["verdict"] == "holds").all()


def test_alibi_gives_the_first_of_equal_tokens_less_than_even_attention():
    model = wb.load(FAMILIES["Bloom"].build())
    table = repeated_token(model, T=40)
    assert (table["encoding"] == "bias").all() and (table["verdict"] == "holds").all()
    assert (table["value"] < table["null"]).all()
    # The control: on unequal tokens the same bound fails in places.
    stats = wb.capture(model, model.repeated_tokens(20, 2), want=["first_mass", "n_visible"])
    assert bool((stats["first_mass"] > 1.01 / stats["n_visible"]).any())


def test_a_learned_sink_makes_states_differ_behind_the_first_layer():
    table = repeated_token(wb.load(FAMILIES["GPT-OSS"].build()), T=40)
    kinds = table.groupby("layer")["encoding"].first().to_dict()
    assert kinds == {0: "rotary", 1: "states"}
    assert (table.loc[table["layer"] == 0, "verdict"] == "holds").all()


def test_layers_with_and_without_rotation_are_told_apart():
    table = repeated_token(wb.load(FAMILIES["Cohere 2"].build()), T=40)
    assert table.groupby("layer")["encoding"].first().to_dict() == {0: "rotary", 1: "none"}
    assert (table["verdict"] == "holds").all()
    other = repeated_token(wb.load(FAMILIES["Falcon"].build()), T=40)
    assert other["verdict"].str.startswith("not applicable: the scores").all()


def test_a_broken_rule_is_seen(monkeypatch):
    """A model that adds to the first key's score what no norm accounts for."""
    model = tiny("llama")
    with wb.intervening(model, wb.Intervention.add_logits("L1H0", 40.0, keys=0)):
        table = repeated_token(model).set_index("label")
    # Written as a bias, it enters the bound: that one is reached, and no sink excluded.
    assert table.loc["L1H0", "value"] > 0.99 and table.loc["L1H0", "bound"] > 0.99
    assert not table.loc["L1H0", "excludes_sink"]
    read = sink_free._read

    def halved(call, same):
        found = read(call, same)
        return found | {"bound": found["bound"] / 2}

    monkeypatch.setattr(sink_free, "_read", halved)
    broken = repeated_token(without_positions("GPT-NeoX"))
    assert (broken["verdict"] == "violated").all()
    checks = sink_free_checks(without_positions("GPT-NeoX"), [list(range(3, 70))])
    assert checks["verdict"].iloc[-1] == "violated"


def test_sink_rates_of_three_texts_of_a_trained_model():
    model = wb.load("zoo:mix-3l")
    texts = [row.tolist() for row in tasks.markov(np.random.default_rng(0), 8, 70).ids]
    table = sink_free_checks(model, texts, n=8).set_index("text")
    assert list(table.index) == ["natural", "random tokens", "one token repeated"]
    assert table.loc["natural", "value"] > 25
    assert table.loc["one token repeated", "value"] == 0
    assert table.loc["one token repeated", "verdict"] == "holds"
    assert table.loc["one token repeated", "alpha"] < 0.12
    assert (table["T"] == 64).all() and (table["epsilon"] == 0.3).all()
    assert table["null"].to_numpy() == pytest.approx(HARMONIC)
    # Gu's number is the mean of the probe over heads.
    stats = wb.capture(model, [row[:64] for row in texts], want=["first_mass", "n_visible"])
    rate = 100 * first_token_sink_rate(stats)["value"].mean()
    assert table.loc["natural", "value"] == pytest.approx(rate)
    # The control: the untrained model has no sink on any text.
    none = sink_free_checks(untrained(model), texts, n=8)
    assert (none["value"] == 0).all() and (none["alpha"] < 0.12).all()


def test_all_mass_on_the_first_key_is_one_hundred():
    model = tiny("llama")
    texts = [list(range(3, 70)), list(range(20, 90))]
    with wb.intervening(model, wb.Intervention.keep_keys("L0-2H*", 0)):
        table = sink_free_checks(model, texts, n=3)
    assert table["value"].to_list() == [100, 100, 100]
    assert table["alpha"].to_numpy() == pytest.approx(1)


def test_proxy_of_maps_that_are_no_softmax():
    rng = np.random.default_rng(4)
    q, k = (torch.as_tensor(rng.normal(size=(1, 2, T, 8))) for _ in range(2))
    maps = {
        name: pattern(q, k, causal=True, activation=name).numpy() for name in ("relu", "sigmoid")
    }
    for name, weights in maps.items():
        proxy = proxy_pattern(weights)
        assert (proxy >= 0).all()
        row = np.array([[abs(w) / np.abs(weights[0, 1, 40]).sum() for w in weights[0, 1, 40]]])
        assert proxy[0, 1, 40] == pytest.approx(row[0])
        table = proxy_sink_rate(weights[:, None], name)
        assert table["attention"].item() == f"{name}, proxy |w| / sum |w|"
        # The controls: random heads are no sinks; the first key made heavy is one.
        assert table["value"].item() == 0 and table["alpha"].item() < 0.12
        heavy = weights.copy()
        heavy[..., 0] += 100
        assert proxy_sink_rate(heavy[:, None], name)["value"].item() == 100
    # A factor on a row is nothing to the proxy; a row without weight stays without.
    scaled = maps["relu"] * rng.uniform(1, 9, size=(1, 2, T, 1))
    assert proxy_pattern(scaled) == pytest.approx(proxy_pattern(maps["relu"]))
    assert (proxy_pattern(np.zeros((1, 2, 3, 3))) == 0).all()
    with pytest.raises(WorkbenchError, match="64 queries or more"):
        proxy_sink_rate(maps["relu"][:, None, :, :9], "relu")


def test_relu_runs_of_the_laboratory_start_without_a_sink():
    shape = backcopy.Shape(20, T, 2, 1, 16, "relu")
    parameters = backcopy.start(shape, [0])
    ids = torch.randint(0, 20, (1, 4, T), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trace = backcopy.forward(parameters, ids, shape, backcopy.all_parts(shape, 1))
    weights = np.stack([layer[0].numpy() for layer in trace.pattern], axis=1)
    table = proxy_sink_rate(weights, "relu")
    assert weights.sum(-1).min() < 0.5 and table["value"].item() == 0


def test_refusals():
    with pytest.raises(WorkbenchError, match="fewer than T=64"):
        sink_free_checks(tiny("llama"), [[3, 4, 5]])
    with pytest.raises(WorkbenchError, match="T=64 is more than the 32 positions"):
        repeated_token(wb.load(FAMILIES["BERT"].build()))
    with pytest.raises(WorkbenchError, match="sequence-to-sequence"):
        repeated_token(tiny("t5"))
