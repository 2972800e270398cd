"""The reduced model obeys its closed forms exactly, for random languages and values."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize

from workbench.errors import WorkbenchError
from workbench.zoo.backcopy.reduced import Reduced, drained, flow, sink_logit_law

SEEDS = range(3)
TYPES, SYMBOLS, OTHERS = 5, 12, 8.0


def random_model(seed, *, beta=None, alpha=None):
    rng = np.random.default_rng(seed)
    return Reduced(
        p=rng.dirichlet(np.full(SYMBOLS, 0.7), size=TYPES),
        alpha=rng.normal(0, 0.3, TYPES) if alpha is None else np.full(TYPES, alpha),
        beta=rng.normal(0, 1, SYMBOLS) if beta is None else np.full(SYMBOLS, beta),
        zbar=rng.normal(0, np.sqrt(OTHERS), SYMBOLS),
        others=OTHERS,
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_divergence_and_gradient_follow_the_definition(seed):
    model = random_model(seed)
    weight = np.exp(model.alpha)[:, None]
    exponent = (weight * model.beta + model.zbar) / (weight + OTHERS)
    q = model.p * np.exp(exponent)
    q /= q.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predictions(), q)
    np.testing.assert_allclose(model.divergences(), (model.p * np.log(model.p / q)).sum(axis=1))

    def loss(x):
        return replace(model, alpha=x[:TYPES], beta=x[TYPES:]).divergences().mean()

    numeric = optimize.approx_fprime(np.r_[model.alpha, model.beta], loss, 1e-7)
    exact = np.concatenate(model.gradients())
    error = np.abs(numeric - exact).max() / np.abs(exact).max()
    print(f"seed {seed}: gradient differs by {error:.1e} from finite differences")
    assert error < 1e-5


@pytest.mark.parametrize("seed", SEEDS)
def test_sink_logit_grows_as_half_the_logarithm_and_loss_falls_as_one_over_t(seed):
    model = random_model(seed, beta=0.3)
    times = np.geomspace(1e7, 1e10, 31)
    states = flow(model, times, beta=False)
    alpha = np.array([state.alpha for state in states])
    loss = np.array([state.divergences() for state in states])
    slopes = np.polyfit(np.log(times), alpha, 1)[0]
    decay = np.polyfit(np.log(times), np.log(loss), 1)[0]
    print(f"seed {seed}: slopes {slopes.round(4)}, of the loss {decay.round(4)}")
    assert np.abs(slopes - 0.5).max() < 0.05 and np.abs(decay + 1).max() < 0.05
    # Not the slope alone: the constants too, 1/2 ln(2 Var t / n) and n / (4 t).
    np.testing.assert_allclose(alpha[-1], sink_logit_law(model, times[-1]), rtol=1e-3)
    np.testing.assert_allclose(loss[-1], TYPES / (4 * times[-1]), rtol=1e-2)
    # Concentration: the distance between types stays while their logits grow.
    assert np.ptp(np.ptp(alpha[10:], axis=1)) < 1e-2 < 1 < alpha[-1].min() - alpha[10].max()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_value_drains_exponentially_to_the_closed_form(seed, alpha):
    model = random_model(seed, alpha=alpha)
    share = np.exp(alpha) / (np.exp(alpha) + OTHERS)
    # Near the end the flow is linear; its rates are those of the mean covariance of p.
    covariance = (np.einsum("vk,kl->vkl", model.p, np.eye(SYMBOLS)) - np.einsum(
        "vk,vl->vkl", model.p, model.p
    )).mean(axis=0)  # fmt: skip
    rates, modes = np.linalg.eigh(share**2 * covariance)
    slowest, mode = rates[1], modes[:, 1]
    assert rates[0] < 1e-12 < slowest, "only the constant shift is free"
    target = drained(model)
    times = np.array([10, 15, 40]) / slowest
    states = flow(model, times, alpha=False)
    slow = [abs(mode @ (state.beta - target)) for state in states]
    rate = np.log(slow[0] / slow[1]) / (times[1] - times[0])
    gap = np.abs(states[-1].beta - target).max()
    print(f"seed {seed}: ends {gap:.1e} from c - e^-alpha zbar, rate {rate / slowest:.3f}")
    assert gap < 1e-8 and rate == pytest.approx(slowest, rel=0.01)
    assert states[-1].beta.std() == pytest.approx(np.exp(-alpha) * model.zbar.std(), rel=1e-6)
    assert np.abs(model.beta - target).max() > 0.1, "it did not start there"


@pytest.mark.parametrize("seed", SEEDS)
def test_both_free_stop_at_a_finite_logit_that_all_types_share(seed):
    model = random_model(seed)
    middle, end = flow(model, np.array([1e5, 1e6]))
    assert np.ptp(model.alpha) > 0.1 > 1e-6 > np.ptp(end.alpha)
    np.testing.assert_allclose(end.alpha, middle.alpha, rtol=1e-6)
    assert end.divergences().max() < 1e-15
    shift = end.beta + np.exp(-end.alpha[0]) * model.zbar
    assert np.ptp(shift) < 1e-6 * np.ptp(model.zbar)


def test_flows_that_say_nothing_are_refused():
    model = random_model(0)
    with pytest.raises(WorkbenchError, match="something to move"):
        flow(model, np.array([1.0]), alpha=False, beta=False)
    with pytest.raises(WorkbenchError, match="different sink logits"):
        drained(model)
