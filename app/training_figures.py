"""Figures of the training page: curves over the steps of a run, another run and published numbers;
sweeps over a number at one step.

Pure functions, values in and `go.Figure` out.  The cursor at the chosen step is not in them: the
script lays it over the axes, so that nothing is drawn again while the step is dragged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import plotly.graph_objects as go

from workbench.app.figures import base, palette
from workbench.app.laboratories import Curve, Panel, Trained
from workbench.app.training_shapes import Sweep

# In the order of the curves of a figure; blue and orange are those of the theme.
_MORE = {
    "light": ("#2a8c6e", "#7b5ea7", "#a31621", "#6f7d2b", "#5d6b7a", "#b0558f"),
    "dark": ("#58c79f", "#b79be0", "#ff8a7a", "#b9c95c", "#9aa7b5", "#e08fc2"),
}
CLOSE = 0.05  # of the axis: numbers of phases need as much
BOUNDED = ("probability", "share")
MOST_NAMES = 8  # under the axis of a sweep
DECADES = 2  # an axis that spans more than this is logarithmic, but for shares


@dataclass(frozen=True)
class Axis:
    """Where a step stands: `linear`, or `log`: log10(1 + step / first), first the first after 0.

    >>> Axis("log", 10, 500).at(np.array([0, 90])).tolist()
    [0.0, 1.0]
    """

    scale: str
    first: int
    last: int

    @classmethod
    def of(cls, steps: np.ndarray, scale: str) -> Axis:
        """The axis of the logged steps of a run."""
        after = steps[steps > 0]
        return cls(scale, int(after.min()) if len(after) else 1, max(int(steps.max()), 1))

    def at(self, steps: np.ndarray) -> np.ndarray:
        """Coordinates on the axis."""
        steps = np.asarray(steps, dtype=float)
        return np.log10(1 + steps / self.first) if self.scale == "log" else steps

    def ticks(self) -> list[int]:
        """Steps that are named: 0, then 1, 2, 5 times powers of ten from `first` on."""
        if self.scale != "log":
            rough = self.last / 5
            size = 10 ** np.floor(np.log10(rough))
            step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough)
            return [int(s) for s in np.arange(0, self.last + 1, max(step, 1))]
        found = [m * 10**p for p in range(12) for m in (1, 2, 5)]
        return [0, *(s for s in found if self.first <= s <= self.last)]


def unit(units: str) -> str:
    """A unit as the title of an axis: "1" alone would be read as a value."""
    return "no unit" if units == "1" else units


def curves(
    panel: Panel, run: Trained, beside: Trained | None, axis: Axis, theme: str = "light"
) -> go.Figure:
    """One panel: a run in full lines, the run beside it dotted, published numbers as rings.

    Numbers at the upper edge say where the phases of the run begin.
    """
    t = palette(theme)
    colours = (t.blue, t.orange, *_MORE.get(theme, _MORE["light"]))
    figure, short = base(theme), _short(panel)
    # The first curve is drawn last, on top of those that it may coincide with.
    for name, colour in reversed(list(zip(panel.names, colours, strict=False))):
        if name in run.curves:
            _band(figure, run.curves[name], axis.at(run.steps), colour)
        if beside is not None and name in beside.curves:
            figure.add_trace(_line(beside, beside.curves[name], short[name], axis, colour, "dot"))
        if name in run.curves:
            figure.add_trace(_line(run, run.curves[name], short[name], axis, colour, "solid"))
        if name in run.published:
            # What was measured after the last step of this run is off the axis.
            series = run.published[name].loc[: axis.last]
            figure.add_trace(
                _points(name, series.index.to_numpy(), series.to_numpy(), panel, axis, colour)
            )
    _axes(figure, panel, [run, *([beside] if beside else [])], axis)
    _phases(figure, run, axis, t.faint)
    return figure


def _phases(figure: go.Figure, run: Trained, axis: Axis, colour: str) -> None:
    """A line where each phase begins, with its number; phases of one step share it."""
    begun: dict[int, list[str]] = {}
    for number, step in enumerate(run.phases.values(), start=1):
        begun.setdefault(step, []).append(str(number))
    steps = np.array(list(begun))
    end, before, row = float(axis.at(np.array([axis.last]))[0]), -np.inf, 0
    for x, numbers in zip(axis.at(steps).tolist(), begun.values(), strict=True):
        # A number that would stand on the one before it goes a row down.
        row, before = (1 - row if x - before < CLOSE * end else 0), x
        figure.add_vline(x=x, line={"color": colour, "width": 1, "dash": "dot"}, opacity=0.7)
        figure.add_annotation(
            x=x, y=1 - 0.09 * row, yref="paper", yanchor="top", xanchor="left",
            text="·".join(numbers), showarrow=False, font={"size": 11, "color": colour}, xshift=1,
        )  # fmt: skip


def _short(panel: Panel) -> dict[str, str]:
    """Names for the legend: where all curves are of one variable, the label alone."""
    first = {name.split(" ")[0] for name in panel.names}
    one = len(first) == 1 and len(panel.names) > 1
    return {name: name.split(" ", 1)[1] if one else name for name in panel.names}


def _line(run: Trained, curve: Curve, name: str, axis: Axis, colour: str, dash: str) -> go.Scatter:
    solid = dash == "solid"
    return go.Scatter(
        x=axis.at(run.steps), y=curve.values, mode="lines", name=escape(name),
        legendgroup=curve.name, showlegend=solid, opacity=1 if solid else 0.8,
        line={"color": colour, "width": 2 if solid else 1.5, "dash": dash},
        customdata=_hover(run.steps, curve.values),
        hovertemplate=f"<b>{escape(run.title)}</b>, step %{{customdata[0]}}<br>"
        f"{escape(curve.name)} %{{customdata[1]}} {escape(curve.units)}<br>"
        f"<i>{escape(curve.about)}</i><extra></extra>",
    )  # fmt: skip


def _points(
    name: str, steps: np.ndarray, values: np.ndarray, panel: Panel, axis: Axis, colour: str
) -> go.Scatter:
    return go.Scatter(
        x=axis.at(steps), y=values, mode="markers", name=escape(name), legendgroup=name,
        showlegend=False, customdata=_hover(steps, values),
        marker={"symbol": "circle-open", "size": 7, "color": colour, "line": {"width": 1.6}},
        hovertemplate="<b>published</b>, step %{customdata[0]}<br>"
        f"{escape(name)} %{{customdata[1]}} {escape(panel.units)}<extra></extra>",
    )  # fmt: skip


def _hover(steps: np.ndarray, values: np.ndarray) -> list[list[str]]:
    return [[f"{int(s):,}", f"{v:.3g}"] for s, v in zip(steps, values, strict=True)]


def _band(figure: go.Figure, curve: Curve, x: np.ndarray, colour: str) -> None:
    if curve.band is None:
        return
    low, high = curve.band
    figure.add_trace(
        go.Scatter(
            x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], mode="lines", line={"width": 0},
            fill="toself", fillcolor=colour, opacity=0.16, hoverinfo="skip", showlegend=False,
            legendgroup=curve.name,
        )
    )  # fmt: skip


def _axes(figure: go.Figure, panel: Panel, runs: Sequence[Trained], axis: Axis) -> None:
    ticks = axis.ticks()
    scale = "log(1 + step)" if axis.first == 1 else f"log(1 + step / {axis.first})"
    title = f"training step, {scale} scale" if axis.scale == "log" else "training step"
    end = float(axis.at(np.array([axis.last]))[0])
    figure.update_xaxes(
        title_text=title, range=[-0.01 * end, 1.01 * end], tickmode="array",
        tickvals=axis.at(np.array(ticks)), ticktext=[f"{s:,}" for s in ticks],
    )  # fmt: skip
    figure.update_yaxes(title_text=escape(unit(panel.units)))
    _legend(figure)
    values = np.concatenate(
        [run.curves[name].values for run in runs for name in panel.names if name in run.curves]
    )
    values = values[np.isfinite(values)]
    if panel.units in BOUNDED:
        figure.update_yaxes(range=[-0.02, max(1.02, float(values.max(initial=0)) * 1.02)])
    elif len(values) and values.min() > 0:
        if values.max() > 10**DECADES * values.min():
            figure.update_yaxes(type="log", dtick=1, exponentformat="power")
        else:
            figure.update_yaxes(rangemode="tozero")


def sweep(
    found: Sweep, run: Trained, other: Sweep | None, beside: Trained | None, theme: str = "light"
) -> go.Figure:
    """A run's lines at its last step, dotted those of the run beside it, dashed the baselines.

    The script moves the lines with the step; the axes span all steps of both runs.
    """
    t = palette(theme)
    figure, more = base(theme), _MORE.get(theme, _MORE["light"])
    for i, (name, values) in enumerate(found.baseline.items()):
        figure.add_trace(_over(found, name, values, f"<b>{escape(name)}</b>", more[i % len(more)],
                               ("dash", "dashdot")[i // len(more)], 1.4))  # fmt: skip
    for who, one, dash in ((beside, other, "dot"), (run, found, "solid")):
        for (label, values), colour in zip(
            one.lines.items() if one and who else (), (t.blue, t.orange, *more), strict=False
        ):
            name = f"{who.title} {label}".strip() if who else ""
            figure.add_trace(_over(one or found, name, values[-1], f"<b>{escape(name)}</b>",
                                   colour, dash, 3 if dash == "solid" else 2))  # fmt: skip
    _sweep_axes(figure, [found, *([other] if other else [])])
    return figure


def _over(
    found: Sweep, name: str, values: np.ndarray, said: str, colour: str, dash: str, width: float
) -> go.Scatter:
    return go.Scatter(
        x=found.x, y=values, mode="lines" if dash.startswith("dash") else "lines+markers",
        name=escape(name), line={"color": colour, "width": width, "dash": dash},
        marker={"size": 5}, connectgaps=False,
        hovertemplate=f"{said}<br>{escape(found.dim)} %{{x:,}}: %{{y:.3~g}} "
        f"{escape(found.units)}<extra></extra>",
    )  # fmt: skip


def _sweep_axes(figure: go.Figure, shown: Sequence[Sweep]) -> None:
    first = shown[0]
    drawn = [values.ravel() for one in shown for values in one.lines.values()]
    values = np.concatenate([*drawn, *first.baseline.values()])
    values = values[np.isfinite(values)]
    logarithmic = first.x.min() > 0 and first.x.max() > 10 * first.x.min()
    named = first.x[_apart(np.log(first.x) if logarithmic else first.x)]
    figure.update_xaxes(
        title_text=escape(first.dim) + (", log scale" if logarithmic else ""),
        type="log" if logarithmic else "linear", tickmode="array", tickvals=named,
        ticktext=[f"{x:,g}" for x in named],
    )  # fmt: skip
    figure.update_yaxes(title_text=escape(unit(first.units)))
    if len(values):
        low, high = float(values.min()), float(values.max())
        if low > 0 and high > 10 * low:
            ends = [float(np.log10(low)) - 0.06, float(np.log10(high)) + 0.06]
            figure.update_yaxes(
                type="log", range=ends, title_text=f"{escape(unit(first.units))}, log scale",
                tickvals=[m * 10.0**p for p in range(-9, 9) for m in (1, 2, 5)], tickformat="~g",
            )  # fmt: skip
        else:
            room = 0.04 * (high - low or 1.0)
            figure.update_yaxes(range=[min(0.0, low) - room, high + room])
    _legend(figure)


def _apart(places: np.ndarray) -> list[int]:
    """Indices of ascending places far enough from each other for a name under each."""
    least = (places[-1] - places[0]) / MOST_NAMES
    chosen = [0]
    for i in range(1, len(places)):
        if places[i] - places[chosen[-1]] >= least:
            chosen.append(i)
    return chosen


def _legend(figure: go.Figure) -> None:
    """Above the axes; the last trace, drawn on top, is named first."""
    figure.update_layout(
        showlegend=True, margin={"l": 8, "r": 14, "t": 8, "b": 8},
        legend={"x": 0, "xanchor": "left", "y": 1.02, "traceorder": "reversed"},
    )  # fmt: skip
