"""Small decoders with sinks written into their weights, in four families, and the tokens that show
them.

Dimensions 0 .. 23 of the stream carry flags, a pair each (+1, -1), which nothing writes but what is
planted; reading a pair by its difference survives both kinds of norm.  A planted neuron fires for
its flags only, and its column of `down` is scaled until it writes exactly the wanted vector at one
position of `PROMPT`.  Position 0 becomes the primary sink in layer 1, until layer 7.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = ("llama", "qwen3", "gpt_neox", "gpt2")
D, D_HEAD, N_HEADS, N_LAYERS, WIDTH, VOCAB = 64, 16, 4, 8, 32, 60
FLAGS = ("bos", "trigger", "context", "seen", "made", "low", "gap", "gapped", "spike", "source",
         "one")  # fmt: skip
RESERVED, MASSIVE = 24, 24
K_PRIMARY, K = 120.0, 60.0

BOS, TRIGGER, CONTEXT, LOW, GAP, SPIKE, SOURCE = range(1, 8)
PROMPT = [BOS, 20, TRIGGER, 21, CONTEXT, 22, 23, TRIGGER, 24, LOW, 25, GAP, 26, SPIKE, 27, 28]
SINK, SAME = 7, 2
MADE_IN, UNDONE_IN, NEURON = 3, 6, 5


def flag(name: str) -> torch.Tensor:
    pair = torch.zeros(D)
    at = 2 * FLAGS.index(name)
    pair[at], pair[at + 1] = 0.5**0.5, -(0.5**0.5)
    return pair


def dense(seed: int) -> torch.Tensor:
    """A unit vector outside the flags and the massive dimension, of mean zero."""
    v = torch.zeros(D)
    v[MASSIVE + 1 :] = torch.randn(D - MASSIVE - 1, generator=torch.Generator().manual_seed(seed))
    v[MASSIVE + 1 :] -= v[MASSIVE + 1 :].mean()
    return v / v.norm()


def spike() -> torch.Tensor:
    return torch.eye(D)[MASSIVE]


def primary_direction() -> torch.Tensor:
    """Mostly one massive dimension, and enough of the others to be told from it."""
    return 0.95 * spike() + (1 - 0.95**2) ** 0.5 * dense(0)


def across(seed: int = 1) -> torch.Tensor:
    """A dense unit vector at right angles to the primary direction."""
    v = dense(seed)
    v = v - (v @ dense(0)) * dense(0)
    return v / v.norm()


def random_net(family: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    shared = {"vocab_size": VOCAB, "bos_token_id": BOS, "eos_token_id": 0}
    shape = {"num_hidden_layers": N_LAYERS, "hidden_size": D, "num_attention_heads": N_HEADS,
             "intermediate_size": WIDTH, **shared}  # fmt: skip
    if family == "llama":
        net = LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=N_HEADS))
    elif family == "qwen3":
        net = Qwen3ForCausalLM(Qwen3Config(**shape, num_key_value_heads=N_HEADS, head_dim=D_HEAD))
    elif family == "gpt_neox":
        net = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, hidden_act="relu"))
    else:
        config = GPT2Config(n_layer=N_LAYERS, n_head=N_HEADS, n_embd=D, n_inner=WIDTH,
                            n_positions=64, activation_function="relu", **shared)  # fmt: skip
        net = GPT2LMHeadModel(config)
    net.get_input_embeddings().weight.data.normal_(std=0.3)
    return net.eval().requires_grad_(False)


def parts(net: torch.nn.Module, layer: int) -> SimpleNamespace:
    """The linear maps of one block; q and v as functions of the head giving rows [d_head, D]."""
    if hasattr(net, "gpt_neox"):
        block = net.gpt_neox.layers[layer]
        qkv = _rows(block.attention.query_key_value).view(N_HEADS, 3, D_HEAD, D)
        return SimpleNamespace(
            block=block, up=block.mlp.dense_h_to_4h, gate=None, down=block.mlp.dense_4h_to_h,
            o=block.attention.dense, q=lambda h: qkv[h, 0], k=lambda h: qkv[h, 1],
            v=lambda h: qkv[h, 2],
        )  # fmt: skip
    if hasattr(net, "transformer"):
        block = net.transformer.h[layer]
        qkv = block.attn.c_attn.weight.T.view(3, N_HEADS, D_HEAD, D)
        return SimpleNamespace(
            block=block, up=block.mlp.c_fc, gate=None, down=block.mlp.c_proj, o=block.attn.c_proj,
            q=lambda h: qkv[0, h], k=lambda h: qkv[1, h], v=lambda h: qkv[2, h],
        )  # fmt: skip
    block = net.model.layers[layer]
    q, k, v = (_rows(getattr(block.self_attn, f"{n}_proj")).view(N_HEADS, D_HEAD, D) for n in "qkv")
    return SimpleNamespace(
        block=block, up=block.mlp.up_proj, gate=block.mlp.gate_proj, down=block.mlp.down_proj,
        o=block.self_attn.o_proj, q=lambda h: q[h], k=lambda h: k[h], v=lambda h: v[h],
    )  # fmt: skip


def _rows(module: torch.nn.Module) -> torch.Tensor:
    """The weight as [out, in], a view."""
    return module.weight.T if hasattr(module, "nf") else module.weight


def clear(net: torch.nn.Module, everything: bool = False) -> None:
    """Nothing writes flags or the massive dimension any more; with `everything`, blocks write
    nothing at all, but the last: a model whose attention changes nothing is refused."""
    for layer in range(N_LAYERS):
        upto = D if everything and layer < N_LAYERS - 1 else MASSIVE + 1
        own = parts(net, layer)
        for module in (own.o, own.down):
            _rows(module)[:upto] = 0
            if getattr(module, "bias", None) is not None:
                module.bias[:upto] = 0
    for module in net.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight[:, : MASSIVE + 1] = 0


def mark(net: torch.nn.Module, token: int, name: str, size: float = 4.0) -> None:
    net.get_input_embeddings().weight[token] += size * flag(name)


def watch(net, module, ids, outgoing=True):
    """What leaves (or enters) a module in one pass, [position, width]."""
    seen = []
    if outgoing:
        handle = module.register_forward_hook(lambda _m, _a, out: seen.append(out))
    else:
        handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        net(input_ids=torch.tensor([ids]))
    handle.remove()
    (value,) = seen
    value = value[0] if isinstance(value, tuple) else value
    return value.reshape(-1, value.shape[-1]).clone()


def spread_flag(net, layer: int, source: str, writes: torch.Tensor, at: int, ids, head=0) -> None:
    """A head that looks at all it sees alike carries a flag on as `writes`, exact at `at`."""
    own = parts(net, layer)
    own.q(head)[:] = 0
    own.v(head)[:] = 0
    own.v(head)[0] = flag(source)
    columns = _rows(own.o)[:, head * D_HEAD : (head + 1) * D_HEAD]
    columns[:] = 0
    carried = watch(net, own.o, ids, outgoing=False)[at, head * D_HEAD]
    assert carried > 0.05, f"the flag {source!r} does not reach position {at}"
    columns[:, 0] = writes / carried


def plant(net, layer: int, neuron: int, reads: tuple[str, ...], writes, at: int, ids=PROMPT):
    """A neuron that fires where all flags of `reads` are up, and writes `writes` at `at`."""
    own = parts(net, layer)
    _rows(own.down)[:, neuron] = 0
    if own.gate is not None:
        _rows(own.gate)[neuron] = 10 * flag(reads[0])
        _rows(own.up)[neuron] = flag(reads[-1])
    else:
        _rows(own.up)[neuron] = sum(flag(name) for name in reads)
        own.up.bias[neuron] = 0
        if len(reads) > 1:
            before = watch(net, own.up, ids)[:, neuron]
            others = before[torch.arange(len(before)) != at].max()
            assert before[at] > 1.2 * others, f"flags {reads} do not tell position {at}"
            own.up.bias[neuron] = -(before[at] + others) / 2
    product = watch(net, own.down, ids, outgoing=False)[at, neuron]
    _rows(own.down)[:, neuron] = writes / product


def planted_net(family: str) -> torch.nn.Module:
    """The primary sink, one secondary sink (token TRIGGER behind CONTEXT, made in layer 3, undone
    in layer 6) and three decoys: cosine .85, a gap, one shared massive dimension."""
    net, u, w = random_net(family), primary_direction(), across()
    clear(net)
    for token, name in ((BOS, "bos"), (TRIGGER, "trigger"), (CONTEXT, "context"), (LOW, "low"),
                        (GAP, "gap"), (SPIKE, "spike")):  # fmt: skip
        mark(net, token, name)
    spread_flag(net, 0, "context", 4 * flag("seen"), SINK, PROMPT)
    at = {name: PROMPT.index(token) for name, token in
          (("low", LOW), ("gap", GAP), ("spike", SPIKE))}  # fmt: skip
    plant(net, 1, 0, ("bos",), K_PRIMARY * u, 0)
    plant(net, 2, 1, ("gap",), K * u + 4 * flag("gapped"), at["gap"])
    low = 0.85 * u + (1 - 0.85**2) ** 0.5 * w
    plant(net, MADE_IN, NEURON, ("trigger", "seen"), K * u + 4 * flag("made"), SINK)
    plant(net, 3, 2, ("low",), K * low, at["low"])
    plant(net, 3, 3, ("spike",), K * spike(), at["spike"])
    plant(net, 4, 1, ("gapped",), K * w, at["gap"])
    plant(net, 5, 1, ("gapped",), -K * w, at["gap"])
    plant(net, UNDONE_IN, 1, ("gapped",), -K * u, at["gap"])
    plant(net, UNDONE_IN, 3, ("spike",), -K * spike(), at["spike"])
    plant(net, UNDONE_IN, NEURON, ("made",), -K * u, SINK)
    plant(net, 7, 0, ("bos",), -K_PRIMARY * u, 0)
    return net


STEERED = [BOS, SOURCE, 30, TRIGGER, 31, 32, 33, 34]
STEERED_SINK = 3
NOISE = 12.0


def steerable_net() -> torch.nn.Module:
    """A sink at position 3, made in layer 3, to which layers 4 to 6 add noise of a fixed norm.

    The noise comes through attention from another token, so it does not change with the sink.
    Blocks write nothing else; head 1 of every layer looks along the primary direction.
    """
    net, u = random_net("llama"), primary_direction()
    clear(net, everything=True)
    for token, name in ((BOS, "bos"), (TRIGGER, "trigger"), (SOURCE, "source")):
        mark(net, token, name)
    for token in range(VOCAB):
        mark(net, token, "one", 2.0)
    plant(net, 1, 0, ("bos",), K_PRIMARY * u, 0, STEERED)
    plant(net, MADE_IN, NEURON, ("trigger",), K * u, STEERED_SINK, STEERED)
    for layer in range(N_LAYERS):
        own = parts(net, layer)
        # The slowest pair of rotary dimensions hardly turns over a few tokens.
        own.q(1)[:], own.k(1)[:] = 0, 0
        own.q(1)[D_HEAD // 2 - 1] = 4 * flag("one")
        own.k(1)[D_HEAD // 2 - 1] = u
        if layer in (4, 5, 6):
            noise = NOISE * orthogonal(layer - 4)
            spread_flag(net, layer, "source", noise, STEERED_SINK, STEERED)
    plant(net, 7, 0, ("bos",), -K_PRIMARY * u, 0, STEERED)
    return net


def orthogonal(i: int) -> torch.Tensor:
    """Three dense unit vectors at right angles to one another and to the primary direction."""
    basis = np.linalg.qr(torch.stack([dense(0), *(dense(s) for s in (5, 6, 7))]).T.numpy())[0]
    return torch.as_tensor(basis[:, i + 1])
