"""Figures as pure functions: values in, `go.Figure` out; axes with units, hover with names.

Colours follow the field: one blue hue for probabilities, white (or the dark panel) for zero; a
diverging scale with words for signed values.  `THEMES` holds the two screens and the paper of
exported figures.
"""

from __future__ import annotations

import html
import textwrap
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.app.readings import Metric, number, with_spread

# plotly.js 7 offers by default to upload a figure to somebody's cloud.
CONFIG = {
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "displaylogo": False,
    "displayModeBar": "hover",
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    "toImageButtonOptions": {"format": "svg", "scale": 2},
}
# More SVG markers make the page heavy, and Plotly's WebGL compiles code from text, which the pages'
# Content-Security-Policy forbids.
MOST_POINTS = 2000


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance; the style sheet has the same names."""

    ink: str
    faint: str
    line: str
    panel: str
    blue: str
    pale: str
    orange: str
    grey: str
    void: str
    ramp: tuple[str, ...]
    diverge: tuple[str, ...]


THEMES = {
    "light": Theme(
        "#1b2430", "#5d6b7a", "#e3e8ee", "#ffffff", "#1f6fb2", "#a9cbe8", "#d9730d", "#8793a1",
        "#eef0f3", ("#ffffff", "#dceaf7", "#9cc6e8", "#4292c6", "#1361a9", "#08306b"),
        ("#a31621", "#e58a7b", "#ffffff", "#7fb2dc", "#12559c"),
    ),
    "dark": Theme(
        "#e6ebf1", "#9aa7b5", "#2b343f", "#161c24", "#5aaae8", "#2f5f8a", "#f39a45", "#77838f",
        "#10151b", ("#1b222c", "#17395c", "#1d5f97", "#3f93d1", "#86c4f2", "#e4f4ff"),
        ("#ff8a7a", "#8f3a35", "#1b222c", "#1d5f97", "#86c4f2"),
    ),
}  # fmt: skip
THEMES["paper"] = THEMES["light"]


def palette(theme: str) -> Theme:
    """The colours of an appearance; those of the light one for a name that is none."""
    return THEMES.get(theme, THEMES["light"])


def base(theme: str, *, height: int | None = None) -> go.Figure:
    """An empty figure in the house style."""
    t = palette(theme)
    axis = {
        "gridcolor": t.line,
        "linecolor": t.line,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": t.line,
        "title": {"font": {"size": 12, "color": t.faint}, "standoff": 8},
        "tickfont": {"size": 11, "color": t.faint},
        "automargin": True,
    }
    return go.Figure(
        layout={
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {
                "family": "Inter, system-ui, 'Helvetica Neue', Arial, sans-serif",
                "color": t.ink,
            },
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "height": height,
            "hovermode": "closest",
            "hoverlabel": {
                "bgcolor": t.panel,
                "bordercolor": t.faint,
                "font": {"color": t.ink, "size": 12},
                "align": "left",
            },
            "legend": {
                "orientation": "h",
                "x": 1,
                "xanchor": "right",
                "y": 1.02,
                "yanchor": "bottom",
                "font": {"size": 11, "color": t.faint},
                "bgcolor": "rgba(0,0,0,0)",
            },
            "showlegend": False,
        }
    )


def empty(theme: str, sentence: str) -> go.Figure:
    """A figure that says why there is nothing to draw."""
    figure = base(theme)
    lines = "<br>".join(html.escape(line) for line in textwrap.wrap(sentence, 44))
    figure.add_annotation(
        text=lines, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False,
        font={"size": 12, "color": palette(theme).faint},
    )  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def axis_title(metric: Metric) -> str:
    """`prev_token_score (probability)`."""
    return f"{metric.name} ({metric.units})" if metric.units else metric.name


def scatter(x: Metric, y: Metric, selected: str = "", theme: str = "light") -> go.Figure:
    """Every head as a point (`customdata`: its label); the selected one is ringed."""
    t = palette(theme)
    columns = {"x": x.table["value"], "x_sd": x.table["sd"], "y": y.table["value"]}
    both = pd.DataFrame({**columns, "y_sd": y.table["sd"]}).dropna(subset=["x", "y"])
    every = len(both)
    both = _most_telling(both, selected, (x.low_tells, y.low_tells))
    hover = [
        f"<b>{label}</b><br>{x.name} {with_spread(a, a_sd)}<br>{y.name} {with_spread(b, b_sd)}"
        for label, (a, a_sd, b, b_sd) in zip(both.index, both.to_numpy(), strict=True)
    ]
    figure = base(theme)
    figure.add_trace(
        go.Scatter(
            x=both["x"],
            y=both["y"],
            mode="markers",
            customdata=list(both.index),
            text=hover,
            hovertemplate="%{text}<extra></extra>",
            marker={
                "size": 8 if every <= 1000 else 5,
                "color": t.blue,
                "opacity": 0.62,
                "line": {"width": 0},
            },
        )
    )
    if selected in both.index:
        at = both.index.get_loc(selected)
        figure.add_trace(
            go.Scatter(
                x=[both["x"].iloc[at]],
                y=[both["y"].iloc[at]],
                mode="markers+text",
                text=[f"<b>{selected}</b>"],
                textposition="top center",
                textfont={"size": 12, "color": t.ink},
                cliponaxis=False,
                hoverinfo="skip",
                marker={
                    "size": 15,
                    "color": "rgba(0,0,0,0)",
                    "line": {"color": t.orange, "width": 2.5},
                },
            )
        )
    if len(both) < every:
        figure.update_layout(margin_t=26)
        note = f"{len(both):,} of {every:,} heads: the most telling on either axis"
        figure.add_annotation(
            text=note, x=1, y=1.02, xref="paper", yref="paper", xanchor="right", yanchor="bottom",
            showarrow=False, font={"size": 11, "color": t.faint},
        )  # fmt: skip
    figure.update_xaxes(title_text=axis_title(x))
    figure.update_yaxes(title_text=axis_title(y))
    return figure


def _most_telling(both: pd.DataFrame, selected: str, low: tuple[bool, bool]) -> pd.DataFrame:
    """At most `MOST_POINTS` heads: the highest on either axis (`low`: the lowest), the selected."""
    if len(both) <= MOST_POINTS:
        return both
    ranks = np.minimum(
        *(
            (both[c].to_numpy() * (1 if lowest else -1)).argsort().argsort()
            for c, lowest in zip(("x", "y"), low, strict=True)
        )
    )
    return both.loc[(ranks < MOST_POINTS // 2 - 1) | (both.index == selected)]


def distance(bins: pd.DataFrame, causal: bool, theme: str = "light") -> go.Figure:
    """How far a head looks: share of attention by distance, beside a head that spreads evenly."""
    t = palette(theme)
    names = [
        f"{low:,}" if low == high else f"{low:,}–{high:,}"
        for low, high in zip(bins["low"], bins["high"], strict=True)
    ]
    # Category names such as "1" would be read as numbers without the axis type below.
    figure = base(theme)
    sides = [("back", "looks back" if not causal else "attention", t.blue)]
    if not causal:
        sides.append(("ahead", "looks ahead", t.pale))
    for column, name, colour in sides:
        figure.add_trace(
            go.Bar(
                x=names,
                y=bins[column],
                name=name,
                marker={"color": colour, "line": {"width": 0}},
                customdata=[[n, number(v)] for n, v in zip(names, bins[column], strict=True)],
                hovertemplate="%{customdata[0]} tokens: %{customdata[1]} of all attention"
                f"<extra>{name}</extra>",
            )
        )
    # Ahead the uniform share is the same but for distance 0: one line says both.
    figure.add_trace(
        go.Scatter(
            x=names,
            y=bins["uniform_back"],
            name="uniform",
            mode="lines",
            line={"color": t.orange, "width": 1.5, "dash": "dot", "shape": "hvh"},
            hovertemplate="uniform attention would give %{y:.3f}<extra></extra>",
        )
    )
    figure.update_layout(showlegend=True, bargap=0.15, bargroupgap=0.05)
    figure.update_xaxes(tickangle=-40)
    figure.update_xaxes(title_text="distance |query − key| (tokens; bins widen)", type="category")
    figure.update_yaxes(title_text="share of attention", rangemode="tozero", tickformat=".2~f")
    return figure


def profile(
    here: np.ndarray,
    everywhere: np.ndarray | None,
    tokens: list[str],
    uniform: np.ndarray,
    theme: str = "light",
) -> go.Figure:
    """Attention each position receives (mean over the queries that see it), on a log axis.

    `here` is this prompt, `everywhere` the mean over the prompts of the run at the same position.
    """
    t = palette(theme)
    figure = base(theme)
    positions = np.arange(len(here))
    # A log axis has no zero; what rounds below this is drawn on the floor.
    floor = 1e-5
    if everywhere is not None and np.isfinite(everywhere).any():
        figure.add_trace(
            go.Scatter(
                x=positions,
                y=np.maximum(everywhere[: len(here)], floor),
                name="run mean",
                mode="lines",
                line={"color": t.grey, "width": 1.2},
                hovertemplate="position %{x}: %{y:.2~g} over prompts<extra></extra>",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=positions,
            y=np.maximum(uniform, floor),
            name="uniform",
            mode="lines",
            line={"color": t.orange, "width": 1.5, "dash": "dot"},
            hoverinfo="skip",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=positions,
            y=np.maximum(here, floor),
            name="prompt",
            mode="lines+markers" if len(here) <= 96 else "lines",
            line={"color": t.blue, "width": 1.5},
            marker={"size": 4.5},
            text=[f"{i} {html.escape(tok)}" for i, tok in enumerate(tokens[: len(here)])],
            hovertemplate="%{text}: %{y:.2~g}<extra></extra>",
        )
    )
    _name_peaks(figure, here, tokens, floor, t)
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title_text="key position (tokens)")
    figure.update_yaxes(
        title_text="attention received (probability)",
        type="log",
        tickvals=[1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1],
        ticktext=["10<sup>−5</sup>", ".0001", ".001", ".01", ".1", "1"],
    )
    return figure


def _name_peaks(
    figure: go.Figure, here: np.ndarray, tokens: list[str], floor: float, t: Theme
) -> None:
    for i in peaks(here):
        figure.add_annotation(
            x=i,
            y=float(np.log10(max(here[i], floor))),
            text=f"{i} {html.escape(tokens[i][:12])}",
            showarrow=False,
            yshift=11,
            xanchor="left" if i < len(here) * 0.8 else "right",
            font={"size": 11, "color": t.ink},
        )


def peaks(values: np.ndarray, count: int = 3) -> list[int]:
    """Positions worth a name: the largest values that stand at least threefold above the median."""
    found = np.nan_to_num(values)
    usual = float(np.median(found)) if len(found) else 0.0
    chosen: list[int] = []
    for i in np.argsort(-found, kind="stable"):
        # Names of neighbours would lie on top of each other.
        near = any(abs(int(i) - j) < len(found) / 6 for j in chosen)
        if found[i] >= 3 * usual and found[i] > 0 and not near:
            chosen.append(int(i))
        if len(chosen) == count:
            break
    return chosen
