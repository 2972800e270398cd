"""Prompts have the moments they should; closed forms are what simulation and scikit-learn say."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from workbench.errors import WorkbenchError
from workbench.zoo.regression import closed
from workbench.zoo.regression.task import Task

MANY = 40_000
TWO = Task(d=6, length=48, supports=((0, 1, 2, 3), (2, 3, 4, 5)))


def simulated(predicted, prompts):
    """Risk and its standard error."""
    errors = ((predicted - prompts.y_q) ** 2).mean(axis=1).astype(float)
    return errors.mean(), errors.std() / np.sqrt(len(errors))


def agrees(name, exact, predicted, prompts):
    risk, error = simulated(predicted, prompts)
    print(f"{name}: exact {exact:.5f}, simulated {risk:.5f} +- {error:.5f}")
    return abs(risk - exact) < 4 * error


# Prompts


def test_prompts_are_labelled_by_one_function_each_and_noise():
    task = Task(d=3, length=50, noise=0.25)
    prompts = task.prompts(4000, 0)
    assert prompts.x.shape == (4000, 50, 3) and prompts.y.shape == (4000, 50, 1)
    assert prompts.x_q.shape == (4000, 3) and prompts.y_q.shape == (4000, 1)
    assert np.var(prompts.y) == pytest.approx(1.25, rel=0.05)
    assert np.var(prompts.y_q) == pytest.approx(1.25, rel=0.1)
    x, y = prompts.x.astype(float), prompts.y[..., 0].astype(float)
    fits = [np.linalg.lstsq(x[i], y[i], rcond=None) for i in range(300)]
    # Residuals of ordinary least squares have 50 - 3 degrees of freedom.
    noise = np.mean([fit[1][0] / 47 for fit in fits])
    beta = np.array([fit[0] for fit in fits])
    assert noise == pytest.approx(0.25, rel=0.05)
    assert (beta**2).sum(axis=1).mean() == pytest.approx(1 + 3 * 0.25 / 46, rel=0.15)


def test_coordinates_are_correlated_as_asked_and_tasks_see_their_own():
    x = Task(correlation=0.5).prompts(5000, 1).x.reshape(-1, 5)
    wanted = 0.5 ** np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    assert np.abs(np.cov(x.T) - wanted).max() < 0.02
    prompts = TWO.prompts(4000, 2)
    slopes = np.einsum("pki,pkt->pti", prompts.x, prompts.y) / 48
    # The mean square of a slope is the function's plus what 48 points leave by chance.
    size = (slopes.astype(float) ** 2).mean(axis=0)
    assert (size[TWO.masks > 0] > 0.2).all() and (size[TWO.masks == 0] < 0.05).all()


def test_the_seed_and_the_length_decide_the_prompts():
    task = Task()
    one, again, other = task.prompts(7, [3, 1]), task.prompts(7, [3, 1]), task.prompts(7, [3, 2])
    np.testing.assert_array_equal(one.z, again.z)
    assert np.abs(one.x - other.x).max() > 0.1
    assert task.prompts(2, 0, 11).x.shape == (2, 11, 5)
    assert one.part(slice(2, 5)).y_q.tolist() == one.y_q[2:5].tolist()
    np.testing.assert_array_equal(one.raised(1.0).y, one.y + 1)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"d": 0}, "at least 1 coordinate"),
        ({"length": 1}, "and 2 points"),
        ({"noise": -0.1}, "not negative"),
        ({"correlation": 1.0}, "not between -1 and 1"),
        ({"supports": ((0, 5),)}, "coordinates below 5"),
        ({"supports": ((),)}, "coordinates below 5"),
    ],
)
def test_impossible_tasks_are_refused(fields, says):
    with pytest.raises(WorkbenchError, match=says):
        Task(**fields)


# Closed forms


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize(
    "task", [Task(), Task(d=3, length=7, noise=1.0), Task(length=20, noise=0.3, correlation=0.6)]
)
def test_risks_of_gradient_descent_are_what_simulation_gives(task, debiased):
    prompts = task.prompts(MANY, 11)
    seen = closed.centred(prompts) if debiased else prompts
    best = closed.best_matrix(task.covariance, task.length, task.noise, debiased=debiased)
    uneven = np.diag(np.linspace(0.2, 1.1, task.d)) + 0.1
    for steps in (best, 0.4 * np.eye(task.d), uneven):
        exact = closed.gd_risk(steps, task.covariance, task.length, task.noise, debiased=debiased)
        assert agrees("GD", exact, closed.gd(seen, steps[None]), prompts)
        wrong = closed.gd_risk(
            steps, task.covariance, task.length, task.noise, debiased=not debiased
        )
        assert wrong != exact


def test_the_published_constants_come_out():
    """d = 5, 40 points, noise .1: from the formulas of the literature, by hand."""
    one = np.eye(5)
    gd, dgd = (closed.best_step(one, 40, 0.1, debiased=d) for d in (False, True))
    assert gd == pytest.approx(1 / (1 + 6.5 / 40)) and dgd == pytest.approx(40 / 45.5)
    assert closed.gd_risk(gd * one, one, 40, 0.1) == pytest.approx(1.1 - gd)
    assert closed.gd_risk(dgd * one, one, 40, 0.1, debiased=True) == pytest.approx(1.1 - 39 / 45.5)
    assert closed.limit_gd_risk(0.125, 0.1) == pytest.approx(0.22088, abs=1e-5)
    assert closed.limit_bayes_risk(0.125, 0.1) == pytest.approx(0.11406, abs=1e-5)
    omega, mu, risk = closed.one_head(5, 40, 0.1)
    assert (omega, mu, risk) == pytest.approx((0.44721, 1.62769, 0.37207), abs=1e-5)
    # At noise 3 and d / L = 1/5, as the authors print: 3.44 and 3.40 by simulation.
    assert closed.limit_gd_risk(0.2, 3.0) == pytest.approx(3.4419, abs=0.005)
    assert closed.limit_bayes_risk(0.2, 3.0) == pytest.approx(3.4038, abs=0.005)


@pytest.mark.parametrize("debiased", [False, True])
def test_nothing_beats_the_best_matrix_nor_any_step_the_best(debiased):
    task = Task(correlation=0.5)
    about = (task.covariance, task.length, task.noise)
    best = closed.best_matrix(*about, debiased=debiased)
    least = closed.gd_risk(best, *about, debiased=debiased)
    step = closed.best_step(*about, debiased=debiased)
    plain = closed.gd_risk(step * np.eye(5), *about, debiased=debiased)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = rng.normal(size=(5, 5))
        moved = best + 0.05 * (other + other.T)
        assert closed.gd_risk(moved, *about, debiased=debiased) > least
        near = step + rng.choice([-1, 1]) * rng.uniform(0.01, 0.1)
        assert closed.gd_risk(near * np.eye(5), *about, debiased=debiased) > plain
    assert least < 0.7 * plain
    if not debiased:
        assert (least, plain) == pytest.approx((0.23393, 0.37433), abs=1e-5)


@pytest.mark.parametrize(("noise", "ratio"), [(0.1, 0.125), (1.0, 0.5), (0.1, 2.0)])
def test_bayes_risk_tends_to_its_limit(noise, ratio):
    d = 200
    x = np.random.default_rng(5).normal(size=(20, round(d / ratio), d))
    found = closed.bayes_risk(x, noise).mean()
    limit = closed.limit_bayes_risk(ratio, noise)
    print(f"noise {noise}, ratio {ratio}: d = 200 {found:.4f}, limit {limit:.4f}")
    assert found == pytest.approx(limit, rel=0.01)
    assert limit < closed.limit_gd_risk(ratio, noise)


def test_bayes_is_scikit_learns_ridge_and_reaches_its_risk():
    task = Task()
    prompts = task.prompts(MANY, 4)
    found = closed.bayes(prompts, task)
    assert agrees("ridge", closed.bayes_risk(prompts.x.astype(float), 0.1).mean(), found, prompts)
    for i in range(20):
        fitted = Ridge(alpha=task.d * task.noise, fit_intercept=False)
        fitted.fit(prompts.x[i].astype(float), prompts.y[i].astype(float))
        expected = np.ravel(fitted.predict(prompts.x_q[i : i + 1].astype(float)))
        np.testing.assert_allclose(found[i], expected, rtol=1e-5)
    for penalised in (Task(noise=0.05), Task(noise=0.4)):
        assert closed.risk(closed.bayes(prompts, penalised), prompts) > closed.risk(found, prompts)


def test_each_task_is_regressed_on_its_own_coordinates():
    prompts = TWO.prompts(500, 4)
    found = closed.bayes(prompts, TWO)
    for t, support in enumerate(TWO.supports):
        fitted = Ridge(alpha=4 * TWO.noise, fit_intercept=False)
        fitted.fit(prompts.x[0][:, support].astype(float), prompts.y[0][:, t].astype(float))
        expected = fitted.predict(prompts.x_q[:1][:, support].astype(float))
        np.testing.assert_allclose(found[0, t], np.ravel(expected)[0], rtol=1e-5)
    best = closed.matrices(TWO, debiased=True)
    for matrix, mask in zip(best, TWO.masks, strict=True):
        np.testing.assert_allclose(matrix, 48 / (48 + 4 * 1.1) * np.diag(mask))


# Kernel regressors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "published"), [(10, 0.604), (20, 0.367), (40, 0.243), (80, 0.176), (100, 0.164)]
)
def test_a_pair_of_kernels_scores_as_the_authors_print(length, published):
    """He et al. 2025, their code: omega .13, mu 3.45, 50 000 prompts per length."""
    prompts = Task().prompts(20_000, [6, length], length)
    pair = closed.kernels(prompts, np.array([0.13, -0.13]), np.array([3.45, -3.45]))
    risk, error = simulated(pair, prompts)
    print(f"L = {length}: {risk:.4f} +- {error:.4f}, published {published}")
    # Their own error, and the third digit at which they stop.
    assert abs(risk - published) < 4 * error * np.sqrt(1 + 20 / 50) + 5e-4


def test_a_pair_of_weak_kernels_is_debiased_gradient_descent():
    prompts = Task().prompts(2000, 7)
    wanted = closed.gd(closed.centred(prompts), 0.88 * np.eye(5)[None])
    biased = closed.gd(prompts, 0.88 * np.eye(5)[None])

    def distance(omega, other):
        signs = np.array([1.0, -1.0])
        found = closed.kernels(prompts, omega * signs, 0.44 / omega * signs)
        return ((found - other) ** 2).mean() / (other**2).mean()

    far, near = distance(0.1, wanted), distance(0.01, wanted)
    print(f"distance {far:.1e} at omega .1, {near:.1e} at .01")
    # What is left is of second order in omega, squared here.
    assert near < far * 2e-4 and near < 1e-6 < 1e-3 < distance(0.01, biased)


def test_baselines_are_each_at_their_best_and_in_order():
    task = Task()
    for length in (10, 160):
        found = closed.baselines(task.prompts(20_000, length, length), task)
        assert found["ridge"] < found["GD"] < found["zero"]
        assert found["plain GD"] == pytest.approx(found["GD"]) and found["GD"] < found["linear"]
        assert found["linear, unscaled"] > found["linear"]
        assert found["debiased GD, raised"] < found["GD, raised"]
        assert found["GD"] < found["debiased GD"]
    at_home = closed.baselines(task.prompts(2000, 1), task)
    assert at_home["linear"] == at_home["GD"] == at_home["linear, unscaled"]
    coloured = closed.baselines(Task(correlation=0.5).prompts(5000, 1), Task(correlation=0.5))
    assert coloured["GD"] < 0.75 * coloured["plain GD"]


@pytest.mark.parametrize(
    ("length", "gd", "dgd", "one", "ridge"),
    [(10, 0.643, 0.614, 0.875, 0.194), (40, 0.241, 0.243, 0.405, 0.115),
     (80, 0.174, 0.176, 0.302, 0.106)],
)  # fmt: skip
def test_references_are_what_the_authors_print_where_they_mean_the_same(
    length, gd, dgd, one, ridge
):
    """He et al. 2025, their code, 50 000 prompts; their GD keeps the step of the two-head pair."""
    found = closed.references(Task().prompts(20_000, [8, length], length), Task())
    print({name: round(value, 4) for name, value in found.items()})
    assert found["ridge"] == pytest.approx(ridge, rel=0.04)
    # Ours have the best step at every length, theirs one for all: never worse, the same at 40.
    assert found["GD"] < gd * 1.03 and found["debiased GD"] < dgd * 1.03
    if length == 40:
        assert found["GD"] == pytest.approx(gd, rel=0.03)
        assert found["debiased GD"] == pytest.approx(dgd, rel=0.03)
    # So has our one head; theirs has the omega and mu of long prompts.
    assert found["ridge"] < found["debiased GD"] < found["one head"] < one * 1.03


def test_only_one_plain_task_has_a_one_head_reference():
    assert "one head" in closed.references(Task().prompts(50, 0), Task())
    for task in (TWO, Task(correlation=0.5)):
        assert "one head" not in closed.references(task.prompts(50, 0), task)
    cut = Task().prompts(3, 0).first(7)
    assert cut.y.shape == (3, 7, 1) and cut.x_q.tolist() == Task().prompts(3, 0).x_q.tolist()
