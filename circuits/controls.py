"""Models that must not show an effect: the control of what is claimed of a trained one."""

from __future__ import annotations

import torch

from workbench.models import Model, load


def untrained(model: Model, seed: int = 0) -> Model:
    """The same architecture with the random weights its class starts with, on the same device.

    Deterministic in `seed`; the caller's random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = type(model.net)(model.net.config)
    net = net.to(model.device, model.net.dtype).eval()
    fresh = load(net, tokenizer=model.tokenizer)
    fresh.name = f"{model.name} (untrained)"
    return fresh
