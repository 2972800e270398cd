"""Sink dimensions, visual sinks and register outliers: planted, in closed form, and absent."""

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

import workbench as wb
from tests import synthetic as syn
from tests import visual_models as made
from workbench.capturing import capture_inputs
from workbench.errors import SchemaError, WorkbenchError
from workbench.probes import check_sink_dims, find_sink_dims, register_outliers, visual_sinks

NAMES = ("LLaVA", "Qwen2-VL")


def stats_with(resid, **more):
    maps = [[syn.first(r.shape[1])[None]] * (len(r) - 1) for r in resid]
    return syn.head_stats(maps, resid=resid, **more)


def captured(net, inputs, want=("residual", "phi"), dims=made.SINK_DIMS, **more):
    parameters = wb.Parameters(sink_dims=dims) if "phi" in want else None
    return capture_inputs(wb.load(net), inputs, want=list(want), parameters=parameters, **more)


def own_phi(net, inputs, dims):
    """phi at the input of every layer, from the hidden states the model returns."""
    with torch.no_grad():
        states = net(**inputs, output_hidden_states=True).hidden_states[:-1]
    h = torch.stack(states)[:, 0].double()
    return (h[..., list(dims)].abs().amax(-1) / h.square().mean(-1).sqrt()).numpy()


def test_dimensions_planted_in_a_stream_are_found_with_their_numbers():
    rng = np.random.default_rng(0)
    resid = [rng.normal(size=(5, n, 16)) for n in (30, 20)]
    for prompt in resid:
        # Dimension 5 in three of five levels, dimension 9 in two, dimension 2 in one prompt's one.
        prompt[1:4, 3, 5] = -3000
        prompt[2:4, 7, 9] = 2000
    resid[0][4, 1, 2] = 5000
    table = find_sink_dims(stats_with(resid)).set_index("dim")
    assert table.attrs["sink_dims"] == (5, 9)
    assert list(table.index[:3]) == [5, 9, 2]
    assert table.loc[[5, 9, 2], "share_fired"].tolist() == [0.6, 0.4, 0.1]
    assert (table.loc[[5, 9, 2], "rule"] == "both").all()
    assert (table.loc[5, "value"], table.loc[5, "position"], table.loc[5, "token"]) == (
        -3000,
        3,
        "t3",
    )
    medians = [np.median(abs(level)) for prompt in resid for level in prompt[1:4]]
    assert table.loc[5, "ratio"] == pytest.approx(3000 / min(medians))
    assert table.loc[5, "n"] == 10 and table.loc[5, "n_positions"] == 1
    assert find_sink_dims(stats_with(resid), most=1).attrs["sink_dims"] == (5,)
    assert find_sink_dims(stats_with(resid), share=0.05).attrs["sink_dims"] == (5, 9, 2)
    clean = [rng.normal(size=(5, n, 16)) for n in (30, 20)]
    assert find_sink_dims(stats_with(clean)).attrs["sink_dims"] == ()


def test_each_rule_is_named_and_what_chance_reaches_is_not_chosen():
    rng = np.random.default_rng(1)
    h = rng.normal(size=(3, 30, 16))
    small, large = h * 0.01, h * 30
    small[:, 2, 4] = 50
    large[:, 2, 4] = 400
    assert find_sink_dims(stats_with([small]))["rule"].iloc[0] == "ratio>1000"
    assert find_sink_dims(stats_with([large]))["rule"].iloc[0] == "absolute>100"
    for stream in (small, large):
        assert find_sink_dims(stats_with([stream])).attrs["sink_dims"] == ()
    assert find_sink_dims(stats_with([small]), absolute=10).attrs["sink_dims"] == (4,)
    # With thresholds that normal numbers pass, the null decides.
    low = find_sink_dims(stats_with([h]), absolute=0, ratio=1)
    assert (low["ratio"] > 1).all() and low.attrs["sink_dims"] == ()
    assert low["ratio"].max() == pytest.approx(low["null_ratio"].max(), rel=0.4)
    h[:, 2, 4] = 5 * low["null_ratio"].max() * np.median(abs(h))
    assert find_sink_dims(stats_with([h]), absolute=0, ratio=1).attrs["sink_dims"] == (4,)


