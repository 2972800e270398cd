"""The network is the attention it says, and its circuits are all of it."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from workbench.errors import WorkbenchError
from workbench.zoo.regression import closed, measure, model
from workbench.zoo.regression.task import Prompts, Task

TWO = Task(d=6, length=48, supports=((0, 1, 2, 3), (2, 3, 4, 5)))
PLAIN = Task()


def drawn(task, heads, seeds=(0, 1), signs=None):
    shape = model.shape_of(task, heads)
    return model.start(shape, seeds, signs or [()] * len(seeds))


@pytest.mark.parametrize(("task", "heads"), [(PLAIN, 3), (TWO, 2), (Task(d=2, length=7), 1)])
def test_predictions_are_those_of_explicit_attention(task, heads):
    """Every head's q, k, v written out, through PyTorch's own attention."""
    parameters, prompts = drawn(task, heads), task.prompts(9, 0)
    z = torch.from_numpy(prompts.z)
    query = torch.cat([torch.from_numpy(prompts.x_q), torch.zeros(9, task.n_tasks)], dim=1)
    found = model.predict(parameters, prompts)
    assert found.shape == (2, 9, task.n_tasks)
    for run in range(2):
        total = torch.zeros(9, task.n_tasks)
        for head in range(heads):
            q, k, v, o = (parameters[name][run, head] for name in "qkvo")
            # The default scale is 1 / sqrt of the width, d + tasks.
            out = functional.scaled_dot_product_attention(
                (query @ q.mT)[:, None], z @ k.mT, z @ v.mT
            )
            total += out[:, 0] @ o.mT
        torch.testing.assert_close(found[run], total, rtol=1e-4, atol=1e-5)
    errors = (found - torch.from_numpy(prompts.y_q)) ** 2
    torch.testing.assert_close(model.losses(parameters, prompts), errors.mean(dim=(1, 2)))


def test_heads_of_the_pattern_are_kernel_regressors():
    omega, mu = np.array([0.3, -0.2]), np.array([1.5, -2.0])
    w = PLAIN.d + 1
    planted = {
        "q": torch.tensor(omega * np.sqrt(w))[:, None, None] * torch.eye(w),
        "k": torch.eye(w).expand(2, w, w).double(),
        "v": torch.eye(w).expand(2, w, w).double(),
        "o": torch.tensor(mu)[:, None, None] * torch.eye(w)[-1:],
    }
    planted = {name: value[None].float() for name, value in planted.items()}
    prompts = PLAIN.prompts(50, 3)
    found = model.predict(planted, prompts)[0].numpy()
    np.testing.assert_allclose(found, closed.kernels(prompts, omega, mu), rtol=1e-3, atol=1e-5)


def test_e_is_the_first_order_of_the_predictions_with_both_its_terms():
    """What is odd in the labels, less their mean, is y' x E x_q: exactly, as scores go to zero."""
    rng = np.random.default_rng(0)
    runs, heads, w, d, tasks = 2, 3, 8, 6, 2
    kq = 1e-4 * rng.normal(size=(runs, heads, w, w))
    ov = rng.normal(size=(runs, heads, tasks, w))
    parameters = {
        "q": kq * np.sqrt(w), "k": np.broadcast_to(np.eye(w), kq.shape),
        "v": np.broadcast_to(np.eye(w), kq.shape), "o": ov,
    }  # fmt: skip
    parameters = {name: torch.from_numpy(np.array(value)) for name, value in parameters.items()}
    drawn = TWO.prompts(20, 1)
    fields = {name: getattr(drawn, name).astype(float) for name in ("x", "y", "x_q", "y_q")}
    # One label at a time: products of two labels are odd in neither.
    for t in range(tasks):
        fields["y"] = fields["y"] * 0
        fields["y"][..., t] = drawn.y[..., t]
        prompts = Prompts(**fields)
        mirrored = Prompts(**{**fields, "y": -fields["y"]})
        both = [model.predict(parameters, p).numpy() for p in (prompts, mirrored)]
        odd = (both[0] - both[1])[..., t] / 2
        odd -= ov[:, :, t, d + t].sum(axis=1)[:, None] * prompts.y[..., t].mean(axis=1)
        found = measure.of_circuits(kq, ov, TWO)["e"].to_numpy()[:, t]
        x = prompts.x - prompts.x.mean(axis=1, keepdims=True)
        sums = np.einsum("pk,pki->pi", prompts.y[..., t], x) / 48
        expected = np.einsum("pi,rij,pj->rp", sums, found, prompts.x_q)
        error = np.abs(odd - expected).max() / np.abs(expected).max()
        first = np.einsum("rh,rhij->rij", ov[:, :, t, d + t], kq[:, :, :d, :d])
        without = np.einsum("pi,rij,pj->rp", sums, first, prompts.x_q)
        missed = np.abs(odd - without).max() / np.abs(expected).max()
        print(f"task {t}: off by {error:.1e}, without the second term by {missed:.2f}")
        assert error < 5e-3 < 0.1 < missed


def test_gradients_of_stacked_runs_are_those_of_runs_alone():
    prompts = PLAIN.prompts(32, 0)
    together = {k: v.requires_grad_() for k, v in drawn(PLAIN, 2, (0, 5, 9)).items()}
    model.losses(together, prompts).sum().backward()
    alone = {k: v.requires_grad_() for k, v in drawn(PLAIN, 2, (5,)).items()}
    model.losses(alone, prompts).sum().backward()
    for name, value in alone.items():
        torch.testing.assert_close(together[name].grad[1], value.grad[0], rtol=1e-4, atol=1e-7)


def test_starts_are_pytorchs_defaults_and_depend_on_their_seed_alone():
    one, other = drawn(PLAIN, 4, (3, 8)), drawn(PLAIN, 4, (8, 3))
    for name in "qkvo":
        torch.testing.assert_close(one[name][0], other[name][1], rtol=0, atol=0)
        fan_in = 6 * (4 if name == "o" else 1)
        bound = 1 / np.sqrt(fan_in)
        assert one[name].abs().max() <= bound and one[name].abs().max() > 0.9 * bound
    assert one["o"].shape == (2, 4, 1, 6)
    two = drawn(TWO, 3)
    assert two["q"].shape == (2, 3, 8, 8) and two["o"].shape == (2, 3, 2, 8)


def test_starts_with_signs_have_them():
    parameters = drawn(PLAIN, 2, (0, 0, 0), [(1, -1), (1, 1), ()])
    kq, ov = model.circuits(parameters)
    found = measure.of_circuits(kq.numpy(), ov.numpy(), PLAIN)
    for name in ("omega", "mu"):
        signs = np.sign(found[name].to_numpy().reshape(3, 2)[:2])
        assert signs.tolist() == [[1, -1], [1, 1]]
    assert found["off_kq"][2] > 0.5 > 0.2 > found["off_kq"][:2].max() > 0.01


@pytest.mark.parametrize(("task", "signs"), [(PLAIN, (1,)), (PLAIN, (1, 0)), (TWO, (1, -1))])
def test_signs_that_cannot_be_given_are_refused(task, signs):
    with pytest.raises(WorkbenchError, match="give one task and"):
        drawn(task, 2, (0,), [signs])
