"""The reduced loss and its gradient flow obey the laws that are written beside them."""

import numpy as np
import pytest
from scipy import optimize
from scipy.stats import binomtest

from workbench.zoo.regression import closed
from workbench.zoo.regression.reduced import Reduced, flow, slide, starts, trap

C = 1.1 / 40
PAIR = (np.array([0.01, -0.005]), np.array([0.003, -0.01]))
LATE = np.geomspace(200.0, 1e5, 20)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_its_definition_and_the_gradient_its_derivative(seed):
    rng = np.random.default_rng(seed)
    model = Reduced(rng.normal(0, 0.3, 3), rng.normal(0, 1, 3))

    def loss(x):
        omega, mu = x[:3], x[3:]
        spread = C * np.exp(5 * np.outer(omega, omega))
        return 1.1 - 2 * mu @ omega + mu @ (np.outer(omega, omega) + spread) @ mu

    x = np.r_[model.omega, model.mu]
    assert float(model.loss()) == pytest.approx(loss(x))
    numeric = optimize.approx_fprime(x, loss, 1e-7)
    exact = np.concatenate(model.gradients())
    error = np.abs(numeric - exact).max() / np.abs(exact).max()
    print(f"seed {seed}: gradient differs by {error:.1e} from finite differences")
    assert error < 1e-5


def test_many_copies_are_each_the_copy_alone():
    many = starts(4, 3, 0)
    assert many.omega.shape == (4, 3) and 0.003 < many.omega.std() < 0.03
    for i in range(4):
        alone = many.at(many.omega[i], many.mu[i])
        assert many.loss()[i] == pytest.approx(alone.loss())
        np.testing.assert_allclose(many.gradients()[1][i], alone.gradients()[1])
    together = flow(many, np.array([20.0]))[0]
    alone = flow(many.at(many.omega[2], many.mu[2]), np.array([20.0]))[0]
    np.testing.assert_allclose(together.omega[2], alone.omega, rtol=1e-4)


def test_the_best_single_head_and_the_floor_are_the_closed_forms():
    found = optimize.minimize(lambda x: Reduced(x[:1], x[1:]).loss(), [0.3, 1.0], tol=1e-12)
    omega, mu, risk = closed.one_head(5, 40, 0.1)
    np.testing.assert_allclose([*found.x, found.fun], [omega, mu, risk], rtol=1e-4)
    assert Reduced(*PAIR).floor == pytest.approx(closed.limit_gd_risk(5 / 40, 0.1))


def test_opposite_heads_slide_as_the_law_says_with_its_constant():
    states = flow(Reduced(*PAIR), LATE)
    omega = np.array([np.abs(state.omega).mean() for state in states])
    excess = np.array([state.loss() - state.floor for state in states])
    slope = np.polyfit(np.log(LATE), np.log(omega), 1)[0]
    decay = np.polyfit(np.log(LATE), np.log(excess), 1)[0]
    print(f"slopes {slope:.4f} (law {-1 / 6:.4f}) and {decay:.4f} (law {-2 / 3:.4f})")
    assert slope == pytest.approx(-1 / 6, abs=0.005) and decay == pytest.approx(-2 / 3, abs=0.02)
    np.testing.assert_allclose(omega[-1], slide(states[-1], LATE)[-1], rtol=0.005)
    last = states[-1]
    np.testing.assert_allclose(excess[-1], C * last.eta**2 * 125 * omega[-1] ** 4 / 6, rtol=0.05)
    assert last.eta == pytest.approx(1 / (1 + 5 * C), rel=1e-3)
    assert states[0].zero_sum < 0.01 and last.zero_sum < 1e-5


def test_heads_of_one_sign_end_at_one_head_and_nothing_leads_away():
    caught = flow(Reduced(*np.abs(PAIR)), np.array([20.0, 2000.0]))
    omega, mu, risk = closed.one_head(5, 40, 0.1)
    for state in caught:
        assert state.loss() == pytest.approx(risk, rel=1e-6)
        np.testing.assert_allclose(state.omega, omega, rtol=1e-3)
        assert state.mu.sum() == pytest.approx(mu, rel=1e-3)
    hessian = caught[-1].hessian()
    np.testing.assert_allclose(hessian, hessian.T)
    values = np.linalg.eigvalsh(hessian)
    print(f"eigenvalues {values.round(4)}")
    assert abs(values[0]) < 1e-6 < values[1], "one flat direction, the split of mu"
    # The same heads with a negative one among them: as good, and a saddle.
    saddle = caught[-1].at(caught[-1].omega, np.array([mu + 1, -1.0]))
    assert saddle.loss() == pytest.approx(risk, rel=1e-3)
    assert np.linalg.eigvalsh(saddle.hessian())[0] < -0.1


def test_the_hessian_is_that_of_the_loss():
    model = Reduced(np.array([0.2, -0.3]), np.array([1.0, -0.7]))

    def slope(x, i):
        step = 1e-4 * np.eye(4)[i]
        high, low = (Reduced((x + s)[:2], (x + s)[2:]).loss() for s in (step, -step))
        return (high - low) / 2e-4

    x = np.r_[model.omega, model.mu]
    expected = [optimize.approx_fprime(x, slope, 1e-4, i) for i in range(4)]
    np.testing.assert_allclose(model.hessian(), expected, atol=5e-3 * np.abs(expected).max())


def test_only_starts_of_one_sign_stick_and_not_all_of_them():
    for heads in (2, 3):
        found = trap(heads, 256, seed=1)
        print(found)
        assert found.mixed == 0 and 0.2 < found.one_sign < 1
        # The bound: as many as draw one sign; strictly fewer.
        bound = binomtest(round(found.all * 256), 256, 2.0 ** (1 - heads), alternative="less")
        assert bound.pvalue < 0.05 and found.all > 0.03
    assert trap(2, 256, seed=1, time=300.0) == trap(2, 256, seed=1), "nothing changes any more"
