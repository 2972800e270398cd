"""Recipes to stacks of `workbench.zoo.lab`, and the run itself.

from workbench.zoo import claims
from workbench.zoo.scansnap import laws, recipe, training
from workbench.zoo.scansnap.claims import CLAIMS
results = training.train("runs/scansnap", recipe.small())
for found in claims.findings(laws.look(results), CLAIMS): print(found.law.verdict, found.law.name)
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
from workbench.zoo.scansnap import measure, model
from workbench.zoo.scansnap.recipe import ADAM, Recipe
from workbench.zoo.trajectory import Results

NAME = "scan-and-snap"
TEXTS_SEED = 2305
_STORED_SMALL = ("attention", "z")  # as float32: pictures, all scalars are computed before


@dataclass(frozen=True)
class Bench:
    """One recipe with everything that is computed once: the functions of its stack."""

    recipe: Recipe

    @cached_property
    def long_texts(self) -> model.Texts:
        return measure.long_texts([setting.task for setting in self.recipe.settings])

    def rates(self, table: str) -> np.ndarray:
        """Rates of table `y` or `z`, [run]."""
        return np.array([getattr(setting, f"rate_{table}") for setting in self.recipe.settings])

    def start(self) -> model.Parameters:
        runs, classes, tokens = self.long_texts.counts.shape
        return model.start(runs, classes, tokens, self.recipe.outputs)

    def batch(self, step: int) -> model.Texts:
        """Texts of one step, the same for runs of one seed; or the expected loss."""
        if not self.recipe.settings[0].length:
            return self.long_texts
        drawn = {
            (s.seed, s.length): s.task.texts(
                self.recipe.batch, s.length, [TEXTS_SEED, s.seed, s.length, step]
            )
            for s in self.recipe.settings
        }
        counts, classes = zip(*(drawn[s.seed, s.length] for s in self.recipe.settings), strict=True)
        return model.Texts(
            torch.from_numpy(np.stack(counts).astype(float)), torch.from_numpy(np.stack(classes))
        )

    def optimiser(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        """Rates differ between the tables, and under SGD between runs."""
        rates = [self.rates(table) for table in ("y", "z")]
        if self.recipe.optimiser == ADAM:
            return torch.optim.Adam(
                [
                    {"params": [value], "lr": float(rate[0])}
                    for value, rate in zip(parameters, rates, strict=True)
                ]
            )
        for value, rate in zip(parameters, rates, strict=True):
            # Under SGD, with momentum or without, a factor on the gradient is a factor on the rate.
            value.register_hook(partial(torch.mul, torch.from_numpy(rate)[:, None, None]))
        return torch.optim.SGD(parameters, lr=1.0, momentum=self.recipe.momentum)

    def measure(self, parameters: model.Parameters) -> xr.Dataset:
        """Everything of `measure.VARIABLES` now, with labels, without `step`."""
        task = self.recipe.settings[0].task
        found = measure.measured(parameters, self.long_texts, self.rates("z"), task)
        small = {name: found[name].astype("float32") for name in _STORED_SMALL}
        return found.assign(small).assign_coords(self.labels)

    @cached_property
    def labels(self) -> dict:
        """Coordinates of everything that is logged."""
        settings = self.recipe.settings
        return {
            "run": [setting.run for setting in settings],
            "setting": ("run", [setting.name for setting in settings]),
            "seed": ("run", [setting.seed for setting in settings]),
            "rate_y": ("run", self.rates("y").tolist()),
            "rate_z": ("run", self.rates("z").tolist()),
            "target": [f"class {n}" for n in range(settings[0].task.classes)],
            "token": settings[0].task.names,
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
        )


def train(
    folder: str | Path, recipes: Sequence[Recipe], progress: lab.Progress | None = None
) -> Results:
    """Train the recipes into `folder`, or go on where an earlier start stopped."""
    return lab.run(NAME, tuple(Bench(recipe).stack() for recipe in recipes), folder, progress, 500)
