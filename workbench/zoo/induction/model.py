"""The network of the laboratory: attention and nothing else, runs stacked on a leading axis.

Pre-LN blocks of attention, learned absolute positions, no MLP, no biases but those of LayerNorm,
untied output: the attention-only transformers of Olsson et al. 2022 (arXiv 2209.11895), as a GPT-2
without its MLPs.  Parameters are a dict of tensors [run, ...], those of blocks [run, layer, ...];
nothing mixes runs, so a run in a stack is the run alone.  Initial values are PyTorch's defaults:
embeddings normal with deviation 1, linear maps uniform within 1/sqrt(fan_in).

Smeared keys (their "smeared key" architecture): k_t becomes s k_t + (1 - s) k_{t-1} with a learned
s = sigmoid(smear) per head, so that a key knows the token before it without another layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional, init

from workbench.errors import WorkbenchError

Parameters = dict[str, Tensor]
EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes that all runs of a stack share."""

    vocabulary: int
    length: int
    layers: int
    heads: int
    d_model: int

    def __post_init__(self) -> None:
        if self.d_model % self.heads:
            raise WorkbenchError(f"{self.heads} heads do not divide the width {self.d_model}.")

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads


def start(shape: Shape, seeds: Sequence[int]) -> Parameters:
    """Initial parameters, one run per seed; each run's draw depends on its seed alone."""
    runs = [_start_one(shape, torch.Generator().manual_seed(seed)) for seed in seeds]
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def _start_one(shape: Shape, generator: torch.Generator) -> Parameters:
    d, layers = shape.d_model, shape.layers

    def linear(*size: int) -> Tensor:
        bound = 1 / math.sqrt(size[-1])
        return init.uniform_(torch.empty(size), -bound, bound, generator=generator)

    def embedding(*size: int) -> Tensor:
        return init.normal_(torch.empty(size), generator=generator)

    return {
        "token": embedding(shape.vocabulary, d),
        "position": embedding(shape.length, d),
        "gain": torch.ones(layers, d),
        "bias": torch.zeros(layers, d),
        "q": linear(layers, d, d),
        "k": linear(layers, d, d),
        "v": linear(layers, d, d),
        "o": linear(layers, d, d),
        "smear": torch.zeros(layers, shape.heads),
        "final_gain": torch.ones(d),
        "final_bias": torch.zeros(d),
        "unembed": linear(shape.vocabulary, d),
    }


def forward(
    parameters: Parameters, ids: Tensor, shape: Shape, smeared: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits [run, text, query, token] and patterns [run, layer, text, head, query, key].

    Every stacked network runs on its own texts, `ids` [run, text, query]; `smeared` bool [run]
    says whose keys are.
    """
    runs, texts, length = ids.shape
    first = shape.vocabulary * torch.arange(runs)[:, None, None]
    x = functional.embedding(ids + first, parameters["token"].flatten(0, 1))
    # [run, text * query, d_model]: one matrix product per run and linear map.
    x = (x + parameters["position"][:, None, :length]).flatten(1, 2)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    patterns = []
    for layer in range(shape.layers):
        block = {name: parameters[name][:, layer] for name in ("gain", "bias", *"qkvo", "smear")}
        h = _norm(x, block["gain"], block["bias"])
        q, k, v = (
            (h @ block[name].mT).unflatten(1, (texts, length)).unflatten(-1, (shape.heads, -1))
            .transpose(2, 3)
            for name in "qkv"
        )  # fmt: skip
        if smeared.any():
            k = _smear(k, block["smear"], smeared)
        scores = q @ k.mT / math.sqrt(shape.d_head)
        pattern = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
        x = x + (pattern @ v).transpose(2, 3).reshape(runs, texts * length, -1) @ block["o"].mT
        patterns.append(pattern)
    h = _norm(x, parameters["final_gain"], parameters["final_bias"])
    logits = (h @ parameters["unembed"].mT).unflatten(1, (texts, length))
    return logits, torch.stack(patterns, dim=1)


def next_token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens that came, [run], nats; `targets` [run, text, query]."""
    losses = functional.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none")
    return losses.view(len(targets), -1).mean(dim=1)


def _norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=EPS) * gain[:, None] + bias[:, None]


def _smear(k: Tensor, smear: Tensor, smeared: Tensor) -> Tensor:
    """Keys [run, text, head, key, d_head] mixed with those before them, where runs have that."""
    own = torch.where(smeared[:, None], smear.sigmoid(), 1.0)[:, None, :, None, None]
    mixed = own * k[..., 1:, :] + (1 - own) * k[..., :-1, :]
    return torch.cat([k[..., :1, :], mixed], dim=-2)
