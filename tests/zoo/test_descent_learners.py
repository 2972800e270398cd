"""Simple learners are those of scikit-learn, and their errors the closed forms."""

import numpy as np
import pytest
from sklearn.linear_model import Lasso, LinearRegression
from sklearn.neighbors import KNeighborsRegressor

from workbench.zoo.descent import learners
from workbench.zoo.regression import closed
from workbench.zoo.regression.task import Task

PLAIN = Task(d=6, length=4, noise=0.0)


@pytest.mark.parametrize("length", [4, 9])
def test_learners_are_those_of_scikit_learn(length):
    prompts = PLAIN.prompts(12, 1, length)
    found = {
        "near": learners.neighbours(prompts), "fit": learners.least_squares(prompts),
        "lasso": learners.lasso(prompts),
    }  # fmt: skip
    for i in range(12):
        x, y, x_q = (prompts.x[i].astype(float), prompts.y[i, :, 0].astype(float),
                     prompts.x_q[i : i + 1].astype(float))  # fmt: skip
        near = KNeighborsRegressor(3).fit(x, y).predict(x_q)
        fit = LinearRegression(fit_intercept=False).fit(x, y).predict(x_q)
        assert found["near"][i, 0] == pytest.approx(near[0], rel=1e-4)
        assert found["fit"][i, 0] == pytest.approx(fit[0], rel=1e-4, abs=1e-6)
        for alpha, guess in zip(learners.ALPHAS, found["lasso"][:, i], strict=True):
            one = Lasso(alpha=alpha, fit_intercept=False, max_iter=200_000, tol=1e-9).fit(x, y)
            assert guess == pytest.approx(one.predict(x_q)[0], rel=5e-3, abs=5e-3)
    two = PLAIN.prompts(5, 2, 2)
    np.testing.assert_allclose(learners.neighbours(two), two.y.mean(axis=1), rtol=1e-6)


def test_errors_are_the_closed_forms():
    task = Task(d=20, noise=0.0)
    found = learners.errors(task, (5, 10, 19, 25), 4000, 3)
    for n in (5, 10, 19, 25):
        at = found.sel(examples=n)
        exact = {
            "least squares": learners.least_squares_error(20, n),
            "averaging": 21 / n,
            "one step of GD": 21 / (n + 21),
            "zero": 1.0,
        }
        for name, wanted in exact.items():
            value = float(at.sel(learner=name))
            print(f"n = {n}, {name}: {value:.3f}, exact {wanted:.3f}")
            assert value == pytest.approx(wanted, rel=0.1, abs=0.01)
        assert learners.averaging_error(20, n) == pytest.approx(21 / n)
    # The specification measured .94, .83, .70 with 10, 20, 40 examples.
    near = learners.errors(task, (10, 20, 40), 4000, 4).sel(learner="3-NN")
    np.testing.assert_allclose(near, [0.94, 0.83, 0.70], rtol=0.12)


def test_noise_makes_least_squares_peak_and_ridge_not():
    found = learners.errors(Task(d=20, noise=0.25), (10, 20, 40), 2000, 5)
    fit, ridge = found.sel(learner="least squares"), found.sel(learner="ridge")
    assert float(fit.sel(examples=20)) > 5 * float(fit.sel(examples=10))
    assert (np.diff(ridge) < 0).all() and (ridge < fit).all()
    # 1/4 (1 + d / (n - d - 1)) for n > d + 1.
    assert float(fit.sel(examples=40)) == pytest.approx(0.25 * (1 + 20 / 19), rel=0.1)
    assert "ridge" not in learners.errors(PLAIN, (3,), 5, 1)["learner"]


def test_the_lasso_wins_on_sparse_functions_only():
    sparse = Task(d=20, noise=0.0, supports=((0, 1, 2),))
    for task, wins in ((sparse, True), (Task(d=20, noise=0.0), False)):
        found = learners.lasso_errors(task, (10,), 60, 1)
        lasso, fit = found.to_numpy()[:, 0]
        assert (lasso < 0.6 * fit) == wins, (lasso, fit)


def test_best_single_step_beats_averaging_and_other_steps():
    prompts = PLAIN.prompts(4000, 1, 8)
    best = closed.risk(learners.one_step(prompts, 0.0), prompts)
    assert best < 0.6 * closed.risk(learners.averaging(prompts), prompts)
    for factor in (0.6, 1.6):
        assert closed.risk(factor * learners.one_step(prompts, 0.0), prompts) > best
