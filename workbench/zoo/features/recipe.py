"""Sizes of the experiment, default and quick.

`wide` is the setting of the questions; in `small`, with half the coordinates and keys, the hardest
function can be learned from the inputs there are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from workbench.zoo.features.task import Task

# Strength of the mean of biased attention, in deviations of a weight.
BIAS = 4.0
WIDE, SMALL = "wide", "small"


@dataclass(frozen=True)
class Recipe:
    """One setting: `heads` heads, numbers `counts` of training inputs, `tested` fresh ones."""

    name: str
    task: Task
    heads: int = 200
    counts: tuple[int, ...] = (64, 128, 256, 512, 1024)
    tested: int = 1000
    seeds: tuple[int, ...] = (0, 1, 2, 3)

    @property
    def features(self) -> int:
        return self.heads * (self.task.d + 1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


DEFAULT = (Recipe(WIDE, Task(8, 8)), Recipe(SMALL, Task(4, 4)))
QUICK = tuple(
    Recipe(r.name, r.task, counts=(64, 128, 256), tested=500, seeds=(0, 1)) for r in DEFAULT
)
