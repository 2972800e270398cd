"""When in training do a model's heads learn to copy from the context?

A series is a model at several revisions (steps of its training).  Every revision is opened,
measured and let go before the next one: prefix-matching, previous-token and duplicate-token score
of every head on repeated random tokens, its copying score, the loss by token index with the ICL
score, and the pattern of one repeated text.  The result is a laboratory folder
(`workbench.zoo.trajectory`) that the dashboard opens.

After Olsson et al. 2022 (arXiv 2209.11895): induction heads form in the window in which in-context
learning is gained (`circuits.phase`).  A killed series keeps the revisions it has finished.
Cost per revision: opening it and about 4 x `texts` forward passes.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench import probes
from workbench.capturing import capture
from workbench.circuits import icl_curves
from workbench.circuits.copying import copying_scores
from workbench.errors import WorkbenchError
from workbench.heads import Head
from workbench.models import Model, load
from workbench.prompts import Prompt
from workbench.provenance import digest, versions
from workbench.runfiles import fingerprint, is_scratch, read_json, write_json
from workbench.schema import Variable
from workbench.zoo.trajectory import (
    ABOUT,
    CHECKPOINT,
    FORMAT,
    TRAJECTORY,
    VERSION,
    Results,
    declare,
    read_dataset,
    write_dataset,
)

Progress = Callable[[int, int, str], None]
NAME = "checkpoints"
_STEP = re.compile(r"(?:step|checkpoint|ckpt|iter)[-_]?(\d+)(?![\da-zA-Z.])", re.IGNORECASE)
_HEAD, _SCALAR = ("run", "step", "layer", "head"), ("run", "step")
_INF = float("inf")


def _scalar(name: str, units: str, group: str, about: str) -> Variable:
    return Variable(name, _SCALAR, units, -_INF, _INF, group, about)


def _head(name: str, units: str, low: float, group: str, about: str) -> Variable:
    return Variable(name, _HEAD, units, low, 1, group, about)


_ICL, _BEST, _EACH = "in-context learning", "best heads", "heads on repeated tokens"
VARIABLES = (
    _scalar("icl_score", "nats", _ICL, "loss at late minus loss at early tokens of the texts"),
    _scalar("icl_score_low", "nats", _ICL, "lower end of its 95 % bootstrap interval over texts"),
    _scalar("icl_score_high", "nats", _ICL, "upper end of that interval"),
    _scalar("icl_score_shuffled", "nats", _ICL, "the same with the tokens in random order"),
    _scalar("best_prefix", "probability", _BEST, "largest prefix-matching score of a head"),
    _scalar("best_previous", "probability", _BEST, "largest previous-token score of a head"),
    _head("prefix_score", "probability", 0, _EACH, "weight on what followed the earlier copy"),
    _head("previous_token_score", "probability", 0, _EACH, "weight on the token before"),
    _head("duplicate_token_score", "probability", 0, _EACH, "weight on the earlier copy itself"),
    _head("prefix_null", "probability", 0, _EACH, "prefix-matching score of uniform attention"),
    _head("copying_score", "sum of eigenvalues / sum of their sizes", -1, "copying",
          "whether the head writes the token it looks at, from its OV circuit"),
    _scalar("loss", "nats", "loss", "mean next-token loss of the texts"),
    _scalar("loss_early", "nats", "loss", "loss at early tokens"),
    _scalar("loss_late", "nats", "loss", "loss at late tokens"),
    Variable("loss_by_index", (*_SCALAR, "index"), "nats", 0, _INF, "sweep",
             "loss of the i-th token given those before it"),
    Variable("pattern", (*_HEAD, "probe", "query", "key"), "probability", 0, 1, "pattern",
             "weights after softmax on a sequence of random tokens written twice"),
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What is measured of every revision.

    `period` is the length of a random sequence that is written twice, cut to what the model has
    positions and different tokens for; `prompts` are the texts of the loss curve, empty for those
    repeated sequences; `texts` is the number of sequences.
    """

    period: int = 24
    texts: int = 16
    probe_period: int = 8
    seed: int = 0
    prompts: tuple[Prompt, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"prompts": digest([prompt.to_json() for prompt in self.prompts])}


@dataclass(frozen=True)
class Series:
    """One model at several revisions: `open(revision)` gives the model, `setting` its kind of run.

    Revisions come in the order of their steps.
    """

    name: str
    open: Callable[[str], Model]
    revisions: tuple[str, ...]
    setting: str = "model"

    def __post_init__(self) -> None:
        steps = [step_of(revision) for revision in self.revisions]
        if len(steps) < 2 or sorted(set(steps)) != steps:
            raise WorkbenchError(
                f"revisions {', '.join(self.revisions) or 'none'} of {self.name} are no series; "
                "give two or more of different, ascending steps."
            )


