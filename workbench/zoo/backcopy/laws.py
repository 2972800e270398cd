"""What must come out of the laboratory, as numbers with marks and controls (`Law`).

Every value is the worst of its seeds, every null the one that comes nearest to the mark: a law that
holds, holds for each seed against each control.  Statistics are read at the last logged step unless
they say otherwise.  In deeper networks the head is the one with the largest sink.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.zoo.claims import Claim, Finding, Values, by_setting, findings
from workbench.zoo.trajectory import Mark, Results

GUO = "Guo et al. 2024, arXiv 2410.13835"
XIAO = "Xiao et al. 2023, arXiv 2309.17453"
OURS = "this laboratory; sink logit as in gpt-oss"
LEARNED_BIGRAM, LEARNED_COPY = 0.5, 1.0  # nats: bigram excess, backcopy risk
Runs = Mapping[str, Sequence[xr.Dataset]]
LATE = 0.5  # share of the steps over which the slope of the residual is fitted


@dataclass(frozen=True)
class Statistic:
    """A number of one run; `of` takes the run's trajectory, over step."""

    says: str
    of: Callable[[xr.Dataset], float]


def check(results: Results, only: Collection[str] | None = None) -> list[Finding]:
    """Every claim on what was trained, in the order of the story.

    With `only`, the names of the laws that can be read from these runs, the others are not
    applicable.  Required are the laws of the paper itself.
    """
    return findings(by_setting(results.trajectories), CLAIMS, only, reported=(XIAO, OURS))


def copy_delay(run: xr.Dataset) -> float:
    """Steps from bigram excess < .5 to backcopy risk < 1, among the logged ones."""
    bigram, backcopy = learned(run)
    return backcopy - bigram


def learned(run: xr.Dataset) -> tuple[float, float]:
    """The first logged steps with bigram excess < .5 and with backcopy risk < 1; NaN: never."""

    def first(reached: xr.DataArray) -> float:
        steps = run["step"].to_numpy()[reached.to_numpy()]
        return float(steps[0]) if len(steps) else np.nan

    return first(run["excess_off"] < LEARNED_BIGRAM), first(run["risk_on"] < LEARNED_COPY)


def head_of(run: xr.Dataset) -> xr.Dataset:
    """The trajectory of the head that ends with the largest sink."""
    best = run["sink_off"].isel(step=-1).argmax(("layer", "head"))
    return run.isel({dim: int(place) for dim, place in best.items()})


def value_ratio(run: xr.Dataset) -> float:
    """||W_O v|| of `<s>` over that of symbols that are no triggers."""
    norms = head_of(run)["value_norm"].isel(step=-1)
    return float(norms.sel(role="begin") / norms.sel(role="other"))


def value_drop(run: xr.Dataset) -> float:
    """||W_O v|| of `<s>` over its own largest value so far."""
    norms = head_of(run)["value_norm"].sel(role="begin")
    return float(norms.isel(step=-1) / norms.max())


def concentration(run: xr.Dataset) -> float:
    """Width of the 10-90 % band of the logit margin across token types, over its mean."""
    last = head_of(run).isel(step=-1)
    band = last["delta_logit_high"] - last["delta_logit_low"]
    return float(abs(band / last["delta_logit_off"]))


def residual_slope(run: xr.Dataset) -> float:
    """Slope of the norm of `<s>` after block 0, per 1000 steps, over the later half."""
    norms = run["resid_norm"].sel(stream=1, role="begin")
    late = norms.where(norms["step"] >= LATE * norms["step"].max(), drop=True)
    return float(1000 * np.polyfit(late["step"], late, 1)[0])


def edited(part: str, rows: str) -> Callable[[xr.Dataset], float]:
    """Rise of the excess risk at `rows` ("on", "off") when `part` is gone."""

    def rise(run: xr.Dataset) -> float:
        excess = run[f"edit_excess_{rows}"].isel(step=-1)
        return float(excess.sel(edit=part) - excess.sel(edit="none"))

    return rise


