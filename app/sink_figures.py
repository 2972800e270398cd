"""Figures of the Sinks page, as pure functions: tables of `sink_readings` in, `go.Figure` out."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.app.figures import Theme, axis_title, base, palette
from workbench.app.readings import Metric, number, with_spread
from workbench.spec import Spec

# A cell that is narrower than this has no room for its number.
_NUMBERED_HEADS = 12
# More points than pixels cost time and show nothing; of each group the largest is kept.
_MOST_POINTS = 4000
# A log axis has no zero; what rounds below this is drawn on the floor.
_FLOOR = 1e-5
_NOTHING = 1e-6


def heat(
    metric: Metric, spec: Spec, kind: str, selected: str = "", theme: str = "light"
) -> go.Figure:
    """A value per head as layer x head (`customdata`: label, text); missing layers stay empty."""
    t = palette(theme)
    shape = spec.n_layers(kind), spec.n_heads(kind)
    z = np.full(shape, np.nan)
    about = np.full((*shape, 2), "", dtype=object)
    about[..., 1] = "no attention here"
    for label, layer, head in zip(
        metric.table.index, metric.table["layer"], metric.table["head"], strict=True
    ):
        z[layer, head] = metric.of(str(label)).value
        about[layer, head] = str(label), _said(metric, str(label))
    top = float(np.nanmax(np.abs(z))) if np.isfinite(z).any() else 1.0
    scale = t.diverge if metric.signed else t.ramp
    figure = base(theme)
    figure.add_trace(
        go.Heatmap(
            z=z,
            customdata=about,
            text=[[_short(v) for v in row] for row in z],
            texttemplate="%{text}" if shape[1] <= _NUMBERED_HEADS else None,
            textfont={"size": 11},
            hovertemplate="%{customdata[1]}<extra></extra>",
            hoverongaps=False,
            colorscale=[[i / (len(scale) - 1), c] for i, c in enumerate(scale)],
            zmin=-top if metric.signed else 0,
            zmax=top or 1.0,
            xgap=1,
            ygap=1,
            colorbar=_colorbar(axis_title(metric), t),
        )
    )
    if selected in metric.table.index:
        at = metric.table.loc[selected]
        x, y = float(at["head"]), float(at["layer"])
        figure.add_shape(type="rect", x0=x - 0.5, x1=x + 0.5, y0=y - 0.5, y1=y + 0.5,
                         line={"color": t.orange, "width": 3})  # fmt: skip
    figure.update_layout(plot_bgcolor=t.void)
    figure.update_xaxes(title_text="head", showgrid=False, tickformat="d", nticks=min(shape[1], 16))
    figure.update_yaxes(title_text="layer", showgrid=False, autorange="reversed", tickformat="d",
                        nticks=min(shape[0], 16))  # fmt: skip
    return figure


def _short(value: float) -> str:
    """A number for a cell: nothing for NaN, 0 for rounding."""
    if not np.isfinite(value):
        return ""
    return number(value) if abs(value) > _NOTHING else "0"


def _said(metric: Metric, label: str) -> str:
    found, rank = metric.of(label), metric.rank(label)
    notes = [
        f"n {found.n:,.0f} {metric.counts}" if np.isfinite(found.n) else "",
        f"null {number(found.null)}" if np.isfinite(found.null) else "",
        f"rank {rank[0]} of {rank[1]}" if rank else "no value",
    ]
    value = f"{with_spread(found.value, found.sd)} {metric.units}"
    return f"<b>{label}</b>  {value}<br>" + "<br>".join(filter(None, notes))


def _colorbar(title: str, t: Theme) -> dict:
    return {
        "title": {"text": title, "side": "right", "font": {"size": 11, "color": t.faint}},
        "tickfont": {"size": 11, "color": t.faint},
        "thickness": 10,
        "outlinewidth": 0,
        "ticks": "outside",
        "ticklen": 3,
        "tickcolor": t.line,
    }


def curve(
    table: pd.DataFrame,
    tokens: list[str],
    sinks: Sequence[int],
    *,
    axis: str = "log",
    place: int | None = None,
    theme: str = "light",
) -> go.Figure:
    """Attention received by position (`received` of sink_readings), beside the uniform one.

    `sinks` are marked and named, `place` is ringed; positions whose value is NaN are hidden.
    """
    t = palette(theme)
    figure = base(theme)
    shown = _thinned(table)
    names = [f"{i} {html.escape(tokens[i])}" for i in shown["position"]]
    hover = [
        f"<b>{name}</b><br>{number(a)}, uniform {number(b)}<br>seen by {n:,} queries"
        for name, a, b, n in zip(
            names, shown["received"], shown["uniform"], shown["queries"], strict=True
        )
    ]
    figure.add_trace(
        go.Scatter(x=shown["position"], y=shown["uniform"], name="uniform", mode="lines",
                   line={"color": t.orange, "width": 1.5, "dash": "dot"}, hoverinfo="skip")
    )  # fmt: skip
    few = shown["few"].to_numpy()
    for which, name, colour in (
        (~few, "received", t.blue),
        (few, "seen by fewer than 8 queries", t.grey),
    ):
        if which.any():
            figure.add_trace(
                go.Scatter(
                    x=shown["position"],
                    y=_floored(np.where(which, shown["received"], np.nan), axis),
                    name=name,
                    mode="lines+markers" if len(shown) <= 96 else "lines",
                    line={"color": colour, "width": 1.5},
                    marker={"size": 4.5},
                    customdata=shown["position"],
                    text=hover,
                    hovertemplate="%{text}<extra></extra>",
                )
            )
    _mark_sinks(figure, table, tokens, sinks, place, axis, t)
    figure.update_layout(showlegend=True)
    figure.update_xaxes(
        title_text="key position (tokens)", range=[-0.03 * len(table), 1.02 * len(table)]
    )
    received_axis(figure, axis)
    return figure


def _thinned(table: pd.DataFrame) -> pd.DataFrame:
    step = -(-len(table) // _MOST_POINTS)
    if step <= 1:
        return table
    groups = table["received"].fillna(-1).groupby(np.arange(len(table)) // step)
    return table.loc[groups.idxmax()]


def _floored(values: np.ndarray, axis: str) -> np.ndarray:
    return np.maximum(values, _FLOOR) if axis == "log" else values


def _mark_sinks(
    figure: go.Figure,
    table: pd.DataFrame,
    tokens: list[str],
    sinks: Sequence[int],
    place: int | None,
    axis: str,
    t: Theme,
) -> None:
    received = table["received"].to_numpy()
    ringed = [] if place is None else [place]
    for which, name, marker in (
        (sinks, "sink", {"size": 8, "color": t.orange, "symbol": "diamond"}),
        (ringed, "the sink chosen",
         {"size": 15, "color": "rgba(0,0,0,0)", "line": {"color": t.orange, "width": 2.5}}),
    ):  # fmt: skip
        at = [int(i) for i in which if i < len(received) and np.isfinite(received[i])]
        if not at:
            continue
        # Names of neighbours would lie on top of each other: the largest come first.
        named = _apart(sorted(at, key=lambda i: -received[i]), len(table))
        words = [f"  {i} {html.escape(tokens[i][:12])}  " if i in named else "" for i in at]
        right = [i < 0.85 * len(table) for i in at]
        figure.add_trace(
            go.Scatter(
                x=at,
                y=_floored(received[at], axis),
                name=name,
                mode="markers+text" if name == "sink" else "markers",
                text=words,
                textposition=["middle right" if r else "middle left" for r in right],
                textfont={"size": 11, "color": t.ink},
                cliponaxis=False,
                customdata=at,
                hoverinfo="skip",
                marker=marker,
            )
        )


def _apart(positions: Sequence[int], length: int, count: int = 6) -> list[int]:
    chosen: list[int] = []
    for i in positions:
        if all(abs(i - j) >= length / 8 for j in chosen):
            chosen.append(int(i))
    return chosen[:count]


def received_axis(figure: go.Figure, axis: str) -> None:
    """The y axis of attention received, linear from 0 or logarithmic."""
    title = "attention received (probability)"
    if axis == "log":
        ticks = ["10<sup>−5</sup>", ".0001", ".001", ".01", ".1", "1"]
        figure.update_yaxes(type="log", tickvals=[1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1], ticktext=ticks)
    else:
        figure.update_yaxes(rangemode="tozero", tickformat=".2~f")
    figure.update_layout(yaxis_title_text=title)


def residual(table: pd.DataFrame, name: str, theme: str = "light") -> go.Figure:
    """Norm of the stream by level: the sink, the mean of the others, 90 % of them as a band."""
    t = palette(theme)
    figure = base(theme)
    x = ["emb", *(str(s - 1) for s in table["stream"][1:])]
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure.add_trace(go.Scatter(x=x, y=table["low"], showlegend=False, **edge))
    figure.add_trace(
        go.Scatter(x=x, y=table["high"], fill="tonexty", name="90 % of the others",
                   fillcolor=_clear(t.grey, 0.25), **edge)
    )  # fmt: skip
    _two_lines(figure, x, table, name, t)
    figure.update_xaxes(title_text="after layer (emb: embedding)", type="category", nticks=12)
    figure.update_yaxes(title_text="residual norm (L2)", rangemode="tozero")
    return figure


def values(table: pd.DataFrame, name: str, theme: str = "light") -> go.Figure:
    """Norm of W_O v by layer: the sink beside the mean of the others."""
    t = palette(theme)
    figure = base(theme)
    _two_lines(figure, [str(layer) for layer in table["layer"]], table, name, t)
    figure.update_xaxes(title_text="layer", type="category", nticks=12)
    figure.update_yaxes(title_text="value norm ‖W<sub>O</sub>v‖ (L2)", rangemode="tozero")
    return figure


def _two_lines(figure: go.Figure, x: list[str], table: pd.DataFrame, name: str, t: Theme) -> None:
    for column, said, colour in (("others", "mean of the others", t.grey), ("sink", name, t.blue)):
        figure.add_trace(
            go.Scatter(
                x=x,
                y=table[column],
                name=said,
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"size": 6},
                customdata=[number(v) for v in table[column]],
                hovertemplate=f"{said}, %{{x}}: %{{customdata}}<extra></extra>",
            )
        )
    figure.update_layout(showlegend=True)


def _clear(colour: str, alpha: float) -> str:
    return f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},{alpha})"


def levels(table: pd.DataFrame, n_layers: int, theme: str = "light") -> go.Figure:
    """Secondary sinks by level, from columns l_start, lifetime, n and n_prompts (`sink_levels`)."""
    t = palette(theme)
    figure = base(theme)
    counts = table.pivot(index="lifetime", columns="l_start", values="n")
    wide = counts.reindex(index=range(1, n_layers + 1), columns=range(n_layers))
    prompts = table.pivot(index="lifetime", columns="l_start", values="n_prompts")
    figure.add_trace(
        go.Heatmap(
            z=wide.to_numpy(),
            x=list(wide.columns),
            y=list(wide.index),
            text=[[f"{v:.0f}" if np.isfinite(v) else "" for v in row] for row in wide.to_numpy()],
            texttemplate="%{text}",
            customdata=prompts.reindex(index=wide.index, columns=wide.columns).to_numpy(),
            hovertemplate="from layer %{x}, for %{y} layers: %{z} tokens in %{customdata} prompts"
            "<extra></extra>",
            hoverongaps=False,
            zmin=0,
            zmax=max(table["n"]),
            colorscale=[[i / (len(t.ramp) - 1), c] for i, c in enumerate(t.ramp)],
            xgap=1,
            ygap=1,
            colorbar=_colorbar("tokens", t),
        )
    )
    figure.update_layout(plot_bgcolor=t.void)
    figure.update_xaxes(title_text="first layer (l_start)", showgrid=False, tickformat="d")
    figure.update_yaxes(title_text="lifetime (layers)", showgrid=False, tickformat="d")
    return figure


def by_layer(
    tables: dict[str, pd.DataFrame], theme: str = "light", unit: str = "share"
) -> go.Figure:
    """A share per layer of one run or of two, from columns layer, share and uniform."""
    t = palette(theme)
    figure = base(theme)
    for (name, table), colour in zip(tables.items(), (t.blue, t.orange), strict=False):
        x = [str(int(layer)) for layer in table["layer"]]
        figure.add_trace(
            go.Bar(
                x=x, y=table["share"], name=name, marker={"color": colour},
                customdata=table["uniform"],
                hovertemplate=f"layer %{{x}}: %{{y:.1%}} (uniform %{{customdata:.1%}})"
                f"<extra>{html.escape(name)}</extra>",
            )
        )  # fmt: skip
        if len(tables) == 1:
            figure.add_trace(
                go.Scatter(x=x, y=table["uniform"], name="uniform", mode="lines", hoverinfo="skip",
                           line={"color": t.orange, "width": 1.5, "dash": "dot", "shape": "hvh"})
            )  # fmt: skip
    figure.update_layout(bargap=0.25, bargroupgap=0.05, showlegend=True)
    figure.update_xaxes(title_text="layer", type="category")
    figure.update_yaxes(title_text=unit, tickformat=".0%", rangemode="tozero", nticks=4)
    return figure


def before_after(
    before: pd.DataFrame, after: pd.DataFrame, tokens: list[str], axis: str, theme: str
) -> go.Figure:
    """Attention received by position, before and after a change, side by side on one scale."""
    t = palette(theme)
    empty = base(theme)
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.03,
                           subplot_titles=("before", "after"))  # fmt: skip
    figure.update_layout(empty.layout)
    layout = empty.to_plotly_json()["layout"]
    figure.update_xaxes(**layout["xaxis"])
    figure.update_yaxes(**layout["yaxis"])
    for column, table in enumerate((before, after), 1):
        shown = _thinned(table)
        names = [f"{i} {html.escape(tokens[i])}" for i in shown["position"]]
        figure.add_trace(
            go.Scatter(x=shown["position"], y=shown["uniform"], mode="lines", hoverinfo="skip",
                       line={"color": t.orange, "width": 1.2, "dash": "dot"}),
            1, column,
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=shown["position"], y=_floored(shown["received"].to_numpy(), axis), mode="lines",
                line={"color": t.grey if column == 1 else t.blue, "width": 1.5}, text=names,
                customdata=[number(v) for v in shown["received"]],
                hovertemplate="%{text}: %{customdata}<extra></extra>",
            ),
            1, column,
        )  # fmt: skip
    figure.update_annotations(font={"size": 12, "color": t.faint})
    figure.update_layout(margin={"l": 8, "r": 12, "t": 28, "b": 8})
    figure.update_xaxes(title_text="key position (tokens)")
    received_axis(figure, axis)
    return figure
