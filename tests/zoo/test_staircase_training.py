"""Runs of the staircase: the network is attention, runs are independent, statistics are right."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.zoo.staircase import closed, laws, measure, model, recipe, training
from workbench.zoo.staircase.recipe import ALIGNED, STAIRS, WHITE, Recipe, Setting, logged_to

TINY = Recipe(
    "tiny", STAIRS,
    (Setting("separate", 0, 0.1), Setting("separate", 1, 0.1),
     Setting("sequences", 0, 0.1, sequences=60)),
    heads=5, rank=2, steps=40, rate=0.4, logged=logged_to(40, 6),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return training.train(tmp_path_factory.mktemp("tiny") / "a", (TINY,))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_loss_is_that_of_the_heads_on_the_sequences(rank):
    """Heads with value, key and query matrices, on every sequence of a fixed sample."""
    setup = replace(TINY, rank=rank, settings=TINY.settings[2:])
    bench = training.Bench(setup)
    parameters = {name: 10 * value for name, value in bench.start().items()}
    found = float(model.losses(parameters, bench.moments)[0])
    x, y = STAIRS.draw(60, 0)
    beta = np.einsum("sn,sni->si", y[:, :-1], x[:, :-1]) / STAIRS.length
    one = {name: value[0].numpy() for name, value in parameters.items()}
    predicted = np.zeros(60)
    for h in range(5):
        if rank:
            scores = np.einsum("si,ri,rj,sj->s", beta, one["k"][h], one["q"][h], x[:, -1])
        else:
            scores = np.einsum("si,ij,sj->s", beta, one["u"][h], x[:, -1])
        predicted += one["v"][h] * scores
    assert found == pytest.approx(float(np.mean((y[:, -1] - predicted) ** 2)), rel=1e-10)


def test_a_stack_logs_every_variable_with_its_labels(trained):
    data = trained.trajectories["tiny"]
    assert list(data.data_vars) == [variable.name for variable in measure.VARIABLES]
    assert data["m"].dims == ("run", "step", "key_direction", "query_direction")
    assert data["step"].to_numpy().tolist() == list(logged_to(40, 6))
    # Stored matrices give the stored scalars, to the precision of float16.
    m = data["m"].to_numpy().astype(float)
    np.testing.assert_allclose(data["heads_m"].sum("head").to_numpy(), m, atol=5e-3)
    share = np.diagonal(m, axis1=-2, axis2=-1) / closed.entries(STAIRS)
    np.testing.assert_allclose(share, data["share"], atol=2e-3)
    # At the length of training, the sweep is the loss of the population; its baseline the heights.
    own = data["by_length"].sel(length=31).isel(run=slice(2))
    np.testing.assert_allclose(own, data["loss"].isel(run=slice(2)), rtol=1e-5)
    np.testing.assert_allclose(
        data["by_length_baseline"].sel(length=31), closed.heights(STAIRS), rtol=1e-12
    )
    assert (data["by_length_baseline"].diff("predictor") < 0).all()


def test_a_run_in_a_stack_is_the_run_alone(trained, tmp_path):
    alone = replace(TINY, settings=TINY.settings[1:2])
    found = training.train(tmp_path / "a", (alone,)).trajectories["tiny"]
    together = trained.trajectories["tiny"].isel(run=[1])
    np.testing.assert_allclose(found["loss"], together["loss"], rtol=1e-6)
    np.testing.assert_allclose(found["value"], together["value"], rtol=1e-6)
    other = trained.trajectories["tiny"].isel(run=[0])
    assert np.abs(other["value"].to_numpy() - together["value"].to_numpy()).max() > 0.05


def test_aligned_starts_hold_what_they_say():
    settings = (Setting("aligned", 0, 0.02, kind=ALIGNED),)
    start = model.start(replace(TINY, settings=settings))
    m = model.head_matrices(start).sum(1)[0]
    torch.testing.assert_close(m, 0.02**3 * torch.eye(4, dtype=torch.float64))
    merged = model.start(replace(TINY, settings=settings, rank=0, task=WHITE))
    torch.testing.assert_close(merged["u"].flatten(1).norm(dim=1), merged["v"].norm(dim=1))
    with pytest.raises(WorkbenchError, match="at least 4 heads"):
        model.start(replace(TINY, settings=settings, heads=3))


def planted(steps, loss, shares, m=None):
    """A run with a given loss and given shares, [step, direction]."""
    shares = np.asarray(shares, float)
    if m is None:
        m = np.einsum("sd,de->sde", shares * closed.entries(STAIRS), np.eye(4))
    return xr.Dataset(
        {
            "loss": ("step", np.asarray(loss, float)),
            "share": (("step", "direction"), shares),
            "m": (("step", "key_direction", "query_direction"), m),
        },
        coords={
            "step": steps, "eigenvalue": ("direction", list(STAIRS.eigenvalues)), "examples": 31,
        },
    )  # fmt: skip


def stairs(counts, points=60):
    """A run that passes from each count of learned directions to the next in smooth steps."""
    steps = np.r_[0, np.geomspace(5, 5000, points * (len(counts) - 1))]
    x = np.r_[0, np.linspace(0, len(counts) - 1, len(steps) - 1)]
    shares = np.zeros((len(steps), 4))
    for i, (a, b) in enumerate(pairwise(counts)):
        shares[:, a:b] = 1 / (1 + np.exp(-24 * (x - i - 0.5)))[:, None]
    lam, end = STAIRS.variances, closed.entries(STAIRS)
    loss = 1 - (lam**2 * end * (2 * shares - shares**2)).sum(axis=1)
    return planted(steps, loss, shares)


def test_plateaus_are_counted_and_named():
    run = stairs((0, 1, 2, 3, 4))
    assert len(laws.drops(run)) == 4
    assert [p.components for p in laws.plateaus(run)] == [1, 2, 3]
    assert laws.height_error(closed.heights)(run) < 1e-3
    # The control: the same plateaus are not where endless prompts would have them.
    assert laws.height_error(closed.endless_heights)(run) > 0.05
    assert laws.order(run) == 1.0 and laws.overlap(run) > 0.999
    # A run that learns two directions at once has no plateau between them, one drop none at all.
    assert [p.components for p in laws.plateaus(stairs((0, 2, 3, 4)))] == [2, 3]
    abrupt = stairs((0, 4))
    assert laws.count(abrupt) == 0 and np.isnan(laws.height_error(closed.heights)(abrupt))


def test_order_and_overlap_see_the_wrong_directions():
    run = stairs((0, 1, 2, 3, 4))
    backwards = run.assign(
        share=(("step", "direction"), run["share"].to_numpy()[:, ::-1]),
        m=(run["m"].dims, run["m"].to_numpy()[:, ::-1, ::-1]),
    )
    assert laws.order(backwards) == -1.0 and laws.overlap(backwards) < 0.8
    never = run.assign(share=run["share"] * 0)
    assert np.isnan(laws.times(never)).all() and not laws.finished(never)
    assert np.isnan(laws.entry_error(closed.entries)(never))


def test_times_are_read_between_logged_steps():
    run = planted([0, 10, 20], [1, 0.5, 0.2], [[0, 0, 0, 0], [0.4, 0.6, 0.1, 0], [0.8, 1, 0.2, 0]])
    np.testing.assert_allclose(laws.times(run), [12.5, 10 * 0.5 / 0.6, np.nan, np.nan])


def test_trajectories_of_the_recipe_stay_small():
    """Bytes of everything logged, from the declared dims."""
    for stack in recipe.small():
        sizes = {
            "run": len(stack.settings), "step": len(stack.logged), "head": stack.heads,
            "direction": stack.task.d, "key_direction": stack.task.d,
            "query_direction": stack.task.d, "length": len(measure.LENGTHS),
        }  # fmt: skip
        total = sum(
            (2 if v.group == "circuits" else 4) * int(np.prod([sizes[dim] for dim in v.dims]))
            for v in measure.VARIABLES
        )
        print(f"{stack.name}: {total / 1e3:.0f} kB")
        assert total < 2e6
