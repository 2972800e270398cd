"""The runs under one folder, as the pages need them; tables and patterns are kept for a while.

Every page and route asks here; a run is named by its directory, never by a path from outside.
Opened runs are kept until their manifest changes on disk.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from flask import current_app

from workbench.app import readings, sink_readings
from workbench.app.masking import masked_table
from workbench.app.readings import Metric
from workbench.app.sink_readings import Place
from workbench.app.urls import STRONGEST, head_of, is_run_id
from workbench.errors import WorkbenchError
from workbench.patterns import pattern_of
from workbench.probes import attention_share, find, heads_table, sink_positions
from workbench.probing import PROBES
from workbench.runs import Run, RunSummary, list_runs, open_run, wide
from workbench.schema import ROW, SCHEMA
from workbench.spec import AttentionSite
from workbench.stats import HeadStats

EXTENSION = "workbench"
# One 2048-token pattern is 32 MB in float64; a dozen are what moving between heads needs.
_KEPT = {
    "run": 8, "metrics": 8, "sinks": 32, "tokens": 64, "pattern": 12, "masked": 4, "column": 64,
}  # fmt: skip
# What a metric of one key is when that key and the other sinks are hidden.
_REMAINING = "dormant_score_mass"


class Store:
    """Runs of one folder; thread-safe, read-only."""

    def __init__(self, root: str | Path) -> None:
        root = Path(root).resolve()
        if not root.is_dir():
            raise WorkbenchError(f"{root} is no directory; give the folder that holds your runs.")
        # One run given directly: it is served under its own name.
        self.only = root.name if (root / "manifest.json").is_file() else None
        self.root = root.parent if self.only else root
        self._lock = threading.RLock()
        self._kept: dict[str, OrderedDict[Hashable, Any]] = {k: OrderedDict() for k in _KEPT}

    def list(self) -> list[RunSummary]:
        """Every run, newest first; broken ones with the sentence that says why."""
        found = list_runs(self.root / self.only if self.only else self.root)
        return [s for s in found if is_run_id(s.id)]

    def run(self, run_id: str) -> Run:
        """The run of that name; raises `WorkbenchError` for a bad or unknown one."""
        folder = (self.root / run_id).resolve() if is_run_id(run_id) else None
        # resolve() follows links: one that leads out of the root is refused like any foreign path.
        if folder is None or folder.parent != self.root or (self.only and run_id != self.only):
            raise WorkbenchError(f"run {run_id[:40]!r} is not among the runs served here.")
        manifest = folder / "manifest.json"
        if not manifest.is_file():
            raise WorkbenchError(f"run {run_id!r} does not exist under the folder served here.")
        stamp = manifest.stat().st_mtime_ns
        return self.once("run", (run_id, stamp), lambda: open_run(folder))

    def metrics(self, run_id: str) -> dict[str, Metric]:
        """Every metric of a run by name: probes first, then the plain means of the statistics."""
        run = self.run(run_id)
        return self.once("metrics", run, lambda: metrics_of(_with_probes(run)))

    def metric(self, run_id: str, name: str, default: int = 0) -> Metric:
        """One metric, without a name the `default`-th; raises `WorkbenchError` if unknown."""
        found = self.metrics(run_id)
        if not found:
            raise WorkbenchError(f"run {run_id!r} holds no metric; run workbench probe on it.")
        if not name:
            return list(found.values())[min(default, len(found) - 1)]
        if name not in found:
            raise WorkbenchError(
                f"metric {name!r} is not in run {run_id!r}; choose one of its list."
            )
        return found[name]

    def lead(self, run_id: str) -> str:
        """The head a page opens on when none is chosen: the first by the first metric."""
        found = self.metrics(run_id)
        if not found:
            return str(self.run(run_id).stats.heads()[0])
        metric = next(iter(found.values()))
        values = metric.table["value"]
        return str(values.idxmin() if metric.low_tells else values.idxmax())

    def tokens(self, run_id: str, prompt: int) -> pd.DataFrame:
        """Tokens of one prompt, by position, with the column `shown` (whitespace visible)."""
        run = self.run(run_id)
        return self.once("tokens", (run, prompt), lambda: _tokens(run, prompt))

    def prompts(self, run_id: str) -> list[int]:
        """Ids of the prompts, in order."""
        return [int(p) for p in self.run(run_id).tokens["prompt"].unique()]

    def site(self, run_id: str, label: str) -> AttentionSite:
        """The attention module of a head; raises `WorkbenchError` if there is no such head."""
        stats = self.run(run_id).stats
        head = head_of(label)
        for site in stats.spec.of(stats.kind):
            if head.kind == stats.kind and site.layer == head.layer and head.head < site.n_heads:
                return site
        raise WorkbenchError(f"this model has no head {label}; choose one on the Atlas.")

    def pattern(self, run_id: str, label: str, prompt: int) -> np.ndarray:
        """Pattern [query, key] of one head on one prompt, recomputed from the kept q and k."""
        run = self.run(run_id)
        self.site(run_id, label)
        self.tokens(run_id, prompt)
        return self.once(
            "pattern", (run, label, prompt), lambda: pattern_of(run.stats, prompt, head_of(label))
        )

    def visible(self, run_id: str, label: str, prompt: int) -> np.ndarray:
        """[query, key] bool: what the mask lets this head see on this prompt."""
        site = self.site(run_id, label)
        n_query, n_key = self.pattern(run_id, label, prompt).shape
        return readings.visible(n_query, n_key, site.causal, site.window)

    def sinks(self, run_id: str, threshold: float = 0.3) -> pd.DataFrame:
        """Sink tokens of every prompt; raises `WorkbenchError` where they cannot be named."""
        run = self.run(run_id)
        key = (run, threshold)
        return self.once("sinks", key, lambda: sink_positions(run.stats, threshold=threshold))

    def sinks_or_reason(self, run_id: str) -> tuple[pd.DataFrame | None, str]:
        """(sink tokens of every prompt or None, the share of position 0 in words)."""
        try:
            table, share = self.sinks(run_id), attention_share(self.run(run_id).stats, 0)
        except WorkbenchError as reason:
            return None, f"Sinks cannot be named for this run: {reason}"
        text = (
            f"Position 0 receives {100 * share.value:.1f} % of all attention "
            f"(n = {share.n:,} prompts; uniform attention would give {100 * share.null:.1f} %)."
        )
        return table, text

    def sink_columns(self, run_id: str, prompt: int) -> list[int]:
        """Key positions that "mask sinks" hides: the sinks of this prompt, else position 0."""
        return self.hidden(run_id)[prompt]

    def hidden(self, run_id: str) -> dict[int, list[int]]:
        """What "mask sinks" hides on every prompt, the same on all pages."""
        table, _ = self.sinks_or_reason(run_id)
        found: dict[int, list[int]] = {p: [] for p in self.prompts(run_id)}
        if table is not None:
            for prompt, position in table[["prompt", "position"]].to_numpy():
                found[int(prompt)].append(int(position))
        return {prompt: sorted(keys) or [0] for prompt, keys in found.items()}

    def masked(self, run_id: str) -> HeadStats:
        """Statistics without the columns of the sinks."""
        run = self.run(run_id)
        return self.once(
            "masked", run, lambda: sink_readings.without_columns(run.stats, self.hidden(run_id))
        )

    def place(self, run_id: str, at: str, prompt: int) -> Place:
        """The key an address calls the sink; raises `WorkbenchError` if the prompt has none."""
        if not at:
            return Place()
        tokens = self.tokens(run_id, prompt)
        if at != STRONGEST:
            if int(at) >= len(tokens):
                raise WorkbenchError(
                    f"position {at} is not in prompt {prompt}, which has {len(tokens)} tokens; "
                    "choose one of its list."
                )
            return Place(int(at), prompt)
        table = self.sinks(run_id)
        here = table.loc[table["prompt"] == prompt, "position"]
        # The table begins with the largest share.
        return Place(int(here.iloc[0]) if len(here) else 0, prompt)

    def at_key(self, run_id: str, name: str, place: Place) -> Metric:
        """A probe that takes a position, asked about one key; raises like the probe."""
        run = self.run(run_id)

        def ask() -> Metric:
            return described(
                name, _by_label(find(name)(place.of(run.stats), position=place.position))
            )

        return self.once("column", (run, name, place), ask)

    def besides(self, run_id: str) -> Metric:
        """The most attention that any key but the hidden sinks receives from each head."""
        run = self.run(run_id)

        def ask() -> Metric:
            return described(_REMAINING, _by_label(find(_REMAINING)(self.masked(run_id))))

        return self.once("column", (run, _REMAINING), ask)

    def without_first(self, run_id: str, name: str) -> Metric | None:
        """A metric without position 0, or None where that cannot be had exactly."""
        run = self.run(run_id)

        def ask() -> Metric | None:
            table = masked_table(run.stats, name)
            return None if table is None else described(name, _by_label(table))

        return self.once("column", (run, name, "masked"), ask)

    def companions(self, run_id: str) -> list[str]:
        """Other runs of the same model and tower, newest first."""
        about = self.run(run_id).manifest
        return [
            s.id
            for s in self.list()
            if not s.problem and s.id != run_id
            and (s.model, s.kind) == (about["model"], about["kind"])
        ]  # fmt: skip

    def once(self, kind: str, key: Hashable, make: Callable[[], Any]) -> Any:
        """`make()`, made once for `key` and kept for a while; `kind` is one of `_KEPT`."""
        with self._lock:
            kept = self._kept[kind]
            if key not in kept:
                kept[key] = make()
                while len(kept) > _KEPT[kind]:
                    kept.popitem(last=False)
            kept.move_to_end(key)
            return kept[key]


def store() -> Store:
    """The store of the app that answers the current request."""
    return current_app.extensions[EXTENSION]


def _with_probes(run: Run) -> pd.DataFrame:
    """The run's table of heads; probes that were not stored are computed now."""
    heads = run.heads
    if any(name in heads.columns for name in PROBES):
        return heads
    tables = {str(name): part for name, part in heads_table(run.stats).groupby("probe", sort=False)}
    return heads.merge(wide(tables), on=["layer", "head"], how="left")


