"""Figures of the random-features study: tables (`workbench.zoo.features`) in, figure out."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from workbench.app.figures import base
from workbench.studies.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, grid
from workbench.zoo.features.laws import Evidence
from workbench.zoo.features.measure import (
    ATTENTION,
    BIASED,
    LIMIT,
    MLP,
    MLP_LIMIT,
    MODELS,
    SHIFTED,
)
from workbench.zoo.features.recipe import SMALL, WIDE
from workbench.zoo.features.task import TARGETS

INPUTS = "training inputs (log scale)"
STYLE = {
    ATTENTION: (BLUE, "solid"), LIMIT: (BLUE, "dot"), BIASED: (PURPLE, "solid"),
    SHIFTED: (GREEN, "solid"), MLP: (ORANGE, "solid"), MLP_LIMIT: (ORANGE, "dot"),
}  # fmt: skip
_COLS = 3


def _panels(height: int) -> go.Figure:
    """A panel per function."""
    rows = -(-len(TARGETS) // _COLS)
    return grid(
        rows, _COLS, [target.name for target in TARGETS], height, shared_yaxes=True,
        horizontal_spacing=0.03, vertical_spacing=0.14,
    )  # fmt: skip


def _finish(figure: go.Figure, counts: list[int]) -> go.Figure:
    figure.update_layout(
        showlegend=True, margin_t=90, legend_y=1.12, legend_x=0, legend_xanchor="left"
    )
    figure.update_xaxes(type="log", tickvals=counts)
    # The lowest panel of each column names the axis.
    for i in range(max(0, len(TARGETS) - _COLS), len(TARGETS)):
        figure.update_xaxes(title_text=INPUTS, row=i // _COLS + 1, col=i % _COLS + 1)
    return figure


def _add(figure: go.Figure, i: int, trace: go.Scatter) -> None:
    """Add a trace to the panel of the i-th function."""
    figure.add_trace(trace, row=i // _COLS + 1, col=i % _COLS + 1)


def errors_wide(evidence: Evidence) -> go.Figure:
    """Every model on every function of the wide setting."""
    return _errors(evidence, WIDE)


def errors_small(evidence: Evidence) -> go.Figure:
    """The same in the small setting."""
    return _errors(evidence, SMALL)


def _errors(evidence: Evidence, setting: str) -> go.Figure:
    """Mean error over seeds with its range, by number of inputs."""
    table = evidence["errors"]
    table = table.query(f"setting == {setting!r}")
    spread = table.groupby(["model", "target", "n"])["error"].agg(["mean", "min", "max"])
    figure = _panels(560)
    for i, target in enumerate(TARGETS):
        for model, (colour, dash) in STYLE.items():
            rows = spread.loc[(model, target.name)].sort_index()
            high, low = rows["max"] - rows["mean"], rows["mean"] - rows["min"]
            _add(
                figure, i,
                go.Scatter(
                    x=rows.index, y=rows["mean"], mode="lines+markers", name=model,
                    legendgroup=model, showlegend=i == 0,
                    line={"color": colour, "width": 1.8, "dash": dash}, marker={"size": 4},
                    error_y={"type": "data", "symmetric": False, "array": high, "arrayminus": low,
                             "color": colour, "thickness": 1, "width": 2},
                    hovertemplate=f"<b>{model}</b><br>%{{x}} inputs: %{{y:.3f}}<extra></extra>",
                ),
            )  # fmt: skip
    figure.update_yaxes(range=[-0.04, 1.3])
    figure.update_yaxes(title_text="test error / variance", col=1)
    return _finish(figure, sorted(set(table["n"])))


def bias(evidence: Evidence) -> go.Figure:
    """Error of both kinds of bias over that of unbiased heads."""
    table = evidence["errors"]
    table = table.query("setting == @WIDE")
    wide = table.pivot_table(index=["target", "seed", "n"], columns="model", values="error")
    figure = _panels(520)
    for i, target in enumerate(TARGETS):
        rows = wide.loc[target.name]
        for model, words in (
            (BIASED, "bias that compares"), (SHIFTED, "bias on the constant"),
        ):  # fmt: skip
            ratios = (rows[model] / rows[ATTENTION]).reset_index(name="ratio")
            _add(
                figure, i,
                go.Scatter(
                    x=ratios["n"], y=ratios["ratio"], mode="markers", name=words,
                    legendgroup=words, showlegend=i == 0, customdata=ratios["seed"],
                    marker={"color": STYLE[model][0], "size": 7, "opacity": 0.75},
                    hovertemplate=f"<b>{words}</b>, seed %{{customdata}}<br>%{{x}} inputs: "
                    "%{y:.3f}<extra></extra>",
                ),
            )  # fmt: skip
    figure.add_hline(y=1.0, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.update_yaxes(type="log", tickvals=[0.01, 0.1, 0.5, 1, 2, 5], range=[-2.2, 1.0])
    figure.update_yaxes(title_text="error over unbiased", col=1)
    return _finish(figure, sorted(set(table["n"])))


def moved(evidence: Evidence) -> go.Figure:
    """How far predictions go when keys change places."""
    table = evidence["moved"]
    figure = base("paper", height=320)
    rng = np.random.default_rng(0)
    for setting, symbol in ((WIDE, "circle"), (SMALL, "diamond")):
        rows = table.query("setting == @setting")
        place = np.array([MODELS.index(m) for m in rows["model"]]) + rng.uniform(
            -0.15, 0.15, len(rows)
        )
        figure.add_trace(
            go.Scatter(
                x=rows["moved"], y=place, mode="markers", name=f"{setting} inputs",
                marker={"symbol": symbol, "size": 8, "opacity": 0.75,
                        "color": [STYLE[model][0] for model in rows["model"]]},
                customdata=rows[["model", "seed"]],
                hovertemplate="<b>%{customdata[0]}</b>, seed %{customdata[1]}<br>%{x:.2e}"
                "<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=70)
    figure.update_xaxes(
        type="log", title_text="change of predictions over their deviation (log scale)",
        exponentformat="power",
    )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(MODELS))), ticktext=list(MODELS), autorange="reversed",
        title_text="model",
    )  # fmt: skip
    return figure
