"""The laws of attention sinks as claims: which statistic of a model, against which control.

A claim reads `(value, null, n)` from `sinks_measure.Measured`; NaN as value where the statistic
does not exist for this model, which makes the law not applicable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench import probes
from workbench.circuits.sink_free import HOLDS, NATURAL, RANDOM, REPEATED
from workbench.studies.sinks_measure import (
    BUSY_HEADS,
    DROPPED,
    OTHER_HEADS,
    SINK_HEADS,
    TRAINED,
    UNTRAINED,
    Measured,
    inner_peak,
)
from workbench.studies.sinks_published import GU, GUO, SUN, WONG, XIAO
from workbench.zoo.trajectory import Law, Mark

SANDOVAL = "Sandoval-Segura et al. 2025, arXiv 2504.03889"
Reading = tuple[float, float, int]
NAN = float("nan")
# A head parks more on one kind of text than on another (probability).
CONTRAST = 0.15
PEAK = 2.0
NONE: Reading = (NAN, NAN, 0)


@dataclass(frozen=True)
class Claim:
    """One law; `required` of the models that come with the workbench, never of one that is
    named."""

    name: str
    source: str
    statistic: str
    says: str
    mark: Mark
    control: str
    read: Callable[[Measured], Reading]
    required: bool = False

    def law(self, measured: Measured) -> tuple[Law, int]:
        """The law as read from one model, and the number of runs behind it."""
        value, null, n = self.read(measured)
        name = f"{measured.name}: {self.name}"
        law = Law(name, self.source, self.statistic, self.mark, value, self.control, null)
        return law, 0 if math.isnan(value) else n


def _share(measured: Measured) -> Reading:
    over = {}
    for label, stats in measured.stats.items():
        share = probes.attention_share(stats)
        over[label] = share.value / share.null
    return over[TRAINED], over[UNTRAINED], len(measured.domains)


def _of(measured: Measured, name: str, model: str = TRAINED) -> pd.DataFrame:
    """The rows of a table that belong to one of the two models."""
    return measured.tables[name].query(f"model == {model!r}")


def _column(table: pd.DataFrame, values: str, index: str) -> dict[str, float]:
    """Two columns of a table as a mapping."""
    return dict(zip(table[index].astype(str), table[values].astype(float), strict=True))


def _rate(measured: Measured) -> Reading:
    trained, control = (
        float(np.mean(_of(measured, "heads", model)["rate"].to_numpy()))
        for model in (TRAINED, UNTRAINED)
    )
    return trained, control, len(measured.domains)


def _margin(measured: Measured) -> Reading:
    sinks = _of(measured, "heads").query("sink")["margin"].to_numpy()
    if not len(sinks):
        return NONE
    control = _of(measured, "heads", UNTRAINED)["margin"].to_numpy()
    return float(sinks.mean()), float(control.max()), len(sinks)


def _drain(measured: Measured) -> Reading:
    sinks = _column(_of(measured, "heads").query("sink"), "drain", "label")
    if not sinks:
        return NONE
    table = probes.value_drain(measured.stats[TRAINED], position=4)
    elsewhere = _column(table, "value", "label")
    null = float(np.mean([elsewhere[label] for label in sinks]))
    return float(np.mean(list(sinks.values()))), null, len(sinks)


def _peak(measured: Measured) -> Reading:
    trained, control = (
        inner_peak(_of(measured, "residual", model)) for model in (TRAINED, UNTRAINED)
    )
    return trained, control, len(measured.domains)


def _creator(measured: Measured) -> Reading:
    peaks = _column(measured.tables["without an mlp"], "peak", "removed")
    whole = peaks.pop("none")
    # Two MLPs at least: one that makes the peak and one that does not.
    if not whole > PEAK or len(peaks) < 2:
        return NONE
    # Above 1: a ratio of 1 is no peak.
    left = [(peak - 1) / (whole - 1) for peak in peaks.values()]
    return min(left), max(left), int(measured.tables["without an mlp"]["n"].iloc[0])


def _massive(measured: Measured) -> Reading:
    table = _of(measured, "massive")
    at = int(table["ratio"].to_numpy().argmax())
    ratio, null, n = (table[name].to_numpy()[at] for name in ("ratio", "null_ratio", "n"))
    return float(ratio), float(null), int(n)


def _change(measured: Measured, model: str = TRAINED) -> dict[str, float]:
    """Mean change over texts, by edit."""
    table = _of(measured, "effects", model)
    changes: dict[str, list[float]] = {}
    for edit, change in zip(table["edit"].astype(str), table["change"].astype(float), strict=True):
        changes.setdefault(edit, []).append(change)
    return {edit: float(np.mean(each)) for edit, each in changes.items()}


def _dropped(measured: Measured) -> Reading:
    change = _change(measured)
    sink, *others = (change[f"key {key} dropped"] for key in DROPPED)
    return sink / max(others), others[0] / max(others[1:]), len(measured.domains)


def _dormant(measured: Measured) -> Reading:
    zeroed = {
        heads: [value for edit, value in _change(measured).items() if heads in edit]
        for heads in (SINK_HEADS, BUSY_HEADS, OTHER_HEADS)
    }
    if not zeroed[OTHER_HEADS]:
        return NONE
    other = float(np.mean(zeroed[OTHER_HEADS]))
    return zeroed[SINK_HEADS][0] / other, zeroed[BUSY_HEADS][0] / other, len(measured.domains)


def _streaming(measured: Measured) -> Reading:
    lost = []
    for model in (TRAINED, UNTRAINED):
        windows = {e: v for e, v in _change(measured, model).items() if e.startswith("window of")}
        if not windows:
            return NONE
        (without,) = (value for edit, value in windows.items() if "first 0 keys" in edit)
        (kept,) = (value for edit, value in windows.items() if "first 0 keys" not in edit)
        lost.append(without - kept)
    return lost[0], lost[1], len(measured.domains)


def _position(measured: Measured) -> Reading:
    table = measured.tables["changed texts"]
    share, n = _column(table, "share", "texts"), _column(table, "n", "texts")
    name = "without the first special token"
    if name not in share:
        return NONE
    given = share["as given"]
    return share[name] / given, share["as given, position 4"] / given, int(n["as given"])


def _repeated(measured: Measured) -> Reading:
    table = _of(measured, "repeated token")
    if HOLDS not in table.query("text == @REPEATED")["verdict"].to_list():
        return NONE
    alpha = _column(table.assign(over=table["alpha"] / table["null"]), "over", "text")
    n = _column(table, "n", "text")
    return alpha[REPEATED] / alpha[NATURAL], alpha[RANDOM] / alpha[NATURAL], int(n[REPEATED])


def _domains(measured: Measured) -> Reading:
    if "domains" not in measured.tables:
        return NONE
    costs = []
    for _, head in _of(measured, "domains").groupby("label"):
        looks, change = head["attention"].to_numpy(float), head["change"].to_numpy(float)
        if np.ptp(looks) > CONTRAST:
            costs.append((change[looks.argmin()], change[looks.argmax()]))
    if not costs:
        return NONE
    value, null = np.mean(costs, axis=0)
    return float(value), float(null), len(costs)


def _secondary(measured: Measured) -> Reading:
    n = len(measured.domains)
    trained, control = (
        _of(measured, "secondary", model)["label_relative"].to_list().count("secondary")
        for model in (TRAINED, UNTRAINED)
    )
    return trained / n, control / n, n


_UNTRAINED = "the same architecture, untrained"
CLAIMS = (
    Claim(
        "the first position is a sink", XIAO,
        "share of all attention on position 0, over that of uniform attention",
        "The first position receives several times the attention that its place explains.",
        Mark(">", 2), _UNTRAINED, _share, required=True,
    ),
    Claim(
        "heads park there", GU,
        "Sink_1 with epsilon 0.3, T = 64 or the shortest text: share of (text, head) above",
        "In some heads the first position alone receives more than 30 % on many texts.",
        Mark(">", 0.05), _UNTRAINED, _rate, required=True,
    ),
    Claim(
        "its score stands out", GUO,
        "sink-logit margin of heads with sink mass above 0.3, mean, nats",
        "In the heads that park there, the score of the first key is far above the others'.",
        Mark(">", 1), f"largest margin of any head of {_UNTRAINED}", _margin, required=True,
    ),
    Claim(
        "its value is small", GUO,
        "|W_O v| of position 0 over that of the others, mean over the same heads",
        "What the sink writes is small, so that parking there writes little.",
        Mark("<", 0.8), "position 4 in the place of the first", _drain, required=True,
    ),
    Claim(
        "its residual stream is large", GUO,
        "norm of the first state over the mean of the others, largest inside the network",
        "The first token's residual stream has more than twice the norm of the others'.",
        Mark(">", PEAK), _UNTRAINED, _peak,
    ),
    Claim(
        "an MLP makes it", GUO,
        "what is left of that peak above 1 with the output of one MLP zeroed, the least",
        "One MLP writes most of it: without its output the peak is gone.",
        Mark("<", 0.5), "the MLP whose output matters least", _creator,
    ),
    Claim(
        "a few activations are massive", SUN,
        "largest |activation| over the median, over all levels",
        "Single dimensions of the residual stream exceed the median a thousandfold.",
        Mark(">", 1000), "largest of as many independent normal numbers", _massive,
    ),
    Claim(
        "it is the position, not the token", GU,
        "share of position 0 without the special token there, over that with it",
        "Without the special token that stood first, the next token takes its place.",
        Mark(">", 0.5), "share of position 4, over that of position 0", _position,
    ),
    Claim(
        "the model needs the sink key", XIAO,
        "effect of dropping key 0 in all heads, over the largest of dropping key 1, 2 or 3",
        "Hiding the first key changes what the model predicts, hiding another early key does not.",
        Mark(">", 2), "key 1, over the larger of keys 2 and 3", _dropped, required=True,
    ),
    Claim(
        "a window needs the first keys", XIAO,
        "loss with a sliding window alone, less that with the first four keys kept, nats per token",
        "A window without the first keys costs more than one that keeps them.",
        Mark(">", 0.05), _UNTRAINED, _streaming,
    ),
    Claim(
        "parked heads can go", SANDOVAL,
        "effect of zeroing all heads with sink mass above 0.3, over the mean of as many others",
        "Silencing the heads that park costs less than silencing as many others.",
        Mark("<", 0.8), "as many heads of smallest sink mass", _dormant,
    ),
    Claim(
        "a head matters where it is not parked", GUO,
        "what zeroing a head costs on the kind of text where it parks least, nats per token, mean "
        "over heads whose weight on the first key differs by .15 between kinds",
        "On the kinds of text where a head parks it can go, where it looks elsewhere it cannot.",
        Mark(">", 0.03), "the same heads, on the kind where each parks most", _domains,
    ),
    Claim(
        "one token repeated has no sink", GU,
        "alpha_1 over that of even attention, on one token repeated over the same on the texts",
        "Where positions enter only through scores, equal tokens leave the first nothing to stand "
        "out by.",
        Mark("<", 0.5), "random tokens in the place of the repeated one", _repeated,
    ),
    Claim(
        "later tokens become sinks", WONG,
        "secondary sinks per text (relative thresholds)",
        "Tokens in the middle of a text join the direction of the first one for some layers.",
        Mark(">", 0), _UNTRAINED, _secondary,
    ),
)  # fmt: skip
