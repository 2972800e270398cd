"""The network of the laboratory: one layer of softmax attention and nothing else, runs stacked.

A prompt is columns z_l = (x_l, y_l), its query z_q = (x_q, 0); width w = d + tasks, and every head
has the full width (He et al. 2025, arXiv 2503.12734):

    prediction = sum_h O_h V_h Z softmax_l( (K_h z_l)'(Q_h z_q) / sqrt w )

No positions, no biases, no residual, no LayerNorm, no MLP; the query does not attend to itself.
Only two products of the matrices matter, the circuits of a head, and the forward pass uses them:
KQ = K'Q / sqrt w [key coordinate, query coordinate] and OV = O V [task, key coordinate].  Columns
of KQ beyond d meet the zeros of z_q.  Parameters are a dict of tensors [run, head, ...]; the runs
of a stack see the same prompts and mix nothing, so a run in a stack is the run alone.  Initial
values are PyTorch's defaults: uniform within 1/sqrt(fan_in), fan_in = heads * w for O.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import init

from workbench.errors import WorkbenchError
from workbench.zoo.regression.task import Prompts, Task

Parameters = dict[str, Tensor]

IDENTITY, REST = 0.3, 0.1  # a start with given signs: how much of the pattern, and of the draw


@dataclass(frozen=True)
class Shape:
    """Sizes that all runs of a stack share."""

    d: int
    tasks: int
    heads: int

    @property
    def width(self) -> int:
        return self.d + self.tasks


def shape_of(task: Task, heads: int) -> Shape:
    """The network for a task."""
    return Shape(task.d, task.n_tasks, heads)


def start(shape: Shape, seeds: Sequence[int], signs: Sequence[tuple[int, ...]]) -> Parameters:
    """Initial parameters, one run per seed.

    `signs` has an entry per run: empty, or +1 or -1 per head, the sign with which both omega and
    mu of that head start.
    """
    drawn = [
        _signed(_start_one(shape, torch.Generator().manual_seed(seed)), shape, wanted)
        for seed, wanted in zip(seeds, signs, strict=True)
    ]
    return {name: torch.stack([run[name] for run in drawn]) for name in drawn[0]}


def _start_one(shape: Shape, generator: torch.Generator) -> Parameters:
    w, heads = shape.width, shape.heads

    def linear(rows: int, fan_in: int) -> Tensor:
        bound = 1 / math.sqrt(fan_in)
        weight = torch.empty(heads, rows, w)
        return init.uniform_(weight, -bound, bound, generator=generator)

    return {
        "q": linear(w, w),
        "k": linear(w, w),
        "v": linear(w, w),
        "o": linear(shape.tasks, heads * w),
    }


def _signed(one: Parameters, shape: Shape, wanted: tuple[int, ...]) -> Parameters:
    """A start with the pattern and these signs: `IDENTITY` times it plus `REST` times the draw."""
    if not wanted:
        return one
    if len(wanted) != shape.heads or set(wanted) - {1, -1} or shape.tasks > 1:
        raise WorkbenchError(
            f"signs {wanted} for {shape.heads} heads and {shape.tasks} tasks; give one task and "
            "+1 or -1 per head."
        )
    sign = torch.tensor(wanted, dtype=torch.float32)[:, None, None]
    identity = torch.eye(shape.width)
    planted = {"q": sign * identity, "k": identity, "v": identity, "o": sign * identity[-1:]}
    return {name: REST * one[name] + IDENTITY * planted[name] for name in one}


def circuits(parameters: Parameters) -> tuple[Tensor, Tensor]:
    """KQ [..., head, key coordinate, query coordinate] and OV [..., head, task, coordinate]."""
    q, k = parameters["q"], parameters["k"]
    return k.mT @ q / math.sqrt(q.shape[-1]), parameters["o"] @ parameters["v"]


def predict(parameters: Parameters, prompts: Prompts) -> Tensor:
    """Predictions [run, prompt, task]."""
    kq, ov = circuits(parameters)
    runs, heads = kq.shape[:2]
    z = torch.from_numpy(prompts.z)
    x_q = torch.from_numpy(prompts.x_q)
    # The heads of all runs side by side, as rows of one matrix product per prompt.
    asked = torch.einsum("rhij,bj->brhi", kq[..., : x_q.shape[1]], x_q).flatten(1, 2)
    weights = (asked @ z.mT).softmax(dim=-1)
    seen = (weights @ z).unflatten(1, (runs, heads))
    return torch.einsum("brhi,rhti->rbt", seen, ov)


def losses(parameters: Parameters, prompts: Prompts) -> Tensor:
    """Mean squared error of every run over prompts and tasks, [run]."""
    return (predict(parameters, prompts) - torch.from_numpy(prompts.y_q)).square().mean(dim=(1, 2))
