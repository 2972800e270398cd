"""What the laboratory trains: frozen recipes.

`layers()` are single layers on the prompts of von Oswald et al. 2022 (arXiv 2212.07677), Adam with
betas (.9, .999), the rate as half a cosine down to 2 %.  They start from weights of .002, clip
gradients at .001 and train 5000 steps at rate 1e-3; without either, from PyTorch's start and at
higher rates, the same losses are reached in fewer steps.  `transformers()` are causal ones on
Gaussian prompts with three coordinates and labels of variance one: the toy of Garg et al. 2022
(arXiv 2208.01066), smaller.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from workbench.errors import WorkbenchError
from workbench.zoo.descent.shape import KINDS, Shape
from workbench.zoo.descent.task import Uniform
from workbench.zoo.regression.task import Task

LOGGED = (0, 10, 20, 40, 70, 100, 150, 200, 300, 400, 600, 800, 1000, 1500, 2000, 2500, 3000)


def logged_to(steps: int) -> tuple[int, ...]:
    """Steps to log at, about evenly spaced in their logarithm, up to the last.

    >>> logged_to(60)
    (0, 10, 20, 40, 60)
    """
    return (*(step for step in LOGGED if step < steps), steps)


@dataclass(frozen=True)
class Setting:
    """One run: its group and the seed of its start."""

    name: str
    seed: int

    @property
    def run(self) -> str:
        """Label of the run."""
        return f"{self.name}-s{self.seed}"


@dataclass(frozen=True)
class LayerRecipe:
    """A stack of single layers; `kind` is "linear" or "softmax"."""

    kind: str
    heads: int
    settings: tuple[Setting, ...]
    steps: int
    rate: float
    batch: int = 256
    task: Uniform = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        if self.kind not in KINDS or min(self.heads, self.steps, self.batch) < 1:
            raise WorkbenchError(
                f"recipe of kind {self.kind!r} with {self.heads} heads, {self.steps} steps of "
                f"{self.batch} prompts: give {' or '.join(KINDS)}, and 1 or more of each."
            )

    @property
    def name(self) -> str:
        """Name of its stack."""
        return f"{self.kind}-h{self.heads}"

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)


@dataclass(frozen=True)
class TransformerRecipe:
    """A stack of causal transformers; the rate rises over `warmup` steps before its cosine."""

    settings: tuple[Setting, ...]
    steps: int
    rate: float = 3e-3
    batch: int = 64
    warmup: int = 100
    shape: Shape = field(default_factory=Shape)
    name: str = "transformer"

    @property
    def task(self) -> Task:
        """Its prompts: without noise, labels of variance one."""
        return Task(d=self.shape.d, length=self.shape.examples, noise=0.0)

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)


LINEAR, ONE, TWO, CAUSAL = "linear", "softmax-h1", "softmax-h2", "transformer"


def _seeds(name: str, count: int) -> tuple[Setting, ...]:
    return tuple(Setting(name, seed) for seed in range(count))


def layers(*, quick: bool = False) -> tuple[LayerRecipe, ...]:
    """Linear attention, and softmax attention with one head and with two."""
    if quick:
        return (
            LayerRecipe("linear", 1, _seeds(LINEAR, 2), 700, 1e-2),
            LayerRecipe("softmax", 1, _seeds(ONE, 1), 300, 1e-2),
            LayerRecipe("softmax", 2, _seeds(TWO, 1), 500, 1e-2),
        )
    return (
        LayerRecipe("linear", 1, _seeds(LINEAR, 8), 1000, 1e-2),
        LayerRecipe("softmax", 1, _seeds(ONE, 4), 1000, 1e-2),
        LayerRecipe("softmax", 2, _seeds(TWO, 6), 2500, 1e-2),
    )


def transformers(*, quick: bool = False) -> tuple[TransformerRecipe, ...]:
    """Two causal transformers, none in the quick setting."""
    return () if quick else (TransformerRecipe(_seeds(CAUSAL, 2), 1800),)
