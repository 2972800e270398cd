"""Weights of linear self-attention that make a layer one step of gradient descent.

Tokens are e_j = (x_j, y_j), the query is (x_q, 0), a layer adds P V sum_j e_j (K e_j)'(Q e_i) to
every token; the query is no key, its label is not known.  With (von Oswald et al. 2022, arXiv
2212.07677, proposition 1)

    K = Q = [[I, 0], [0, 0]],   V = [[0, 0], [W_0, -I]],   P = step * I

labels change by -(W_1 - W_0) x, where W_1 = W_0 - step * sum_j (W_0 x_j - y_j) x_j' is one step of
gradient descent on 1/2 sum |W x_j - y_j|^2.  After any number of such layers with W_0 = 0 labels
are what is left to explain, and minus the label of the query is the prediction.

For coordinates that are independent with mean zero, E x^2 = s, E x^4 = k, and w ~ N(0, I), a step
from zero leaves half the squared error s/2 E tr (I - step A)^2, A = sum_j x_j x_j', lowest at
(derived)

    step* = E tr A / E tr A^2 = 1 / (s (L - 1) + k / s + (d - 1) s)
    loss* = s d / 2 (1 - step* L s)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import WorkbenchError
from workbench.zoo.descent.task import Uniform, loss
from workbench.zoo.regression.task import Prompts


@dataclass(frozen=True, eq=False)
class Layer:
    """Matrices [width, width] of one layer of linear self-attention, width = d + 1."""

    key: np.ndarray
    query: np.ndarray
    value: np.ndarray
    projection: np.ndarray


def gd_layer(d: int, step: float, start: np.ndarray | None = None) -> Layer:
    """The layer that takes one step from W_0 = `start` [coordinate], by default zero."""
    reads, value = np.zeros((d + 1, d + 1)), np.zeros((d + 1, d + 1))
    reads[:d, :d] = np.eye(d)
    value[d, :d] = 0.0 if start is None else start
    value[d, d] = -1.0
    return Layer(reads, reads, value, step * np.eye(d + 1))


def forward(layer: Layer, tokens: np.ndarray) -> np.ndarray:
    """Tokens [prompt, token, width] after the layer; the last token is the query."""
    seen = tokens[:, :-1]
    scores = (tokens @ layer.query.T) @ np.swapaxes(seen @ layer.key.T, 1, 2)
    return tokens + scores @ seen @ (layer.projection @ layer.value).T


def tokens_of(prompts: Prompts) -> np.ndarray:
    """Tokens [prompt, token, width] in float64, the query last with label 0."""
    points = np.concatenate([prompts.x, prompts.x_q[:, None]], axis=1).astype(float)
    labels = np.concatenate([prompts.y, np.zeros_like(prompts.y_q)[:, None]], axis=1)
    return np.concatenate([points, labels], axis=2)


def predict(layers: Sequence[Layer], prompts: Prompts) -> np.ndarray:
    """Predictions [prompt, task] of linear self-attention: minus what is left at the query."""
    tokens = tokens_of(prompts)
    for layer in layers:
        tokens = forward(layer, tokens)
    return -tokens[:, -1, -1:]


def descend(
    prompts: Prompts, step: float, steps: int, start: np.ndarray | None = None
) -> np.ndarray:
    """Predictions [prompt, task] of a linear function after `steps` steps of gradient descent."""
    x, y = prompts.x.astype(float), prompts.y[..., 0].astype(float)
    w = np.zeros((len(x), x.shape[2]))
    if start is not None:
        w += start
    for _ in range(steps):
        w = w - step * np.einsum("pk,pki->pi", np.einsum("pki,pi->pk", x, w) - y, x)
    return (w * prompts.x_q).sum(axis=1, keepdims=True)


def best_step(task: Uniform) -> float:
    """The step from zero with the lowest loss.

    >>> round(best_step(Uniform()), 4), round(best_step(Uniform(half=1.0)), 4)
    (0.6061, 0.1515)
    """
    s = task.second
    return 1.0 / (s * (task.length - 1) + task.fourth / s + (task.d - 1) * s)


def best_loss(task: Uniform) -> float:
    """Its loss, half a squared label."""
    return 0.5 * task.second * task.d * (1.0 - best_step(task) * task.length * task.second)


def zero_loss(task: Uniform) -> float:
    """The loss of predicting zero."""
    return 0.5 * task.second * task.d


def step_loss(task: Uniform, step: float) -> float:
    """Loss of one step of another size: quadratic around the best one.

    >>> step_loss(Uniform(), 0.0) == zero_loss(Uniform())
    True
    """
    away = step / best_step(task) - 1.0
    return best_loss(task) + (zero_loss(task) - best_loss(task)) * away**2


def sampled_step(prompts: Prompts) -> float:
    """The step from zero with the lowest loss on these prompts, whatever they are drawn from."""
    unit = descend(prompts, 1.0, 1)
    return float((unit * prompts.y_q).sum() / (unit**2).sum())


def tuned(prompts: Prompts, steps: int) -> tuple[float, float]:
    """(step, loss) of the best constant step for `steps` steps on these prompts.

    Raises where no best step lies between zero and that of one step.
    """
    from scipy.optimize import minimize_scalar

    if steps < 1:
        raise WorkbenchError(f"{steps} steps have no best step; give 1 or more.")
    found = minimize_scalar(
        lambda step: loss(descend(prompts, step, steps), prompts),
        bounds=(0.0, 2.0 * sampled_step(prompts)), method="bounded",
    )  # fmt: skip
    return float(found.x), float(found.fun)
