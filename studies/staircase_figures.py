"""Figures of the staircase study: runs by setting in, figure out.

Every run is a line or a point of its own; nothing is averaged over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from workbench.app.figures import base
from workbench.studies import icl_regression_panels as panels
from workbench.studies.drawing import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    LOG_STEPS,
    ORANGE,
    PURPLE,
    RED,
    STEP,
    grid,
    line,
    name_of,
)
from workbench.zoo.staircase import closed, laws
from workbench.zoo.staircase.laws import Run, Runs
from workbench.zoo.staircase.task import Task

LOSS = "loss (squared label)"
DIRECTIONS = (BLUE, GREEN, ORANGE, RED)
DOTTED = {"color": GREY, "width": 1, "dash": "dot"}


def stairs(runs: Runs) -> go.Figure:
    """Loss of all merged and all rank-one runs, with the heights."""
    figure = base("paper", height=400)
    for setting, words, colour in (
        ("merged", "merged", ORANGE), ("separate", "separate, rank one", BLUE),
    ):  # fmt: skip
        for i, run in enumerate(runs[setting]):
            figure.add_trace(_course(run, words, colour, legend=i == 0))
    task = laws.task_of(runs["separate"][0])
    for count, height in enumerate(closed.heights(task)):
        figure.add_hline(y=height, line=DOTTED)
        figure.add_annotation(
            text=f"{count} learned", x=1, xref="paper", y=height, showarrow=False,
            xanchor="right", yanchor="bottom", font={"size": 10, "color": FAINT},
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=40)
    figure.update_xaxes(title_text=STEP, **LOG_STEPS)
    figure.update_yaxes(title_text=LOSS, rangemode="tozero")
    return figure


def _course(run: Run, words: str, colour: str, *, legend: bool) -> go.Scatter:
    """Loss of one run over its steps."""
    part = run.sel(step=run["step"] > 0)
    return line(
        part["step"].to_numpy(), part["loss"].to_numpy(), words, colour, legend=legend,
        hover=f"{name_of(run)}, loss",
    ).update(opacity=0.75)  # fmt: skip


def directions(runs: Runs) -> go.Figure:
    """Shares learned of each direction, merged and separate."""
    figure = grid(1, 2, ["merged", "separate, rank one"], 330, shared_yaxes=True,
                  horizontal_spacing=0.03)  # fmt: skip
    for col, run in enumerate((runs["merged"][0], shown(runs)), 1):
        _shares(figure, run, col)
    return _finish_shares(figure)


def _shares(figure: go.Figure, run: Run, col: int) -> None:
    """The shares of one run into a panel."""
    part = run.sel(step=run["step"] > 0)
    for colour, name in zip(DIRECTIONS, run["direction"].to_numpy(), strict=True):
        values = part["share"].sel(direction=name).to_numpy()
        figure.add_trace(
            line(part["step"].to_numpy(), values, str(name), colour, legend=col == 1,
                 hover=f"{name_of(run)}, {name}"), row=1, col=col,
        )  # fmt: skip


def _finish_shares(figure: go.Figure) -> go.Figure:
    figure.update_layout(showlegend=True, margin_t=60, legend_y=1.16)
    figure.update_xaxes(title_text="training step (log scale)", **LOG_STEPS)
    figure.update_yaxes(range=[-0.08, 1.15])
    figure.update_yaxes(title_text="entry by the best one (1)", col=1)
    return figure


def times(runs: Runs) -> go.Figure:
    """Shares learned from aligned starts, with the closed form of their half times."""
    titles = ["merged, white directions", "rank one, one head per direction"]
    figure = grid(1, 2, titles, 330, shared_yaxes=True, horizontal_spacing=0.03)
    kinds = (("merged-aligned", laws.merged_times), ("aligned", laws.rank_one_times))
    for col, (setting, expected) in enumerate(kinds, 1):
        run = runs[setting][0]
        _shares(figure, run, col)
        for step in np.unique(expected(run)):
            if step < float(run["step"].max()):
                figure.add_vline(x=float(step), line=DOTTED, row=1, col=col)  # type: ignore[arg-type]
    return _finish_shares(figure)


def shown(runs: Runs) -> Run:
    """The rank-one run that is drawn: the first of those with the most plateaus."""
    return max(runs["separate"], key=laws.count)


def matrices(runs: Runs) -> go.Figure:
    """M at the plateaus and at the end of one run."""
    run = shown(runs)
    names = [str(name) for name in run["direction"].to_numpy()]
    places = [(f"step {p.step:,}", p.place) for p in laws.plateaus(run)]
    return panels.matrices(
        [
            (title, run["m"].isel(step=place).to_numpy().astype(float), names, names)
            for title, place in (*places, (f"end of {name_of(run)}", -1))
        ],
        "",
    )


def heights(runs: Runs) -> go.Figure:
    """Loss at every plateau by the number of components, beside both closed forms."""
    task = laws.task_of(runs["separate"][0])
    counts = np.arange(task.d + 1)
    figure = base("paper", height=360)
    lines = (
        (f"closed form, {task.length} examples", closed.heights(task), INK, "solid"),
        ("closed form, endless prompts", closed.endless_heights(task), GREY, "dash"),
    )
    for name, values, colour, dash in lines:
        figure.add_trace(line(counts, values, name, colour, dash))
    kinds = (("separate", "population", BLUE, -0.06), ("sequences", "5000 sequences", ORANGE, 0.06))
    for setting, words, colour, shift in kinds:
        found = [(name_of(run), p) for run in runs[setting] for p in laws.plateaus(run)]
        figure.add_trace(
            go.Scatter(
                x=[p.components + shift for _, p in found], y=[p.loss for _, p in found],
                mode="markers", name=words, marker={"color": colour, "size": 8, "opacity": 0.7},
                customdata=[name for name, _ in found],
                hovertemplate="<b>%{customdata}</b><br>plateau at %{y:.4f}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=60)
    figure.update_xaxes(title_text="principal components learned", dtick=1)
    figure.update_yaxes(title_text=LOSS, rangemode="tozero")
    return figure


def controls(runs: Runs) -> go.Figure:
    """Loss of the controls, a panel each."""
    titles = {"equal": "equal eigenvalues", "large": "start .5", "sequences": "5000 sequences"}
    return _panels([(titles[s], runs[s], colour) for s, colour in
                    (("equal", PURPLE), ("large", RED), ("sequences", GREEN))])  # fmt: skip


def ranks(runs: Runs) -> go.Figure:
    """Loss by the rank of key and query, a panel each."""
    found = [s for s in runs if s.startswith("rank-")]
    return _panels([(s.replace("-", " "), runs[s], BLUE) for s in found])


def _panels(groups: Sequence[tuple[str, Sequence[Run], str]]) -> go.Figure:
    """Loss of groups of runs side by side, each with the heights of its task."""
    figure = grid(1, len(groups), [title for title, *_ in groups], 320, shared_yaxes=True,
                  horizontal_spacing=0.03)  # fmt: skip
    for col, (title, some, colour) in enumerate(groups, 1):
        for run in some:
            figure.add_trace(_course(run, title, colour, legend=False), row=1, col=col)
        task: Task = laws.task_of(some[0])
        for height in closed.heights(task):
            figure.add_hline(y=float(height), line=DOTTED, row=1, col=col)  # type: ignore[arg-type]
    figure.update_xaxes(type="log", dtick=1, tickformat=",", title_text="training step")
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text=LOSS, col=1)
    return figure
