"""The network of the laboratory: a pre-LN decoder whose runs are stacked on a leading axis.

Learned absolute positions, ReLU MLP of width 4 d_model, no biases but those of LayerNorm, untied
output (Guo et al. 2024, arXiv 2410.13835).  Parameters are a dict of tensors [run, ...], those of
blocks [run, layer, ...]; nothing mixes runs, so a run in a stack is the run alone.  Initial values
are PyTorch's defaults: embeddings normal with deviation 1, linear maps uniform within
1/sqrt(fan_in), LayerNorm the identity.

ReLU attention is relu(score) / (number of keys the query sees); its rows do not sum to one.  A null
sink is a learned logit in the denominator of the softmax, without key or value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional, init

from workbench.errors import WorkbenchError

Parameters = dict[str, Tensor]

ATTENTIONS = ("softmax", "relu")
EPS = 1e-5
_BLOCK = ("attn_gain", "attn_bias", "q", "k", "v", "o", "mlp_gain", "mlp_bias", "up", "down")


@dataclass(frozen=True)
class Shape:
    """Sizes that all runs of a stack share."""

    vocabulary: int
    length: int
    layers: int
    heads: int
    d_model: int
    attention: str = "softmax"

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise WorkbenchError(
                f"attention {self.attention!r} is none of {', '.join(ATTENTIONS)}."
            )
        if self.d_model % self.heads:
            raise WorkbenchError(f"{self.heads} heads do not divide the width {self.d_model}.")

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads


@dataclass(frozen=True)
class Parts:
    """What of each run's network is there: constants, so settings and interventions alike.

    `heads` [run, layer, head] and `mlps` [run, layer] are factors of 0 or 1 on outputs;
    `null_start` [run] is where the null sink's logit begins (-inf: no null sink) and `null_rate`
    [run] multiplies its learning rate; `evicted` is a key nobody but itself may attend to.
    """

    heads: Tensor
    mlps: Tensor
    null_start: Tensor
    null_rate: Tensor
    evicted: int | None = None

    def without_head(self, layer: int, head: int) -> Parts:
        """The same with one head's output zeroed."""
        heads = self.heads.clone()
        heads[:, layer, head] = 0
        return replace(self, heads=heads)

    def without_mlp(self, layer: int) -> Parts:
        """The same with one MLP's output zeroed."""
        mlps = self.mlps.clone()
        mlps[:, layer] = 0
        return replace(self, mlps=mlps)

    def without_key(self, key: int) -> Parts:
        """The same with one key evicted from every later query."""
        return replace(self, evicted=key)


def all_parts(shape: Shape, runs: int) -> Parts:
    """Everything there, no null sink."""
    return Parts(
        heads=torch.ones(runs, shape.layers, shape.heads),
        mlps=torch.ones(runs, shape.layers),
        null_start=torch.full((runs,), -math.inf),
        null_rate=torch.ones(runs),
    )


@dataclass(frozen=True)
class Trace:
    """One pass: `logits` [run, text, query, token] and, per layer, what is measured.

    `scores` and `pattern` [run, text, head, query, key] (scores scaled, before the mask), `values`
    [run, text, head, key, d_head], `stream` [run, text, query, d_model] (the embedding, then the
    output of every block).
    """

    logits: Tensor
    scores: tuple[Tensor, ...]
    pattern: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    stream: tuple[Tensor, ...]


def start(shape: Shape, seeds: Sequence[int]) -> Parameters:
    """Initial parameters, one run per seed; each run's draw depends on its seed alone."""
    runs = [_start_one(shape, torch.Generator().manual_seed(seed)) for seed in seeds]
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def _start_one(shape: Shape, generator: torch.Generator) -> Parameters:
    d, layers = shape.d_model, shape.layers

    def linear(*size: int) -> Tensor:
        weight = torch.empty(size)
        bound = 1 / math.sqrt(size[-1])
        return init.uniform_(weight, -bound, bound, generator=generator)

    def embedding(*size: int) -> Tensor:
        return init.normal_(torch.empty(size), generator=generator)

    return {
        "token": embedding(shape.vocabulary, d),
        "position": embedding(shape.length, d),
        "attn_gain": torch.ones(layers, d),
        "attn_bias": torch.zeros(layers, d),
        "q": linear(layers, d, d),
        "k": linear(layers, d, d),
        "v": linear(layers, d, d),
        "o": linear(layers, d, d),
        "null": torch.zeros(layers, shape.heads),
        "mlp_gain": torch.ones(layers, d),
        "mlp_bias": torch.zeros(layers, d),
        "up": linear(layers, 4 * d, d),
        "down": linear(layers, d, 4 * d),
        "final_gain": torch.ones(d),
        "final_bias": torch.zeros(d),
        "unembed": linear(shape.vocabulary, d),
    }


