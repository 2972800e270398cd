"""What the laboratory trains: frozen recipes.

`small()` is 86 runs in seven stacks, 25 CPU seconds on one thread.  Two forms: the expected loss of
long texts under plain gradient descent (`flow`, `wide`, `fine`; `adam` is a control), which the
theory is about, and sampled texts under momentum (`sampled`, `long`; `plain` is without), as in
Syn-Small of Tian et al. 2023 (arXiv 2305.16380).

Why these sizes: after 5000 steps the entropy of the flow changes by less than 1e-5 per step at
every ratio of rates.  Outputs: with the next tokens alone (`flow`) a faster decoder leaves
attention less sparse at every ratio; with the whole vocabulary (`wide`) only at ratios above 5.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from workbench.errors import WorkbenchError
from workbench.zoo.scansnap.task import Task

TASK = Task()
RATIOS = (0.5, 1.0, 2.0, 5.0, 10.0)
SAMPLED_RATIOS, SAMPLED_RATES, SEEDS = (1.0, 2.0, 5.0, 10.0), (0.5, 1.0, 2.0, 3.0), 4
SGD, ADAM = "sgd", "adam"


@dataclass(frozen=True)
class Setting:
    """One run: its group, the seed of its texts, the rates of both tables, the length of texts.

    `length` 0 stands for the expected loss of long texts.
    """

    name: str
    rate_z: float = 1.0
    ratio: float = 1.0
    seed: int = 0
    length: int = 0
    task: Task = TASK

    @property
    def run(self) -> str:
        """Label of the run."""
        return f"{self.name}-s{self.seed}" if self.length else self.name

    @property
    def rate_y(self) -> float:
        """Rate of the decoder."""
        return self.ratio * self.rate_z


@dataclass(frozen=True)
class Recipe:
    """One stack: everything that decides its numbers.

    Constant rates; SGD with `momentum`, or Adam with betas (.9, .999) for stacks of one rate.
    `outputs` of the decoder; `batch` texts per step where texts are sampled.
    """

    name: str
    settings: tuple[Setting, ...]
    steps: int
    logged: tuple[int, ...]
    outputs: int = TASK.classes
    momentum: float = 0.0
    optimiser: str = SGD
    batch: int = 128

    def __post_init__(self) -> None:
        if self.optimiser not in (SGD, ADAM):
            raise WorkbenchError(
                f"recipe {self.name} wants {self.optimiser!r}; choose {SGD!r} or {ADAM!r}."
            )
        if self.optimiser == ADAM and len({(s.rate_y, s.rate_z) for s in self.settings}) > 1:
            raise WorkbenchError(
                f"recipe {self.name} gives Adam several rates; make a stack for each."
            )
        if len({bool(s.length) for s in self.settings}) > 1 or self.batch < 1:
            raise WorkbenchError(
                f"recipe {self.name} mixes sampled texts with the expected loss, or samples "
                f"{self.batch} texts; make two stacks, and give 1 text or more."
            )

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)


def logged_to(steps: int) -> tuple[int, ...]:
    """Steps to log at: each of the first twenty, then about ten per doubling, up to the last.

    >>> logged_to(30)[18:]
    (18, 19, 20, 21, 23, 25, 26, 28, 30)
    """
    later = (round(20 * 2 ** (i / 10)) for i in range(1, 200))
    return tuple(sorted({*range(min(20, steps) + 1), *(s for s in later if s < steps), steps}))


def flow(steps: int) -> Recipe:
    """The expected loss at five ratios of rates, and two controls at ratio 1."""
    return Recipe(
        "flow",
        (
            *(Setting(f"ratio-{ratio:g}", ratio=ratio) for ratio in RATIOS),
            Setting("equal", task=Task(rarest=1.0)),
            Setting("mixed", task=Task(mixed=True)),
        ),
        steps,
        logged_to(steps),
    )


def adam() -> Recipe:
    """The same loss under Adam."""
    return Recipe("adam", (Setting("adam", rate_z=0.01),), 300, logged_to(300), optimiser=ADAM)


def _wide(steps: int) -> Recipe:
    """The ratios with a decoder over the whole vocabulary."""
    settings = tuple(Setting(f"wide-{ratio:g}", ratio=ratio) for ratio in RATIOS)
    return Recipe("wide", settings, steps, logged_to(steps), outputs=TASK.vocabulary)


def _fine() -> Recipe:
    """The beginning of the flow in steps a hundred times smaller."""
    return Recipe("fine", (Setting("fine", rate_z=0.01),), 100, tuple(range(0, 101, 5)))


def sampled_name(rate_z: float, ratio: float) -> str:
    """Setting of the sampled sweep.

    >>> sampled_name(0.5, 10.0)
    'sampled-z0.5-r10'
    """
    return f"sampled-z{rate_z:g}-r{ratio:g}"


def _sampled(name: str, settings: tuple[Setting, ...], momentum: float = 0.9) -> Recipe:
    return Recipe(
        name, settings, 100, tuple(range(0, 101, 2)), outputs=TASK.vocabulary, momentum=momentum
    )


def _seeds(name: str, length: int, rate_z: float = 1.0, ratio: float = 1.0) -> tuple[Setting, ...]:
    return tuple(Setting(name, rate_z, ratio, seed, length) for seed in range(SEEDS))


def small() -> tuple[Recipe, ...]:
    """Every run that the laws need."""
    sweep = (
        setting
        for rate in SAMPLED_RATES
        for ratio in SAMPLED_RATIOS
        for setting in _seeds(sampled_name(rate, ratio), 128, rate, ratio)
    )
    return (
        flow(5000),
        adam(),
        _wide(5000),
        _fine(),
        _sampled("sampled", tuple(sweep)),
        _sampled("long", _seeds("long", 2048)),
        _sampled("plain", _seeds("plain", 128), momentum=0.0),
    )


def quick() -> tuple[Recipe, ...]:
    """The flow for a thousand steps, and Adam."""
    return (flow(1000), adam())
