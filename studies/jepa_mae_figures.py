"""Figures of the jepa-mae study: evidence in (`workbench.zoo.jepa.laws`), figure out.

Every run is a line or a point of its own; nothing is averaged over seeds.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from workbench.studies.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    grid,
    line,
    name_of,
)
from workbench.zoo.jepa import closed, laws
from workbench.zoo.jepa.closed import JEPA, MAE
from workbench.zoo.jepa.laws import Evidence, Run
from workbench.zoo.jepa.recipe import PRODUCT, RHO

COLOURS = (BLUE, GREEN, ORANGE, RED)  # by feature, the most predictable first
DEPTH_COLOURS = (GREY, GREEN, ORANGE, PURPLE)
NAMES = {JEPA: "JEPA", MAE: "MAE"}
SYMBOLS = {"opposed": "x-thin", "agreed": "x-thin", "exact": "circle"}
PRODUCTS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def _words(depth: int) -> str:
    return f"{depth} layer" + "s" * (depth > 1)


def courses(evidence: Evidence) -> go.Figure:
    """Share learned of each feature over time: methods by rows, depths by columns."""
    depths = evidence.depths
    titles = [f"{NAMES[m]}, {_words(d)}" for m in closed.METHODS for d in depths]
    figure = grid(2, len(depths), titles, 520, shared_yaxes=True, horizontal_spacing=0.02,
                  vertical_spacing=0.16)  # fmt: skip
    for row, method in enumerate(closed.METHODS, 1):
        for col, depth in enumerate(depths, 1):
            run = evidence.of("opposed", method, depth)[0]
            time = run["step"].to_numpy() * float(run["rate"])
            last = laws.expected(run, method).max()
            for i, colour in enumerate(COLOURS):
                one = run.isel(feature=i)
                name = f"ρ {float(one['rho']):g}, λ {float(one['lam']):.2f}"
                trace = line(
                    time, one["learned"].to_numpy(), name, colour, legend=row == col == 1,
                    hover=f"{NAMES[method]}, {name_of(run)}, {name}",
                )  # fmt: skip
                figure.add_trace(trace, row=row, col=col)
            figure.add_hline(
                y=closed.LEARNED, line={"color": GREY, "width": 1, "dash": "dot"}, row=row, col=col  # type: ignore[arg-type]
            )  # fmt: skip
            figure.update_xaxes(range=[_begin(run) * last, 1.15 * last], row=row, col=col)
    figure.update_layout(showlegend=True, margin_t=70, legend_y=1.12)
    figure.update_xaxes(title_text="time (steps × rate)", row=2)
    figure.update_yaxes(range=[-0.03, 1.1])
    figure.update_yaxes(title_text="of its final strength (1)", col=1)
    return figure


def _begin(run: Run) -> float:
    """Where the axis of time begins, as a share of its end: the abrupt JEPA is drawn from half."""
    return 0.5 if laws.method_of(run) == JEPA else 0.0


def preferences(evidence: Evidence) -> go.Figure:
    """Ratio of critical times by coefficient and depth, and by the product of layers."""
    figure = grid(1, 2, [f"start {PRODUCT:g}", f"{_words(evidence.depths[-1])}, smaller starts"],
                  360, horizontal_spacing=0.1)  # fmt: skip
    rho = np.linspace(RHO[-1], 1.0, 40)
    for depth in evidence.depths:
        colour = DEPTH_COLOURS[depth - 1]
        for method, dash in ((JEPA, "solid"), (MAE, "dot")):
            values = np.array([closed.preference(method, r, depth, PRODUCT) for r in rho])
            name = f"{NAMES[method]}, {_words(depth)}"
            # The curves of MAE lie on one another: one entry of the legend stands for all.
            trace = line(rho, values, name, colour, dash, legend=method == JEPA or depth == 1)
            figure.add_trace(trace, row=1, col=1)
        figure.add_trace(_ratios(evidence, depth, colour), row=1, col=1)
    for i, r in enumerate(RHO[1:], 1):
        deep = evidence.depths[-1]
        values = np.array([closed.preference(JEPA, r, deep, product) for product in PRODUCTS])
        trace = line(np.array(PRODUCTS), values, f"ρ {r:g}", COLOURS[i], legend=False)
        figure.add_trace(trace.update(mode="lines+markers"), row=1, col=2)
        figure.add_annotation(
            text=f"ρ {r:g}", x=np.log10(PRODUCTS[0]), y=values[0], xanchor="right",
            yanchor="bottom", showarrow=False, font={"size": 11, "color": COLOURS[i]}, row=1, col=2,
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=80, legend_y=1.2)
    figure.update_xaxes(title_text="regression coefficient ρ (1)", col=1)
    figure.update_xaxes(
        title_text="product of layers at the start (1)", type="log", col=2, exponentformat="power"
    )
    figure.update_yaxes(title_text="time by that at ρ 1 (1)")
    return figure


def _ratios(evidence: Evidence, depth: int, colour: str) -> go.Scatter:
    """Times of JEPA's runs with equal covariances, each by that of its most predictable feature."""
    points = [
        (rho, ratio, name_of(run))
        for run in evidence.of("equal", JEPA, depth)
        for rho, ratio in zip(
            run["rho"].to_numpy(), laws.times(run) / laws.times(run)[0], strict=True
        )
    ]
    return go.Scatter(
        x=[p[0] for p in points], y=[p[1] for p in points], mode="markers", showlegend=False,
        marker={"color": colour, "size": 6, "opacity": 0.6}, customdata=[p[2] for p in points],
        hovertemplate=f"<b>JEPA, {_words(depth)}, %{{customdata}}</b><br>ρ %{{x:g}}: "
        "%{y:.3f}<extra></extra>",
    )  # fmt: skip


