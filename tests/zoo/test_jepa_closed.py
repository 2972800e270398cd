"""Scalar equations of JEPA and MAE: against integration, against gradient flow of the network."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate

from workbench.errors import WorkbenchError
from workbench.zoo.jepa import closed, model
from workbench.zoo.jepa.claims import CLAIMS, LAYERS
from workbench.zoo.jepa.closed import JEPA, MAE
from workbench.zoo.jepa.laws import Evidence
from workbench.zoo.jepa.task import Task

TASK = Task((0.9, 1.3, 0.7), (0.9, 0.5, 0.7))


def velocity(method, lam, rho, depth):
    """Gradient flow of encoder layers and last layer of one feature, each on its own."""

    def flow(_, w):
        layers, last = w[:-1], w[-1]
        encoder = np.prod(layers)
        target = encoder if method == JEPA else 1.0
        residual = lam * target - lam / rho * last * encoder
        return np.r_[residual * last * encoder / layers, residual * encoder]

    return flow


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("method", [JEPA, MAE])
def test_critical_times_are_those_of_the_integrated_flow(method, depth):
    lam, rho, product = 1.2, 0.7, 0.02
    last = closed.strength(method, rho, depth)

    def half(_, w):
        return np.prod(w[:-1]) - last / 2

    half.terminal = True
    begun = np.full(depth + 1, product ** (1 / depth))
    solved = integrate.solve_ivp(
        velocity(method, lam, rho, depth), (0, 1e5), begun, events=half, rtol=1e-10, atol=1e-13,
        method="LSODA",
    )  # fmt: skip
    wanted = solved.t_events[0][0]
    found = closed.critical_time(method, lam, rho, depth, product)
    print(f"{method} {depth}: {found:.6f}, integrated {wanted:.6f}")
    assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("method", [JEPA, MAE])
def test_ends_are_where_the_flow_stands_still(method):
    for depth in (1, 3):
        w = closed.end(method, 0.6, depth)
        still = velocity(method, 1.0, 0.6, depth)(0, np.full(depth + 1, w))
        np.testing.assert_allclose(still, 0, atol=1e-12)
        assert closed.strength(method, 0.6, depth) == pytest.approx(w**depth)
    assert closed.strength(JEPA, 0.6, 3) == pytest.approx(0.6**3)
    assert closed.strength(MAE, 0.6, 3) == pytest.approx(0.6**0.75)


def test_leading_orders_of_small_starts():
    for depth in (2, 3):
        w0 = 1e-8 ** (1 / depth)
        first = w0 ** (1 - 2 * depth) / (2 * depth - 1)
        second = w0 ** (2 - 2 * depth) / (2 * depth - 2) / 0.5
        found = closed.critical_time(JEPA, 1.0, 0.5, depth, 1e-8)
        assert abs(found - first - second) < 0.1 * second
        mae = closed.critical_time(MAE, 1.0, 0.5, depth, 1e-8)
        assert mae == pytest.approx(w0 ** (1 - depth) / (depth - 1), rel=0.01)


def test_the_preference_grows_with_depth_for_jepa_alone():
    jepa, mae = (
        [closed.preference(method, 0.5, depth, 0.01) for depth in (1, 2, 3, 4)]
        for method in (JEPA, MAE)
    )
    print(np.round(jepa, 3), np.round(mae, 3))
    assert all(b > 1.1 * a for a, b in pairwise(jepa))
    assert max(mae) < 1.0


def test_what_the_law_of_equal_layers_does_not_cover():
    """From one layer to two, and from weights of .2, the preference grows with depth."""
    law = {claim.name: claim for claim in CLAIMS}["it is the start of the layers"]
    found, n = law.law(Evidence([]))
    assert found.held and n == len(LAYERS) > 1
    one, two, four = (closed.preference(JEPA, 0.5, d, LAYERS[-1] ** d) for d in (1, 2, 4))
    assert two > 1.2 * one and found.value == pytest.approx(four / two)
    two, four = (closed.preference(JEPA, 0.5, d, 0.2**d) for d in (2, 4))
    assert not law.mark.met(four / two)


def test_the_network_is_the_scalar_equation_on_every_feature():
    """One step of gradient descent of aligned layers, feature by feature."""
    rng = np.random.default_rng(0)
    directions = TASK.directions(1)
    xx, yx = (torch.from_numpy(part)[None] for part in TASK.moments(directions))
    sizes = rng.uniform(0.2, 0.9, (4, 3))
    rotations = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(3)]
    layers = []
    basis = directions
    for size, rotation in zip(sizes[:3], rotations, strict=True):
        layers.append(rotation @ np.diag(size) @ basis.T)
        basis = rotation
    for method in (JEPA, MAE):
        back = basis if method == JEPA else directions
        last = back @ np.diag(sizes[3]) @ basis.T
        parameters = {
            "layers": torch.from_numpy(np.stack(layers))[None].requires_grad_(),
            "last": torch.from_numpy(last)[None].requires_grad_(),
        }
        model.losses(parameters, (xx, yx), method).sum().backward()
        for i in range(3):
            wanted = velocity(method, TASK.lam[i], TASK.rho[i], 3)(0, sizes[:, i])
            grads = parameters["layers"].grad[0].numpy()
            seen = [directions, *rotations]
            found = [-(seen[n + 1].T @ grads[n] @ seen[n])[i, i] for n in range(3)] + [
                -(back.T @ parameters["last"].grad[0].numpy() @ basis)[i, i]
            ]
            np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_the_loss_is_the_error_on_drawn_views():
    directions = TASK.directions(2)
    x, y = TASK.draw(400_000, directions, 0)
    rng = np.random.default_rng(3)
    layers, last = rng.normal(0, 0.6, (2, 3, 3)), rng.normal(0, 0.6, (3, 3))
    parameters = {
        "layers": torch.from_numpy(layers)[None], "last": torch.from_numpy(last)[None],
    }  # fmt: skip
    moments = tuple(torch.from_numpy(part)[None] for part in TASK.moments(directions))
    encoder = layers[1] @ layers[0]
    for method, target in ((JEPA, encoder), (MAE, np.eye(3))):
        errors = 0.5 * ((x @ (last @ encoder).T - y @ target.T) ** 2).sum(axis=1)
        found = float(model.losses(parameters, moments, method)[0])
        bound = 4 * errors.std() / np.sqrt(len(errors))
        print(f"{method}: {found:.4f}, drawn {errors.mean():.4f}, bound {bound:.4f}")
        assert abs(found - errors.mean()) < bound < 0.02 * found


def test_the_teacher_gets_no_gradient():
    """With it, the gradient of JEPA would be another: finite differences of the whole loss."""
    moments = tuple(torch.from_numpy(part)[None] for part in TASK.moments(np.eye(3)))
    layers = torch.full((1, 1, 3, 3), 0.3, dtype=torch.float64)
    parameters = {
        "layers": layers.requires_grad_(),
        "last": torch.eye(3, dtype=torch.float64)[None],
    }
    model.losses(parameters, moments, JEPA).sum().backward()
    shift = torch.zeros_like(layers)
    shift[0, 0, 1, 2] = 1e-5
    with torch.no_grad():
        up, down = (
            model.losses(parameters | {"layers": layers + sign * shift}, moments, JEPA)
            for sign in (1, -1)
        )
    whole = float((up - down)[0]) / 2e-5
    assert abs(float(layers.grad[0, 0, 1, 2]) - whole) > 0.05


def test_bad_tasks_and_methods_are_refused():
    with pytest.raises(WorkbenchError, match="one positive covariance"):
        Task((1.0, -1.0), (0.5, 0.5))
    with pytest.raises(WorkbenchError, match="above 0 and not above 1"):
        Task((1.0,), (1.2,))
    with pytest.raises(WorkbenchError, match="known: jepa, mae"):
        closed.end("simclr", 0.5, 2)
    with pytest.raises(WorkbenchError, match="ascend"):
        closed.critical_time(JEPA, 1.0, 0.5, 2, 0.9)
