"""How far does the score of the first token stand above the others', and alike for all tokens?

A head that goes dormant raises the score of the first key ("sink logit") until nothing else is
seen; in training this margin grows on, and its spread over the types of the querying token narrows
beside its mean (Guo et al. 2024, arXiv 2410.13835, their "sink-logit concentration").  Published
margins differ in which keys the mean runs over, so every table says it in `attrs["kind"]`.  Under
ReLU attention margins say nothing (all scores that are not selected are driven negative): compare
masses there.  Needs the group "margins", one sweep over the rows.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.probes.pooling import mean_rows, refuse_two_sequences
from workbench.probing import head_table, pooled, probe
from workbench.stats import HeadStats

_GUO = "Guo et al. 2024, arXiv 2410.13835"
KIND = (
    "score of the first key minus the mean score of the other keys the query sees, its own left "
    "out; scores after scale, softcap and position bias; queries from position 2 on"
)
# Query 0 is the first token itself; query 1 of a causal model sees that and itself only.
FIRST_QUERY = 2
_INF = float("inf")


@probe(
    question="How far does the first token's score stand above the others'?",
    needs=("sink_margin",),
    units="nats",
    bounds=(-_INF, _INF),
    counts="queries from position 2 on that see the first key and another one",
    null="no preference for the first key: 0",
    paper=_GUO,
)
def sink_logit_margin(stats: HeadStats) -> pd.DataFrame:
    """Mean over queries of s[q, 0] - mean_j s[q, j]; nats, either sign.

    j runs over the visible keys but 0 and q (`KIND`, in `table.attrs["kind"]`).  A learned sink
    logit has no key and takes no part.  Raises `WorkbenchError` for cross-attention and resamplers.
    """
    value = _margins(stats, "sink_logit_margin")
    counted = value.notnull()
    weight = counted.sum("query")
    mean, sd = pooled(mean_rows(value, counted), weight)
    table = head_table(stats, mean, sd, weight.sum("prompt"), xr.zeros_like(mean))
    table.attrs["kind"] = KIND
    return table


def _margins(stats: HeadStats, name: str) -> xr.DataArray:
    refuse_two_sequences(stats, name)
    value = stats["sink_margin"].astype("float64")
    return value.where(value["query"] >= FIRST_QUERY)


def margin_by_token(stats: HeadStats) -> pd.DataFrame:
    """Mean margin per head and type of the querying token: where is the head parked, where not?

    Columns: `layer, head, label, id, token`; `margin`, mean over the queries holding that token
    (nats, as in `sink_logit_margin`); `n` queries; `null`, no preference: 0.  Tokens without an id
    are left out, types without any margin too.  Needs `sink_margin`.  Raises `WorkbenchError` for
    cross-attention and resamplers.
    """
    value = _margins(stats, "margin_by_token")
    long = value.rename("margin").to_dataframe().dropna().reset_index()
    tokens = stats.tokens.loc[stats.tokens["id"] >= 0, ["prompt", "position", "id", "text"]]
    long = long.merge(
        tokens.rename(columns={"position": "query", "text": "token"}), on=["prompt", "query"]
    )
    table = long.groupby(["layer", "head", "id"], as_index=False).agg(
        token=("token", "first"), margin=("margin", "mean"), n=("margin", "size")
    )
    labels = {head.index: str(head) for head in stats.heads()}
    pairs = zip(table["layer"], table["head"], strict=True)
    table.insert(2, "label", [labels[pair] for pair in pairs])
    table["null"] = 0.0
    table.attrs["kind"] = KIND
    return table


def margin_concentration(by_token: pd.DataFrame) -> pd.DataFrame:
    """How alike the margin is for all token types: (q90 - q10) / mean across types, per head.

    `by_token` is a table of `margin_by_token`, without the types that are not meant: in the paper
    the begin token and the triggers, at which the head is active; types seen once or twice are
    noise (column `n`).  Every remaining type counts once, however rare.  Columns: `layer, head,
    label, n_types, mean, q10, q90` (nats), `concentration` (small: alike; NaN where the mean is not
    positive, so that there is no preference to be alike).  Raises `WorkbenchError` for another
    table.
    """
    lacking = {"layer", "head", "label", "margin"} - set(by_token.columns)
    if lacking:
        raise WorkbenchError(
            f"the table lacks {', '.join(sorted(lacking))}; margin_concentration takes the table "
            "of margin_by_token."
        )
    groups = by_token.groupby(["layer", "head", "label"])["margin"]
    table = groups.agg(n_types="size", mean="mean")
    table["q10"], table["q90"] = groups.quantile(0.1), groups.quantile(0.9)
    spread = (table["q90"] - table["q10"]) / table["mean"]
    table["concentration"] = np.where(table["mean"] > 0, spread, np.nan)
    table = table.reset_index()
    table.attrs.update(by_token.attrs)
    return table