def forward(parameters: Parameters, ids: Tensor, shape: Shape, parts: Parts) -> Trace:
    """Run every stacked network on its own texts; `ids` [run, text, query]."""
    runs, texts, length = ids.shape
    first = shape.vocabulary * torch.arange(runs)[:, None, None]
    x = functional.embedding(ids + first, parameters["token"].flatten(0, 1))
    # [run, text * query, d_model]: one matrix product per run and linear map.
    x = (x + parameters["position"][:, None, :length]).flatten(1, 2)
    stream, scores, pattern, values = [x], [], [], []
    for layer in range(shape.layers):
        block = {name: parameters[name][:, layer] for name in _BLOCK}
        h = _norm(x, block["attn_gain"], block["attn_bias"])
        q, k, v = (_heads(_linear(h, block[name]), texts, shape) for name in "qkv")
        s = q @ k.mT / math.sqrt(shape.d_head)
        a = _attend(s, _null_logit(parameters, parts, layer), shape, parts.evicted)
        z = (a @ v) * parts.heads[:, layer, None, :, None, None]
        x = x + _linear(z.transpose(2, 3).reshape(runs, texts * length, -1), block["o"])
        h = _norm(x, block["mlp_gain"], block["mlp_bias"])
        mlp = _linear(_linear(h, block["up"]).relu(), block["down"])
        x = x + mlp * parts.mlps[:, layer, None, None]
        for kept, value in zip((stream, scores, pattern, values), (x, s, a, v), strict=True):
            kept.append(value)
    h = _norm(x, parameters["final_gain"], parameters["final_bias"])
    return Trace(
        logits=_linear(h, parameters["unembed"]).unflatten(1, (texts, length)),
        scores=tuple(scores),
        pattern=tuple(pattern),
        values=tuple(values),
        stream=tuple(x.unflatten(1, (texts, length)) for x in stream),
    )


def result_norms(trace: Trace, parameters: Parameters, layer: int) -> Tensor:
    """||W_O v|| of every key, [run, text, head, key]: the value as the stream receives it."""
    values = trace.values[layer]
    # W_O maps the heads side by side: [run, d_model, head, d_head].
    out = parameters["o"][:, layer].unflatten(-1, (values.shape[2], values.shape[-1]))
    return torch.einsum("rbhkd,rmhd->rbhkm", values, out).norm(dim=-1)


def next_symbol_loss(trace: Trace, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the symbols that came, [run], in nats; `targets` [run, text, query]."""
    runs = len(targets)
    losses = functional.cross_entropy(
        trace.logits.flatten(0, 2), targets.flatten(), reduction="none"
    )
    return losses.view(runs, -1).mean(dim=1)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [run, row, in] times weight [run, out, in]."""
    return x @ weight.mT


def _norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=EPS) * gain[:, None] + bias[:, None]


def _heads(x: Tensor, texts: int, shape: Shape) -> Tensor:
    """[run, text * query, d_model] to [run, text, head, query, d_head]."""
    return x.unflatten(1, (texts, -1)).unflatten(-1, (shape.heads, -1)).transpose(2, 3)


def _null_logit(parameters: Parameters, parts: Parts, layer: int) -> Tensor | None:
    """Logits of the null sinks [run, head], or None where no run of the stack has one."""
    if parts.null_start.isneginf().all():
        return None
    # A factor on the parameter is a factor on Adam's step, whose size ignores the gradient's.
    grown = parts.null_rate[:, None] * parameters["null"][:, layer]
    return parts.null_start[:, None] + grown


def _attend(scores: Tensor, null: Tensor | None, shape: Shape, evicted: int | None) -> Tensor:
    """Scores [run, text, head, query, key] to weights; masked keys get exactly zero."""
    length = scores.shape[-1]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    if evicted is not None:
        hidden[evicted + 1 :, evicted] = True
    scores = scores.masked_fill(hidden, -math.inf)
    if shape.attention == "relu":
        if null is not None:
            raise WorkbenchError("ReLU attention has no denominator for a null sink; take softmax.")
        return scores.relu() / torch.arange(1, length + 1)[:, None]
    if null is None:
        return scores.softmax(dim=-1)
    column = null[:, None, :, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