def metrics_of(heads: pd.DataFrame) -> dict[str, Metric]:
    """Metrics in a run's table of heads: columns NAME, NAME_sd, NAME_n, NAME_null."""
    # The mean of an index says nothing; the number of visible keys is no doing of the head.
    rows = {n for n, v in SCHEMA.items() if v.dims == ROW} - {"argmax", "n_visible"}
    probes = [n for n in PROBES if n in heads.columns]
    plain = [n for n in heads.columns if n in rows and n not in probes]
    roles = [
        n for n in heads.columns if n.startswith("role_mass_") and not n.endswith(("_sd", "_n"))
    ]
    empty = {n for n in (*plain, *roles) if not np.nan_to_num(_column(heads, n)).any()}
    found = {}
    for name in [*_first(probes), *plain, *roles]:
        table = pd.DataFrame(
            {
                "layer": heads["layer"].to_numpy(),
                "head": heads["head"].to_numpy(),
                "value": _column(heads, name),
                "sd": _column(heads, f"{name}_sd"),
                "n": _column(heads, f"{name}_n"),
                "null": _column(heads, f"{name}_null"),
            },
            index=pd.Index(heads["label"], name="label"),
        )
        if name not in empty and not np.isnan(table["value"].to_numpy()).all():
            found[name] = described(name, table)
    return found


