"""Linear attention that reads labels, in two parametrisations, runs stacked.

    merged     M = sum_h v_h U_h                    u [run, head, key, query]
    separate   M = sum_h v_h sum_r k_hr q_hr'       k, q [run, head, rank, direction]

The prediction is beta' M x_q (`task`).  The other entries of the value, key and query matrices of
Zhang et al. 2025 (arXiv 2501.16265) start at zero there and stay there; they are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.zoo.staircase.recipe import ALIGNED, Recipe, Setting

Parameters = dict[str, Tensor]


def start(recipe: Recipe) -> Parameters:
    """Initial parameters of all runs, float64."""
    drawn = [
        _aligned(recipe, setting) if setting.kind == ALIGNED else _random(recipe, setting)
        for setting in recipe.settings
    ]
    return {name: torch.stack([run[name] for run in drawn]) for name in drawn[0]}


def _random(recipe: Recipe, setting: Setting) -> Parameters:
    generator = torch.Generator().manual_seed(setting.seed)

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(recipe.heads, *shape, generator=generator, dtype=torch.float64)
        return setting.start * drawn

    if not recipe.rank:
        return {"v": normal(), "u": normal(recipe.task.d, recipe.task.d)}
    # Keys and queries of one size at every rank, as in the authors' code.
    root = recipe.rank**0.5
    shape = (recipe.rank, recipe.task.d)
    return {"v": normal(), "k": normal(*shape) / root, "q": normal(*shape) / root}


def _aligned(recipe: Recipe, setting: Setting) -> Parameters:
    heads, d = recipe.heads, recipe.task.d
    v = torch.zeros(heads, dtype=torch.float64)
    if not recipe.rank:
        v[0] = setting.start
        u = torch.zeros(heads, d, d, dtype=torch.float64)
        u[0] = setting.start * torch.eye(d, dtype=torch.float64) / d**0.5
        return {"v": v, "u": u}
    if heads < d:
        raise WorkbenchError(
            f"{heads} heads cannot start aligned with {d} directions; give at least {d} heads."
        )
    k = torch.zeros(heads, recipe.rank, d, dtype=torch.float64)
    places = torch.arange(d)
    v[:d] = setting.start
    k[places, 0, places] = setting.start
    return {"v": v, "k": k, "q": k.clone()}


def head_matrices(parameters: Parameters) -> Tensor:
    """Value times key times query of every head, [run, head, key, query]."""
    u = parameters["u"] if "u" in parameters else parameters["k"].mT @ parameters["q"]
    return parameters["v"][..., None, None] * u


def losses(parameters: Parameters, moments: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Mean squared error of every run, [run]; `moments` are `task.Moments` stacked over runs."""
    zero, b, c = moments
    m = head_matrices(parameters).sum(dim=1).flatten(1)
    return zero - 2.0 * (m * b.flatten(1)).sum(-1) + ((m[:, None] @ c).squeeze(1) * m).sum(-1)
