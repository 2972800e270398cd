"""Recipes to stacks of `workbench.zoo.lab`, and the run itself.

from workbench.zoo import claims
from workbench.zoo.induction import recipe, training
results = training.train("runs/induction", recipe.small())
runs = claims.by_setting(results.trajectories)
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
from workbench.zoo.induction import measure, model
from workbench.zoo.induction.recipe import Recipe
from workbench.zoo.induction.task import Language, repeated
from workbench.zoo.trajectory import Results

NAME = "induction"
EVALUATION, REPEATED, FOLLOWED = 128, 32, 8  # texts: losses, patterns, losses of single tokens
TEXTS_SEED, EVALUATION_SEED, REPEATED_SEED = 2209, 11_895, 31
BASELINES = ("Bayes", "without context")


@dataclass(frozen=True)
class Bench:
    """One recipe with everything that is computed once: the functions of its stack."""

    recipe: Recipe

    @cached_property
    def languages(self) -> list[Language]:
        """The language of every run."""
        own = self.recipe.language
        chain_alone = Language(own.states, own.length, favour=0.0)
        return [own if setting.favourites else chain_alone for setting in self.recipe.settings]

    @cached_property
    def shape(self) -> model.Shape:
        r = self.recipe
        return model.Shape(len(r.language.tokens), r.language.length, r.layers, r.heads, r.d_model)

    @cached_property
    def smeared(self) -> torch.Tensor:
        return torch.tensor([setting.smeared for setting in self.recipe.settings])

    def texts(self, count: int, seed: int | list[int]) -> np.ndarray:
        """Texts [run, text, length + 1], the same for every run of one language."""
        drawn = {language: language.texts(count, seed) for language in {*self.languages}}
        return np.stack([drawn[language] for language in self.languages])

    def start(self) -> model.Parameters:
        return model.start(self.shape, [setting.seed for setting in self.recipe.settings])

    def batch(self, step: int) -> torch.Tensor:
        """The texts of one step, [run, text, length + 1]: runs differ by their start alone."""
        return torch.from_numpy(self.texts(self.recipe.texts, [TEXTS_SEED, step]))

    def loss(self, parameters: model.Parameters, batch: torch.Tensor) -> torch.Tensor:
        logits, _ = self.forward(parameters, batch[..., :-1])
        return model.next_token_losses(logits, batch[..., 1:])

    def forward(
        self, parameters: model.Parameters, ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and patterns of all runs on `ids` [run, text, query]."""
        return model.forward(parameters, ids, self.shape, self.smeared)

    def optimiser(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.recipe.rate, betas=(0.9, 0.98))

    @cached_property
    def evaluation(self) -> tuple[np.ndarray, np.ndarray]:
        """Texts [run, text, length + 1] behind the losses, and the oracle of their next tokens."""
        ids = self.texts(EVALUATION, EVALUATION_SEED)
        oracles = [
            language.oracle(one[:, :-1]) for language, one in zip(self.languages, ids, strict=True)
        ]
        return ids, np.stack(oracles)

    @cached_property
    def repeated(self) -> tuple[np.ndarray, int]:
        """Repeated random words [text, query] behind the patterns, and their period."""
        return repeated(self.recipe.language, REPEATED, REPEATED_SEED)

    @cached_property
    def _baselines(self) -> np.ndarray:
        """Loss by position of the oracle and of the chain with even favourites, [2, position].

        In the language with favourites.
        """
        language = self.recipe.language
        ids = language.texts(EVALUATION, EVALUATION_SEED)[:, :-1]
        truth = language.oracle(ids)
        with np.errstate(divide="ignore"):
            guesses = [np.log(truth), np.log(language.without_context(ids))]
        return np.stack([measure.cross_entropy(guess, truth).mean(axis=0) for guess in guesses])

    @cached_property
    def labels(self) -> dict:
        """Coordinates of everything that is logged."""
        settings, shape = self.recipe.settings, self.shape
        probe = np.broadcast_to(self.repeated[0][:1], (len(settings), 1, self.repeated[0].shape[1]))
        return {
            "run": [setting.run for setting in settings],
            "setting": ("run", [setting.name for setting in settings]),
            "seed": ("run", [setting.seed for setting in settings]),
            "layer": range(shape.layers),
            "head": range(shape.heads),
            "position": range(shape.length),
            "predictor": list(BASELINES),
            "loss_at_baseline": (("predictor", "position"), self._baselines),
            "token": list(self.recipe.language.tokens),
            "probe_id": (("run", "probe", "query"), probe),
            **measure.head_labels(shape.layers, shape.heads),
        }

    def measure(self, parameters: model.Parameters) -> xr.Dataset:
        """Everything of `measure.variables` now, with labels, without `step`."""
        ids, oracle = self.evaluation
        weights = {name: value.detach().numpy() for name, value in parameters.items()}
        log_p = self.forward(parameters, torch.from_numpy(ids[..., :-1]))[0].log_softmax(-1).numpy()
        loss = measure.cross_entropy(log_p, oracle)
        least = measure.cross_entropy(np.log(np.where(oracle > 0, oracle, 1.0)), oracle)
        came = np.take_along_axis(log_p[:, :FOLLOWED], ids[:, :FOLLOWED, 1:, None], axis=-1)
        texts, period = self.repeated
        runs = torch.from_numpy(texts).expand(len(ids), *texts.shape)
        patterns = self.forward(parameters, runs)[1].numpy()
        scores = measure.head_scores(patterns, period)
        by_position, where = loss.mean(axis=1), ("run", "layer", "head")
        found = {
            "icl": ("run", measure.icl_score(by_position)),
            "slope": ("run", measure.log_slope(by_position)),
            **{name: (where, values) for name, values in scores.items()},
            "loss": ("run", loss.mean(axis=(1, 2))),
            "excess": ("run", (loss - least).mean(axis=(1, 2))),
            "loss_at": (("run", "position"), by_position),
            "pattern": ((*where, "probe", "query", "key"), patterns[:, :, :1].swapaxes(2, 3)),
            "token_loss": (("run", "item"), -came.reshape(len(ids), -1)),
        }
        data = xr.Dataset(found).merge(
            measure.of_weights(weights, self.shape.heads, self.recipe.language.states)
        )
        data = data.astype("float32")
        stored_small = {name: data[name].astype("float16") for name in ("pattern", "token_loss")}
        return data.assign(stored_small).assign_coords(self.labels)

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
            loss=self.loss,
            optimiser=self.optimiser,
            measure=self.measure,
            variables=measure.variables(recipe.layers),
            kept=recipe.kept,
        )


def train(
    folder: str | Path, recipes: Sequence[Recipe], progress: lab.Progress | None = None
) -> Results:
    """Train the recipes into `folder`, or go on where an earlier start stopped."""
    return lab.run(NAME, tuple(Bench(recipe).stack() for recipe in recipes), folder, progress)
