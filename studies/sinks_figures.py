"""Figures of the study of sinks: measured models in, one figure out."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from workbench.app.figures import base
from workbench.probes import sink_levels, uniform
from workbench.studies.drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, SCALE
from workbench.studies.sinks_measure import SINK, TRAINED, UNTRAINED, Measured

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
# Zero has no place on a log axis; smaller effects than this are rounding.
_FLOOR = 1e-4
_HOVER = ["label", "mass", "mass_null", "margin", "drain"]


def mass(measured: Measured) -> go.Figure:
    """Attention on position 0, layer by head."""
    table = measured.tables["heads"].query("model == @TRAINED")
    grid = table.pivot(index="layer", columns="head", values="mass")
    figure = base("paper", height=140 + 24 * len(grid))
    text = table.assign(
        text=[
            f"<b>{label}</b> {mass:.3f} (uniform {null:.3f})<br>"
            f"margin {margin:.2f} nats, value {drain:.2f} of others'"
            for label, mass, null, margin, drain in table[_HOVER].to_numpy()
        ]
    ).pivot(index="layer", columns="head", values="text")
    figure.add_trace(
        go.Heatmap(
            z=grid, x=grid.columns, y=grid.index, text=text, colorscale=SCALE, zmin=0, zmax=1,
            xgap=1, ygap=1, hovertemplate="%{text}<extra></extra>",
            colorbar={"title": {"text": "attention on<br>position 0", "side": "right"},
                      "thickness": 12, "tickformat": ".1~f"},
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="head", dtick=max(1, grid.shape[1] // 16))
    figure.update_yaxes(title_text="layer", autorange="reversed", dtick=max(1, len(grid) // 16))
    return figure


def received(measured: Measured) -> go.Figure:
    """Attention every position receives, trained and untrained, beside uniform attention."""
    figure = base("paper", height=360)
    for label, colour in ((TRAINED, BLUE), (UNTRAINED, GREY)):
        stats = measured.stats[label]
        curve = _by_position(stats["key_mean"])
        figure.add_trace(_line(curve, label, colour, "solid"))
    stats = measured.stats[TRAINED]
    count = stats["key_count"]
    flat = uniform.columns(stats, count.sizes["key"]) / count.where(count > 0)
    figure.add_trace(_line(_by_position(flat), "uniform", ORANGE, "dot"))
    figure.update_layout(showlegend=True, margin_t=40)
    figure.update_xaxes(title_text="position of the key (tokens)")
    figure.update_yaxes(
        title_text="attention received (probability, log scale)", type="log", dtick=1
    )
    return figure


def _by_position(received_by: xr.DataArray) -> np.ndarray:
    """Mean over prompts, layers and heads, [key]."""
    return received_by.mean(("prompt", "layer", "head"), skipna=True).to_numpy()


def _line(curve: np.ndarray, name: str, colour: str, dash: str) -> go.Scatter:
    return go.Scatter(
        x=np.arange(len(curve)), y=curve, name=name, mode="lines",
        line={"color": colour, "width": 1.6, "dash": dash},
        hovertemplate=f"position %{{x}}: %{{y:.2~g}}<extra>{name}</extra>",
    )  # fmt: skip


def changed_texts(every: Sequence[Measured]) -> go.Figure:
    """Share of position 0 with special tokens left out and words shuffled, model by model."""
    names = list(dict.fromkeys(t for m in every for t in m.tables["changed texts"]["texts"]))
    figure = base("paper", height=140 + 28 * len(names))
    for measured, colour in zip(every, COLOURS, strict=False):
        table = measured.tables["changed texts"]
        name = html.escape(measured.name)
        figure.add_trace(
            go.Scatter(
                x=table["share"], y=table["texts"], mode="markers", name=name,
                error_x={"array": table["sd"], "thickness": 1},
                marker={"color": colour, "size": 9},
                customdata=table["uniform"],
                hovertemplate="<b>%{y}</b> %{x:.3f} (uniform %{customdata:.3f})"
                f"<extra>{name}</extra>",
            )
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=40)
    figure.update_xaxes(title_text="share of all attention on position 0", rangemode="tozero")
    figure.update_yaxes(
        categoryorder="array", categoryarray=names[::-1], type="category", title_text="texts"
    )
    return figure


def by_length(every: Sequence[Measured]) -> go.Figure:
    """How the share of position 0 falls as texts grow, beside uniform attention."""
    figure = base("paper", height=360)
    for measured, colour in zip(every, COLOURS, strict=False):
        table = measured.tables["lengths"]
        name = html.escape(measured.name)
        for column, dash in (("share", "solid"), ("uniform", "dot")):
            spread = {"array": table["sd"], "thickness": 1} if column == "share" else None
            figure.add_trace(
                go.Scatter(
                    x=table["length"], y=table[column], mode="lines+markers",
                    name=name if column == "share" else f"{name}: uniform", error_y=spread,
                    line={"color": colour, "width": 1.8, "dash": dash},
                    hovertemplate="%{x} tokens: %{y:.3f}" + f"<extra>{name}, {column}</extra>",
                )
            )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=40)
    figure.update_xaxes(title_text="length of the text (tokens, log scale)", type="log",
                        tickvals=[8, 16, 32, 64, 128, 256, 512, 1024])  # fmt: skip
    figure.update_yaxes(title_text="share of all attention on position 0", range=[0, 1])
    return figure


def heads(every: Sequence[Measured]) -> go.Figure:
    """Every head: how much it parks on the first position, and how small the value there is."""
    figure = base("paper", height=400)
    for measured, colour in zip(every, COLOURS, strict=False):
        for model, symbol in ((TRAINED, "circle"), (UNTRAINED, "x-thin-open")):
            table = measured.tables["heads"].query("model == @model")
            name = html.escape(measured.name) + ("" if model == TRAINED else f", {model}")
            figure.add_trace(
                go.Scatter(
                    x=table["mass"], y=table["drain"], mode="markers", name=name,
                    text=table["label"],
                    marker={"color": colour, "size": 7, "symbol": symbol, "opacity": 0.7,
                            "line": {"width": 1, "color": colour}},
                    hovertemplate="<b>%{text}</b> sink mass %{x:.2f}, value %{y:.2f}"
                    f"<extra>{name}</extra>",
                )
            )  # fmt: skip
    figure.add_hline(y=1, line={"color": INK, "width": 1, "dash": "dot"})
    figure.add_vline(x=SINK, line={"color": INK, "width": 1, "dash": "dot"})
    figure.update_layout(showlegend=True, margin_t=60)
    figure.update_xaxes(title_text="sink mass: attention on position 0 (probability)")
    figure.update_yaxes(title_text="|W<sub>O</sub> v| of position 0 over the others'", type="log")
    return figure


def residual(every: Sequence[Measured]) -> go.Figure:
    """Norm of the first state over the mean of the others, level by level."""
    figure = base("paper", height=360)
    for measured, colour in zip(every, COLOURS, strict=False):
        for model, dash in ((TRAINED, "solid"), (UNTRAINED, "dot")):
            table = measured.tables["residual"].query("model == @model")
            name = f"{html.escape(measured.name)}, {model}"
            figure.add_trace(
                go.Scatter(
                    x=table["stream"], y=table["ratio"], mode="lines+markers", name=name,
                    text=table["level"], line={"color": colour, "width": 1.8, "dash": dash},
                    hovertemplate="%{text}: %{y:.2f}" + f"<extra>{name}</extra>",
                )
            )  # fmt: skip
    figure.add_hline(y=1, line={"color": INK, "width": 1})
    figure.update_layout(showlegend=True, margin_t=60)
    figure.update_xaxes(title_text="level of the residual stream (0: embedding)", dtick=1)
    figure.update_yaxes(title_text="norm of the first token over the others'", rangemode="tozero")
    return figure


def changes(measured: Measured) -> go.Figure:
    """What every change of the model costs, trained and untrained, smallest last."""
    table = measured.tables["effects"]
    unit = table["unit"].iloc[0]
    mean = table.groupby(["edit", "model"], sort=False)["change"].agg(["mean", "sem"]).reset_index()
    order = mean.query("model == @TRAINED").sort_values(by="mean")["edit"].to_list()
    figure = base("paper", height=120 + 26 * len(order))
    for model, colour, symbol in ((TRAINED, BLUE, "circle"), (UNTRAINED, GREY, "circle-open")):
        part = mean[mean["model"] == model].set_index("edit").reindex(order).dropna()
        figure.add_trace(
            go.Scatter(
                x=part["mean"].clip(lower=_FLOOR), y=part.index, mode="markers", name=model,
                marker={"color": colour, "size": 9, "symbol": symbol},
                customdata=np.stack([part["mean"], part["sem"]], axis=1),
                hovertemplate="<b>%{y}</b> %{customdata[0]:.4f} ± %{customdata[1]:.4f} (s.e.m.) "
                f"{unit}<extra>{model}</extra>",
            )
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=40)
    figure.update_xaxes(
        title_text=f"change ({unit}, log scale; {_FLOOR:g} and less on the left edge)",
        type="log",
        tickformat="~g",
    )
    return figure


def levels(measured: Measured) -> go.Figure:
    """Heat map of the levels of the secondary sinks: where they begin, how long they live."""
    table = measured.tables["secondary"]
    counted = sink_levels(table.query("model == @TRAINED and label_relative == 'secondary'"))
    grid = counted.pivot(index="l_start", columns="lifetime", values="n")
    figure = base("paper", height=360)
    figure.add_trace(
        go.Heatmap(
            z=np.log1p(grid),
            x=grid.columns,
            y=grid.index,
            customdata=grid,
            colorscale=SCALE,
            hovertemplate="from layer %{y}, %{x} layers: %{customdata} sinks<extra></extra>",
            colorbar={"title": {"text": "ln(1 + sinks)", "side": "right"}, "thickness": 12},
        )
    )
    figure.update_xaxes(title_text="lifetime (layers)", dtick=1)
    figure.update_yaxes(title_text="first layer", dtick=1)
    return figure


def rows(table: pd.DataFrame, widths: Sequence[int]) -> go.Figure:
    """A table as a figure, for values that belong beside the others."""
    figure = base("paper", height=80 + 46 * len(table))
    cells = [[html.escape(str(v)) for v in table[name]] for name in table.columns]
    figure.add_trace(
        go.Table(
            columnwidth=list(widths),
            header={"values": [f"<b>{name}</b>" for name in table.columns], "align": "left",
                    "fill_color": "#f5f7f9", "font": {"size": 12}},
            cells={"values": cells, "align": "left", "fill_color": "#ffffff",
                   "font": {"size": 12}, "height": 22},
        )
    )  # fmt: skip
    return figure
