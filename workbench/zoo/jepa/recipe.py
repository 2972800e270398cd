"""What the laboratory trains: frozen recipes.

Full-batch gradient descent on the moments, one stack per method and depth.  Every encoder starts
with the same product of its layers, `PRODUCT`.  Four features; where the orders are opposed, the
most predictable one has the smallest covariance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.zoo.jepa import closed
from workbench.zoo.jepa.closed import JEPA, MAE, METHODS
from workbench.zoo.jepa.task import Task

ALIGNED, FREE = "aligned", "free"
PRODUCT = 0.01
JITTER = 0.01
RHO = (1.0, 0.8, 0.65, 0.5)
LAM = (1.0, 1.07, 1.07**2, 1.07**3)
OPPOSED, AGREED, EQUAL = Task(LAM, RHO), Task(LAM[::-1], RHO), Task((1.0,) * 4, RHO)
TASKS = {"exact": OPPOSED, "opposed": OPPOSED, "agreed": AGREED, "equal": EQUAL, "free": OPPOSED}
DEPTHS = (1, 2, 3, 4)
RATES = {JEPA: 0.4, MAE: 0.02}
# How much longer than its slowest critical time a stack is trained: MAE settles slowly.
SPARE = {JEPA: 1.4, MAE: 3.0}


@dataclass(frozen=True)
class Setting:
    """One run: its task by the name of the setting, its seed, and its start.

    An `aligned` start rotates the features from layer to layer and undoes it in the last one;
    `jitter` is the deviation of what is added to each entry, as a share of the weight.  In a `free`
    one all rotations are independent.
    """

    name: str
    seed: int
    kind: str = ALIGNED
    jitter: float = JITTER

    def __post_init__(self) -> None:
        if self.name not in TASKS or self.kind not in (ALIGNED, FREE) or self.jitter < 0:
            raise WorkbenchError(
                f"setting {self.name!r} of kind {self.kind!r} with jitter {self.jitter:g}; known "
                f"are {', '.join(TASKS)}, {ALIGNED} and {FREE}, and jitter is not negative."
            )

    @property
    def run(self) -> str:
        """Label of the run."""
        return f"{self.name}-s{self.seed}"

    @property
    def task(self) -> Task:
        return TASKS[self.name]


@dataclass(frozen=True)
class Recipe:
    """One stack: a method, the depth of its encoders, the product of their layers at the start."""

    method: str
    depth: int
    settings: tuple[Setting, ...]
    product: float = PRODUCT

    def __post_init__(self) -> None:
        if self.method not in METHODS or self.depth < 1:
            raise WorkbenchError(
                f"method {self.method!r} of depth {self.depth}; give {' or '.join(METHODS)} and at "
                "least one layer."
            )

    @property
    def name(self) -> str:
        return f"{self.method}-depth-{self.depth}"

    @property
    def rate(self) -> float:
        return RATES[self.method]

    @property
    def weight(self) -> float:
        """Singular value of every layer at the start."""
        return self.product ** (1.0 / self.depth)

    @property
    def steps(self) -> int:
        """`SPARE` times the slowest critical time of its tasks."""
        slowest = max(
            closed.critical_time(self.method, lam, rho, self.depth, self.product)
            for s in self.settings
            for lam, rho in zip(s.task.lam, s.task.rho, strict=True)
        )
        return round(SPARE[self.method] * slowest / self.rate)

    @property
    def logged(self) -> tuple[int, ...]:
        """0 and about 200 steps, evenly spaced in their logarithm, up to the last."""
        return (0, *sorted({round(s) for s in np.geomspace(5, self.steps, 200).tolist()}))

    def to_json(self) -> dict[str, Any]:
        """Every field, the tasks and what follows from them."""
        return asdict(self) | {
            "tasks": {s.name: asdict(s.task) for s in self.settings},
            "rate": self.rate,
            "steps": self.steps,
        }


def _settings(seeds: int, free: int) -> tuple[Setting, ...]:
    return (
        Setting("exact", 0, jitter=0.0),
        *(Setting(name, s) for name in ("opposed", "agreed", "equal") for s in range(seeds)),
        *(Setting("free", s, FREE) for s in range(free)),
    )


def small() -> tuple[Recipe, ...]:
    """Every run that the laws need."""
    return tuple(Recipe(m, depth, _settings(4, 8)) for depth in DEPTHS for m in METHODS)


def quick() -> tuple[Recipe, ...]:
    """The shallowest and the deepest encoder, two seeds, no free starts."""
    ends = (DEPTHS[0], DEPTHS[-1])
    return tuple(Recipe(m, depth, _settings(2, 0)) for depth in ends for m in METHODS)
