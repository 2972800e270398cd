"""Image-centric heads, redistribution and masking of visual sinks, against the model's eager maps.

Layer 2 is the first that redistribution changes here, so that what it sees is untouched by it.
"""

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from tests import visual_models as made
from tests.families.eager import observed
from workbench.capturing import capture_inputs
from workbench.circuits import (
    from_code,
    from_paper,
    image_centric_heads,
    masking_effect,
    redistribution,
)
from workbench.errors import WorkbenchError
from workbench.probes import visual_sinks

NAMES = ("LLaVA", "Qwen2-VL")
LAYER = 2


def sink_table(name, layers=(2, 3)):
    rows = [
        {"prompt": 0, "layer": layer, "position": at, "sink": kind}
        for layer in layers
        for kind, positions in made.sink_positions(name).items()
        for at in positions
    ]
    return pd.DataFrame(rows)


def opened(name, make=made.planted):
    net, inputs = make(name)
    return wb.load(net), inputs, sink_table(name)


def eager_maps(model, inputs, layer):
    """The model's own map [head, query, key] of a layer."""
    (site,) = [s for s in model.spec.of() if s.layer == layer]
    with observed(model.net) as maps, torch.no_grad():
        model.net(**inputs)
    return maps[site.name][0][0].astype("float64")


def changed_maps(model, inputs, interventions, layer):
    """The maps [head, query, key] that the interventions put in place, and z [query, head, d]."""
    found = {}

    def listen(call):
        if call.site.kind == "text" and call.site.layer == layer:
            found.update(patterns=dict(call.patterns), z=call.z[0])

    with wb.intervening(model, interventions), model.open_tap(listen), torch.no_grad():
        model.net(**inputs)
    maps = [found["patterns"][head][0].double().numpy() for head in sorted(found["patterns"])]
    return np.stack(maps) if maps else None, found["z"]


def by_the_code(p, rho_code, p_code, image, sinks, visual, after, summ=0.2):
    """Redistribution as the authors' code defines it, in numpy, on maps [head, query, key]."""
    p = p.copy()
    plain = [at for at in image if at not in visual]
    for head in range(len(p)):
        for query in range(after, p.shape[1]):
            row = p[head, query]
            total = row[image].sum()
            if total < summ or row[visual].sum() / total > rho_code:
                continue
            budget = (1 - p_code) * row[sinks].sum()
            row[sinks] *= p_code
            row[plain] += budget * row[plain] / row[plain].sum()
    return p


def places(name):
    at = made.sink_positions(name)
    image = made.image_positions(name)
    return image, [*at["text"], *at["visual"]], at["visual"], image[-1] + 1


def test_numbers_of_paper_and_code_are_converted_by_name():
    assert from_paper(0.8, 0.6) == (0.8, 0.6)
    assert from_code(0.5, 0.6) == (0.5, pytest.approx(0.4))
    assert from_code(0.2, 0.4) == pytest.approx(from_paper(0.8, 0.6))
    for wrong in ((1.2, 0.5), (0.5, -0.1)):
        with pytest.raises(WorkbenchError, match="is no share"):
            from_code(*wrong)


@pytest.mark.parametrize("name", NAMES)
def test_masses_are_those_of_the_eager_maps(name):
    for make in (made.planted, made.plain):
        model, inputs, sinks = opened(name, make)
        image, _, visual, after = places(name)
        found = image_centric_heads(model, inputs, sinks, rho=0.6, least_mass=0.3)
        for layer in (2, 3):
            p = eager_maps(model, inputs, layer)
            rows = found.rows.sel(layer=layer)
            total, sink = p[:, :, image].sum(-1), p[:, :, visual].sum(-1)
            np.testing.assert_allclose(rows["image_mass"], total, atol=2e-6)
            np.testing.assert_allclose(rows["sink_mass"], sink, atol=2e-6)
            with np.errstate(invalid="ignore"):
                ratio = (total - sink) / total
            seen = total > 1e-3
            np.testing.assert_allclose(rows["ratio"].values[seen], ratio[seen], atol=1e-4)
            centric = (total >= 0.3) & (np.nan_to_num(ratio) >= 0.6)
            assert (rows["image_centric"].values == centric).all()
            heads = found.heads[found.heads["layer"] == layer]
            np.testing.assert_allclose(heads["value"], centric[:, after:].mean(1))
            assert (heads["n"] == p.shape[1] - after).all()
            assert list(heads["label"]) == [f"L{layer}H{h}" for h in range(made.HEADS)]


