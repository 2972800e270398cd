"""Runs of the JEPA laboratory: what is logged, independent runs, statistics of planted ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.zoo.jepa import closed, laws, measure, model, training
from workbench.zoo.jepa.closed import JEPA, MAE
from workbench.zoo.jepa.recipe import FREE, Recipe, Setting

SETTINGS = (Setting("exact", 0, jitter=0.0), Setting("opposed", 1), Setting("free", 2, FREE))
TINY = {method: Recipe(method, 2, SETTINGS, product=0.03) for method in closed.METHODS}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return training.train(tmp_path_factory.mktemp("tiny") / "a", tuple(TINY.values()))


def test_stacks_log_every_variable_with_its_labels(trained):
    assert trained.stacks == ("jepa-depth-2", "mae-depth-2")
    for name in trained.stacks:
        data = trained.trajectories[name]
        assert list(data.data_vars) == [variable.name for variable in measure.VARIABLES]
        assert data["gram"].dims == ("run", "step", "feature_row", "feature_column")
        strength = np.sqrt(np.diagonal(data["gram"].to_numpy(), axis1=-2, axis2=-1))
        np.testing.assert_allclose(strength, data["strength"], rtol=1e-5)
        # An exact start has every feature alike and none mixed.
        np.testing.assert_allclose(data["strength"].isel(run=0, step=0), 0.03, rtol=1e-5)
        assert float(data["off"].isel(run=0).max()) < 1e-6
        # The error of MAE falls; that of JEPA rises with its own target.
        fall = float(data["loss"].isel(run=0, step=0) - data["loss"].isel(run=0, step=-1))
        assert fall > 1 if name.startswith(MAE) else fall < -0.1


def test_trained_times_and_ends_are_the_closed_form(trained):
    evidence = laws.Evidence(training.runs(trained))
    for method in closed.METHODS:
        (run,) = evidence.of("exact", method, 2)
        error = laws.time_error(run, method)
        print(f"{method}: times differ by {error:.2%}")
        assert error < 0.05 < 0.5 < laws.time_error(run, laws.other(method))
        wanted = [closed.strength(method, rho, 2) for rho in run["rho"].to_numpy()]
        np.testing.assert_allclose(run["strength"].isel(step=-1), wanted, rtol=0.03)
        assert laws.kept(run) == [0, 1, 2, 3]


def test_a_run_in_a_stack_is_the_run_alone(trained, tmp_path):
    alone = replace(TINY[MAE], settings=SETTINGS[1:2])
    found = training.train(tmp_path / "a", (alone,)).trajectories["mae-depth-2"]
    together = trained.trajectories["mae-depth-2"].isel(run=[1])
    assert found["step"].to_numpy().tolist() == together["step"].to_numpy().tolist()
    np.testing.assert_allclose(found["strength"], together["strength"], rtol=1e-5)
    other = trained.trajectories["mae-depth-2"].isel(run=[2])
    assert np.abs(other["strength"].to_numpy() - together["strength"].to_numpy()).max() > 0.05


def test_aligned_starts_come_back_and_free_ones_do_not():
    for method, setup in TINY.items():
        start = model.start(setup)
        encoder = model.product(start["layers"])
        whole = start["last"] @ encoder
        weight = 0.03**0.5
        # JEPA's last layer is the identity in latents; that of MAE leads back to the data.
        seen = start["last"] if method == JEPA else whole
        size = weight if method == JEPA else weight**3
        identity = size * torch.eye(4, dtype=torch.float64)
        torch.testing.assert_close(seen[0], identity)
        assert (seen[1] - identity).abs().max() < 0.1 * size
        assert (seen[2] - identity).abs().max() > 0.5 * size


def test_bad_recipes_are_refused():
    with pytest.raises(WorkbenchError, match="at least one layer"):
        Recipe(JEPA, 0, SETTINGS)
    with pytest.raises(WorkbenchError, match="known are"):
        Setting("other", 0)


def planted(times, setting="opposed", method=JEPA, depth=2, strength=None):
    """A run whose features are half learned at these times (nan: never), as powers of the step."""
    steps = np.r_[0, np.geomspace(5, 5000, 300)]
    times = np.asarray(times, float)
    ratio = np.nan_to_num(steps[:, None] / (times / 0.1), nan=0.0)
    learned = np.minimum(0.5 * ratio**3, 1.0)
    rho = np.array([1.0, 0.8, 0.65, 0.5])
    if strength is None:
        strength = learned * rho**depth
    return xr.Dataset(
        {
            "learned": (("step", "feature"), learned),
            "strength": (("step", "feature"), np.broadcast_to(strength, learned.shape)),
        },
        coords={
            "step": steps, "rate": 0.1, "method": method, "depth": depth, "product": 0.01,
            "setting": setting, "run": f"{setting}-s0", "rho": ("feature", rho),
            "lam": ("feature", 1.07 ** np.arange(4)),
        },
    )  # fmt: skip


def test_times_orders_and_spreads_of_planted_runs():
    run = planted([20, 30, 41, 77])
    np.testing.assert_allclose(laws.times(run), [20, 30, 41, 77], rtol=1e-6)
    assert laws.order(run, "rho") == 1.0 and laws.order(run, "lam") == -1.0
    assert laws.spread(run) == pytest.approx(77 / 20)
    backwards = planted([77, 41, 30, 20])
    assert laws.order(backwards, "rho") == -1.0 and laws.order(backwards, "lam") == 1.0
    # Features that are never learned come last together and decide nothing between them.
    lost = planted([20, np.nan, np.nan, np.nan])
    assert laws.kept(lost) == [0] and 0 < laws.order(lost, "rho") < 0.8
    assert np.isnan(laws.times(lost)[1:]).all()


def test_the_same_features_at_both_ends():
    rho = np.array([1.0, 0.8, 0.65, 0.5])
    jepa = planted([20, 30, 41, 77], strength=rho**2)
    mae = planted([20, 30, 41, 77], method=MAE, strength=rho ** (2 / 3))
    assert laws.mismatch((jepa, mae)) < 1e-6
    assert laws.mismatch((jepa, planted([20, 30, 41, 77], strength=rho[::-1]))) > 1
    evidence = laws.Evidence([jepa, mae])
    assert laws.pairs(evidence, "opposed")[0][1] is mae
    assert evidence.settings == ["opposed jepa 2", "opposed mae 2"]
