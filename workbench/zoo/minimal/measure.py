"""What is logged of every run: accuracy, the similarity matrices, patterns of two images."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from workbench.schema import INF, Variable
from workbench.zoo.minimal import model

_RUN = ("run", "step")
_LAYER = (*_RUN, "layer", "head")
_GROUPS = {
    "accuracy": (
        ("accuracy", _RUN, "share", (0.0, 1.0), "images classified rightly, held out"),
    ),
    "loss": (("loss", _RUN, "nats", (0.0, INF), "cross-entropy, held-out images"),),
    "similarity": (
        ("asymmetry", _LAYER, "share", (0.0, 1.0),
         "energy of S in its antisymmetric part, ||S - S'||^2 / 4 ||S||^2"),
        ("unlike_itself", _LAYER, "share", (0.0, 1.0),
         "queries whose score for their own key is negative"),
    ),
    "pattern": (
        ("self_attention", _LAYER, "probability", (0.0, 1.0), "mean weight of a patch on itself"),
        ("entropy", _LAYER, "nats", (0.0, float(np.log(16))), "mean entropy of the pattern"),
    ),
    "maps": (
        ("pattern", (*_LAYER, "probe", "query", "key"), "probability", (0.0, 1.0), "pattern"),
    ),
}  # fmt: skip
VARIABLES = tuple(
    Variable(name, dims, units, low, high, group, about)
    for group, rows in _GROUPS.items()
    for name, dims, units, (low, high), about in rows
)
PROBES = 2


def asymmetry(table: torch.Tensor) -> torch.Tensor:
    """||S - S'||^2 / (4 ||S||^2) of matrices [..., i, j]: 0 symmetric, 1 antisymmetric."""
    difference = table - table.transpose(-1, -2)
    return (difference**2).sum((-2, -1)) / (4 * (table**2).sum((-2, -1)))


def of(parameters: model.Parameters, images: torch.Tensor, labels: torch.Tensor) -> xr.Dataset:
    """Everything of `VARIABLES`, without `step`; images [run, image, patch, pixel]."""
    from torch.nn import functional

    logits, scores, patterns = model.forward(parameters, images)
    right = (logits.argmax(-1) == labels).float().mean(1)
    loss = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)
    table = model.similarity(parameters)
    own = scores.diagonal(dim1=-2, dim2=-1)
    entropy = torch.special.entr(patterns).sum(-1).mean((-2, -1))
    nothing = torch.full(patterns.shape[:2], torch.nan)

    def per_head(values: torch.Tensor) -> tuple[tuple[str, ...], np.ndarray]:
        return ("run", "layer", "head"), values.unsqueeze(2).numpy()

    def where_similar(values: torch.Tensor) -> tuple[tuple[str, ...], np.ndarray]:
        return per_head(nothing if table is None else values)

    weight = patterns.diagonal(dim1=-2, dim2=-1).mean((-2, -1))
    asym = nothing if table is None else asymmetry(table)
    maps = patterns[:, :, None, :PROBES].numpy().astype("float16")
    return xr.Dataset(
        {
            "accuracy": ("run", right.numpy()),
            "loss": ("run", loss.numpy()),
            "asymmetry": per_head(asym),
            "unlike_itself": where_similar((own < 0).float().mean((-2, -1))),
            "self_attention": per_head(weight),
            "entropy": per_head(entropy),
            "pattern": (("run", "layer", "head", "probe", "query", "key"), maps),
        }
    )
