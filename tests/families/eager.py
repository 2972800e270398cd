"""The oracle of the family tests: a model's own eager maps, and statistics from them in float64.

Nothing here uses the workbench: the maps come from the `eager_attention_forward` of the model file,
the statistics from plain numpy over the full map.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from contextlib import contextmanager

import numpy as np
import torch

NAME = "families_test_observer"


def _own_eager(module):
    for cls in type(module).__mro__:
        function = getattr(sys.modules[cls.__module__], "eager_attention_forward", None)
        if function is not None:
            return function
    raise AssertionError(f"{type(module).__name__} has no eager_attention_forward")


def without_key(head: int, key: int):
    """Takes one key from one head: its weight goes, the row is rescaled."""

    def change(weights):
        # Softmax without a logit is the old one over what is left, a learned sink included.
        weights = weights.clone()
        null = 1 - weights[:, head].sum(-1, keepdim=True)
        null = torch.where(null > 1e-4, null, 0)  # without a sink it is rounding
        weights[:, head, :, key] = 0
        # Summed rather than one minus the key: that would cancel where the key took nearly all.
        weights[:, head] = weights[:, head] / (weights[:, head].sum(-1, keepdim=True) + null)
        return weights

    return change


@contextmanager
def observed(net, changed: dict | None = None):
    """Inside, attention runs eagerly and maps are kept: module name -> list of [B, H, Q, K].

    `changed` maps the name of a site to a function of its weights [B, H, Q, K]; the output follows.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    names = {id(module): name for name, module in net.named_modules()}
    maps = defaultdict(list)

    def observe(
        module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, **kwargs
    ):
        out, weights = _own_eager(module)(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        if changed and names[id(module)] in changed:
            weights = changed[names[id(module)]](weights)
            groups = weights.shape[1] // value.shape[1]
            out = (weights @ value.repeat_interleave(groups, dim=1)).transpose(1, 2)
        maps[names[id(module)]].append(weights.detach().double().numpy())
        return out, weights

    AttentionInterface.register(NAME, observe)
    AttentionMaskInterface.register(NAME, eager_mask)
    before = implementations(net)
    net.set_attn_implementation(NAME)
    try:
        yield maps
    finally:
        restore(before)
        AttentionInterface._global_mapping.pop(NAME)
        AttentionMaskInterface._global_mapping.pop(NAME)


def implementations(net) -> list:
    """(config, its attention implementation) of the model and of every part with its own."""
    configs = {id(m.config): m.config for m in net.modules() if hasattr(m, "config")}
    return [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]


def restore(before: list) -> None:
    for config, name in before:
        config._attn_implementation_internal = name


@contextmanager
def eager(net):
    """Inside, the model runs its own eager attention, untouched by any registry."""
    before = implementations(net)
    # Not `set_attn_implementation`, which legacy families (Falcon) answer with a warning only.
    restore([(config, "eager") for config, _ in before])
    try:
        yield
    finally:
        restore(before)


def output_of(net, inputs: dict, **more) -> torch.Tensor:
    """The logits, or what the model computes instead."""
    with torch.no_grad():
        result = net(**inputs, **more)
    for name in ("logits", "logits_per_image", "last_hidden_state"):
        if getattr(result, name, None) is not None:
            return getattr(result, name)
    raise AssertionError(f"{type(result).__name__} has no logits and no hidden state")


def returned_maps(net, inputs: dict) -> dict[str, list]:
    """Tower -> the maps in the model's own output with `output_attentions=True`, eager."""
    with eager(net), torch.no_grad():
        result = net(**inputs, output_attentions=True)
    audio = hasattr(net.config, "num_mel_bins")
    fields = {
        "decoder_attentions": "text",
        "cross_attentions": "cross",
        "encoder_attentions": "audio" if audio else "encoder",
        "attentions": "main",
    }
    found = {}
    for field, kind in fields.items():
        if getattr(result, field, None):
            found[kind] = [m.double().numpy() for m in getattr(result, field)]
    for tower in ("text", "vision"):
        part = getattr(result, f"{tower}_model_output", None)
        if part is not None and part.attentions:
            found[tower] = [m.double().numpy() for m in part.attentions]
    return found


def statistics(p: np.ndarray) -> dict[str, np.ndarray]:
    """The statistics of full maps p [H, Q, K] by definition; p is zero exactly where masked."""
    logs = np.log(np.where(p > 0, p, 1.0))
    q, k = p.shape[-2:]
    own = np.arange(q) + (k - q)
    return {
        "entropy": -(p * logs).sum(-1),
        "max_prob": p.max(-1),
        "argmax": p.argmax(-1).astype(float),
        "first_mass": p[..., 0],
        "self_mass": p[..., np.arange(q), np.clip(own, 0, k - 1)],
        "key_mass": p.sum(-2),
        "key_max": p.max(-2),
        "key_count": (p > 0).sum(-2).astype(float),
        "n_visible": (p > 0).sum(-1).astype(float),
        "null_mass": 1 - p.sum(-1),
    }


def block_diagonal(calls: list[np.ndarray]) -> np.ndarray:
    """One map [B, H, Q, K] out of the calls of a packed tower: pictures do not see each other."""
    if len(calls) == 1:
        return calls[0]
    n_query, n_key = (sum(call.shape[axis] for call in calls) for axis in (2, 3))
    full = np.zeros((*calls[0].shape[:2], n_query, n_key))
    q = k = 0
    for call in calls:
        full[:, :, q : q + call.shape[2], k : k + call.shape[3]] = call
        q, k = q + call.shape[2], k + call.shape[3]
    return full
