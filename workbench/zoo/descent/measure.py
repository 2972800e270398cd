"""What is logged of every run: its loss, how close it is to gradient descent, its circuits.

Beside one step of gradient descent with the best step (`construction.best_step`), on fixed prompts
(von Oswald et al. 2022, arXiv 2212.07677, section 3; their numbers are absolute, ours shares):

    to_gd          ||y - y_GD||^2 / ||y_GD||^2 of predictions
    cosine         mean over prompts of cos(dy/dx_q, dy_GD/dx_q), the sensitivities
    to_sensitivity ||dy/dx_q - dy_GD/dx_q||^2 / ||dy_GD/dx_q||^2
    step           the multiple of a unit step that is nearest to the predictions, by the best one
    off_kq, ov_x   energy of KQ off the identity, and of OV off the label
                   (`workbench.zoo.regression.measure`)
    by_range       loss on coordinates of another range, by that of predicting zero
    loss_over      loss by that of simple predictors, at the range of training

Of a transformer the error is logged for every number of examples, and `above` is the error after
all of them minus that of simple learners.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import xarray as xr

from workbench.schema import INF, Variable
from workbench.zoo.descent import construction
from workbench.zoo.descent.task import Uniform, loss
from workbench.zoo.regression import measure as circuits
from workbench.zoo.regression.task import Prompts, Task

_RUN = ("run", "step")
_HEAD = (*_RUN, "head")
_ANY, _POSITIVE, _SHARE, _COS = (-INF, INF), (0.0, INF), (0.0, 1.0), (-1.0, 1.0)
_NUDGE = 0.05  # of a coordinate, for sensitivities; exact where predictions are linear in x_q


def _declared(groups: dict) -> tuple[Variable, ...]:
    return tuple(
        Variable(name, dims, units, low, high, group, about)
        for group, rows in groups.items()
        for name, dims, units, (low, high), about in rows
    )


LAYER = _declared(
    {
        "loss": (
            ("loss", _RUN, "half squared label", _POSITIVE, "half mean squared error"),
        ),
        "distance to gradient descent": (
            ("to_gd", _RUN, "share", _POSITIVE, "of predictions, to one best step"),
            ("to_sensitivity", _RUN, "share", _POSITIVE, "of sensitivities, to one best step"),
            ("off_kq", _RUN, "share", _SHARE, "energy of KQ off the identity"),
            ("ov_x", _RUN, "share", _SHARE, "energy of OV off the label"),
        ),
        "alignment": (
            ("cosine", _RUN, "1", _COS, "cosine of sensitivities to those of one step"),
            ("size", _RUN, "1", _ANY, "step that fits the predictions, by the best step"),
        ),
        "loss over that of predictors": (
            ("loss_over", (*_RUN, "predictor"), "ratio", _POSITIVE, "at the range of training"),
        ),
        "circuits": (
            ("kq", (*_HEAD, "coordinate", "query_coordinate"), "logits", _ANY, "KQ[:, :d]"),
            ("ov", (*_HEAD, "coordinate"), "1", _ANY, "OV of the label"),
        ),
        "sweep": (
            ("by_range", (*_RUN, "half"), "share of the zero predictor", _POSITIVE,
             "loss at coordinates between -half and half"),
        ),
    }
)  # fmt: skip
TRANSFORMER = _declared(
    {
        "error": (
            ("error", _RUN, "squared label", _POSITIVE, "mean over numbers of examples"),
            ("error_last", _RUN, "squared label", _POSITIVE, "after all examples"),
        ),
        "error above that of learners": (
            ("above", (*_RUN, "predictor"), "squared label", _ANY, "after all examples"),
        ),
        "sweep": (
            ("by_examples", (*_RUN, "examples"), "squared label", _POSITIVE,
             "error after so many examples"),
        ),
        "pattern": (
            ("pattern", (*_RUN, "layer", "head", "probe", "query", "key"), "probability", _SHARE,
             "weights on one prompt"),
        ),
    }
)  # fmt: skip


def sensitivity(predict: Callable[[Prompts], np.ndarray], prompts: Prompts) -> np.ndarray:
    """dy/dx_q [..., prompt, coordinate] of predictions [..., prompt, task], by central differences
    of the first task."""
    parts = []
    for direction in np.eye(prompts.x.shape[2], dtype=np.float32):
        ends = [
            predict(replace(prompts, x_q=prompts.x_q + sign * np.float32(_NUDGE) * direction))
            for sign in (1, -1)
        ]
        parts.append((ends[0] - ends[1])[..., 0] / (2.0 * _NUDGE))
    return np.stack(parts, axis=-1)


def alignment(
    predict: Callable[[Prompts], np.ndarray], prompts: Prompts, step: float
) -> dict[str, np.ndarray]:
    """`to_gd`, `size`, `cosine` and `to_sensitivity`, each [run], of predictions [run, prompt,
    task], beside one step of gradient descent with `step`."""
    predicted = predict(prompts).astype(float)[..., 0]
    wanted = construction.descend(prompts, step, 1)[:, 0]
    felt = sensitivity(predict, prompts).astype(float)
    expected = step * np.einsum("pk,pki->pi", prompts.y[..., 0], prompts.x).astype(float)
    lengths = np.linalg.norm(felt, axis=-1) * np.linalg.norm(expected, axis=-1)
    cosine = np.divide((felt * expected).sum(-1), lengths, out=np.zeros_like(lengths),
                       where=lengths > 0)  # fmt: skip
    return {
        "to_gd": ((predicted - wanted) ** 2).sum(-1) / (wanted**2).sum(),
        "size": (predicted * wanted).sum(-1) / (wanted**2).sum(),
        "cosine": cosine.mean(-1),
        "to_sensitivity": ((felt - expected) ** 2).sum((-2, -1)) / (expected**2).sum(),
    }


def of_circuits(kq: np.ndarray, ov: np.ndarray, task: Uniform) -> xr.Dataset:
    """`off_kq`, `ov_x`, `kq` and `ov` of circuits [run, head, coordinate, ...] of one task."""
    found = circuits.of_circuits(kq, ov, Task(d=task.d, length=task.length))[["off_kq", "ov_x"]]
    found["kq"] = (("run", "head", "coordinate", "query_coordinate"), kq[..., : task.d])
    found["ov"] = (("run", "head", "coordinate"), ov[:, :, 0])
    return found


def range_baselines(task: Uniform, prompts: Mapping[float, Prompts]) -> dict[str, list[float]]:
    """Losses of simple predictors by that of zero, by the range of the coordinates, on the same
    prompts: with the step of training kept, and with the best step there."""
    lines: dict[str, list[float]] = {"zero": [], "GD, step of training": [], "GD, best step": []}
    for half, there in prompts.items():
        best = construction.best_step(replace(task, half=half))
        steps = (0.0, construction.best_step(task), best)
        zero = loss(np.zeros_like(there.y_q), there)
        for line, step in zip(lines.values(), steps, strict=True):
            line.append(loss(construction.descend(there, step, 1), there) / zero)
    return lines


def layer_losses(predicted: np.ndarray, prompts: Prompts) -> np.ndarray:
    """Loss of predictions [run, prompt, task], [run]."""
    return np.array([loss(one, prompts) for one in predicted])