def _first(probes: list[str]) -> list[str]:
    # The page opens on the first metric and plots it against the second: the two most telling ones.
    lead = [n for n in ("sink_mass", "prev_token_score") if n in probes]
    return lead + [n for n in probes if n not in lead]


def _column(heads: pd.DataFrame, name: str) -> np.ndarray:
    if name not in heads.columns:
        return np.full(len(heads), np.nan)
    return heads[name].to_numpy(dtype="float64", na_value=np.nan)


def _by_label(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_index("label")


def described(name: str, table: pd.DataFrame) -> Metric:
    """A metric from its table (index label) and what its probe or the schema says of it."""
    if name in PROBES:
        info = PROBES[name].info  # type: ignore[attr-defined]
        null = info.null.split(":")[0].strip()
        return Metric(
            name,
            info.question,
            info.units,
            info.low,
            info.high,
            info.counts,
            null,
            info.paper,
            table,
            info.direction == "low",
        )
    role = name.removeprefix("role_mass_") if name.startswith("role_mass_") else None
    variable = SCHEMA["role_mass" if role else name]
    about = f"weight on {role} tokens" if role else variable.about
    question = f"Mean over queries, then over prompts: {about}."
    return Metric(
        name, question, variable.units, variable.low, variable.high, "prompts", "", "", table
    )


def _tokens(run: Run, prompt: int) -> pd.DataFrame:
    table = run.tokens.query("prompt == @prompt").sort_values("position", ignore_index=True)
    if table.empty:
        raise WorkbenchError(f"prompt {prompt} is not in this run; choose one from the list.")
    return table.assign(shown=[readings.show_token(str(t)) for t in table["text"]])
