"""Small multimodal models with visual sinks planted in their weights, and the same without.

    net, inputs = planted("LLaVA")      # sinks where the picture is bright
    net, inputs = plain("LLaVA")        # random weights, the same picture

How a sink comes about: a channel of the patch embedding reads brightness, the projector marks
bright patches in dimension MARK of the stream, and one neuron of the first MLP writes MASSIVE into
the sink dimensions of every marked token.  The begin token is marked by its embedding: a sink of
the text.
Heads look by what a token is: head 0 at sinks, head 1 at image tokens (and writes most), head 2 at
both, head 3 at words.  Streams are 512 wide, since phi cannot exceed the square root of that.
"""

from __future__ import annotations

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

WIDTH, LAYERS, HEADS, KV_HEADS, VOCAB = 512, 4, 4, 2, 64
SINK_DIMS = (7, 130)
MASSIVE = (1200.0, -400.0)
BEGIN, IMAGE_ID = 1, 5
# Dimensions of the stream: a constant of every token, marks of sinks-to-be, image and text.
CONSTANT, MARK, IS_IMAGE, IS_TEXT = 20, 21, 22, 23
# Where the picture is bright, as image tokens (of N_IMAGE).
BRIGHT = {"LLaVA": (3, 10), "Qwen2-VL": (4,)}
N_IMAGE = {"LLaVA": 16, "Qwen2-VL": 6}
BEFORE, AFTER = 3, 9
# Score each head gives to keys that are (sinks, image, text), nats.
TASTE = ((5.0, 0.0, 0.0), (0.0, 3.0, 0.0), (2.5, 3.0, 0.0), (0.0, 0.0, 5.0))
_CHANNEL, _NEURON = 6, 0
_TEXT = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "intermediate_size": 32, "bos_token_id": BEGIN, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def sink_positions(name: str) -> dict[str, list[int]]:
    """Positions of the planted sinks: of the text and of the image."""
    return {"text": [0], "visual": [BEFORE + i for i in BRIGHT[name]]}


def image_positions(name: str) -> list[int]:
    return list(range(BEFORE, BEFORE + N_IMAGE[name]))


