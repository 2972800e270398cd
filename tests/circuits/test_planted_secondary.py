"""A secondary sink written into the weights of four families: found, labelled, and traced to the
neuron that makes it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import workbench as wb
from tests import planted_sinks as ps
from workbench.circuits import (
    attribute,
    creating_layer_cosines,
    residual_direction,
    sink_inputs,
    steer_creating_mlp,
)
from workbench.errors import WorkbenchError
from workbench.models import Model
from workbench.probes import primary_sink, same_token_control, secondary_sinks

WANT = ("resid_norm", "resid_cos", "resid_cos_trimmed", "key_mean", "key_count", "n_visible")
PLAIN = [ps.BOS, *range(20, 35)]
WITHOUT_CONTEXT = [29 if i == ps.CONTEXT else i for i in ps.PROMPT[: ps.SINK + 2]]


@cache
def planted(family: str) -> Model:
    return wb.load(ps.planted_net(family))


@cache
def untouched(family: str) -> Model:
    return wb.load(ps.random_net(family))


def stats_of(model, *prompts):
    return wb.capture(model, list(prompts), want=WANT)


@pytest.mark.parametrize("family", ps.FAMILIES)
def test_the_detector_returns_what_was_planted(family: str) -> None:
    stats = stats_of(planted(family), ps.PROMPT, WITHOUT_CONTEXT, PLAIN)
    primary = primary_sink(stats)
    assert (primary["start"] == 1).all() and (primary["end"] == 7).all()
    table = secondary_sinks(stats)
    found = {
        (r.prompt, r.position): (r.l_start, r.lifetime, r.contiguous, r.label_relative)
        for r in table.itertuples()
    }
    low, gap, spike = (ps.PROMPT.index(t) for t in (ps.LOW, ps.GAP, ps.SPIKE))
    decoys = {gap: (2, 3, False, "secondary"), spike: (3, 3, True, "massive only")}
    # The trigger makes a sink behind its context only; the plain prompt has none at all.
    expected = {(0, ps.SINK): (ps.MADE_IN, 3, True, "secondary")}
    expected |= {(0, at): row for at, row in decoys.items()}
    assert found == expected
    assert (0, low) in secondary_sinks(stats, cosine=0.8).set_index(["prompt", "position"]).index
    sink = table.set_index(["prompt", "position"]).loc[(0, ps.SINK)]
    assert sink["cos"] == pytest.approx(ps.K / np.hypot(ps.K, 7.5), abs=0.01)
    assert sink["cos_trimmed"] > 0.85
    assert sink["norm_start"] == pytest.approx(ps.K, rel=0.02)
    control = same_token_control(stats, table).set_index(["prompt", "position"])
    assert control.loc[(0, ps.SINK), "n_others"] == 3  # one beside it, two without the context
    assert control.loc[(0, ps.SINK), "cos_others_max"] < 0.2
    nothing = secondary_sinks(stats_of(untouched(family), ps.PROMPT, PLAIN))
    assert nothing.empty and len(nothing.attrs["left_out"]) == 2


@pytest.mark.parametrize("family", ps.FAMILIES)
def test_attribution_names_the_planted_neuron(family: str) -> None:
    model = planted(family)
    direction = residual_direction(model, ps.PROMPT, ps.MADE_IN)
    assert abs(direction @ ps.primary_direction().numpy()) > 0.99
    table = attribute(model, ps.PROMPT, ps.MADE_IN, ps.SINK, direction)
    first, second = table.iloc[0], table.iloc[1]
    assert first["neuron"] == ps.NEURON and first["share"] > 0.999
    assert first["contribution"] == pytest.approx(ps.K, rel=0.01)
    assert abs(second["share"]) < 0.001
    # The same token where it is no sink, and the same layer of the untouched model.
    assert table.attrs["control"] == "same token" and first["control"] == 0
    assert abs(table.attrs["control_total"]) < 0.01 * ps.K
    other = attribute(model, ps.PROMPT, ps.MADE_IN, ps.SAME, direction)
    assert abs(other.attrs["total"]) < 0.01 * ps.K
    plain = attribute(untouched(family), ps.PROMPT, ps.MADE_IN, ps.SINK, direction)
    assert abs(plain.attrs["output"]) < 0.01 * ps.K
    # Undone by another neuron of a later layer, with the opposite sign.
    undone = attribute(model, ps.PROMPT, ps.UNDONE_IN, ps.SINK, direction, top=1).iloc[0]
    assert undone["neuron"] == ps.NEURON and undone["contribution"] == pytest.approx(
        -ps.K, rel=0.01
    )


@pytest.mark.parametrize("family", ps.FAMILIES)
def test_the_cosine_jumps_at_down_of_the_creating_layer(family: str) -> None:
    table = creating_layer_cosines(planted(family), ps.PROMPT, ps.MADE_IN, ps.SINK)
    rows = table.set_index("state")
    assert rows.loc["down", "direction"] > 0.99 and rows.loc["resid_post", "direction"] > 0.98
    assert abs(rows.loc[["resid_pre", "input"], "direction"]).max() < 0.1
    assert rows.loc[["down", "resid_post"], "control_direction_max"].max() < 0.2
    assert rows.loc[["up", "act", "product"], "direction"].isna().all()
    assert ("gate" in rows.index) == (family in ("llama", "qwen3"))
    # A layer that does not create shows no jump, nor does the untouched model.
    later = creating_layer_cosines(planted(family), ps.PROMPT, ps.MADE_IN + 1, ps.SINK)
    assert abs(later.set_index("state").loc["down", "direction"]) < 0.5
    plain = creating_layer_cosines(untouched(family), ps.PROMPT, ps.MADE_IN, ps.SINK)
    assert plain.set_index("state").loc["resid_post", "direction"] < 0.5


def test_inputs_of_sinks_and_of_the_same_tokens_elsewhere() -> None:
    model = planted("llama")
    rng = np.random.default_rng(0)
    plain = rng.integers(20, 60, (6, 5)).tolist()
    prompts = [
        [ps.BOS, *words[:2], ps.TRIGGER, ps.CONTEXT, *words[2 : 3 + i % 3], ps.TRIGGER]
        for i, words in enumerate(plain)
    ]
    sinks = secondary_sinks(stats_of(model, *prompts))
    assert list(sinks["position"]) == [len(p) - 1 for p in prompts]
    inputs, is_sink = sink_inputs(model, prompts, sinks, ps.MADE_IN)
    assert len(inputs) == 12 and is_sink.sum() == 6
    seen = ps.flag("seen").numpy()
    # Same tokens: only the context tells them apart in the input.
    assert (inputs[is_sink] @ seen > 1).all() and (abs(inputs[~is_sink] @ seen) < 1e-4).all()
    with pytest.raises(WorkbenchError, match="no sink of the table begins at layer 5"):
        sink_inputs(model, prompts, sinks, 5)


FACTORS = (0.0, 0.1, 0.3, 0.5, 0.65, 1.0, 1.5)


def test_scaling_the_creating_mlp_scales_lifetime_and_score() -> None:
    net = ps.steerable_net()
    model = wb.load(net)
    written = ps.watch(net, ps.parts(net, ps.MADE_IN).down, ps.STEERED)[ps.STEERED_SINK].numpy()
    states = [
        ps.watch(net, ps.parts(net, layer).block, ps.STEERED).numpy()
        for layer in range(ps.N_LAYERS)
    ]

    def lifetime(factor: float) -> int:
        # Nothing behind layer 3 reads this position, so its state moves by the vector alone.
        count = 0
        for layer in range(ps.MADE_IN, 7):
            own = states[layer][ps.STEERED_SINK] + (factor - 1) * written
            first = states[layer][0]
            count += abs(own @ first) > 0.9 * np.linalg.norm(own) * np.linalg.norm(first)
        return count

    table = steer_creating_mlp(model, [ps.STEERED], ps.MADE_IN, FACTORS, at=ps.STEERED_SINK)
    assert list(table["factor"]) == list(FACTORS)
    assert list(table["lifetime"]) == [lifetime(f) for f in FACTORS]
    assert list(table["lifetime"]) == sorted(table["lifetime"])
    assert set(table["lifetime"]) == {0, 1, 2, 3, 4}
    expected = [np.linalg.norm(states[3][3] + (f - 1) * written) for f in FACTORS]
    np.testing.assert_allclose(table["norm"], expected, rtol=1e-5)
    assert (np.diff(table["score"]) > 0).all() and table["score"].iloc[-1] > 1.2 * table["score"][0]
    unchanged = secondary_sinks(stats_of(model, ps.STEERED)).set_index("position")
    at_one = table.set_index("factor").loc[1.0]
    assert at_one["score"] == pytest.approx(unchanged.loc[ps.STEERED_SINK, "score"], rel=1e-6)
    # The same change at another position, or in a layer that does not create, leaves the sink.
    with wb.intervening(model, [wb.StreamEdit.scale("L3 mlp_out", 0.1, at=[4])]):
        elsewhere = secondary_sinks(stats_of(model, ps.STEERED)).set_index("position")
    assert elsewhere.loc[ps.STEERED_SINK, "lifetime"] == 4
    wrong_layer = steer_creating_mlp(model, [ps.STEERED], 2, (0.0, 1.0), at=ps.STEERED_SINK)
    assert list(wrong_layer["lifetime"]) == [4, 4]


def test_scaling_the_planted_weight_is_the_same_as_steering() -> None:
    net = ps.steerable_net()
    lives, factors = [], (0.1, 0.5, 1.5)
    for factor in factors:
        column = ps.parts(net, ps.MADE_IN).down.weight[:, ps.NEURON]
        kept = column.clone()
        column *= factor
        table = secondary_sinks(stats_of(wb.load(net), ps.STEERED)).set_index("position")
        column.copy_(kept)
        alive = ps.STEERED_SINK in table.index
        lives.append(table.loc[ps.STEERED_SINK, "lifetime"] if alive else 0)
    model = wb.load(net)
    steered = steer_creating_mlp(model, [ps.STEERED], ps.MADE_IN, factors, at=ps.STEERED_SINK)
    assert lives == list(steered["lifetime"]) and len(set(lives)) == 3
