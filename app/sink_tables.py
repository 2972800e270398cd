"""The tables of the Sinks page, each from a state of its address: what a figure draws and a CSV
holds is the same table.

`TABLES` names them for the route `/data/<run>/sinks/<name>.csv`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from flask import current_app

from workbench.app import readings, sink_readings
from workbench.app.ablate import EXTENSION, Change, Jobs
from workbench.app.readings import Metric, show_token
from workbench.app.sink_readings import Place
from workbench.app.store import store
from workbench.app.urls import SinksState
from workbench.errors import WorkbenchError
from workbench.probes import massive_activations, secondary_sinks, sink_levels
from workbench.schema import SCHEMA
from workbench.stats import HeadStats

# Metrics of the heat map, and those of them that can be asked about any key.
HEAT = (
    "sink_mass",
    "value_drain",
    "dormant_score_mass",
    "dormant_score_output",
    "sink_logit_margin",
)
OF_KEY = ("sink_mass", "value_drain")
# From this share of the primary sink's life on a token is a primary sink itself.
_WHOLE_LIFE = 0.8


def stats_of(state: SinksState) -> HeadStats:
    """Statistics of the run."""
    return store().run(state.run).stats


def _needs(stats: HeadStats, *names: str) -> HeadStats:
    """The statistics, if they hold these; raises `WorkbenchError` naming the group to capture."""
    missing = [n for n in names if n not in stats]
    if missing:
        group = SCHEMA[missing[0]].group
        raise WorkbenchError(
            f"This run holds no {' and no '.join(missing)}; capture it again with {group!r} in "
            "want."
        )
    return stats


def place_of(state: SinksState) -> Place:
    """The key the address calls the sink."""
    return store().place(state.run, state.at, state.prompt)


def place_words(state: SinksState) -> str:
    """`position 0 “[CLS]” of every prompt`, `position 12 “·the” of prompt 3`."""
    place = place_of(state)
    tokens = store().run(state.run).tokens
    at = tokens.loc[tokens["position"] == place.position]
    if place.prompt is not None:
        at = at.loc[at["prompt"] == place.prompt]
    names = {show_token(str(t)) for t in at["text"]}
    token = f"“{names.pop()}”" if len(names) == 1 else f"({len(names)} different tokens)"
    whose = "every prompt" if place.prompt is None else f"prompt {place.prompt}"
    return f"position {place.position} {token} of {whose}"


def heat_metrics(run: str) -> list[str]:
    """Names of the heat map's metrics that this run has."""
    return [name for name in HEAT if name in store().metrics(run)]


def heat_metric(state: SinksState) -> Metric:
    """What the heat map shows: a metric of the chosen key, of what the mask leaves, or of the run.

    Raises `WorkbenchError` where the run does not hold what it needs.
    """
    if state.metric not in HEAT:
        raise WorkbenchError(f"metric={state.metric!r} is not one of {', '.join(HEAT)}.")
    if state.metric not in heat_metrics(state.run):
        raise WorkbenchError(f"This run has no {state.metric}; capture its statistics and probe.")
    if state.mask and state.metric in ("sink_mass", "dormant_score_mass"):
        return store().besides(state.run)
    if state.metric in OF_KEY and state.at:
        return store().at_key(state.run, state.metric, place_of(state))
    return store().metric(state.run, state.metric)


def heads(state: SinksState) -> pd.DataFrame:
    """The heat map: a row per head."""
    return heat_metric(state).table.reset_index()


def received(state: SinksState) -> pd.DataFrame:
    """The curve: attention received by position, with tokens; NaN where the mask hides a sink."""
    kept = store()
    _needs(stats_of(state), "key_mean", "key_count", "n_visible")
    layers = {site.layer for site in stats_of(state).spec.of(stats_of(state).kind)}
    if state.layer is not None and state.layer not in layers:
        raise WorkbenchError(f"layer {state.layer} of this model has no attention.")
    stats = kept.masked(state.run) if state.mask else stats_of(state)
    table = sink_readings.received(stats, state.prompt, state.layer)
    tokens = kept.tokens(state.run, state.prompt)["shown"].tolist()
    return table.assign(token=[*tokens, *[""] * len(table)][: len(table)])


