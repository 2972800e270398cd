"""The network of the laboratory: a small causal decoder whose layers mix positions in several ways.

Pre-norm blocks with RMSNorm, rotary positions and a gated SiLU MLP, without biases, untied output:
the parts of the Qwen2.5 models of Xue et al. 2025 (arXiv 2510.11602).  A layer's mixer is one of
`shape.MIXERS`; those of `mixing` differ in how the weights come from q and k, the last three in
what q and k are computed from (v always comes from the layer's own input):

    rnd-emb-qk     a stream of random embeddings, the same for every text, passed through the blocks
    fixed-seq-qk   the stream of one fixed text
    static-emb-qk  the token embeddings of the text itself
    mlp            no mixing: a gated SiLU MLP with as many parameters as the four maps of attention

Random stream and fixed text ride along as one more text in front of the batch, so they pass the
same blocks.  Parameters are a dict of tensors [run, ...]; runs of a stack see the same texts and
mix nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional, init

from workbench.errors import WorkbenchError
from workbench.zoo.deconstructed import mixing
from workbench.zoo.deconstructed.shape import FROM_OUTSIDE, Shape

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Trace:
    """One pass: `logits` [run, text, query, token] and, per layer with attention, what is measured.

    `scores` (before the mask) and `pattern` [run, text, head, query, key], and `output` [run, text,
    head, query, d_head] beside the q, k and v it came from; None for layers without attention.
    """

    logits: Tensor
    layers: tuple[Mixed | None, ...]


@dataclass(frozen=True)
class Mixed:
    """What the attention of one layer did, on the texts alone; see `Trace`."""

    q: Tensor
    k: Tensor
    v: Tensor
    scores: Tensor
    pattern: Tensor
    output: Tensor


def start(shape: Shape, seeds: Sequence[int]) -> Parameters:
    """Initial parameters, one run per seed; each run's draw depends on its seed alone."""
    runs = [_start_one(shape, torch.Generator().manual_seed(seed)) for seed in seeds]
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def _start_one(shape: Shape, generator: torch.Generator) -> Parameters:
    d, m = shape.d_model, shape.d_mlp

    def linear(rows: int, columns: int) -> Tensor:
        bound = 1 / math.sqrt(columns)
        return init.uniform_(torch.empty(rows, columns), -bound, bound, generator=generator)

    found = {"token": init.normal_(torch.empty(shape.vocabulary, d), generator=generator)}
    for layer, mixer in enumerate(shape.mixers):
        if mixer == "mlp":
            maps = {"gate": linear(m, d), "up": linear(m, d), "down": linear(d, m)}
        else:
            maps = {name: linear(d, d) for name in "qkvo"}
        block = {
            "mix_gain": torch.ones(d), **maps, "mlp_gain": torch.ones(d),
            "mlp_gate": linear(m, d), "mlp_up": linear(m, d), "mlp_down": linear(d, m),
        }  # fmt: skip
        found |= {f"{layer}.{name}": value for name, value in block.items()}
    return found | {"final_gain": torch.ones(d), "unembed": linear(shape.vocabulary, d)}


def count(shape: Shape) -> int:
    """Number of trained parameters of one run."""
    return sum(value[0].numel() for value in start(shape, [0]).values())


def random_stream(shape: Shape, length: int, seeds: Sequence[int]) -> Tensor:
    """Random embeddings that stand for no text, one draw per run: [run, position, d_model]."""
    # Their own generators: the stream is no parameter, and must not move the start of the others.
    drawn = [torch.Generator().manual_seed(10_000 + seed) for seed in seeds]
    return torch.stack([torch.randn(length, shape.d_model, generator=g) for g in drawn])