def grown(part: str) -> Callable[[xr.Dataset], float]:
    """Growth of the bigram excess when `part` is gone, as a share of it.

    A share, because the excess itself falls throughout training, and with it what can be lost.
    """

    def growth(run: xr.Dataset) -> float:
        excess = run["edit_excess_off"].isel(step=-1)
        return float(excess.sel(edit=part) / excess.sel(edit="none")) - 1

    return growth


def _last(name: str) -> Callable[[xr.Dataset], float]:
    return lambda run: float(head_of(run)[name].isel(step=-1))


_SINK = Statistic("mean weight on <s>, queries without trigger", _last("sink_off"))
_SINK_ON = Statistic("mean weight on <s>, queries with a trigger", _last("sink_on"))
_RISK = Statistic("backcopy risk, nats", _last("risk_on"))
_RATIO = Statistic("||W_O v|| of <s> over that of other symbols", value_ratio)
_DROP = Statistic("||W_O v|| of <s> over its own maximum in training", value_drop)
_MARGIN = Statistic(
    "mean logit margin of <s>, token types without triggers", _last("delta_logit_off")
)
_BAND = Statistic("10-90 % band of the logit margin over its mean", concentration)
_NULL = Statistic("mean mass of the null sink, queries without trigger", _last("null_off"))
_SLOPE = Statistic("slope of ||h_0|| after block 0, per 1000 steps", residual_slope)
_DELAY = Statistic("steps from bigram excess < .5 to backcopy risk < 1", copy_delay)
_AT_ONCE = Statistic("zero: both learned at once", lambda _: 0.0)
_HEAD_ON = Statistic("rise of backcopy risk, head zeroed", edited("L0H0", "on"))
_HEAD_OFF = Statistic("rise of bigram risk, head zeroed", edited("L0H0", "off"))
_MLP_OFF = Statistic("rise of bigram risk, MLP removed", edited("L0 mlp", "off"))
_EVICT_OFF = Statistic("growth of bigram excess, key 0 evicted", grown("key 0"))
_EVICT_ON = Statistic("rise of backcopy risk, key 0 evicted", edited("key 0", "on"))
_EVICT_1 = Statistic("growth of bigram excess, key 1 evicted", grown("key 1"))
_EVICT_2 = Statistic("growth of bigram excess, key 2 evicted", grown("key 2"))

# The laws in words, in the terms of the figures.
SAYS = {
    "bigram before backcopy": "The bigram statistics of the language are learned before the rule "
    "that copies the symbol before a trigger.",
    "backcopy needs attention": "With attention the copying is learned; without it, it is not.",
    "sink where the head is dormant": "On queries without a trigger, where there is nothing to "
    "copy, the head attends to <s>; it does not when there is never anything to copy.",
    "no sink where it is active": "On queries with a trigger the same head leaves <s> alone.",
    "sink logits grow": "The score of <s> rises far above that of the other keys.",
    "sink logits concentrate": "It does so alike for all token types: their spread is small beside "
    "their mean.",
    "value of the sink is small": "Being attended to, <s> writes less than the other symbols do.",
    "value of the sink drains": "What <s> writes first grows, then shrinks again.",
    "no triggers, no sink": "Control: in a language without the rule the head makes no sink.",
    "no triggers, no drain": "Control: and there <s> writes as much as other symbols.",
    "ReLU attention has no sink": "A head whose weights need not sum to one has no use for a sink.",
    "the head carries backcopy": "Zeroing the head destroys the copying.",
    "the head carries nothing else": "Zeroing it leaves the bigram predictions, which removing the "
    "MLP destroys: on these queries the head is dormant.",
    "eviction of <s> hurts the dormant": "When <s> is evicted, queries without a trigger suffer, "
    "which they do not from losing the key after it.",
    "more than that of other keys": "Nor from losing the second key after it.",
    "eviction of <s> spares the active": "Queries with a trigger do not notice that <s> is gone.",
    "a null sink from +4 takes over": "A learned logit in the softmax's denominator that starts "
    "high becomes the sink in the place of <s>.",
    "a null sink from 0 does not": "One that starts at zero loses to <s>: who is ahead early wins.",
    "AdamW: the residual grows": "The residual stream at <s> keeps growing under AdamW.",
    "SGD: the residual shrinks": "Under SGD it shrinks.",
}


