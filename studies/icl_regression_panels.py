"""Figures of the icl-regression study that show matrices: the circuits of heads, what they add up
to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.app.figures import THEMES
from workbench.studies.icl_regression_figures import grid, name_of, shown
from workbench.zoo.regression.laws import Evidence

_STOPS = THEMES["paper"].diverge
SCALE = [[i / (len(_STOPS) - 1), colour] for i, colour in enumerate(_STOPS)]
Matrix = tuple[str, np.ndarray, Sequence[str], Sequence[str]]


def matrices(panels: Sequence[Matrix], unit: str, height: int = 270) -> go.Figure:
    """Heat maps side by side, each on its own scale around zero: (title, values, rows, columns)."""
    figure = grid(1, len(panels), [title for title, *_ in panels], height, horizontal_spacing=0.05)
    for col, (title, values, rows, columns) in enumerate(panels, 1):
        top = float(np.abs(values).max())
        figure.add_trace(
            go.Heatmap(
                z=values, x=list(columns), y=list(rows), colorscale=SCALE, zmin=-top, zmax=top,
                showscale=False, texttemplate="%{z:.2f}", textfont={"size": 9},
                hovertemplate=f"<b>{title}</b><br>%{{y}}, %{{x}}: %{{z:.4f}} {unit}<extra></extra>",
            ),
            row=1, col=col,
        )  # fmt: skip
    figure.update_xaxes(showgrid=False, tickfont={"size": 9})
    figure.update_yaxes(showgrid=False, autorange="reversed", tickfont={"size": 9})
    figure.update_xaxes(title_text="query coordinate")
    figure.update_yaxes(title_text="key coordinate", row=1, col=1)
    return figure


def circuits(evidence: Evidence) -> go.Figure:
    """KQ and OV of both heads, and E, at the end of one run."""
    run = shown(evidence).isel(step=-1)
    places, asked = _names(run, "coordinate"), _names(run, "query_coordinate")
    panels: list[Matrix] = []
    for head in run["head"].to_numpy():
        one = run.sel(head=head)
        mu = float(one["mu"].isel(task=0))
        panels += [
            (f"KQ, head {head}", one["kq"].to_numpy().astype(float), places, asked),
            (f"OV, μ = {mu:+.2f}", one["ov"].to_numpy().astype(float).T, places, ["out"]),
        ]
    panels.append((f"E of {name_of(run)}", _first_task(run), places[: len(asked)], asked))
    figure = matrices(panels, "")
    for col in range(2, len(panels), 2):
        figure.update_xaxes(title_text="", col=col)
    return figure


def coloured(evidence: Evidence) -> go.Figure:
    """E on correlated coordinates, the best matrix, and the inverse covariance, at one scale."""
    from workbench.zoo.regression import closed
    from workbench.zoo.regression.recipe import COLOURED

    run = evidence.of("coloured")[0].isel(step=-1)
    names = _names(run, "query_coordinate")
    found = {
        f"E of {name_of(run)}": _first_task(run),
        "best matrix Γ": closed.matrices(COLOURED, debiased=True)[0],
        "inverse covariance": np.linalg.inv(COLOURED.covariance),
    }
    panels = [
        (title, matrix / np.linalg.norm(matrix), names, names) for title, matrix in found.items()
    ]
    return matrices(panels, "of the norm", height=320)


def tasks(evidence: Evidence) -> go.Figure:
    """What every head reads and writes, and what they add up to, with two and three heads."""
    panels: list[Matrix] = []
    for setting in ("tasks-h2", "tasks-h3"):
        run = evidence.of(setting)[-1].isel(step=-1)
        names = _names(run, "query_coordinate")
        heads = [f"head {h}" for h in run["head"].to_numpy()]
        labels = [f"y{t}" for t in run["task"].to_numpy()]
        diagonal = np.einsum("tii->ti", run["e"].to_numpy().astype(float))
        panels += [
            (f"μ, {len(heads)} heads", run["mu"].to_numpy().astype(float), heads, labels),
            ("diagonal of E", diagonal, labels, names),
        ]
    figure = matrices(panels, "")
    figure.update_xaxes(title_text="task", col=1)
    figure.update_xaxes(title_text="task", col=3)
    figure.update_yaxes(title_text="", col=1)
    return figure


def _names(run: xr.Dataset, dim: str) -> list[str]:
    return [str(name) for name in run[dim].to_numpy()]


def _first_task(run: xr.Dataset) -> np.ndarray:
    return run["e"].isel(task=0).to_numpy().astype(float)
