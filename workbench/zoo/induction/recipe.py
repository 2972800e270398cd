"""What the laboratory trains: frozen recipes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from workbench.errors import WorkbenchError
from workbench.zoo.induction.task import Language


@dataclass(frozen=True)
class Setting:
    """How one run differs from its neighbours in the stack.

    `favourites` False is the control: texts of the chain alone, with nothing to copy.  `smeared`
    gives every key a share of the key before it.
    """

    name: str
    seed: int
    favourites: bool = True
    smeared: bool = False

    @property
    def run(self) -> str:
        """Label of the run."""
        return f"{self.name}-s{self.seed}"


@dataclass(frozen=True)
class Recipe:
    """One stack: everything that decides its numbers.

    Fresh texts at every step, Adam with betas (.9, .98), constant rate.  `logged` are the numbers
    of steps after which it is measured, `kept` those after which its weights are kept, besides the
    last.
    """

    name: str
    settings: tuple[Setting, ...]
    layers: int
    steps: int
    logged: tuple[int, ...]
    kept: tuple[int, ...] = ()
    heads: int = 2
    d_model: int = 32
    texts: int = 32
    rate: float = 5e-3
    language: Language = field(default_factory=Language)

    def __post_init__(self) -> None:
        if self.layers < 1 or self.texts < 1:
            raise WorkbenchError(
                f"recipe {self.name} has {self.layers} layers and {self.texts} texts per step; "
                "give 1 or more."
            )

    def to_json(self) -> dict[str, Any]:
        """Every field but `kept`, which decides no number."""
        fields = asdict(self)
        del fields["kept"]
        return fields


STEPS, EVERY = 1000, 25


def _settings(name: str, seeds: int, **more: bool) -> tuple[Setting, ...]:
    return tuple(Setting(name, seed, **more) for seed in range(seeds))


def _stack(name: str, settings: tuple[Setting, ...], layers: int, steps: int = STEPS) -> Recipe:
    return Recipe(name, settings, layers, steps, tuple(range(0, steps + 1, EVERY)))


def small() -> tuple[Recipe, ...]:
    """Every run that the laws need."""
    two = (*_settings("two-layers", 5), *_settings("no-favourites", 2, favourites=False))
    one = (*_settings("one-layer", 4), *_settings("smeared", 3, smeared=True))
    return (_stack("two-layers", two, 2), _stack("one-layer", one, 1))


def quick() -> tuple[Recipe, ...]:
    """One run of each kind, for fewer steps."""
    two = (*_settings("two-layers", 1), *_settings("no-favourites", 1, favourites=False))
    one = (*_settings("one-layer", 1), *_settings("smeared", 1, smeared=True))
    return (
        _stack("two-layers", two, 2, 600),
        _stack("one-layer", one, 1, 600),
    )


# Close together where everything happens.
KEPT = (0, 50, 100, 150, 200, 250, 300, 350, 400, 500, 700)


def shipped() -> tuple[Recipe, ...]:
    """Two seeds of two layers and of one, with their checkpoints: what comes with the workbench."""
    return (
        replace(_stack("two-layers", _settings("two-layers", 2), 2), kept=KEPT),
        replace(_stack("one-layer", _settings("one-layer", 2), 1), kept=KEPT),
    )
