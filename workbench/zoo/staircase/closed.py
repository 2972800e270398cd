"""What must come out of the staircase, in closed form: plateaus, entries, times.

With e_d = E beta_d^2 (`task.Task.second`) a prediction matrix that is diag(M_d) on the directions
learned and zero on the others has the loss

    trace(Lambda) - sum_d lambda_d (2 lambda_d M_d - e_d M_d^2)

lowest at M_d = lambda_d / e_d, where direction d takes off lambda_d^3 / e_d.  These are the fixed
points: any set of learned directions (Zhang et al. 2025, arXiv 2501.16265; derived here).  The
plateaus of the staircase are the sets of the largest eigenvalues.

A rank-one head aligned with direction d, value, key and query of equal size w, grows as
w' = 2 lambda^2 w^2 (1 - w^3 / M_d); a merged head aligned with the identity, on white directions,
as s' = 4 lambda^2 sqrt(D) s (1 - s / (sqrt(D) M_d)), s the norm of its matrix.  Time counts steps
times rate.
"""

from __future__ import annotations

import numpy as np

from workbench.zoo import growth
from workbench.zoo.staircase.task import Task


def entries(task: Task) -> np.ndarray:
    """Diagonal of the best prediction matrix, [direction]."""
    return task.variances / task.second()


def endless(task: Task) -> np.ndarray:
    """The same for endless prompts: the inverse covariance, [direction]."""
    return 1.0 / task.variances


def heights(task: Task) -> np.ndarray:
    """Loss after the 0, 1, ..., D largest directions are learned, squared label, [count]."""
    gains = np.sort(task.variances**2 * entries(task))[::-1]
    return task.variances.sum() - np.r_[0.0, np.cumsum(gains)]


def endless_heights(task: Task) -> np.ndarray:
    """The same for endless prompts: what the largest eigenvalues leave of their sum, [count]."""
    lam = np.sort(task.variances)[::-1]
    return lam.sum() - np.r_[0.0, np.cumsum(lam)]


def components(task: Task, count: int) -> np.ndarray:
    """Prediction matrix of regression on the `count` largest directions, [key, query]."""
    order = np.argsort(-task.variances, kind="stable")
    kept = np.zeros(task.d)
    kept[order[:count]] = entries(task)[order[:count]]
    return np.diag(kept)


def rank_one_time(task: Task, direction: int, start: float, share: float = 0.5) -> float:
    """Time until an aligned rank-one head has `share` of its entry, from value = key = query =
    `start`."""
    end = float(entries(task)[direction]) ** (1.0 / 3.0)
    rate = 2.0 * float(task.variances[direction]) ** 2
    return growth.time(start, end * share ** (1.0 / 3.0), rate, power=2, order=3, end=end)


def merged_time(task: Task, start: float, share: float = 0.5) -> float:
    """Time until an aligned merged head on white directions has `share` of its entries, from value
    = norm of its matrix = `start`."""
    end = float(np.sqrt(task.d) * entries(task)[0])
    rate = 4.0 * float(task.variances[0]) ** 2 * np.sqrt(task.d)
    return growth.time(start**2, end * share, float(rate), power=1, order=1, end=end)
