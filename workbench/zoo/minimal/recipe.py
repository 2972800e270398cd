"""What the laboratory trains: frozen recipes, one stack per variant."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from workbench.zoo.minimal.model import BARE, NO_MLP, SYMMETRIC, UNIFORM, VARIANTS
from workbench.zoo.minimal.task import PLAIN, REVERSED

LOGGED = (0, 10, 20, 40, 80, 120, 200, 300, 450, 600, 800, 1000)
# Without value and output matrices a network learns slowly at the rate that suits the others, and
# those lose their way at this one.
RATE, FAST = 3e-3, 1e-2
LAYERS, WIDTH = 4, 32


@dataclass(frozen=True)
class Setting:
    """One run: its variant, the kind of images and the seed of its start."""

    variant: str
    kind: str
    seed: int

    @property
    def name(self) -> str:
        """What runs of all seeds share."""
        return f"{self.variant}-{self.kind}"

    @property
    def run(self) -> str:
        """Label of the run."""
        return f"{self.name}-s{self.seed}"


@dataclass(frozen=True)
class Recipe:
    """One stack: everything that decides its numbers.

    Adam with betas (.9, .999), the rate falls as half a cosine to 2 %.
    """

    variant: str
    settings: tuple[Setting, ...]
    steps: int
    rate: float
    layers: int = LAYERS
    d_model: int = WIDTH
    batch: int = 64

    @property
    def logged(self) -> tuple[int, ...]:
        """Numbers of steps after which it is measured."""
        return (*(step for step in LOGGED if step < self.steps), self.steps)

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)


def _stack(variant: str, seeds: dict[str, int], steps: int) -> Recipe:
    settings = tuple(Setting(variant, kind, seed) for kind in seeds for seed in range(seeds[kind]))
    return Recipe(variant, settings, steps, FAST if variant in (BARE, SYMMETRIC) else RATE)


def small() -> tuple[Recipe, ...]:
    """Every variant: three seeds on reversed images, one on plain ones."""
    return tuple(_stack(variant, {REVERSED: 3, PLAIN: 1}, 1000) for variant in VARIANTS)


def quick() -> tuple[Recipe, ...]:
    """The network without MLP, the smallest and the control, one seed on reversed images."""
    return tuple(_stack(variant, {REVERSED: 1}, 600) for variant in (NO_MLP, SYMMETRIC, UNIFORM))