@pytest.mark.parametrize("name", NAMES)
def test_planted_heads_are_told_apart_and_those_of_a_random_model_are_not(name):
    model, inputs, _ = opened(name)
    stats = capture_inputs(
        model, inputs, want=["residual", "phi"], parameters=wb.Parameters(sink_dims=made.SINK_DIMS)
    )
    table = image_centric_heads(model, inputs, visual_sinks(stats)).heads.set_index("label")
    assert list(table["layer"].unique()) == [2, 3]
    for layer in (2, 3):
        sink, image, both, words = (table.loc[f"L{layer}H{h}"] for h in range(4))
        assert sink["value"] == 0 and sink["ratio"] < 0.3 and sink["image_mass"] > 0.3
        assert image["value"] == 1 and image["ratio"] > 0.9
        assert both["value"] == 1 and image["ratio"] > both["ratio"] > sink["ratio"]
        assert words["value"] < 0.5 and words["image_mass"] < 0.25
    share = 1 - len(made.BRIGHT[name]) / made.N_IMAGE[name]
    np.testing.assert_allclose(table["ratio_null"], share)
    assert (table["null"] == 1).all()
    # Without planted sinks no head avoids or prefers these tokens beyond what its keys happen to.
    model, inputs, sinks = opened(name, made.plain)
    random = image_centric_heads(model, inputs, sinks).heads
    assert (abs(random["ratio"] - random["ratio_null"]) < 0.2).all()
    assert (random["value"] > 0.5).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rho_code", "p_code"), [(0.5, 0.6), (0.2, 0.0), (1.0, 0.3)])
def test_redistribution_is_that_of_the_authors_code(name, rho_code, p_code):
    model, inputs, sinks = opened(name)
    rho, move_fraction = from_code(rho_code, p_code)
    edits = redistribution(model, inputs, sinks, move_fraction=move_fraction, rho=rho)
    before = eager_maps(model, inputs, LAYER)
    image, every, visual, after = places(name)
    expected = by_the_code(before, rho_code, p_code, image, every, visual, after)
    got, _ = changed_maps(model, inputs, edits, LAYER)
    np.testing.assert_allclose(got, expected, atol=3e-6)
    # Read in the other convention the same numbers do something else.
    other = redistribution(model, inputs, sinks, move_fraction=p_code, rho=rho)
    if p_code != 0.0:
        assert abs(changed_maps(model, inputs, other, LAYER)[0] - expected).max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_conservation_and_what_stays_as_it_was(name):
    model, inputs, sinks = opened(name)
    image, every, visual, after = places(name)
    plain = [at for at in image if at not in visual]
    before = eager_maps(model, inputs, LAYER)
    centric = (
        image_centric_heads(model, inputs, sinks).rows["image_centric"].sel(layer=LAYER).values
    )
    centric = centric & (np.arange(before.shape[1]) >= after)
    assert centric.any() and not centric.all(1).any() and not centric[0].any()
    _, z_before = changed_maps(model, inputs, [], LAYER)
    masses = []
    for move in (0.25, 0.5, 1.0):
        edits = redistribution(model, inputs, sinks, move_fraction=move)
        p, z = changed_maps(model, inputs, edits, LAYER)
        np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
        # Rows that are not image-centric keep every bit, the others change.
        untouched = torch.as_tensor(~centric.T)
        assert torch.equal(z[untouched], z_before[untouched])
        assert (z[~untouched] != z_before[~untouched]).any(-1).all()
        kept = p[centric][:, plain] / before[centric][:, plain]
        np.testing.assert_allclose(kept, kept[:, :1].repeat(len(plain), 1), rtol=1e-4)
        moved = p[centric][:, plain].sum(-1) - before[centric][:, plain].sum(-1)
        np.testing.assert_allclose(moved, move * before[centric][:, every].sum(-1), atol=3e-6)
        masses.append(p[centric][:, every].sum(-1))
    assert (masses[0] > masses[1]).all() and (masses[1] > masses[2]).all()
    assert (p[centric][:, every] == 0).all()
    with torch.no_grad():
        logits = model.net(**inputs).logits
        with wb.intervening(model, redistribution(model, inputs, sinks, move_fraction=0.0)):
            assert torch.equal(model.net(**inputs).logits, logits)
        with wb.intervening(model, redistribution(model, inputs, sinks, move_fraction=0.5)):
            assert not torch.equal(model.net(**inputs).logits, logits)


def test_which_layers_and_rows_are_changed():
    model, inputs, sinks = opened("LLaVA")
    image, every, visual, after = places("LLaVA")

    def layers(table, **more):
        return [
            edit.heads for edit in redistribution(model, inputs, table, move_fraction=0.5, **more)
        ]

    assert layers(sinks) == [("L2H*",)] * 2
    assert layers(sinks, skip_last=False) == [("L2H*",)] * 2 + [("L3H*",)] * 2
    assert layers(sinks, queries="last") == [("L2H*",)]
    first, later = redistribution(model, inputs, sinks, move_fraction=0.5)
    assert first.queries == tuple(range(after, len(inputs["input_ids"][0])))
    assert later.queries == "generated" and set(first.keys) == set(every)
    assert set(first.to) == set(image) - set(visual) and first.within == "image"
    # A layer with sinks of the text alone, and one where every image token is a sink.
    assert layers(sinks[sinks["sink"] == "text"]) == []
    flood = pd.DataFrame(
        [{"prompt": 0, "layer": 2, "position": at, "sink": "visual"} for at in image]
    )
    assert layers(flood) == []
    assert (image_centric_heads(model, inputs, flood).heads["value"] == 0).all()
    assert image_centric_heads(model, inputs, sinks.iloc[:0]).heads.empty


