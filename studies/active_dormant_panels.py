"""Figures of the active-dormant study with several panels: patterns, the published curve."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from workbench.studies.active_dormant_figures import Runs, S
from workbench.studies.drawing import BLUE, ORANGE, SCALE, grid, name_of
from workbench.zoo.backcopy import laws, published

SNAPSHOTS = 5


def snapshot_steps(run: xr.Dataset) -> list[int]:
    """Logged steps to show: the first, that at which backcopy is learned, the last, and between."""
    steps = [int(step) for step in run["step"].to_numpy()]
    _, backcopy = laws.learned(run)
    found = {steps[0], steps[-1]} | ({int(backcopy)} if np.isfinite(backcopy) else set())
    while len(found) < min(SNAPSHOTS, len(steps)):
        # The farthest from all others in ln(step + 1): most happens early.
        left = [step for step in steps if step not in found]
        away = [min(abs(np.log((s + 1) / (f + 1))) for f in found) for s in left]
        found.add(left[int(np.argmax(away))])
    return sorted(found)


def patterns(run: xr.Dataset) -> go.Figure:
    """The head's weights on one text at a few steps; the rows named are those with a trigger."""
    head = laws.head_of(run).isel(probe=0)
    ids = run["probe_id"].isel(probe=0).to_numpy()
    symbols = [str(run["token"].to_numpy()[i]) for i in ids]
    trigger = run["trigger"].to_numpy()[ids]
    steps = snapshot_steps(run)
    titles = [f"step {step:,}" for step in steps]
    figure = grid(1, len(steps), titles, 330, shared_yaxes=True, horizontal_spacing=0.012)
    places = [f"{i} {escape(symbol)}" for i, symbol in enumerate(symbols)]
    n = len(places)
    for column, step in enumerate(steps, 1):
        weights = head["pattern"].sel(step=step).to_numpy().astype(float)
        # The future has no weight; it is left white.
        weights[np.triu_indices(n, 1)] = np.nan
        figure.add_trace(
            go.Heatmap(
                z=weights, coloraxis="coloraxis", x=list(range(n)), y=list(range(n)),
                customdata=[[[places[q], places[k], trigger[q]] for k in range(n)]
                            for q in range(n)],
                hovertemplate=f"step {step:,}<br>from %{{customdata[0]}} to %{{customdata[1]}}: "
                "%{z:.3f}<extra></extra>", hoverongaps=False,
            ),
            row=1, col=column,
        )  # fmt: skip
    figure.update_layout(
        coloraxis={"colorscale": SCALE, "cmin": 0, "cmax": 1, "colorbar": {
            "title": {"text": "weight<br>(probability)", "font": {"size": 11}},
            "thickness": 10, "outlinewidth": 0}},
        margin={"l": 8, "r": 8, "t": 28, "b": 8},
    )  # fmt: skip
    rows = np.nonzero(trigger)[0]
    figure.update_xaxes(title_text="key", showgrid=False, tickvals=[0, n // 2, n - 1])
    figure.update_yaxes(
        autorange="reversed", showgrid=False, constrain="domain", tickfont={"size": 9},
        tickvals=rows, ticktext=[f"{escape(symbols[i])} {i}" for i in rows],
    )  # fmt: skip
    figure.update_yaxes(title_text="query (named: triggers)", row=1, col=1)
    return figure


# Column of the published curve, what it is, whether its axis is logarithmic.
_PANELS = (
    ("risk_on", "backcopy risk (nats)", True),
    ("risk_off", "bigram risk (nats)", False),
    ("sink_off", f"weight on {S}, no trigger", False),
    ("value_begin", f"‖W<sub>O</sub> v‖ of {S}", False),
    ("delta_logit_off", f"logit margin of {S}", False),
)
PUBLISHED, OURS = "published, not run here", "ours, this study"


def published_curve(runs: Runs) -> go.Figure:
    """Our first seed beside the curve that the authors published."""
    titles = [*(title for _, title, _ in _PANELS), f"‖h‖ of {S}, block 0 of three"]
    figure = grid(2, 3, titles, 560, horizontal_spacing=0.08, vertical_spacing=0.2)
    # The axes are logarithmic, and Plotly draws a point at log 0 as a flat line from the left.
    theirs, mine = (
        table.query("step > 0") for table in (published.curve(), published.ours(runs["main"][0]))
    )
    for i, (name, _, logarithmic) in enumerate(_PANELS):
        row, col = i // 3 + 1, i % 3 + 1
        figure.add_trace(_side(theirs, name, PUBLISHED, ORANGE, first=i == 0), row, col)
        figure.add_trace(_side(mine, name, OURS, BLUE, first=i == 0), row, col)
        if logarithmic:
            figure.update_yaxes(type="log", dtick=2, exponentformat="power", row=row, col=col)
    deep = published.residuals()
    for optimiser, dash in (("adamw", "solid"), ("sgd", "dot")):
        label = "AdamW" if optimiser == "adamw" else "SGD"
        figure.add_trace(_side(deep, optimiser, PUBLISHED, ORANGE, dash, label), row=2, col=3)
        for run in runs.get(optimiser, ())[:1]:
            norms = run["resid_norm"].sel(stream=1, role="begin")
            table = pd.DataFrame({"step": run["step"].to_numpy(), optimiser: norms.to_numpy()})
            side = _side(table, optimiser, OURS, BLUE, dash, f"{label} {name_of(run)}")
            figure.add_trace(side, row=2, col=3)
    figure.update_layout(
        showlegend=True, margin={"l": 8, "r": 12, "t": 70, "b": 8},
        legend={"x": 0, "xanchor": "left", "y": 1.1},
    )  # fmt: skip
    figure.update_xaxes(type="log", tickvals=[10, 100, 1000, 10_000], range=[0.9, 4.1])
    figure.update_xaxes(title_text="training step", row=2)
    figure.update_xaxes(type="linear", tickvals=None, range=None, row=2, col=3)
    return figure


def _side(
    table: pd.DataFrame, column: str, name: str, colour: str, dash: str = "solid",
    what: str = "", first: bool = False,
) -> go.Scatter:  # fmt: skip
    text = f"{name}{', ' + what if what else ''}"
    return go.Scatter(
        x=table["step"], y=table[column], name=name, legendgroup=name, showlegend=first,
        mode="lines+markers" if name == PUBLISHED else "lines",
        line={"color": colour, "width": 1.8, "dash": dash}, marker={"size": 5},
        hovertemplate=f"<b>{escape(text)}</b><br>step %{{x:,}}: %{{y:.3~g}}<extra></extra>",
    )  # fmt: skip
