"""Recipes to stacks of `workbench.zoo.lab`: data, network, loss, measurements; and the run itself.

from workbench.zoo.backcopy import recipe, training, laws
results = training.train("runs/backcopy", recipe.small())
for found in laws.check(results): print(found.law.verdict, found.law.name, found.law.value)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from workbench.zoo import lab
from workbench.zoo.backcopy import measure, model
from workbench.zoo.backcopy.recipe import Recipe
from workbench.zoo.backcopy.task import Task
from workbench.zoo.trajectory import Results

NAME = "bigram-backcopy"
EVALUATION = 32  # texts behind every logged number
PROBES, PROBE_LENGTH = 1, 32  # texts and positions of the stored patterns
EVICTED = (0, 1, 2)  # `<s>` and, as control, its two neighbours
_EVALUATION_SEED = 9_021_977  # one number, where training texts have two: (seed, step)


@dataclass(frozen=True)
class Bench:
    """One recipe with everything that is computed once: the functions of its stack."""

    recipe: Recipe

    @cached_property
    def task(self) -> Task:
        return self.recipe.task()

    @cached_property
    def shape(self) -> model.Shape:
        r = self.recipe
        return model.Shape(
            len(self.task.tokens), r.length, r.layers, r.heads, r.d_model, r.attention
        )

    @cached_property
    def parts(self) -> model.Parts:
        """What of each run's network is there."""
        settings = self.recipe.settings
        parts = model.all_parts(self.shape, len(settings))
        for run, setting in enumerate(settings):
            parts.heads[run, list(setting.no_attention)] = 0
            parts.mlps[run, list(setting.no_mlp)] = 0
            parts.null_start[run] = -math.inf if setting.null_start is None else setting.null_start
            parts.null_rate[run] = setting.null_rate
        return parts

    @cached_property
    def _copies(self) -> np.ndarray:
        return np.array([setting.copies for setting in self.recipe.settings])

    def _texts(self, uniforms: np.ndarray) -> np.ndarray:
        """[run, text, length + 1] from uniform numbers [run, text, length]."""
        runs, texts, _ = uniforms.shape
        ids = self.task.texts(uniforms.reshape(runs * texts, -1), np.repeat(self._copies, texts))
        return ids.reshape(runs, texts, -1)

    def start(self) -> model.Parameters:
        return model.start(self.shape, [setting.seed for setting in self.recipe.settings])

    def batch(self, step: int) -> torch.Tensor:
        """Texts of one step, [run, text, length + 1], each run's from its (seed, step) alone."""
        size = (self.recipe.texts, self.recipe.length)
        uniforms = [
            np.random.default_rng([setting.seed, step]).random(size)
            for setting in self.recipe.settings
        ]
        return torch.from_numpy(self._texts(np.stack(uniforms)))

    def loss(self, parameters: model.Parameters, batch: torch.Tensor) -> torch.Tensor:
        trace = model.forward(parameters, batch[..., :-1], self.shape, self.parts)
        return model.next_symbol_loss(trace, batch[..., 1:])

    def optimiser(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        rate = self.recipe.rate
        if self.recipe.optimiser == "sgd":
            return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=1e-4)
        return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)

    @cached_property
    def labels(self) -> dict:
        """Coordinates of everything that is logged."""
        settings, shape = self.recipe.settings, self.shape
        return {
            "run": [setting.run for setting in settings],
            "setting": ("run", [setting.name for setting in settings]),
            "seed": ("run", [setting.seed for setting in settings]),
            "layer": range(shape.layers),
            "head": range(shape.heads),
            "stream": range(shape.layers + 1),
            "token": list(self.task.tokens),
            "trigger": ("token", self.task.is_trigger),
            "probe_id": (("run", "probe", "query"), _shown(self.evaluation["ids"]).to_numpy()),
        }

    @cached_property
    def evaluation(self) -> xr.Dataset:
        """The texts that are measured: `ids`, `on` (a trigger stands there), `oracle`.

        All runs see the same random numbers.
        """
        runs = len(self.recipe.settings)
        uniforms = np.random.default_rng(_EVALUATION_SEED).random((EVALUATION, self.recipe.length))
        ids = self._texts(np.stack([uniforms] * runs))[..., :-1]
        copies = np.repeat(self._copies, EVALUATION)
        oracle = self.task.oracle(ids.reshape(len(copies), -1), copies)
        where = ("run", "text", "query")
        return xr.Dataset(
            {
                "ids": (where, ids),
                "on": (where, self.task.is_trigger[ids]),
                "oracle": ((*where, "token"), oracle.reshape(*ids.shape, -1)),
            }
        )

    @cached_property
    def edits(self) -> dict[str, model.Parts]:
        """Networks with one part gone, by name; "none" is the whole one."""
        shape, parts = self.shape, self.parts
        heads = [(layer, head) for layer in range(shape.layers) for head in range(shape.heads)]
        return (
            {"none": parts}
            | {f"L{layer}H{head}": parts.without_head(layer, head) for layer, head in heads}
            | {f"L{layer} mlp": parts.without_mlp(layer) for layer in range(shape.layers)}
            | {f"key {key}": parts.without_key(key) for key in EVICTED}
        )

    def measure(self, parameters: model.Parameters) -> xr.Dataset:
        """Everything of `measure.VARIABLES` now, with labels, without `step`."""
        ids = torch.from_numpy(self.evaluation["ids"].to_numpy())
        found, edited = {}, []
        for name, parts in self.edits.items():
            trace = model.forward(parameters, ids, self.shape, parts)
            if name == "none":
                found = self._of_trace(trace, parameters)
            edited.append(self._edited(trace))
        names = xr.DataArray(list(self.edits), dims="edit", name="edit")
        data = xr.Dataset(found).merge(xr.concat(edited, names).transpose("run", "edit"))
        data = data.astype("float32").assign(pattern=data["pattern"].astype("float16"))
        return data.assign_coords(self.labels)

    def _log_p(self, trace: model.Trace) -> xr.DataArray:
        return _label(trace.logits.log_softmax(-1), "run", "text", "query", "token")

    def _edited(self, trace: model.Trace) -> xr.Dataset:
        """Excess risks of the late queries."""
        late = slice(measure.FIRST_EDITED, None)
        texts = self.evaluation.isel(query=late)
        log_p = self._log_p(trace).isel(query=late)
        _, on = measure.excess(log_p, texts["oracle"], texts["on"])
        _, off = measure.excess(log_p, texts["oracle"], ~texts["on"])
        return xr.Dataset({"edit_excess_on": on, "edit_excess_off": off})

    def _of_trace(self, trace: model.Trace, parameters: model.Parameters) -> dict:
        texts, triggers = self.evaluation, self.task.is_trigger
        on, off = texts["on"], ~texts["on"]
        row = ("run", "layer", "text", "head", "query", "key")
        order = ("run", "layer", "head", "text", "query", "key")
        pattern = _label(torch.stack(trace.pattern, 1), *row).transpose(*order)
        scores = _label(torch.stack(trace.scores, 1), *row).transpose(*order)
        norms = [model.result_norms(trace, parameters, i) for i in range(self.shape.layers)]
        values = _label(torch.stack(norms, 1), "run", "layer", "text", "head", "key")
        resid = torch.stack(trace.stream, 1).norm(dim=-1)
        log_p = self._log_p(trace)
        found = {}
        for name, rows in (("on", on), ("off", off)):
            risk, excess = measure.excess(log_p, texts["oracle"], rows)
            found |= {f"risk_{name}": risk, f"excess_{name}": excess}
            found[f"sink_{name}"] = measure.sink_mass(pattern, rows)
        delta = measure.delta_logit(scores, texts["ids"], len(triggers))
        mean, low, high = measure.spread(delta, ~triggers)
        key_is_trigger = on.rename(query="key")
        # Rows of ReLU attention have no sum to lack anything to, and no entropy.
        sums = 1.0 if self.shape.attention == "softmax" else np.nan
        return found | {
            "null_off": sums * measure.null_mass(pattern, off),
            "entropy_off": sums * measure.row_entropy(pattern, off),
            "delta_logit": delta,
            "delta_logit_on": measure.spread(delta, triggers)[0],
            "delta_logit_off": mean,
            "delta_logit_low": low,
            "delta_logit_high": high,
            "value_norm": measure.role_mean(values, key_is_trigger),
            "resid_norm": measure.role_mean(
                _label(resid, "run", "stream", "text", "key"), key_is_trigger
            ),
            "pattern": _shown(pattern),
        }

    def stack(self) -> lab.Stack:
        """The recipe as something the engine trains."""
        return lab.Stack(
            name=self.recipe.name,
            settings=self.recipe.to_json(),
            runs=tuple(setting.run for setting in self.recipe.settings),
            steps=self.recipe.steps,
            logged=self.recipe.logged,
            start=self.start,
            batch=self.batch,
            loss=self.loss,
            optimiser=self.optimiser,
            measure=self.measure,
            variables=measure.VARIABLES,
        )


def _shown(values: xr.DataArray) -> xr.DataArray:
    """The part of [run, ..., text, query, key] that is stored whole."""
    cut = {"text": slice(PROBES), "query": slice(PROBE_LENGTH), "key": slice(PROBE_LENGTH)}
    return values.isel({dim: part for dim, part in cut.items() if dim in values.dims}).rename(
        text="probe"
    )


def _label(values: torch.Tensor, *dims: str) -> xr.DataArray:
    return xr.DataArray(values.numpy(), dims=dims)


def train(
    folder: str | Path, recipes: Sequence[Recipe], progress: lab.Progress | None = None
) -> Results:
    """Train the recipes into `folder`, or go on where an earlier start stopped."""
    return lab.run(NAME, tuple(Bench(recipe).stack() for recipe in recipes), folder, progress)
