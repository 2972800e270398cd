"""Figures of the active-dormant study: trajectories of single runs in, one figure out.

Runs come by setting, as `workbench.zoo.claims.by_setting` gives them.  Every seed is a line
of its own; nothing is averaged over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.app.figures import base
from workbench.studies.drawing import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    LOG_STEPS,
    ORANGE,
    PALE,
    PURPLE,
    RED,
    STEP,
    name_of,
)
from workbench.zoo.backcopy import laws

Runs = Mapping[str, Sequence[xr.Dataset]]

COLOURS = {
    "main": BLUE, "no-copy": GREY, "relu": ORANGE, "null-from-0": GREEN, "null-from-4": PURPLE,
    "no-attention": RED, "no-mlp": INK, "adamw": BLUE, "sgd": ORANGE,
}  # fmt: skip
# Plotly reads `<s>` as "struck through".
S = "&lt;s&gt;"
_DASHES = ("solid", "dash", "dot")


def setting_of(run: xr.Dataset) -> str:
    return str(run["setting"].item())


def _line(
    run: xr.Dataset, values: xr.DataArray, colour: str, name: str, seed: int = 0, **more: object
) -> go.Scatter:
    """A curve over step with the run in its hover text; `seed` chooses the dash."""
    options = {
        "mode": "lines",
        "name": name,
        "legendgroup": name,
        "showlegend": seed == 0,
        "line": {"color": colour, "width": 1.8, "dash": _DASHES[seed % len(_DASHES)]},
        "hovertemplate": f"<b>{name_of(run)}</b> step %{{x:,}}<br>{name}: %{{y:.3~g}}"
        "<extra></extra>",
    }
    return go.Scatter(x=run["step"].to_numpy(), y=values.to_numpy(), **{**options, **more})


def _over_steps(
    runs: Runs,
    curves: Sequence[tuple[str, str, str, Callable[[xr.Dataset], xr.DataArray]]],
    y_title: str,
    logarithmic: bool = True,
) -> go.Figure:
    """One line per run; `curves` are (setting, name in the legend, colour, values over step)."""
    figure = base("paper", height=380)
    for setting, name, colour, values in curves:
        for seed, run in enumerate(runs.get(setting, ())):
            # Plotly draws a point at log 0 as a flat line from the left.
            shown = run.sel(step=run["step"] > 0) if logarithmic else run
            figure.add_trace(_line(shown, values(shown), colour, name, seed))
    figure.update_layout(showlegend=True, margin_t=40)
    figure.update_xaxes(title_text="training step")
    if logarithmic:
        figure.update_xaxes(title_text=STEP, **LOG_STEPS)
    figure.update_yaxes(title_text=y_title)
    return figure


def risks(runs: Runs) -> go.Figure:
    """Bigram and backcopy risk, with the logged steps at which each is learned."""
    curves = (
        ("main", "bigram: excess risk", GREY, lambda run: run["excess_off"]),
        ("main", "backcopy: risk", BLUE, lambda run: run["risk_on"]),
        ("no-attention", "backcopy without attention", ORANGE, lambda run: run["risk_on"]),
    )
    figure = _over_steps(runs, curves, "risk above the oracle (nats, log scale)")
    figure.update_yaxes(type="log", dtick=1)
    reached = np.array([laws.learned(run) for run in runs["main"]])
    marks = (("bigram", laws.LEARNED_BIGRAM, GREY), ("backcopy", laws.LEARNED_COPY, BLUE))
    for column, (what, mark, colour) in zip(reached.T, marks, strict=True):
        steps = column[np.isfinite(column)]
        when = f"learned at step {_span(steps)}" if len(steps) else "not learned"
        figure.add_trace(
            go.Scatter(
                x=steps, y=np.full(len(steps), mark), mode="markers", showlegend=False,
                marker={"color": colour, "size": 10, "symbol": "diamond",
                        "line": {"color": "white", "width": 1}},
                hovertemplate=f"<b>{what}</b> below {mark:g} nats since step %{{x}}<extra></extra>",
            )
        )  # fmt: skip
        figure.add_hline(y=mark, line={"color": colour, "width": 1, "dash": "dot"})
        # On a log axis lines are placed by value, annotations by its logarithm.
        figure.add_annotation(
            text=f"{what} {when} (below {mark:g})", font={"color": colour}, showarrow=False,
            x=1, xref="paper", xanchor="right", y=float(np.log10(mark)),
            yanchor="bottom" if mark == max(m for _, m, _ in marks) else "top",
        )  # fmt: skip
    return figure


def _span(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low}" if low == high else f"{low} to {high}"


def sink(runs: Runs) -> go.Figure:
    """How the weight on `<s>` grows, on rows without trigger, and on rows with one."""

    def off(run: xr.Dataset) -> xr.DataArray:
        return laws.head_of(run)["sink_off"]

    curves = (
        ("main", "no trigger at the query", BLUE, off),
        ("main", "trigger at the query", ORANGE, lambda run: laws.head_of(run)["sink_on"]),
        ("no-copy", "control: no copying to learn", GREY, off),
        ("relu", "ReLU attention", GREEN, off),
        ("null-from-4", "beside a null sink from +4", PURPLE, off),
    )
    figure = _over_steps(runs, curves, f"mean weight on {S} (probability)")
    figure.update_yaxes(range=[-0.02, 1.02])
    return figure


def sink_by_run(runs: Runs) -> go.Figure:
    """Weight on `<s>` at the end, every run: rows without trigger, with one, and the null sink."""
    every = [run for group in runs.values() for run in group if setting_of(run) != "no-attention"]
    last = [laws.head_of(run).isel(step=-1) for run in every]
    figure = base("paper", height=110 + 24 * len(every))
    marks = (
        ("sink_off", f"{S}, no trigger at the query", BLUE, "circle"),
        ("sink_on", f"{S}, trigger at the query", ORANGE, "circle-open"),
        ("null_off", "null sink, no trigger at the query", PURPLE, "diamond-open"),
    )
    for variable, name, colour, symbol in marks:
        shown = [run for run in last if variable != "null_off" or "null" in setting_of(run)]
        figure.add_trace(
            go.Scatter(
                x=[float(run[variable]) for run in shown], y=[name_of(run) for run in shown],
                mode="markers", name=name,
                marker={"color": colour, "size": 10, "symbol": symbol,
                        "line": {"width": 2, "color": colour}},
                hovertemplate=f"<b>%{{y}}</b><br>{name}: %{{x:.3~f}}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=40)
    figure.update_xaxes(
        title_text="mean weight at the last step (probability)", range=[-0.02, 1.02]
    )
    figure.update_yaxes(
        title_text="run (setting and seed)", categoryorder="array",
        categoryarray=[name_of(run) for run in reversed(every)],
    )  # fmt: skip
    return figure


def margin(runs: Runs) -> go.Figure:
    """Score of `<s>` above the mean of other keys, with the band across token types."""
    figure = base("paper", height=380)
    for setting, name, colour in (("main", "with triggers", BLUE), ("no-copy", "control", GREY)):
        for seed, run in enumerate(runs.get(setting, ())):
            head = laws.head_of(run)
            steps = head["step"].to_numpy()
            low, high = (head[f"delta_logit_{end}"].to_numpy() for end in ("low", "high"))
            figure.add_trace(
                go.Scatter(
                    x=np.r_[steps, steps[::-1]], y=np.r_[high, low[::-1]], fill="toself",
                    fillcolor=colour, opacity=0.1, line={"width": 0}, hoverinfo="skip",
                    showlegend=False, mode="lines",
                )
            )  # fmt: skip
            figure.add_trace(
                _line(
                    run, head["delta_logit_off"], colour, name, seed,
                    customdata=np.stack([low, high], axis=1),
                    hovertemplate=f"<b>{name_of(run)}</b> step %{{x:,}}<br>mean %{{y:.2f}}, "
                    "10–90 % of token types %{customdata[0]:.2f} to %{customdata[1]:.2f}"
                    "<extra></extra>",
                )
            )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=40)
    figure.update_xaxes(title_text="training step")
    figure.update_yaxes(title_text=f"score of {S} minus mean of keys 1..q−1 (logits)")
    return figure


def values(runs: Runs) -> go.Figure:
    """Norm of what each role writes when attended to."""

    def norm(role: str) -> Callable[[xr.Dataset], xr.DataArray]:
        return lambda run: laws.head_of(run)["value_norm"].sel(role=role)

    curves = (
        ("main", f"{S}", BLUE, norm("begin")),
        ("main", "triggers", ORANGE, norm("trigger")),
        ("main", "other symbols", GREY, norm("other")),
        ("no-copy", f"control: {S}", GREEN, norm("begin")),
        ("no-copy", "control: other symbols", PURPLE, norm("other")),
    )
    figure = _over_steps(runs, curves, "‖W<sub>O</sub> v‖ (L2 norm, mean over positions)")
    figure.update_yaxes(rangemode="tozero")
    return figure


def residual(runs: Runs) -> go.Figure:
    """Norm of the stream at `<s>` after the first of three blocks, by optimiser."""

    def norm(role: str) -> Callable[[xr.Dataset], xr.DataArray]:
        return lambda run: run["resid_norm"].sel(stream=1, role=role)

    curves = (
        ("adamw", f"AdamW: {S}", BLUE, norm("begin")),
        ("sgd", f"SGD: {S}", ORANGE, norm("begin")),
        ("adamw", "AdamW: other symbols", PALE, norm("other")),
        ("sgd", "SGD: other symbols", "#f0c9a0", norm("other")),
    )
    figure = _over_steps(runs, curves, "‖h‖ after block 0 of three (L2 norm)", logarithmic=False)
    steps = max(int(run["step"].max()) for name in ("adamw", "sgd") for run in runs[name])
    figure.add_vrect(
        x0=laws.LATE * steps, x1=steps, fillcolor=GREY, opacity=0.08, line={"width": 0},
        annotation={"text": "slope is fitted here", "font": {"color": FAINT, "size": 11}},
        annotation_position="bottom right",
    )  # fmt: skip
    return figure


EDITS = {
    "L0H0": "head zeroed",
    "L0 mlp": "MLP removed",
    "key 0": f"key 0, {S}, evicted",
    "key 1": "key 1 evicted",
    "key 2": "key 2 evicted",
}


def interventions(runs: Runs) -> go.Figure:
    """By what factor the excess risk grows when a part of the trained network is gone."""
    figure = base("paper", height=400)
    names = list(EDITS.values())
    for variable, name, colour in (
        ("edit_excess_on", "backcopy (trigger at the query)", ORANGE),
        ("edit_excess_off", "bigram (no trigger)", BLUE),
    ):
        excess = [run[variable].isel(step=-1) for run in runs["main"]]
        whole = np.array([float(e.sel(edit="none")) for e in excess])
        edited = np.array([[float(e.sel(edit=edit)) for edit in EDITS] for e in excess])
        factors = edited / whole[:, None]
        middle = np.exp(np.log(factors).mean(axis=0))
        hover = [
            f"<b>{part}</b>, {name}<br>"
            + "<br>".join(
                f"{name_of(run)}: {a:.3g} → {b:.3g} nats (× {b / a:.3g})"
                for run, a, b in zip(runs["main"], whole, edited[:, i], strict=True)
            )
            for i, part in enumerate(names)
        ]
        figure.add_trace(
            go.Bar(
                x=names, y=middle - 1, base=1, name=name, marker={"color": colour},
                customdata=hover, hovertemplate="%{customdata}<extra></extra>",
                text=[f"× {m:.2f}" if m < 10 else f"× {m:.0f}" for m in middle],
                textposition="outside", textfont={"size": 11}, cliponaxis=False,
            )
        )  # fmt: skip
    figure.add_hline(y=1, line={"color": INK, "width": 1})
    figure.update_layout(showlegend=True, margin_t=40, bargap=0.25)
    figure.update_xaxes(title_text="part that is gone")
    top = max(float(np.max(np.asarray(bar.y))) + 1 for bar in figure.data)  # type: ignore[attr-defined]
    figure.update_yaxes(
        type="log", title_text="excess risk, times that of the whole network (log scale)",
        range=[-0.25, np.log10(top) + 0.3], dtick=1,
    )  # fmt: skip
    return figure
