"""What the study of sinks takes from one model: captures, changed texts, changed models.

Every capture is a run directory of its own under the study's folder and opens in the dashboard;
every table is kept beside them, so that a stopped study goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench import probes
from workbench.capturing import capture
from workbench.circuits.controls import untrained
from workbench.circuits.domains import loss_by_domain
from workbench.circuits.effects import Edit, effects, predicts
from workbench.circuits.sink_free import sink_free_checks
from workbench.errors import SchemaError, WorkbenchError
from workbench.intervene import intervening
from workbench.interventions import Intervention
from workbench.mlps import find_mlps
from workbench.models import Model
from workbench.prompts import Prompt
from workbench.runfiles import write_table
from workbench.runs import open_run
from workbench.stats import HeadStats
from workbench.stream_edits import StreamEdit
from workbench.studies import sinks_subjects
from workbench.studies.sinks_subjects import Subject

WANT = ("rows", "roles", "columns", "norms", "residual", "margins", "spread")
# A head counts as a sink head where the first position receives this much on average: the epsilon
# of Gu et al. 2024.
SINK = 0.3
SINK_LENGTH = 64
LENGTHS = (16, 32, 64, 128, 256)
# Keys dropped one at a time; the first is the sink's place, the others are its control.
DROPPED = (0, 1, 2, 3)
DRAWS = 8
SINK_HEADS, BUSY_HEADS = "sink heads", "heads of smallest sink mass"
OTHER_HEADS = "other heads"
# One pass over the texts each.
MOST_HEADS = 32
MLP_TEXTS = 4
FIRST_KEPT = 4
# Queries from here on count: earlier ones may need the very keys that are dropped.
EFFECTS_FROM = 8
TRAINED, UNTRAINED = "trained", "untrained"
Step = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """One subject: `stats` of the trained and the untrained model on the same texts; tables by
    name, each with a column `model` where both were measured."""

    name: str
    facts: Mapping[str, Any]
    domains: tuple[str, ...]
    stats: Mapping[str, HeadStats]
    tables: Mapping[str, pd.DataFrame]


def measure(subject: Subject, folder: Path, step: Step) -> Measured:
    """Everything, from the runs and tables in `folder` where they are there already."""
    step("open the model")
    model, given = subject.open()
    prompts = sinks_subjects.as_ids(model, given)
    lengths = [len(prompt.token_ids or ()) for prompt in prompts]
    if min(lengths) < 2 * EFFECTS_FROM:
        raise WorkbenchError(
            f"prompt {int(np.argmin(lengths))} has {min(lengths)} tokens; the study of sinks needs "
            f"{2 * EFFECTS_FROM} or more in each."
        )
    both = {TRAINED: model, UNTRAINED: untrained(model)}
    stats = {}
    for label, one in both.items():
        step(f"capture the {label} model")
        stats[label] = _captured(folder / f"{subject.name}-{label}", one, prompts)
    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "changed texts": partial(_changed_texts, model, prompts, stats[TRAINED]),
        "lengths": partial(_lengths, model, prompts),
        "without an mlp": partial(_without_mlps, model, prompts),
        "repeated token": lambda: _both(
            {
                # T is a number or "whole prompt".
                label: sink_free_checks(one, prompts, T=_sink_length(stats[TRAINED])).astype(
                    {"T": "str"}
                )
                for label, one in both.items()
            }
        ),
        "effects": lambda: _both(
            {label: _effects(one, prompts, _heads(stats[label])) for label, one in both.items()}
        ),
    }
    domains = tuple(sinks_subjects.domain_of(prompt) for prompt in prompts)
    if len(set(domains)) > 1 and predicts(model):
        makers["domains"] = lambda: _both(
            {
                label: loss_by_domain(one, prompts, domains, _busiest(_heads(stats[TRAINED])))
                for label, one in both.items()
            }
        )
    tables = {
        "heads": _both({label: _heads(one) for label, one in stats.items()}),
        "residual": _both({label: probes.residual_peak(one) for label, one in stats.items()}),
        "massive": _both({label: probes.massive_activations(one) for label, one in stats.items()}),
        "secondary": _both({label: probes.secondary_sinks(one) for label, one in stats.items()}),
        "primary by layer": _both({label: _by_layer(one) for label, one in stats.items()}),
    }
    for name, make in makers.items():
        step(name)
        tables[name] = _kept(folder / f"{subject.name}-{name.replace(' ', '-')}.parquet", make)
    return Measured(
        subject.name,
        sinks_subjects.settings(model),
        domains,
        stats,
        tables,
    )


def _captured(path: Path, model: Model, prompts: Sequence[Prompt]) -> HeadStats:
    try:
        return open_run(path).stats
    except SchemaError:
        # Not there, or not finished: the capture goes on where it was.
        return capture(model, list(prompts), want=WANT, out=path)


def _kept(path: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    if not path.is_file():
        write_table(path, make())
    return pd.read_parquet(path)


def _both(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of the trained and the untrained model below each other, told by `model`."""
    parts = [table.assign(model=label) for label, table in tables.items() if len(table)]
    columns = next(iter(tables.values())).columns
    for part in parts:
        # Thresholds are the same for both; tables that disagree in attrs cannot be joined.
        part.attrs = {}
    return (
        pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*columns, "model"])
    )


