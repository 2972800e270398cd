"""Patterns are the fits they are said to be: against scikit-learn, numpy and closed forms."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge

from workbench.errors import WorkbenchError
from workbench.zoo.regression import closed
from workbench.zoo.testtime import curves
from workbench.zoo.testtime.estimators import (
    ESTIMATORS,
    causal,
    linear,
    local_linear,
    mesa,
    recurrent_mesa,
    softmax,
)
from workbench.zoo.testtime.task import KINDS, SPREAD, Prompts, Task

RNG = np.random.default_rng(0)
KEYS, VALUES = RNG.normal(size=(30, 3)), RNG.normal(size=(30, 2))
QUERIES = RNG.normal(size=(7, 3))


@pytest.mark.parametrize(("bandwidth", "penalty"), [(0.7, 1e-6), (1.5, 0.3), (0.25, 1e-3)])
def test_local_linear_is_a_weighted_ridge_of_scikit_learn(bandwidth, penalty):
    found = local_linear(KEYS, QUERIES, bandwidth, penalty=penalty) @ VALUES
    for query, predicted in zip(QUERIES, found, strict=True):
        squares = ((KEYS - query) ** 2).sum(axis=1)
        w = np.exp(-(squares - squares.min()) / (2 * bandwidth**2))
        # Half the sum of squares and a whole penalty: twice the penalty of Ridge.
        fitted = Ridge(alpha=2 * penalty).fit(KEYS - query, VALUES, sample_weight=w)
        np.testing.assert_allclose(predicted, fitted.intercept_, rtol=1e-6, atol=1e-9)
        rows = np.vstack(
            [np.sqrt(w)[:, None] * np.c_[np.ones(30), KEYS - query],
             np.sqrt(2 * penalty) * np.eye(4)[1:]]
        )  # fmt: skip
        wanted = np.vstack([np.sqrt(w)[:, None] * VALUES, np.zeros((3, 2))])
        solved = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        np.testing.assert_allclose(predicted, solved[0], rtol=1e-6, atol=1e-9)
        unpenalised = LinearRegression().fit(KEYS - query, VALUES, sample_weight=w)
        if penalty > 1e-3:
            assert np.abs(unpenalised.intercept_ - predicted).max() > 1e-3


def test_local_linear_has_its_two_limits():
    ordinary = local_linear(KEYS, QUERIES, 1.0)
    ols = LinearRegression().fit(KEYS, VALUES).predict(QUERIES)
    constant = softmax(KEYS, QUERIES, 1.0)
    wide, stiff = local_linear(KEYS, QUERIES, 1e4), local_linear(KEYS, QUERIES, 1.0, penalty=1e9)
    np.testing.assert_allclose(wide @ VALUES, ols, rtol=1e-5)
    np.testing.assert_allclose(stiff, constant, rtol=1e-6, atol=1e-9)
    assert np.abs(ordinary @ VALUES - ols).max() > 0.1 < np.abs(ordinary - constant).max()
    for pattern in (ordinary, wide, stiff, constant):
        np.testing.assert_allclose(pattern.sum(axis=1), 1.0, rtol=1e-9)
    assert ordinary.min() < -0.01 and constant.min() > 0


def test_softmax_is_dot_product_attention_where_keys_have_equal_norms():
    keys = KEYS / np.linalg.norm(KEYS, axis=1, keepdims=True)
    scores = QUERIES @ keys.T / 0.6**2
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax(keys, QUERIES, 0.6), expected, rtol=1e-9)
    other = QUERIES @ KEYS.T / 0.6**2
    other = np.exp(other) / np.exp(other).sum(axis=1, keepdims=True)
    assert np.abs(softmax(KEYS, QUERIES, 0.6) - other).max() > 0.1


@pytest.mark.parametrize("penalty", [1e-6, 0.5, 20.0])
def test_mesa_is_ridge_without_intercept(penalty):
    fitted = Ridge(alpha=penalty, fit_intercept=False).fit(KEYS, VALUES)
    found = mesa(KEYS, QUERIES, penalty) @ VALUES
    np.testing.assert_allclose(found, fitted.predict(QUERIES), rtol=1e-8)


def test_linear_is_one_step_of_gradient_descent():
    found = linear(KEYS, QUERIES, 0.4) @ VALUES
    weights = 0.4 * VALUES.T @ KEYS / len(KEYS)
    np.testing.assert_allclose(found, QUERIES @ weights.T, rtol=1e-9)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_a_causal_pattern_is_the_pattern_on_each_prefix(name):
    estimator = ESTIMATORS[name]
    setting = estimator.grid[len(estimator.grid) // 2]
    whole = estimator.pattern(KEYS[:-1], KEYS[1:], setting, causal(29))
    assert (np.triu(whole, 1) == 0).all()
    for t in (0, 5, 28):
        alone = estimator.pattern(KEYS[: t + 1], KEYS[t + 1 : t + 2], setting)
        np.testing.assert_allclose(whole[t, : t + 1], alone[0], rtol=1e-7, atol=1e-10)
    unmasked = estimator.pattern(KEYS[:-1], KEYS[1:], setting)
    assert np.abs(unmasked - whole).max() > 1e-3


def test_the_recurrence_of_mesa_is_its_causal_pattern():
    found = recurrent_mesa(KEYS, VALUES, 0.3)
    pattern = mesa(KEYS[:-1], KEYS[1:], 0.3, causal(29))
    np.testing.assert_allclose(found[1:], pattern @ VALUES[:-1], rtol=1e-9)
    assert (found[0] == 0).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: softmax(KEYS, QUERIES, 0.0), "bandwidth 0.0 is not above 0"),
        (lambda: mesa(KEYS, QUERIES, -1.0), "penalty -1.0 of the mesa layer"),
        (lambda: local_linear(KEYS, QUERIES, 1.0, penalty=0.0), "penalty 0.0 is not above 0"),
        (lambda: softmax(KEYS, QUERIES, 1.0, np.zeros((7, 30), bool)), "at least one key"),
        (lambda: linear(KEYS, QUERIES, 1.0, causal(7)), r"give \[query, key\]"),
        (lambda: Task("cubic"), "task 'cubic' is not known"),
        (lambda: Task("linear", d=0), "at least 1"),
        (lambda: Task("drift").prompts(1, 10, 0), "multiple of 4"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(WorkbenchError, match=says):
        call()


# Prompts


def test_values_have_unit_size_and_follow_their_map():
    for kind in ("linear", "piecewise", "quadratic", "unshifted"):
        values = Task(kind).prompts(1500, 32, 1).values
        assert (values**2).mean() == pytest.approx(1.0, rel=0.1), kind
    affine = Task("affine").prompts(1500, 32, 1).values
    assert (affine**2).mean() == pytest.approx(2.0, rel=0.1)
    one = Task("linear").prompts(1, 32, 2)
    fit = np.linalg.lstsq(one.keys[0], one.values[0], rcond=None)
    assert fit[1].max() < 1e-20
    np.testing.assert_allclose(one.queries[0] @ fit[0], one.targets[0], rtol=1e-9)


def test_drifting_prompts_end_in_their_last_segment():
    prompts = Task("drift").prompts(200, 64, 3)
    last = prompts.keys[:, 48:]
    fits = [
        np.linalg.lstsq(k, v, rcond=None)[0]
        for k, v in zip(last, prompts.values[:, 48:], strict=True)
    ]
    found = prompts.queries @ np.array(fits)
    np.testing.assert_allclose(found, prompts.targets, rtol=1e-6, atol=1e-8)
    centres = prompts.keys.reshape(200, 4, 16, 4).mean(axis=2)
    assert centres.std() == pytest.approx(SPREAD, rel=0.1)
    apart = (prompts.queries.mean(axis=1) - centres[:, 3]) ** 2
    assert apart.mean() < 0.5 < ((prompts.queries.mean(axis=1) - centres[:, 0]) ** 2).mean()
    plain = Task("unshifted").prompts(200, 64, 3).keys.reshape(200, 4, 16, 4).mean(axis=2)
    assert plain.std() == pytest.approx(0.25, rel=0.1)


def test_seeds_decide_prompts():
    for kind in KINDS:
        one, again = (Task(kind).prompts(2, 16, 5) for _ in range(2))
        np.testing.assert_array_equal(one.targets, again.targets)
        assert np.abs(Task(kind).prompts(2, 16, 6).keys - one.keys).max() > 0.1


# Errors


def test_errors_are_the_closed_forms_of_gaussian_keys():
    """d = 4: one step (d+1)/(n+d+1); a constant by a line through zero, 1 + d/(n-d-1) of it."""
    n, d = 32, 4
    prompts = Task("linear", d_value=1).prompts(6000, n, 7)
    step = closed.best_step(np.eye(d), n, 0.0)
    found = curves.error(ESTIMATORS["linear"], step, prompts)
    assert found == pytest.approx((d + 1) / (n + d + 1), rel=0.05)
    assert curves.error(ESTIMATORS["linear"], 0.5 * step, prompts) > 1.5 * found
    keys, queries = prompts.keys, prompts.queries
    constant = Prompts(keys, np.ones_like(keys[..., :1]), queries, np.ones_like(queries[..., :1]))
    missed = curves.error(ESTIMATORS["mesa"], 1e-9, constant)
    assert missed == pytest.approx(1 + d / (n - d - 1), rel=0.03)
    assert curves.error(ESTIMATORS["local linear"], 50.0, constant) < 1e-12


def test_settings_are_chosen_on_other_prompts_and_are_the_best_of_the_grid():
    data = curves.errors(Task("quadratic"), (64,), (0, 1), 12)
    others = Task("quadratic").prompts(12, 64, [curves.CHOOSING, 64])
    for name, estimator in ESTIMATORS.items():
        by_setting = {s: curves.error(estimator, s, others) for s in estimator.grid}
        chosen = float(data["setting"].sel(estimator=name, length=64))
        assert by_setting[chosen] == min(by_setting.values()) < max(by_setting.values())
        tested = Task("quadratic").prompts(12, 64, [1, 64])
        found = float(data["error"].sel(estimator=name, length=64, seed=1))
        assert found == curves.error(estimator, chosen, tested) != by_setting[chosen]


def test_a_stream_is_read_without_its_own_values():
    prompts = Task("drift").prompts(3, 32, 4, 1)
    estimator = ESTIMATORS["local linear"]
    before = curves.read_along(estimator, 1.0, prompts)
    changed = Prompts(prompts.keys, prompts.values.copy(), prompts.queries, prompts.targets)
    changed.values[:, 20:] += 5.0
    after = curves.read_along(estimator, 1.0, changed)
    np.testing.assert_array_equal(before[:, :20], after[:, :20])
    assert np.abs(before[:, 20:] - after[:, 20:]).max() > 1.0