def step_of(revision: str) -> int:
    """The training step a revision's name says.

    Raises `WorkbenchError` for a name that says none.

    >>> [step_of(name) for name in ("step512", "checkpoint-30", "stage1-step1000-tokens4B", "64")]
    [512, 30, 1000, 64]
    """
    found = [int(revision)] if revision.isdecimal() else [*map(int, _STEP.findall(revision))]
    if len(found) != 1:
        raise WorkbenchError(
            f"revision {revision!r} does not say its training step; give names such as step512, "
            "checkpoint-512 or 512."
        )
    return found[0]


def in_order(revisions: Sequence[str]) -> tuple[str, ...]:
    """Revisions sorted by their steps."""
    return tuple(sorted(revisions, key=step_of))


def open_revision(model: str, revision: str) -> Model:
    """A revision of a hub id or of a shipped laboratory's run, or a sub-folder of a directory."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return load(model, revision=revision)
    if not (folder / revision).is_dir():
        known = ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
        raise WorkbenchError(
            f"{model} has no revision {revision!r}: the revisions of a directory are its folders, "
            f"here {known or 'none'}."
        )
    return load(folder / revision)


def measure(model: Model, settings: Settings) -> xr.Dataset:
    """Everything of `VARIABLES` of one revision, with labels, without `run` and `step`."""
    period = icl_curves.fitting_period(model, settings.period)
    repeats = model.repeated_tokens(period, settings.texts, seed=settings.seed)
    found = _of_heads(model, repeats)
    found["copying_score"] = copying_scores(model)
    own = icl_curves.as_ids(model, list(settings.prompts) or repeats)
    losses = icl_curves.token_losses(model, own)
    mixed = icl_curves.token_losses(model, icl_curves.shuffled(own, settings.seed))
    score = icl_curves.icl_score(losses, settings.seed)
    early, late = icl_curves.spans(int(losses["index"].max()))
    means = losses.mean("text")
    found = found.assign(
        icl_score=score.value,
        icl_score_low=score.low,
        icl_score_high=score.high,
        icl_score_shuffled=icl_curves.icl_score(mixed, settings.seed).value,
        best_prefix=found["prefix_score"].max(),
        best_previous=found["previous_token_score"].max(),
        loss=means.mean(),
        loss_early=means.sel(index=list(early)).mean(),
        loss_late=means.sel(index=list(late)).mean(),
        loss_by_index=means,
    )
    # A model that knows nothing, not even which tokens are frequent.
    uniform = np.full((1, len(means)), np.log(_vocabulary_size(model)))
    found = found.assign_coords(
        predictor=["uniform over the vocabulary"],
        loss_by_index_baseline=(("predictor", "index"), uniform),
    )
    return found.merge(_pattern(model, min(settings.probe_period, period), settings.seed))


def _vocabulary_size(model: Model) -> int:
    return len(model.net.get_output_embeddings().weight)


def _of_heads(model: Model, repeats: Sequence[Prompt]) -> xr.Dataset:
    """Scores of every head on repeated random tokens, (layer, head); NaN in a layer without."""
    stats = capture(model, repeats, want="rows")
    tables = {
        "prefix_score": probes.induction_head_score(stats),
        "previous_token_score": probes.previous_token_score(stats),
        "duplicate_token_score": probes.duplicate_token_score(stats),
    }
    columns = {name: table.set_index(["layer", "head"])["value"] for name, table in tables.items()}
    columns["prefix_null"] = tables["prefix_score"].set_index(["layer", "head"])["null"]
    found = xr.Dataset({name: column.to_xarray() for name, column in columns.items()})
    return found.reindex(layer=range(model.spec.n_layers()), head=range(model.spec.n_heads()))


def _pattern(model: Model, period: int, seed: int) -> xr.Dataset:
    """`pattern` on one sequence written twice, with its tokens."""
    (prompt,) = model.repeated_tokens(period, 1, seed=seed)
    heads = [Head(site.layer, i) for site in model.spec.of() for i in range(site.n_heads)]
    stats = capture(model, prompt, want="entropy", patterns=heads)
    maps = stats["pattern"].isel(prompt=0)
    shape = (model.spec.n_layers(), model.spec.n_heads(), 1, *maps.shape[1:])
    pattern = np.full(shape, np.nan, dtype="float16")
    for head in heads:
        pattern[(*head.index, 0)] = maps.sel(pattern_head=str(head))
    ids, at = np.unique(np.array(prompt.token_ids), return_inverse=True)
    names = [str(i) for i in ids]
    if model.tokenizer is not None:
        names = [model.tokenizer.decode([int(i)]) for i in ids]
    dims = (*_HEAD[2:], "probe", "query", "key")
    return xr.Dataset({"pattern": (dims, pattern)}).assign_coords(
        token=names, probe_id=(("probe", "query"), at[None])
    )


def run(
    every: Sequence[Series],
    settings: Settings,
    folder: str | Path,
    progress: Progress | None = None,
) -> Results:
    """Measure all series into `folder` and return what is there; goes on where it was stopped.

    `progress(done, total, message)` counts revisions.  A finished folder with the same settings is
    returned as it is; one with others, or with other contents, is refused.
    """
    folder = Path(folder)
    about = _open_folder(folder, every, settings)
    total, done = sum(len(series.revisions) for series in every), 0
    for series in every if not about["finished"] else ():
        parts = [
            folder / f"{series.name}.{number}{CHECKPOINT}"
            for number in range(len(series.revisions))
        ]
        for part, revision in zip(parts, series.revisions, strict=True):
            if not part.is_file():
                if progress:
                    progress(done, total, f"{series.name} {revision}")
                spent = _add(series, revision, settings, part)
                seconds = about["cpu_seconds"]
                seconds[series.name] = round(seconds.get(series.name, 0) + spent, 2)
                write_json(folder / ABOUT, about)
            done += 1
        _join(series, parts, folder)
    if not about["finished"]:
        files = [f"{series.name}{TRAJECTORY}" for series in every]
        about["files"] = {file: fingerprint(folder / file) for file in files}
        write_json(folder / ABOUT, {**about, "finished": True})
        for part in folder.glob(f"*{CHECKPOINT}"):
            part.unlink()
    if progress:
        progress(total, total, "all revisions")
    return Results(folder)


def _add(series: Series, revision: str, settings: Settings, part: Path) -> float:
    """Measure one revision into its file; returns CPU seconds."""
    began = time.process_time()
    model = series.open(revision)
    found = measure(model, settings).expand_dims(run=[series.name], step=[step_of(revision)])
    found = found.assign_coords(setting=("run", [series.setting]))
    # Declaring leaves out coordinates that no variable has.
    kept = {name: found.coords[name] for name in ("token", "loss_by_index_baseline")}
    write_dataset(part, declare(found, VARIABLES).assign_coords(kept))
    # Cycles between a network and its hooks would keep it while the next one is opened.
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return time.process_time() - began


def _join(series: Series, parts: Sequence[Path], folder: Path) -> None:
    """The trajectory of a series from its revisions; they must have been measured alike."""
    found = [read_dataset(part) for part in parts]
    for revision, part in zip(series.revisions, found, strict=True):
        if dict(part.sizes) != dict(found[0].sizes):
            raise WorkbenchError(
                f"revision {revision} of {series.name} has other layers, heads or positions than "
                f"{series.revisions[0]}: these are no revisions of one model."
            )
    joined = xr.concat(
        found, "step", join="exact", data_vars="all", coords="minimal", compat="override"
    )
    write_dataset(folder / f"{series.name}{TRAJECTORY}", joined)


def _open_folder(folder: Path, every: Sequence[Series], settings: Settings) -> dict[str, Any]:
    """The folder's `laboratory.json`, new or from an earlier start with the same settings."""
    names = [series.name for series in every]
    if len(set(names)) != len(names) or not names:
        raise WorkbenchError(f"series need different names; given: {', '.join(names) or 'none'}.")
    of_each = {series.name: {"revisions": list(series.revisions), **settings.to_json()}
               for series in every}  # fmt: skip
    key = digest([NAME, of_each])
    if (folder / ABOUT).is_file():
        about = read_json(folder / ABOUT)
        if about.get("key") != key or about.get("schema") != VERSION:
            raise WorkbenchError(
                f"{folder} holds a laboratory with other settings; name another folder, or delete "
                "that one."
            )
        return about
    folder.mkdir(parents=True, exist_ok=True)
    if any(not is_scratch(entry) for entry in folder.iterdir()):
        raise WorkbenchError(f"{folder} is not empty and holds no laboratory; name a new folder.")
    about: dict[str, Any] = {
        "format": FORMAT,
        "schema": VERSION,
        "name": NAME,
        "key": key,
        "finished": False,
        "stacks": names,
        "runs": {name: [name] for name in names},
        "settings": of_each,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "cpu_seconds": {},
    }
    write_json(folder / ABOUT, about)
    return about


def runs(results: Results) -> Mapping[str, xr.Dataset]:
    """The trajectory of every series by its name, without `run`."""
    return {name: data.isel(run=0) for name, data in results.trajectories.items()}