def _heads(stats: HeadStats) -> pd.DataFrame:
    """One row per head: sink mass and what should go with it; `sink` marks the sink heads."""
    mass = probes.sink_mass(stats)
    columns = {
        "mass": mass["value"],
        "mass_null": mass["null"],
        "rate": probes.first_token_sink_rate(stats, T=_sink_length(stats))["value"],
        "margin": probes.sink_logit_margin(stats)["value"],
        "drain": probes.value_drain(stats)["value"],
        "output": probes.dormant_score_output(stats)["value"],
    }
    table = mass.loc[:, ["layer", "head", "label"]].assign(**columns)
    return table.assign(sink=table["mass"] > SINK)


def _sink_length(stats: HeadStats) -> int:
    return min(SINK_LENGTH, int(stats.lengths.min()))


def _busiest(heads: pd.DataFrame) -> list[str]:
    """Labels of the heads that are removed one by one: those of largest sink mass."""
    return heads.nlargest(MOST_HEADS, "mass")["label"].to_list()


def _by_layer(stats: HeadStats) -> pd.DataFrame:
    """Attention to the primary sink by layer, beside that to the secondary ones alive there."""
    sinks = probes.secondary_sinks(stats)
    return probes.primary_weakening(stats, sinks.query("label_relative == 'secondary'"))


def _row(stats: HeadStats) -> dict[str, float]:
    share = probes.attention_share(stats)
    rate = probes.first_token_sink_rate(stats, T=_sink_length(stats))["value"].to_numpy().mean()
    return {
        "share": share.value,
        "sd": share.sd,
        "uniform": share.null,
        "rate": float(rate),
        "n": share.n,
        "tokens": int(stats.lengths.mean()),
    }


def _changed_texts(model: Model, prompts: Sequence[Prompt], stats: HeadStats) -> pd.DataFrame:
    """Attention on position 0 for the texts as given and with their special tokens left out, and
    on the fifth position as a control."""
    fifth = probes.attention_share(stats, 4)
    control = {"share": fifth.value, "sd": fifth.sd, "uniform": fifth.null, "n": fifth.n}
    rows = {"as given": _row(stats), "as given, position 4": control}
    first, last = (
        all(ends) for ends in zip(*(sinks_subjects.ends(model, p) for p in prompts), strict=True)
    )
    cuts = {
        "without the first special token": (first, {"first": True}),
        "without the last special token": (last, {"last": True}),
        "without both": (first and last, {"first": True, "last": True}),
    }
    for name, (there, which) in cuts.items():
        if there:
            texts = [sinks_subjects.without(prompt, **which) for prompt in prompts]
            rows[name] = _row(capture(model, texts, want=("rows", "columns")))
    ids = [list(prompt.token_ids or ()) for prompt in prompts]
    rng = np.random.default_rng(0)
    shuffled = [(one[:1], list(rng.permutation(one[1:]))) for one in ids]
    rows["shuffled behind the first"] = _row(
        capture(model, [[*a, *map(int, b)] for a, b in shuffled], want=("rows", "columns"))
    )
    return pd.DataFrame([{"texts": name, **row} for name, row in rows.items()])


