"""Figures of the scan-and-snap study: evidence in (`workbench.zoo.scansnap.laws`), figure out.

Every run is a line or a point of its own; nothing is averaged over seeds.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from workbench.app.figures import base
from workbench.studies.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LOG_STEPS,
    ORANGE,
    PURPLE,
    RED,
    grid,
    line,
    name_of,
)
from workbench.zoo.claims import last
from workbench.zoo.scansnap import laws
from workbench.zoo.scansnap.laws import Evidence, Run
from workbench.zoo.scansnap.recipe import SAMPLED_RATES, SAMPLED_RATIOS, TASK

# Cold to warm: slow to fast decoder, early to late step.
FIVE = (PURPLE, BLUE, GREEN, ORANGE, RED)
GROUPS = {
    "common_mass": ("common tokens", GREY), "distinct_mass": ("distinct tokens", INK),
    "top_share": ("the most frequent distinct one", BLUE),
    "rare_share": ("the rarest distinct one", RED),
}  # fmt: skip
ENTROPY = "entropy on distinct tokens (nats)"
SHOWN_STEPS = (0, 10, 30, 100)


def _ticks(run: Run) -> dict:
    """A logarithmic axis of steps, with round ticks up to the end."""
    few = [step for step in (1, 10, 100, 1000) if step <= int(run["step"].max())]
    return {**LOG_STEPS, "tickvals": few}


def _moved(run: Run) -> Run:
    """Without step 0, which a logarithmic axis has no place for."""
    return run.sel(step=run["step"] > 0)


def scan(evidence: Evidence) -> go.Figure:
    """Mass by group of tokens over steps: expected loss, and sampled texts."""
    figure = grid(
        1, 2, ["expected loss, rates 1", "sampled texts, rates 1"], 380, shared_yaxes=True,
        horizontal_spacing=0.04,
    )  # fmt: skip
    for col, setting in enumerate(("ratio-1", "sampled-z1-r1"), 1):
        for i, run in enumerate(map(_moved, evidence.of(setting))):
            for name, (words, colour) in GROUPS.items():
                hover = f"{name_of(run)} {words}"
                curve = line(
                    run["step"].to_numpy(), run[name].to_numpy(), words, colour,
                    legend=col == 1 and i == 0, hover=hover,
                )  # fmt: skip
                figure.add_trace(curve, 1, col)
        figure.update_xaxes(**_ticks(evidence.of(setting)[0]), row=1, col=col)
    figure.update_layout(showlegend=True, margin_t=70, legend_y=1.2)
    figure.update_xaxes(title_text="training step (log scale)")
    figure.update_yaxes(title_text="share of attention", col=1)
    figure.update_yaxes(range=[0, 0.75])
    return figure


def tokens(evidence: Evidence) -> go.Figure:
    """Attention to every token that occurs in class 0, at some steps of one run."""
    run = evidence.of("ratio-1")[0]
    place = [*range(TASK.common), *TASK.own[0]]
    steps = [int(run["step"].sel(step=s, method="nearest")) for s in SHOWN_STEPS]
    figure = base("paper", height=380)
    for step, colour in zip((*steps, int(run["step"].max())), FIVE, strict=True):
        seen = run["attention"].isel(target=0, token=place).sel(step=step)
        figure.add_trace(
            go.Scatter(
                x=seen["token"].to_numpy(), y=seen.to_numpy(), mode="lines+markers",
                name=f"step {step:,}", line={"color": colour, "width": 1.5}, marker={"size": 6},
                hovertemplate=f"<b>%{{x}}, step {step:,}</b><br>%{{y:.4f}}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=40)
    figure.update_xaxes(title_text="token: ten common, ten distinct from the rarest on")
    figure.update_yaxes(title_text="share of attention", rangemode="tozero")
    return figure


def snap(evidence: Evidence) -> go.Figure:
    """Entropy on distinct tokens and its rate, by the ratio of rates."""
    figure = grid(1, 2, ["entropy", "its rate of fall"], 380, horizontal_spacing=0.11)
    for run, colour in zip(map(_moved, evidence.of(*laws.FLOW)), FIVE, strict=True):
        ratio = f"ratio {float(run['rate_y']) / float(run['rate_z']):g}"
        for col, values in enumerate((run["entropy"], -run["entropy_rate"]), 1):
            figure.add_trace(
                line(run["step"].to_numpy(), values.to_numpy(), ratio, colour, legend=col == 1),
                1, col,
            )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=70, legend_y=1.2)
    figure.update_xaxes(title_text="training step (log scale)",
                        **_ticks(evidence.of(laws.FLOW[0])[0]))  # fmt: skip
    figure.update_yaxes(title_text=ENTROPY, col=1)
    figure.update_yaxes(title_text="nats per step", exponentformat="none", col=2)
    return figure


def identity(evidence: Evidence) -> go.Figure:
    """Logarithm of the relative gain against the logit of the most frequent token."""
    run = evidence.of("ratio-1")[0]
    figure = base("paper", height=420)
    z = run["z_top"].to_numpy()
    ends = np.array([0.0, z[-1]])
    figure.add_trace(line(ends, 2 * ends, "theory: exp(2 z)", GREY, "dash"))
    weights = np.linspace(TASK.rarest, 1, TASK.distinct)
    for rank, colour in ((0, RED), (2, ORANGE), (4, GREEN), (6, BLUE), (8, PURPLE)):
        words = f"over the token of weight {weights[rank]:.1f}"
        figure.add_trace(line(z, laws.log_gain(run, rank).to_numpy(), words, colour))
    adam = evidence.of("adam")[0]
    figure.add_trace(
        line(adam["z_top"].to_numpy(), laws.log_gain(adam, 0).to_numpy(),
             "over the rarest, under Adam", INK, "dot")
    )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=80)
    figure.update_xaxes(title_text="logit z of the most frequent token (of weight 1)")
    figure.update_yaxes(title_text="ln of its relative gain, r / r(0)", range=[-2.2, 2.7])
    return figure


def ratios(evidence: Evidence) -> go.Figure:
    """Entropy at the end against the ratio of rates."""
    figure = grid(1, 2, ["expected loss", "sampled texts"], 400, horizontal_spacing=0.11)
    for names, words, colour in (
        (laws.FLOW, "outputs: next tokens", INK), (laws.WIDE, "outputs: whole vocabulary", GREY),
    ):  # fmt: skip
        runs = evidence.of(*names)
        x = [float(run["rate_y"]) / float(run["rate_z"]) for run in runs]
        curve = line(np.array(x), np.array([last(r, "entropy") for r in runs]), words, colour)
        figure.add_trace(curve.update(mode="lines+markers"), 1, 1)
    for rate, colour in zip(SAMPLED_RATES, FIVE, strict=False):
        found = [(ratio, run) for ratio in SAMPLED_RATIOS for run in evidence.sampled(rate, ratio)]
        words = f"attention's rate {rate:g}"
        figure.add_trace(
            go.Scatter(
                x=[ratio * 1.05 ** (int(run["seed"]) - 1.5) for ratio, run in found],
                y=[last(run, "entropy") for _, run in found], mode="markers", name=words,
                marker={"color": colour, "size": 7, "opacity": 0.8, "symbol": [
                    "x" if ratio * rate >= laws.BROKEN else "circle" for ratio, _ in found
                ]},
                customdata=[f"{name_of(run)}, decoder {ratio * rate:g}" for ratio, run in found],
                hovertemplate="<b>%{customdata}</b><br>%{y:.3f} nats<extra></extra>",
            ), 1, 2,
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=90, legend_y=1.25)
    figure.update_xaxes(type="log", title_text="rate of the decoder / rate of attention",
                        tickvals=[0.5, 1, 2, 5, 10])  # fmt: skip
    figure.update_yaxes(title_text=ENTROPY, col=1)
    return figure


def growth(evidence: Evidence) -> go.Figure:
    """B against steps in logarithms, and against ln ln of the decoder's time."""
    figure = grid(1, 2, ["beginning", "end"], 360, horizontal_spacing=0.1)
    run, fine = evidence.of("ratio-1")[0], evidence.of("fine")[0]
    for data, words, colour in ((run, "rates 1", BLUE), (fine, "rates .01", ORANGE)):
        time, b = _time(data)
        figure.add_trace(line(time, b, words, colour), 1, 1)
    time, b = _time(fine)
    figure.add_trace(line(time, b[-1] * (time / time[-1]) ** 2, "t²", INK, "dot"), 1, 1)
    time, b = _time(run)
    late = time >= 100
    x = np.log(np.log(TASK.tokens / TASK.classes * time[late]))
    figure.add_trace(line(x, b[late], "rates 1", BLUE, legend=False), 1, 2)
    figure.add_trace(line(x, b[late][-1] + (x - x[-1]) / 2, "slope 1/2", GREY, "dot"), 1, 2)
    figure.update_layout(showlegend=True, margin_t=70, legend_y=1.2)
    figure.update_xaxes(type="log", title_text="decoder's time, rate × step", row=1, col=1,
                        exponentformat="none", dtick=1)  # fmt: skip
    figure.update_yaxes(type="log", title_text="B (logits)", exponentformat="power", dtick=1,
                        row=1, col=1)  # fmt: skip
    figure.update_xaxes(title_text="ln ln(M t / K), from time 100 on", row=1, col=2)
    return figure


def _time(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """The decoder's time and B, where B is above zero."""
    b = laws.growth(run).to_numpy()
    return float(run["rate_y"]) * run["step"].to_numpy()[b > 0], b[b > 0]


def lengths(evidence: Evidence) -> go.Figure:
    """Lowest logit of a distinct token over steps, by the length of texts."""
    figure = base("paper", height=340)
    for setting, words, colour in (
        ("sampled-z1-r1", "128 tokens", RED), ("long", "2048 tokens", BLUE),
    ):  # fmt: skip
        for i, run in enumerate(evidence.of(setting)):
            figure.add_trace(
                line(run["step"].to_numpy(), run["z_lowest_distinct"].to_numpy(), words, colour,
                     legend=i == 0, hover=f"{name_of(run)}, {words}")
            )  # fmt: skip
    figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.update_layout(showlegend=True, margin_t=40)
    figure.update_xaxes(title_text="training step")
    figure.update_yaxes(title_text="attention logit")
    return figure
