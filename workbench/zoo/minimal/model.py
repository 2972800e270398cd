"""Transformers with fewer and fewer parts, as functions of a stack of parameters.

One head as wide as the model.  With h = LayerNorm(x), rows being patches, a layer adds

    attention(h) = softmax(h S h' / sqrt(d_model)) h W_VO

and, where it has one, an MLP.  What the variants have:

    whole       S = W_Q W_K', W_VO = W_V W_O, MLP
    no-mlp      the same without MLP
    collapsed   S one matrix                            (W_qk of the paper)
    bare        S one matrix, W_VO = I                  (W_qk + no W_v, W_o)
    symmetric   S = C C', C lower triangular, W_VO = I
    uniform     every patch attends to all alike, W_VO = W_V W_O, no MLP: the control, in which
                no similarity is left

For one head the collapse of W_Q W_K' into one matrix loses nothing, and neither does that of W_V
W_O (Bermeitinger et al. 2024, arXiv 2410.13732, section 4); to leave W_VO out does.  LayerNorm has
no parameters.  Images are read from the mean over patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from workbench.errors import WorkbenchError
from workbench.zoo.minimal.task import CLASSES, PATCH, PATCHES

Parameters = dict[str, Tensor]
WHOLE, NO_MLP, COLLAPSED, BARE, SYMMETRIC, UNIFORM = VARIANTS = (
    "whole", "no-mlp", "collapsed", "bare", "symmetric", "uniform",
)  # fmt: skip
_WITH_VALUES = (WHOLE, NO_MLP, COLLAPSED, UNIFORM)
_WITH_QK = (WHOLE, NO_MLP)
_WITH_ONE = (COLLAPSED, BARE)
_WIDER = 4  # MLP over d_model
_POSITION_SCALE = 0.3


def shapes(variant: str, d_model: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of one network."""
    if variant not in VARIANTS:
        raise WorkbenchError(f"there is no variant {variant!r}; known: {', '.join(VARIANTS)}.")
    square = (layers, d_model, d_model)
    found = {
        "embed": (PATCH * PATCH, d_model),
        "position": (PATCHES, d_model),
        "read": (d_model, CLASSES),
        "read_bias": (CLASSES,),
    }
    if variant in _WITH_QK:
        found |= {"query": square, "key": square}
    if variant in _WITH_ONE:
        found["similarity"] = square
    if variant == SYMMETRIC:
        found["cholesky"] = (layers, d_model * (d_model + 1) // 2)
    if variant in _WITH_VALUES:
        found |= {"value": square, "out": square}
    if variant == WHOLE:
        wide = _WIDER * d_model
        found |= {
            "up": (layers, d_model, wide), "up_bias": (layers, wide),
            "down": (layers, wide, d_model), "down_bias": (layers, d_model),
        }  # fmt: skip
    return found


def size(variant: str, d_model: int, layers: int) -> dict[str, int]:
    """How many numbers are trained: in the layers, and in all."""
    each = {name: math.prod(shape) for name, shape in shapes(variant, d_model, layers).items()}
    outside = sum(each[name] for name in ("embed", "position", "read", "read_bias"))
    return {"layers": sum(each.values()) - outside, "all": sum(each.values())}


def start(variant: str, d_model: int, layers: int, seeds: list[int]) -> Parameters:
    """Random parameters [run, ...]: normal, of variance 1 / (number of inputs); biases zero."""
    runs = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        one = {}
        for name, shape in shapes(variant, d_model, layers).items():
            drawn = torch.randn(shape, generator=generator)
            if name.endswith("bias"):
                one[name] = torch.zeros(shape)
            elif name == "position":
                one[name] = _POSITION_SCALE * drawn
            else:
                inputs = d_model if name == "cholesky" else shape[-2]
                one[name] = drawn / math.sqrt(inputs)
        runs.append(one)
    return {name: torch.stack([one[name] for one in runs]) for name in runs[0]}


def similarity(parameters: Parameters) -> Tensor | None:
    """S of every layer, [run, layer, d_model, d_model]; None where no similarity is left."""
    if "query" in parameters:
        return parameters["query"] @ parameters["key"].transpose(-1, -2)
    if "similarity" in parameters:
        return parameters["similarity"]
    if "cholesky" not in parameters:
        return None
    packed = parameters["cholesky"]
    d_model = (math.isqrt(8 * packed.shape[-1] + 1) - 1) // 2
    rows, columns = torch.tril_indices(d_model, d_model)
    lower = packed.new_zeros(*packed.shape[:-1], d_model, d_model)
    lower[..., rows, columns] = packed
    return lower @ lower.transpose(-1, -2)


def forward(parameters: Parameters, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images [run, image, patch, pixel] to logits [run, image, class].

    Also scores and patterns, each [run, layer, image, query, key]; scores of a uniform variant are
    zero.
    """
    x = torch.einsum("ripc,rcd->ripd", images, parameters["embed"])
    x = x + parameters["position"][:, None]
    width = x.shape[-1]
    table = similarity(parameters)
    layers = 1 if table is None else table.shape[1]
    if "value" in parameters:
        layers = parameters["value"].shape[1]
    scores, patterns = [], []
    for layer in range(layers):
        h = functional.layer_norm(x, (width,))
        if table is None:
            score = h.new_zeros(*h.shape[:-1], h.shape[-2])
        else:
            score = torch.einsum("riqd,rde,rike->riqk", h, table[:, layer], h) / math.sqrt(width)
        pattern = score.softmax(-1)
        moved = pattern @ h
        if "value" in parameters:
            # One head: the order of the two products is free.
            moved = moved @ parameters["value"][:, None, layer] @ parameters["out"][:, None, layer]
        x = x + moved
        if "up" in parameters:
            x = x + _mlp(parameters, layer, functional.layer_norm(x, (width,)))
        scores.append(score)
        patterns.append(pattern)
    pooled = functional.layer_norm(x, (width,)).mean(2)
    logits = pooled @ parameters["read"] + parameters["read_bias"][:, None]
    return logits, torch.stack(scores, 1), torch.stack(patterns, 1)


def _mlp(parameters: Parameters, layer: int, h: Tensor) -> Tensor:
    inner = h @ parameters["up"][:, None, layer] + parameters["up_bias"][:, None, None, layer]
    inner = functional.gelu(inner)
    return (
        inner @ parameters["down"][:, None, layer] + parameters["down_bias"][:, None, None, layer]
    )


def losses(parameters: Parameters, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of every run, [run], in nats; batch is images and labels [run, image]."""
    images, labels = batch
    logits = forward(parameters, images)[0]
    each = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return each.mean(1)
