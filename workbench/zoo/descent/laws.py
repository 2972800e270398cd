"""The evidence of the laboratory: runs, the construction tried out, the simple learners.

A layer is solved if its loss ends below halfway between zero and the construction; laws about what
was found are read from the solved runs, the others are counted and shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from workbench.zoo.claims import last
from workbench.zoo.descent import construction, learners
from workbench.zoo.descent.task import Uniform, loss
from workbench.zoo.regression.task import Prompts, Task

OSWALD = "von Oswald et al. 2022, arXiv 2212.07677"
GARG = "Garg et al. 2022, arXiv 2208.01066"
AT_SIZE = f"{GARG}, trained 280 times longer"
SOLVED = 0.75  # of the loss of predicting zero; the construction has .495
DEPTHS = (1, 2, 3, 5, 10)
LENGTHS = (2, 5, 8, 10, 12, 15, 18, 19, 20, 21, 22, 25, 30, 40, 60)
SPARSE_LENGTHS = (5, 10, 15)
SAMPLED = 40_000  # prompts behind a best step
D, NOISE, NONZERO = 20, 0.25, (0, 1, 2)

Run = xr.Dataset


@dataclass(frozen=True, eq=False)
class Evidence:
    """`runs` by setting; `exact`: the construction against gradient descent; `steps`: the best
    step against its closed form; `depths`: loss by number of layers; `plain`, `noisy`: errors
    [learner, examples]; `sparse`, `dense`: those of the Lasso."""

    runs: Mapping[str, Sequence[Run]]
    exact: pd.DataFrame
    steps: pd.DataFrame
    depths: pd.DataFrame
    plain: xr.DataArray
    noisy: xr.DataArray
    sparse: xr.DataArray
    dense: xr.DataArray

    def of(self, *settings: str) -> list[Run]:
        """Runs of these settings, in order; settings that were not made are left out."""
        return [run for setting in settings for run in self.runs.get(setting, ())]

    def solved(self, *settings: str) -> list[Run]:
        """Those whose layer has found most of one step of gradient descent."""
        return [run for run in self.of(*settings) if is_solved(run)]


def is_solved(run: Run) -> bool:
    """Whether a layer ended nearer to the construction than to zero."""
    return last(run, "loss") < SOLVED * construction.zero_loss(Uniform())


def look(runs: Mapping[str, Sequence[Run]], *, count: int = 4000, lasso: int = 100) -> Evidence:
    """The evidence: what was trained, beside what is computed here on `count` prompts (`lasso` for
    the Lasso)."""
    task, plain = Uniform(), Task(d=D, noise=0.0)
    return Evidence(
        runs,
        pd.DataFrame([exactness(task.prompts(100, seed), seed) for seed in range(3)]),
        pd.DataFrame([steps(half, seed, SAMPLED) for half in (0.5, 1.0) for seed in range(3)]),
        depth_table(task.prompts(count, 5)),
        learners.errors(plain, LENGTHS, count, 1),
        learners.errors(Task(d=D, noise=NOISE), LENGTHS, count, 2),
        learners.lasso_errors(Task(d=D, noise=0.0, supports=(NONZERO,)), SPARSE_LENGTHS, lasso, 3),
        learners.lasso_errors(plain, SPARSE_LENGTHS, lasso, 3),
    )


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference by largest wanted value."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def exactness(prompts: Prompts, seed: int) -> dict[str, float]:
    """Distances of layers to gradient descent in float64: `one`, `five`, and of the same layers to
    twice the step (`wrong_step`) and to four steps (`fewer`)."""
    step = construction.best_step(Uniform())
    layer = construction.gd_layer(prompts.x.shape[2], step)
    one, five = construction.predict([layer], prompts), construction.predict([layer] * 5, prompts)
    return {
        "seed": seed,
        "one": distance(one, construction.descend(prompts, step, 1)),
        "wrong_step": distance(one, construction.descend(prompts, 2.0 * step, 1)),
        "five": distance(five, construction.descend(prompts, step, 5)),
        "fewer": distance(five, construction.descend(prompts, step, 4)),
    }


def steps(half: float, seed: int, count: int) -> dict[str, float]:
    """The best step on `count` prompts; |it over its closed form - 1| (`off`), and over that of
    Gaussian coordinates of the same variance, E x^4 = 3 s^2 (`off_gaussian`)."""
    task = Uniform(half=half)
    found = construction.sampled_step(task.prompts(count, [seed, 9]))
    s = task.second
    gaussian = 1.0 / (s * (task.length + task.d + 1))
    return {
        "half": half,
        "seed": seed,
        "step": found,
        "off": abs(found / construction.best_step(task) - 1.0),
        "off_gaussian": abs(found / gaussian - 1.0),
    }


def depth_table(prompts: Prompts) -> pd.DataFrame:
    """Loss by that of zero for each number of layers, all with the same step: the best one for that
    number, and the best one for a single layer; beside it one layer that goes as far at once."""
    zero = loss(np.zeros_like(prompts.y_q), prompts)
    one, _ = construction.tuned(prompts, 1)
    rows = []
    for depth in DEPTHS:
        step, least = construction.tuned(prompts, depth)
        at_once = loss(construction.descend(prompts, depth * one, 1), prompts)
        kept = loss(construction.descend(prompts, one, depth), prompts)
        rows.append(
            {
                "layers": depth,
                "step": step,
                "loss": least / zero,
                "same_step": kept / zero,
                "at_once": at_once / zero,
            }
        )
    return pd.DataFrame(rows)


def beside(run: Run, predictor: str, examples: int | None = None) -> float:
    """Error of a transformer by that of a learner on so many examples, by default all it sees."""
    shown = int(run["examples"].max()) if examples is None else examples
    known = run["by_examples_baseline"].sel(predictor=predictor, examples=shown)
    return float(run["by_examples"].isel(step=-1).sel(examples=shown) / known)


def above_least_squares(run: Run) -> float:
    """Largest excess of a transformer over least squares, over numbers of examples."""
    known = run["by_examples_baseline"].sel(predictor="least squares")
    return float((run["by_examples"].isel(step=-1) - known).max())


def off_line(errors: xr.DataArray, learner: str, examples: Sequence[int]) -> float:
    """Largest distance of a learner to the closed form of least squares."""
    wanted = [learners.least_squares_error(D, n) for n in examples]
    return float(np.abs(errors.sel(learner=learner, examples=list(examples)) - wanted).max())


def off_averaging(errors: xr.DataArray, learner: str, examples: Sequence[int]) -> float:
    """Largest relative distance of a learner to the closed form of averaging."""
    wanted = np.array([learners.averaging_error(D, n) for n in examples])
    return float(np.abs(errors.sel(learner=learner, examples=list(examples)) / wanted - 1.0).max())


def peak(errors: xr.DataArray, learner: str) -> float:
    """Error with as many examples as coordinates by that with half as many."""
    found = errors.sel(learner=learner)
    return float(found.sel(examples=D) / found.sel(examples=D // 2))


def lasso_gain(errors: xr.DataArray) -> list[float]:
    """Error of the Lasso by that of least squares, for each number of examples."""
    return (errors.sel(learner="Lasso") / errors.sel(learner="least squares")).to_numpy().tolist()
