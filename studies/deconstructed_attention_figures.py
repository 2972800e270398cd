"""Figures of the deconstructed-attention study: evidence in, figure out.

Every run is a line or a point of its own; nothing is averaged over seeds.
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
    ORANGE,
    PURPLE,
    RED,
    SCALE,
    grid,
    line,
    name_of,
)
from workbench.zoo.claims import last
from workbench.zoo.deconstructed import published
from workbench.zoo.deconstructed.laws import Evidence
from workbench.zoo.deconstructed.published import SKIP
from workbench.zoo.deconstructed.recipe import (
    HYBRID,
    STANDARD,
    UNIFORM,
    VARIANTS,
    setting_of,
)
from workbench.zoo.deconstructed.task import RULES

COLOURS: dict[str, str] = dict(
    zip(VARIANTS, (RED, BLUE, ORANGE, GREEN, "#6d8b3c", PURPLE), strict=True)
)
CONFIGURATIONS = {UNIFORM: "circle", HYBRID: "diamond", SKIP: "x"}
INDICATORS = {
    "entropy": "entropy (nats)",
    "concentration": "concentration (1)",
    "sink": "weight on &lt;s&gt;",
    "locfoc_1": "weight at distance 1",
    "recall_mass": "weight on the answer",
    "diversity": "diversity of heads",
}
EXCESS = "nats above the oracle"


def made(evidence: Evidence, configuration: str) -> list[str]:
    """The variants that were trained in a configuration."""
    return [v for v in VARIANTS if evidence.of(setting_of(configuration, v))]


def abilities(evidence: Evidence) -> go.Figure:
    """Risk of every rule, by variant and configuration."""
    titles = ["chain", "copy (after ~)", "recall (after a name)"]
    figure = grid(1, 3, titles, 460, shared_yaxes=True, horizontal_spacing=0.04)
    rows = [(STANDARD, STANDARD), *((c, v) for v in VARIANTS for c in (UNIFORM, HYBRID))]
    rows = [(c, v) for c, v in rows if evidence.of(v if c == STANDARD else setting_of(c, v))]
    labels = [v if c == STANDARD else f"{v}, {c}" for c, v in rows]
    for col, rule in enumerate(RULES, 1):
        for way, prefix, symbol in (("whole", "excess", "circle"), (SKIP, "skip", "x")):
            points = [
                (label, last(run, f"{prefix}_{rule}"), COLOURS.get(v, GREY), name_of(run))
                for label, (c, v) in zip(labels, rows, strict=True)
                for run in evidence.of(v if c == STANDARD else setting_of(c, v))
                if prefix == "excess" or c != UNIFORM
            ]
            figure.add_trace(
                go.Scatter(
                    x=[p[1] for p in points], y=[p[0] for p in points], mode="markers",
                    name="whole network" if way == "whole" else "odd layers skipped",
                    legendgroup=way, showlegend=col == 1,
                    marker={"color": [p[2] for p in points], "symbol": symbol, "size": 8,
                            "opacity": 0.8},
                    customdata=[p[3] for p in points],
                    hovertemplate="<b>%{customdata}</b> " + way + "<br>%{x:.3f} nats"
                    "<extra></extra>",
                ), 1, col,
            )  # fmt: skip
        figure.update_xaxes(title_text=EXCESS, rangemode="tozero", row=1, col=col)
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1])
    figure.update_yaxes(title_text="mixer, configuration", col=1)
    figure.update_layout(showlegend=True, margin_t=70, legend_y=1.12)
    return figure


def courses(evidence: Evidence) -> go.Figure:
    """Recall while training, uniform beside hybrid."""
    figure = grid(1, 2, ["in all layers", "in the odd-numbered layers"], 380,
                  shared_yaxes=True, horizontal_spacing=0.05)  # fmt: skip
    named = set()
    for col, configuration in enumerate((UNIFORM, HYBRID), 1):
        groups = [(STANDARD, STANDARD, INK)] + [
            (v, setting_of(configuration, v), COLOURS[v]) for v in made(evidence, configuration)
        ]
        for name, setting, colour in groups:
            for run in evidence.of(setting):
                trace = line(
                    run["step"].to_numpy(), run["excess_recall"].to_numpy(), name, colour,
                    "dot" if name == "mlp" else "solid", legend=name not in named,
                    hover=name_of(run),
                )  # fmt: skip
                figure.add_trace(trace, 1, col)
                named.add(name)
    figure.update_layout(showlegend=True, margin_t=80, legend_y=1.16)
    figure.update_xaxes(title_text="training step")
    figure.update_yaxes(title_text=EXCESS, rangemode="tozero", col=1)
    return figure


def maps(evidence: Evidence) -> go.Figure:
    """Maps of one head per layer, of every setting with attention in all layers."""
    settings = [STANDARD] + [
        setting_of(c, v) for v in VARIANTS if v != "mlp" for c in (UNIFORM, HYBRID)
    ]
    runs = [evidence.of(setting)[0] for setting in settings if evidence.of(setting)]
    layers = runs[0].sizes["layer"]
    titles = [f"layer {layer}" for layer in range(layers)] + [""] * (layers * (len(runs) - 1))
    figure = grid(len(runs), layers, titles, 60 + 175 * len(runs), vertical_spacing=0.012,
                  horizontal_spacing=0.03)  # fmt: skip
    tokens = _tokens(runs[0])
    words = [f"{i} {token}" for i, token in enumerate(tokens)]
    for row, run in enumerate(runs, 1):
        end = run.isel(step=-1)
        for layer in range(layers):
            head = int(end["recall_mass"].isel(layer=layer).argmax("head"))
            z = end["pattern"].isel(layer=layer, head=head, probe=0).to_numpy().astype(float)
            figure.add_trace(
                go.Heatmap(
                    z=z, x=words, y=words, colorscale=SCALE, zmin=0, zmax=1,
                    showscale=row == 1 and layer == layers - 1,
                    colorbar={"title": "weight", "len": 0.12, "y": 0.94, "thickness": 10},
                    hovertemplate=f"<b>{name_of(run)} L{layer}H{head}</b><br>query %{{y}}<br>"
                    "key %{x}<br>weight %{z:.3f}<extra></extra>",
                ), row, layer + 1,
            )  # fmt: skip
        name = str(run["setting"].item())
        for prefix in (UNIFORM, HYBRID):
            name = name.replace(f"{prefix}-", f"{prefix}<br>")
        figure.update_yaxes(title_text=name, row=row, col=1)
    figure.update_xaxes(showticklabels=False, showgrid=False)
    figure.update_xaxes(title_text="key", row=len(runs))
    figure.update_yaxes(showticklabels=False, showgrid=False, autorange="reversed")
    figure.update_layout(margin_t=40)
    return figure


def _tokens(run: xr.Dataset) -> np.ndarray:
    """Symbols of the first text whose maps are stored."""
    return run["token"].to_numpy()[run["probe_id"].isel(probe=0).to_numpy()]


def indicators(evidence: Evidence) -> go.Figure:
    """The indicators at the last step over layers, uniform and hybrid."""
    figure = grid(2, len(INDICATORS), [*INDICATORS.values()] + [""] * len(INDICATORS), 520,
                  horizontal_spacing=0.045, vertical_spacing=0.1)  # fmt: skip
    named = set()
    for row, configuration in enumerate((UNIFORM, HYBRID), 1):
        groups = [(STANDARD, STANDARD, GREY)] + [
            (v, setting_of(configuration, v), COLOURS[v]) for v in made(evidence, configuration)
            if (configuration, v) != (UNIFORM, "mlp")
        ]  # fmt: skip
        for col, name in enumerate(INDICATORS, 1):
            for variant, setting, colour in groups:
                for run in evidence.of(setting):
                    values = run[name].isel(step=-1)
                    values = values.mean("head") if "head" in values.dims else values
                    trace = line(
                        run["layer"].to_numpy(), values.to_numpy(), variant, colour,
                        legend=variant not in named, hover=name_of(run),
                    )  # fmt: skip
                    trace.update(mode="lines+markers", marker={"size": 4})
                    figure.add_trace(trace, row, col)
                    named.add(variant)
        figure.update_yaxes(title_text=configuration, row=row, col=1)
    figure.update_xaxes(dtick=1)
    figure.update_xaxes(title_text="layer", row=2)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=True, margin_t=80, legend_y=1.14)
    return figure


def beside(evidence: Evidence) -> go.Figure:
    """Recall here and last words there, one point per run."""
    figure = base("paper", height=400)
    rows = published.table()[["configuration", "variant", "lambada_accuracy"]]
    table = {(str(c), str(v)): float(x) for c, v, x in rows.itertuples(index=False)}
    for configuration, symbol in CONFIGURATIONS.items():
        prefix = "skip" if configuration == SKIP else "excess"
        source = HYBRID if configuration == SKIP else configuration
        points = [
            (table[configuration, v], last(run, f"{prefix}_recall"), COLOURS[v], name_of(run))
            for v in VARIANTS
            for run in evidence.of(setting_of(source, v))
        ]
        figure.add_trace(_points(points, configuration, symbol))
    standard = [
        (table[STANDARD, STANDARD], last(run, "excess_recall"), INK, name_of(run))
        for run in evidence.of(STANDARD)
    ]
    figure.add_trace(_points(standard, STANDARD, "square"))
    figure.update_layout(showlegend=True, margin_t=50)
    figure.update_xaxes(title_text="accuracy on LAMBADA, 500M parameters, published (%)")
    figure.update_yaxes(title_text=f"recall here ({EXCESS})", rangemode="tozero")
    return figure


def _points(points: list[tuple[float, float, str, str]], name: str, symbol: str) -> go.Scatter:
    return go.Scatter(
        x=[p[0] for p in points], y=[p[1] for p in points], mode="markers", name=name,
        marker={"color": [p[2] for p in points], "symbol": symbol, "size": 9, "opacity": 0.85},
        customdata=[p[3] for p in points],
        hovertemplate="<b>%{customdata}</b> " + name + "<br>published %{x:.1f} %<br>here %{y:.3f} "
        "nats<extra></extra>",
    )  # fmt: skip
