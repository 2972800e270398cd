"""How much does a model's loss fall with what stands in its context?

Two curves of any decoder (`workbench.circuits.icl_curves`): loss by token index with the ICL score
of Olsson et al. 2022 (arXiv 2209.11895), and the loss of an answer behind n examples of its task
(Brown et al. 2020, arXiv 2005.14165), each with its controls.  Without `--model`: `zoo:mix-3l`, for
which the laws marked required must hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.provenance import digest
from workbench.studies.study import DEFAULT, QUICK, Content, Plate, Progress, Study, pictures
from workbench.zoo import claims
from workbench.zoo.claims import OURS, Claim, Values
from workbench.zoo.trajectory import Mark

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.studies.icl_curves_measure import Measured

LOSSES = "losses"
OLSSON, BROWN = "Olsson et al. 2022, arXiv 2209.11895", "Brown et al. 2020, arXiv 2005.14165"
MIN = "Min et al. 2022, arXiv 2202.12837"
# Names of `icl_curves_measure` and `circuits.icl_curves`, which load torch.
TRAINED, UNTRAINED = "trained", "untrained"
GIVEN, SHUFFLED = "as given", "shuffled"
OWN, ANSWERS, OTHER = "its own task", "answers shuffled", "another task"
NOTES = (
    "Olsson et al. compare token 500 with token 50 of many texts. Here each stands for the 50 "
    "tokens around it, and in texts of fewer than 525 tokens both places are moved in proportion. "
    "Compare scores of one length only. Texts are cut to the length of the shortest and to the "
    "positions of the model; examples to what it has positions for.",
    "The texts of zoo:mix-3l are strings of words repeated, its own training language. A named "
    "model without --prompts reads repeated random tokens of its whole vocabulary. That measures "
    "copying; for in-context learning of a language give texts of it.",
    "The few-shot task is a dictionary: four keys with a value each, drawn anew for every episode, "
    "examples and query drawn with repetition. The least loss any predictor can reach is known: "
    "the answer is sure if the key was seen, else uniform over the possible values. Without "
    "examples a model must also guess that a value comes, so it may start above that.",
    "The query of an episode is the same behind every number of examples and in every context.",
    "Shuffled answers keep the form of the examples and the set of answers. On classification "
    f"tasks large models lose little by it ({MIN}): there this control says how much is form.",
    "Marks are ours; they lie between what the trained model and its controls showed.",
    "A model that was never trained on the form of a dictionary need not solve it, and with random "
    "tokens most do so only in part.",
)


@dataclass(frozen=True)
class Config:
    """`model` is what `workbench.load` takes, "" for the one that is here; `prompts` a file of
    texts, or of tasks (JSON lines with `task` and `examples`); `episodes` the number of queries,
    `examples` the most that stand before one."""

    size: str = DEFAULT
    model: str = ""
    prompts: str = ""
    episodes: int = 24
    examples: int = 24

    def to_json(self) -> dict[str, Any]:
        """Every field; a file counts by what is in it."""
        return asdict(self) | ({"prompts": digest([read(self.prompts)])} if self.prompts else {})


def read(path: str) -> str:
    """Text of a file of prompts; raises `WorkbenchError` for one that cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise WorkbenchError(
            f"prompt file {path!r} cannot be read; give a .txt or .jsonl file."
        ) from None


def run(config: Config, folder: Path, progress: Progress) -> Content:
    """Measure what is not measured yet, read the laws, draw the figures."""
    # Listing the studies loads no torch.
    from workbench.studies import icl_curves_measure as measuring

    chosen = measuring.subject(config.model, config.prompts, config.episodes, config.examples)
    total = measuring.curves(chosen)
    done = iter(range(total))
    found = measuring.measure(
        chosen, folder / LOSSES, lambda what: progress(next(done), total, what)
    )
    progress(total, total, "laws")
    reported = (OURS, OLSSON, BROWN) if config.model else (OURS,)
    has_other = (TRAINED, OTHER) in found.examples
    names = [c.name for c in CLAIMS if has_other or c.control != OTHER]
    return Content(
        findings=claims.findings(found, CLAIMS, names, reported),
        pictures=pictures(PLATES, found, ()),
        tables={
            "tokens": measuring.table(found.tokens, "texts"),
            "examples": measuring.table(found.examples, "context"),
        },
        notes=NOTES,
        seeds=[0],
        facts={"model": found.name, "texts": measuring.size(found)},
        banner=f"Quick look: {config.episodes} queries." if config.size == QUICK else "",
    )


Reader = Callable[["Measured"], tuple[Values, Values]]


def _score(model: str, texts: str) -> Reader:
    return lambda m: ([m.score(TRAINED, GIVEN).value], [m.score(model, texts).value])


def _gain(model: str, context: str) -> Reader:
    return lambda m: ([m.gain(TRAINED, OWN).value], [m.gain(model, context).value])


def _floor(m: Measured) -> tuple[Values, Values]:
    return [m.above_floor(TRAINED)], [m.above_floor(UNTRAINED)]


_ICL, _GAIN = "ICL score: late minus early loss, nats", "loss behind all examples - none, nats"
CLAIMS: tuple[Claim[Measured], ...] = (
    Claim("later tokens cost less", OLSSON, _ICL, Mark("<", -0.2), "texts shuffled",
          "A token late in a text is predicted better than an early one, from what stands before "
          "it and its order.", _score(TRAINED, SHUFFLED)),
    Claim("training brought it", OLSSON, _ICL, Mark("<", -0.2), UNTRAINED,
          "The same architecture with random weights gains nothing from a longer context.",
          _score(UNTRAINED, GIVEN)),
    Claim("examples lower the loss", BROWN, _GAIN, Mark("<", -1), ANSWERS,
          "Behind solved examples the answer is more likely, and not because of their form or "
          "because it is one of the answers.", _gain(TRAINED, ANSWERS)),
    Claim("only those of the task", BROWN, _GAIN, Mark("<", -1), OTHER,
          "Examples of another task do not help.", _gain(TRAINED, OTHER)),
    Claim("training brought that too", BROWN, _GAIN, Mark("<", -1), UNTRAINED,
          "The untrained model gains nothing from examples.", _gain(UNTRAINED, OWN)),
    Claim("near the best predictor", OURS, "loss above the least possible, nats", Mark("<", 0.5),
          UNTRAINED, "Behind all examples the loss is near that of a predictor that looks the key "
          "up.", _floor),
)  # fmt: skip


def _draw(name: str) -> Callable[[Measured], go.Figure]:
    def draw(found: Measured) -> go.Figure:
        from workbench.studies import icl_curves_figures as figures

        return getattr(figures, name)(found)

    return draw


PLATES: tuple[Plate[Measured], ...] = (
    Plate(
        "tokens", "Loss by token index",
        "Mean over texts; bands are two standard errors. Shaded: the early and the late tokens of "
        "the ICL score.",
        _draw("tokens"),
    ),
    Plate(
        "examples", "Loss of an answer by the number of examples before it",
        "Mean over queries, the same at every number; bands are two standard errors. Dotted: the "
        "least loss any predictor can reach, where it is known.",
        _draw("examples"),
    ),
)  # fmt: skip

STUDY = Study(
    name="icl-curves",
    question="How much does a model's loss fall with what stands in its context?",
    paper=f"{OLSSON}; {BROWN}",
    cost="10 CPU s for the model that is here; --quick 5 CPU s",
    needs="nothing; a model of yours with --model and --prompts",
    configs={QUICK: Config(QUICK, episodes=16, examples=8), DEFAULT: Config()},
    run=run,
)
