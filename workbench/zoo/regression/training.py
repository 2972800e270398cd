"""Recipes to stacks of `workbench.zoo.lab`, the run itself, and tests of what was trained.

from workbench.zoo import claims
from workbench.zoo.regression import laws, recipe, training
from workbench.zoo.regression.claims import CLAIMS
recipes = recipe.small()
runs = training.runs(training.train("runs/regression", recipes), recipes)
for found in claims.findings(laws.look(runs), CLAIMS): print(found.law.verdict, found.law.name)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from workbench.zoo import lab
from workbench.zoo.regression import closed, measure, model
from workbench.zoo.regression.recipe import Recipe
from workbench.zoo.regression.task import Prompts
from workbench.zoo.trajectory import Results

NAME = "icl-regression"
EVALUATION = 4096  # prompts behind every logged risk
PROMPTS_SEED, EVALUATION_SEED, TEST_SEED = 2503, 12_734, 77
LENGTHS = (10, 20, 40, 80, 160, 320)
SWEPT = (1, 2)  # numbers of heads tested at every length
SWEEP_SHARES = (0.125, 0.25, 0.5, 1, 2, 4)  # lengths of the logged sweep, by that of training
SWEEP, SWEEP_SEED = 512, 42  # prompts behind it, cut to every length: the same queries at all
TEST_KEYS = 1_200_000  # points of all test prompts of one length
FLOOR = 0.02  # where the cosine of the rate ends
_CHUNK = 500_000  # weights of all heads and runs in one pass
_STORED_SMALL = ("kq", "ov", "e")  # as float16: pictures, all scalars are computed before


@dataclass(frozen=True)
class Bench:
    """One recipe with everything that is computed once: the functions of its stack."""

    recipe: Recipe

    def start(self) -> model.Parameters:
        settings = self.recipe.settings
        shape = model.shape_of(self.recipe.task, self.recipe.heads)
        return model.start(shape, [s.seed for s in settings], [s.signs for s in settings])

    def batch(self, step: int) -> Prompts:
        """The prompts of one step, the same for every run: runs differ by their start alone."""
        return self.recipe.task.prompts(self.recipe.batch, [PROMPTS_SEED, step])

    def optimiser(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.recipe.rate)

    @cached_property
    def evaluation(self) -> Prompts:
        return self.recipe.task.prompts(EVALUATION, EVALUATION_SEED)

    @cached_property
    def sweep(self) -> dict[int, Prompts]:
        """The prompts of the logged sweep, by length."""
        task = self.recipe.task
        lengths = sorted({max(1, round(share * task.length)) for share in SWEEP_SHARES})
        longest = task.prompts(SWEEP, SWEEP_SEED, lengths[-1])
        return {length: longest.first(length) for length in lengths}

    @cached_property
    def references(self) -> dict[str, dict[int, float]]:
        """Risks of the predictors on those prompts, by predictor and length."""
        known = {
            n: closed.references(prompts, self.recipe.task) for n, prompts in self.sweep.items()
        }
        return {name: {n: known[n][name] for n in known} for name in known[self.recipe.task.length]}

    def measure(self, parameters: model.Parameters) -> xr.Dataset:
        """Everything of `measure.VARIABLES` now, with labels, without `step`."""
        task = self.recipe.task
        kq, ov = (part.numpy() for part in model.circuits(parameters))
        found = measure.of_circuits(kq, ov, task)
        predicted = predict(parameters, self.evaluation)
        found = found.merge(
            measure.of_predictions(predicted, found["eta"].to_numpy(), self.evaluation, task)
        )
        risks = [
            ((predict(parameters, prompts) - prompts.y_q).astype(float) ** 2).mean((1, 2))
            for prompts in self.sweep.values()
        ]
        found["risk_by_length"] = (("run", "length"), np.stack(risks, axis=1))
        own = found["risk_by_length"].isel(length=list(self.sweep).index(task.length))
        known = [risks[task.length] for risks in self.references.values()]
        found["risk_over"] = (("run", "predictor"), own.to_numpy()[:, None] / known)
        data = found.astype("float32")
        data = data.assign({name: data[name].astype("float16") for name in _STORED_SMALL})
        return data.assign_coords(self.labels)

    @cached_property
    def labels(self) -> dict:
        """Coordinates of everything that is logged."""
        settings, task = self.recipe.settings, self.recipe.task
        places = measure.coordinates(task)
        beside = [list(risks.values()) for risks in self.references.values()]
        return {
            "run": [setting.run for setting in settings],
            "setting": ("run", [setting.name for setting in settings]),
            "seed": ("run", [setting.seed for setting in settings]),
            "head": range(self.recipe.heads),
            "task": range(task.n_tasks),
            "coordinate": places,
            "key_coordinate": places[: task.d],
            "query_coordinate": places[: task.d],
            "length": list(self.sweep),
            "predictor": list(self.references),
            "risk_by_length_baseline": (("predictor", "length"), beside),
        }

    def stack(self) -> lab.Stack:
        """The recipe as something the engine trains."""
        recipe = self.recipe
        return lab.Stack(
            name=recipe.name,
            settings=recipe.to_json(),
            runs=tuple(setting.run for setting in recipe.settings),
            steps=recipe.steps,
            logged=recipe.logged,
            start=self.start,
            batch=self.batch,
            loss=model.losses,
            optimiser=self.optimiser,
            measure=self.measure,
            variables=measure.VARIABLES,
            schedule=partial(lab.cosine, steps=recipe.steps, floor=FLOOR),
        )


def predict(parameters: model.Parameters, prompts: Prompts) -> np.ndarray:
    """Predictions [run, prompt, task], a few prompts at a time."""
    runs, heads = parameters["q"].shape[:2]
    n, length, _ = prompts.x.shape
    each = max(1, _CHUNK // (length * runs * heads))
    with torch.no_grad():
        parts = [
            model.predict(parameters, prompts.part(slice(i, i + each))) for i in range(0, n, each)
        ]
    return torch.cat(parts, dim=1).numpy()


def train(
    folder: str | Path, recipes: Sequence[Recipe], progress: lab.Progress | None = None
) -> Results:
    """Train the recipes into `folder`, or go on where an earlier start stopped."""
    return lab.run(NAME, tuple(Bench(recipe).stack() for recipe in recipes), folder, progress)


def lengths_of(recipe: Recipe) -> tuple[int, ...]:
    """Prompt lengths at which the final network is tested: the sweep for one task at Sigma = I."""
    task = recipe.task
    plain = task.n_tasks == 1 and not task.correlation
    return LENGTHS if plain and recipe.heads in SWEPT else (task.length,)


def examine(results: Results, recipe: Recipe) -> xr.Dataset:
    """Risks of the final networks on fresh prompts of several lengths, nothing retuned.

    `final` [run, length] and, on the same prompts, `baseline` [predictor, length], in squared
    labels.
    """
    file = results.weights(recipe.name)
    parameters = {name: torch.from_numpy(np.array(file[name])) for name in file}
    lengths = lengths_of(recipe)
    final, baseline = [], []
    with lab.one_thread():
        for length in lengths:
            prompts = recipe.task.prompts(TEST_KEYS // length, [TEST_SEED, length], length)
            errors = predict(parameters, prompts) - prompts.y_q
            final.append((errors.astype(float) ** 2).mean((1, 2)))
            baseline.append(closed.baselines(prompts, recipe.task))
    return xr.Dataset(
        {
            "final": (("run", "length"), np.stack(final, axis=1)),
            "baseline": (("predictor", "length"), [[b[p] for b in baseline] for p in baseline[0]]),
        },
        coords={
            "run": [setting.run for setting in recipe.settings],
            "length": list(lengths),
            "predictor": list(baseline[0]),
            "trained_length": recipe.task.length,
        },
    )


def runs(results: Results, recipes: Sequence[Recipe]) -> dict[str, list[xr.Dataset]]:
    """Trajectory and test of every single run, by setting."""
    found: dict[str, list[xr.Dataset]] = {}
    for recipe in recipes:
        # The logged sweep has other lengths, and few prompts; the laws read the test.
        logged = results.trajectories[recipe.name].drop_dims(["length", "predictor"])
        data = logged.merge(examine(results, recipe))
        for i, setting in enumerate(recipe.settings):
            found.setdefault(setting.name, []).append(data.isel(run=i))
    return found
