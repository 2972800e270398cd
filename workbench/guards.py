"""Small checks and guards around a capture: modes, weights, and whether prompts can share a row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import xarray as xr
from torch import nn

from workbench.calls import Call
from workbench.errors import CaptureError
from workbench.schema import SAME_AXIS, SCHEMA, STREAM_GROUPS

if TYPE_CHECKING:
    from workbench.models import Model

_SAMPLES = 64
_PACKING_ERROR = 1e-3


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block (no dropout), every module's own mode after it."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def weights_digest(net: nn.Module) -> str:
    """Identifies the weights: names, shapes, dtypes and a stride of values of every parameter."""
    found = hashlib.sha256()
    for name, parameter in net.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].double().cpu()
        found.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        found.update(sample.numpy().tobytes())
    return found.hexdigest()[:16]


def require_any(data: xr.Dataset, want: tuple[str, ...], where: str) -> None:
    """Raise `CaptureError` when nothing that was asked for exists there: never an empty capture."""
    if not data.data_vars:
        raise CaptureError(
            f"{where} gives none of what was asked for ({', '.join(want[:6])}): it has no such "
            "statistic; see workbench.schema for what each needs."
        )


def missing_from(data: xr.Dataset, want: tuple[str, ...], kind: str) -> dict[str, str]:
    """Why a tower that was tapped gave no value for some statistics of `want`, by name."""
    return {name: _reason(name, kind) for name in want if name not in data}


def _reason(name: str, kind: str) -> str:
    if kind == "cross" and name in SAME_AXIS:
        return "queries and keys of cross-attention are positions of different texts"
    if name in ("duplicate_mass", "induction_mass"):
        return f"the ids of the tokens of the {kind} tower are not known"
    if name == "role_mass":
        return f"positions of the {kind} tower have no roles"
    if name in ("vo_norm", "result_norm"):
        return f"no output projection was found in the {kind} tower"
    if SCHEMA[name].group in STREAM_GROUPS:
        return f"the {kind} tower has no single stack of blocks"
    return f"the {kind} tower does not have it"


@torch.no_grad()
def check_packing(model: Model) -> None:
    """Raise `CaptureError` unless a prompt packed behind another gives the numbers it gives alone.

    Masks do not show everything: layers without attention (convolution, state space) carry state
    from one prompt of a row into the next.
    """
    last: dict[str, torch.Tensor] = {}

    def listen(call: Call) -> None:
        last[call.site.name] = call.z

    ids = torch.arange(2, 10, device=model.device)[None]
    restart = torch.cat([torch.arange(5), torch.arange(3)])[None].to(model.device)
    # Only without a cache do restarting positions separate the prompts of a row.
    extra = {"use_cache": False} if model.accepts("use_cache") else {}
    editors, model.tap.editors = model.tap.editors, []
    try:
        with model.open_tap(listen), evaluating(model.net):
            model.net(input_ids=ids, position_ids=restart, **extra)
            packed = {name: z[:, 5:] for name, z in last.items()}
            model.net(input_ids=ids[:, 5:], position_ids=restart[:, 5:], **extra)
    finally:
        model.tap.editors = editors
    for name, alone in last.items():
        error = (packed[name] - alone).abs().max() / alone.abs().max().clamp(min=1e-12)
        if error > _PACKING_ERROR:
            raise CaptureError(
                f"{name} lets packed prompts see each other (its output moves by "
                f"{float(error):.0e} "
                "when another prompt stands before it); use padding='right' or 'left'."
            )
