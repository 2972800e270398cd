"""Figures of the induction study: evidence in (`workbench.zoo.induction.laws`), figure out.

Every run is a line or a point of its own; nothing is averaged over seeds.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from sklearn.decomposition import PCA

from workbench.app.figures import base
from workbench.heads import Head
from workbench.studies.drawing import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SCALE,
    grid,
    line,
    name_of,
)
from workbench.zoo.induction import laws
from workbench.zoo.induction.claims import CONTROL, ONE, SMEARED, TWO
from workbench.zoo.induction.laws import Evidence

STEP = "training step"
# Groups in the order of the story: setting, its words, its colour.
SETTINGS = {
    TWO: ("two layers", BLUE),
    ONE: ("one layer", ORANGE),
    SMEARED: ("one layer, smeared keys", GREEN),
    CONTROL: ("two layers, no favourites", GREY),
}
# What changes, its words, its colour; read by `laws.half_time`.
CHANGES = (
    ("the chain (loss early in the text)", INK, laws.early_loss),
    ("in-context learning score", RED, laws.icl),
    ("prefix matching (layer 1)", BLUE, laws.prefix),
    ("QK circuit through layer 0", PURPLE, lambda run: laws.best_pair(run, "matching")),
    ("previous token (layer 0)", ORANGE, laws.previous),
)


def phases(evidence: Evidence) -> go.Figure:
    """Everything that changes, of one run, each on its way from start to end."""
    run = evidence.of(TWO)[0]
    steps = run["step"].to_numpy()
    figure = base("paper", height=400)
    for name, colour, of in CHANGES:
        values = of(run)
        way = (values - values[0]) / (values[-1] - values[0])
        figure.add_trace(line(steps, way, name, colour, hover=f"{name_of(run)} {name}"))
    figure.update_layout(showlegend=True, margin_t=80)
    figure.update_xaxes(title_text=STEP)
    figure.update_yaxes(title_text="share of the way from start to end", range=[-0.5, 1.2])
    return figure


def windows(evidence: Evidence) -> go.Figure:
    """In-context learning, prefix matching and loss of every run."""
    panels = (
        ("in-context learning score", "late minus early loss (nats)", laws.icl),
        ("prefix matching, best head", "weight", laws.prefix),
        ("loss above the oracle's", "nats per token", lambda run: run["excess"].to_numpy()),
    )
    figure = grid(1, 3, [title for title, *_ in panels], 380, horizontal_spacing=0.08)
    for col, (_, unit, of) in enumerate(panels, 1):
        for setting, (words, colour) in SETTINGS.items():
            for i, run in enumerate(evidence.of(setting)):
                trace = line(
                    run["step"].to_numpy(), of(run), words, colour,
                    legend=col == 1 and not i, hover=name_of(run),
                )  # fmt: skip
                figure.add_trace(trace, row=1, col=col)
        figure.update_yaxes(title_text=unit, row=1, col=col)
    figure.update_layout(showlegend=True, margin_t=80, legend_y=1.14)
    figure.update_xaxes(title_text=STEP)
    return figure


def half_times(evidence: Evidence) -> go.Figure:
    """When each number has come half its way, run by run."""
    runs = evidence.of(TWO)
    figure = base("paper", height=150 + 40 * len(runs))
    for name, colour, of in CHANGES:
        figure.add_trace(
            go.Scatter(
                x=[laws.half_time(run, of(run)) for run in runs],
                y=[name_of(run) for run in runs], mode="markers", name=name,
                marker={"color": colour, "size": 10, "opacity": 0.8},
                hovertemplate=f"<b>%{{y}}</b> {name}<br>step %{{x:.0f}}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=90)
    figure.update_xaxes(title_text="half-time (training step)", rangemode="tozero")
    figure.update_yaxes(title_text="run", autorange="reversed")
    return figure


def positions(evidence: Evidence) -> go.Figure:
    """Loss by position before, in and after the window."""
    run = evidence.of(TWO)[0]
    middle = laws.half_time(run, laws.icl(run))
    steps = run["step"].to_numpy()
    shown = [int(steps[np.abs(steps - at).argmin()]) for at in (middle / 2, middle, steps[-1])]
    x = run["position"].to_numpy()[1:] + 1
    figure = base("paper", height=400)
    for step, dash in zip(shown, ("dot", "dash", "solid"), strict=True):
        values = run["loss_at"].sel(step=step).to_numpy()[1:]
        name = f"two layers, step {step}"
        figure.add_trace(line(x, values, name, BLUE, dash, hover=f"{name_of(run)} step {step}"))
    for one in evidence.of(ONE)[:1]:
        values = one["loss_at"].isel(step=-1).to_numpy()[1:]
        figure.add_trace(line(x, values, "one layer, at the end", ORANGE))
    for predictor, colour in (("Bayes", INK), ("without context", GREY)):
        values = run["loss_at_baseline"].sel(predictor=predictor).to_numpy()[1:]
        figure.add_trace(line(x, values, predictor, colour))
    figure.update_layout(showlegend=True, margin_t=80)
    figure.update_xaxes(
        type="log", title_text="tokens seen (log scale)", tickvals=[2, 4, 8, 16, 32]
    )
    figure.update_yaxes(title_text="loss (nats)")
    return figure


def patterns(evidence: Evidence) -> go.Figure:
    """Both heads of the circuit on repeated words, before, in and after the window."""
    run = evidence.of(TWO)[0]
    middle = laws.half_time(run, laws.icl(run))
    steps = run["step"].to_numpy()
    shown = [int(np.abs(steps - at).argmin()) for at in (middle / 2, middle, steps[-1])]
    back = int(run["previous"].isel(layer=0, step=-1).to_numpy().argmax())
    match = int(run["prefix"].isel(layer=1, step=-1).to_numpy().argmax())
    heads = (Head(0, back), Head(1, match))
    titles = [f"{head}, step {steps[i]}" for head in heads for i in shown]
    figure = grid(2, 3, titles, 640, horizontal_spacing=0.06, vertical_spacing=0.12)
    words = [str(run["token"].to_numpy()[i]) for i in run["probe_id"].isel(probe=0).to_numpy()]
    places = [f"{i} {word}" for i, word in enumerate(words)]
    for row, head in enumerate(heads, 1):
        for col, i in enumerate(shown, 1):
            weights = run["pattern"].isel(step=i, layer=head.layer, head=head.head, probe=0)
            figure.add_trace(
                go.Heatmap(
                    z=weights.to_numpy().astype(float), colorscale=SCALE, zmin=0, zmax=1,
                    showscale=row == col == 1, colorbar={"title": "weight", "thickness": 10},
                    customdata=np.array([[(q, k) for k in places] for q in places]),
                    hovertemplate="query %{customdata[0]}<br>key %{customdata[1]}<br>"
                    "weight %{z:.2f}<extra></extra>",
                ), row=row, col=col,
            )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title_text="query position", col=1)
    figure.update_xaxes(title_text="key position", row=2)
    return figure


def removal(evidence: Evidence) -> go.Figure:
    """The score of learning in context without some heads."""
    roles = {"nothing": INK, "other head": GREY, "previous-token head": ORANGE,
             "induction heads": BLUE}  # fmt: skip
    figure = base("paper", height=360)
    for role, colour in roles.items():
        figure.add_trace(
            go.Bar(
                x=list(evidence.icl), y=[-of[role] for of in evidence.icl.values()], name=role,
                marker={"color": colour},
                hovertemplate=f"<b>%{{x}}</b> without {role}<br>%{{y:.3f}} nats<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=60, barmode="group", legend_title="removed: ")
    figure.update_xaxes(title_text="run")
    figure.update_yaxes(title_text="gain from context: early minus late loss (nats)")
    return figure


def paths(evidence: Evidence) -> go.Figure:
    """Losses of single tokens over training, on the two axes along which they differ most."""
    shown = [(setting, run) for setting in (TWO, ONE, SMEARED) for run in evidence.of(setting)]
    losses = [run["token_loss"].to_numpy().astype(float) for _, run in shown]
    axes = PCA(2).fit(np.concatenate(losses))
    figure = base("paper", height=460)
    seen: set[str] = set()
    for (setting, run), values in zip(shown, losses, strict=True):
        x, y = axes.transform(values).T
        words, colour = SETTINGS[setting]
        figure.add_trace(_path(run, x, y, words, colour, legend=setting not in seen))
        seen.add(setting)
    share = axes.explained_variance_ratio_
    figure.update_layout(showlegend=True, margin_t=60)
    figure.update_xaxes(title_text=f"first component (nats, {share[0]:.0%} of the variance)")
    figure.update_yaxes(title_text=f"second component (nats, {share[1]:.0%})")
    figure.add_annotation(
        text="all begin together; larger dots: half-time of the ICL score", x=0, xref="paper",
        xanchor="left", y=1.0, yref="paper", yanchor="bottom", showarrow=False,
        font={"size": 11, "color": FAINT},
    )  # fmt: skip
    return figure


def _path(
    run: xr.Dataset, x: np.ndarray, y: np.ndarray, words: str, colour: str, *, legend: bool
) -> go.Scatter:
    """One run's path with its steps; the step of half-time is larger."""
    steps = run["step"].to_numpy()
    sizes = np.full(len(steps), 3.0)
    sizes[np.abs(steps - laws.half_time(run, laws.icl(run))).argmin()] = 11
    return go.Scatter(
        x=x, y=y, mode="lines+markers", name=words, legendgroup=words, showlegend=legend,
        line={"color": colour, "width": 1.2}, marker={"size": sizes, "color": colour},
        customdata=steps,
        hovertemplate=f"<b>{name_of(run)}</b><br>step %{{customdata}}<extra></extra>",
    )  # fmt: skip
