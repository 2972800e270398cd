"""Figures of the associative-memory study: tables (`workbench.zoo.memory.measure`) in, figure out.

Dots are measured, one per seed; lines are closed forms unless their name says otherwise.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.app.figures import base
from workbench.studies.drawing import BLUE, FAINT, GREEN, GREY, INK, ORANGE, PURPLE, RED, grid, line
from workbench.zoo.memory import closed, recipe
from workbench.zoo.memory.laws import Evidence, pick

ERROR = "squared error (squared length of a value)"
CRITERIA = {
    "decoding": ("right value is nearest", GREEN), "mean": ("mean error, random keys", BLUE),
    "largest": ("largest error, random keys", PURPLE),
    "guaranteed": ("largest error, worst keys", ORANGE),
}  # fmt: skip
RULES = {
    "Hebb": BLUE, "delta": GREEN, "pseudo-inverse": PURPLE, "delta, wrong keys": RED,
}  # fmt: skip


def dots(
    rows: pd.DataFrame, x: str, y: str, name: str, colour: str, *, legend: bool = True
) -> go.Scatter:
    """Measured values, every seed a dot."""
    return go.Scatter(
        x=rows[x], y=rows[y], mode="markers", name=name, legendgroup=name, showlegend=legend,
        marker={"color": colour, "size": 7, "opacity": 0.75}, customdata=rows["seed"],
        hovertemplate=f"<b>{name}</b>, seed %{{customdata}}<br>%{{x:,.4~g}}: %{{y:.4~g}}"
        "<extra></extra>",
    )  # fmt: skip


def interference(evidence: Evidence) -> go.Figure:
    """Error by load, every width."""
    table = evidence["interference"]
    table = table.assign(load=table["n"] / table["d"])
    figure = base("paper", height=360)
    random = pick(table, keys="random")
    widths = sorted(set(random["d"]))
    for d, colour in zip(widths, (ORANGE, BLUE, GREEN), strict=False):
        some = pick(random, d=d)
        figure.add_trace(dots(some, "load", "error", f"random keys, d_k = {d}", colour))
        mean = some.drop_duplicates("n").sort_values("n")
        figure.add_trace(
            line(mean["load"].to_numpy(), mean["law"].to_numpy(), "(N − 1) / d_k", colour,
                 legend=False, hover=f"(N − 1) / {d}")
        )  # fmt: skip
    none = pick(table, keys="orthogonal")
    figure.add_trace(dots(none, "load", "error", "orthogonal keys", GREY))
    figure.update_layout(showlegend=True, margin_t=70)
    figure.update_xaxes(title_text="load N / d_k")
    figure.update_yaxes(title_text=ERROR)
    return figure


def capacity(evidence: Evidence) -> go.Figure:
    """Items by width, four criteria."""
    table = evidence["capacity"]
    figure = base("paper", height=420)
    for criterion, (words, colour) in CRITERIA.items():
        some = pick(table, criterion=criterion)
        figure.add_trace(dots(some, "d", "items", words, colour))
        law = some.drop_duplicates("d").sort_values("d")
        if np.isfinite(law["law"].to_numpy()).all():
            figure.add_trace(
                line(law["d"].to_numpy(), law["law"].to_numpy(), f"{words}: law", colour,
                     legend=False)
            )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=70)
    ticks = sorted({int(d) for d in table["d"]})
    figure.update_xaxes(type="log", title_text="width d_k (log scale)", tickvals=ticks)
    figure.update_yaxes(
        type="log", title_text="items N (log scale)", tickvals=[1, 3, 10, 30, 100, 300, 1000]
    )
    return figure


def rules(evidence: Evidence) -> go.Figure:
    """Error by number of items, every rule."""
    table = evidence["rules"]
    d = recipe.RULE_D
    figure = base("paper", height=380)
    items = np.arange(1, int(table["n"].to_numpy().max()) + 1)
    laws = {
        "Hebb": lambda n: closed.average_error(n, d),
        "delta": lambda n: closed.delta_errors(n, d).mean(),
        "pseudo-inverse": lambda n: closed.inverse_error(n, d),
    }
    for rule, colour in RULES.items():
        figure.add_trace(dots(pick(table, rule=rule), "n", "error", rule, colour))
        if rule in laws:
            law = np.array([laws[rule](int(n)) for n in items])
            figure.add_trace(line(items, law, f"{rule}: law", colour, legend=False))
    figure.add_vline(x=d, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.update_layout(showlegend=True, margin_t=70)
    figure.update_xaxes(title_text="items N")
    figure.update_yaxes(title_text=ERROR, range=[-0.1, 3.2])
    return figure


def ages(evidence: Evidence) -> go.Figure:
    """Error by how many items came after."""
    table = evidence["ages"]
    figure = base("paper", height=340)
    for rule in ("Hebb", "delta"):
        some = pick(table, rule=rule)
        mean = some.drop_duplicates("later").sort_values("later")
        shown = some.query("later % 4 == 0")
        figure.add_trace(dots(shown, "later", "error", rule, RULES[rule]))
        figure.add_trace(
            line(mean["later"].to_numpy(), mean["law"].to_numpy(), f"{rule}: law", RULES[rule],
                 legend=False)
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=70)
    figure.update_xaxes(title_text="items stored after this one")
    figure.update_yaxes(title_text=ERROR, rangemode="tozero")
    return figure


def depth(evidence: Evidence) -> go.Figure:
    """Error by layer, one panel per number of items."""
    table = evidence["depth"]
    counts = sorted(set(table["n"]))
    figure = grid(
        1, len(counts), [f"N = {n}" for n in counts], 340, shared_yaxes=True,
        horizontal_spacing=0.02,
    )  # fmt: skip
    for col, n in enumerate(counts, 1):
        some = pick(table, n=n)
        for kind, colour in (("fresh", BLUE), ("same", RED)):
            rows = pick(some, keys=kind)
            name = f"{kind} keys in every layer"
            figure.add_trace(
                dots(rows, "layers", "error", name, colour, legend=col == 1), row=1, col=col
            )
        law = pick(some, keys="fresh").drop_duplicates("layers").sort_values("layers")
        figure.add_trace(
            line(law["layers"].to_numpy(), law["law"].to_numpy(), "law", INK, legend=col == 1),
            row=1, col=col,
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=100, legend_y=1.3)
    figure.update_xaxes(title_text="layers", dtick=1)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(title_text="squared error (log scale)", row=1, col=1)
    return figure


def heads(evidence: Evidence) -> go.Figure:
    """Error by number of averaged heads."""
    table = evidence["heads"]
    figure = base("paper", height=380)
    for kind, words, colour in (
        ("random", "heads of their own, random items", BLUE),
        ("orthogonal", "heads of their own, orthogonal items", GREEN),
        ("copies", "copies of one head", RED),
    ):
        some = pick(table, items=kind)
        figure.add_trace(dots(some, "heads", "error", words, colour))
        if kind != "copies":
            law = some.drop_duplicates("heads").sort_values("heads")
            figure.add_trace(
                line(law["heads"].to_numpy(), law["law"].to_numpy(), f"{words}: law", colour,
                     legend=False)
            )  # fmt: skip
    floor = (recipe.HEADS_ITEMS - 1) / recipe.HEADS_MODEL
    figure.add_hline(y=floor, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.add_annotation(
        text="(N − 1) / d_model", x=0.01, xref="paper", xanchor="left", y=np.log10(floor),
        yanchor="bottom", showarrow=False, font={"size": 11, "color": FAINT},
    )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=70)
    figure.update_xaxes(
        type="log", title_text="heads H (log scale)", tickvals=sorted(set(table["heads"]))
    )
    figure.update_yaxes(type="log", title_text=ERROR, tickvals=[0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
    return figure
