"""Recipes to stacks of `workbench.zoo.lab`, and the run itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from workbench.zoo import lab
from workbench.zoo.descent import construction, learners, measure, model, transformer
from workbench.zoo.descent.recipe import LayerRecipe, Setting, TransformerRecipe, logged_to
from workbench.zoo.descent.task import loss
from workbench.zoo.regression import model as start_model
from workbench.zoo.regression.measure import coordinates
from workbench.zoo.regression.task import Prompts, Task
from workbench.zoo.trajectory import Results

NAME = "gradient-descent"
TRAIN_SEED, EVALUATION_SEED = 2212, 7677
EVALUATION, FELT = 2048, 512  # prompts behind every logged loss, and behind sensitivities
HALVES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
CAUSAL_EVALUATION = 1024
FLOOR = 0.02  # where the cosine of the rate ends
BESIDE = ("averaging", "3-NN", "one step of GD", "least squares")

Recipe = LayerRecipe | TransformerRecipe


@dataclass(frozen=True)
class LayerBench:
    """One recipe of single layers: the functions of its stack."""

    recipe: LayerRecipe

    def start(self) -> model.Parameters:
        settings = self.recipe.settings
        shape = start_model.Shape(self.recipe.task.d, 1, self.recipe.heads)
        return start_model.start(shape, [s.seed for s in settings], [()] * len(settings))

    def batch(self, step: int) -> Prompts:
        """The prompts of one step, the same for every run: runs differ by their start alone."""
        return self.recipe.task.prompts(self.recipe.batch, [TRAIN_SEED, step])

    @cached_property
    def evaluation(self) -> dict[float, Prompts]:
        """Fixed prompts by the range of their coordinates."""
        task = self.recipe.task
        return {half: replace(task, half=half).prompts(EVALUATION, EVALUATION_SEED)
                for half in HALVES}  # fmt: skip

    @cached_property
    def beside(self) -> dict[str, list[float]]:
        """Losses of simple predictors on them, by that of zero."""
        return measure.range_baselines(self.recipe.task, self.evaluation)

    def measure(self, parameters: model.Parameters) -> xr.Dataset:
        """Everything of `measure.LAYER` now, without `step`."""
        task, forward = self.recipe.task, model.PREDICT[self.recipe.kind]

        def predict(prompts: Prompts) -> np.ndarray:
            return forward(parameters, prompts).numpy()

        prompts = self.evaluation[task.half]
        kq, ov = (part.numpy() for part in model.circuits(parameters))
        found = measure.of_circuits(kq, ov, task)
        best = construction.best_step(task)
        for name, values in measure.alignment(predict, prompts.part(slice(FELT)), best).items():
            found[name] = ("run", values)
        found["loss"] = ("run", measure.layer_losses(predict(prompts), prompts))
        shares = [
            measure.layer_losses(predict(there), there) / loss(np.zeros_like(there.y_q), there)
            for there in self.evaluation.values()
        ]
        found["by_range"] = (("run", "half"), np.stack(shares, axis=1))
        home = HALVES.index(task.half)
        known = [line[home] for line in self.beside.values()]
        found["loss_over"] = (("run", "predictor"), shares[home][:, None] / known)
        return found.astype("float32").assign_coords(self.labels)

    @cached_property
    def labels(self) -> dict:
        """Coordinates of everything that is logged."""
        task = self.recipe.task
        places = coordinates(Task(d=task.d))
        return {
            **_runs(self.recipe.settings),
            "head": range(self.recipe.heads),
            "coordinate": places,
            "query_coordinate": places[: task.d],
            "half": list(HALVES),
            "predictor": list(self.beside),
            "by_range_baseline": (("predictor", "half"), list(self.beside.values())),
        }

    def stack(self) -> lab.Stack:
        """The recipe as something the engine trains."""
        return _stack(
            self.recipe, self.start, self.batch, partial(model.losses, self.recipe.kind),
            self.measure, measure.LAYER, partial(lab.cosine, steps=self.recipe.steps, floor=FLOOR),
        )  # fmt: skip


@dataclass(frozen=True)
class CausalBench:
    """One recipe of causal transformers: the functions of its stack."""

    recipe: TransformerRecipe

    def start(self) -> transformer.Parameters:
        return transformer.start(self.recipe.shape, [s.seed for s in self.recipe.settings])

    def batch(self, step: int) -> Prompts:
        return self.recipe.task.prompts(self.recipe.batch, [TRAIN_SEED, step])

    @cached_property
    def evaluation(self) -> Prompts:
        return self.recipe.task.prompts(CAUSAL_EVALUATION, EVALUATION_SEED)

    def loss(self, parameters: transformer.Parameters, prompts: Prompts) -> torch.Tensor:
        return transformer.losses(parameters, prompts, self.recipe.shape)

    def schedule(self, step: int) -> float:
        """Factor on the rate: up in a line, then down half a cosine."""
        rise = min(1.0, (step + 1) / self.recipe.warmup)
        return rise * lab.cosine(step, self.recipe.steps, FLOOR)

    def measure(self, parameters: transformer.Parameters) -> xr.Dataset:
        """Everything of `measure.TRANSFORMER` now, without `step`."""
        shape, prompts = self.recipe.shape, self.evaluation
        predicted, _ = transformer.forward(parameters, prompts, shape)
        squares = (predicted.numpy() - transformer.labels_of(prompts)).astype(float) ** 2
        _, patterns = transformer.forward(parameters, prompts.part(slice(1)), shape)
        errors = squares.mean(axis=1)
        found = xr.Dataset(
            {
                "error": ("run", errors.mean(axis=1)),
                "error_last": ("run", errors[:, -1]),
                "by_examples": (("run", "examples"), errors),
                "above": (("run", "predictor"), errors[:, -1:] - self.beside[:, -1]),
                "pattern": (
                    ("run", "layer", "head", "probe", "query", "key"),
                    patterns.transpose(2, 3).numpy().astype("float16"),
                ),
            }
        )
        return found.assign_coords(self.labels)

    @cached_property
    def labels(self) -> dict:
        """Coordinates of everything that is logged."""
        shape = self.recipe.shape
        tokens = range(shape.tokens)
        return {
            **_runs(self.recipe.settings),
            "layer": range(shape.layers),
            "head": range(shape.heads),
            "token": shape.names(),
            "probe_id": (("probe", "query"), [list(tokens)]),
            "examples": range(shape.examples + 1),
            "predictor": list(BESIDE),
            "by_examples_baseline": (("predictor", "examples"), self.beside),
        }

    @cached_property
    def beside(self) -> np.ndarray:
        """Errors of simple learners, [predictor, examples]; without an example that of zero, 1."""
        lengths = range(1, self.recipe.shape.examples + 1)
        errors = learners.errors(self.recipe.task, lengths, EVALUATION, EVALUATION_SEED)
        return np.pad(errors.sel(learner=list(BESIDE)), ((0, 0), (1, 0)), constant_values=1.0)

    def stack(self) -> lab.Stack:
        """The recipe as something the engine trains."""
        return _stack(
            self.recipe, self.start, self.batch, self.loss, self.measure, measure.TRANSFORMER,
            self.schedule,
        )  # fmt: skip


def _runs(settings: Sequence[Setting]) -> dict:
    return {
        "run": [setting.run for setting in settings],
        "setting": ("run", [setting.name for setting in settings]),
        "seed": ("run", [setting.seed for setting in settings]),
    }


def _stack(recipe: Recipe, start, batch, losses, measured, variables, schedule) -> lab.Stack:
    def optimiser(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=recipe.rate)

    return lab.Stack(
        name=recipe.name, settings=recipe.to_json(),
        runs=tuple(setting.run for setting in recipe.settings), steps=recipe.steps,
        logged=logged_to(recipe.steps), start=start, batch=batch, loss=losses,
        optimiser=optimiser, measure=measured, variables=variables, schedule=schedule,
    )  # fmt: skip


def train(
    folder: str | Path, recipes: Sequence[Recipe], progress: lab.Progress | None = None
) -> Results:
    """Train the recipes into `folder`, or go on where an earlier start stopped."""
    benches = [
        LayerBench(recipe) if isinstance(recipe, LayerRecipe) else CausalBench(recipe)
        for recipe in recipes
    ]
    return lab.run(NAME, tuple(bench.stack() for bench in benches), folder, progress)
