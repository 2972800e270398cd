"""Figures of the study of in-context learning curves: measured losses in, one figure out."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.app.figures import base
from workbench.circuits.icl_curves import ANSWERS, OTHER, OWN, curve, spans
from workbench.studies import icl_curves_measure as measuring
from workbench.studies.drawing import BLUE, FAINT, GREEN, GREY, ORANGE, PURPLE, line
from workbench.studies.icl_curves_measure import TRAINED, UNTRAINED, Measured

_TOKENS = {
    (TRAINED, measuring.GIVEN): ("texts as given", BLUE),
    (TRAINED, measuring.SHUFFLED): ("tokens shuffled", ORANGE),
    (UNTRAINED, measuring.GIVEN): ("untrained model", GREY),
}
_EXAMPLES = {
    (TRAINED, OWN): ("examples of its own task", BLUE),
    (TRAINED, ANSWERS): ("their answers shuffled", ORANGE),
    (TRAINED, OTHER): ("examples of another task", PURPLE),
    (UNTRAINED, OWN): ("untrained model", GREY),
}


def tokens(found: Measured) -> go.Figure:
    """Loss by token index, with its controls."""
    figure = _drawn(found.tokens, _TOKENS, "token")
    last = int(found.tokens[TRAINED, measuring.GIVEN]["index"].max())
    for name, span in zip(("early", "late"), spans(last), strict=True):
        figure.add_vrect(
            x0=span.start - 0.5, x1=span.stop - 0.5, fillcolor=FAINT, opacity=0.12, line_width=0,
            annotation_text=name, annotation_position="top left",
        )  # fmt: skip
    figure.update_xaxes(title_text="token index (tokens before it)")
    return figure


def examples(found: Measured) -> go.Figure:
    """Loss of the answer by the number of examples, with its controls and the best predictor."""
    figure = _drawn(found.examples, _EXAMPLES, "examples")
    counts = found.examples[TRAINED, OWN]["examples"].to_numpy()
    if found.floor is not None:
        figure.add_trace(line(counts, found.floor, "least possible", GREEN, "dot"))
    figure.update_xaxes(title_text="examples before the query", tickvals=counts)
    figure.update_traces(mode="lines+markers", marker={"size": 5}, selector={"mode": "lines"})
    return figure


def _drawn(
    losses: dict[tuple[str, str], xr.DataArray], of: dict[tuple[str, str], tuple[str, str]], x: str
) -> go.Figure:
    """The curves that are there, each with its band of two standard errors."""
    figure = base("paper", height=400)
    for key, (name, colour) in of.items():
        if key not in losses:
            continue
        table = curve(losses[key])
        at, mean, se = (table[c].to_numpy() for c in (table.columns[0], "loss", "se"))
        if len(losses[key]) > 1:
            figure.add_trace(
                go.Scatter(
                    x=np.r_[at, at[::-1]], y=np.r_[mean + 2 * se, (mean - 2 * se)[::-1]],
                    fill="toself", fillcolor=colour, opacity=0.15, mode="none", hoverinfo="skip",
                    showlegend=False, legendgroup=name,
                )
            )  # fmt: skip
        hover = f"{name} ({x})"
        figure.add_trace(line(at, mean, name, colour, hover=hover))
    figure.update_layout(showlegend=True, margin_t=40)
    figure.update_yaxes(title_text="loss (nats per token)", rangemode="tozero")
    return figure