def secondary(state: SinksState) -> tuple[pd.DataFrame | None, str]:
    """(secondary sinks under the thresholds or None, why there are none)."""
    run, stats = store().run(state.run), stats_of(state)

    def find() -> tuple[pd.DataFrame | None, str]:
        try:
            _needs(stats, "resid_norm", "resid_cos", "resid_cos_trimmed", "key_mean")
            life = min(state.life, _WHOLE_LIFE - 0.05)
            found = secondary_sinks(stats, cosine=state.cos, relative=(life, _WHOLE_LIFE))
        except WorkbenchError as reason:
            return None, str(reason)
        return found, ""

    return store().once("sinks", (run, "secondary", state.cos, state.life), find)


def listed(state: SinksState) -> pd.DataFrame:
    """The list of sinks under the thresholds of the address, with their levels."""
    _needs(stats_of(state), "key_mean", "key_mass", "key_count", "n_visible")
    sinks = store().sinks(state.run, state.eps)
    table = sink_readings.listed(sinks, secondary(state)[0])
    count = stats_of(state)["key_count"].max(("layer", "head")).to_dataframe("queries")
    count.index = count.index.set_names({"key": "position"})
    return table.join(count["queries"], on=["prompt", "position"])


def levels(state: SinksState) -> pd.DataFrame:
    """How many secondary sinks have each level; empty where there are none."""
    table, _ = secondary(state)
    if table is None:
        return pd.DataFrame({"l_start": [], "lifetime": [], "n": [], "n_prompts": []})
    return sink_levels(table.loc[table["label_relative"] == "secondary"])


def no_levels(state: SinksState) -> str:
    """Why there are no secondary sinks, with the largest cosine of any later token."""
    table, reason = secondary(state)
    if table is None:
        return f"Levels cannot be told: {reason}"
    value, prompt, position, stream = sink_readings.largest_cosine(stats_of(state))
    words = "There are no secondary sinks under these thresholds"
    left_out = table.attrs["left_out"]
    if len(left_out) == len(store().prompts(state.run)):
        words += f", as no prompt has a primary one ({next(iter(left_out.values())).rstrip('.')})"
    if np.isnan(value):
        return f"{words}."
    token = store().tokens(state.run, prompt)["shown"].iloc[position]
    return (
        f"{words}. The largest |cosine| of a later token with the first one is "
        f"{readings.number(value, 3)}: position {position} “{token}” of prompt {prompt}, after "
        f"layer {stream - 1}."
    )


def residual(state: SinksState) -> pd.DataFrame:
    """Norm of the residual stream by level."""
    return sink_readings.norms(_needs(stats_of(state), "resid_norm"), place_of(state))


def values(state: SinksState) -> pd.DataFrame:
    """Norm of the value by layer."""
    return sink_readings.values(_needs(stats_of(state), "vo_norm"), place_of(state))


def massive(state: SinksState) -> pd.DataFrame:
    """The largest activation of every level of the stream."""
    return massive_activations(_needs(stats_of(state), "resid_top_value", "resid_median"))


def shares(state: SinksState) -> dict[str, pd.DataFrame]:
    """Share of position 0 by layer, of this run and of the one it is compared with."""
    runs = [state.run, *([state.other] if state.other else [])]
    every = {run: _needs(store().run(run).stats, "key_mass", "n_visible") for run in runs}
    return {run: sink_readings.share_by_layer(stats) for run, stats in every.items()}


def shares_table(state: SinksState) -> pd.DataFrame:
    """`shares` as one table, with the column run."""
    return pd.concat([t.assign(run=run) for run, t in shares(state).items()], ignore_index=True)


def jobs() -> Jobs:
    """The ablations of the app that answers the current request."""
    return current_app.extensions[EXTENSION]


def change_of(state: SinksState) -> Change:
    """What the address says to ablate."""
    label = "" if state.scope == "all" else state.sel
    logit = state.logit if state.op == "null" else 0.0
    place = place_of(state)
    return Change(state.run, state.prompt, state.op, state.scope, label, place.position, logit)


def ablated(state: SinksState) -> pd.DataFrame:
    """Attention received before and after the ablation that was run for this address."""
    outcome = jobs().status(change_of(state)).outcome
    if outcome is None:
        raise WorkbenchError("This ablation has not been run; press Run on the page first.")
    tokens = store().tokens(state.run, state.prompt)["shown"].tolist()
    both = outcome.before[["position", "uniform"]].assign(token=tokens)
    return both.assign(before=outcome.before["received"], after=outcome.after["received"])


TABLES: dict[str, Callable[[SinksState], pd.DataFrame]] = {
    "heads": heads,
    "received": received,
    "list": listed,
    "levels": levels,
    "residual": residual,
    "values": values,
    "massive": massive,
    "shares": shares_table,
    "ablated": ablated,
}