def test_a_dimension_shared_by_many_sinks_does_not_hide_the_others():
    """More sinks than activations are kept per level."""
    net, inputs = made.planted("LLaVA")
    pixels = inputs["pixel_values"]
    pixels[..., 4:8, :] += 8  # a whole row of patches
    stats = captured(net, inputs, want=("residual",))
    assert set(find_sink_dims(stats).attrs["sink_dims"]) == set(made.SINK_DIMS)
    own = stats["resid_top_dim"][0, 3].to_numpy()
    assert len(set(own)) == len(own)
    with torch.no_grad():
        h = net(**inputs, output_hidden_states=True).hidden_states[3][0]
    assert (h[:, made.SINK_DIMS[0]].abs() > 1000).sum() >= 5
    largest = h.abs().amax(0).topk(3)
    assert own.tolist() == largest.indices.tolist()
    got = abs(stats["resid_top_value"][0, 3].to_numpy())
    np.testing.assert_allclose(got, largest.values.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_search_finds_the_planted_dimensions_of_a_model_and_none_in_a_random_one(name):
    for seed in range(2):
        stats = captured(*made.planted(name, seed), want=("residual",))
        assert set(find_sink_dims(stats).attrs["sink_dims"]) == set(made.SINK_DIMS)
        stats = captured(*made.plain(name, seed), want=("residual",))
        assert find_sink_dims(stats).attrs["sink_dims"] == ()


def test_dimensions_of_a_paper_are_confirmed_or_refused_with_numbers():
    stats = captured(*made.planted("LLaVA"), want=("residual",))
    table = check_sink_dims(stats, (7, 300, 130))
    assert list(table["dim"]) == [7, 300, 130]
    assert list(table["confirmed"]) == [True, False, True] and not table.attrs["confirmed"]
    assert table["says"].iloc[0].startswith("confirmed: |h| = ")
    assert "never among the three largest" in table["says"].iloc[1]
    assert "the search finds (7, 130)" in table["says"].iloc[1]
    assert check_sink_dims(stats, made.SINK_DIMS).attrs["confirmed"]
    # The same dimensions in a model that has no sinks.
    random = captured(*made.plain("LLaVA"), want=("residual",))
    seen = int(find_sink_dims(random)["dim"].iloc[0])
    table = check_sink_dims(random, (*made.SINK_DIMS, seen))
    assert not table["confirmed"].any() and "chance" in table["says"].iloc[2]
    assert table["says"].str.contains("finds none").all()
    # Thresholds are those of the search: what they exclude is refused.
    assert not check_sink_dims(stats, (7,), absolute=1e6)["confirmed"].any()
    for wrong in ("7", (7.5,), (-1,), ()):
        with pytest.raises(WorkbenchError, match="no list of dimensions"):
            check_sink_dims(stats, wrong)


def with_phi(phi, roles):
    """One prompt; `phi` [stream, query], `roles` by position."""
    n_stream, n = phi.shape
    stats = stats_with([np.random.default_rng(2).normal(size=(n_stream, n, 8))])
    found = xr.DataArray(phi[None], dims=("prompt", "stream", "query"))
    data = stats.data.assign(resid_phi=found)
    tokens = stats.tokens.assign(role=roles)
    return syn.HeadStats(data, tokens, stats.spec, stats.provenance)


def test_visual_and_text_sinks_are_told_apart_at_the_input_of_each_layer():
    roles = ["special", "image", "image", "image", "image", "text"]
    phi = np.full((6, 6), 3.0)
    phi[:, 0] = 22
    phi[0:2, 1] = 25  # in the first two layers only
    phi[3, 2] = 20.0  # not above tau
    phi[3, 3] = 20.5
    phi[5, 4] = 30  # after the last layer: the input of none
    stats = with_phi(phi, roles)
    table = visual_sinks(stats)
    assert list(table["layer"]) == [2, 3, 3, 4] and list(table["position"]) == [0, 0, 3, 0]
    assert list(table["sink"]) == ["text", "text", "visual", "text"]
    assert table["phi"].iloc[2] == 20.5 and table["role"].iloc[0] == "special"
    levels = stats["resid_top_value"][0, :, 0], stats["resid_median"][0]
    np.testing.assert_allclose(
        table["psi"], [abs(levels[0][s]) / levels[1][s] for s in table["layer"]]
    )
    assert table.attrs["share"] == pytest.approx(1 / 12)
    assert table.attrs["layer_share"] == {2: 0, 3: 0.25, 4: 0} and table.attrs["caution"] == ""
    everything = visual_sinks(stats, first_layer=0)
    assert everything["layer"].value_counts()[0] == 2
    assert visual_sinks(stats, tau=19)["layer"].value_counts()[3] == 3
    # What is generated later is never a sink of the set.
    later = syn.HeadStats(
        stats.data,
        stats.tokens.assign(role=["generated", *roles[1:]]),
        stats.spec,
        stats.provenance,
    )
    assert list(visual_sinks(later)["position"]) == [3]


def test_a_flood_of_visual_sinks_is_called_out():
    roles = ["special", "image", "image", "image", "image", "text"]
    phi = np.full((4, 6), 3.0)
    phi[3, :] = 40  # after the last layer: no layer's input
    phi[2, 1:4] = 21
    table = visual_sinks(with_phi(phi, roles))
    assert table.attrs["layer_share"] == {2: 0.75}
    assert "75% in layer 2" in table.attrs["caution"]
    phi[2, 3] = 3
    assert visual_sinks(with_phi(phi, roles)).attrs["caution"] == ""
    text = visual_sinks(with_phi(phi, ["text"] * 6))
    assert set(text["sink"]) == {"text"} and np.isnan(text.attrs["share"])
    with pytest.raises(WorkbenchError, match="leaves no layer of 3"):
        visual_sinks(with_phi(phi, roles), first_layer=3)
    with pytest.raises(SchemaError, match="resid_phi"):
        visual_sinks(stats_with([np.ones((4, 4, 8))]))


@pytest.mark.parametrize("name", NAMES)
def test_visual_sinks_of_a_planted_model_are_the_bright_patches(name):
    net, inputs = made.planted(name)
    table = visual_sinks(captured(net, inputs))
    at = made.sink_positions(name)
    for layer in (2, 3):
        own = table[table["layer"] == layer]
        for kind in ("text", "visual"):
            assert own.loc[own["sink"] == kind, "position"].tolist() == at[kind]
    assert set(table["layer"]) == {2, 3} and table.attrs["dims"] == made.SINK_DIMS
    expected = own_phi(net, inputs, made.SINK_DIMS)
    got = table.apply(lambda row: expected[row["layer"], row["position"]], axis=1)
    np.testing.assert_allclose(table["phi"], got, rtol=1e-5)
    # Massive from the first MLP on, so nothing at the input of layer 0.
    early = visual_sinks(captured(net, inputs), first_layer=0)
    assert set(early["layer"]) == {1, 2, 3} and expected[0].max() < 10
    assert (table["psi"] > 1000).all()
    # The same picture in a random model, and other dimensions of the same model.
    random = captured(*made.plain(name))
    assert visual_sinks(random).empty and float(random["resid_phi"].max()) < 5
    assert visual_sinks(captured(net, inputs, dims=(3, 300))).empty


def test_outliers_in_closed_form():
    n = 20
    rng = np.random.default_rng(3)
    resid = np.zeros((2, n, 8))
    resid[..., 0] = rng.normal(40, 2, size=(2, n))
    resid[1, 4, 0] = 151
    resid[1, 9, 0] = 150  # not above
    resid[1, 0, 0] = 500  # the class token
    stats = stats_with([resid], kind="vision", causal=False)
    roles = ["special"] + ["image"] * (n - 1)
    stats = syn.HeadStats(
        stats.data, stats.tokens.assign(role=roles), stats.spec, stats.provenance, "vision"
    )
    table = register_outliers(stats)
    assert list(table["position"]) == [0, 4] and list(table["role"]) == ["special", "image"]
    assert list(table["level"]) == ["after layer 0"] * 2
    assert table.attrs["share"] == {0: 0, 1: pytest.approx(1 / 19)}
    assert table.attrs["special_norm"][1] == 500 and table.attrs["n_patches"] == 19
    assert table.attrs["patch_norm"][1] == pytest.approx(np.median(resid[1, 1:, 0]))
    assert table.attrs["null_share"][1] < 1e-6
    cut = resid[1, 1:, 0].mean() + 3 * resid[1, 1:, 0].std()
    spread = register_outliers(stats, threshold="3sd")
    assert spread.attrs["thresholds"][1] == pytest.approx(cut)
    assert set(spread[spread["stream"] == 1]["position"]) == set(
        np.flatnonzero(resid[1, :, 0] > cut)
    )
    first = resid[0, 1:, 0]
    assert spread.attrs["share"][0] == np.mean(first > first.mean() + 3 * first.std())
    with pytest.raises(WorkbenchError, match="neither a norm nor"):
        register_outliers(stats, threshold="2sd")
    with pytest.raises(WorkbenchError, match="no image patches"):
        register_outliers(stats_with([resid]))
    few = stats.prompt(0)
    few = syn.HeadStats(
        few.data.isel(query=slice(8)), few.tokens, few.spec, few.provenance, "vision"
    )
    with pytest.raises(WorkbenchError, match="7 patches"):
        register_outliers(few, threshold="3sd")


VISION = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 24,
    "patch_size": 4, "mlp_ratio": 2,
}  # fmt: skip


