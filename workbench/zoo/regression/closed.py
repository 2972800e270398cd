"""What simple predictors of in-context regression compute, and the risks they reach.

One step of gradient descent from zero on the labelled points, with a matrix Gamma as its step,
predicts x_q' Gamma' (1/L) sum_l y_l x_l; debiased, the mean label is taken off first.  For x ~ N(0,
Sigma), beta ~ N(0, I/d) and label noise s2 its risk, query noise included, is (derived from the
moments of Wishart matrices; n = L, or L - 1 debiased)

    tr Sigma / d + s2 - 2 (n/L) tr(Sigma Gamma Sigma) / d
        + n / (d L^2) tr(Gamma' [(n+1) Sigma^2 + (tr Sigma + d s2) Sigma] Gamma Sigma)

and lowest at Gamma = L [(n+1) Sigma + (tr Sigma + d s2) I]^-1 (Ahn et al. 2023, arXiv
2306.00297, with noise).  At Sigma = I this is the step L / (L + 1 + d (1 + s2)), debiased
L / (L + d (1 + s2)): the x have mean zero, so debiasing costs a degree of freedom and gains
nothing.  The other risks, and the limits for large d, L are those of He et al. 2025 (arXiv
2503.12734):

    zero            1 + s2
    one head        1 + s2 - 1 / (1 + e (1 + s2) d / L), best of the reduced loss; too low by a
                    tenth at d = 5
    Bayes (ridge)   s2 + tr (X'X / s2 + d I)^-1 given the points X
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from workbench.zoo.regression.task import Prompts, Task


def best_matrix(
    covariance: np.ndarray, length: int, noise: float, *, debiased: bool = False
) -> np.ndarray:
    """The Gamma of lowest risk, [coordinate, coordinate].

    >>> round(float(best_matrix(np.eye(5), 40, 0.1, debiased=True)[0, 0]), 5)
    0.87912
    """
    d = len(covariance)
    spread = np.trace(covariance) + d * noise
    return length * np.linalg.inv((_points(length, debiased) + 1) * covariance + spread * np.eye(d))


def best_step(
    covariance: np.ndarray, length: int, noise: float, *, debiased: bool = False
) -> float:
    """The multiple of the identity of lowest risk."""
    gain, cost = _parts(np.eye(len(covariance)), covariance, length, noise, debiased)
    return gain / cost


def gd_risk(
    steps: np.ndarray, covariance: np.ndarray, length: int, noise: float, *, debiased: bool = False
) -> float:
    """Risk of one step of gradient descent with the symmetric matrix `steps`."""
    gain, cost = _parts(steps, covariance, length, noise, debiased)
    return float(np.trace(covariance)) / len(covariance) + noise - 2.0 * gain + cost


def _points(length: int, debiased: bool) -> int:
    """Degrees of freedom of the labels."""
    return length - 1 if debiased else length


def _parts(
    steps: np.ndarray, covariance: np.ndarray, length: int, noise: float, debiased: bool
) -> tuple[float, float]:
    """Covariance of prediction and label, and variance of the prediction."""
    d, n = len(covariance), _points(length, debiased)
    inner = (n + 1) * covariance + (np.trace(covariance) + d * noise) * np.eye(d)
    gain = n / (d * length) * np.trace(covariance @ steps @ covariance)
    cost = n / (d * length**2) * np.trace(steps @ inner @ covariance @ steps @ covariance)
    return float(gain), float(cost)


def zero_risk(noise: float) -> float:
    """Risk of predicting nothing, at Sigma = I."""
    return 1.0 + noise


def one_head(d: int, length: int, noise: float) -> tuple[float, float, float]:
    """(omega, mu, risk) at which one head minimises the reduced loss."""
    share = 1.0 / (1.0 + math.e * (1.0 + noise) * d / length)
    return 1.0 / math.sqrt(d), math.sqrt(d) * share, 1.0 + noise - share


def limit_gd_risk(ratio: float, noise: float) -> float:
    """Lowest risk of either gradient descent as d and L grow with d / L = `ratio`."""
    return 1.0 + noise - 1.0 / (1.0 + ratio * (1.0 + noise))


def limit_bayes_risk(ratio: float, noise: float) -> float:
    """Bayes risk in the same limit."""
    gap = (1.0 - ratio) / ratio
    return 0.5 * (noise - gap + math.sqrt(4.0 * noise + (noise + gap) ** 2))


def bayes_risk(x: np.ndarray, noise: float) -> np.ndarray:
    """Bayes risk given the points `x` [..., key, coordinate], mean over queries at Sigma = I."""
    d = x.shape[-1]
    precision = np.swapaxes(x, -1, -2) @ x / noise + d * np.eye(d)
    return noise + np.trace(np.linalg.inv(precision), axis1=-2, axis2=-1)


def matrices(task: Task, *, debiased: bool) -> np.ndarray:
    """`best_matrix` of every task on its own coordinates, zero elsewhere, [task, d, d]."""
    found = np.zeros((task.n_tasks, task.d, task.d))
    for t, support in enumerate(task.supports):
        places = np.ix_(support, support)
        found[t][places] = best_matrix(
            task.covariance[places], task.length, task.noise, debiased=debiased
        )
    return found


def centred(prompts: Prompts) -> Prompts:
    """The prompts with the mean label taken off the labels of the points."""
    return replace(prompts, y=prompts.y - prompts.y.mean(axis=1, keepdims=True))


def gd(prompts: Prompts, steps: np.ndarray) -> np.ndarray:
    """Predictions [prompt, task] of one step: (1/L) sum_l y_lt x_l' steps_t x_q.

    `steps` [task, key coordinate, query coordinate].  Of `centred` prompts it is debiased.
    """
    sums = np.swapaxes(prompts.y, 1, 2) @ prompts.x / prompts.x.shape[1]
    return np.einsum("pti,tij,pj->pt", sums, steps, prompts.x_q, optimize=True)


def bayes(prompts: Prompts, task: Task) -> np.ndarray:
    """Best predictions [prompt, task]: ridge regression without intercept, penalty |S_t| s2."""
    found = np.empty(prompts.y_q.shape)
    for t, support in enumerate(map(list, task.supports)):
        x = prompts.x[..., support].astype(np.float64)
        gram = np.swapaxes(x, 1, 2) @ x + len(support) * task.noise * np.eye(len(support))
        beta = np.linalg.solve(gram, np.swapaxes(x, 1, 2) @ prompts.y[..., [t]])
        found[:, t] = np.einsum("pi,pi->p", prompts.x_q[:, support], beta[..., 0])
    return found


def kernels(prompts: Prompts, omega: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """Predictions [prompt, task] of a sum of kernel regressors, one per entry of omega and mu.

    sum_h mu_h sum_l softmax_l(omega_h x_l' x_q) y_l: what heads of the emergent pattern compute.
    """
    scores = np.einsum("pli,pi->pl", prompts.x, prompts.x_q)
    logits = np.multiply.outer(omega, scores)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("h,hpl,plt->pt", mu, weights, prompts.y, optimize=True)


def baselines(prompts: Prompts, task: Task) -> dict[str, float]:
    """Risks on these prompts by name, each predictor at its best for their length.

    "GD" has the best matrix, "plain GD" the best multiple of the identity, per task; "linear" is
    "GD" as it was best at the task's own length, "unscaled" if it goes on dividing by that length.
    "raised" are the two best with every label one higher.
    """
    there = replace(task, length=prompts.x.shape[1])
    best = matrices(there, debiased=False)
    plain = [
        best_step(task.covariance[np.ix_(s, s)], there.length, task.noise) * np.diag(mask)
        for s, mask in zip(task.supports, task.masks, strict=True)
    ]
    debiased, kept = matrices(there, debiased=True), matrices(task, debiased=False)
    higher = prompts.raised(1.0)
    predicted = {
        "zero": (np.zeros_like(prompts.y_q), prompts),
        "GD": (gd(prompts, best), prompts),
        "plain GD": (gd(prompts, np.array(plain)), prompts),
        "debiased GD": (gd(centred(prompts), debiased), prompts),
        "ridge": (bayes(prompts, task), prompts),
        "linear": (gd(prompts, kept), prompts),
        "linear, unscaled": (gd(prompts, kept * there.length / task.length), prompts),
        "GD, raised": (gd(higher, best), higher),
        "debiased GD, raised": (gd(centred(higher), debiased), higher),
    }
    return {name: risk(guess, seen) for name, (guess, seen) in predicted.items()}


# What is drawn beside the risk over prompt lengths n, by its name in `baselines`; the step of
# linear attention is the best one at the length of training L, divided by n or by L.
_DRAWN = {
    "zero": "zero",
    "GD": "GD",
    "debiased GD": "debiased GD",
    "ridge": "ridge",
    "linear": "linear, 1/n",
    "linear, unscaled": "linear, 1/L",
}


def references(prompts: Prompts, task: Task) -> dict[str, float]:
    """Risks on these prompts of what a network is compared with at their length n, by name.

    "one head" is the kernel regressor that minimises the reduced loss at n (`one_head`); left out
    where it has none, for several tasks or correlated coordinates.
    """
    known = baselines(prompts, task)
    found = {name: known[key] for key, name in _DRAWN.items()}
    if task.n_tasks == 1 and not task.correlation:
        omega, mu, _ = one_head(task.d, prompts.x.shape[1], task.noise)
        found["one head"] = risk(kernels(prompts, np.array([omega]), np.array([mu])), prompts)
    return found


def risk(predicted: np.ndarray, prompts: Prompts) -> float:
    """Mean squared error over prompts and tasks."""
    return float(np.mean((predicted - prompts.y_q) ** 2, dtype=np.float64))
