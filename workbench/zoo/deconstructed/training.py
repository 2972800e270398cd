"""Recipes to stacks of `workbench.zoo.lab`, the run itself, and tests of what was trained.

from workbench.zoo import claims
from workbench.zoo.deconstructed import recipe, training
from workbench.zoo.deconstructed.claims import CLAIMS
recipes = recipe.small()
evidence = training.look(training.train("runs/deconstructed", recipes), recipes)
for found in claims.findings(evidence, CLAIMS): print(found.law.verdict, found.law.name)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from workbench.zoo import claims, lab
from workbench.zoo.deconstructed import measure, mixing, model
from workbench.zoo.deconstructed.laws import Evidence
from workbench.zoo.deconstructed.recipe import ODD, Recipe
from workbench.zoo.deconstructed.task import RULES, Task
from workbench.zoo.trajectory import Results

NAME = "deconstructed-attention"
EVALUATION, MAPS, PROBES = 96, 8, 1  # texts behind risks, behind maps, and with maps stored
TEXTS_SEED, EVALUATION_SEED, FIXED_SEED = 2510, 11_602, 77
# Variants with a form that is linear in the length.
RECURRENT = {"approximate": mixing.taylor_recurrent, "non-approximate": mixing.gate_recurrent}


@lru_cache(maxsize=4096)
def texts_of_step(task: Task, count: int, step: int) -> np.ndarray:
    """The texts of one step, the same for every stack: int64 [text, length + 1]."""
    ids = task.texts(count, [TEXTS_SEED, step])
    ids.setflags(write=False)
    return ids


@dataclass(frozen=True)
class Bench:
    """One recipe with everything that is computed once: the functions of its stack."""

    recipe: Recipe

    def start(self) -> model.Parameters:
        return model.start(self.recipe.shape, self.recipe.seeds)

    @cached_property
    def outside(self) -> torch.Tensor | None:
        """What the mixers with a fixed map look at: random embeddings, or one text."""
        task, mixers = self.recipe.task, self.recipe.mixers
        if "rnd-emb-qk" in mixers:
            return model.random_stream(self.recipe.shape, task.length, self.recipe.seeds)
        if "fixed-seq-qk" in mixers:
            return torch.from_numpy(task.texts(1, FIXED_SEED)[0, :-1])
        return None

    def forward(
        self, parameters: model.Parameters, ids: np.ndarray, skipped: tuple[int, ...] = ()
    ) -> model.Trace:
        """The stacked networks on texts [text, query]."""
        inputs = torch.tensor(ids)
        return model.forward(parameters, inputs, self.recipe.shape, self.outside, skipped)

    def batch(self, step: int) -> np.ndarray:
        return texts_of_step(self.recipe.task, self.recipe.texts, step)

    def loss(self, parameters: model.Parameters, batch: np.ndarray) -> torch.Tensor:
        logits = self.forward(parameters, batch[:, :-1]).logits
        return model.next_symbol_loss(logits, torch.tensor(batch[:, 1:]))

    def optimiser(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.recipe.rate, betas=(0.9, 0.98))

    @cached_property
    def evaluation(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Texts [text, query] that are measured, their oracle and the rule of every query."""
        task = self.recipe.task
        ids = task.texts(EVALUATION, EVALUATION_SEED)[:, :-1]
        return ids, task.oracle(ids), task.rules(ids)

    def measure(self, parameters: model.Parameters) -> xr.Dataset:
        """Everything of `measure.VARIABLES` now, with labels, without `step`."""
        ids, oracle, rules = self.evaluation
        found = {}
        for prefix, skipped in (("excess", ()), ("skip", ODD)):
            log_p = self.forward(parameters, ids, skipped).logits.log_softmax(-1)
            found |= measure.by_rule(log_p.double().numpy(), oracle, rules, prefix)
        recalls = rules[:MAPS] == RULES.index("recall")
        pattern, scores = self._maps(parameters, ids[:MAPS])
        found |= measure.of_maps(pattern, scores, ids[:MAPS], recalls)
        shown = np.moveaxis(pattern[:, :, :PROBES], 2, 3).astype("float16")
        data = xr.Dataset(found).astype("float32")
        dims = ("run", "layer", "head", "probe", "query", "key")
        return data.assign(pattern=(dims, shown)).assign_coords(self.labels)

    def _maps(self, parameters: model.Parameters, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pattern and scores [run, layer, text, head, query, key]; NaN without attention."""
        trace = self.forward(parameters, ids)
        size = (len(self.recipe.seeds), len(ids), self.recipe.heads, ids.shape[1], ids.shape[1])
        none = torch.full(size, torch.nan)
        pattern = [none if layer is None else layer.pattern for layer in trace.layers]
        scores = [none if layer is None else layer.scores for layer in trace.layers]
        return torch.stack(pattern, 1).numpy(), torch.stack(scores, 1).numpy()

    @cached_property
    def labels(self) -> dict:
        """Coordinates of everything that is logged."""
        recipe, task = self.recipe, self.recipe.task
        shown = np.stack([self.evaluation[0][:PROBES]] * len(recipe.seeds))
        tokens = np.arange(len(task.tokens))
        return {
            "run": [f"{recipe.name}-s{seed}" for seed in recipe.seeds],
            "setting": ("run", [recipe.name] * len(recipe.seeds)),
            "seed": ("run", list(recipe.seeds)),
            "layer": range(len(recipe.mixers)),
            "head": range(recipe.heads),
            "mixer": ("layer", list(recipe.mixers)),
            "token": list(task.tokens),
            "trigger": ("token", task.is_name(tokens) | (tokens == task.mark)),
            "probe_id": (("run", "probe", "query"), shown),
        }

    def stack(self) -> lab.Stack:
        """The recipe as something the engine trains."""
        recipe = self.recipe
        return lab.Stack(
            name=recipe.name,
            settings=recipe.to_json(),
            runs=tuple(self.labels["run"]),
            steps=recipe.steps,
            logged=recipe.logged,
            start=self.start,
            batch=self.batch,
            loss=self.loss,
            optimiser=self.optimiser,
            measure=self.measure,
            variables=measure.VARIABLES,
            schedule=recipe.rate_at,
        )


def train(
    folder: str | Path, recipes: Sequence[Recipe], progress: lab.Progress | None = None
) -> Results:
    """Train the recipes into `folder`, or go on where an earlier start stopped."""
    return lab.run(NAME, tuple(Bench(recipe).stack() for recipe in recipes), folder, progress)


def recurrent_errors(results: Results, recipe: Recipe) -> tuple[list[float], list[float]]:
    """How far the form that is linear in the length is from the trained heads, one per run.

    The largest difference of a head's output on test texts over its largest value, the worst layer;
    then the same distance to softmax attention with the same q, k, v.
    """
    bench, file = Bench(recipe), results.weights(recipe.name)
    parameters = {name: torch.from_numpy(np.array(file[name])) for name in file}
    with torch.no_grad(), lab.one_thread():
        trace = bench.forward(parameters, bench.evaluation[0][:MAPS])
        distances = []
        for mixer, layer in zip(recipe.mixers, trace.layers, strict=True):
            if layer is None or mixer not in RECURRENT:
                continue
            linear = RECURRENT[mixer](layer.q, layer.k, layer.v)
            softmax = mixing.softmax_rows(mixing.scores_of(layer.q, layer.k)) @ layer.v
            distances.append([_apart(other, layer.output) for other in (linear, softmax)])
    # [layer, form, run]
    worst, nearest = np.array(distances)[:, 0].max(axis=0), np.array(distances)[:, 1].min(axis=0)
    return worst.tolist(), nearest.tolist()


def _apart(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Largest difference over the largest value of b, [run]."""
    return ((a - b).abs().flatten(1).amax(dim=1) / b.abs().flatten(1).amax(dim=1)).numpy()


def look(results: Results, recipes: Sequence[Recipe]) -> Evidence:
    """What the laws are read from."""
    runs = claims.by_setting(results.trajectories)
    linear = {
        recipe.mixers[0]: recurrent_errors(results, recipe)
        for recipe in recipes
        if len(set(recipe.mixers)) == 1 and recipe.mixers[0] in RECURRENT
    }
    sizes = {recipe.name: model.count(recipe.shape) for recipe in recipes}
    return Evidence(runs, linear, sizes)
