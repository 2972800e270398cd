"""top_keys and top_probs of the Triton path: exact, the first key on a tie.

The k largest keys of a row lie in the k blocks of keys whose maxima are largest: one sweep writes
those maxima, and k blocks of scores per row are computed again. Cost: that sweep, and k blocks x D
per row. Rows and heads are taken in chunks that need at most 256 MB.

Dims: B batch, H query heads, Q queries, K keys, D width, T blocks of keys, C blocks chosen; N heads
and R queries of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from workbench.kernels.attention_stats.triton_call import LOG2E, Call, Tiles

# Below this a score is that of a hidden key.
_START = -1e30
# Memory of one chunk, and what a score or a maximum needs there: itself, its rank, the rank sorted.
_BYTES, _EACH = 1 << 28, 4 + 8 + 8


def top_statistics(
    call: Call, want: frozenset[str], lse: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """top_keys [B, H, Q, topk] and, given the rows' `lse` (float64, natural log), top_probs."""
    b, h, n_q = call.shape
    keys = torch.full((b, h, n_q, call.terms["topk"]), -1, device=call.q.device)
    probs = torch.zeros(keys.shape, dtype=torch.float64, device=keys.device)
    for chunk in _chunks(call):
        found, score = chunk.largest()
        at = (chunk.prompt, chunk.heads, chunk.rows, slice(0, found.shape[-1]))
        there = score > _START
        keys[at] = torch.where(there, found, -1)
        if lse is not None:
            z = score.double() * call.factor - lse[at[:3]][..., None] * LOG2E
            probs[at] = torch.where(there, torch.exp2(torch.where(there, z, 0.0)), 0.0)
    found = {"top_keys": keys, "top_probs": probs}
    return {name: x for name, x in found.items() if name in want}


@dataclass(frozen=True)
class Chunk:
    """Some queries of some heads of one prompt."""

    call: Call
    prompt: int
    heads: slice
    rows: slice

    @property
    def size(self) -> tuple[int, int]:
        """(N, R)."""
        return self.heads.stop - self.heads.start, self.rows.stop - self.rows.start

    def largest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and scores [N, R, at most topk], the largest first."""
        blocks = _order(self._peaks(), self.call.terms["topk"])
        scores = self._scores(blocks)
        tile = scores.shape[-1]
        key = blocks[..., None] * tile + torch.arange(tile, device=blocks.device)
        key, scores = key.flatten(-2), scores.flatten(-2)
        best = _order(scores, self.call.terms["topk"], key)
        return key.gather(-1, best), scores.gather(-1, best)

    def _arguments(self) -> tuple[Any, ...]:
        """What both kernels take after their tensors."""
        return self.prompt, self.heads.start, self.rows.start, self.size[1]

    def _constants(self, tiles: Tiles) -> dict[str, Any]:
        """Their compile-time arguments and launch options."""
        valid = {"VALID": self.call.terms["key_valid"] is not None}
        return self.call.constants(tiles) | self.call.flags() | valid

    def _peaks(self) -> torch.Tensor:
        """The largest score of every block [N, R, T]."""
        call, (n, r) = self.call, self.size
        tiles = call.tiles()
        n_blocks = -(-call.geometry.n_k // tiles.keys)
        blocks = -(-r // tiles.queries)
        splits = call.splits(blocks * n, n_blocks)
        out = torch.full((n, r, n_blocks), 2 * _START, dtype=torch.float32, device=call.q.device)
        from workbench.kernels.attention_stats.triton_topk_kernels import peak_kernel

        peak_kernel[(blocks * splits, n)](
            call.q, call.k, call.valid_keys(), call.row_bounds(tiles.queries), out,
            splits, *self._arguments(), *call.sizes(), *call.extras(),
            **self._constants(tiles),
        )  # fmt: skip
        return out

    def _scores(self, blocks: torch.Tensor) -> torch.Tensor:
        """The scores of the keys of the blocks [N, R, C], [N, R, C, keys of a block]."""
        call, (n, r) = self.call, self.size
        tiles = call.tiles()
        shape = (*blocks.shape, tiles.keys)
        out = torch.empty(shape, dtype=torch.float32, device=call.q.device)
        constants = self._constants(tiles) | {"num_warps": 4, "num_stages": 1}
        for name in ("BLOCK_Q", "PRECISION"):
            constants.pop(name)
        from workbench.kernels.attention_stats.triton_topk_kernels import chosen_kernel

        chosen_kernel[(r, blocks.shape[-1], n)](
            call.q, call.k, call.valid_keys(), blocks.int().contiguous(), out, *self._arguments(),
            *call.sizes(), *call.extras(), **constants,
        )  # fmt: skip
        return out


def _chunks(call: Call) -> Iterator[Chunk]:
    """All rows, in chunks of whole heads or, where a head is too much, of whole blocks of rows."""
    (b, h, n_q), tiles = call.shape, call.tiles()
    blocks = -(-call.geometry.n_k // tiles.keys)
    each = _EACH * max(blocks, min(call.terms["topk"], blocks) * tiles.keys)
    rows = max(tiles.queries, _BYTES // each // tiles.queries * tiles.queries)
    heads = max(1, min(h, rows // max(1, n_q)))
    for i_b in range(b):
        for i_h in range(0, h, heads):
            for i_q in range(0, n_q, rows):
                stop = min(h, i_h + heads), min(n_q, i_q + rows)
                yield Chunk(call, i_b, slice(i_h, stop[0]), slice(i_q, stop[1]))


def _order(x: torch.Tensor, k: int, index: torch.Tensor | None = None) -> torch.Tensor:
    """Where the k largest of float32 x [., n] are, the smaller `index` (default: place) first on a
    tie. One integer holds both, so that the order is total and does not depend on the device."""
    n = x.shape[-1]
    bits = (x + 0.0).view(torch.int32).long()
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    place = torch.arange(n, device=x.device) if index is None else index.long()
    return (rising * (1 << 32) - place).topk(min(k, n), -1).indices
