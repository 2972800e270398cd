"""The evidence of the laboratory: everything its laws and figures are read from, computed here.

Seeds are repetitions: each draws prompts of its own.  What a law says holds for the worst of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from workbench.zoo.testtime import curves, injectivity, local
from workbench.zoo.testtime.estimators import local_linear, softmax
from workbench.zoo.testtime.task import KINDS, Prompts, Task

ZUO = "Zuo et al. 2025, arXiv 2510.01450"
HAN = "Han et al. 2024, arXiv 2412.06590"
LENGTHS = (16, 64, 256, 1024)
STREAM = 256
DRIFTING = ("drift", "unshifted")
FAR, NEAR = 1e4, 1.0  # bandwidths: as good as infinite, and an ordinary one
STIFF = 1e9  # a penalty as good as infinite
GLOBAL = ("linear", "mesa")


@dataclass(frozen=True, eq=False)
class Evidence:
    """`errors` by task (`curves.errors`), `streams` of the two drifting ones, `limits` of local
    linear attention, `pairs` of queries, `local` mass."""

    errors: Mapping[str, xr.Dataset]
    streams: Mapping[str, xr.Dataset]
    limits: pd.DataFrame
    pairs: pd.DataFrame
    local: pd.DataFrame

    def error(self, task: str, estimator: str, length: int) -> np.ndarray:
        """Errors [seed] as shares of the mean square of the targets."""
        found = self.errors[task]["error"]
        return found.sel(estimator=estimator, length=length).to_numpy()

    def apart(self, pattern: str, pair: str, column: str = "distance") -> np.ndarray:
        """A column of `pairs`, [seed]."""
        rows = (self.pairs["pattern"] == pattern) & (self.pairs["pair"] == pair)
        return self.pairs.loc[rows, column].to_numpy(float)

    def nearby(self, pattern: str) -> pd.DataFrame:
        """Rows of `local` of one pattern, one per seed."""
        return self.local.loc[self.local["pattern"] == pattern]


def look(
    seeds: tuple[int, ...], count: int, lengths: tuple[int, ...] = LENGTHS, stream: int = STREAM
) -> Evidence:
    """The evidence from `count` prompts per seed and length."""
    return Evidence(
        {kind: curves.errors(Task(kind), lengths, seeds, count) for kind in KINDS},
        {kind: curves.streams(Task(kind), stream, seeds, count) for kind in DRIFTING},
        pd.DataFrame([limits(seed) for seed in seeds]),
        pd.concat([injectivity.distances(seed) for seed in seeds], ignore_index=True),
        pd.concat([local.measured(seed) for seed in seeds], ignore_index=True),
    )


def limits(seed: int, length: int = 64, count: int = 16) -> dict[str, float]:
    """How far local linear attention is from its two limits, there and with ordinary settings.

    Distances are ||difference|| / ||reference|| of predictions on the quadratic task: to least
    squares with intercept (bandwidth `FAR`, control `NEAR`), and to softmax attention of the same
    bandwidth (penalty `STIFF`, control that of the estimator); `sum` is the largest |1 - sum of
    weights|, `least` the smallest weight.
    """
    prompts = Task("quadratic").prompts(count, length, [seed, 5])
    k, q, v = prompts.keys, prompts.queries, prompts.values
    ols, constant = with_intercept(prompts), softmax(k, q, NEAR) @ v
    ordinary = local_linear(k, q, NEAR)

    def distance(pattern: np.ndarray, reference: np.ndarray) -> float:
        return float(np.linalg.norm(pattern @ v - reference) / np.linalg.norm(reference))

    return {
        "seed": seed,
        "to_ols": distance(local_linear(k, q, FAR), ols),
        "to_ols_near": distance(ordinary, ols),
        "to_softmax": distance(local_linear(k, q, NEAR, penalty=STIFF), constant),
        "to_softmax_loose": distance(ordinary, constant),
        "sum": float(np.abs(ordinary.sum(axis=-1) - 1.0).max()),
        "least": float(ordinary.min()),
        "least_softmax": float(softmax(k, q, NEAR).min()),
    }


def with_intercept(prompts: Prompts) -> np.ndarray:
    """Predictions [prompt, query, value] of ordinary least squares with an intercept."""
    from sklearn.linear_model import LinearRegression

    fits = zip(prompts.keys, prompts.values, prompts.queries, strict=True)
    return np.stack([LinearRegression().fit(k, v).predict(q) for k, v, q in fits])


def slope(evidence: Evidence, task: str, estimator: str, lengths: tuple[int, ...]) -> np.ndarray:
    """Slope of log error against log length, [seed]."""
    errors = np.log([evidence.error(task, estimator, n) for n in lengths])
    return np.polyfit(np.log(lengths), errors, 1)[0]


def over_best_global(evidence: Evidence, task: str, length: int) -> np.ndarray:
    """Error of local linear attention by that of the better global fit, [seed]."""
    best = np.min([evidence.error(task, name, length) for name in GLOBAL], axis=0)
    return evidence.error(task, "local linear", length) / best


def over_both(evidence: Evidence, task: str, length: int) -> np.ndarray:
    """Error of local linear attention by that of the better of softmax and mesa, [seed]."""
    others = [evidence.error(task, name, length) for name in ("softmax", "mesa")]
    return evidence.error(task, "local linear", length) / np.min(others, axis=0)


def settled(evidence: Evidence, task: str, estimator: str, segments: int = 4) -> np.ndarray:
    """Error in the second half of the last segment of a stream, mean over positions, [seed]."""
    error = evidence.streams[task]["error"].sel(estimator=estimator)
    last = int(error["position"][-1]) + 1
    from_here = last - last // segments // 2
    return error.where(error["position"] >= from_here, drop=True).mean("position").to_numpy()


def settled_over_mesa(evidence: Evidence, task: str) -> np.ndarray:
    """The same of local linear attention by that of the mesa layer, [seed]."""
    return settled(evidence, task, "local linear") / settled(evidence, task, "mesa")
