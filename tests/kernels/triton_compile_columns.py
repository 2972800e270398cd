"""Compilations of the column, map and band kernels for GPUs that are not here, run by
`triton_worker.py`; see `test_triton_columns.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from triton_compile import TARGETS, compiled, measure

from workbench.kernels.attention_stats.triton_call import Tiles
from workbench.kernels.attention_stats.triton_columns import fitting
from workbench.kernels.attention_stats.triton_map import square

CASES: dict[str, Callable[[], Any]] = {}

MODULES = {"column": "column", "block": "map", "diagonal": "map", "near": "band", "gather": "band"}
# A causal map without padding.
TERMS = {"LOW": True, "HIGH": False, "CLEAN": False, "VALID": False, "SOFTCAP": False}
TERMS |= {"MASK": False, "BIAS": False, "ALIBI": False, "SEQUENCE": False}
SUMS = {"BEST": True, "COUNT": False, "VAR": False, "ENTROPY": False, "FEATURES": 0}
# Blocks of 64 by 64 tokens.
POOL = {"PART_Q": 64, "PART_K": 64, "WHOLE": True, "HELD": True}


def inspect(
    kernel: str, target: str, width: int, dtype: torch.dtype = torch.bfloat16, **flags: Any
) -> dict[str, Any]:
    """`measure` of a kernel with the block sizes of its launch."""
    flags = TERMS | SUMS | POOL | flags
    tiles = Tiles.of(TARGETS[target][0], dtype, width, columns=kernel not in ("near", "gather"))
    if kernel == "column":
        tiles = fitting(tiles, **flags)
    elif kernel in ("block", "diagonal"):
        tiles = square(tiles)
    where = f"workbench.kernels.attention_stats.triton_{MODULES[kernel]}_kernels"
    constants = flags | {
        "PRECISION": "ieee", "BLOCK_Q": tiles.queries, "BLOCK_K": tiles.keys,
        "BLOCK_D": tiles.width, "WIDTH": width, "stride_qd": 1, "stride_kd": 1, "mask_k": 1,
        "bias_k": 1,
    }  # fmt: skip
    names = {torch.bfloat16: "bf16", torch.float32: "fp32"}
    function = getattr(import_module(where), f"{kernel}_kernel")
    return measure(compiled(function, constants, tiles, target, names[dtype]), tiles, target)


def everywhere(name: str, kernel: str, width: int, **flags: Any) -> None:
    CASES[name] = lambda: {target: inspect(kernel, target, width, **flags) for target in TARGETS}


def once(name: str, kernel: str, width: int, **flags: Any) -> None:
    CASES[name] = lambda: {"sm_90": inspect(kernel, "sm_90", width, **flags)}


everywhere("sum and maximum, 64", "column", 64)
everywhere("sum and maximum, 128", "column", 128)
everywhere("blocks", "block", 128)
everywhere("diagonals", "diagonal", 128)
everywhere("near keys", "near", 128, HIGH=True)
once("sum", "column", 128, BEST=False)
once("window and padding", "column", 128, HIGH=True, CLEAN=True)
once("variance", "column", 128, VAR=True)
once("entropy", "column", 128, ENTROPY=True)
once("64 features", "column", 128, BEST=False, FEATURES=64)
once("every statistic", "column", 128, VAR=True, ENTROPY=True)
once("mask", "column", 128, MASK=True, COUNT=True)
once("terms without a matrix", "column", 80, HIGH=True, SOFTCAP=True, ALIBI=True, SEQUENCE=True)
once("width 256", "column", 256)
once("float32", "column", 64, dtype=torch.float32)
once("small blocks", "block", 128, PART_Q=16, PART_K=16)
once("ragged blocks", "block", 128, WHOLE=False, HELD=False)
once("keys of each query", "gather", 128)
