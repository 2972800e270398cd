"""Closed forms of the staircase: against integration, minimisation, Monte Carlo, known numbers."""

import numpy as np
import pytest
from scipy import integrate, optimize

from workbench.errors import WorkbenchError
from workbench.zoo import growth
from workbench.zoo.staircase import closed, recipe
from workbench.zoo.staircase.recipe import STAIRS, WHITE
from workbench.zoo.staircase.task import Task

ODD = Task((0.5, 0.3, 0.7), 6)


@pytest.mark.parametrize(
    ("power", "order", "end"), [(1, 1, 0.7), (2, 3, 1.3), (4, 1, 0.6), (8, 1, 0.55), (3, 4, 0.9)]
)
def test_growth_times_are_the_integral(power, order, end):
    for start, stop in ((0.1, 0.3), (0.2, 0.98 * end)):
        wanted, _ = integrate.quad(
            lambda w: 1 / (2.0 * w**power * (1 - (w / end) ** order)), start, stop, epsrel=1e-11
        )
        found = growth.time(start, stop, 2.0, power, order, end)
        print(f"w^{power}, order {order}: {found:.6f}, integral {wanted:.6f}")
        assert found == pytest.approx(wanted, rel=1e-8)


def test_a_weight_that_cannot_get_there_is_refused():
    for start, stop in ((0.5, 0.4), (0.0, 0.4), (0.4, 1.0)):
        with pytest.raises(WorkbenchError, match="positive numbers that ascend"):
            growth.time(start, stop, 1.0, 2, 1, 1.0)


def test_heights_and_entries_are_known_numbers():
    np.testing.assert_allclose(
        closed.heights(STAIRS), [1, 0.6406, 0.3774, 0.2098, 0.1360], atol=5e-5
    )
    np.testing.assert_allclose(closed.entries(STAIRS)[:3], [2.246, 2.925, 4.189], atol=5e-4)
    np.testing.assert_allclose(closed.endless_heights(STAIRS), [1, 0.6, 0.3, 0.1, 0], atol=1e-12)


@pytest.mark.parametrize("task", [STAIRS, ODD])
def test_entries_minimise_and_heights_are_the_losses(task):
    moments = task.moments()
    found = optimize.minimize(
        lambda m: moments.loss(m.reshape(task.d, task.d)), np.zeros(task.d**2), tol=1e-14
    )
    np.testing.assert_allclose(
        found.x.reshape(task.d, task.d), np.diag(closed.entries(task)), atol=2e-4
    )
    for count in range(task.d + 1):
        loss = moments.loss(closed.components(task, count))
        assert loss == pytest.approx(closed.heights(task)[count], rel=1e-12)
    # The largest directions come first, wherever they stand.
    assert np.flatnonzero(np.diag(closed.components(ODD, 1))).tolist() == [2]


def test_moments_of_the_population_are_those_of_many_sequences():
    m = np.random.default_rng(0).normal(0, 1.0, (3, 3))
    many = np.array([ODD.sample(20_000, seed).loss(m) for seed in range(8)])
    error = many.mean() - ODD.moments().loss(m)
    spread = many.std(ddof=1) / np.sqrt(len(many))
    print(f"{error:+.5f}, standard error {spread:.5f}")
    assert abs(error) < 4 * spread < 0.1 * many.mean()


def test_moments_of_sequences_are_the_loss_of_attention_on_them():
    """The data form: attention over every token, without softmax, its value reading the label."""
    x, y = ODD.draw(50, 3)
    m = np.random.default_rng(1).normal(0, 1.0, (3, 3))
    errors = []
    for points, labels in zip(x, y, strict=True):
        tokens = np.concatenate([points, labels[:, None]], axis=1)
        tokens[-1, -1] = 0.0
        key_query = np.zeros((4, 4))
        key_query[:3, :3] = m
        scores = tokens @ key_query @ tokens[-1]
        errors.append(labels[-1] - (tokens[:, -1] * scores).sum() / ODD.length)
    assert ODD.sample(50, 3).loss(m) == pytest.approx(np.mean(np.square(errors)), rel=1e-12)


@pytest.mark.parametrize("direction", [0, 2])
def test_aligned_heads_grow_by_the_scalar_equation(direction):
    """Gradient flow of value, key and query of one head, integrated, from equal sizes."""
    lam, e = STAIRS.variances[direction], STAIRS.second()[direction]
    end = closed.entries(STAIRS)[direction]

    def flow(_, w):
        v, k, q = w
        pull = 2 * lam * (lam - e * v * k * q)
        return pull * np.array([k * q, v * q, v * k])

    def half(_, w):
        return np.prod(w) - end / 2

    half.terminal = True
    solved = integrate.solve_ivp(
        flow, (0, 1e5), [0.05] * 3, events=half, rtol=1e-9, atol=1e-12, method="LSODA"
    )
    found = closed.rank_one_time(STAIRS, direction, 0.05)
    assert found == pytest.approx(solved.t_events[0][0], rel=1e-5)


def test_merged_heads_grow_by_the_logistic_equation():
    lam, e, d = 0.25, WHITE.second()[0], 4

    def flow(_, w):
        v, u = w[0], w[1:]
        pull = 2 * lam * (lam - e * v * u)
        return np.r_[(pull * u).sum(), pull * v]

    def half(_, w):
        return w[0] * w[1] - closed.entries(WHITE)[0] / 2

    half.terminal = True
    begun = np.r_[0.02, np.full(d, 0.02 / np.sqrt(d))]
    solved = integrate.solve_ivp(flow, (0, 1e5), begun, events=half, rtol=1e-9, atol=1e-12)
    assert closed.merged_time(WHITE, 0.02) == pytest.approx(solved.t_events[0][0], rel=1e-5)


def test_bad_tasks_and_settings_are_refused():
    with pytest.raises(WorkbenchError, match="positive variances"):
        Task((0.5, -0.1))
    with pytest.raises(WorkbenchError, match="positive start"):
        recipe.Setting("separate", 0, 0.0)
    with pytest.raises(WorkbenchError, match="1 head or more"):
        recipe.Recipe("none", STAIRS, (), 0, 1, 10, 0.1, (0, 10))
