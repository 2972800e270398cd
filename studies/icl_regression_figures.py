"""Figures of the icl-regression study: evidence in (`workbench.zoo.regression.laws`), figure out.

Every run is a line or a point of its own; nothing is averaged over seeds.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from scipy.stats import binomtest

from workbench.app.figures import base
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
from workbench.zoo.regression import laws, reduced
from workbench.zoo.regression.laws import Evidence

RISK = "risk (squared label)"
FATES = {"solved": BLUE, "late": ORANGE, "stuck": RED}
# Groups in the order of the story: setting and its words.
SETTINGS = {
    "h1": "one head", "same": "two heads, same sign", "opposite": "two heads, opposite signs",
    "h2": "two heads", "h3": "three heads", "h4": "four heads", "h8": "eight heads",
}  # fmt: skip


def shown(evidence: Evidence) -> xr.Dataset:
    """The run whose circuits are drawn: the first solved one of two heads, random starts first."""
    return evidence.solved("h2", "opposite")[0]


def phases(evidence: Evidence) -> go.Figure:
    """Everything that emerges, of one run, on one axis."""
    run = shown(evidence)
    run = run.sel(step=run["step"] > 0)
    best = laws.baseline(run, "debiased GD")
    zero = laws.baseline(run, "zero")
    size = laws.size(run)
    curves = (
        ("risk left above debiased GD", INK, (run["risk"] - best) / (zero - best)),
        ("zero sum: |Σμ| / Σ|μ|", RED, run["zero_sum"]),
        ("KQ off the identity", BLUE, run["off_kq"]),
        ("OV off the label", GREEN, run["ov_x"]),
        ("step η = Σμω", ORANGE, run["eta"]),
        ("|ω|, of its maximum", PURPLE, size / size.max()),
    )
    figure = base("paper", height=400)
    steps = run["step"].to_numpy()
    for name, colour, values in curves:
        figure.add_trace(
            line(steps, values.to_numpy(), name, colour, hover=f"{name_of(run)} {name}")
        )
    figure.update_layout(showlegend=True, margin_t=60)
    figure.update_xaxes(title_text=STEP, **LOG_STEPS)
    figure.update_yaxes(title_text="share (1)", range=[-0.03, 1.25])
    return figure


def fates(evidence: Evidence) -> go.Figure:
    """Where every run ends."""
    groups = {s: evidence.of(s) for s in SETTINGS if evidence.of(s)}
    figure = base("paper", height=120 + 42 * len(groups))
    rng = np.random.default_rng(0)
    rows = [(place, run) for place, runs in enumerate(groups.values()) for run in runs]
    for word, colour in FATES.items():
        some = [(place, run) for place, run in rows if laws.fate(run) == word]
        figure.add_trace(
            go.Scatter(
                x=[laws.final(run) for _, run in some],
                y=[place + rng.uniform(-0.28, 0.28) for place, _ in some],
                mode="markers", name=word, marker={"color": colour, "size": 8, "opacity": 0.8},
                customdata=[name_of(run) for _, run in some],
                hovertemplate=f"<b>%{{customdata}}</b> {word}<br>risk %{{x:.4f}}<extra></extra>",
            )
        )  # fmt: skip
    any_run = rows[0][1]
    for predictor, colour in (("ridge", GREEN), ("GD", GREY), ("debiased GD", INK)):
        figure.add_vline(
            x=laws.baseline(any_run, predictor), line={"color": colour, "width": 1, "dash": "dot"}
        )
    figure.add_annotation(
        text="dotted: ridge, GD, debiased GD", x=0, xref="paper", xanchor="left", y=1.0,
        yref="paper", yanchor="bottom", showarrow=False, font={"size": 11, "color": FAINT},
    )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=40)
    figure.update_xaxes(title_text=RISK, range=[0.1, 0.44])
    figure.update_yaxes(
        tickvals=list(range(len(groups))), ticktext=[SETTINGS[s] for s in groups],
        autorange="reversed", title_text="heads at the start",
    )  # fmt: skip
    return figure


def courses(evidence: Evidence) -> go.Figure:
    """Risk over training, every run, by the number of heads."""
    groups = {s: evidence.of(s) for s in SETTINGS if evidence.of(s)}
    cols = min(4, len(groups))
    rows = -(-len(groups) // cols)
    figure = grid(
        rows, cols, [SETTINGS[s] for s in groups], 100 + 190 * rows, shared_yaxes=True,
        shared_xaxes=True, horizontal_spacing=0.02, vertical_spacing=0.12,
    )  # fmt: skip
    seen: set[str] = set()
    for i, runs in enumerate(groups.values()):
        for run in runs:
            word = laws.fate(run)
            part = run.sel(step=run["step"] > 0)
            trace = line(
                part["step"].to_numpy(), part["risk"].to_numpy(), word, FATES[word],
                legend=word not in seen, hover=f"{name_of(run)} {word}",
            )  # fmt: skip
            figure.add_trace(trace, row=i // cols + 1, col=i % cols + 1)
            seen.add(word)
    figure.update_layout(showlegend=True, margin_t=60, legend_y=1.08)
    figure.update_xaxes(type="log", tickvals=[10, 100, 1000], tickformat=",")
    figure.update_xaxes(title_text="training step", row=rows)
    figure.update_yaxes(title_text=RISK, col=1)
    return figure


def trapped(evidence: Evidence) -> go.Figure:
    """How often random starts stick, by the number of heads."""
    figure = base("paper", height=340)
    heads = np.arange(1, 9)
    figure.add_trace(
        line(heads, 2.0 ** (1 - heads), "all heads draw one sign: 2^(1−H)", GREY, "dash")
    )
    flow = [(h, trap.all) for h, trap in evidence.traps.items()]
    figure.add_trace(
        line(np.array(flow)[:, 0], np.array(flow)[:, 1], "reduced flow", PURPLE)
        .update(mode="lines+markers")
    )  # fmt: skip
    counts = laws.stuck_counts(evidence)
    if counts:
        tests = {h: binomtest(k, n).proportion_ci(method="wilson") for h, (k, n) in counts.items()}
        share = np.array([k / n for k, n in counts.values()])
        figure.add_trace(
            go.Scatter(
                x=list(counts), y=share, mode="markers", name="trained (95 % interval)",
                marker={"color": RED, "size": 9},
                error_y={"type": "data", "symmetric": False, "color": RED, "thickness": 1.2,
                         "array": [t.high - s for t, s in zip(tests.values(), share, strict=True)],
                         "arrayminus": [max(0.0, s - t.low)
                                        for t, s in zip(tests.values(), share, strict=True)]},
                customdata=[f"{k} of {n} stuck" for k, n in counts.values()],
                hovertemplate="<b>%{x} heads</b><br>%{customdata}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=40)
    figure.update_xaxes(title_text="number of heads H", dtick=1)
    figure.update_yaxes(title_text="share of stuck starts", range=[-0.03, 1.03])
    return figure


def lengths(evidence: Evidence) -> go.Figure:
    """Risk at prompts of other lengths, nothing retuned, beside every simple predictor."""
    run = shown(evidence)
    x = run["length"].to_numpy()
    figure = base("paper", height=430)
    curves = (
        ("ridge (Bayes)", "ridge", GREEN, "solid"),
        ("GD, best step at each length", "GD", GREY, "solid"),
        ("debiased GD, best step at each length", "debiased GD", INK, "dot"),
        ("linear attention, divided by the length", "linear", ORANGE, "solid"),
        ("linear attention, divided by 40 throughout", "linear, unscaled", ORANGE, "dash"),
    )
    for name, predictor, colour, dash in curves:
        values = run["baseline"].sel(predictor=predictor).to_numpy()
        figure.add_trace(line(x, values, name, colour, dash))
    figure.add_trace(line(x, run["final"].to_numpy(), "two heads of softmax", BLUE))
    for one in evidence.of("h1")[:1]:
        figure.add_trace(line(x, one["final"].to_numpy(), "one head of softmax", RED))
    length = laws.own_length(run)
    figure.add_vline(x=length, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.update_layout(showlegend=True, margin_t=70)
    figure.update_xaxes(
        type="log", title_text=f"points in the prompt (trained at {length})", tickvals=list(x)
    )
    figure.update_yaxes(type="log", title_text=f"{RISK}, log scale", range=[-1.05, 1.0],
                        tickvals=[0.1, 0.2, 0.5, 1, 2, 5, 10])  # fmt: skip
    return figure


def flow(evidence: Evidence) -> go.Figure:
    """The gradient flow of the reduced loss late in time, beside its laws."""
    t = laws.FLOW_TIMES
    figure = grid(1, 2, ["|ω|, mean of two heads", "loss above its floor"], 340,
                  horizontal_spacing=0.1)  # fmt: skip
    model = evidence.opposite[0]
    law = reduced.slide(model, t)
    panels = (
        (laws.width, law, "t^(−1/6)"),
        (laws.excess, model.c * model.d**3 * law**4 / 6 / (1 + model.c * model.d) ** 2, "t^(−2/3)"),
    )
    for col, (of, expected, words) in enumerate(panels, 1):
        for models, name, colour in (
            (evidence.opposite, "opposite signs", BLUE), (evidence.same, "same sign", RED),
        ):  # fmt: skip
            values = np.array([of(model) for model in models])
            slope = laws.slope(models, of)
            hover = f"{name}, slope {slope:.3f}"
            figure.add_trace(line(t, values, name, colour, legend=col == 1, hover=hover), 1, col)
        figure.add_trace(line(t, expected, "law", INK, "dot", legend=col == 1, hover=words), 1, col)
        figure.add_annotation(
            text=f"slope {laws.slope(evidence.opposite, of):.3f}, law {words}", showarrow=False,
            x=1, xref="x domain" if col == 1 else "x2 domain", xanchor="right",
            y=0.9, yref="y domain" if col == 1 else "y2 domain", font={"size": 11, "color": BLUE},
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=60, legend_y=1.12)
    figure.update_xaxes(type="log", title_text="time of the flow")
    figure.update_yaxes(type="log", exponentformat="power")
    figure.update_yaxes(dtick=1, row=1, col=2)
    figure.update_yaxes(title_text="logits", row=1, col=1)
    figure.update_yaxes(title_text="squared label", row=1, col=2)
    return figure
