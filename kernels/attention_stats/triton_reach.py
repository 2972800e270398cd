"""What the launches of the column, map and band kernels share: the signed distances they look at,
their arguments, the lse they are given.

Dims: B batch, H query heads, G = H // Hkv, Q queries, K keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from workbench.kernels.attention_stats.triton_call import Call, Tiles

# lse over log 2 of a row that enters no column: the log2 of its weights is HIDDEN of the kernels.
NO_ROW = 2e30


@dataclass(frozen=True)
class Reach:
    """Signed distances query - key that a launch looks at, both ends included; None: no end. An
    upper end comes with a lower one."""

    low: int | None
    high: int | None

    @staticmethod
    def of(call: Call, low: int | None = None, high: int | None = None) -> Reach:
        """What the call's geometry shows, cut to low..high."""
        g = call.geometry
        behind = None if g.window is None else g.window - 1
        ahead = 0 if g.causal else None if behind is None else -behind
        # Nothing is further away; what is given may not fit 32 bits.
        beyond = g.n_q + g.n_k + abs(g.offset)
        lows = [max(-beyond, min(x, beyond)) for x in (low, ahead) if x is not None]
        highs = [max(-beyond, min(x, beyond)) for x in (high, behind) if x is not None]
        reach = Reach(max(lows, default=None), min(highs, default=None))
        empty = reach.low is not None and reach.high is not None and reach.high < reach.low
        return Reach(beyond, beyond) if empty else reach

    def arguments(self, call: Call) -> tuple[Any, ...]:
        """The arguments from n_heads on that these kernels share."""
        g = call.geometry
        sizes = (call.q.shape[1], call.q.shape[1] // call.k.shape[1], g.n_q, g.n_k, g.offset)
        band = (self.low or 0, self.high or 0, call.factor, call.inner)
        return (*sizes, *band, *call.q.stride(), *call.k.stride(), *call.extras())

    def constants(self, call: Call, tiles: Tiles, **flags: Any) -> dict[str, Any]:
        """Their compile-time arguments with the `flags` of one kernel, and its launch options."""
        shared = call.constants(tiles) | call.flags()
        shared |= {"LOW": self.low is not None, "HIGH": self.high is not None}
        return {name: x for name, x in shared.items() if name not in ("CAUSAL", "WINDOW")} | flags


def of_rows(lse2: torch.Tensor, n_q: int, length: int) -> torch.Tensor:
    """lse over log 2 as the kernels read it: float32 [B, H, length], with NO_ROW after n_q and for
    rows of 1e30 or more."""
    lse2 = torch.where(lse2[..., :n_q] > 1e29, NO_ROW, lse2[..., :n_q]).float()
    return torch.nn.functional.pad(lse2, (0, length - n_q), value=NO_ROW).contiguous()