def forward(
    parameters: Parameters, ids: Tensor, shape: Shape, outside: Tensor | None = None,
    skipped: Collection[int] = (),
) -> Trace:  # fmt: skip
    """Run every stacked network on the same texts, `ids` [text, query].

    `outside` is the random stream [run, position, d_model] or the fixed text [position] that the
    mixers of `FROM_OUTSIDE` want, at least as long as the texts; layers in `skipped` are left out.
    """
    if (outside is None) == bool(set(shape.mixers) & set(FROM_OUTSIDE)):
        raise WorkbenchError(
            f"mixers {shape.mixers} {'want' if outside is None else 'have no use for'} an outside "
            "stream."
        )
    x = parameters["token"][:, ids]
    if outside is not None:
        given = parameters["token"][:, outside] if outside.ndim == 1 else outside
        x = torch.cat([given[:, None, : ids.shape[1]], x], dim=1)
    rows = slice(x.shape[1] - len(ids), None)
    embedded, layers = x, []
    for layer, mixer in enumerate(shape.mixers):
        block = {
            name.partition(".")[2]: value
            for name, value in parameters.items()
            if name.startswith(f"{layer}.")
        }
        if layer in skipped:
            layers.append(None)
            continue
        h = _norm(x, block["mix_gain"])
        if mixer == "mlp":
            layers.append(None)
            x = x + _gated(h, block["gate"], block["up"], block["down"])
        else:
            mixed = _mix(mixer, h, embedded, block, shape)
            x = x + _linear(mixed.output.transpose(2, 3).flatten(-2), block["o"])
            layers.append(_only(mixed, rows))
        h = _norm(x, block["mlp_gain"])
        x = x + _gated(h, block["mlp_gate"], block["mlp_up"], block["mlp_down"])
    h = _norm(x[:, rows], parameters["final_gain"])
    return Trace(_linear(h, parameters["unembed"]), tuple(layers))


def _mix(mixer: str, h: Tensor, embedded: Tensor, block: Parameters, shape: Shape) -> Mixed:
    """Attention of one layer; h and the embeddings are [run, text, query, d_model]."""
    source = h
    if mixer in FROM_OUTSIDE:
        source = h[:, :1]
    elif mixer == "static-emb-qk":
        source = functional.rms_norm(embedded, embedded.shape[-1:])
    q, k = (_heads(_linear(source, block[name]), shape) for name in "qk")
    v = _heads(_linear(h, block["v"]), shape)
    if mixer == "non-approximate":
        scores = mixing.gate_scores(q, k)
    else:
        q, k = mixing.rotate(q), mixing.rotate(k)
        scores = mixing.scores_of(q, k)
    rows = mixing.taylor_rows if mixer == "approximate" else mixing.softmax_rows
    pattern = rows(scores)
    return Mixed(q, k, v, scores, pattern, pattern @ v)


def _only(mixed: Mixed, rows: slice) -> Mixed:
    """The same without the outside stream; a map of its own is repeated for every text."""
    texts = mixed.v[:, rows]

    def kept(x: Tensor) -> Tensor:
        return x.expand(-1, texts.shape[1], *x.shape[2:]) if x.shape[1] == 1 else x[:, rows]

    return Mixed(
        kept(mixed.q), kept(mixed.k), texts, kept(mixed.scores), kept(mixed.pattern),
        mixed.output[:, rows],
    )  # fmt: skip


def next_symbol_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the symbols that came, [run], in nats; `targets` [text, query]."""
    runs = len(logits)
    losses = functional.cross_entropy(
        logits.flatten(0, 2), targets.flatten().repeat(runs), reduction="none"
    )
    return losses.view(runs, -1).mean(dim=1)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [run, text, query, in] times weight [run, out, in]."""
    # One matrix product per run.
    return (x.flatten(1, 2) @ weight.mT).unflatten(1, x.shape[1:3])


def _norm(x: Tensor, gain: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:]) * gain[:, None, None]


def _gated(h: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return _linear(functional.silu(_linear(h, gate)) * _linear(h, up), down)


def _heads(x: Tensor, shape: Shape) -> Tensor:
    """[run, text, query, d_model] to [run, text, head, query, d_head]."""
    return x.unflatten(-1, (shape.heads, -1)).transpose(2, 3)
