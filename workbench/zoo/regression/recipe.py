"""What the laboratory trains: frozen recipes.

`small()` is 83 runs in eight stacks, 172 CPU seconds on one thread of a CPU that others used too,
a third of them for what is logged.
What it gave, the worst run first; risks on fresh prompts where debiased GD has .2445, GD .2412,
ridge .1143 and one head .405:

    two heads            14 of 24 random starts solved, 1 late, 9 stuck; of the solved risk / that
                         of debiased GD 1.006, off_kq .0014, zero_sum .003, eta .880 to .882,
                         distance to debiased GD .0025, to GD .0065; opposite signs 3 of 3, same
                         sign 0 of 3
    three, four, eight   stuck 3 of 24, 0 of 12, 0 of 6; off_e .0002 with four and eight
    coloured             cos(E, Gamma) .99993, and .998 to the inverse covariance
    two tasks            risk / that of two debiased GD 1.017 with three heads, 1.18 with two

Why these sizes: after 3000 steps a pair that escaped late was still .0038 from debiased GD; 1500
are enough to see who sticks.  A stack of 30 runs of two heads costs 7.5 ms per step, one of 2 runs
of one head 3.6: most of it is overhead, so seeds are cheap.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from workbench.errors import WorkbenchError
from workbench.zoo.regression.task import Task


@dataclass(frozen=True)
class Setting:
    """One run: its group, the seed of its start, and the signs its heads are given (or none)."""

    name: str
    seed: int
    signs: tuple[int, ...] = ()

    @property
    def run(self) -> str:
        """Label of the run."""
        return f"{self.name}-s{self.seed}"


@dataclass(frozen=True)
class Recipe:
    """One stack: everything that decides its numbers.

    Fresh prompts at every step, Adam with betas (.9, .999), the rate falls as half a cosine to 2 %.
    `logged` are the numbers of steps after which it is measured.
    """

    name: str
    settings: tuple[Setting, ...]
    task: Task
    heads: int
    steps: int
    logged: tuple[int, ...]
    rate: float = 5e-3
    batch: int = 256

    def __post_init__(self) -> None:
        if self.heads < 1 or self.batch < 1:
            raise WorkbenchError(
                f"recipe {self.name} has {self.heads} heads and {self.batch} prompts per step; "
                "give 1 or more."
            )

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)


LOGGED = (
    0, 10, 20, 30, 40, 50, 60, 70, 85, 100, 120, 140, 170, 200, 240, 280, 330, 400, 470, 560, 670,
    800, 950, 1100, 1300, 1500, 1750, 2000, 2500, 3000, 3500, 4000,
)  # fmt: skip
PLAIN = Task()
COLOURED = Task(correlation=0.5)
TWO_TASKS = Task(d=6, length=48, supports=((0, 1, 2, 3), (2, 3, 4, 5)))


def logged_to(steps: int) -> tuple[int, ...]:
    """Steps to log at, about evenly spaced in their logarithm, up to the last.

    >>> logged_to(60)
    (0, 10, 20, 30, 40, 50, 60)
    """
    return (*(step for step in LOGGED if step < steps), steps)


def _seeds(name: str, count: int, signs: tuple[int, ...] = ()) -> tuple[Setting, ...]:
    return tuple(Setting(name, seed, signs) for seed in range(count))


def _stack(
    name: str, settings: tuple[Setting, ...], heads: int, steps: int, task: Task = PLAIN
) -> Recipe:
    return Recipe(name, settings, task, heads, steps, logged_to(steps))


def _two_heads(count: int, signed: int, steps: int) -> Recipe:
    settings = (
        *_seeds("h2", count),
        *_seeds("same", signed, (1, 1)),
        *_seeds("opposite", signed, (1, -1)),
    )
    return _stack("two-heads", settings, 2, steps)


def small() -> tuple[Recipe, ...]:
    """Every run that the laws need; the viewer opens with the first one, h2-s0."""
    return (
        _two_heads(24, 3, 4000),
        _stack("one-head", _seeds("h1", 2), 1, 1500),
        _stack("three-heads", _seeds("h3", 24), 3, 1500),
        _stack("four-heads", _seeds("h4", 12), 4, 2500),
        _stack("eight-heads", _seeds("h8", 6), 8, 1500),
        _stack("coloured", _seeds("coloured", 3), 4, 2000, COLOURED),
        _stack("two-tasks-two-heads", _seeds("tasks-h2", 3), 2, 2000, TWO_TASKS),
        _stack("two-tasks-three-heads", _seeds("tasks-h3", 3), 3, 4000, TWO_TASKS),
    )


def quick() -> tuple[Recipe, ...]:
    """One head, and two with given signs, for a thousand steps."""
    return (_stack("one-head", _seeds("h1", 1), 1, 500), _two_heads(0, 2, 1000))
