"""Inside one MLP: its states at every position of a prompt, and what it makes of any given input.

Taken by hooks on the linear maps of `workbench.mlps`, in one pass, under whatever interventions are
open.  The names follow the order of computation: input (what enters up and gate, behind the norm),
gate, up, act (the activation of gate, or of up where there is no gate), product (what enters down)
and down (what is written, before a norm that some families put behind it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from workbench.errors import CaptureError, WorkbenchError
from workbench.guards import evaluating
from workbench.mlps import Mlp, find_mlps
from workbench.models import Model

STATES = ("input", "gate", "up", "act", "product", "down")
# Positions per pass when an MLP is fed: any model takes that many.
_FED = 32


def mlp_of(model: Model, layer: int) -> Mlp:
    """The dense MLP of a layer of the main tower; raises `WorkbenchError` where it has none."""
    found = find_mlps(model.net, model.spec)
    if layer not in found:
        known = f"layers {', '.join(map(str, found))} have one" if found else "no layer has one"
        raise WorkbenchError(
            f"layer {layer} of {model.name} has no MLP of single linear maps; {known}."
        )
    return found[layer]


def mlp_states(model: Model, prompt: object, layer: int) -> dict[str, np.ndarray]:
    """The states of one MLP at every position, by name of `STATES`, each [position, width].

    `gate` is absent where there is none; then `act` and `product` are the same.  Raises
    `WorkbenchError` for a layer without a dense MLP and for sequence-to-sequence models,
    `CaptureError` where the MLP does not run once per pass or its activation is no module.
    """
    found = states_around(model, prompt, layer)
    if "act" not in found:
        raise CaptureError(
            f"the activation of the MLP of layer {layer} of {model.name} is no module of its own: "
            "no output beside its maps, times up, is what enters down."
        )
    return {name: found[name] for name in STATES if name in found}


def states_around(model: Model, prompt: object, layer: int) -> dict[str, np.ndarray]:
    """The states of `mlp_states`, the residual stream before and behind the block (`resid_pre,
    resid_post`) and the token ids (`ids` [position]).

    `act` is absent where the activation of a gated MLP is no module.  Raises like `mlp_states`.
    """
    mlp = mlp_of(model, layer)
    (encoded,) = _encoded(model, prompt)
    seen: dict[str, list[torch.Tensor]] = {}
    activations = _beside(model.net, mlp)
    before = {mlp.up: _keeper(seen, "input"), mlp.down: _keeper(seen, "product")}
    after = {mlp.up: _keeper(seen, "up"), mlp.down: _keeper(seen, "down")}
    if mlp.gate is not None:
        after[mlp.gate] = _keeper(seen, "gate")
    after |= {path: _keeper(seen, path) for path in activations}
    block = _block(model, layer)
    before[block], after[block] = _keeper(seen, "resid_pre"), _keeper(seen, "resid_post")
    with _hooked(model.net, before, after), evaluating(model.net), torch.no_grad():
        ids = torch.as_tensor(encoded.ids, device=model.device)[None]
        model.net(input_ids=ids, **encoded.extra)
    found = _named(mlp, seen, activations)
    return {name: _array(value) for name, value in found.items()} | {"ids": encoded.ids}


def feed(model: Model, layer: int, inputs: np.ndarray) -> np.ndarray:
    """What `down` of a layer writes for given inputs of the MLP, [n, d_model] to [n, d_model].

    The model runs on as many arbitrary tokens, with the inputs of this MLP replaced.
    """
    mlp = mlp_of(model, layer)
    parts = []
    for start in range(0, len(inputs), _FED):
        part = torch.as_tensor(np.array(inputs[start : start + _FED]))
        seen: dict[str, list[torch.Tensor]] = {}
        replace = _replacer(part)
        before = {path: replace for path in (mlp.up, mlp.gate) if path is not None}
        ids = torch.zeros(1, len(part), dtype=torch.long, device=model.device)
        with (
            _hooked(model.net, before, {mlp.down: _keeper(seen, "down")}),
            evaluating(model.net),
            torch.no_grad(),
        ):
            model.net(input_ids=ids)
        parts.append(_array(_once(seen, "down")))
    return np.concatenate(parts)


def down_columns(model: Model, layer: int) -> np.ndarray:
    """What every neuron writes per unit of product, [neuron, d_model], float64."""
    module: Any = model.net.get_submodule(mlp_of(model, layer).down)
    # GPT-2's Conv1D keeps its weight as [in, out].
    weight = module.weight if hasattr(module, "nf") else module.weight.T
    return weight.detach().double().cpu().numpy()


def _encoded(model: Model, prompt: object) -> Any:
    if model.is_seq2seq:
        raise WorkbenchError(
            f"{model.name} is a sequence-to-sequence model, whose decoder has no prompt of its own;"
            " MLPs are read in models with one stream."
        )
    return model.encode(prompt)


def _block(model: Model, layer: int) -> str:
    (block,) = {site.block for site in model.spec.of() if site.layer == layer and site.block}
    return block


def _beside(net: nn.Module, mlp: Mlp) -> list[str]:
    """Modules that may be the activation of a gated MLP: those under the parent of its maps."""
    if mlp.gate is None and not mlp.fused:
        return []
    shared = 0
    up, down = mlp.up.split("."), mlp.down.split(".")
    while up[shared] == down[shared]:
        shared += 1
    parent = ".".join(up[:shared])
    inside = net.get_submodule(parent).named_modules(prefix=parent)
    return [path for path, _ in inside if path not in (parent, mlp.up, mlp.down, mlp.gate)]


Hook = Callable[..., Any]


@contextmanager
def _hooked(
    net: nn.Module, before: Mapping[str, Hook], after: Mapping[str, Hook]
) -> Iterator[None]:
    with ExitStack() as stack:
        for path, hook in before.items():
            handle = net.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        for path, hook in after.items():
            handle = net.get_submodule(path).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _keeper(seen: dict[str, list[torch.Tensor]], name: str) -> Hook:
    """A hook before or after a module that keeps what goes in or comes out, [position, width]."""

    def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any], *out: Any) -> None:
        value = out[0] if out else args[0] if args else kwargs["hidden_states"]
        value = value[0] if isinstance(value, tuple) else value
        if isinstance(value, torch.Tensor):
            seen.setdefault(name, []).append(value.detach().reshape(-1, value.shape[-1]))

    return hook


def _replacer(inputs: torch.Tensor) -> Hook:
    def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        return (inputs.to(args[0]).reshape(args[0].shape), *args[1:]), kwargs

    return hook


def _once(seen: dict[str, list[torch.Tensor]], name: str) -> torch.Tensor:
    values = seen.get(name, [])
    if len(values) != 1:
        raise CaptureError(
            f"the MLP state {name!r} came {len(values)} times in one pass; blocks that are run "
            "again or never cannot be read layer by layer."
        )
    return values[0]


def _named(
    mlp: Mlp, seen: dict[str, list[torch.Tensor]], activations: list[str]
) -> dict[str, torch.Tensor]:
    """The states by name; the activation is the module whose output times up is the product."""
    outer = ("input", "up", "product", "down", "resid_pre", "resid_post")
    found = {name: _once(seen, name) for name in outer}
    if mlp.gate is None and not mlp.fused:
        return found | {"act": found["product"]}
    if mlp.fused:
        found["gate"], found["up"] = found["up"].chunk(2, dim=-1)
    else:
        found["gate"] = _once(seen, "gate")
    for path in activations:
        for value in seen.get(path, []):
            fits = value.shape == found["up"].shape
            if fits and torch.equal(value * found["up"], found["product"]):
                return found | {"act": value}
    return found


def _array(value: torch.Tensor) -> np.ndarray:
    wide = value.dtype in (torch.float32, torch.float64)
    return (value if wide else value.float()).cpu().numpy()
