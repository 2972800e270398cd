"""Statistics of the map as a whole on the Triton path: blocks of any size, diagonals, distances.

Dims: B batch, H query heads, Q queries, K keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from workbench.kernels.attention_stats.terms import histogram_bins
from workbench.kernels.attention_stats.triton_call import Call, Tiles
from workbench.kernels.attention_stats.triton_reach import Reach, of_rows


def block_statistics(call: Call, lse2: torch.Tensor) -> dict[str, torch.Tensor]:
    """block_mass and block_max [B, H, ceil(Q / pool), ceil(K / pool)]."""
    b, h, n_q = call.shape
    n_k = call.geometry.n_k
    pool = [min(size, max(1, n)) for size, n in zip(call.terms["pool"], (n_q, n_k), strict=True)]
    cells = [-(-n // size) for n, size in zip((n_q, n_k), pool, strict=True)]
    mass, most = torch.zeros(2, b, h, *cells, dtype=torch.float32, device=call.q.device)
    if mass.numel():
        from workbench.kernels.attention_stats.triton_map_kernels import block_kernel

        tiles = square(call.tiles(columns=True))
        # Tokens of one block in a tile, and blocks in a tile.
        part = [min(tiles.keys, 1 << (size - 1).bit_length()) for size in pool]
        held = [tiles.keys // size for size in part]
        groups = [-(-n // size) for n, size in zip(cells, held, strict=True)]
        split = call.splits(groups[1] * h * b, groups[0])
        reach = Reach.of(call)
        length = groups[0] * held[0] * pool[0] + tiles.queries
        arguments = (
            call.q, call.k, of_rows(lse2, n_q, length), call.valid_keys(), mass, most,
            call.column_bounds(held[1] * pool[1]), *pool, -(-groups[0] // split),
            *reach.arguments(call),
        )  # fmt: skip
        block_kernel[(groups[1] * split, h, b)](
            *arguments, **_constants(
                call, reach, tiles, PART_Q=part[0], PART_K=part[1], HELD=pool[1] <= part[1],
                WHOLE=not (pool[0] % part[0] or pool[1] % part[1]),
            )
        )  # fmt: skip
    return {"block_mass": mass, "block_max": most}


def diagonal_statistics(call: Call, want: set[str], lse2: torch.Tensor) -> dict[str, torch.Tensor]:
    """diagonal_mass [B, H, Q + K - 1] and the distance_histogram [B, H, bins] it holds."""
    mass = _diagonals(call, lse2)
    found = {"diagonal_mass": mass}
    if "distance_histogram" in want:
        g = call.geometry
        # Entry of distance 0; bin n >= 1 is 2^(n - 1) to 2^n - 1 on both sides of it.
        zero, bins = g.n_k - 1 - g.offset, histogram_bins(g.n_q, g.n_k, g.offset)
        sums = [_between(mass, zero, zero + 1)]
        for near in (1 << n for n in range(bins - 1)):
            behind = _between(mass, zero + near, zero + 2 * near)
            sums.append(behind + _between(mass, zero - 2 * near + 1, zero - near + 1))
        found["distance_histogram"] = torch.stack(sums, -1)
    return found


def _between(x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Sum of the entries start..stop of the last dim, as far as they exist."""
    return x[..., max(0, start) : max(0, stop)].sum(-1)


def _diagonals(call: Call, lse2: torch.Tensor) -> torch.Tensor:
    """diagonal_mass, float64."""
    b, h, n_q = call.shape
    n_k, tiles = call.geometry.n_k, square(call.tiles(columns=True))
    size = tiles.keys
    n_blocks_q, n_blocks_k = -(-n_q // size), -(-n_k // size)
    n = max(0, n_blocks_q + n_blocks_k - 1)
    out = torch.zeros(b, h, n, 2, size, dtype=torch.float32, device=call.q.device)
    if b and h and n_q:
        from workbench.kernels.attention_stats.triton_map_kernels import diagonal_kernel

        reach = Reach.of(call)
        diagonal_kernel[(n, h, b)](
            call.q, call.k, of_rows(lse2, n_q, n_blocks_q * size), call.valid_keys(), out,
            *reach.arguments(call), **_constants(call, reach, tiles),
        )  # fmt: skip
    # Distances below the first one of a diagonal of blocks are those of the diagonal before it.
    above, below = out.double().unbind(3)
    above = torch.nn.functional.pad(above, (0, 0, 1, 0))
    below = torch.nn.functional.pad(below, (0, 0, 0, 1))
    first = n_blocks_k * size - (n_k - 1)
    return (above + below).flatten(2)[..., first : first + n_q + n_k - 1]


def square(tiles: Tiles) -> Tiles:
    """As many queries as keys."""
    return replace(tiles, queries=tiles.keys)


def _constants(call: Call, reach: Reach, tiles: Tiles, **flags: Any) -> dict[str, Any]:
    given = {"VALID": "key_valid", "CLEAN": "query_valid"}
    flags |= {flag: call.terms[name] is not None for flag, name in given.items()}
    return reach.constants(call, tiles, **flags)
