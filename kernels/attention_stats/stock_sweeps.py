"""The sweeps of the stock backend: torch's fused kernels over the pieces of a map, forward and
transposed. Which statistic comes from which is in `stock`.

Dims: B batch, H query heads, Hkv key/value heads, G = H // Hkv, Q queries, K keys, D head width, F
features; R queries of a piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from workbench.kernels.attention_stats import torch_blockwise
from workbench.kernels.attention_stats.tiles import cut_dense, value_dtype
from workbench.kernels.attention_stats.torch_geometry import HIDING_BIAS

_ATEN = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)


def _cpu(q: Any, k: Any, v: Any, causal: bool, scale: float, mask: Any) -> tuple:
    return _ATEN._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=mask, scale=scale
    )


def _flash(q: Any, k: Any, v: Any, causal: bool, scale: float, mask: Any) -> tuple:
    assert mask is None
    return _ATEN._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)


def _efficient(q: Any, k: Any, v: Any, causal: bool, scale: float, mask: Any) -> tuple:
    assert mask is None
    return _ATEN._scaled_dot_product_efficient_attention(
        q, k, v, None, True, 0.0, causal, scale=scale
    )


@dataclass(frozen=True)
class Kernel:
    """A fused kernel: its call, the head widths it takes (multiples of `step` up to `widest`), and
    whether an additive mask is one of its arguments."""

    run: Callable[..., tuple]
    step: int
    widest: int
    takes_mask: bool


# (device, half precision): the kernel.
KERNELS = {
    ("cpu", False): Kernel(_cpu, 1, 1 << 16, True),
    ("cpu", True): Kernel(_cpu, 1, 1 << 16, True),
    ("cuda", False): Kernel(_efficient, 8, 1 << 16, False),
    ("cuda", True): Kernel(_flash, 8, 256, False),
}


def kernel_of(q: torch.Tensor) -> Kernel:
    """The kernel for this device and dtype."""
    return KERNELS[q.device.type, q.dtype in HALF]


def width_of(q: torch.Tensor) -> int:
    """Head width with the extra dimensions, as the kernel takes it."""
    step = kernel_of(q).step
    return math.ceil((q.shape[-1] + _extra(q)) / step) * step


def _extra(x: torch.Tensor) -> int:
    """Dimensions that together hold a logit with the precision of float32."""
    return 3 if x.dtype in HALF else 1


Piece = tuple[slice, slice, bool]


def pieces(n_q: int, n_k: int, offset: int, causal: bool) -> list[Piece]:
    """(queries, keys, causal) whose union is the visible part of a map, each a full rectangle, or a
    square that is causal from its first corner on.

    >>> [(r.start, r.stop, c.start, c.stop, causal) for r, c, causal in pieces(3, 5, 2, True)]
    [(0, 3, 0, 2, False), (0, 3, 2, 5, True)]
    """
    if not causal:
        return [(slice(0, n_q), slice(0, n_k), False)] if n_q and n_k else []
    # The diagonal enters the map at query `first` and key `left`.
    first, left = min(n_q, max(0, -offset)), min(n_k, max(0, offset))
    side = min(n_q - first, n_k - left)
    found = [
        (slice(first, n_q), slice(0, left), False),
        (slice(first, first + side), slice(left, left + side), True),
        (slice(first + side, n_q), slice(left, left + side), False),
    ]
    return [(r, c, diagonal) for r, c, diagonal in found if r.stop > r.start and c.stop > c.start]


class Sweeps:
    """q and k of one call as the kernels take them. What is summed over pieces is float64."""

    def __init__(self, q: torch.Tensor, k: torch.Tensor, terms: dict[str, Any]) -> None:
        self.terms = terms
        self.dtype, self.groups = value_dtype(q), q.shape[1] // k.shape[1]
        self.kernel = kernel_of(q)
        self.scale = q.shape[-1] ** -0.5 if terms["scale"] is None else float(terms["scale"])
        self.pair = q, k
        counts = self.counts(terms)
        self.key_count, self.blind = counts["key_count"], counts["n_visible"] == 0
        # What padding holds is anything, NaN too: 0 in its place is hidden, or read by nobody.
        self.unseen = (self.key_count == 0).unflatten(1, (k.shape[1], -1)).all(2)[..., None]
        valid = terms["query_valid"]
        self.q = q if valid is None else q.masked_fill(~valid[:, None, :, None], 0.0)
        self.k = k.masked_fill(self.unseen, 0.0)
        if self.scale < 0:
            # torch's causal kernel hides with -inf before it scales: the sign belongs to k.
            self.k, self.scale = -self.k, -self.scale
        self.mask = _additive(terms["mask"], terms["bias"], self.dtype)
        # A power of two next to 1 / scale: unit * x * scale is a logit of the size of x.
        self.unit = 2.0 ** math.ceil(-math.log2(self.scale))
        self.hidden = -3e4 if q.dtype == torch.float16 else -1e30
        self.forward_pair = self._forward_pair()

    def counts(self, terms: dict[str, Any]) -> dict[str, torch.Tensor]:
        """n_visible [B, H, Q], 0 for queries that are not valid, and key_count [B, H, K]."""
        return torch_blockwise.attention_stats(*self.pair, ("n_visible", "key_count"), **terms)

    def rows(
        self, values: torch.Tensor | None, power: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(lse of the keys [B, H, Q], mean of the values [B, H, Q, F] or None) of the scores times
        `power`; values [B, 1 or Hkv, K, F]. -inf and 0 where nothing is visible."""
        lse = torch.full_like(self.blind, -math.inf, dtype=torch.float64)
        found = []
        for rows, keys, diagonal in self._pieces(self.terms["causal"], self.terms["query_offset"]):
            v = None if values is None else values[:, :, keys]
            part, out = self.piece(rows, keys, diagonal, v, power)
            lse[:, :, rows] = torch.logaddexp(lse[:, :, rows], part)
            found.append((rows, part, out))
        lse.masked_fill_(self.blind, -math.inf)
        if values is None:
            return lse, None
        mean = torch.zeros(*lse.shape, values.shape[-1], dtype=self.dtype, device=lse.device)
        for rows, part, out in found:
            share = self.share(part, lse, rows).to(self.dtype)
            mean[:, :, rows] += share[..., None] * out
        return lse, mean

    def share(self, part: torch.Tensor, lse: torch.Tensor, rows: slice) -> torch.Tensor:
        """What the weights of keys with the lse `part` [B, H, R] are of whole rows with `lse`."""
        share = (part - lse[:, :, rows]).exp()
        return share.masked_fill_(self.blind[:, :, rows], 0.0)

    def piece(
        self,
        rows: slice,
        keys: slice,
        diagonal: bool,
        values: torch.Tensor | None,
        power: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(lse [B, H, R], out [B, H, R, F] or None) of one piece; values [B or 1, 1 or Hkv, keys,
        F]."""
        q, k = self.forward_pair
        found = []
        for g in range(self.groups):
            mask = self._mask(rows, keys, g)
            mask = mask if mask is None or power == 1.0 else mask * power
            side = q[:, g :: self.groups, rows], k[:, :, keys]
            found.append(self._fused(*side, values, diagonal, mask, self.scale * power))
        return _interleaved(found)

    def columns(
        self, lse: torch.Tensor, causal: bool, offset: int, values: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(sum of p over the queries [B, H, K], P^T values [B, H, K, F] or None) by the transposed
        call; lse [B, H, Q] of whole rows, values [B, 1, Q, F]. Keys nobody sees: anything."""
        logit = torch.where(self.blind, self.hidden, -lse)
        q, k = self._extended(self.q, logit), self._extended(self.k, None)
        mass = lse.new_zeros(self.key_count.shape)
        total = None if values is None else mass.new_zeros(*mass.shape, values.shape[-1])
        for rows, keys, diagonal in self._pieces(causal, offset):
            # With both ends swapped, "no earlier query" is "no later key".
            dims = (2,) if diagonal else ()
            own = k[:, :, keys].flip(dims)
            v = None if values is None else values[:, :, rows].flip(dims)
            found = []
            for g in range(self.groups):
                mask = self._mask(rows, keys, g)
                if mask is not None:
                    mask = mask.transpose(2, 3).flip((2, 3) if diagonal else ())
                theirs = q[:, g :: self.groups, rows].flip(dims)
                found.append(self._fused(own, theirs, v, diagonal, mask, self.scale))
            part, out = (x if x is None else x.flip(dims) for x in _interleaved(found))
            assert part is not None
            mass[:, :, keys] += part.exp()
            if total is not None and out is not None:
                total[:, :, keys] += part.exp()[..., None] * out
        return mass, total

    def _fused(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        values: torch.Tensor | None,
        causal: bool,
        mask: torch.Tensor | None,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(lse [B, Hkv, Q], out [B, Hkv, Q, F] or None); a kernel takes D values at a time."""
        n_q, width = q.shape[2], k.shape[-1]
        if values is None:
            return self.kernel.run(q, k, k, causal, scale, mask)[1][..., :n_q].double(), None
        lse, outs = None, []
        for part in values.to(k.dtype).split(width, -1):
            v = _dense(torch.nn.functional.pad(part, (0, width - part.shape[-1])))
            out, lse, *_ = self.kernel.run(q, k, v.expand(k.shape), causal, scale, mask)
            outs.append(out[..., : part.shape[-1]])
        assert lse is not None
        return lse[..., :n_q].double(), torch.cat(outs, -1)

    def _mask(self, rows: slice, keys: slice, g: int) -> torch.Tensor | None:
        """The additive mask of one piece for the heads g, g + G, ..."""
        if self.mask is None:
            return None
        x = cut_dense(self.mask, rows, keys)
        return x if x.shape[1] == 1 else x[:, g :: self.groups]

    def _pieces(self, causal: bool, offset: int) -> list[Piece]:
        n_q, n_k = self.q.shape[2], self.k.shape[2]
        # The kernel for the CPU divides by what an empty tensor has none of.
        return pieces(n_q, n_k, offset, causal) if self.q.numel() else []

    def _forward_pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """q and k, with a dimension that hides invalid keys where there are some."""
        valid = self.terms["key_valid"]
        if valid is None:
            return self._padded(self.q), self._padded(self.k)
        hide = torch.where(valid, 0.0, self.hidden).double()[:, None]
        return self._extended(self.q, None), self._extended(self.k, hide.expand(self.k.shape[:3]))

    def _extended(self, x: torch.Tensor, logit: torch.Tensor | None) -> torch.Tensor:
        """x with dimensions that add `logit` [B, heads, tokens] to its scores; None for the other
        side, which holds the unit."""
        n = _extra(x)
        if logit is None:
            return self._padded(torch.cat([x, x.new_full((*x.shape[:3], n), self.unit)], -1))
        rest, parts = logit / (self.scale * self.unit), []
        for _ in range(n):
            parts.append(rest.to(x.dtype))
            rest = rest - parts[-1]
        return self._padded(torch.cat([x, torch.stack(parts, -1)], -1))

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        missing = -x.shape[-1] % self.kernel.step
        return torch.nn.functional.pad(x, (0, missing)) if missing else _dense(x)


def _dense(x: torch.Tensor) -> torch.Tensor:
    """torch's CPU kernel reads a head as if its numbers were neighbours, whatever the stride."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _additive(
    mask: torch.Tensor | None, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor | None:
    """mask and bias as one float tensor of 4 dims; what hides is finite, as a row of -inf has an
    lse of 0 in torch's kernel."""
    whole = slice(None)
    if bias is not None:
        bias = cut_dense(bias, whole, whole).to(dtype).clamp(min=HIDING_BIAS)
    if mask is None:
        return bias
    mask = cut_dense(mask, whole, whole)
    shown = bias if bias is not None else torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, shown, HIDING_BIAS)


def _interleaved(
    found: list[tuple[torch.Tensor, torch.Tensor | None]],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Heads g, g + G, ... of every g in one tensor."""
    lse, out = zip(*found, strict=True)
    heads = torch.stack(lse, 2).flatten(1, 2)
    return heads, None if out[0] is None else torch.stack(out, 2).flatten(1, 2)
