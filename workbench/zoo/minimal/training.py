"""Recipes to stacks of `workbench.zoo.lab`, and the run itself.

from workbench.zoo.minimal import recipe, training
results = training.train("runs/minimal", recipe.small())
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.zoo import lab
from workbench.zoo.minimal import measure, model, task
from workbench.zoo.minimal.recipe import Recipe
from workbench.zoo.trajectory import Results

NAME = "minimal-transformers"
IMAGES_SEED, CONTRAST_SEED, TEST_SEED = 2410, 13_732, 8
FLOOR = 0.02  # where the cosine of the rate ends


@dataclass(frozen=True)
class Bench:
    """One recipe with everything that is computed once: the functions of its stack."""

    recipe: Recipe

    def start(self) -> model.Parameters:
        seeds = [setting.seed for setting in self.recipe.settings]
        return model.start(self.recipe.variant, self.recipe.d_model, self.recipe.layers, seeds)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images [run, image, patch, pixel] and labels; runs of a kind see the same ones."""
        learned, _ = task.digits()
        rng = np.random.default_rng([IMAGES_SEED, step])
        some = rng.integers(0, len(learned.labels), self.recipe.batch)
        chosen = task.Images(learned.patches[some], learned.labels[some])
        return self._for_runs(chosen, [CONTRAST_SEED, step])

    def _for_runs(self, images: task.Images, seed: list[int]) -> tuple[Tensor, Tensor]:
        """The images as each run sees them."""
        seen = [
            task.seen_with(images, task.signs(s.kind, len(images.labels), seed)).patches
            for s in self.recipe.settings
        ]
        labels = torch.from_numpy(images.labels).expand(len(seen), -1)
        return torch.from_numpy(np.stack(seen)), labels

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        return self._for_runs(task.digits()[1], [TEST_SEED])

    def measure(self, parameters: model.Parameters) -> xr.Dataset:
        """Everything of `measure.VARIABLES` now, with labels, without `step`."""
        return measure.of(parameters, *self.test).assign_coords(self.labels)

    @cached_property
    def labels(self) -> dict:
        """Coordinates of everything that is logged."""
        settings = self.recipe.settings
        across = task.SIDE // task.PATCH
        return {
            "run": [setting.run for setting in settings],
            "setting": ("run", [setting.name for setting in settings]),
            "seed": ("run", [setting.seed for setting in settings]),
            "layer": range(self.recipe.layers),
            "head": [0],
            "token": [f"{row},{column}" for row in range(across) for column in range(across)],
            "probe_id": (("probe", "query"), [list(range(task.PATCHES))] * measure.PROBES),
        }

    def stack(self) -> lab.Stack:
        """The recipe as something the engine trains."""
        recipe = self.recipe
        return lab.Stack(
            name=recipe.variant,
            settings=recipe.to_json(),
            runs=tuple(setting.run for setting in recipe.settings),
            steps=recipe.steps,
            logged=recipe.logged,
            start=self.start,
            batch=self.batch,
            loss=model.losses,
            optimiser=lambda parameters: torch.optim.Adam(parameters, lr=recipe.rate),
            measure=self.measure,
            variables=measure.VARIABLES,
            schedule=partial(lab.cosine, steps=recipe.steps, floor=FLOOR),
        )


def train(
    folder: str | Path, recipes: Sequence[Recipe], progress: lab.Progress | None = None
) -> Results:
    """Train the recipes into `folder`, or go on where an earlier start stopped."""
    return lab.run(NAME, tuple(Bench(recipe).stack() for recipe in recipes), folder, progress)
