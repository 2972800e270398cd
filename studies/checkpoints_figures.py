"""Figures of the study of checkpoints: one series of a model in, one figure out."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale

from workbench.app.figures import base
from workbench.heads import Head
from workbench.studies.drawing import BLUE, FAINT, GREEN, GREY, INK, ORANGE, SCALE, grid, line

_MOST_HEADS = 24
_MOST_TICKS = 16
_CHECKPOINT = "checkpoint (training step)"
Window = tuple[int, int] | None


def _ticks(one: xr.Dataset) -> dict[str, list]:
    """Checkpoints at equal distances, named by their steps."""
    steps = one["step"].to_numpy()
    at = np.arange(0, len(steps), -(-len(steps) // _MOST_TICKS))
    return {"tickvals": at.tolist(), "ticktext": [f"{steps[i]:,}" for i in at]}


def course(one: xr.Dataset, prefix: Window, icl: Window) -> go.Figure:
    """Scores of the best heads above the ICL score, with the window of each."""
    titles = ("heads on repeated random tokens", "in-context learning")
    figure = grid(2, 1, titles, 560, shared_xaxes=True, vertical_spacing=0.12)
    x = np.arange(one.sizes["step"])
    for name, label, colour in (
        ("best_prefix", "prefix matching, best head", BLUE),
        ("best_previous", "previous token, best head", GREEN),
    ):
        figure.add_trace(_curve(one, name, label, colour), row=1, col=1)
    null = one["prefix_null"].mean(("layer", "head")).to_numpy()
    figure.add_trace(line(x, null, "prefix matching, uniform", GREY, "dot"), row=1, col=1)
    low, high = one["icl_score_low"].to_numpy(), one["icl_score_high"].to_numpy()
    if np.isfinite(low).all():
        figure.add_trace(
            go.Scatter(
                x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], fill="toself", fillcolor=BLUE,
                opacity=0.15, mode="none", hoverinfo="skip", showlegend=False,
            ), row=2, col=1,
        )  # fmt: skip
    for name, label, colour in (
        ("icl_score", "ICL score, texts as given", INK),
        ("icl_score_shuffled", "ICL score, tokens shuffled", ORANGE),
    ):
        figure.add_trace(_curve(one, name, label, colour), row=2, col=1)
    for row, span in ((1, prefix), (2, icl)):
        if span is not None:
            # The panel is named by its axes: a row and a column would only be looked up.
            figure.add_shape(
                type="rect", x0=span[0], x1=span[1], y0=0, y1=1, fillcolor=FAINT, opacity=0.15,
                line_width=0, xref=f"x{row}" if row > 1 else "x",
                yref=f"y{row} domain" if row > 1 else "y domain",
            )  # fmt: skip
    below = {"y": -0.14, "x": 0, "yanchor": "top", "xanchor": "left"}
    figure.update_layout(showlegend=True, legend=below, margin_b=64)
    figure.update_xaxes(_ticks(one))
    figure.update_xaxes(title_text=_CHECKPOINT, row=2, col=1)
    figure.update_yaxes(title_text="probability", range=[0, 1.02], row=1, col=1)
    figure.update_yaxes(title_text="late - early loss (nats)", row=2, col=1)
    return figure


def _curve(one: xr.Dataset, name: str, label: str, colour: str) -> go.Scatter:
    steps, values = one["step"].to_numpy(), one[name].to_numpy()
    return go.Scatter(
        x=np.arange(len(steps)), y=values, mode="lines+markers", name=label, marker={"size": 6},
        line={"color": colour, "width": 1.8}, customdata=steps,
        hovertemplate=f"<b>{label}</b><br>step %{{customdata:,}}: %{{y:.3~g}}<extra></extra>",
    )  # fmt: skip


def heads(one: xr.Dataset) -> go.Figure:
    """Prefix-matching score of the heads that have most of it at the end, head by checkpoint."""
    scores = one["prefix_score"].stack(place=("layer", "head")).dropna("place")
    order = np.argsort(-scores.isel(step=-1).to_numpy(), kind="stable")[:_MOST_HEADS]
    chosen = scores.isel(place=order)
    labels = [str(Head(int(layer), int(head))) for layer, head in chosen["place"].to_numpy()]
    figure = base("paper", height=150 + 20 * len(labels))
    steps = one["step"].to_numpy()
    copying = one["copying_score"].stack(place=("layer", "head")).sel(place=chosen["place"])
    figure.add_trace(
        go.Heatmap(
            z=chosen.T, x=np.arange(len(steps)), y=labels, colorscale=SCALE, zmin=0, zmax=1,
            xgap=1, ygap=1,
            customdata=np.dstack(
                [np.broadcast_to(steps, (len(labels), len(steps))), copying.to_numpy().T]
            ),
            hovertemplate="<b>%{y}</b>, step %{customdata[0]:,}<br>prefix matching %{z:.3f}<br>"
            "copying score %{customdata[1]:.2f}<extra></extra>",
            colorbar={"title": {"text": "prefix-matching<br>score", "side": "right"},
                      "thickness": 12, "tickformat": ".1~f"},
        )
    )  # fmt: skip
    figure.update_xaxes(_ticks(one), title_text=_CHECKPOINT)
    figure.update_yaxes(title_text="head", autorange="reversed", type="category", dtick=1)
    return figure


def losses(one: xr.Dataset) -> go.Figure:
    """Loss by token index, one line per checkpoint."""
    figure = base("paper", height=max(420, 130 + 22 * one.sizes["step"]))
    steps, index = one["step"].to_numpy(), one["index"].to_numpy()
    # The lightest colours of the scale cannot be seen on paper.
    places = np.linspace(0.25, 1.0, len(steps))
    for number, colour in enumerate(sample_colorscale(SCALE, places)):
        values = one["loss_by_index"].isel(step=number).to_numpy()
        name = f"step {steps[number]:,}"
        figure.add_trace(line(index, values, name, str(colour), hover=f"{name}, token index"))
    uniform = one["loss_by_index_baseline"].isel(predictor=0).to_numpy()
    figure.add_trace(line(index, uniform, "all tokens equally likely", ORANGE, "dot"))
    figure.update_layout(
        showlegend=True, margin_t=40,
        legend={"orientation": "v", "x": 1.01, "y": 1, "xanchor": "left", "yanchor": "top"},
    )  # fmt: skip
    figure.update_xaxes(title_text="token index (tokens before it)")
    figure.update_yaxes(title_text="loss (nats per token)", rangemode="tozero")
    return figure