def plain(name: str, seed: int = 0):
    """(network, inputs) with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = (_llava() if name == "LLaVA" else _qwen()).eval()
        for parameter in net.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return net, _inputs(name, seed)


def planted(name: str, seed: int = 0):
    """(network, inputs) with the sinks of `sink_positions` from layer 1 on."""
    net, inputs = plain(name, seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        (_mark_llava if name == "LLaVA" else _mark_qwen)(net.model)
        _language(net.model.language_model)
    return net, inputs


def _llava():
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16, "patch_size": 4,
    }  # fmt: skip
    config = LlavaConfig(
        text_config={**_TEXT, "model_type": "llama", "head_dim": 16}, vision_config=vision,
        image_token_index=IMAGE_ID, vision_feature_layer=-1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def _qwen():
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 10000.0}
    vision = {
        "depth": 1, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "embed_dim": 32,
        "hidden_size": WIDTH, "mlp_ratio": 1,
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config={**_TEXT, "rope_parameters": rope}, vision_config=vision,
        image_token_id=IMAGE_ID, video_token_id=8, vision_start_token_id=6,
        vision_end_token_id=7,
    )  # fmt: skip
    return Qwen2VLForConditionalGeneration(config)


def _inputs(name: str, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed + 1)
    words = torch.randint(12, VOCAB, (1, BEFORE - 1 + AFTER), generator=generator)
    parts = [torch.tensor([[BEGIN]]), words[:, : BEFORE - 1]]
    parts += [torch.full((1, N_IMAGE[name]), IMAGE_ID), words[:, BEFORE - 1 :]]
    ids = torch.cat(parts, dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "LLaVA":
        pixels = torch.randn(1, 3, 16, 16, generator=generator)
        for patch in BRIGHT[name]:
            row, column = 4 * (patch // 4), 4 * (patch % 4)
            pixels[..., row : row + 4, column : column + 4] += 8
        return {**inputs, "pixel_values": pixels}
    # Patches come in the order in which they are merged, four by four.
    pixels = torch.randn(4 * N_IMAGE[name], 3 * 2 * 4 * 4, generator=generator)
    for token in BRIGHT[name]:
        pixels[4 * token : 4 * token + 4] += 8
    grid = torch.tensor([[1, 4, 6]])
    types = (ids == IMAGE_ID).int()
    return {**inputs, "pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": types}


def _read_brightness(filters: torch.Tensor) -> None:
    """Channel _CHANNEL: three times the mean of a patch, which the other channels do not see."""
    flat = filters.flatten(1)
    flat -= flat.mean(dim=1, keepdim=True)
    flat[_CHANNEL] = 3 / flat.shape[1]


def _project(first: torch.nn.Linear, last: torch.nn.Linear, channels: list[int]) -> None:
    """Features of the scale of the embeddings; MARK where the channels are bright."""
    first.weight[:, channels] = 0
    first.weight[_NEURON] = 0
    first.weight[_NEURON, channels] = 1 / len(channels)
    first.bias.zero_()
    first.bias[_NEURON] = -4
    last.weight *= 0.3
    last.bias.zero_()
    last.weight[:, _NEURON] = 0
    last.weight[[*SINK_DIMS, CONSTANT, MARK, IS_IMAGE, IS_TEXT]] = 0
    last.weight[MARK, _NEURON] = 0.4
    last.bias[[CONSTANT, IS_IMAGE]] = 0.1


def _mark_llava(model) -> None:
    tower = model.vision_tower
    _read_brightness(tower.embeddings.patch_embedding.weight)
    tower.embeddings.position_embedding.weight[:, _CHANNEL] = 0
    for layer in tower.encoder.layers:
        layer.self_attn.out_proj.weight.zero_()
        layer.mlp.fc2.weight.zero_()
    projector = model.multi_modal_projector
    _project(projector.linear_1, projector.linear_2, [_CHANNEL])


def _mark_qwen(model) -> None:
    tower = model.visual
    _read_brightness(tower.patch_embed.proj.weight)
    for block in tower.blocks:
        block.attn.proj.weight.zero_()
        block.mlp.fc2.weight.zero_()
    merged = [_CHANNEL + 32 * i for i in range(4)]
    _project(tower.merger.mlp[0], tower.merger.mlp[2], merged)


def _language(model) -> None:
    table = model.embed_tokens.weight
    table.normal_(std=0.1)
    table[:, [*SINK_DIMS, MARK, IS_IMAGE]] = 0
    table[:, [CONSTANT, IS_TEXT]] = 0.1
    table[BEGIN, MARK] = 0.6
    own = [*SINK_DIMS, CONSTANT, MARK, IS_IMAGE, IS_TEXT]
    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        _heads(attention)
        for out in (attention.o_proj.weight, mlp.down_proj.weight):
            out *= 0.01
            out[own] = 0
        # What the image says matters: the head that reads it writes most.
        attention.o_proj.weight[:, attention.head_dim : 2 * attention.head_dim] *= 10
    mlp = model.layers[0].mlp
    for reader in (mlp.gate_proj.weight, mlp.up_proj.weight):
        reader[_NEURON] = 0
        reader[_NEURON, MARK] = 1
    mlp.down_proj.weight[:, _NEURON] = 0
    for dim, value in zip(SINK_DIMS, MASSIVE, strict=True):
        # The neuron of a marked token, x silu(x), is 30 or more.
        mlp.down_proj.weight[dim, _NEURON] = value / 30


def _heads(attention) -> None:
    """Queries ask, by the constant, for what keys say of themselves; values leave sinks out."""
    q, k, v = (getattr(attention, f"{name}_proj") for name in "qkv")
    for projection in (q, k, v):
        projection.weight *= 0.5
        if projection.bias is not None:
            projection.bias.zero_()
    v.weight[:, list(SINK_DIMS)] = 0
    # Components that rotary embedding turns least; a sink reads as about 21 after the norm.
    half = attention.head_dim // 2
    components = (half - 1, half - 2, half - 3)
    what, size = (SINK_DIMS[0], IS_IMAGE, IS_TEXT), (21.0, 1.0, 1.0)
    keys, queries = (p.weight.view(-1, attention.head_dim, WIDTH) for p in (k, q))
    keys[:, :, SINK_DIMS] = 0
    for component, dim, scale in zip(components, what, size, strict=True):
        keys[:, component], queries[:, component] = 0, 0
        keys[:, component, dim] = 1 / scale
    for head, taste in enumerate(TASTE):
        for component, score in zip(components, taste, strict=True):
            queries[head, component, CONSTANT] = score * attention.head_dim**0.5
