"""Attribution to an MLP: closed forms, controls and refusals."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata

import workbench as wb
from tests.tiny import IDS, tiny
from workbench.circuits import (
    attribute,
    creating_layer_cosines,
    norm_against_lifetime,
    pca_through_mlp,
    residual_direction,
    steer_creating_mlp,
)
from workbench.circuits.mlp_states import states_around
from workbench.errors import WorkbenchError

LAYER = 1


def unit(seed: int) -> np.ndarray:
    v = np.random.default_rng(seed).normal(size=32)
    return v / np.linalg.norm(v)


READ, WRITTEN = unit(1), unit(2)


@cache
def with_reader(planted: bool) -> wb.Model:
    """A random model in whose layer 1 one neuron reads a direction and writes another one."""
    torch.manual_seed(3)
    config = tiny("llama").net.config
    net = type(tiny("llama").net)(config).double().eval()
    for parameter in net.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    if planted:
        mlp = net.model.layers[LAYER].mlp
        mlp.gate_proj.weight.data[5] = mlp.up_proj.weight.data[5] = torch.tensor(8 * READ)
        mlp.down_proj.weight.data[:, 5] = torch.tensor(20 / 64 * WRITTEN)
    return wb.load(net)


def test_a_principal_direction_that_is_read_comes_out_as_what_is_written() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 32)) * 0.3 + rng.choice([-3, 3], size=(60, 1)) * READ
    table = pca_through_mlp(with_reader(True), LAYER, inputs, WRITTEN, 3)
    centred = inputs - inputs.mean(0)
    scale, axes = np.linalg.svd(centred, full_matrices=False)[1:]
    assert list(table["component"]) == [1, 1, 2, 2, 3, 3]
    explained = np.repeat((scale**2 / (scale**2).sum())[:3], 2)
    np.testing.assert_allclose(table["explained"], explained, rtol=1e-9)
    assert abs(axes[0] @ READ) > 0.99 and explained[0] > 0.5
    # silu(8) 8 / 64 of the vector for the sign that is read, next to nothing for the other.
    reading = table.iloc[table["cosine"].abs().argmax()]
    assert reading["component"] == 1 and reading["cosine"] > 0.98
    assert reading["norm"] == pytest.approx(20 / (1 + np.exp(-8)), rel=0.05)
    rest = table.drop(index=int(reading.name))
    assert rest["cosine"].abs().max() < 0.9 and table["null"].iloc[0] < 0.6
    # Without the neuron no direction comes out as that vector.
    plain = pca_through_mlp(with_reader(False), LAYER, inputs, WRITTEN, 3)
    assert plain["cosine"].abs().max() < 0.7


def test_states_of_the_creating_layer_beside_their_controls() -> None:
    model = with_reader(True)
    table = creating_layer_cosines(model, IDS, LAYER, 6, primary=0).set_index("state")
    states = states_around(model, IDS, LAYER)
    first = states["resid_post"][0]

    def cos(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    # IDS[6] is 6, which stands at position 1 as well.
    assert table.attrs["control"] == "same token" and table.attrs["n_control"] == 1
    for state in ("resid_pre", "input", "gate", "up", "act", "product", "down", "resid_post"):
        own = states[state]
        assert table.loc[state, "cosine"] == pytest.approx(cos(own[6], own[0]), rel=1e-9)
        assert table.loc[state, "control_max"] == pytest.approx(abs(cos(own[1], own[0])), rel=1e-9)
        assert table.loc[state, "norm"] == pytest.approx(np.linalg.norm(own[6]), rel=1e-9)
    expected = cos(states["down"][6], first)
    assert table.loc["down", "direction"] == pytest.approx(expected, rel=1e-9)
    assert table.loc["resid_post", "direction"] == table.loc["resid_post", "cosine"]
    direction = residual_direction(model, IDS, LAYER)
    np.testing.assert_allclose(direction, first / np.linalg.norm(first), rtol=1e-12)
    # A token that stands once is compared with all others.
    alone = creating_layer_cosines(model, IDS, LAYER, 8).set_index("state")
    assert alone.attrs["control"] == "other positions" and alone.attrs["n_control"] == 7
    others = [abs(cos(states["down"][p], first)) for p in range(1, 8)]
    assert alone.loc["down", "control_direction_mean"] == pytest.approx(np.mean(others), rel=1e-9)
    assert alone.loc["down", "control_direction_max"] == pytest.approx(max(others), rel=1e-9)
    table = attribute(model, IDS, LAYER, 8, WRITTEN, top=None).set_index("neuron")
    products = states["product"][1:8].mean(0) * (20 / 64)
    assert table.loc[5, "control"] == pytest.approx(products[5], rel=1e-9)
    assert table.loc[5, "cosine"] == pytest.approx(1, rel=1e-9)


def test_spearman_is_that_of_the_ranks_and_needs_three_sinks() -> None:
    rng = np.random.default_rng(0)
    norm, apart = rng.uniform(10, 100, size=200), rng.uniform(size=200)
    sinks = pd.DataFrame({"norm_start": norm, "lifetime": np.ceil(norm / 9), "score": apart})
    table = norm_against_lifetime(sinks).set_index("against")
    for name in ("lifetime", "score"):
        ranks = np.corrcoef(rankdata(norm), rankdata(sinks[name]))[0, 1]
        assert table.loc[name, "rho"] == pytest.approx(ranks, rel=1e-9)
    # The planted relation and, as its control, numbers drawn apart.
    assert table.loc["lifetime", "rho"] > 0.98 and table.loc["lifetime", "p"] < 1e-9
    assert abs(table.loc["score", "rho"]) < 0.2 and table.loc["score", "p"] > 0.01
    for few in (sinks[:2], sinks.assign(lifetime=3, score=np.nan)):
        assert norm_against_lifetime(few)["rho"].isna().all()
    assert list(norm_against_lifetime(sinks.assign(score=np.nan))["n"]) == [200, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: attribute(m, IDS, LAYER, 99, WRITTEN), "position=99 lies outside the prompt"),
        (lambda m: attribute(m, IDS, LAYER, 2, WRITTEN[:5]), r"the direction has shape \(5,\); 32"),
        (lambda m: attribute(m, IDS, LAYER, 2, np.zeros(32)), "norm 0 has no direction"),
        (lambda m: residual_direction(m, IDS, LAYER, -1), "position=-1 lies outside"),
        (lambda m: creating_layer_cosines(m, IDS, LAYER, 2, primary=50), "primary=50 lies outside"),
        (lambda m: pca_through_mlp(m, LAYER, np.ones((3, 32)), WRITTEN, 9), "no 9 principal"),
        (lambda m: pca_through_mlp(m, LAYER, np.ones((3, 5)), WRITTEN, 1), r"give \[n, 32\]"),
        (lambda m: steer_creating_mlp(m, [IDS], LAYER, [], at=2), "factors is empty"),
        (lambda m: steer_creating_mlp(m, [IDS], LAYER, [1.0], at=[-2]), "names no positions"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message) -> None:
    with pytest.raises(WorkbenchError, match=message):
        call(with_reader(False))
