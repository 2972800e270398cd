"""Recipes to stacks: what a stack logs, that its runs are independent, that it goes on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.zoo import lab
from workbench.zoo.regression import closed, measure, model, recipe, training
from workbench.zoo.regression.recipe import Recipe, Setting, logged_to
from workbench.zoo.regression.task import Prompts

TINY = Recipe(
    "tiny",
    (Setting("h2", 0), Setting("h2", 1), Setting("opposite", 0, (1, -1))),
    recipe.PLAIN, heads=2, steps=60, logged=logged_to(60), batch=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return training.train(tmp_path_factory.mktemp("tiny") / "a", (TINY,))


def test_a_stack_logs_every_variable_with_its_labels(trained):
    data = trained.trajectories["tiny"]
    assert list(data.data_vars) == [variable.name for variable in measure.VARIABLES]
    assert dict(data.sizes) == {
        "run": 3, "step": 7, "head": 2, "task": 1, "coordinate": 6, "query_coordinate": 5,
        "key_coordinate": 5, "length": 6, "predictor": 7,
    }  # fmt: skip
    assert data["step"].to_numpy().tolist() == list(logged_to(60))
    assert data["run"].to_numpy().tolist() == ["h2-s0", "h2-s1", "opposite-s0"]
    assert data["coordinate"].to_numpy().tolist() == ["x0", "x1", "x2", "x3", "x4", "y0"]
    # Untrained, the risk is about that of the zero predictor.
    assert np.abs(data["risk"].isel(step=0) - 1.1).max() < 0.1
    assert (data["risk"].isel(step=-1) < data["risk"].isel(step=0) - 0.05).all()
    # Stored circuits give the stored scalars, to the precision of float16.
    omega = np.diagonal(data["kq"].to_numpy()[..., :5, :].astype(float), 0, 3, 4).mean(-1)
    np.testing.assert_allclose(omega, data["omega"], atol=1e-3)
    label = data["ov"].isel(coordinate=-1).transpose(*data["mu"].dims)
    np.testing.assert_allclose(label, data["mu"], rtol=2e-3, atol=1e-3)


def test_the_sweep_is_the_risk_of_the_same_prompts_cut_to_every_length(trained):
    data = trained.trajectories["tiny"]
    assert data["length"].to_numpy().tolist() == [5, 10, 20, 40, 80, 160]
    longest = recipe.PLAIN.prompts(training.SWEEP, training.SWEEP_SEED, 160)
    final = {name: torch.from_numpy(np.array(trained.weights("tiny")[name])) for name in "qkvo"}
    for length in (5, 160):
        cut = Prompts(longest.x[:, :length], longest.y[:, :length], longest.x_q, longest.y_q)
        expected = model.losses(final, cut).numpy()
        found = data["risk_by_length"].sel(length=length).isel(step=-1)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    known = data["risk_by_length_baseline"]
    assert known.sel(predictor="zero").to_numpy() == pytest.approx(np.mean(longest.y_q**2))
    ratio = data["risk_by_length"].sel(length=40) / known.sel(predictor="ridge", length=40)
    np.testing.assert_allclose(data["risk_over"].sel(predictor="ridge"), ratio, rtol=1e-5)
    # Two tasks have no one-head reference, and lengths around their own.
    two = training.Bench(replace(TINY, task=recipe.TWO_TASKS, settings=TINY.settings[:1])).labels
    assert "one head" not in two["predictor"] and two["length"] == [6, 12, 24, 48, 96, 192]


def test_a_run_in_a_stack_is_the_run_alone(trained, tmp_path):
    alone = replace(TINY, settings=TINY.settings[1:2])
    found = training.train(tmp_path / "a", (alone,)).trajectories["tiny"]
    together = trained.trajectories["tiny"].isel(run=[1])
    for name in ("risk", "omega", "mu", "eta"):
        np.testing.assert_allclose(found[name], together[name], rtol=1e-3, atol=1e-5)
    others = trained.trajectories["tiny"].isel(run=[0])
    assert np.abs(others["omega"].to_numpy() - together["omega"].to_numpy()).max() > 0.05


def test_a_stopped_training_goes_on_at_its_rate(trained, tmp_path):
    def stop(done, total, message):
        if done >= 55:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(tmp_path / "a", (TINY,), stop)
    found = training.train(tmp_path / "a", (TINY,))
    for name in ("q", "o"):
        np.testing.assert_array_equal(found.weights("tiny")[name], trained.weights("tiny")[name])


def test_final_networks_are_examined_on_prompts_the_predictors_share(trained):
    runs = training.runs(trained, (TINY,))
    assert {name: len(group) for name, group in runs.items()} == {"h2": 2, "opposite": 1}
    one = runs["opposite"][0]
    assert one["length"].to_numpy().tolist() == list(training.LENGTHS)
    assert int(one["trained_length"]) == 40
    # Fresh prompts, another sample than the logged risk's: close, not equal.
    at_home = float(one["final"].sel(length=40))
    assert at_home == pytest.approx(float(one["risk"].isel(step=-1)), rel=0.05)
    assert at_home != float(one["risk"].isel(step=-1))
    prompts = recipe.PLAIN.prompts(training.TEST_KEYS // 40, [training.TEST_SEED, 40], 40)
    ridge = closed.risk(closed.bayes(prompts, recipe.PLAIN), prompts)
    assert float(one["baseline"].sel(length=40, predictor="ridge")) == ridge
    other = replace(TINY, task=recipe.COLOURED)
    assert training.lengths_of(other) == (40,) == training.lengths_of(replace(TINY, heads=8))
    assert training.lengths_of(replace(TINY, task=recipe.TWO_TASKS)) == (48,)


def test_predictions_in_parts_are_predictions_at_once(trained, monkeypatch):
    prompts = recipe.PLAIN.prompts(100, 0)
    parameters = training.Bench(TINY).start()
    whole = training.predict(parameters, prompts)
    monkeypatch.setattr(training, "_CHUNK", 40 * 6 * 7)
    np.testing.assert_allclose(training.predict(parameters, prompts), whole, rtol=1e-5, atol=1e-6)


def test_trajectories_of_the_recipe_stay_small():
    """Bytes of everything logged, from the declared dims, at the sizes of each stack."""
    for stack in recipe.small():
        sizes = {
            "run": len(stack.settings), "step": len(stack.logged), "head": stack.heads,
            "task": stack.task.n_tasks, "query_coordinate": stack.task.d,
            "key_coordinate": stack.task.d, "coordinate": stack.task.d + stack.task.n_tasks,
            "length": 6, "predictor": 7,
        }  # fmt: skip
        width = {name: 2 if name in ("kq", "ov", "e") else 4 for name in ("kq", "ov", "e")}
        total = sum(
            width.get(v.name, 4) * int(np.prod([sizes[dim] for dim in v.dims]))
            for v in measure.VARIABLES
        )
        print(f"{stack.name}: {total / 1e3:.0f} kB")
        assert total < 400e3


def test_recipes_hold_what_the_laws_need_and_say_everything():
    stacks = recipe.small()
    counts = {s.name: sum(x.name == s.name for r in stacks for x in r.settings)
              for r in stacks for s in r.settings}  # fmt: skip
    assert counts["h2"] >= 24 and min(counts.values()) >= 2
    assert all(stack.rate == 5e-3 and stack.batch == 256 for stack in stacks)
    assert stacks[0].to_json()["task"]["noise"] == 0.1
    assert lab.cosine(4000, 4000, training.FLOOR) == pytest.approx(0.02)
    with pytest.raises(WorkbenchError, match="give 1 or more"):
        replace(TINY, heads=0)
