"""Apply `StreamEdit`s: forward hooks on blocks, MLPs and output projections.

Every edit is checked against the model before anything runs.  A hook changes the named positions
and leaves every other bit of the stream as it was; edits of one place act in the order they were
opened.  Captures inside the block measure the changed stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from workbench.errors import CaptureError, WorkbenchError
from workbench.heads import KINDS
from workbench.mlps import find_mlps
from workbench.positions import n_rows_of, stream_rows
from workbench.sites import output_weight
from workbench.stream_edits import Site, StreamEdit

if TYPE_CHECKING:
    from workbench.models import Model


@dataclass(frozen=True)
class Place:
    """Where an edit acts: a module, its input (`enters`) or output, of the tower `kind` whose
    stream is `width` wide."""

    path: str
    enters: bool
    kind: str
    width: int


def place_of(model: Model, edit: StreamEdit) -> Place:
    """The place an edit names in a model; raises `WorkbenchError` where it does not fit."""
    site = edit.where
    kind = {prefix: kind for kind, prefix in KINDS.items() if prefix != "L"}.get(
        site.prefix, model.spec.main
    )
    blocks = _blocks(model, kind)
    if site.layer not in blocks:
        layers = f"blocks {min(blocks)} to {max(blocks)}" if blocks else "no stack of blocks"
        raise WorkbenchError(
            f"{edit.site!r} does not exist: the {kind} tower of {model.name} has {layers}."
        )
    width = _width(model, kind)
    _check_width(edit, width)
    path = blocks[site.layer]
    if site.part in ("mlp_out", "attn_out"):
        path = _writer(model, kind, site, edit)
    return Place(path, site.part == "embed", kind, width)


def _blocks(model: Model, kind: str) -> dict[int, str]:
    """Path of every block by layer, those without attention included where there is one stack."""
    found = {site.layer: site.block for site in model.spec.of(kind) if site.block is not None}
    stacks = {block.rpartition(".")[0] for block in found.values()}
    if len(stacks) == 1 and "" not in stacks:
        stack = stacks.pop()
        n_blocks = len(model.net.get_submodule(stack))  # type: ignore[arg-type]
        return {layer: f"{stack}.{layer}" for layer in range(n_blocks)}
    return found


def _writer(model: Model, kind: str, site: Site, edit: StreamEdit) -> str:
    """Path of the linear map that writes the MLP's or the attention's part into the stream."""
    if site.part == "mlp_out":
        mlp = find_mlps(model.net, model.spec, kind).get(site.layer)
        if mlp is not None:
            return mlp.down
        what = "no dense MLP that is found (a mixture of experts has several)"
    else:
        own = [s for s in model.spec.of(kind) if s.layer == site.layer]
        if own and own[0].w_o is not None:
            return own[0].w_o
        what = "no output projection" if own else f"no {kind} attention"
    raise WorkbenchError(
        f"{edit.site!r} does not exist: layer {site.layer} of {model.name} has {what}; edit "
        "resid_post instead."
    )


def _width(model: Model, kind: str) -> int:
    for site in model.spec.of(kind):
        weight = output_weight(model.net, site)
        if weight is not None:
            return weight.shape[-1]
    raise WorkbenchError(
        f"the width of the stream of the {kind} tower of {model.name} is not known, because none "
        "of its layers has an output projection; edit its heads instead."
    )


def _check_width(edit: StreamEdit, width: int) -> None:
    if edit.dims and max(edit.dims) >= width:
        raise WorkbenchError(
            f"dims={edit.dims} of the edit at {edit.site!r}: the stream has dimensions 0 to "
            f"{width - 1}."
        )
    expected = len(edit.dims) if edit.dims is not None else width
    for name in ("value", "along"):
        given = getattr(edit, name)
        if given is None or (edit.how == "set" and given.ndim == 0):
            continue
        if given.shape != (expected,):
            raise WorkbenchError(
                f"the {name} of {edit.how!r} at {edit.site!r} has shape {given.shape}; "
                f"[{expected}] was expected."
            )


@contextmanager
def stream_edited(
    model: Model, edits: Sequence[StreamEdit], is_open: Callable[[], bool]
) -> Iterator[None]:
    """Edit the stream inside the block, whenever `is_open()`.

    Raises `CaptureError` at its end if passes of the main tower were run and an edit of it never
    acted: a module's weights can be used without the module being called.
    """
    hooks = [_Hook(model, edit, is_open) for edit in edits if not edit.neutral]
    passes = []
    with ExitStack() as stack:
        for hook in hooks:
            module = model.net.get_submodule(hook.place.path)
            handle = (
                module.register_forward_pre_hook(hook.before, with_kwargs=True)
                if hook.place.enters
                else module.register_forward_hook(hook.after)
            )
            stack.callback(handle.remove)
        if hooks:
            counter = model.net.register_forward_hook(lambda *_: passes.append(is_open()))
            stack.callback(counter.remove)
        yield
    silent = [h for h in hooks if not h.acted and h.place.kind == model.spec.main]
    if silent and any(passes):
        raise CaptureError(
            f"the edit at {silent[0].edit.site!r} never acted: {silent[0].place.path} of "
            f"{model.name} is not called in a forward pass."
        )


class _Hook:
    """One edit while it is in place."""

    def __init__(self, model: Model, edit: StreamEdit, is_open: Callable[[], bool]) -> None:
        self.model = model
        self.edit = edit
        self.place = place_of(model, edit)
        self.is_open = is_open
        self.acted = False

    def before(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not self.is_open():
            return None
        if args:
            return (self._edited(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._edited(kwargs.get("hidden_states"))}

    def after(self, _module: nn.Module, _args: tuple, out: Any) -> Any:
        if not self.is_open():
            return None
        if isinstance(out, tuple):
            return (self._edited(out[0]), *out[1:])
        return self._edited(out)

    def _edited(self, hidden: Any) -> torch.Tensor:
        is_stream = isinstance(hidden, torch.Tensor) and hidden.dim() in (2, 3)
        if not is_stream or hidden.shape[-1] != self.place.width:
            shape = tuple(getattr(hidden, "shape", ()))
            raise CaptureError(
                f"{self.place.path} of {self.model.name} passes on {type(hidden).__name__} "
                f"{shape} where a stream [row, position, {self.place.width}] was expected; "
                f"{self.edit.site!r} cannot be edited in this family."
            )
        self.acted = True
        whole = hidden
        if hidden.dim() == 2:
            # Packed vision towers have no rows, and some MLPs flatten them away.
            n_rows = n_rows_of(self.place.kind, self.model.tap.forward, self.edit.at)
            whole = hidden.unflatten(0, (n_rows, -1))
        shape = (whole.shape[0], whole.shape[1])
        rows = stream_rows(self.model, self.place.kind, self.edit.at, shape, self.model.tap.forward)
        new = _OPERATIONS[self.edit.how](self.edit, whole)
        return torch.where(rows.to(whole.device)[..., None], new, whole).view_as(hidden)


def _set(edit: StreamEdit, hidden: torch.Tensor) -> torch.Tensor:
    new = hidden.clone()
    new[..., _chosen(edit)] = _tensor(edit.value, hidden)
    return new


def _scale(edit: StreamEdit, hidden: torch.Tensor) -> torch.Tensor:
    new = hidden.clone()
    new[..., _chosen(edit)] *= edit.factor
    return new


def _add(edit: StreamEdit, hidden: torch.Tensor) -> torch.Tensor:
    return hidden + _tensor(edit.value, hidden)


def _rescale(edit: StreamEdit, hidden: torch.Tensor) -> torch.Tensor:
    wide = hidden.float()
    length = wide.norm(dim=-1, keepdim=True)
    along = torch.as_tensor(np.array(edit.along), device=hidden.device)
    cosine = (wide @ along)[..., None] / (length * along.norm()).clamp(min=1e-30)
    new = wide * (edit.norm / length.clamp(min=1e-30))
    return torch.where(cosine.abs() > edit.cosine, new.to(hidden), hidden)


_OPERATIONS = {"set": _set, "scale": _scale, "add": _add, "rescale": _rescale}


def _chosen(edit: StreamEdit) -> Any:
    return slice(None) if edit.dims is None else list(edit.dims)


def _tensor(value: np.ndarray | None, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(np.array(value)).to(like)


def stream_states(model: Model, site: str, prompt: object) -> np.ndarray:
    """The stream at a site on one prompt, [query, d_model]: means for `StreamEdit.set`, directions
    for `StreamEdit.rescale`.

    Raises `WorkbenchError` for a site the model does not have.
    """
    place = place_of(model, StreamEdit.scale(site, 0.0))
    (encoded,) = model.encode(prompt)
    if model.is_seq2seq:
        raise WorkbenchError(
            f"{model.name} is a sequence-to-sequence model: take its states by a hook on "
            f"{place.path}, with both inputs given."
        )
    found: list[torch.Tensor] = []

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    def after(_module: nn.Module, _args: tuple, out: Any) -> None:
        found.append(out[0] if isinstance(out, tuple) else out)

    module = model.net.get_submodule(place.path)
    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if place.enters
        else module.register_forward_hook(after)
    )
    ids = torch.as_tensor(encoded.ids, device=model.device)[None]
    try:
        with torch.no_grad():
            model.net(**({"input_ids": ids} if len(encoded) else {}), **encoded.extra)
    finally:
        handle.remove()
    return found[0].detach().reshape(-1, place.width).float().cpu().numpy()
