"""Recipes to stacks of `workbench.zoo.lab`, and the runs they leave.

from workbench.zoo import claims
from workbench.zoo.jepa import recipe, training
from workbench.zoo.jepa.claims import CLAIMS
runs = training.runs(training.train("runs/jepa", recipe.small()))
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

from workbench.zoo import lab
from workbench.zoo.jepa import closed, measure, model
from workbench.zoo.jepa.recipe import Recipe
from workbench.zoo.trajectory import Results

NAME = "jepa-mae"
# A step costs a fraction of a millisecond, a checkpoint as much as a hundred of them.
CHECKPOINT_EVERY = 1000


@dataclass(frozen=True)
class Bench:
    """One recipe with everything that is computed once: the functions of its stack."""

    recipe: Recipe

    @cached_property
    def directions(self) -> np.ndarray:
        """Features of every run, [run, coordinate, feature]."""
        return np.stack([s.task.directions(s.seed) for s in self.recipe.settings])

    @cached_property
    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """E x x' and E y x' of every run."""
        every = [
            s.task.moments(u) for s, u in zip(self.recipe.settings, self.directions, strict=True)
        ]
        xx, yx = (np.stack(part) for part in zip(*every, strict=True))
        return torch.from_numpy(xx), torch.from_numpy(yx)

    @cached_property
    def ends(self) -> np.ndarray:
        """Strengths at the end in closed form, [run, feature]."""
        method, depth = self.recipe.method, self.recipe.depth
        return np.array(
            [[closed.strength(method, rho, depth) for rho in s.task.rho]
             for s in self.recipe.settings]
        )  # fmt: skip

    def start(self) -> model.Parameters:
        return model.start(self.recipe)

    def losses(self, parameters: model.Parameters, moments: tuple) -> torch.Tensor:
        return model.losses(parameters, moments, self.recipe.method)

    def optimiser(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.recipe.rate)

    def measure(self, parameters: model.Parameters) -> xr.Dataset:
        """Everything of `measure.VARIABLES` now, with labels, without `step`."""
        encoders = model.product(parameters["layers"]).numpy()
        found = measure.of_encoders(encoders, self.directions, self.ends)
        found["loss"] = ("run", self.losses(parameters, self.moments).numpy())
        return found.astype("float32").assign_coords(self.labels)

    @cached_property
    def labels(self) -> dict:
        """Coordinates of everything that is logged."""
        recipe, settings = self.recipe, self.recipe.settings
        features = [f"f{i}" for i in range(settings[0].task.d)]
        return {
            "run": [s.run for s in settings],
            "setting": ("run", [s.name for s in settings]),
            "seed": ("run", [s.seed for s in settings]),
            "method": recipe.method,
            "depth": recipe.depth,
            "rate": recipe.rate,
            "product": recipe.product,
            "feature": features,
            "feature_row": features,
            "feature_column": features,
            "lam": (("run", "feature"), [list(s.task.lam) for s in settings]),
            "rho": (("run", "feature"), [list(s.task.rho) for s in settings]),
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
            loss=self.losses,
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


def runs(results: Results) -> list[xr.Dataset]:
    """Trajectory of every single run."""
    return [
        data.isel(run=i) for data in results.trajectories.values() for i in range(data.sizes["run"])
    ]
