"""Ablate from where one looks: run a run's own model again, changed, beside itself unchanged.

The only part of the app that runs a model.  Torch and the model are loaded in the first job, and
only a model that the manifest of a run names and that lies on this machine.  One job at a time, in
a thread of its own; the same change done elsewhere is the control.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from workbench import zoo
from workbench.app import sink_readings
from workbench.commands import demo_runs
from workbench.errors import WorkbenchError
from workbench.interventions import Intervention
from workbench.runs import Run
from workbench.stats import HeadStats

if TYPE_CHECKING:
    from workbench.models import Model

EXTENSION = "workbench-jobs"
# An edit of scores makes an additive mask [head, query, key] per layer: 12 x 1024^2 are 50 MB.
MOST_TOKENS = 1024
CONTROLS = 3
_WANT = ("n_visible", "key_mass", "key_mean", "key_count")
# The unit of `circuits.effects` for models with a loss; importing it would load torch.
LOSS = "nats per token"
# Attention received by a key, in probability: far above what another backend's rounding does.
_SAME = 0.02
_KEPT = 12

Report = Callable[[str], None]


@dataclass(frozen=True)
class Change:
    """What is done to which heads on which prompt; `key` is the position called the sink."""

    run: str
    prompt: int
    op: str
    scope: str
    label: str
    key: int
    logit: float

    def heads(self, stats: HeadStats) -> list[str]:
        """Labels of the heads it changes; raises `WorkbenchError` without a chosen head."""
        every = stats.heads()
        if self.scope == "all":
            return [str(h) for h in every]
        chosen = [h for h in every if str(h) == self.label]
        if not chosen:
            raise WorkbenchError("No head is chosen: click one in the heat map, or take all heads.")
        if self.scope == "head":
            return [self.label]
        return [str(h) for h in every if h.layer == chosen[0].layer]

    def intervention(self, heads: list[str], key: int) -> Intervention:
        """The change as data."""
        if self.op == "zero":
            return Intervention.zero(heads)
        if self.op == "drop":
            return Intervention.drop_keys(heads, key)
        return Intervention.null_logit(heads, self.logit)


class Effect(NamedTuple):
    """What one change did to the outputs, in the unit of `circuits.effects`; `name` says where."""

    name: str
    base: float
    edited: float
    change: float


@dataclass(frozen=True)
class Outcome:
    """What a change did to one prompt.

    `before` and `after` are tables of `sink_readings.received`, the shares those of `on_key` for
    the sink; `effects` is the change's own and then those of its controls, in
    `unit` (`LOSS`, or one minus the cosine of the final hidden states with the clean ones);
    `repeats` is how far the clean pass is from the run (probability).
    """

    what: str
    before: pd.DataFrame
    after: pd.DataFrame
    share_before: pd.DataFrame
    share_after: pd.DataFrame
    effects: tuple[Effect, ...]
    unit: str
    repeats: float
    seconds: float


def why_not(run: Run, prompt: int) -> str:
    """Why a prompt of a run cannot be run again here, in a sentence; "" if it can."""
    about, tokens = run.manifest, _tokens(run, prompt)
    if about.get("interventions"):
        return "This run was captured under an intervention; ablate from a clean one."
    towers = {site["kind"] for site in about["spec"]["sites"]}
    if towers != {"text"} or "image" in set(tokens["role"]):
        return f"Only a model of texts can be run again here; this one has {', '.join(towers)}."
    if len(tokens) > MOST_TOKENS:
        return (
            f"Prompt {prompt} has {len(tokens):,} tokens; here at most {MOST_TOKENS:,} are run "
            "again. Use wb.intervening and wb.capture for longer ones."
        )
    if min(tokens["id"]) < 0:
        return f"The token ids of prompt {prompt} are not known, so it cannot be run again."
    return "" if _opener(about) else (
        f"The model {about['model']!r} is not on this machine (a zoo: name or a directory is), so "
        "it cannot be run from here."
    )  # fmt: skip


def _tokens(run: Run, prompt: int) -> pd.DataFrame:
    return run.tokens.loc[run.tokens["prompt"] == prompt].sort_values("position")


def _opener(about: dict) -> Callable[[], Model] | None:
    """How to open the model of a manifest from this machine alone; None if it is not here."""
    name = str(about["model"])
    if name == demo_runs.MINILM_NAME:
        return demo_runs.minilm if util.find_spec(demo_runs.MINILM) else None
    if name.startswith("zoo:"):
        here = name.removeprefix("zoo:") in zoo.names()
    else:
        here = (Path(name).expanduser() / "config.json").is_file()
    if not here:
        return None

    def open_here() -> Model:
        from workbench.commands.opening import open_model

        # Named as a path: transformers would look for anything else on the hub.
        path = name if name.startswith("zoo:") else str(Path(name).expanduser().resolve())
        return open_model(path, dtype=about.get("dtype"), attention=about.get("attention"))

    return open_here


class Bench:
    """Runs changes on the models of runs; keeps the last model open."""

    def __init__(self) -> None:
        self._open: tuple[tuple, Any] | None = None

    def run(self, run: Run, change: Change, report: Report) -> Outcome:
        """Do one change and its controls; `report(words)` before every step.

        Raises `WorkbenchError` for a model that is not here or does not repeat the run.
        """
        started, reason = time.monotonic(), why_not(run, change.prompt)
        if reason:
            raise WorkbenchError(reason)
        stats = run.stats
        heads = change.heads(stats)
        report("opening the model")
        model = self._model(run.manifest)
        text = tuple(int(i) for i in _tokens(run, change.prompt)["id"])
        if change.key >= len(text):
            raise WorkbenchError(f"prompt {change.prompt} has no position {change.key}.")
        report("running it unchanged")
        clean = _captured(model, stats.kind, text, [])
        repeats = _repeats(stats.prompt(change.prompt), clean)
        report("running it changed")
        edits = {"": [change.intervention(heads, change.key)]}
        changed = _captured(model, stats.kind, text, edits[""])
        edits |= {name: [edit] for name, edit in _controls(change, heads, stats, len(text))}
        effects, unit = _effects(model, text, edits, report)
        return Outcome(
            what=said(change, heads),
            before=sink_readings.received(clean, 0),
            after=sink_readings.received(changed, 0),
            share_before=sink_readings.on_key(clean, change.key),
            share_after=sink_readings.on_key(changed, change.key),
            effects=effects,
            unit=unit,
            repeats=repeats,
            seconds=time.monotonic() - started,
        )

    def _model(self, about: dict) -> Any:
        key = tuple(about.get(name) for name in ("model", "dtype", "attention"))
        if self._open is None or self._open[0] != key:
            self._open = None
            opener = _opener(about)
            assert opener is not None, "asked before"
            self._open = key, opener()
        return self._open[1]


def said(change: Change, heads: list[str]) -> str:
    """What a change does, in words: `L1H2 silenced`."""
    names = {"head": heads[0], "layer": f"all heads of layer {heads[0][1:].split('H')[0]}"}
    who = names.get(change.scope, "all heads")
    return {
        "zero": f"{who} silenced",
        "drop": f"key {change.key} hidden from {who}",
        "null": f"a null logit of {change.logit:g} for {who}",
    }[change.op]


def _captured(model: Any, kind: str, ids: tuple[int, ...], edits: list[Intervention]) -> HeadStats:
    from workbench.capturing import capture
    from workbench.intervene import intervening
    from workbench.prompts import Prompt

    with intervening(model, edits):
        return capture(model, [Prompt(token_ids=ids)], want=_WANT, kind=kind)


def _effects(
    model: Any, ids: tuple[int, ...], edits: dict[str, list[Intervention]], report: Report
) -> tuple[tuple[Effect, ...], str]:
    from workbench.circuits import effects
    from workbench.prompts import Prompt

    def progress(done: int, total: int, _: str) -> None:
        report(f"what it does to the outputs, beside {len(edits) - 1} controls: {done} of {total}")

    table = effects.effects(model, [Prompt(token_ids=ids)], edits, progress=progress)
    numbers = table[["base", "edited", "change"]].to_numpy()
    found = (Effect(n, *map(float, r)) for n, r in zip(table["edit"], numbers, strict=True))
    return tuple(found), str(table["unit"].iloc[0])


def _repeats(stored: HeadStats, clean: HeadStats) -> float:
    """Largest difference of attention received between the run and the clean pass."""
    if "key_mean" not in stored:
        raise WorkbenchError(
            "This run holds no attention received (key_mean) to compare with; capture it again "
            "with the group columns."
        )
    a, b = (s["key_mean"].transpose("prompt", "layer", "head", "key").to_numpy()
            for s in (stored, clean))  # fmt: skip
    same = a.shape == b.shape
    apart = float(np.nanmax(np.abs(a - b))) if same else float("inf")
    if not apart <= _SAME:
        raise WorkbenchError(
            f"The model of that name on this machine does not repeat this run (attention received "
            f"differs by up to {apart:.2g}): it is another one, or another version."
        )
    return apart


def _controls(
    change: Change, heads: list[str], stats: HeadStats, length: int
) -> list[tuple[str, Intervention]]:
    """The same change elsewhere: another key where a key is hidden, else other heads or layers."""
    rng = np.random.default_rng(0)
    if change.op == "drop":
        others = [k for k in range(1, length) if k != change.key]
        keys = sorted(int(k) for k in rng.permutation(others)[:CONTROLS])
        return [(f"key {k}", change.intervention(heads, k)) for k in keys]
    if change.scope == "all":
        return []
    every = stats.heads()
    layer = next(h.layer for h in every if str(h) == heads[0])
    if change.scope == "head":
        elsewhere = [str(h) for h in every if str(h) != change.label]
    else:
        elsewhere = [str(h) for h in every if h.layer != layer and h.head == 0]
    drawn = sorted(str(x) for x in rng.permutation(elsewhere)[:CONTROLS])
    found = []
    for label in drawn:
        other = replace(change, label=label).heads(stats)
        name = label if change.scope == "head" else f"layer {label[1:].split('H')[0]}"
        found.append((name, change.intervention(other, change.key)))
    return found


class _Stopped(Exception):
    """The job was told to stop."""


@dataclass
class Status:
    """Where a change stands: `state` is "idle", "running", "done" or "failed"; `words` for
    people."""

    state: str = "idle"
    words: str = ""
    outcome: Outcome | None = None


class Jobs:
    """One job at a time, in a thread; outcomes are kept by their change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bench = Bench()
        self._now: Change | None = None
        self._words, self._stop = "", False
        self._kept: OrderedDict[Change, Status] = OrderedDict()

    def start(self, run: Run, change: Change) -> str:
        """Begin a change; "" or the sentence that says why it cannot begin now."""
        with self._lock:
            if self._now is not None:
                return "Another ablation is running; wait for it, or stop it."
            self._now, self._words, self._stop = change, "starting", False
            self._kept.pop(change, None)
        threading.Thread(target=self._work, args=(run, change), daemon=True).start()
        return ""

    def stop(self) -> None:
        """Tell the running job to stop before its next step; its outcome is dropped."""
        with self._lock:
            self._stop = True

    def status(self, change: Change) -> Status:
        """Where one change stands; a job for another change counts as running too."""
        with self._lock:
            if self._now is not None:
                own = self._now == change
                note = self._words if own else f"another ablation is running: {self._words}"
                return Status("running", f"stopping after: {note}" if self._stop else note)
            return self._kept.get(change, Status())

    def _say(self, words: str) -> None:
        with self._lock:
            if self._stop:
                raise _Stopped
            self._words = words

    def _work(self, run: Run, change: Change) -> None:
        status = Status("failed", "The job ended unexpectedly; the terminal says why.")
        try:
            status = Status("done", "", self._bench.run(run, change, self._say))
        except _Stopped:
            status = Status("idle", "Stopped.")
        except WorkbenchError as error:
            status = Status("failed", str(error))
        except (RuntimeError, OSError, MemoryError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            status = Status("failed", f"The model could not be run: {first}.")
        finally:
            with self._lock:
                self._now = None
                self._kept[change] = status
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
