"""What the figures of all studies share: colours on paper, a step axis, panels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench.app.export import STOPS
from workbench.app.figures import base, palette

_PAPER = palette("paper")
BLUE, ORANGE, GREY, INK = _PAPER.blue, _PAPER.orange, _PAPER.grey, _PAPER.ink
PALE, FAINT = _PAPER.pale, _PAPER.faint
GREEN, PURPLE, RED = "#2a8c6e", "#7b5ea7", "#a31621"
SCALE = [[i / (len(STOPS) - 1), colour] for i, colour in enumerate(STOPS)]
STEP = "training step (log scale; step 0 left out)"
LOG_STEPS = {
    "type": "log",
    "tickvals": [step * 10**power for power in range(1, 5) for step in (1, 2, 5)],
    "tickformat": ",",
}


def name_of(run: xr.Dataset) -> str:
    """Label of a run of a laboratory, `main-s0`."""
    return str(run["run"].item())


def grid(rows: int, cols: int, titles: Sequence[str], height: int, **more: object) -> go.Figure:
    """A figure with panels, whose axes have names of their own."""
    style: Any = base("paper", height=height).layout
    axis = {k: v for k, v in style.xaxis.to_plotly_json().items() if k != "title"}
    figure = make_subplots(rows=rows, cols=cols, subplot_titles=titles, **more)  # type: ignore[arg-type]
    rest = {k: v for k, v in style.to_plotly_json().items() if k not in ("xaxis", "yaxis")}
    figure.update_layout(**rest)
    figure.update_layout(margin={"l": 8, "r": 12, "t": 34, "b": 8})
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(**axis, title={"font": {"size": 12, "color": FAINT}})
    figure.update_annotations(font={"size": 12, "color": INK})
    return figure


def line(
    x: np.ndarray, y: np.ndarray, name: str, colour: str, dash: str = "solid", *,
    legend: bool = True, hover: str = "",
) -> go.Scatter:  # fmt: skip
    """A curve with its name in the hover text."""
    return go.Scatter(
        x=x, y=y, mode="lines", name=name, legendgroup=name, showlegend=legend,
        line={"color": colour, "width": 1.8, "dash": dash},
        hovertemplate=f"<b>{hover or name}</b><br>%{{x:,.4~g}}: %{{y:.4~g}}<extra></extra>",
    )  # fmt: skip
