"""A small causal transformer that reads examples one after another, runs stacked.

    tokens   x_1, y_1, x_2, y_2, ..., x_n, y_n, x_q     (x in the first d entries, y in the last)

The prediction of a label is read at its x, so one pass gives the error for every number of examples
from none to n (Garg et al. 2022, arXiv 2208.01066, whose transformer is GPT-2 with 12 layers; here
two).  Blocks are LayerNorm without parameters, causal softmax attention, LayerNorm, a GELU layer of
four times the width; positions are learned.  Parameters are a dict of tensors [run, ...].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.zoo.descent.shape import Shape
from workbench.zoo.regression.task import Prompts

Parameters = dict[str, Tensor]
POSITION = 0.02  # deviation of positions at the start


def start(shape: Shape, seeds: Sequence[int]) -> Parameters:
    """Initial parameters, one run per seed."""
    runs = [_start_one(shape, torch.Generator().manual_seed(seed)) for seed in seeds]
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def _start_one(shape: Shape, generator: torch.Generator) -> Parameters:
    def normal(rows: int, columns: int, scale: float) -> Tensor:
        return scale * torch.randn(rows, columns, generator=generator)

    w = shape.width
    # What a block adds is scaled down by the number of additions, as in GPT-2.
    added = 1.0 / math.sqrt(2 * shape.layers)
    found = {
        "embed": normal(shape.d + 1, w, (shape.d + 1) ** -0.5),
        "position": normal(shape.tokens, w, POSITION),
        "out": normal(w, 1, w**-0.5),
    }
    for layer in range(shape.layers):
        found |= {
            f"qkv{layer}": normal(w, 3 * w, w**-0.5),
            f"o{layer}": normal(w, w, added * w**-0.5),
            f"up{layer}": normal(w, 4 * w, w**-0.5),
            f"down{layer}": normal(4 * w, w, added * (4 * w) ** -0.5),
        }
    return found


def tokens_of(prompts: Prompts) -> np.ndarray:
    """Tokens [prompt, token, d + 1] of all examples and the query."""
    n, length, d = prompts.x.shape
    tokens = np.zeros((n, 2 * length + 1, d + 1), np.float32)
    tokens[:, 0:-1:2, :d], tokens[:, -1, :d] = prompts.x, prompts.x_q
    tokens[:, 1::2, d:] = prompts.y
    return tokens


def labels_of(prompts: Prompts) -> np.ndarray:
    """What is to be predicted, [prompt, number of examples before]."""
    return np.concatenate([prompts.y[..., 0], prompts.y_q], axis=1)


def forward(parameters: Parameters, prompts: Prompts, shape: Shape) -> tuple[Tensor, Tensor]:
    """Predictions [run, prompt, number of examples] and patterns [run, layer, prompt, head, query,
    key]; raises for prompts of another length."""
    if prompts.x.shape[1:] != (shape.examples, shape.d):
        raise WorkbenchError(
            f"prompts have {prompts.x.shape[1]} examples of {prompts.x.shape[2]} coordinates; the "
            f"transformer takes {shape.examples} of {shape.d}."
        )
    tokens = torch.from_numpy(tokens_of(prompts))
    hidden = torch.einsum("bti,riw->rbtw", tokens, parameters["embed"])
    hidden = hidden + parameters["position"][:, None]
    patterns = []
    for layer in range(shape.layers):
        added, pattern = _attend(parameters, layer, _norm(hidden), shape)
        hidden = hidden + added
        inner = F.gelu(_norm(hidden) @ parameters[f"up{layer}"][:, None])
        hidden = hidden + inner @ parameters[f"down{layer}"][:, None]
        patterns.append(pattern)
    read = _norm(hidden[:, :, 0::2]) @ parameters["out"][:, None]
    return read[..., 0], torch.stack(patterns, dim=1)


def _norm(hidden: Tensor) -> Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:])


def _attend(
    parameters: Parameters, layer: int, hidden: Tensor, shape: Shape
) -> tuple[Tensor, Tensor]:
    """What attention adds [run, prompt, token, width], its pattern [run, prompt, head, q, k]."""
    mixed = hidden @ parameters[f"qkv{layer}"][:, None]
    q, k, v = (
        part.unflatten(-1, (shape.heads, -1)).transpose(-3, -2) for part in mixed.chunk(3, dim=-1)
    )
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    hidden_keys = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(hidden_keys, -math.inf).softmax(dim=-1)
    z = (pattern @ v).transpose(-3, -2).flatten(-2)
    return z @ parameters[f"o{layer}"][:, None], pattern


def losses(parameters: Parameters, prompts: Prompts, shape: Shape) -> Tensor:
    """Mean squared error of every run over prompts and numbers of examples, [run]."""
    predicted, _ = forward(parameters, prompts, shape)
    return (predicted - torch.from_numpy(labels_of(prompts))).square().mean(dim=(1, 2))