def tower(registers):
    torch.manual_seed(0)
    if registers:
        net = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VISION, num_register_tokens=4))
        torch.nn.init.normal_(net.embeddings.register_tokens)
    else:
        net = Dinov2Model(Dinov2Config(**VISION))
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    return net.eval(), {"pixel_values": pixels}


def vision_stats(net, inputs):
    return captured(net, inputs, want=("residual",), kind="vision")


def test_outlier_patches_of_a_vision_tower_before_and_after_registers():
    net, inputs = tower(registers=False)
    assert register_outliers(vision_stats(net, inputs)).empty
    with torch.no_grad():
        # The first MLP writes a large vector where a patch's position says so.
        net.embeddings.position_embeddings[0, 1 + 8] = 0
        net.embeddings.position_embeddings[0, 1 + 8, 5] = 50
        mlp = net.encoder.layer[0].mlp
        mlp.fc1.weight[0], mlp.fc1.bias[0] = 0, -3
        mlp.fc1.weight[0, 5] = 1
        mlp.fc2.weight[:, 0] = 100
    before = register_outliers(vision_stats(net, inputs))
    assert set(before["stream"]) == {1, 2, 3} and set(before["position"]) == {9}
    assert set(before["role"]) == {"image"} and set(before["prompt"]) == {0, 1}
    shares = before.attrs["share"]
    assert shares == {0: 0, 1: 1 / 36, 2: 1 / 36, 3: 1 / 36}
    assert all(before.attrs["null_share"][s] < shares[s] / 100 for s in (1, 2, 3))
    with torch.no_grad():
        own = net(**inputs, output_hidden_states=True).hidden_states
    norms = [float(own[row.stream][row.prompt, row.position].norm()) for row in before.itertuples()]
    np.testing.assert_allclose(before["norm"], norms, rtol=1e-4)
    three = register_outliers(vision_stats(net, inputs), threshold="3sd")
    late = three[three["stream"] > 0]
    assert set(late.loc[late["role"] == "image", "position"]) == {9}

    net, inputs = tower(registers=True)
    assert register_outliers(vision_stats(net, inputs)).empty
    with torch.no_grad():
        net.embeddings.register_tokens[0, 2] *= 200 / net.embeddings.register_tokens[0, 2].norm()
    after = register_outliers(vision_stats(net, inputs))
    assert set(after["role"]) == {"special"} and set(after["position"]) == {3}
    assert set(after.attrs["share"].values()) == {0}
    assert all(norm > 150 for norm in after.attrs["special_norm"].values())
