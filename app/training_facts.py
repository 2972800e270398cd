"""What the training page sends to the script: the state with every choice made, all steps of it.

Plain values in, JSON or figures out; nothing here knows of Dash.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import numpy as np

from workbench.app import laboratories, training_figures, training_runs, training_shapes
from workbench.app.laboratories import Curve, Panel, Trained
from workbench.app.training_shapes import Matrices, Sweep, rounded
from workbench.app.urls import LabState
from workbench.errors import WorkbenchError
from workbench.zoo.trajectory import Results

CONTROLS = ("run", "beside", "head", "text", "axis", "curve")
NOTHING = "none"


def shown(results: Results, state: LabState) -> tuple[LabState, Trained, Trained | None]:
    """The state with every choice made, the run and the run beside it.

    Raises `WorkbenchError` for a run, head, text or curve that is not there.
    """
    run = laboratories.choose(results, state.run)
    one = laboratories.trained(results, run, state.head)
    if state.text and state.text >= (
        texts := laboratories.texts_of(laboratories.data_of(results, run))
    ):
        raise WorkbenchError(
            f"text {state.text} has no patterns in this run; there are {texts}, from 0 on."
        )
    beside = state.beside or laboratories.companion(results, run)
    curve = training_runs.choose(one, state.curve)
    full = replace(state, run=run, beside=beside, head=one.head, curve=curve)
    if beside == NOTHING:
        return full, one, None
    beside = laboratories.choose(results, beside)
    head = laboratories.same_head(results, beside, one.head)
    return full, *_told_apart(one, laboratories.trained(results, beside, head))


def _told_apart(one: Trained, beside: Trained) -> tuple[Trained, Trained]:
    """Both runs with titles that differ: runs of two stacks may have one label."""
    if one.title != beside.title:
        return one, beside
    return (
        replace(one, title=f"{one.label} · {one.stack}"),
        replace(beside, title=f"{beside.label} · {beside.stack}"),
    )


def facts_of(state: LabState) -> dict[str, Any]:
    """What the script needs: steps, tokens, every curve of both runs, where the patterns are."""
    results = laboratories.open_laboratory(state.lab)
    full, one, beside = shown(results, state)
    axis = training_figures.Axis.of(one.steps, full.axis)
    runs = [one, *([beside] if beside else [])]
    chosen = {name: getattr(full, name) for name in CONTROLS}
    asked = {"run": full.run, "head": full.head, "beside": full.beside}
    return {
        "key": [full.lab, *chosen.values()],
        "state": chosen,
        "steps": one.steps.tolist(),
        "x": np.round(axis.at(one.steps), 6).tolist(),
        "maps": [_map(results, full, run) for run in runs],
        "matrices": _matrices(results, full, runs),
        "sweeps": _sweeps(results, runs),
        "multiples": training_runs.side_by_side(results, one, full.curve),
        "phases": training_runs.phases(one),
        "curves": list(one.curves),
        "rows": _rows(one, beside),
        "columns": _columns(one, beside),
        "where": one.where,
        "beside_at": _latest(one.steps, beside.steps) if beside else [],
        "beside_steps": beside.steps.tolist() if beside else [],
        "csv": f"/lab-data/{full.lab}/scalars.csv?{urlencode(asked)}",
        "heads": laboratories.heads_of(laboratories.data_of(results, full.run)),
        "texts": laboratories.texts_of(laboratories.data_of(results, full.run)),
        "panels": [
            {"title": panel.title, "note": _note(panel, one, beside)}
            for panel in laboratories.panels(runs)
        ],
    }


def _note(panel: Panel, one: Trained, beside: Trained | None) -> str:
    """What the kinds of line in a figure are."""
    title, other = _headed(one, beside)
    said = [f"full: {title}"]
    if beside is not None and any(name in beside.curves for name in panel.names):
        said.append(f"dotted: {other}")
    if any(name in one.published for name in panel.names):
        said.append("rings: published")
    return ", ".join(said)


def _headed(one: Trained, beside: Trained | None) -> tuple[str, str]:
    """Titles of both runs, with their heads where these differ."""
    if beside is None or one.head == beside.head:
        return one.title, beside.title if beside else ""
    return f"{one.title} {one.head}".strip(), f"{beside.title} {beside.head}".strip()


def _map(results: Results, state: LabState, run: Trained) -> dict[str, Any]:
    """Where the patterns of a run are, and the tokens of the text."""
    data = laboratories.data_of(results, run.id)
    there = state.text < laboratories.texts_of(data)
    names, marked = laboratories.tokens_of(data, state.text) if there else ([], [])
    query = urlencode({"run": run.id, "head": run.head, "text": state.text} | _made(results))
    return {
        "title": f"{run.title}, {run.head}",
        "url": f"/lab-data/{state.lab}/pattern?{query}" if there else "",
        "tokens": names,
        "marked": marked,
    }


def _made(results: Results) -> dict[str, str]:
    """For addresses of data that the script keeps: made again, the laboratory has others."""
    return {"made": results.about["created"]}


def _matrices(results: Results, state: LabState, runs: list[Trained]) -> list[dict[str, Any]]:
    """Every matrix of both runs: names, labels, the scale they share, where the numbers are."""
    found: dict[str, list[tuple[Trained, Matrices]]] = {}
    for run in runs:
        seen = laboratories.at_layer(laboratories.data_of(results, run.id), run.head)
        for one in training_shapes.matrices(seen):
            found.setdefault(one.name, []).append((run, one))
    return [_matrix(results, state, runs, own) for own in found.values()]


def _matrix(
    results: Results, state: LabState, runs: list[Trained], own: list[tuple[Trained, Matrices]]
) -> dict[str, Any]:
    """One variable; its scale is that of all steps of both runs."""
    first = own[0][1]
    values = np.concatenate([one.values.ravel() for _, one in own])
    values = values[np.isfinite(values)]
    return {
        "name": first.name, "units": first.units, "about": first.about,
        "limit": float(np.abs(values).max(initial=0)) or 1.0,
        "signed": bool(values.min(initial=0) < 0),
        "runs": [
            {
                "of": runs.index(run), "label": run.title, "blocks": one.blocks, "rows": one.rows,
                "columns": one.columns, "row_dim": one.row_dim, "column_dim": one.column_dim,
                "url": f"/lab-data/{state.lab}/matrices?"
                + urlencode({"run": run.id, "head": run.head, "name": one.name} | _made(results)),
            }
            for run, one in own
        ],
    }  # fmt: skip


def _sweeps(results: Results, runs: list[Trained]) -> list[dict[str, Any]]:
    """Every sweep of the run, with the lines that the script moves: trace, run, values [step]."""
    return [
        {
            "title": _words(own.name), "note": f"{own.about}; {_kinds(runs, own, other)}",
            "lines": [
                {"trace": trace, "of": of, "values": [rounded(row) for row in values]}
                for trace, (of, values) in enumerate(_moving(own, other), start=len(own.baseline))
            ],
        }
        for own, other in _pairs(results, runs)
    ]  # fmt: skip


def _words(name: str) -> str:
    """A variable as a title: `risk_by_length` is "Risk by length"."""
    said = training_shapes.words(name)
    return said[:1].upper() + said[1:]


def _kinds(runs: list[Trained], own: Sweep, other: Sweep | None) -> str:
    """What the kinds of line of a sweep are."""
    said = [f"thick: {runs[0].title}"]
    if other is not None:
        said.append(f"dotted: {runs[1].title}")
    if own.baseline:
        said.append("dashed: does not move")
    return ", ".join(said)


def _moving(own: Sweep, other: Sweep | None) -> list[tuple[int, np.ndarray]]:
    """(which run, values [step, x]) of every line that moves, in the order of the figure."""
    beside = [(1, values) for values in other.lines.values()] if other else []
    return [*beside, *((0, values) for values in own.lines.values())]


def _pairs(results: Results, runs: list[Trained]) -> list[tuple[Sweep, Sweep | None]]:
    """Every sweep of the run with that of the run beside it."""
    seen = [
        training_shapes.sweeps(
            laboratories.at_head(laboratories.data_of(results, run.id), run.head)
        )
        for run in runs
    ]
    beside = {one.name: one for one in seen[1]} if len(seen) > 1 else {}
    return [(own, beside.get(own.name)) for own in seen[0]]


def _columns(one: Trained, beside: Trained | None) -> list[str]:
    title, other = _headed(one, beside)
    return [
        "curve", title, *([other] if beside else []),
        *(["published"] if one.published else []), "unit", "what it is",
    ]  # fmt: skip


def _rows(one: Trained, beside: Trained | None) -> list[dict[str, Any]]:
    """One row of the table per curve of the run, every step of it."""
    rows = []
    for name, curve in one.curves.items():
        row: dict[str, Any] = {
            "name": name, "units": curve.units, "about": curve.about, "group": curve.group,
        }  # fmt: skip
        row["values"] = rounded(curve.values)
        if beside is not None:
            other = beside.curves.get(name)
            row["beside"] = rounded(other.values) if other else None
        if name in one.published:
            row["published"] = {
                str(step): float(f"{v:.4g}") for step, v in one.published[name].items()
            }
        rows.append(row)
        rows += _band_rows(curve, None if beside is None else beside.curves.get(name))
    return rows


def _band_rows(curve: Curve, beside: Curve | None) -> list[dict[str, Any]]:
    if curve.band is None:
        return []
    rows = []
    for i, end in enumerate(("lower", "upper")):
        other = rounded(beside.band[i]) if beside is not None and beside.band else None
        rows.append(
            {"name": f"  {end} end of its band", "units": curve.units, "about": "",
             "group": curve.group, "values": rounded(curve.band[i]), "beside": other}
        )  # fmt: skip
    return rows


def _latest(steps: np.ndarray, others: np.ndarray) -> list[int]:
    """For each step the index of the other run's latest logged step, -1 before its first."""
    return (np.searchsorted(others, steps, side="right") - 1).tolist()


def pictures(state: LabState, theme: str) -> list[Any]:
    """One figure per panel, in the order of the boxes."""
    results = laboratories.open_laboratory(state.lab)
    full, one, beside = shown(results, state)
    axis = training_figures.Axis.of(one.steps, full.axis)
    drawn = laboratories.panels([one, *([beside] if beside else [])])
    return [training_figures.curves(panel, one, beside, axis, theme) for panel in drawn]


def sweep_pictures(state: LabState, theme: str) -> list[Any]:
    """One figure per sweep, at the last step; the script moves the lines."""
    results = laboratories.open_laboratory(state.lab)
    _, one, beside = shown(results, state)
    pairs = _pairs(results, [one, *([beside] if beside else [])])
    return [training_figures.sweep(own, one, other, beside, theme) for own, other in pairs]
