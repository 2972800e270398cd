"""Move queries to other positions by a model's own rotary embedding, proved on the model.

The rotary module and the function that applies it are those of the model's file, so layouts in
halves or pairs, partial rotation and rescaled frequencies come out as the model has them.  Proof:
with all position ids shifted by the same number, every layer's queries must be the unshifted ones
rotated by that number; a layer whose queries do not move has no positions (NoPE).  Source:
rotations compose, Su et al. 2021 (arXiv 2104.09864), equation 16.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workbench.calls import Call
from workbench.errors import WorkbenchError
from workbench.guards import evaluating
from workbench.spec import AttentionSite

if TYPE_CHECKING:
    from workbench.models import Model

_SHIFT = 3
# Error of a rotated query relative to the largest value: rounding through the layers below; another
# rotation is off by more than a half.
_CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3}
_CLOSE_IN_HALF = 0.1


@dataclass(frozen=True)
class Rotation:
    """The rotary embedding of one attention site: its module, the function that applies cosines and
    sines to (q, k), the slice of a head it turns, and the kind of layer where the module asks for
    it.  `module` None: the site has no positions."""

    module: Any
    apply: Callable
    part: slice
    layer_type: str | None

    @property
    def counts_patches(self) -> bool:
        """Whether image patches share positions (M-RoPE), so that these do not count tokens."""
        return getattr(self.module, "mrope_section", None) is not None

    def turned(self, q: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        """q [row, head, query, d_head] moved `by` [row, query] positions, float32."""
        wide = q.float()
        if self.module is None:
            return wide
        own = {} if self.layer_type is None else {"layer_type": self.layer_type}
        # Beneath its decorators: some would change the frequencies to fit the positions asked for.
        forward = inspect.unwrap(type(self.module).forward)
        with torch.no_grad():
            cos, sin = forward(self.module, wide, by, **own)
        prefix = "" if self.layer_type is None else f"{self.layer_type}_"
        # q carries the factor of a rescaled embedding already.
        scaling = getattr(self.module, f"{prefix}attention_scaling", 1.0)
        part = wide[..., self.part]
        new, _ = self.apply(part, part, cos / scaling, sin / scaling)
        wide = wide.clone()
        wide[..., self.part] = new
        return wide


def find_rotations(model: Model, sites: Sequence[AttentionSite]) -> dict[str, Rotation]:
    """The rotation of each site by its name, proved by two short passes of the model.

    Raises `WorkbenchError` where the model has none, or one that is not understood.
    """
    claims = {site.name: _claims(model.net, site) for site in sites}
    for name, claim in claims.items():
        if not claim or not model.accepts("position_ids"):
            raise WorkbenchError(
                f"positions='cache' needs a rotary embedding, and {name} of {model.name} has none "
                "that is found; use positions='absolute'."
            )
    still, moved = _queries(model, set(claims))
    found = {}
    for name, claim in claims.items():
        errors = [_error(rotation, still[name], moved[name]) for rotation in claim]
        best = min(range(len(claim)), key=errors.__getitem__)
        if not errors[best] <= _CLOSE.get(still[name].dtype, _CLOSE_IN_HALF):
            raise WorkbenchError(
                f"positions='cache': queries of {name} do not turn with their positions as the "
                f"rotary embedding of {model.name} says (off by {errors[best]:.0e}); use "
                "positions='absolute'."
            )
        found[name] = claim[best]
    return found


def _claims(net: nn.Module, site: AttentionSite) -> list[Rotation]:
    """What the rotation of a site may be: none, of the whole head, or of one end of it."""
    if site.tap != "registry":
        return []
    attention: Any = net.get_submodule(site.name)
    module, apply = _rotary_module(net, site.name), _apply_function(attention)
    if module is None or apply is None:
        return []
    layer_type = None
    if "layer_type" in inspect.signature(inspect.unwrap(type(module).forward)).parameters:
        layer_type = getattr(attention, "layer_type", None)
    parts = [slice(None)]
    leading = getattr(attention, "rotary_ndims", None)
    trailing = getattr(attention, "qk_rope_head_dim", None)
    if leading:
        parts.append(slice(None, leading))
    if trailing:
        parts.append(slice(-trailing, None))
    nothing = Rotation(None, apply, slice(None), None)
    return [nothing, *(Rotation(module, apply, part, layer_type) for part in parts)]


def _rotary_module(net: nn.Module, path: str) -> nn.Module | None:
    """The nearest module with inverse frequencies on the way from an attention module up."""
    parts = path.split(".")
    for depth in range(len(parts), -1, -1):
        for child in net.get_submodule(".".join(parts[:depth])).children():
            if any("inv_freq" in name for name, _ in child.named_buffers(recurse=False)):
                return child
    return None


def _apply_function(attention: nn.Module) -> Callable | None:
    for cls in type(attention).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "apply_rotary_pos_emb", None)
        if function is not None:
            takes = list(inspect.signature(function).parameters)
            return function if takes[:4] == ["q", "k", "cos", "sin"] else None
    return None


def _queries(model: Model, names: set[str]) -> tuple[dict, dict]:
    """Queries of a few tokens by site, at positions from 0 and from `_SHIFT` on."""
    found: dict[str, torch.Tensor] = {}

    def listen(call: Call) -> None:
        if call.site.name in names:
            found[call.site.name] = call.q.detach()

    ids = torch.arange(2, 8, device=model.device)[None]
    at = torch.arange(ids.shape[1], device=model.device)[None]
    extra = {"use_cache": False} if model.accepts("use_cache") else {}
    # The rotation is the model's own business, also inside an outer block.
    held, model.tap.editors = model.tap.editors, []
    passes = []
    try:
        with model.open_tap(listen), evaluating(model.net), torch.no_grad():
            for shift in (0, _SHIFT):
                model.net(input_ids=ids, position_ids=at + shift, **extra)
                passes.append(dict(found))
    finally:
        model.tap.editors = held
    missing = names - set(found)
    if missing:
        raise WorkbenchError(
            f"positions='cache': {min(missing)} of {model.name} is not called on a text alone, so "
            "its rotary embedding cannot be proved; use positions='absolute'."
        )
    return passes[0], passes[1]


def _error(rotation: Rotation, still: torch.Tensor, moved: torch.Tensor) -> float:
    by = torch.full(still.shape[:1] + still.shape[2:3], _SHIFT, device=still.device)
    try:
        turned = rotation.turned(still, by)
    except RuntimeError:
        # Cosines of another width than the part of the head they would turn.
        return float("inf")
    return float((turned - moved.float()).abs().max() / moved.float().abs().max())
