"""A streaming cache as an edit of scores: the first keys and a window, at positions in that cache.

In the cache of StreamingLLM (Xiao et al. 2023, arXiv 2309.17453, section 3.2) keys are kept before
rotation and turned to their place in the cache at every step.  Distances within the window are the
same there as in the text; only the first keys come nearer, to a query that stands at place first +
window - 1 instead of t.  So in a teacher-forced pass the whole cache is a mask and, for the first
keys, the difference between the scores of the query turned back by t - (first + window - 1)
positions and of the query as it is.  Both give what a run token by token gives, layer by layer,
since keys and values of past tokens are those computed at their own time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from workbench.calls import Call
from workbench.errors import WorkbenchError
from workbench.heads import Head
from workbench.interventions import Intervention
from workbench.positions import counted
from workbench.rotary import Rotation, find_rotations
from workbench.spec import AttentionSite

if TYPE_CHECKING:
    from workbench.models import Model


class StreamingCache:
    """One streaming edit resolved against a model."""

    def __init__(self, model: Model, what: Intervention, sites: dict[Head, AttentionSite]) -> None:
        self.model = model
        self.first, self.window = what.first, what.window
        self.rotations: dict[str, Rotation] = {}
        for head, site in sites.items():
            if site.kind in ("cross", "resampler"):
                raise WorkbenchError(
                    f"streaming: the keys of {head} are not the positions of its queries, so "
                    "no window moves along with them; use Intervention.keep_keys."
                )
            if what.positions == "cache" and not site.causal:
                raise WorkbenchError(
                    f"streaming: {head} looks both ways, so it has no cache to take positions "
                    "from; use positions='absolute'."
                )
        if what.positions == "cache":
            self.rotations = find_rotations(
                model, list({s.name: s for s in sites.values()}.values())
            )

    def acts(self, call: Call) -> bool:
        """Whether some key of this call does not fit."""
        return bool(self._hidden(call).any())

    def write(self, call: Call, additive: torch.Tensor, heads: list[int]) -> None:
        """Change the additive mask [row, head, query, key] of some heads in place."""
        low = torch.finfo(additive.dtype).min
        hidden = self._hidden(call)
        rotation = self.rotations.get(call.site.name)
        for head in heads:
            own = additive[:, head]
            if rotation is not None and self.first:
                columns, delta = self._nearer(call, head, rotation)
                kept = own[:, :, columns]
                own[:, :, columns] = torch.where(kept > low / 2, kept + delta.to(kept), kept)
            own.masked_fill_(hidden, low)

    def _hidden(self, call: Call) -> torch.Tensor:
        """Edges [row, query, key] to keys that are neither among the first nor in the window."""
        query, key = (counted(self.model, call, along) for along in ("query", "key"))
        away = query[:, :, None] - key[:, None, :]
        if not call.site.causal:
            away = away.abs()
        seen = (away < self.window) | (key < self.first)[:, None, :]
        return ~(seen | (query < 0)[:, :, None] | (key < 0)[:, None, :])

    def _nearer(
        self, call: Call, head: int, rotation: Rotation
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns of the first keys, and what their scores gain [row, query, column]."""
        self._check_counted(call, rotation)
        query, key = (counted(self.model, call, along) for along in ("query", "key"))
        is_first = (key >= 0) & (key < self.first)
        columns = is_first.any(0).nonzero()[:, 0]
        # A query stands at the end of the cache once it is full.
        back = (query - (self.first + self.window - 1)).clamp(min=0)
        q = call.q[:, head : head + 1]
        kv_head = head // (call.site.n_heads // call.site.n_kv_heads)
        k = call.k[:, kv_head, columns].float()
        old, new = (
            _capped(x[:, 0].float() @ k.transpose(-1, -2) * call.terms["scale"], call)
            for x in (q, rotation.turned(q, -back))
        )
        moved = (back > 0)[:, :, None] & is_first[:, None, columns]
        return columns, torch.where(moved, new - old, torch.zeros_like(old))

    def _check_counted(self, call: Call, rotation: Rotation) -> None:
        ids, image = call.forward.ids, self.model.image_token_id
        if rotation.counts_patches and ids is not None and bool((ids == image).any()):
            raise WorkbenchError(
                f"streaming: {self.model.name} gives the patches of an image positions that do not "
                "count tokens, so there are none in a cache; use positions='absolute'."
            )


def _capped(scores: torch.Tensor, call: Call) -> torch.Tensor:
    softcap = call.terms.get("softcap")
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)