def _claim(
    name: str, source: str, mark: Mark, statistic: Statistic, setting: str, control: str,
    other: Statistic | None = None,
) -> Claim[Runs]:  # fmt: skip
    """`statistic` of runs `setting`; the null is that of runs `control`, or `other` if given."""

    def read(runs: Runs) -> tuple[Values, Values]:
        for wanted in (setting, control):
            if wanted not in runs:
                raise WorkbenchError(
                    f"there is no run {wanted!r} here, which the law {name!r} needs; "
                    f"there are {', '.join(runs)}."
                )
        null = other or statistic
        return [statistic.of(run) for run in runs[setting]], [null.of(r) for r in runs[control]]

    says = statistic.says
    if other is not None and other is not statistic:
        says = f"{says}; control: {other.says}"
    return Claim(name, source, says, mark, control, SAYS[name], read, (setting, control))


CLAIMS: tuple[Claim[Runs], ...] = (
    _claim("bigram before backcopy", GUO, Mark(">", 0), _DELAY, "main", "main", _AT_ONCE),
    _claim("backcopy needs attention", GUO, Mark("<", 0.4), _RISK, "main", "no-attention"),
    _claim("sink where the head is dormant", GUO, Mark(">", 0.5), _SINK, "main", "no-copy"),
    _claim("no sink where it is active", GUO, Mark("<", 0.05), _SINK_ON, "main", "main", _SINK),
    _claim("sink logits grow", GUO, Mark(">", 4), _MARGIN, "main", "no-copy"),
    _claim("sink logits concentrate", GUO, Mark("<", 2), _BAND, "main", "no-copy"),
    _claim("value of the sink is small", GUO, Mark("<", 0.6), _RATIO, "main", "no-copy"),
    _claim("value of the sink drains", GUO, Mark("<", 0.6), _DROP, "main", "relu"),
    _claim("no triggers, no sink", GUO, Mark("<", 0.3), _SINK, "no-copy", "main"),
    _claim("no triggers, no drain", GUO, Mark(">", 0.8), _RATIO, "no-copy", "main"),
    _claim("ReLU attention has no sink", GUO, Mark("<", 0.02), _SINK, "relu", "main"),
    _claim("the head carries backcopy", GUO, Mark(">", 3), _HEAD_ON, "main", "no-copy"),
    _claim("the head carries nothing else", GUO, Mark("<", 0.15), _HEAD_OFF, "main", "main",
           _MLP_OFF),
    _claim("eviction of <s> hurts the dormant", XIAO, Mark(">", 0.1), _EVICT_OFF, "main", "main",
           _EVICT_1),
    _claim("more than that of other keys", XIAO, Mark(">", 0.1), _EVICT_OFF, "main", "main",
           _EVICT_2),
    _claim("eviction of <s> spares the active", XIAO, Mark("<", 0.01), _EVICT_ON, "main", "main",
           _HEAD_ON),
    _claim("a null sink from +4 takes over", OURS, Mark(">", 0.5), _NULL, "null-from-4",
           "null-from-0"),
    _claim("a null sink from 0 does not", OURS, Mark(">", 0.5), _SINK, "null-from-0",
           "null-from-4"),
    _claim("AdamW: the residual grows", GUO, Mark(">", 0), _SLOPE, "adamw", "sgd"),
    _claim("SGD: the residual shrinks", GUO, Mark("<", 0), _SLOPE, "sgd", "adamw"),
)  # fmt: skip