def _lengths(model: Model, prompts: Sequence[Prompt]) -> pd.DataFrame:
    """Attention on position 0 by the length of the text, each cut to its first tokens."""
    longest = min(len(prompt.token_ids or ()) for prompt in prompts)
    rows = []
    for length in [n for n in LENGTHS if n < longest] + [longest]:
        keep = [sinks_subjects.ends(model, prompt)[1] for prompt in prompts]
        texts = [
            sinks_subjects.cut(prompt, length, last)
            for prompt, last in zip(prompts, keep, strict=True)
        ]
        rows.append({"length": length, **_row(capture(model, texts, want=("rows", "columns")))})
    return pd.DataFrame(rows)


def inner_peak(table: pd.DataFrame) -> float:
    """Largest ratio of `probes.residual_peak` inside the network, NaN for a single layer.

    The last block may undo the peak or scale everything: Guo et al. 2024 look before it.
    """
    last = int(table["stream"].to_numpy().max())
    inner = table.query(f"0 < stream < {last}")["ratio"].to_numpy()
    return float(inner.max()) if len(inner) else float("nan")


def _without_mlps(model: Model, prompts: Sequence[Prompt]) -> pd.DataFrame:
    """The first token's residual peak with the output of one MLP after the other set to zero."""
    few = list(prompts[:MLP_TEXTS])
    cases: dict[str, list[Edit]] = {"none": []}
    for layer in find_mlps(model.net, model.spec):
        cases[f"L{layer}"] = [StreamEdit.scale(f"L{layer} mlp_out", 0.0)]
    rows = []
    for name, edits in cases.items():
        with intervening(model, edits):
            peak = probes.residual_peak(capture(model, few, want="resid_norm"))
        rows.append({"removed": name, "peak": inner_peak(peak), "n": len(few)})
    return pd.DataFrame(rows)


def _heads_zeroed(ranked: Sequence[str], count: int) -> dict[str, Sequence[Edit]]:
    """The `count` sink heads, as many that park least, and others at random.

    Nothing without sink heads, or where too few others are left to draw from.
    """
    if not 0 < 2 * count < len(ranked):
        return {}
    edits: dict[str, Sequence[Edit]] = {
        f"{count} {which} zeroed": [Intervention.zero(list(heads))]
        for which, heads in ((SINK_HEADS, ranked[:count]), (BUSY_HEADS, ranked[-count:]))
    }
    rng = np.random.default_rng(0)
    for draw in range(DRAWS):
        chosen = rng.choice(ranked[count:], count, replace=False).tolist()
        edits[f"{count} {OTHER_HEADS} zeroed, draw {draw}"] = [Intervention.zero(chosen)]
    return edits


def _effects(model: Model, prompts: Sequence[Prompt], heads: pd.DataFrame) -> pd.DataFrame:
    """What the model loses with a key, with its sink heads, without its first keys."""
    every = f"L0-{model.spec.n_layers() - 1}H*"
    edits: dict[str, Sequence[Edit]] = {
        f"key {key} dropped": [Intervention.drop_keys(every, key)] for key in DROPPED
    }
    ranked = heads.sort_values("mass", ascending=False)
    edits |= _heads_zeroed(ranked["label"].to_list(), int(ranked["sink"].to_numpy().sum()))
    if predicts(model):
        window = max(8, min(len(prompt.token_ids or ()) for prompt in prompts) // 3)
        for first in (0, FIRST_KEPT):
            kept = Intervention.streaming(every, first=first, window=window, positions="absolute")
            edits[f"window of {window}, first {first} keys kept"] = [kept]
    return effects(model, list(prompts), edits, first=EFFECTS_FROM)
