"""Recipes to stacks of `workbench.zoo.lab`, and the runs they leave.

from workbench.zoo import claims
from workbench.zoo.staircase import recipe, training
from workbench.zoo.staircase.claims import CLAIMS
recipes = recipe.small()
runs = training.runs(training.train("runs/staircase", recipes))
for found in claims.findings(runs, CLAIMS): print(found.law.verdict, found.law.name)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from workbench.zoo import claims, lab
from workbench.zoo.staircase import measure, model
from workbench.zoo.staircase.recipe import Recipe
from workbench.zoo.trajectory import Results

NAME = "staircase"
# A step costs a fraction of a millisecond, a checkpoint as much as a hundred of them.
CHECKPOINT_EVERY = 1000
_STORED_SMALL = ("m", "heads_m")  # as float16: pictures


@dataclass(frozen=True)
class Bench:
    """One recipe with everything that is computed once: the functions of its stack."""

    recipe: Recipe

    @cached_property
    def moments(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What every run is trained on: `task.Moments`, each [run, ...]."""
        task = self.recipe.task
        every = [
            task.sample(s.sequences, s.seed) if s.sequences else task.moments()
            for s in self.recipe.settings
        ]
        zero, b, c = (np.stack([getattr(m, name) for m in every]) for name in ("zero", "b", "c"))
        return torch.from_numpy(zero), torch.from_numpy(b), torch.from_numpy(c)

    def start(self) -> model.Parameters:
        return model.start(self.recipe)

    def optimiser(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.recipe.rate)

    def measure(self, parameters: model.Parameters) -> xr.Dataset:
        """Everything of `measure.VARIABLES` now, with labels, without `step`."""
        matrices = model.head_matrices(parameters).numpy()
        found = measure.of_heads(parameters["v"].numpy(), matrices, self.recipe.task)
        found["loss"] = ("run", model.losses(parameters, self.moments).numpy())
        found = found.astype("float32")
        found = found.assign({name: found[name].astype("float16") for name in _STORED_SMALL})
        return found.assign_coords(self.labels)

    @cached_property
    def labels(self) -> dict:
        """Coordinates of everything that is logged."""
        settings, task = self.recipe.settings, self.recipe.task
        names = [f"x{i}" for i in range(task.d)]
        return {
            "run": [s.run for s in settings],
            "setting": ("run", [s.name for s in settings]),
            "seed": ("run", [s.seed for s in settings]),
            "initial": ("run", [s.start for s in settings]),
            "rate": self.recipe.rate,
            "examples": task.length,
            "direction": names,
            "eigenvalue": ("direction", list(task.eigenvalues)),
            "head": range(self.recipe.heads),
            "key_direction": names,
            "query_direction": names,
            "length": list(measure.LENGTHS),
            "predictor": [f"{count} components" for count in range(task.d + 1)],
            "by_length_baseline": (("predictor", "length"), measure.baselines(task)),
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
            batch=lambda _: self.moments,
            loss=model.losses,
            optimiser=self.optimiser,
            measure=self.measure,
            variables=measure.VARIABLES,
        )


def train(
    folder: str | Path, recipes: Sequence[Recipe], progress: lab.Progress | None = None
) -> Results:
    """Train the recipes into `folder`, or go on where an earlier start stopped."""
    stacks = tuple(Bench(recipe).stack() for recipe in recipes)
    return lab.run(NAME, stacks, folder, progress, CHECKPOINT_EVERY)


def runs(results: Results) -> dict[str, list[xr.Dataset]]:
    """Trajectory of every single run, by setting."""
    return claims.by_setting(results.trajectories)
