"""Figures of the test-time-regression study: evidence in, figure out."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from workbench.app.figures import base
from workbench.studies.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SCALE,
    grid,
    line,
)
from workbench.zoo.testtime import local as fields
from workbench.zoo.testtime.estimators import ESTIMATORS
from workbench.zoo.testtime.injectivity import PAIRS, PATTERNS
from workbench.zoo.testtime.laws import Evidence
from workbench.zoo.testtime.task import KINDS

COLOURS = {"softmax": RED, "linear": GREY, "mesa": ORANGE, "local linear": BLUE}
LEAST = 1e-6  # errors below are exact fits
WORDS = {
    "linear": "linear", "affine": "affine", "piecewise": "piecewise linear",
    "quadratic": "quadratic", "drift": "drift", "unshifted": "unshifted drift",
}  # fmt: skip
# The example in one coordinate: settings that show what each fit is.
EXAMPLE = {"softmax": 0.3, "linear": 1.0, "mesa": 1e-6, "local linear": 0.3}
AVERAGED = 5  # positions of the stream


def fits(_: Evidence) -> go.Figure:
    """Every estimator on one smooth function of one coordinate."""
    rng = np.random.default_rng(3)
    keys = np.sort(rng.uniform(-2.0, 2.0, (40, 1)), axis=0)
    queries = np.linspace(-2.6, 2.6, 131)[:, None]
    values = np.sin(1.8 * keys) + 0.6 * keys
    figure = base("paper", height=400)
    figure.add_trace(
        go.Scatter(
            x=keys[:, 0], y=values[:, 0], mode="markers", name="keys and values",
            marker={"color": INK, "size": 7, "opacity": 0.6},
            hovertemplate="<b>key</b> %{x:.2f}<br>value %{y:.2f}<extra></extra>",
        )
    )  # fmt: skip
    for name, setting in EXAMPLE.items():
        found = ESTIMATORS[name].pattern(keys, queries, setting) @ values
        said = f"{name}, {ESTIMATORS[name].what} {setting:g}"
        figure.add_trace(line(queries[:, 0], found[:, 0], name, COLOURS[name], hover=said))
    figure.update_layout(showlegend=True, margin_t=50)
    figure.update_xaxes(title_text="key or query (its one coordinate)")
    figure.update_yaxes(title_text="value", range=[-3.2, 3.2])
    return figure


def errors(evidence: Evidence) -> go.Figure:
    """Error over the number of keys, by task."""
    figure = grid(2, 3, [WORDS[kind] for kind in KINDS], 520, horizontal_spacing=0.06,
                  vertical_spacing=0.14, shared_xaxes=True)  # fmt: skip
    for i, kind in enumerate(KINDS):
        data = evidence.errors[kind]
        row, col = divmod(i, 3)
        lengths = data["length"].to_numpy()
        for name, colour in COLOURS.items():
            found = np.maximum(data["error"].sel(estimator=name).to_numpy(), LEAST)
            mean = np.maximum(data["error"].sel(estimator=name).mean("seed").to_numpy(), LEAST)
            figure.add_trace(line(lengths, mean, name, colour, legend=i == 0), row + 1, col + 1)
            chosen = np.repeat(data["setting"].sel(estimator=name).to_numpy(), found.shape[1])
            figure.add_trace(
                go.Scatter(
                    x=np.repeat(lengths, found.shape[1]), y=found.ravel(), mode="markers",
                    name=name, legendgroup=name, showlegend=False, customdata=chosen,
                    marker={"color": colour, "size": 5, "opacity": 0.5},
                    hovertemplate=f"<b>{name}</b>, %{{x}} keys<br>error %{{y:.3g}}"
                    f"<br>{ESTIMATORS[name].what} %{{customdata:.2g}}<extra></extra>",
                ),
                row + 1, col + 1,
            )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=70, legend_y=1.14)
    figure.update_xaxes(type="log", tickvals=list(evidence.errors["linear"]["length"].to_numpy()))
    figure.update_xaxes(title_text="keys", row=2)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(range=[-2.3, 0.4])
    figure.update_yaxes(range=[-6.3, 0.3], row=1, col=1)
    figure.update_yaxes(range=[-6.3, 0.3], row=1, col=2)
    figure.update_yaxes(title_text="error (share)", col=1)
    return figure


def stream(evidence: Evidence) -> go.Figure:
    """Error along the sequence, means over a few positions."""
    data = (
        evidence.streams["drift"]["error"]
        .mean("seed")
        .coarsen(position=AVERAGED, boundary="trim")
        .mean()
    )
    position = data["position"].to_numpy()
    figure = base("paper", height=380)
    for name, colour in COLOURS.items():
        values = np.maximum(data.sel(estimator=name).to_numpy(), 1e-4)
        figure.add_trace(line(position, values, name, colour))
    last = int(evidence.streams["drift"]["position"][-1]) + 1
    for change in range(1, 4):
        figure.add_vline(x=change * last / 4, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.update_layout(showlegend=True, margin_t=50)
    figure.update_xaxes(title_text="position in the sequence (keys seen)")
    figure.update_yaxes(title_text="error (share; below 10⁻⁴ drawn there)", type="log",
                        exponentformat="power", dtick=1)  # fmt: skip
    return figure


def pairs(evidence: Evidence) -> go.Figure:
    """Distances of weights by pattern and kind of pair."""
    means = np.array(
        [[evidence.apart(pattern, pair).mean() for pair in PAIRS] for pattern in PATTERNS]
    )
    said = [["0" if value < 1e-9 else f"{value:.3g}" for value in row] for row in means]
    figure = base("paper", height=320)
    figure.add_trace(
        go.Heatmap(
            x=list(PAIRS), y=list(PATTERNS), z=np.log10(np.maximum(means, 1e-3)), text=said,
            texttemplate="%{text}", colorscale=SCALE, zmin=-3, zmax=1.5,
            colorbar={"title": "log₁₀", "thickness": 10}, xgap=2, ygap=2,
            hovertemplate="<b>%{y}</b><br>%{x}: L1 distance %{text}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", title_text="pattern")
    figure.update_xaxes(title_text="two queries")
    return figure


def local(evidence: Evidence) -> go.Figure:
    """Local mass, and errors with tokens hidden."""
    figure = grid(1, 2, ["weight on the 3 × 3", "error of the field"], 340, horizontal_spacing=0.12)
    panels = (
        (("local_mass", "in place", BLUE), ("shuffled", "tokens shuffled", GREY)),
        (("error", "all tokens seen", GREEN), ("error_hidden", "3 × 3 hidden", RED),
         ("error_random", "nine others hidden", PURPLE)),
    )  # fmt: skip
    names = list(dict.fromkeys(evidence.local["pattern"]))
    for col, columns in enumerate(panels, 1):
        for column, words, colour in columns:
            values = [evidence.nearby(name)[column] for name in names]
            figure.add_trace(
                go.Bar(
                    x=names, y=[v.mean() for v in values], name=words, marker_color=colour,
                    error_y={"array": [v.max() - v.mean() for v in values], "symmetric": False,
                             "arrayminus": [v.mean() - v.min() for v in values], "thickness": 1},
                    hovertemplate=f"<b>%{{x}}</b>, {words}: %{{y:.3f}}<extra></extra>",
                ),
                1, col,
            )  # fmt: skip
    figure.add_shape(
        type="line", x0=0, x1=1, xref="x domain", y0=9 / fields.SIDE**2, y1=9 / fields.SIDE**2,
        line={"color": INK, "width": 1, "dash": "dot"},
    )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=70, legend_y=1.2, barmode="group")
    figure.update_xaxes(title_text="attention")
    figure.update_yaxes(title_text="share", row=1, col=1)
    figure.update_yaxes(title_text="share of the field's variance", row=1, col=2)
    return figure
