"""What is logged: planted circuits and predictions give the numbers that were planted."""

import numpy as np
import pytest

from workbench.zoo.regression import closed, measure
from workbench.zoo.regression.task import Task

PLAIN = Task()
TWO = Task(d=6, length=48, supports=((0, 1, 2, 3), (2, 3, 4, 5)))


def pattern(omega, mu):
    """Circuits of one run whose heads have the pattern, [1, head, ...]."""
    heads = len(omega)
    kq, ov = np.zeros((1, heads, 6, 6)), np.zeros((1, heads, 1, 6))
    for h in range(heads):
        kq[0, h, :5, :5] = omega[h] * np.eye(5)
        ov[0, h, 0, 5] = mu[h]
    return kq, ov


def scalars(kq, ov, task=PLAIN):
    found = measure.of_circuits(kq, ov, task)
    return {str(n): found[n].item() for n in found.data_vars if found[n].dims == ("run",)}


def test_the_pattern_is_recognised():
    found = scalars(*pattern([0.2, -0.2], [2.0, -2.0]))
    zero = ("off_kq", "off_e", "zero_sum", "ov_x", "moment_2", "spread")
    assert [found[name] for name in zero] == pytest.approx([0] * 6, abs=1e-7)
    assert found["eta"] == pytest.approx(0.8) and found["cos_e"] == pytest.approx(1)


def test_each_scalar_says_what_departs_from_it():
    uneven = scalars(*pattern([0.3, -0.1], [1.0, -3.0]))
    assert uneven["eta"] == pytest.approx(0.3 + 0.3)
    assert uneven["zero_sum"] == pytest.approx(2 / 4)
    # sum mu omega^2 = .09 - .03, sum |mu| omega^2 = .12
    assert uneven["moment_2"] == pytest.approx(0.06 / 0.12)
    # |omega| is .3 with weight 1/4 and .1 with 3/4: mean .15, variance .0075.
    assert uneven["spread"] == pytest.approx(np.sqrt(0.0075) / 0.15)
    assert uneven["off_e"] == pytest.approx(0, abs=1e-9)
    kq, ov = pattern([0.2, -0.2], [2.0, -2.0])
    kq[0, 0, 0, 1] = 0.3
    # Energy 5 * .04 on the diagonal and .09 off it, in one of two heads of equal weight.
    assert scalars(kq, ov)["off_kq"] == pytest.approx(0.09 / 0.29 / 2)
    kq, ov = pattern([0.2, -0.2], [2.0, -2.0])
    ov[0, 1, 0, 2] = 1.0
    assert scalars(kq, ov)["ov_x"] == pytest.approx(1 / 5 / 2)
    assert scalars(*pattern([0.5], [1.5]))["zero_sum"] == 1


def test_scores_of_the_label_count_as_energy_and_its_column_does_not():
    kq, ov = pattern([0.2, -0.2], [2.0, -2.0])
    kq[..., 5] = 7.0
    assert scalars(kq, ov)["off_kq"] == pytest.approx(0, abs=1e-9), "it meets the zero of z_q"
    kq[0, :, 5, 0] = 0.2
    assert scalars(kq, ov)["off_kq"] == pytest.approx(1 / 6)


def test_heads_may_be_permuted_and_runs_are_their_own():
    rng = np.random.default_rng(0)
    kq, ov = rng.normal(size=(3, 4, 6, 6)), rng.normal(size=(3, 4, 1, 6))
    found = measure.of_circuits(kq, ov, PLAIN)
    turned = measure.of_circuits(kq[:, ::-1], ov[:, ::-1], PLAIN)
    alone = measure.of_circuits(kq[1:2], ov[1:2], PLAIN)
    for name in found.data_vars:
        if found[name].dims == ("run",):
            np.testing.assert_allclose(found[name], turned[name])
            np.testing.assert_allclose(found[name][1], alone[name][0])
    np.testing.assert_allclose(found["omega"].to_numpy()[:, ::-1], turned["omega"])
    np.testing.assert_allclose(found["omega"], np.diagonal(kq, 0, 2, 3)[..., :5].mean(-1))
    for name, low, high in ((v.name, v.low, v.high) for v in measure.VARIABLES if v.name in found):
        assert (found[name] >= low - 1e-9).all() and (found[name] <= high + 1e-9).all()


def test_two_tasks_each_have_their_matrix():
    """Three heads: one for both tasks, two for one each; superposed as H = T + 1 allows."""
    kq, ov = np.zeros((1, 3, 8, 8)), np.full((1, 3, 2, 8), 1e-9)
    for h, mask in enumerate((np.ones(6), TWO.masks[0], TWO.masks[1])):
        kq[0, h, :6, :6] = (0.1 if h else -0.1) * np.diag(mask)
    ov[0, 0, [0, 1], [6, 7]] = -2.0, -3.0
    ov[0, 1, 0, 6], ov[0, 2, 1, 7] = 2.0, 3.0
    found = measure.of_circuits(kq, ov, TWO)
    assert found["zero_sum"].item() == pytest.approx(0, abs=1e-6)
    # E_0 = .2 (I + P_0): twice as long on the task's own coordinates as on the others.
    diagonal = np.diagonal(found["e"][0, 0])
    np.testing.assert_allclose(diagonal, 0.2 + 0.2 * TWO.masks[0])
    assert found["eta"].item() == pytest.approx((0.4 + 0.6) / 2)
    wanted = diagonal[:4].sum() / np.sqrt(4 * (diagonal**2).sum())
    assert found["cos_e"].item() == pytest.approx(wanted)
    assert list(found["mu"].to_numpy()[0, 0]) == [-2, -3]
    assert found["ov_x"].item() == pytest.approx(0, abs=1e-9)


def test_gradient_descent_is_told_from_debiased():
    prompts = PLAIN.prompts(3000, 0)
    steps = 0.9 * np.eye(5)[None]
    plain, debiased = closed.gd(prompts, steps), closed.gd(closed.centred(prompts), steps)
    eta = np.array([0.9, 0.9])
    found = measure.of_predictions(np.stack([plain, debiased]), eta, prompts, PLAIN)
    between = ((plain - debiased) ** 2).mean()
    sizes = (plain**2).mean(), (debiased**2).mean()
    np.testing.assert_allclose(found["to_gd"], [0, between / sizes[1]], atol=1e-9)
    np.testing.assert_allclose(found["to_dgd"], [between / sizes[0], 0], atol=1e-9)
    np.testing.assert_allclose(found["risk"][0], closed.risk(plain, prompts))
    assert between / sizes[0] > 0.002


def test_coloured_predictions_are_held_against_the_best_matrix():
    task = Task(correlation=0.5)
    prompts = task.prompts(500, 0)
    best = closed.matrices(task, debiased=True)
    eta = measure.mean_diagonal(best, task)
    assert eta == pytest.approx(np.trace(best[0]) / 5)
    exact = closed.gd(closed.centred(prompts), best)[None]
    assert measure.of_predictions(exact, eta, prompts, task)["to_dgd"].item() < 1e-9
    other = closed.gd(closed.centred(prompts), eta * np.eye(5)[None])[None]
    assert measure.of_predictions(other, eta, prompts, task)["to_dgd"].item() > 0.05


def test_the_cosine_of_nothing_is_missing():
    assert np.isnan(measure.cosine(np.zeros((2, 2)), np.eye(2)))
    assert measure.cosine(3 * np.eye(4), np.eye(4)) == pytest.approx(1)
    assert measure.cosine(np.eye(2), -np.eye(2)) == pytest.approx(-1)
