"""Figures of the gradient-descent study: evidence in (`workbench.zoo.descent.laws`), figure out.

Every run is a line of its own; nothing is averaged over seeds.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.app.figures import base
from workbench.studies.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LOG_STEPS,
    ORANGE,
    PALE,
    PURPLE,
    RED,
    STEP,
    grid,
    line,
    name_of,
)
from workbench.zoo.descent import construction, laws
from workbench.zoo.descent import learners as simple
from workbench.zoo.descent.laws import Evidence
from workbench.zoo.descent.recipe import CAUSAL, LINEAR, ONE, TWO
from workbench.zoo.descent.task import Uniform

KINDS = {
    LINEAR: ("linear attention", BLUE),
    ONE: ("one head of softmax", RED),
    TWO: ("two heads of softmax", ORANGE),
}
LEARNERS = {
    "zero": GREY, "averaging": PURPLE, "3-NN": ORANGE, "one step of GD": RED,
    "least squares": INK, "ridge": GREEN, "Lasso": BLUE,
}  # fmt: skip
DIVERGING = [[0.0, RED], [0.5, "#ffffff"], [1.0, BLUE]]


def training(evidence: Evidence) -> go.Figure:
    """Loss, distance and cosine over the steps of training."""
    figure = grid(1, 3, ["loss", "distance to one step", "cosine of sensitivities"],
                  360, horizontal_spacing=0.07)  # fmt: skip
    seen: set[str] = set()
    for setting, (words, colour) in KINDS.items():
        for run in evidence.of(setting):
            part = run.sel(step=run["step"] > 0)
            share = part["loss_over"].sel(predictor="zero")
            for col, values in enumerate((share, part["to_gd"], part["cosine"]), 1):
                figure.add_trace(
                    line(part["step"].to_numpy(), values.to_numpy(), words, colour,
                         legend=words not in seen, hover=name_of(run)), 1, col,
                )  # fmt: skip
                seen.add(words)
    run = evidence.of(LINEAR)[0]
    best = float(run["by_range_baseline"].sel(predictor="GD, best step", half=Uniform().half))
    figure.add_shape(
        type="line", x0=0, x1=1, xref="x domain", y0=best, y1=best,
        line={"color": INK, "width": 1, "dash": "dot"},
    )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=70, legend_y=1.2)
    figure.update_xaxes(**{**LOG_STEPS, "tickvals": [10, 100, 1000]})
    figure.update_xaxes(title_text=STEP, row=1, col=2)
    figure.update_yaxes(title_text="share", range=[0.35, 1.1], row=1, col=1)
    figure.update_yaxes(title_text="share, log scale", type="log", exponentformat="power",
                        row=1, col=2)  # fmt: skip
    figure.update_yaxes(title_text="cosine", range=[-0.15, 1.05], row=1, col=3)
    return figure


def circuits(evidence: Evidence) -> go.Figure:
    """KQ and OV of a solved run of linear attention."""
    run = evidence.solved(LINEAR)[0].isel(step=-1, head=0)
    kq, ov = run["kq"].to_numpy(), run["ov"].to_numpy()
    names = [str(name) for name in run["coordinate"].to_numpy()]
    figure = grid(1, 2, ["KQ: key by query coordinate", "OV of the label"], 400,
                  column_widths=[0.75, 0.25], horizontal_spacing=0.12)  # fmt: skip
    panels = ((kq, names[:-1], "logits"), (ov[:, None], ["OV"], "1"))
    for col, (values, columns, unit) in enumerate(panels, 1):
        size = float(np.abs(values).max())
        figure.add_trace(
            go.Heatmap(
                z=values, x=columns, y=names, colorscale=DIVERGING, zmin=-size, zmax=size,
                showscale=False,
                hovertemplate=f"<b>%{{y}}</b>, %{{x}}: %{{z:.3f}} {unit}<extra></extra>",
            ),
            1, col,
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title_text="coordinate of the key", row=1, col=1)
    figure.update_xaxes(title_text="coordinate of the query", row=1, col=1)
    figure.update_xaxes(title_text="written", row=1, col=2)
    return figure


def steps(evidence: Evidence) -> go.Figure:
    """Loss by the length of one step, and by the number of layers."""
    task = Uniform()
    prompts = task.prompts(4000, 6)
    zero, best = construction.zero_loss(task), construction.best_step(task)
    figure = grid(1, 2, ["one step", "layers of the construction"], 360, horizontal_spacing=0.1)
    fine = np.linspace(0.0, 2.0 * best, 60)
    exact = np.array([construction.step_loss(task, step) / zero for step in fine])
    figure.add_trace(line(fine, exact, "closed form", INK), 1, 1)
    some = fine[::6]
    sampled = [construction.loss(construction.descend(prompts, s, 1), prompts) / zero for s in some]
    figure.add_trace(_points(some, np.array(sampled), "sampled", BLUE), 1, 1)
    figure.add_shape(
        type="line", x0=best, x1=best, y0=0, y1=1, yref="y domain",
        line={"color": INK, "width": 1, "dash": "dot"},
    )  # fmt: skip
    table = evidence.depths
    curves = (
        ("loss", "best step for that many", BLUE),
        ("same_step", "best step for one", ORANGE),
        ("at_once", "one layer, as far at once", RED),
    )
    for column, words, colour in curves:
        drawn = line(table["layers"].to_numpy(), table[column].to_numpy(), words, colour)
        figure.add_trace(drawn.update(mode="lines+markers"), 1, 2)
    figure.update_layout(showlegend=True, margin_t=70, legend_y=1.2)
    figure.update_xaxes(title_text="step on the sum of examples", row=1, col=1)
    figure.update_xaxes(title_text="layers", row=1, col=2, tickvals=list(laws.DEPTHS))
    figure.update_yaxes(title_text="loss (share of zero's)", row=1, col=1)
    figure.update_yaxes(range=[0.0, 1.2], row=1, col=2)
    return figure


def ranges(evidence: Evidence) -> go.Figure:
    """Loss by the range of the coordinates, at the end of training."""
    figure = base("paper", height=400)
    seen: set[str] = set()
    for setting, (words, colour) in KINDS.items():
        for run in evidence.solved(setting) or evidence.of(setting):
            values = run["by_range"].isel(step=-1)
            figure.add_trace(
                line(values["half"].to_numpy(), values.to_numpy(), words, colour,
                     legend=words not in seen, hover=name_of(run))
            )  # fmt: skip
            seen.add(words)
    known = evidence.of(LINEAR)[0]["by_range_baseline"]
    for name, colour, dash in (
        ("GD, step of training", INK, "dot"), ("GD, best step", GREEN, "dash"),
    ):  # fmt: skip
        values = known.sel(predictor=name)
        figure.add_trace(line(values["half"].to_numpy(), values.to_numpy(), name, colour, dash))
    figure.add_vline(x=Uniform().half, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.update_layout(showlegend=True, margin_t=70)
    figure.update_xaxes(title_text="coordinates between −a and a (trained at .5): a")
    figure.update_yaxes(type="log", title_text="loss (share of zero's), log scale",
                        tickvals=[0.5, 1, 2, 5, 10, 20, 50, 100])  # fmt: skip
    return figure


def learners(evidence: Evidence) -> go.Figure:
    """Errors of the simple learners with their closed forms, without and with noise."""
    figure = grid(1, 2, ["without noise", "noise of variance .25"], 400, horizontal_spacing=0.08)
    seen: set[str] = set()
    for col, errors in enumerate((evidence.plain, evidence.noisy), 1):
        examples = errors["examples"].to_numpy()
        for name in errors["learner"].to_numpy():
            words, values = str(name), errors.sel(learner=name).to_numpy()
            drawn = _points(examples, values, words, LEARNERS[words], legend=words not in seen)
            if col == 2 or words in ("3-NN", "zero"):
                drawn.update(mode="lines+markers", line={"width": 1, "color": LEARNERS[words]})
            figure.add_trace(drawn, 1, col)
            seen.add(words)
    fine, d = range(1, 61), laws.D
    for name, values in (
        ("least squares", [simple.least_squares_error(d, n) for n in fine]),
        ("averaging", [simple.averaging_error(d, n) for n in fine]),
        ("one step of GD", [(d + 1) / (n + d + 1) for n in fine]),
    ):
        drawn = line(np.array(fine), np.array(values), name, LEARNERS[name], legend=False,
                     hover=f"{name}, closed form")  # fmt: skip
        figure.add_trace(drawn, 1, 1)
    figure.update_layout(showlegend=True, margin_t=80, legend_y=1.22)
    figure.update_xaxes(title_text="examples n (d = 20)")
    figure.update_yaxes(range=[-0.05, 2.6])
    figure.update_yaxes(title_text="squared error (labels of variance one)", row=1, col=1)
    return figure


def lasso(evidence: Evidence) -> go.Figure:
    """The Lasso beside least squares."""
    figure = grid(1, 2, ["three coordinates matter", "all twenty matter"], 320,
                  shared_yaxes=True, horizontal_spacing=0.05)  # fmt: skip
    for col, errors in enumerate((evidence.sparse, evidence.dense), 1):
        for name in ("Lasso", "least squares"):
            values = errors.sel(learner=name).to_numpy()
            drawn = line(errors["examples"].to_numpy(), values, name, LEARNERS[name],
                         legend=col == 1)  # fmt: skip
            figure.add_trace(drawn.update(mode="lines+markers"), 1, col)
    figure.update_layout(showlegend=True, margin_t=70, legend_y=1.2)
    figure.update_xaxes(title_text="examples n (d = 20)", tickvals=list(laws.SPARSE_LENGTHS))
    figure.update_yaxes(title_text="squared error", row=1, col=1)
    return figure


def causal(evidence: Evidence) -> go.Figure:
    """Error of the transformers by the number of examples."""
    figure = base("paper", height=420)
    runs = evidence.of(CAUSAL)
    known: xr.DataArray = runs[0]["by_examples_baseline"]
    for name in known["predictor"].to_numpy():
        values = known.sel(predictor=name)
        figure.add_trace(
            line(values["examples"].to_numpy(), values.to_numpy(), str(name), LEARNERS[str(name)],
                 "dot")
        )  # fmt: skip
    found = runs[0]["by_examples"]
    for step in (100, 400, 1000):
        values = found.sel(step=step)
        figure.add_trace(
            line(values["examples"].to_numpy(), values.to_numpy(), f"transformer, step {step}",
                 PALE)
        )  # fmt: skip
    for i, run in enumerate(runs):
        values = run["by_examples"].isel(step=-1)
        figure.add_trace(
            line(values["examples"].to_numpy(), values.to_numpy(), "transformer, trained", BLUE,
                 legend=i == 0, hover=name_of(run))
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=90)
    figure.update_xaxes(title_text="examples (d = 3)", dtick=1)
    figure.update_yaxes(title_text="squared error (labels of variance one)", range=[-0.05, 1.6])
    return figure


def _points(
    x: np.ndarray, y: np.ndarray, name: str, colour: str, *, legend: bool = True
) -> go.Scatter:
    """Simulated values."""
    return go.Scatter(
        x=x, y=y, mode="markers", name=name, legendgroup=name, showlegend=legend,
        marker={"color": colour, "size": 7},
        hovertemplate=f"<b>{name}</b>, simulated<br>%{{x:,.4~g}}: %{{y:.4~g}}<extra></extra>",
    )  # fmt: skip
