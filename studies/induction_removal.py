"""What is left of learning in context when heads are removed from a trained run.

The run becomes a GPT-2 (`workbench.zoo.induction.export`), the heads are zeroed by interventions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr

from workbench.heads import Head
from workbench.intervene import intervening
from workbench.interventions import Intervention
from workbench.models import load
from workbench.zoo.induction import export, measure
from workbench.zoo.induction.claims import TWO
from workbench.zoo.induction.recipe import Recipe
from workbench.zoo.trajectory import Results

TEXTS, SEED = 128, 515
ENOUGH = 0.5  # of the best prefix score: from here on a head counts as an induction head


def heads_of(run: xr.Dataset) -> dict[str, list[str]]:
    """Heads of a run with two layers by role, labels, read at its end."""
    end = run.isel(step=-1)
    match = end["prefix"].isel(layer=-1).to_numpy()
    back = end["previous"].isel(layer=0).to_numpy()
    last = int(run["layer"][-1])
    return {
        "nothing": [],
        "induction heads": [
            str(Head(last, int(i))) for i in np.flatnonzero(match >= ENOUGH * match.max())
        ],
        "previous-token head": [str(Head(0, int(back.argmax())))],
        "other head": [str(Head(0, int(back.argmin())))],
    }


def icl_without(results: Results, recipes: Sequence[Recipe]) -> dict[str, dict[str, float]]:
    """ICL score in nats by run of two layers and by what was removed, on fresh texts."""
    found = {}
    for recipe in recipes:
        weights = results.weights(recipe.name)
        trajectory = results.trajectories[recipe.name]
        for i, setting in enumerate(recipe.settings):
            if setting.name == TWO:
                found[setting.run] = _one(recipe, weights, trajectory.isel(run=i))
    return found


def _one(recipe: Recipe, weights: Mapping[str, np.ndarray], run: xr.Dataset) -> dict[str, float]:
    language = recipe.language
    model = load(export.gpt2(recipe, weights, str(run["run"].item())))
    ids = language.texts(TEXTS, SEED)[:, :-1]
    oracle, tokens = language.oracle(ids), torch.from_numpy(ids)
    found = {}
    for role, heads in heads_of(run).items():
        edits = [Intervention.zero(heads)] if heads else []
        with torch.no_grad(), intervening(model, edits):
            log_p = model.net(input_ids=tokens).logits.log_softmax(-1).numpy()
        loss = measure.cross_entropy(log_p, oracle).mean(axis=0)
        found[role] = float(measure.icl_score(loss))
    return found
