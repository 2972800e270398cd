"""Questions about heads: one module each, plain functions on captured values, no torch.

    find("induction_score")(stats)    one probe: a table with one row per head
    summary(stats)                    every probe the statistics suffice for, one column each
    tables(stats)                     the table of each of them, and why others were left out
    heads_table(stats)                the same in long form, with spread, count and control

The imports below are the table of contents.
"""

from __future__ import annotations

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.probes.domains import (
    activity_contrast,
    domain_contrast,
    domain_sink_rate,
    token_activity,
)
from workbench.probes.dormant import (
    dormant_disagreement,
    dormant_score_mass,
    dormant_score_output,
    value_drain,
)
from workbench.probes.headvis import (
    induction_score,
    pattern_entropy,
    prev_token_score,
    qk_distance,
    qk_distance_variance,
    self_attention_score,
)
from workbench.probes.induction import (
    duplicate_token_score,
    induction_head_score,
    previous_token_score,
)
from workbench.probes.margin import margin_by_token, margin_concentration, sink_logit_margin
from workbench.probes.null_mass import null_sink_mass
from workbench.probes.residual import massive_activations, residual_peak
from workbench.probes.secondary import (
    primary_sink,
    primary_weakening,
    same_token_control,
    secondary_sinks,
    sink_levels,
)
from workbench.probes.sinks import (
    Share,
    attention_share,
    entropy_detector,
    first_token_alpha,
    first_token_sink_rate,
    sink_mass,
    sink_positions,
)
from workbench.probes.visual import (
    check_sink_dims,
    find_sink_dims,
    register_outliers,
    visual_sinks,
)
from workbench.probing import COLUMNS, PROBES, Probe
from workbench.stats import HeadStats

__all__ = [
    "Share",
    "activity_contrast",
    "all_probes",
    "attention_share",
    "check_sink_dims",
    "domain_contrast",
    "domain_sink_rate",
    "dormant_disagreement",
    "dormant_score_mass",
    "dormant_score_output",
    "duplicate_token_score",
    "entropy_detector",
    "find",
    "find_sink_dims",
    "first_token_alpha",
    "first_token_sink_rate",
    "heads_table",
    "induction_head_score",
    "induction_score",
    "margin_by_token",
    "margin_concentration",
    "massive_activations",
    "null_sink_mass",
    "pattern_entropy",
    "prev_token_score",
    "previous_token_score",
    "primary_sink",
    "primary_weakening",
    "qk_distance",
    "qk_distance_variance",
    "register_outliers",
    "residual_peak",
    "same_token_control",
    "secondary_sinks",
    "self_attention_score",
    "sink_levels",
    "sink_logit_margin",
    "sink_mass",
    "sink_positions",
    "summary",
    "tables",
    "token_activity",
    "value_drain",
    "visual_sinks",
]


def find(name: str) -> Probe:
    """The probe of that name; raises `WorkbenchError` listing the known ones."""
    if name not in PROBES:
        raise WorkbenchError(f"no probe is called {name!r}; known: {', '.join(PROBES)}.")
    return PROBES[name]


def all_probes() -> tuple[Probe, ...]:
    """Every registered probe, yours included, in the order of definition."""
    return tuple(PROBES.values())


def tables(stats: HeadStats) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """`({probe: table}, {probe: why it was left out})` of every probe.

    Left out are probes whose statistics were not captured, or whose prompts do not suit them.
    """
    found, left_out = {}, {}
    for name, function in PROBES.items():
        missing = [need for need in function.info.needs if need not in stats]  # type: ignore[attr-defined]
        if missing:
            left_out[name] = f"needs {', '.join(missing)}"
            continue
        try:
            found[name] = function(stats)
        except WorkbenchError as error:
            left_out[name] = str(error)
    return found, left_out


def heads_table(stats: HeadStats) -> pd.DataFrame:
    """Every probe that applies, in long form: `probe, layer, head, label, value, sd, n, null`.

    `table.attrs`: `left_out` (probe -> reason) and `settings` (probe -> thresholds used).
    """
    found, left_out = tables(stats)
    settings = {name: dict(table.attrs) for name, table in found.items() if table.attrs}
    long = []
    for name, table in found.items():
        # Tables that disagree in attrs cannot keep them when joined; they moved to `settings`.
        table.attrs = {}
        table.insert(0, "probe", name)
        long.append(table)
    joined = (
        pd.concat(long, ignore_index=True) if long else pd.DataFrame(columns=["probe", *COLUMNS])
    )
    joined.attrs.update(left_out=left_out, settings=settings)
    return joined


def summary(stats: HeadStats) -> pd.DataFrame:
    """One row per head: `layer, head, label` and the value of every probe that applies, by name.

    `table.attrs`: `left_out` (probe -> reason), `settings` (probe -> thresholds used).
    """
    long = heads_table(stats)
    heads = stats.heads()
    table = pd.DataFrame(
        {
            "layer": [h.layer for h in heads],
            "head": [h.head for h in heads],
            "label": [str(h) for h in heads],
        }
    )
    for name, part in long.groupby("probe", sort=False):
        table[name] = part["value"].to_numpy()
    table.attrs.update(long.attrs)
    return table
