"""Sizes of the experiments: default, and quick for a look.

Coherent keys have widths that are powers of four: the capacity, a root, is then a whole number.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# Error allowed relative to the length of a value, and share of lists that must be within it.
EPS, SURE = 0.5, 0.95
RULE_D, DEPTH_D = 64, 64
HEADS_MODEL, HEADS_D, HEADS_ITEMS = 256, 32, 16


@dataclass(frozen=True)
class Size:
    """`lists` are drawn per experiment; the others are the axes of the tables."""

    seeds: tuple[int, ...] = (0, 1, 2)
    lists: int = 1000
    loads: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    widths: tuple[int, ...] = (16, 64, 256)
    coherent_widths: tuple[int, ...] = (16, 64, 256, 1024)
    mean_widths: tuple[int, ...] = (64, 128, 256, 512)
    largest_widths: tuple[int, ...] = (32, 64, 128, 256)
    decoding_widths: tuple[int, ...] = (16, 32, 64, 128)
    rule_items: tuple[int, ...] = (4, 8, 16, 32, 48, 64, 96, 128, 192)
    layers: int = 6
    depth_items: tuple[int, ...] = (2, 8, 16, 32, 48)
    heads: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


DEFAULT = Size()
QUICK = Size(
    seeds=(0,), lists=300, widths=(16, 64), coherent_widths=(16, 64, 256),
    mean_widths=(64, 128, 256), largest_widths=(32, 64, 128), decoding_widths=(16, 32, 64),
    rule_items=(8, 32, 64, 128),
)  # fmt: skip
