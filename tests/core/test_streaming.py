"""The streaming cache against runs token by token, written here from the formulas of two models.

In them a cache holds keys before rotation, drops what is neither among the first nor among the last
ones, and every step turns the keys and its query to their places in the cache.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import gelu, layer_norm, silu
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import workbench as wb
from tests.tiny import IDS, tiny
from workbench.patterns import pattern_of

Edit = wb.Intervention
TEXT = [5, 6, 7, 8, 9, 5, 6, 7, 12, 31, 8, 9, 44, 5, 6, 70, 12, 13]
FIRST, WINDOW = 2, 5
BOUND = 1e-5


def neox():
    """Two layers; a quarter of each head is rotated, attention and MLP run side by side."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, bos_token_id=1, eos_token_id=99,
        rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
        },
    )  # fmt: skip
    net = GPTNeoXForCausalLM(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return wb.load(net)


def turned(x: torch.Tensor, at: torch.Tensor, n_rotated: int) -> torch.Tensor:
    """[head, position, d] rotated to places `at`: pairs (i, i + n/2), angle at * 10000^(-2i/n)."""
    half = n_rotated // 2
    angle = at[:, None].double() * 10000.0 ** (-2 * torch.arange(half).double() / n_rotated)
    a, b, rest = x[..., :half], x[..., half:n_rotated], x[..., n_rotated:]
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


class Cache:
    """Keys before rotation and values of one layer."""

    def __init__(self, n_rotated: int, first: int, window: int) -> None:
        self.n_rotated, self.first, self.window = n_rotated, first, window
        self.k: list[torch.Tensor] = []
        self.v: list[torch.Tensor] = []

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """z [head, d] of one step from its q [head, d] and k, v [kv_head, d]."""
        self.k, self.v = [*self.k, k], [*self.v, v]
        if len(self.k) > self.first + self.window:
            del self.k[self.first], self.v[self.first]
        keys, values = (torch.stack(x, dim=1) for x in (self.k, self.v))
        at = torch.arange(len(self.k))
        keys = turned(keys, at, self.n_rotated).repeat_interleave(len(q) // len(k), 0)
        values = values.repeat_interleave(len(q) // len(v), 0)
        query = turned(q[:, None], at[-1:], self.n_rotated)
        scores = (query * keys).sum(-1) / q.shape[-1] ** 0.5
        return (torch.softmax(scores, -1)[..., None] * values).sum(1)


def llama_by_token(net, ids, first: int, window: int) -> torch.Tensor:
    config, body = net.config, net.model
    d_head = config.hidden_size // config.num_attention_heads
    caches = [Cache(d_head, first, window) for _ in body.layers]

    def norm(x, weight):
        return x * (x.pow(2).mean() + config.rms_norm_eps).rsqrt() * weight

    logits = []
    for token in ids:
        h = body.embed_tokens.weight[token]
        for layer, cache in zip(body.layers, caches, strict=True):
            own = layer.self_attn
            x = norm(h, layer.input_layernorm.weight)
            q, k, v = (
                (p.weight @ x).view(-1, d_head) for p in (own.q_proj, own.k_proj, own.v_proj)
            )
            h = h + own.o_proj.weight @ cache.attend(q, k, v).flatten()
            x = norm(h, layer.post_attention_layernorm.weight)
            mlp = layer.mlp
            inner = silu(mlp.gate_proj.weight @ x) * (mlp.up_proj.weight @ x)
            h = h + mlp.down_proj.weight @ inner
        logits.append(net.lm_head.weight @ norm(h, body.norm.weight))
    return torch.stack(logits)


def neox_by_token(net, ids, first: int, window: int) -> torch.Tensor:
    config, body = net.config, net.gpt_neox
    n_heads = config.num_attention_heads
    d_head = config.hidden_size // n_heads
    caches = [Cache(d_head // 4, first, window) for _ in body.layers]

    def norm(x, module):
        return layer_norm(x, x.shape, module.weight, module.bias, config.layer_norm_eps)

    def linear(module, x):
        return module.weight @ x + module.bias

    logits = []
    for token in ids:
        h = body.embed_in.weight[token]
        for layer, cache in zip(body.layers, caches, strict=True):
            x = norm(h, layer.input_layernorm)
            fused = linear(layer.attention.query_key_value, x).view(n_heads, 3, d_head)
            z = cache.attend(*fused.unbind(1))
            inner = gelu(linear(layer.mlp.dense_h_to_4h, norm(h, layer.post_attention_layernorm)))
            h = (
                h
                + linear(layer.attention.dense, z.flatten())
                + linear(layer.mlp.dense_4h_to_h, inner)
            )
        logits.append(net.lm_head.weight @ norm(h, body.final_layer_norm))
    return torch.stack(logits)


MODELS = {"llama": (lambda: tiny("llama"), llama_by_token), "neox": (neox, neox_by_token)}


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def streamed(model, ids, first=FIRST, window=WINDOW, positions="cache", heads="L*H*"):
    with wb.intervening(model, Edit.streaming(heads, first, window, positions)):
        return model.logits(ids)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_one_pass_equals_the_cache_token_by_token(name: str) -> None:
    make, by_token = MODELS[name]
    model = make()
    # The reference is the model: with room for everything it gives its logits.
    assert error(by_token(model.net, TEXT, 4, 100), model.logits(TEXT)) <= BOUND
    for first, window in ((FIRST, WINDOW), (0, 4), (1, 1), (4, 8)):
        expected = by_token(model.net, TEXT, first, window)
        got = streamed(model, TEXT, first, window)
        achieved = error(got, expected)
        print(f"{name} {first}+{window}: {achieved:.1e}")
        assert achieved <= BOUND
        assert error(model.logits(TEXT), expected) > 0.01
        # Absolute positions are another model as soon as a first key has come nearer.
        absolute = error(streamed(model, TEXT, first, window, "absolute"), expected)
        assert absolute > 1e-3 if first else absolute <= BOUND


@pytest.mark.parametrize("positions", ["cache", "absolute"])
def test_nothing_changes_while_everything_fits(positions: str) -> None:
    model = tiny("llama")
    ids = TEXT[: FIRST + WINDOW]
    assert torch.equal(streamed(model, ids, positions=positions), model.logits(ids))
    longer = TEXT[: FIRST + WINDOW + 1]
    got, plain = streamed(model, longer, positions=positions), model.logits(longer)
    assert error(got[:-1], plain[:-1]) <= 1e-6 and error(got[-1], plain[-1]) > 1e-3


@pytest.mark.parametrize("padding", ["right", "left", "packed"])
def test_statistics_are_those_of_the_cache(padding: str) -> None:
    """Layer 0 sees the tokens alone: the last row over the full text is the last row of the model
    on the evicted text, whatever stands beside the prompt."""
    model = tiny("llama")
    evicted = TEXT[:FIRST] + TEXT[-WINDOW:]
    plain = wb.capture(model, [evicted], patterns="L0H*")
    expected = plain["pattern"].to_numpy()[0, :, -1]
    with wb.intervening(model, Edit.streaming("L0H*", FIRST, WINDOW)):
        stats = wb.capture(model, [TEXT, IDS], patterns="L0H*", padding=padding, keep_qk=True)
        shorter = stats.prompt(1)
    n = len(TEXT)
    row = stats["pattern"].sel(prompt=0).to_numpy()[:, n - 1, :n]
    kept = np.r_[:FIRST, n - WINDOW : n]
    assert np.allclose(row[:, kept], expected, atol=1e-6)
    assert np.allclose(np.delete(row, kept, axis=1), 0)
    for name in ("entropy", "first_mass", "self_mass", "max_prob", "n_visible"):
        got = stats[name].sel(prompt=0, layer=0)[..., n - 1]
        want = plain[name].sel(layer=0)[0, ..., -1]
        assert np.allclose(got, want, atol=1e-5), name
    # The second prompt has its own first keys, wherever its row begins.
    with wb.intervening(model, Edit.streaming("L0H*", FIRST, WINDOW)):
        alone = wb.capture(model, [IDS])
    assert np.allclose(shorter["entropy"], alone["entropy"], atol=1e-5)
    if padding == "right":
        again = np.stack([pattern_of(stats, 0, f"L0H{h}")[-1] for h in range(4)])
        assert np.allclose(again, row, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_steps_with_the_models_own_cache_equal_it_too(name: str) -> None:
    make, by_token = MODELS[name]
    model = make()
    expected = by_token(model.net, TEXT, FIRST, WINDOW)

    def in_steps() -> torch.Tensor:
        past, rows = None, []
        for step in (TEXT[:4], TEXT[4:10], *([token] for token in TEXT[10:])):
            ids = torch.tensor([step])
            out = model.net(input_ids=ids, past_key_values=past, use_cache=True)
            past = out.past_key_values
            rows.append(out.logits[0])
        return torch.cat(rows)

    with wb.intervening(model, Edit.streaming("L*H*", FIRST, WINDOW)):
        assert error(in_steps(), expected) <= BOUND
        generated = model.generate(TEXT, 3)
    assert error(in_steps(), expected) > 0.01
    ids = list(TEXT)
    for _ in range(3):
        ids.append(int(by_token(model.net, ids, FIRST, WINDOW)[-1].argmax()))
    assert generated == ids[len(TEXT) :]


def test_sliding_layers_keep_their_own_window() -> None:
    """Their cache has lost the first keys; steps with it equal passes over the whole text."""
    model = tiny("mistral")
    with wb.intervening(model, Edit.streaming("L*H*", FIRST, 2)):
        generated = model.generate(TEXT, 4)
        ids = list(TEXT)
        for _ in range(4):
            ids.append(int(model.logits(ids)[-1].argmax()))
    assert generated == ids[len(TEXT) :] and generated != model.generate(TEXT, 4)


def test_absolute_is_a_mask_for_models_without_rotation() -> None:
    """Of learned positions and of heads that look both ways."""
    n = len(TEXT)
    away = np.subtract.outer(np.arange(n), np.arange(n))
    for name, causal in (("gpt2", True), ("bert", False)):
        model = tiny(name)
        heads = f"L{len(model.spec.of()) - 1}H*"
        plain = wb.capture(model, [TEXT], patterns=heads)["pattern"].to_numpy()[0].astype(float)
        with wb.intervening(model, Edit.streaming(heads, FIRST, WINDOW, "absolute")):
            got = wb.capture(model, [TEXT], patterns=heads)["pattern"].to_numpy()[0]
        seen = (away if causal else np.abs(away)) < WINDOW
        seen |= np.arange(n) < FIRST
        expected = plain * seen
        assert np.allclose(got, expected / expected.sum(-1, keepdims=True), atol=1e-5)
        assert not np.allclose(got, plain, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "heads", "says"),
    [
        ("gpt2", "L0H0", "rotary embedding.*use positions='absolute'"),
        ("bert", "L0H0", "looks both ways.*use positions='absolute'"),
        ("t5", "X0H0", "not the positions of its queries"),
    ],
)
def test_what_has_no_cache_positions_is_refused(name: str, heads: str, says: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=says) as caught:
        streamed(tiny(name), TEXT, heads=heads)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"first": -1}, "first=-1"),
        ({"window": 0}, "window=0"),
        ({"window": 2.5}, "window=2.5"),
        ({"positions": "relative"}, "give 'cache' or 'absolute'"),
    ],
)
def test_impossible_caches_are_refused_when_made(options: dict, says: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=says):
        Edit.streaming("L0H0", **options)


ROTARY = {
    # Another part of the head turned outside the function, pairs of neighbours, layers without
    # positions, cosines with a factor, frequencies that depend on the length.
    "Phi": {},
    "Glm": {"pad_token_id": 0},
    "SmolLM3": {"no_rope_layers": [0, 1], "pad_token_id": 0},
    "Llama": {"rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
        "rope_theta": 10000.0,
    }},
    "Olmo": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}},
}  # fmt: skip


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layout_of_rotation_is_the_models_own(name: str, dtype: torch.dtype) -> None:
    """The last row of layer 0 is that of the model on the evicted text."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, intermediate_size=64, **ROTARY[name],
    )  # fmt: skip
    net = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in net.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model = wb.load(net.to(dtype))
    evicted = TEXT[:FIRST] + TEXT[-WINDOW:]
    expected = wb.capture(model, [evicted], patterns="L0H*")["pattern"].to_numpy()[0, :, -1]
    rows = {}
    for positions in ("cache", "absolute"):
        with wb.intervening(model, Edit.streaming("L*H*", FIRST, WINDOW, positions)):
            whole = wb.capture(model, [TEXT], patterns="L0H*")["pattern"].to_numpy()[0, :, -1]
        rows[positions] = np.delete(whole, range(FIRST, len(TEXT) - WINDOW), axis=1)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    achieved = {key: float(np.abs(row - expected).max()) for key, row in rows.items()}
    print(name, dtype, achieved)
    if name == "SmolLM3":
        # Without positions in layer 0 both are the same.
        assert max(achieved.values()) <= bound
    else:
        assert achieved["cache"] <= bound < achieved["absolute"] / 2


def test_a_rotation_that_is_not_the_models_is_refused() -> None:
    """Queries that do not turn as the module found says."""
    torch.manual_seed(0)
    model = wb.load(tiny("llama").net)
    rotary = model.net.model.rotary_emb
    kept = rotary.inv_freq.clone()
    plain = type(rotary).forward

    class Drifting(type(rotary)):
        def forward(self, x, position_ids):
            # Angles that do not add up: no rotation by a difference of positions.
            return plain(self, x, position_ids.float() ** 1.5)

    rotary.__class__ = Drifting
    try:
        with pytest.raises(wb.WorkbenchError, match=r"do not turn.*use positions='absolute'"):
            streamed(model, TEXT)
    finally:
        rotary.__class__ = Drifting.__mro__[1]
    assert torch.equal(rotary.inv_freq, kept)
    assert streamed(model, TEXT).isfinite().all()
