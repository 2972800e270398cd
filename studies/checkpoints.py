"""Do induction heads form in the window of training in which a model learns from its context?

A model at several of its checkpoints (`workbench.circuits.checkpoints`): scores of every head on
repeated random tokens beside the loss by token index, after Olsson et al. 2022 (arXiv 2209.11895).
A phase change is claimed only where both move between the same checkpoints.  With `--model` and
`--revisions` any decoder; without, the runs of the laboratory `induction`, whose one-layer runs are
the control.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench import zoo
from workbench.errors import WorkbenchError
from workbench.provenance import digest
from workbench.studies.icl_curves import OLSSON, read
from workbench.studies.study import DEFAULT, QUICK, Content, Picture, Progress, Study
from workbench.zoo import claims
from workbench.zoo.claims import OURS, Claim, Values, first, last
from workbench.zoo.trajectory import Mark

if TYPE_CHECKING:
    import xarray as xr

    from workbench.circuits.checkpoints import Series

LABORATORY = "laboratory"
INDUCTION = "induction"
MODEL, DEEP, FLAT = "model", "two layers", "one layer"
# A score that changes less than this between the first and the last checkpoint has no window.
LEAST_PREFIX, LEAST_ICL = 0.2, -0.2
QUICK_LOOK = "Quick look: few sequences, one run of each kind, every other checkpoint."
NOTES = (
    "A window is the shortest stretch of checkpoints with more than half of the change between the "
    "first and the last one. It is as coarse as the checkpoints: add some between the two where "
    "both curves move.",
    "Windows so long that they cannot stand beside each other overlap wherever they are: no phase "
    "change is claimed then, nor of two checkpoints. Shorter ones may still overlap by chance; how "
    "often stands with the windows. Few checkpoints or one run prove little.",
    "Texts are cut to the length of the shortest and to the positions of the model.",
    "That two curves move in one window is no proof that one makes the other. Remove the heads: "
    "workbench.intervening, or the study induction.",
    "Prefix matching, previous-token and duplicate-token scores are those of the probes of the "
    "same names, on random tokens written twice. Where the texts of the loss are these too "
    "(without --prompts), in-context learning here means copying, and the score is larger than "
    "that of a language.",
    "Olsson et al. compare token 500 with token 50. Here each stands for the 50 tokens around it, "
    "and in texts of fewer than 525 tokens both places are moved in proportion.",
    "The copying score is the sum of the eigenvalues of a head's OV circuit by the sum of their "
    "sizes, embeddings through the norm of its block, without the last norm; of large "
    "vocabularies 2048 tokens are drawn.",
    "Revisions of a directory are its folders; those of a hub id are opened one after the other "
    "and must be downloaded, which this study does not clean up.",
)


@dataclass(frozen=True)
class Config:
    """`model` is what `workbench.load` takes or a directory of checkpoints, "" for the laboratory
    that is here; `revisions` are names with commas between, "" for all that are known; `prompts` is
    a file of texts for the loss; `texts` the number of repeated sequences."""

    size: str = DEFAULT
    model: str = ""
    revisions: str = ""
    prompts: str = ""
    texts: int = 16

    def to_json(self) -> dict[str, Any]:
        """Every field; a file of prompts counts by what is in it, a model by its revisions.

        Refuses what names no series, before anything is measured or written.
        """
        for name in ("revisions", "prompts"):
            if getattr(self, name) and not self.model:
                raise WorkbenchError(f"--{name} belongs to a model; name it with --model.")
        changed: dict[str, Any] = {"prompts": digest([read(self.prompts)])} if self.prompts else {}
        if self.model:
            changed["revisions"] = list(revisions_of(self, self.model))
        return asdict(self) | changed


def run(config: Config, folder: Path, progress: Progress) -> Content:
    """Measure the checkpoints that are not measured yet, read the laws, draw the figures."""
    # Listing the studies loads no torch.
    from workbench.circuits import checkpoints
    from workbench.prompts import read_prompts

    prompts = tuple(read_prompts(config.prompts)) if config.prompts else ()
    settings = checkpoints.Settings(texts=config.texts, prompts=prompts)
    results = checkpoints.run(series(config), settings, folder / LABORATORY, progress)
    runs = dict(checkpoints.runs(results))
    evidence = claims.by_setting(results.trajectories)
    reported = (OURS, OLSSON) if config.model else (OURS,)
    return Content(
        findings=claims.findings(evidence, CLAIMS, claims.readable(CLAIMS, evidence), reported),
        pictures=[picture for name, one in runs.items() for picture in drawn(name, one)],
        tables=tables(runs),
        notes=NOTES,
        seeds=[settings.seed],
        facts={"measuring": results.cost}
        | {name: windows_in_words(one) for name, one in runs.items()},
        banner=QUICK_LOOK if config.size == QUICK else "",
    )


def series(config: Config) -> list[Series]:
    """The series of the config; raises `WorkbenchError` for one without known revisions."""
    from workbench.circuits.checkpoints import Series, open_revision
    from workbench.commands.opening import quiet

    quiet()
    subjects = {config.model: MODEL} if config.model else _of_laboratory()
    if config.size == QUICK:
        # One run of each kind.
        subjects = {model: kind for kind, model in {v: k for k, v in subjects.items()}.items()}
    found = []
    for model, setting in subjects.items():
        revisions = revisions_of(config, model)
        found.append(Series(short(model), partial(open_revision, model), revisions, setting))
    return found


def revisions_of(config: Config, model: str) -> tuple[str, ...]:
    """The revisions of one model that the config names, or all that are known, in order of steps.

    Raises `WorkbenchError` for one that a shipped run or a directory does not have.
    """
    from workbench.circuits.checkpoints import in_order

    names = [name.strip() for name in config.revisions.split(",") if name.strip()]
    if not names:
        known = in_order(known_revisions(model))
        if len(known) < 2:
            raise WorkbenchError(
                f"{model} has {len(known)} checkpoints that its name or folders tell; give "
                "--revisions, or a directory of folders such as step512, step1000."
            )
        return (*known[:-1:2], known[-1]) if config.size == QUICK else known
    ordered = in_order(names)
    if model.startswith("zoo:") or Path(model).expanduser().is_dir():
        known = known_revisions(model)
        for name in names:
            if name not in known:
                raise WorkbenchError(
                    f"{model} has no revision {name!r}; it has {', '.join(in_order(known))}."
                )
    return ordered


def _of_laboratory() -> dict[str, str]:
    """Every run of the shipped laboratory by the name `load` knows, with its number of layers."""
    if INDUCTION not in zoo.laboratories():
        raise WorkbenchError(
            "no model with checkpoints is here; give --model DIR, whose folders are its "
            "checkpoints, or --model HUB_ID --revisions step512,step1000,...."
        )
    results = zoo.laboratory(INDUCTION)
    found = {}
    for data in results.trajectories.values():
        kind = FLAT if data.sizes["layer"] == 1 else DEEP
        found |= {f"zoo:{INDUCTION}/{run}": kind for run in data["run"].to_numpy()}
    return found


def known_revisions(model: str) -> Sequence[str]:
    """Revisions of a shipped run, or the folders of a directory whose names say a step."""
    from workbench.circuits.checkpoints import step_of

    if model.startswith("zoo:"):
        name = model.removeprefix("zoo:")
        if name in zoo.names():
            raise WorkbenchError(
                f"{model} has no revisions; runs of a laboratory have, such as "
                f"zoo:{INDUCTION}/two-layers-s0."
            )
        return zoo.revisions(name)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise WorkbenchError(
            f"the revisions of {model} are not known here; name them: --revisions "
            "step512,step1000,...."
        )
    names = []
    for entry in folder.iterdir():
        try:
            step_of(entry.name)
        except WorkbenchError:
            continue
        if entry.is_dir():
            names.append(entry.name)
    return names


def short(model: str) -> str:
    """What a model is called in figures and files.

    >>> short("zoo:induction/two-s0"), short("EleutherAI/pythia-70m"), short("runs/mine/")
    ('two-s0', 'pythia-70m', 'mine')
    """
    if Path(model).is_dir():
        model = str(Path(model).resolve())
    return re.sub(r"[^\w.-]", "-", model.rstrip("/").rpartition("/")[2].removeprefix("zoo:"))


def window_of(one: xr.Dataset, name: str) -> tuple[int, int] | None:
    """Between which checkpoints a logged scalar moves, None where it does not."""
    from workbench.circuits.phase import window

    return window(one[name].to_numpy(), LEAST_ICL if name.startswith("icl") else LEAST_PREFIX)


def windows_in_words(one: xr.Dataset) -> str:
    """Windows of prefix matching and of in-context learning, in steps."""
    parts = []
    for name, words in (("best_prefix", "prefix matching"), ("icl_score", "ICL score")):
        found = window_of(one, name)
        steps = one["step"].to_numpy()
        where = f"steps {steps[found[0]]:,} to {steps[found[1]]:,}" if found else "no move"
        parts.append(f"{words}: {where}")
    if chance := _by_chance(one, "icl_score")[1]:
        parts.append(f"windows of these lengths overlap by chance in {chance:.0%} of their places")
    return "; ".join(parts)


def _by_chance(one: xr.Dataset, icl: str) -> tuple[float, float]:
    from workbench.circuits.phase import by_chance

    return by_chance(window_of(one, "best_prefix"), window_of(one, icl), one.sizes["step"] - 1)


def shared(one: xr.Dataset, icl: str = "icl_score") -> float:
    """How far the windows of prefix matching and of an ICL score are the same, 0..1."""
    from workbench.circuits.phase import overlap

    return overlap(window_of(one, "best_prefix"), window_of(one, icl))


def not_shared(one: xr.Dataset) -> float:
    """The larger of two controls: the windows with the texts shuffled, and how much those of the
    texts as given overlap wherever they stand."""
    return max(shared(one, "icl_score_shuffled"), _by_chance(one, "icl_score")[0])


def order_counts(one: xr.Dataset, step: int) -> float:
    """ICL score minus that of the shuffled texts at one checkpoint, nats."""
    at = one.isel(step=step)
    return float(at["icl_score"] - at["icl_score_shuffled"])


Runs = dict[str, list["xr.Dataset"]]
Statistic = Callable[["xr.Dataset"], float]


def _main(evidence: Runs) -> list[xr.Dataset]:
    return [one for setting, runs in evidence.items() if setting != FLAT for one in runs]


def _own(value: Statistic, null: Statistic) -> Callable[[Runs], tuple[Values, Values]]:
    """Two statistics of the same runs."""
    return lambda e: ([value(one) for one in _main(e)], [null(one) for one in _main(e)])


def _flat(value: Statistic) -> Callable[[Runs], tuple[Values, Values]]:
    """One statistic, against that of one-layer runs."""
    return lambda e: ([value(one) for one in _main(e)], [value(one) for one in e[FLAT]])


def _change(name: str) -> Callable[[Runs], tuple[Values, Values]]:
    return _own(lambda one: last(one, name), lambda one: first(one, name))


_FIRST, _WINDOW = "first checkpoint", "checkpoints in both windows / in either"
CLAIMS: tuple[Claim[Runs], ...] = (
    Claim("a head comes to match prefixes", OLSSON, "largest prefix-matching score of a head",
          Mark(">", 0.3), _FIRST, "At the last checkpoint a head looks at what followed the "
          "earlier copy of the token; at the first none does.", _change("best_prefix")),
    Claim("context comes to help", OLSSON, "ICL score: late minus early loss, nats",
          Mark("<", -0.2), _FIRST, "At the last checkpoint late tokens cost less than early ones; "
          "at the first they do not.", _change("icl_score")),
    Claim("by the order of tokens", OLSSON, "ICL score minus that of shuffled texts, nats",
          Mark("<", -0.2), _FIRST, "The gain is lost when the same tokens stand in random order.",
          _own(lambda one: order_counts(one, -1), lambda one: order_counts(one, 0))),
    Claim("both in one window", OLSSON, _WINDOW, Mark(">", 0.1), "texts shuffled, or any places",
          "Prefix matching and in-context learning make most of their change between the same "
          "checkpoints: a phase change.",
          _own(shared, not_shared)),
    Claim("not with one layer", OLSSON, _WINDOW, Mark(">", 0.1), FLAT,
          "A single layer has no such window: an induction head needs a head before it.",
          _flat(shared), (FLAT,)),
    Claim("one layer matches no prefixes", OLSSON, "largest prefix-matching score of a head",
          Mark(">", 0.3), FLAT, "Nor does a head of one layer look there at the end.",
          _flat(lambda one: last(one, "best_prefix")), (FLAT,)),
)  # fmt: skip


def tables(runs: dict[str, xr.Dataset]) -> dict[str, pd.DataFrame]:
    """Scalars by series and step, scores by head, losses by token index."""
    scalars, heads, losses = [], [], []
    for name, one in runs.items():
        flat = one.drop_vars(["run", "setting"], errors="ignore")
        by_dims = {
            dims: flat[[str(v) for v in flat.data_vars if flat[v].dims == dims]].reset_coords(
                drop=True
            )
            for dims in (("step",), ("step", "layer", "head"), ("step", "index"))
        }
        parts = [data.to_dataframe().reset_index().assign(series=name) for data in by_dims.values()]
        for kept, part in zip((scalars, heads, losses), parts, strict=True):
            kept.append(part)
    names = ("scalars", "heads", "losses")
    return {
        name: pd.concat(parts, ignore_index=True)
        for name, parts in zip(names, (scalars, heads, losses), strict=True)
    }


def drawn(name: str, one: xr.Dataset) -> list[Picture]:
    """The figures of one series."""
    from workbench.studies import checkpoints_figures as figures

    return [
        Picture(
            f"course-{name}", f"{name}: heads and in-context learning over the checkpoints",
            "Checkpoints stand at equal distances. Shaded: the window of prefix matching (upper "
            "panel) and of in-context learning (lower panel). The band is a 95 % bootstrap "
            "interval over texts.",
            figures.course(one, window_of(one, "best_prefix"), window_of(one, "icl_score")),
        ),
        Picture(
            f"heads-{name}", f"{name}: prefix matching of every head",
            "The heads of largest score at the last checkpoint. White is none, dark blue all.",
            figures.heads(one),
        ),
        Picture(
            f"losses-{name}", f"{name}: loss by token index, checkpoint by checkpoint",
            "Mean over texts, light to dark with training. Dotted: all tokens equally likely.",
            figures.losses(one),
        ),
    ]  # fmt: skip


STUDY = Study(
    name="checkpoints",
    question="Do induction heads form in the window in which a model learns from its context?",
    paper=OLSSON,
    cost="1 CPU min for the models that are here; --quick 15 CPU s",
    needs="nothing; a model of yours with --model and --revisions",
    configs={QUICK: replace(Config(), size=QUICK, texts=4), DEFAULT: Config()},
    run=run,
)
