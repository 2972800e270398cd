"""The construction is gradient descent and its best step the best: numpy and simulation agree."""

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.zoo.descent import construction, laws, measure, model
from workbench.zoo.descent.task import Uniform, loss
from workbench.zoo.regression import closed
from workbench.zoo.regression.task import Prompts, Task

TASK = Uniform(d=4, length=6)
PROMPTS = TASK.prompts(20, 1)


def by_hand(prompts, step, steps, start):
    """Gradient descent on 1/2 sum (w'x - y)^2, one prompt after another."""
    found = []
    for x, y, x_q in zip(prompts.x, prompts.y[..., 0], prompts.x_q, strict=True):
        w = start.copy()
        for _ in range(steps):
            w = w - step * sum((w @ a - b) * a for a, b in zip(x.astype(float), y, strict=True))
        found.append(w @ x_q)
    return np.array(found)[:, None]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_layers_are_steps_in_double_precision(steps):
    layer = construction.gd_layer(4, 0.9)
    wanted = by_hand(PROMPTS, 0.9, steps, np.zeros(4))
    error = laws.distance(construction.predict([layer] * steps, PROMPTS), wanted)
    print(f"{steps} layers: {error:.1e}")
    assert error < 1e-13
    np.testing.assert_allclose(construction.descend(PROMPTS, 0.9, steps), wanted, rtol=1e-10)
    other = construction.predict([construction.gd_layer(4, 0.8)] * steps, PROMPTS)
    assert laws.distance(other, wanted) > 0.01
    assert laws.distance(construction.predict([layer] * (steps + 1), PROMPTS), wanted) > 0.01


def test_a_layer_moves_every_label_by_the_change_of_the_map():
    start = np.array([0.5, -1.0, 0.2, 2.0])
    tokens = construction.tokens_of(PROMPTS)
    after = construction.forward(construction.gd_layer(4, 0.7, start), tokens)
    moved = by_hand(PROMPTS, 0.7, 1, start)
    wanted = moved[:, 0] - PROMPTS.x_q.astype(float) @ start
    np.testing.assert_allclose(-after[:, -1, -1], wanted, rtol=1e-9)
    np.testing.assert_array_equal(after[..., :4], tokens[..., :4])
    assert np.abs(construction.descend(PROMPTS, 0.7, 1, start) - moved).max() < 1e-12


@pytest.mark.parametrize("task", [Uniform(), Uniform(half=1.0), Uniform(d=3, length=7, half=2.0)])
def test_the_best_step_and_losses_are_what_simulation_gives(task):
    prompts = task.prompts(40_000, 3)
    for step in (construction.best_step(task), 0.4 * construction.best_step(task)):
        errors = 0.5 * (construction.descend(prompts, step, 1) - prompts.y_q) ** 2
        sure = errors.std() / np.sqrt(len(errors))
        exact = construction.step_loss(task, step)
        print(f"{task}: {errors.mean():.4f} +- {sure:.4f}, exact {exact:.4f}")
        assert abs(errors.mean() - exact) < 4 * sure
    assert construction.sampled_step(prompts) == pytest.approx(
        construction.best_step(task), rel=0.02
    )
    assert loss(np.zeros_like(prompts.y_q), prompts) == pytest.approx(
        construction.zero_loss(task), rel=0.03
    )


def test_the_measured_constants_come_out():
    """d = N = 10: the numbers of the specification."""
    one, two = Uniform(), Uniform(half=1.0)
    assert construction.best_step(one) == pytest.approx(0.6061, abs=1e-4)
    assert construction.best_loss(one) == pytest.approx(0.2062, abs=1e-4)
    assert construction.best_step(two) == pytest.approx(0.1515, abs=1e-4)
    assert construction.best_loss(two) == pytest.approx(0.8249, abs=1e-4)


def test_gaussian_coordinates_give_the_step_of_the_regression_laboratory():
    prompts = Task(d=5, length=9, noise=0.0).prompts(60_000, 3)
    expected = closed.best_step(np.eye(5), 9, 0.0) / 9
    assert construction.sampled_step(prompts) == pytest.approx(expected, rel=0.02)


def test_more_layers_have_their_own_best_step():
    table = laws.depth_table(Uniform().prompts(2000, 1))
    assert (np.diff(table["loss"]) < 0).all()
    assert table["step"].iloc[-1] < 0.9 * table["step"].iloc[0]
    first = table.iloc[0]
    assert first["loss"] == pytest.approx(first["same_step"]) == pytest.approx(first["at_once"])
    assert (table["same_step"] >= table["loss"] - 1e-9).all()
    assert table["at_once"].iloc[-1] > 1
    with pytest.raises(WorkbenchError, match="0 steps have no best step"):
        construction.tuned(PROMPTS, 0)


def test_the_trained_layer_can_be_the_construction():
    step = construction.best_step(TASK)
    planted = model.planted(4, 6, step)

    def predict(prompts):
        return model.predict_linear(planted, prompts).numpy()

    np.testing.assert_allclose(
        predict(PROMPTS)[0], construction.descend(PROMPTS, step, 1), rtol=1e-4, atol=1e-5
    )
    found = {name: value[0] for name, value in measure.alignment(predict, PROMPTS, step).items()}
    assert found["to_gd"] < 1e-8 and found["to_sensitivity"] < 1e-6
    assert (found["size"], found["cosine"]) == pytest.approx((1.0, 1.0), abs=1e-4)
    half = {n: v[0] for n, v in measure.alignment(predict, PROMPTS, 2.0 * step).items()}
    assert (half["size"], half["to_gd"]) == pytest.approx((0.5, 0.25), abs=1e-4)
    assert half["cosine"] == pytest.approx(1.0, abs=1e-4)
    kq, ov = (part.numpy() for part in model.circuits(planted))
    circuits = measure.of_circuits(kq, ov, TASK)
    assert circuits["off_kq"].item() == pytest.approx(0, abs=1e-6) == circuits["ov_x"].item()
    assert circuits["kq"].shape == (1, 1, 5, 4) and circuits["ov"].shape == (1, 1, 5)


def test_sensitivities_of_a_turned_map_are_at_their_angle():
    step = construction.best_step(TASK)
    turned = Prompts(PROMPTS.x, PROMPTS.y, np.roll(PROMPTS.x_q, 1, axis=1), PROMPTS.y_q)

    def predict(prompts):
        rolled = Prompts(prompts.x, prompts.y, np.roll(prompts.x_q, 1, axis=1), prompts.y_q)
        return construction.descend(rolled, step, 1)[None]

    felt = measure.sensitivity(lambda p: construction.descend(p, step, 1), PROMPTS)
    wanted = step * np.einsum("pk,pki->pi", PROMPTS.y[..., 0], PROMPTS.x)
    np.testing.assert_allclose(felt, wanted, rtol=1e-3, atol=1e-5)
    found = measure.alignment(predict, PROMPTS, step)
    cosine = (np.roll(wanted, -1, axis=1) * wanted).sum(1) / (wanted**2).sum(1)
    assert found["cosine"][0] == pytest.approx(cosine.mean(), abs=1e-3)
    assert np.abs(predict(PROMPTS)[0] - construction.descend(turned, step, 1)).max() == 0


@pytest.mark.parametrize("fields", [{"d": 0}, {"length": 1}, {"half": 0.0}])
def test_impossible_tasks_are_refused(fields):
    with pytest.raises(WorkbenchError, match="a range above 0"):
        Uniform(**fields)
