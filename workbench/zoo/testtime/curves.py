"""Errors of the estimators, each with the setting that is best on other prompts.

An error is a share: sum |prediction - target|^2 / sum |target|^2 over prompts, queries and values;
predicting zero gives 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from workbench.zoo.testtime.estimators import ESTIMATORS, Estimator, causal
from workbench.zoo.testtime.task import Prompts, Task

CHOOSING = 10_000  # seeds from here on draw the prompts on which settings are chosen
STREAM_FROM = 1  # first position with a key before it


def share(predicted: np.ndarray, targets: np.ndarray, axis: tuple[int, ...] | None = None):
    """Squared error by squared target, sums over `axis` (all)."""
    return ((predicted - targets) ** 2).sum(axis) / (targets**2).sum(axis)


def error(estimator: Estimator, setting: float, prompts: Prompts) -> float:
    """Error of one estimator at the queries of these prompts."""
    pattern = estimator.pattern(prompts.keys, prompts.queries, setting)
    return float(share(pattern @ prompts.values, prompts.targets))


def best(estimator: Estimator, prompts: Prompts) -> float:
    """The setting of its grid with the lowest error on these prompts."""
    return min(estimator.grid, key=lambda setting: error(estimator, setting, prompts))


def errors(task: Task, lengths: Sequence[int], seeds: Sequence[int], count: int) -> xr.Dataset:
    """`error` [length, estimator, seed] and the `setting` chosen, `count` prompts per seed."""
    found, chosen = [], []
    for length in lengths:
        others = task.prompts(count, length, [CHOOSING, length])
        settings = {e.name: best(e, others) for e in ESTIMATORS.values()}
        tested = [task.prompts(count, length, [seed, length]) for seed in seeds]
        chosen.append(list(settings.values()))
        found.append(
            [[error(ESTIMATORS[n], setting, p) for p in tested] for n, setting in settings.items()]
        )
    return xr.Dataset(
        {
            "error": (("length", "estimator", "seed"), found),
            "setting": (("length", "estimator"), chosen),
        },
        coords={"length": list(lengths), "estimator": list(ESTIMATORS), "seed": list(seeds)},
    )


def read_along(estimator: Estimator, setting: float, prompts: Prompts) -> np.ndarray:
    """Predictions [prompt, position, value] of every value but the first, before it is known."""
    keys = prompts.keys
    mask = causal(keys.shape[1] - 1)
    pattern = estimator.pattern(keys[:, :-1], keys[:, 1:], setting, mask)
    return pattern @ prompts.values[:, :-1]


def streams(task: Task, length: int, seeds: Sequence[int], count: int) -> xr.Dataset:
    """`error` [estimator, seed, position] along sequences, settings chosen on other ones."""

    def along(estimator: Estimator, setting: float, prompts: Prompts) -> np.ndarray:
        return share(read_along(estimator, setting, prompts), prompts.values[:, 1:], (0, 2))

    def whole(estimator: Estimator, setting: float, prompts: Prompts) -> float:
        return float(share(read_along(estimator, setting, prompts), prompts.values[:, 1:]))

    others = task.prompts(count, length, [CHOOSING, length], 1)
    tested = [task.prompts(count, length, [seed, length], 1) for seed in seeds]
    settings = {
        e.name: min(e.grid, key=lambda setting, e=e: whole(e, setting, others))
        for e in ESTIMATORS.values()
    }
    found = [[along(ESTIMATORS[n], s, prompts) for prompts in tested] for n, s in settings.items()]
    return xr.Dataset(
        {
            "error": (("estimator", "seed", "position"), found),
            "setting": ("estimator", list(settings.values())),
        },
        coords={
            "estimator": list(ESTIMATORS),
            "seed": list(seeds),
            "position": np.arange(STREAM_FROM, length),
        },
    )