def test_rows_generated_later_are_changed_too():
    model, inputs, sinks = opened("LLaVA")
    edits = redistribution(model, inputs, sinks, move_fraction=1.0)
    _, every, _, _ = places("LLaVA")
    steps = []

    def listen(call):
        if call.site.kind == "text" and call.site.layer == LAYER and call.q.shape[2] == 1:
            steps.append((call.patterns[1][0, 0], call.patterns[0][0, 0]))

    with wb.intervening(model, edits), model.open_tap(listen):
        model.net.generate(**inputs, min_new_tokens=4, max_new_tokens=4, do_sample=False)
    assert len(steps) == 3
    for image_head, sink_head in steps:
        assert (image_head[every] == 0).all() and abs(float(image_head.sum()) - 1) < 1e-6
        assert float(sink_head[every].sum()) > 0.5


def test_left_padding_moves_no_position():
    model, inputs, sinks = opened("LLaVA")
    pad = torch.zeros(1, 3, dtype=torch.long)
    shifted = {
        **inputs,
        "input_ids": torch.cat([pad, inputs["input_ids"]], dim=1),
        "attention_mask": torch.cat([pad, inputs["attention_mask"]], dim=1),
    }
    plain, padded = (image_centric_heads(model, x, sinks) for x in (inputs, shifted))
    for column in ("value", "ratio", "image_mass", "sink_mass", "ratio_null"):
        np.testing.assert_allclose(padded.heads[column], plain.heads[column], atol=1e-5)
    edits = redistribution(model, inputs, sinks, move_fraction=1.0)
    assert [e.to_json() for e in edits] == [
        e.to_json() for e in redistribution(model, shifted, sinks, move_fraction=1.0)
    ]
    _, every, _, after = places("LLaVA")
    p, _ = changed_maps(model, shifted, edits, LAYER)
    assert (p[1, after + 3 :][:, [at + 3 for at in every]] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_hiding_visual_sinks_costs_nothing_and_hiding_other_tokens_does(name):
    model, inputs, sinks = opened(name)
    table = masking_effect(model, inputs, sinks, draws=6)
    visual, random = table.iloc[0], table.iloc[1:]
    assert visual["masked"] == "visual sinks" and set(random["masked"]) == {"random image tokens"}
    assert (table["n_masked"] == len(made.BRIGHT[name])).all()
    assert visual["kl"] < 0.1 * random["kl"].min() and table.attrs["random_larger"] == 1
    assert abs(visual["loss_change"]) < 0.2 * random["loss_change"].abs().mean()
    with torch.no_grad():
        logits = model.net(**inputs).logits[0].double()
    after = places(name)[-1]
    own = -logits.log_softmax(-1)[after - 1 : -1].gather(1, inputs["input_ids"][0, after:, None])
    assert table.attrs["loss"] == pytest.approx(float(own.mean()), rel=1e-5)
    assert masking_effect(model, inputs, sinks, draws=6).equals(table)
    # In a random model these tokens are like the others.
    model, inputs, sinks = opened(name, made.plain)
    table = masking_effect(model, inputs, sinks, draws=6)
    assert table["kl"].iloc[0] > 0.5 * table["kl"].iloc[1:].min()


def test_what_does_not_fit_is_refused_in_one_sentence():
    model, inputs, sinks = opened("LLaVA")
    ids = inputs["input_ids"]
    n = ids.shape[1]
    two = {name: torch.cat([value, value]) for name, value in inputs.items()}
    cases = [
        ({"inputs_embeds": torch.zeros(1, 3, 8)}, sinks, "no input_ids"),
        (two, sinks, "2 rows"),
        ({"input_ids": torch.full((1, 6), 20)}, sinks, "has no image tokens"),
        ({**inputs, "input_ids": ids[:, :19], "attention_mask": ids[:, :19] > 0}, sinks, "no text"),
        (inputs, pd.concat([sinks, sinks.assign(prompt=1)]), "holds 2 prompts"),
        (inputs, sinks.assign(position=n - 1), "but no image token of this prompt"),
    ]
    for x, table, says in cases:
        with pytest.raises(WorkbenchError, match=says):
            image_centric_heads(model, x, table)
    with pytest.raises(WorkbenchError, match="least_mass=2"):
        redistribution(model, inputs, sinks, move_fraction=0.5, least_mass=2)
    with pytest.raises(WorkbenchError, match="masking 0 visual sinks"):
        masking_effect(model, inputs, sinks[sinks["sink"] == "text"])
    with pytest.raises(WorkbenchError, match=r"draws \(now 0\)"):
        masking_effect(model, inputs, sinks, draws=0)
