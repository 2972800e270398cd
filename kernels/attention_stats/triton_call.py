"""One call in the units of the Triton kernels: sizes, strides, block sizes, final dtypes.

exp2(factor * score) is what a row sums; see `triton_tiles`. Block sizes follow a rule: nothing is
timed, and nothing asks the driver when this is imported.

Dims: B batch, H query heads, G = H // Hkv, Q queries, K keys, D width, S segments.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from workbench.kernels.attention_stats.terms import INT_STATS, ROW_STATS, TERMS, WIDE_ROWS
from workbench.kernels.attention_stats.torch_counts import count
from workbench.kernels.attention_stats.torch_geometry import Geometry
from workbench.kernels.attention_stats.torch_problem import Problem

# triton decides when it is imported; so does this module.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")
LN2, LOG2E = math.log(2.0), 1.0 / math.log(2.0)


@dataclass(frozen=True)
class Tiles:
    """Block sizes of one launch, chosen by rule: nothing is timed."""

    queries: int
    keys: int
    width: int
    warps: int
    stages: int

    @staticmethod
    def of(kind: str, dtype: torch.dtype, d: int, *, columns: bool, crowded: bool = False) -> Tiles:
        """For one pass: `columns` or rows; `crowded` where rows carry so much that half as many
        keys fit. Every choice compiles without spills (tests/kernels/test_triton.py); none has been
        timed."""
        width = max(16, 1 << (d - 1).bit_length())
        wide = width > 128
        if kind == "interpreter":
            return Tiles(32, 32, width, 4, 1)
        if dtype == torch.float32:
            hip = kind == "hip"
            rows = 32 if columns or wide else 64
            return Tiles(rows, 32, width, 4 if columns or hip else 8, 1 if hip else 2)
        if columns:
            stages = 1 if wide and kind == "hip" else 2
            return Tiles(64 if wide else 128, 64, width, 4, stages)
        if kind == "hip":
            return Tiles(64 if wide else 128, 32, width, 4, 1 if wide else 2)
        return Tiles(128, 32 if wide or crowded else 64, width, 8, 2)


def _kind() -> str:
    """What `Tiles` tells apart."""
    if INTERPRETED:
        return "interpreter"
    return "hip" if torch.version.hip else "cuda"


def _bounds(
    sequences: tuple[torch.Tensor, torch.Tensor] | None, block: int, instead: torch.Tensor
) -> torch.Tensor:
    """Where the sequences of each block of the first lie in the second, int32 [B, blocks, 2]."""
    if sequences is None or not sequences[0].shape[1]:
        return instead
    own, theirs = sequences
    n = own.shape[1]
    starts = torch.arange(0, n, block, device=own.device)
    first = torch.searchsorted(theirs, own[:, starts].contiguous())
    last = own[:, (starts + block - 1).clamp(max=n - 1)].contiguous()
    return torch.stack([first, torch.searchsorted(theirs, last, right=True)], -1).int()


@dataclass(frozen=True)
class Call:
    """Checked arguments in the units of the kernels: exp2(factor * score) is what a row sums."""

    q: torch.Tensor
    k: torch.Tensor
    terms: dict[str, Any]
    geometry: Geometry
    factor: float
    inner: float
    kind: str

    @staticmethod
    def of(q: torch.Tensor, k: torch.Tensor, terms: dict[str, Any]) -> Call:
        """A scale that could not be told from a hidden key's, zero or negative, goes into q."""
        terms = dict.fromkeys(TERMS) | terms
        scale = q.shape[3] ** -0.5 if terms["scale"] is None else terms["scale"]
        cap = terms["softcap"]
        if cap is None and not 1e-6 < scale < 1e6:
            q, k, scale = q.float() * scale, k.float(), 1.0
        geometry = Geometry(
            q.shape[2], k.shape[2], terms["query_offset"], bool(terms["causal"]), terms["window"]
        )
        return Call(
            q,
            k,
            terms,
            geometry,
            (scale if cap is None else cap) * LOG2E,
            0.0 if cap is None else scale / cap,
            _kind(),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, H, Q)."""
        return self.q.shape[0], self.q.shape[1], self.q.shape[2]

    def sizes(self) -> tuple[Any, ...]:
        """The scalar arguments that both passes share, in their order."""
        g = self.geometry
        head = (self.q.shape[1], self.q.shape[1] // self.k.shape[1], g.n_q, g.n_k)
        band = (g.offset, g.window or 0, self.factor, self.inner)
        return (*head, *band, *self.q.stride(), *self.k.stride())

    def tiles(self, *, columns: bool = False, crowded: bool = False) -> Tiles:
        """Of one pass over these tensors."""
        d = self.q.shape[3]
        return Tiles.of(self.kind, self.q.dtype, d, columns=columns, crowded=crowded)

    def splits(self, programs: int, tiles: int) -> int:
        """Into how many parts the keys of every row go, so that few rows still fill the device
        twice; at least four tiles each. Follows from shapes and the device's size alone."""
        if self.kind == "interpreter":
            processors = 4
        else:
            processors = torch.cuda.get_device_properties(self.q.device).multi_processor_count
        return max(1, min(2 * processors // max(1, programs), tiles // 4))

    def constants(self, tiles: Tiles) -> dict[str, Any]:
        """The compile-time arguments that both passes share, and the launch options."""
        return {
            "BLOCK_Q": tiles.queries,
            "BLOCK_K": tiles.keys,
            "BLOCK_D": tiles.width,
            "WIDTH": self.q.shape[3],
            "CAUSAL": self.geometry.causal,
            "WINDOW": self.geometry.window is not None,
            "SOFTCAP": self.terms["softcap"] is not None,
            # Without it triton rounds float32 to 10 bits.
            "PRECISION": "ieee",
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
            # One fused multiply-add per score; said here because 3.10 changes the default.
            "enable_fp_fusion": True,
        }

    def flags(self) -> dict[str, bool]:
        """Which terms are read per score; the compile-time arguments of `shifted`."""
        given = {"MASK": "mask", "BIAS": "bias", "ALIBI": "alibi", "SEQUENCE": "query_sequence"}
        return {flag: self.terms[name] is not None for flag, name in given.items()}

    def extras(self) -> tuple[Any, ...]:
        """The arguments of those terms, in the kernels' order: mask int8 and its four strides, bias
        and its four strides, alibi float32 [H], sequences int32 [B, Q] and [B, K], per_factor.

        A pointer that is not used still has to be one: q stands in."""
        b, h, n_q = self.shape
        dense: list[Any] = []
        for name in ("mask", "bias"):
            x = self.terms[name]
            x = self.q[:1, :1, :1, :1] if x is None else x
            x = x.view(torch.int8) if x.dtype == torch.bool else x
            x = x.expand(b, h, n_q, self.geometry.n_k)
            dense += [x, *x.stride()]
        alibi = self.terms["alibi"]
        slopes = self.q if alibi is None else alibi.float().contiguous()
        return (*dense, slopes, *(self.sequences or (self.q, self.q)), LOG2E / self.factor)

    def valid_keys(self) -> torch.Tensor:
        """key_valid as int8 [B, K]; something to point at without."""
        valid = self.terms["key_valid"]
        return self.q if valid is None else valid.to(torch.int8).contiguous()

    @cached_property
    def sequences(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Packed sequences of the queries and of the keys as small numbers, int32."""
        own, theirs = self.terms["query_sequence"], self.terms["key_sequence"]
        if own is None:
            return None
        n_q = own.shape[1]
        rank = torch.cat([own.long(), theirs.long()], 1).unique(return_inverse=True)[1].int()
        return rank[:, :n_q].contiguous(), rank[:, n_q:].contiguous()

    def row_bounds(self, block: int) -> torch.Tensor:
        """Keys [first, stop) that a block of queries finds in its sequences, int32 [B, blocks, 2];
        something to point at without sequences."""
        return _bounds(self.sequences, block, self.q)

    def column_bounds(self, block: int) -> torch.Tensor:
        """Queries [first, stop) that a block of keys finds in its sequences, int32 [B, blocks,
        2]."""
        both = self.sequences
        return _bounds(None if both is None else (both[1], both[0]), block, self.q)

    def counts(self) -> dict[str, torch.Tensor]:
        """n_visible and key_count [B, H, .], without scores; linear in length unless a mask or a
        bias has to be read."""
        b, h, n_q = self.shape
        names = ("n_visible", "key_count")
        if not b:
            lengths = (n_q, self.geometry.n_k)
            return {name: self.q.new_zeros(0, h, n) for name, n in zip(names, lengths, strict=True)}
        found = count(Problem.of(self.q, self.k, names, self.terms))
        return {name: x.expand(b, h, x.shape[2]) for name, x in found.items()}

    def finish(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Final dtype; rows of invalid queries hold NaN (0 for integers, -1 for top_keys)."""
        x = x.to(torch.int64 if name in INT_STATS else torch.float32)
        valid = self.terms["query_valid"]
        if valid is None or name not in ROW_STATS:
            return x.contiguous()
        empty = -1 if name == "top_keys" else 0 if name in INT_STATS else math.nan
        hidden = ~valid[:, None, :, None] if name in WIDE_ROWS else ~valid[:, None]
        return x.masked_fill(hidden, empty)
