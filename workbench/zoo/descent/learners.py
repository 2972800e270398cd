"""Simple learners of linear functions, and their errors for every number of examples.

The baselines of Garg et al. 2022 (arXiv 2208.01066, section 3 and appendix) on x ~ N(0, I) and
labels of variance one (`workbench.zoo.regression.task`); their errors divided by d.  Known in
closed form without noise (derived): least squares 1 - n/d below n = d and 0 from there; averaging
(d + 1) / n; the best single step of gradient descent (d + 1) / (n + d + 1).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lasso_path

from workbench.errors import WorkbenchError
from workbench.zoo.regression import closed
from workbench.zoo.regression.task import Prompts, Task

NEIGHBOURS = 3
ALPHAS = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # those of Garg et al.
_ITERATIONS, _TOLERANCE = 500_000, 1e-6


def least_squares(prompts: Prompts) -> np.ndarray:
    """Predictions [prompt, task] of the least-squares fit of smallest norm, without intercept."""
    inverse = np.linalg.pinv(prompts.x.astype(float))
    return np.einsum("pi,pik,pkt->pt", prompts.x_q, inverse, prompts.y, optimize=True)


def averaging(prompts: Prompts) -> np.ndarray:
    """Predictions [prompt, task] of w = mean y x: gradient descent with a step of one."""
    return closed.gd(prompts, np.eye(prompts.x.shape[2])[None])


def one_step(prompts: Prompts, noise: float) -> np.ndarray:
    """Predictions [prompt, task] of one step of gradient descent, the best for this length."""
    _, length, d = prompts.x.shape
    step = closed.best_step(np.eye(d), length, noise)
    return closed.gd(prompts, step * np.eye(d)[None])


def neighbours(prompts: Prompts) -> np.ndarray:
    """Predictions [prompt, task]: the mean label of the `NEIGHBOURS` nearest examples, of all where
    there are fewer."""
    count = min(NEIGHBOURS, prompts.x.shape[1])
    apart = ((prompts.x - prompts.x_q[:, None]) ** 2).sum(axis=2)
    near = np.argpartition(apart, count - 1, axis=1)[:, :count, None]
    return np.take_along_axis(prompts.y, near, axis=1).mean(axis=1)


def lasso(prompts: Prompts) -> np.ndarray:
    """Predictions [alpha, prompt] of the Lasso without intercept, one per entry of `ALPHAS`.

    Raises where the solver does not converge.
    """
    found = np.empty((len(ALPHAS), len(prompts.x)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        for i, (x, y) in enumerate(zip(prompts.x, prompts.y[..., 0], strict=True)):
            try:
                path: Any = lasso_path
                _, weights, _ = path(
                    x.astype(float),
                    y.astype(float),
                    alphas=ALPHAS,
                    max_iter=_ITERATIONS,
                    tol=_TOLERANCE,
                )
            except ConvergenceWarning as error:
                raise WorkbenchError(
                    f"the Lasso did not converge on prompt {i} ({error}); give it more iterations."
                ) from None
            found[:, i] = prompts.x_q[i] @ weights
    return found


def errors(task: Task, lengths: Sequence[int], count: int, seed: int) -> xr.DataArray:
    """Mean squared error [learner, examples] on the same `count` prompts per number of examples.

    "ridge" is Bayes with noise; without noise it is least squares and left out.
    """
    rows: dict[str, list[float]] = {}
    for length in lengths:
        prompts = task.prompts(count, [seed, length], length)
        predicted = {
            "zero": np.zeros_like(prompts.y_q),
            "averaging": averaging(prompts),
            "3-NN": neighbours(prompts),
            "one step of GD": one_step(prompts, task.noise),
            "least squares": least_squares(prompts),
        }
        if task.noise > 0:
            predicted["ridge"] = closed.bayes(prompts, task)
        for name, guess in predicted.items():
            rows.setdefault(name, []).append(closed.risk(guess, prompts))
    return xr.DataArray(
        list(rows.values()), dims=("learner", "examples"),
        coords={"learner": list(rows), "examples": list(lengths)},
    )  # fmt: skip


def lasso_errors(task: Task, lengths: Sequence[int], count: int, seed: int) -> xr.DataArray:
    """Mean squared error [learner, examples] of the Lasso with the best alpha, and least squares.

    alpha is chosen on as many other prompts.
    """
    found = []
    for length in lengths:
        others = task.prompts(count, [seed + 1, length], length)
        prompts = task.prompts(count, [seed, length], length)
        best = int(((lasso(others) - others.y_q[:, 0]) ** 2).mean(axis=1).argmin())
        error = float(((lasso(prompts)[best] - prompts.y_q[:, 0]) ** 2).mean())
        found.append([error, closed.risk(least_squares(prompts), prompts)])
    return xr.DataArray(
        np.array(found).T, dims=("learner", "examples"),
        coords={"learner": ["Lasso", "least squares"], "examples": list(lengths)},
    )  # fmt: skip


def least_squares_error(d: int, length: int) -> float:
    """Error of `least_squares` without noise.

    >>> least_squares_error(20, 5), least_squares_error(20, 40)
    (0.75, 0.0)
    """
    return max(0.0, 1.0 - length / d)


def averaging_error(d: int, length: int) -> float:
    """Error of `averaging` without noise."""
    return closed.gd_risk(np.eye(d), np.eye(d), length, 0.0)