def times(evidence: Evidence) -> go.Figure:
    """Measured against expected times, both methods."""
    figure = grid(1, 2, [NAMES[m] for m in closed.METHODS], 360, horizontal_spacing=0.1)
    for col, method in enumerate(closed.METHODS, 1):
        low, high = np.inf, 0.0
        for depth in evidence.depths:
            for setting, symbol in SYMBOLS.items():
                for run in evidence.of(setting, method, depth):
                    x, y = laws.expected(run, method), laws.times(run)
                    low, high = min(low, x.min()), max(high, x.max())
                    figure.add_trace(
                        _points(x, y, f"{NAMES[method]}, {_words(depth)}, {name_of(run)}", symbol,
                                DEPTH_COLOURS[depth - 1], _words(depth),
                                legend=col == 1 and setting == "exact"),
                        row=1, col=col,
                    )  # fmt: skip
        ends = np.array([low / 1.1, high * 1.1])
        figure.add_trace(
            line(ends, ends, "closed form", INK, "dot", legend=col == 1), row=1, col=col
        )
    figure.update_layout(showlegend=True, margin_t=60, legend_y=1.16)
    figure.update_xaxes(type="log", title_text="critical time, closed form (steps × rate)")
    figure.update_xaxes(tickvals=[100, 200, 500, 1000], col=1)
    figure.update_yaxes(type="log", tickvals=[100, 200, 500, 1000], col=1)
    figure.update_xaxes(tickvals=[3, 4, 5, 6, 8, 10], col=2)
    figure.update_yaxes(type="log", tickvals=[3, 4, 5, 6, 8, 10], col=2)
    figure.update_yaxes(title_text="measured (steps × rate)", col=1)
    return figure


def _points(
    x: np.ndarray, y: np.ndarray, hover: str, symbol: str, colour: str, name: str, *, legend: bool
) -> go.Scatter:
    return go.Scatter(
        x=x, y=y, mode="markers", name=name, legendgroup=name, showlegend=legend,
        marker={"color": colour, "size": 8, "symbol": symbol, "opacity": 0.8,
                "line": {"color": colour, "width": 1.4}},
        hovertemplate=f"<b>{hover}</b><br>expected %{{x:.4g}}, measured %{{y:.4g}}<extra></extra>",
    )  # fmt: skip


def ends(evidence: Evidence) -> go.Figure:
    """Final strength by regression coefficient, beside the closed form."""
    figure = grid(1, 2, [NAMES[m] for m in closed.METHODS], 340, horizontal_spacing=0.1)
    rho = np.linspace(RHO[-1], 1.0, 40)
    for col, method in enumerate(closed.METHODS, 1):
        for depth in evidence.depths:
            colour = DEPTH_COLOURS[depth - 1]
            values = np.array([closed.strength(method, r, depth) for r in rho])
            figure.add_trace(
                line(rho, values, _words(depth), colour, legend=col == 1), row=1, col=col
            )
            some = [run for s in ("opposed", "agreed") for run in evidence.of(s, method, depth)]
            for run in some:
                found = run["strength"].isel(step=-1).to_numpy()
                hover = f"{NAMES[method]}, {_words(depth)}, {name_of(run)}"
                figure.add_trace(
                    _points(run["rho"].to_numpy(), found, hover, "circle", colour, _words(depth),
                            legend=False).update(
                        hovertemplate=f"<b>{hover}</b><br>ρ %{{x:g}}: %{{y:.4f}}<extra></extra>"),
                    row=1, col=col,
                )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=60, legend_y=1.16)
    figure.update_xaxes(title_text="regression coefficient ρ (1)")
    figure.update_yaxes(range=[0, 1.06])
    figure.update_yaxes(title_text="strength in the encoder at the end (1)", col=1)
    return figure


def free(evidence: Evidence) -> go.Figure:
    """Shares at the end of free starts: one map per method, runs by features."""
    figure = grid(1, 2, [NAMES[m] for m in closed.METHODS], 620, shared_yaxes=True,
                  horizontal_spacing=0.04)  # fmt: skip
    for col, method in enumerate(closed.METHODS, 1):
        runs = evidence.of("free", method)
        rows = [f"{_words(laws.depth_of(run))}, {name_of(run)[5:]}" for run in runs]
        values = np.array([run["learned"].isel(step=-1).to_numpy() for run in runs])
        figure.add_trace(
            go.Heatmap(
                z=values, x=[f"ρ {r:g}" for r in RHO], y=rows,
                colorscale=[[0, "#ffffff"], [1, BLUE]], zmin=0.0, zmax=1.0,
                showscale=False, texttemplate="%{z:.2f}", textfont={"size": 9},
                hovertemplate=f"<b>{NAMES[method]}, %{{y}}</b><br>%{{x}}: %{{z:.3f}} of its "
                "strength<extra></extra>",
            ),
            row=1, col=col,
        )  # fmt: skip
    figure.update_xaxes(title_text="feature, by its coefficient", showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, tickfont={"size": 9})
    figure.update_yaxes(title_text="encoder and start", col=1)
    return figure
