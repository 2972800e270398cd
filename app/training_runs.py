"""All runs of a stack side by side: one curve of each, where it ended; phases of the chosen one.

Plain values in, JSON out; what a fate or a phase is, the laboratory's package says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from workbench.app import laboratories
from workbench.app.laboratories import Trained
from workbench.app.training_shapes import rounded
from workbench.errors import WorkbenchError
from workbench.zoo.trajectory import Results

COLOURS = 4  # fates that have a colour of their own


def choose(one: Trained, curve: str) -> str:
    """The curve of the address; without one the first that is drawn, "" for a run without curves.

    Raises `WorkbenchError` for a curve that the run has not.
    """
    if curve and curve not in one.curves:
        known = ", ".join(one.curves) or "none"
        raise WorkbenchError(f"curve {curve[:60]!r} is not in run {one.label}; it has {known}.")
    if curve:
        return curve
    drawn = laboratories.panels([one])
    return drawn[0].names[0] if drawn else ""


def side_by_side(results: Results, one: Trained, curve: str) -> dict[str, Any]:
    """That curve of every run of the stack, in the same head, and the word for where it ended."""
    if not curve:
        return {"runs": [], "words": [], "curve": "", "units": "", "about": "", "head": "",
                "log": False}  # fmt: skip
    about = one.curves[curve]
    runs = []
    for run in laboratories.runs_of(results):
        stack, _, label = run.partition("/")
        if stack == one.stack:
            data = laboratories.data_of(results, run)
            values = _values(data, one.head, curve)
            runs.append({"run": run, "label": label, "fate": _fate(results, data),
                         "values": rounded(values)})  # fmt: skip
    seen = np.array([v for run in runs for v in run["values"] if v is not None])
    return {
        "curve": curve, "units": about.units, "about": about.about, "runs": runs,
        "head": _head_of(laboratories.data_of(results, one.id), one.head, curve),
        "words": _words(results, laboratories.data_of(results, one.id)),
        "log": bool(len(seen) and seen.min() > 0 and seen.max() > 100 * seen.min()),
    }  # fmt: skip


def _variables(data: xr.Dataset, curve: str) -> list[str]:
    """The variables that a curve may be of, going by its name."""
    return [str(n) for n in data.data_vars if curve == n or curve.startswith(f"{n} ")]


def _head_of(data: xr.Dataset, head: str, curve: str) -> str:
    """The head in which a curve is seen, "" where it is the same in every one."""
    dims = {dim for name in _variables(data, curve) for dim in data[name].dims}
    return head if "head" in dims else ""


def _values(data: xr.Dataset, head: str, curve: str) -> np.ndarray:
    """One curve of a run, without making the others."""
    seen = laboratories.at_head(data, head)
    own = seen[_variables(seen, curve)]
    return next(found.values for found in laboratories.curves(own) if found.name == curve)


def _fate(results: Results, data: xr.Dataset) -> str:
    code = laboratories.code_about(results, "fates", data)
    return code.fate(data) if code else ""


def _words(results: Results, data: xr.Dataset) -> list[dict[str, str]]:
    """Every word with its meaning, from the best end to the worst."""
    code = laboratories.code_about(results, "fates", data)
    words = code.WORDS.items() if code else ()
    return [{"word": word, "about": about} for word, about in words][:COLOURS]


def phases(one: Trained) -> list[dict[str, Any]]:
    """The phases of a run in their order: word, meaning, step and its index."""
    return [
        {"word": word, "about": one.meanings[word], "step": step,
         "at": int(np.searchsorted(one.steps, step))}
        for word, step in one.phases.items()
    ]  # fmt: skip
