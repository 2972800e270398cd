"""What is logged of every run: loss, what is learned of each direction, heads, matrices.

share          M_dd over the best entry of direction d (`closed.entries`)
off            share of the energy of M off the diagonal
count          sum of the shares: how many principal components are in
by_length      loss with prompts of other lengths, nothing retuned, beside the best
               regression on 0, 1, ..., D components for each length
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr

from workbench.schema import INF, Variable
from workbench.zoo.staircase import closed
from workbench.zoo.staircase.task import Task

LENGTHS = (4, 8, 16, 31, 62, 124, 248)
_RUN = ("run", "step")
_MATRIX = ("key_direction", "query_direction")
_ANY, _POSITIVE, _SHARE = (-INF, INF), (0.0, INF), (0.0, 1.0)
_GROUPS = {
    "loss": (("loss", _RUN, "squared label", _POSITIVE, "loss of the whole batch"),),
    "directions": (
        ("count", _RUN, "components", _ANY, "principal components learned"),
        ("share", (*_RUN, "direction"), "share", _ANY, "entry by the best one"),
        ("off", _RUN, "share", _SHARE, "energy of M off the diagonal"),
    ),
    "heads": (("value", (*_RUN, "head"), "1", _ANY, "value of the head, at the label"),),
    "circuits": (
        ("m", (*_RUN, *_MATRIX), "1", _ANY, "M, summed over heads"),
        ("heads_m", (*_RUN, "head", *_MATRIX), "1", _ANY, "value times key times query"),
    ),
    "sweep": (
        ("by_length", (*_RUN, "length"), "squared label", _POSITIVE, "loss at other lengths"),
    ),
}  # fmt: skip
VARIABLES = tuple(
    Variable(name, dims, units, low, high, group, about)
    for group, rows in _GROUPS.items()
    for name, dims, units, (low, high), about in rows
)


def of_heads(value: np.ndarray, matrices: np.ndarray, task: Task) -> xr.Dataset:
    """All but the loss, from values [run, head] and matrices [run, head, key, query]."""
    m = matrices.sum(axis=1)
    diagonal = np.diagonal(m, axis1=-2, axis2=-1)
    share = diagonal / closed.entries(task)
    energy = (m**2).sum((-2, -1))
    by_length = np.stack([at_length(task, length).moments().loss(m) for length in LENGTHS], axis=-1)
    return xr.Dataset(
        {
            "count": ("run", share.sum(axis=-1)),
            "share": (("run", "direction"), share),
            "off": ("run", 1.0 - (diagonal**2).sum(-1) / energy),
            "value": (("run", "head"), value),
            "m": (("run", *_MATRIX), m),
            "heads_m": (("run", "head", *_MATRIX), matrices),
            "by_length": (("run", "length"), by_length),
        }
    )


def at_length(task: Task, length: int) -> Task:
    """The same task with prompts of another length."""
    return replace(task, length=length)


def baselines(task: Task) -> np.ndarray:
    """Loss of the best regression on 0 to D components at each of `LENGTHS`, [count, length]."""
    return np.stack([closed.heights(at_length(task, length)) for length in LENGTHS], axis=1)
