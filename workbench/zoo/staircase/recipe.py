"""What the laboratory trains: frozen recipes.

Full-batch gradient descent with the loss not halved, as the authors' code has it: D = 4, 31
examples and a query, eigenvalues as 4 to 1 with trace 1, five heads of rank one or eight merged
ones; D = 8 and nine heads for the ranks.  Their rates are .02 and .001 and their starts .01 and
1e-6; here rate and start are larger, which shortens the plateaus and moves none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.zoo.staircase.task import Task

RANDOM, ALIGNED = "random", "aligned"


@dataclass(frozen=True)
class Setting:
    """One run: the seed of its start and the size of that.

    A `random` start draws every weight with deviation `start`; an `aligned` one gives head d the
    direction d at that size and nothing else (merged: one head the identity).  `sequences` is how
    many fixed sequences it is trained on, 0 for the population.
    """

    name: str
    seed: int
    start: float
    kind: str = RANDOM
    sequences: int = 0

    def __post_init__(self) -> None:
        if self.start <= 0 or self.kind not in (RANDOM, ALIGNED) or self.sequences < 0:
            raise WorkbenchError(
                f"setting {self.name} has start {self.start:g}, kind {self.kind!r}, "
                f"{self.sequences} sequences; give a positive start, {RANDOM!r} or {ALIGNED!r}, "
                "and no negative number."
            )

    @property
    def run(self) -> str:
        """Label of the run."""
        return f"{self.name}-s{self.seed}"


@dataclass(frozen=True)
class Recipe:
    """One stack: runs of `heads` heads whose key and query have `rank` rows, 0 for merged ones."""

    name: str
    task: Task
    settings: tuple[Setting, ...]
    heads: int
    rank: int
    steps: int
    rate: float
    logged: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.heads < 1 or self.rank < 0:
            raise WorkbenchError(
                f"recipe {self.name} has {self.heads} heads of rank {self.rank}; give 1 head or "
                "more and rank 0 or more."
            )

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)


def ladder(d: int) -> Task:
    """Eigenvalues as d, d - 1, ..., 1, of trace 1."""
    values = np.arange(d, 0, -1) * 2.0 / (d * (d + 1))
    return Task(tuple(values.tolist()))


STAIRS, WHITE, LONG_STAIRS = ladder(4), Task((0.25,) * 4), ladder(8)
SMALL, LARGE, MERGED_START = 0.03, 0.5, 1e-3
ALIGNED_START = 0.02
SEQUENCES = 5000
RANKS = (1, 2, 4, 8)


def logged_to(steps: int, count: int) -> tuple[int, ...]:
    """0 and about `count` steps from 5 on, evenly spaced in their logarithm, up to the last.

    >>> logged_to(80, 5)
    (0, 5, 10, 20, 40, 80)
    """
    return (0, *sorted({round(step) for step in np.geomspace(5, steps, count).tolist()}))


def _seeds(name: str, count: int, start: float, **more: Any) -> tuple[Setting, ...]:
    return tuple(Setting(name, seed, start, **more) for seed in range(count))


def _merged(seeds: int, steps: int = 2000) -> tuple[Recipe, ...]:
    random = _seeds("merged", seeds, MERGED_START)
    aligned = _seeds("merged-aligned", 1, ALIGNED_START, kind=ALIGNED)
    logged = logged_to(steps, 160)
    return (
        Recipe("merged", STAIRS, random, 8, 0, steps, 0.2, logged),
        Recipe("merged-white", WHITE, aligned, 8, 0, steps, 0.05, logged),
    )


def _separate(seeds: int, controls: int, steps: int, equal: int = 2500) -> tuple[Recipe, ...]:
    settings = (
        *_seeds("separate", seeds, SMALL),
        *_seeds("large", controls, LARGE),
        *_seeds("sequences", controls, SMALL, sequences=SEQUENCES),
        *_seeds("aligned", 1, ALIGNED_START, kind=ALIGNED),
    )
    white = _seeds("equal", controls, SMALL)
    return (
        Recipe("rank-one", STAIRS, settings, 5, 1, steps, 0.8, logged_to(steps, 160)),
        Recipe("rank-one-white", WHITE, white, 5, 1, equal, 0.4, logged_to(equal, 160)),
    )


def _ranked(rank: int, seeds: int, steps: int) -> Recipe:
    settings = _seeds(f"rank-{rank}", seeds, 0.05)
    logged = logged_to(steps, 120)
    return Recipe(f"ranks-{rank}", LONG_STAIRS, settings, 9, rank, steps, 1.0, logged)


def small() -> tuple[Recipe, ...]:
    """Every run that the laws need."""
    ranked = (_ranked(rank, 6, 5000) for rank in RANKS)
    return (*_merged(12), *_separate(12, 8, 12_000), *ranked)


def quick() -> tuple[Recipe, ...]:
    """A few seeds, without the ranks and until the third direction is learned."""
    return (*_merged(2, 800), *_separate(3, 3, 2000, 1600))
