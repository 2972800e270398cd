"""Which heads do nothing on these prompts: by where they look, by what they write, by only one?

A head that puts its attention on a sink writes little if the sink's value is small
("active-dormant", Guo et al. 2024, arXiv 2410.13835).  Sandoval-Segura et al. (arXiv 2504.03889)
find the norm of the head's output the more reliable score: attention alone misses heads that look
at several small values, and accuses heads whose sink has a large value.  Hence both scores and the
list of disagreements.  A learned sink logit takes part of a row before it is on any key: masses are
"with" that null mass, and outputs are what the head writes with it (`table.attrs["null_mass"]`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from workbench.probes import null_mass, uniform
from workbench.probes.pooling import against_others, counted_rows, mean_rows, pool_prompts
from workbench.probes.sinks import MIN_QUERIES
from workbench.probing import head_table, pooled, probe
from workbench.stats import HeadStats

_HONOR = "Sandoval-Segura et al. 2025, arXiv 2504.03889"
_INF = float("inf")


@probe(
    question="Does one key receive most of the head's attention?",
    needs=("key_mean", "key_count", "n_visible"),
    units="probability",
    bounds=(0, 1),
    counts="prompts",
    null="uniform attention over the visible keys: its own best column",
    paper="Guo et al. 2024, arXiv 2410.13835 (column mass m_j)",
)
def dormant_score_mass(stats: HeadStats, *, renormalised: bool = False) -> pd.DataFrame:
    """Best sink column: mean over prompts of max_k key_mean[k]; probability, 0..1, high = dormant.

    key_mean[k] is the mean weight on key k over the queries that see it; keys seen by fewer than 8
    queries do not compete, and a prompt without any other key does not count (NaN for a whole layer
    whose window is narrower than that).  The best column rather than the first, since an encoder
    may park on [SEP] and a decoder on its first full stop; the weight on the first token alone is
    `sink_mass`.  `renormalised` is refused where there is a null mass.
    """
    if renormalised:
        null_mass.refuse_column_sums(stats, "dormant_score_mass")
    count = stats["key_count"]
    enough = count >= MIN_QUERIES
    value = _best(stats["key_mean"].astype("float64").where(enough))
    control = uniform.columns(stats, count.sizes["key"]) / count.where(enough)
    table = pool_prompts(stats, value, _best(control))
    table.attrs["null_mass"] = null_mass.said(renormalised)
    return table


def _best(columns: xr.DataArray) -> xr.DataArray:
    best = columns.fillna(-np.inf).max("key")
    return best.where(np.isfinite(best))


@probe(
    question="Does the head write as much as the other heads of its layer?",
    needs=("result_norm", "n_visible"),
    units="ratio to the layer's mean",
    bounds=(0, _INF),
    counts="queries",
    null="exchanging heads within the layer: the mean over all exchanges is exactly 1",
    paper=_HONOR,
    direction="low",
)
def dormant_score_output(stats: HeadStats) -> pd.DataFrame:
    """Head output norm over its layer's mean: mean_q ||W_O z_q|| / mean over heads; low = dormant.

    Ratio >= 0; the paper's layer-normalised average head output norm (AHON-LN, also HONOR), taken
    after the output projection, as the residual stream receives it, so that heads of different W_O
    compare.  Uniform attention says nothing about norms, hence the null by exchange.
    """
    value = stats["result_norm"]
    counted = counted_rows(stats, value)
    weight = counted.sum("query")
    each = mean_rows(value, counted)
    mean, _ = pooled(each, weight)
    _, sd = pooled(_over_layer(each), weight)
    ratio = _over_layer(mean)
    table = head_table(
        stats, ratio, sd, weight.sum("prompt"), xr.ones_like(ratio).where(ratio.notnull())
    )
    table.attrs["null_mass"] = null_mass.WITH
    return table


def _over_layer(norm: xr.DataArray) -> xr.DataArray:
    mean = norm.mean("head")
    return norm / mean.where(mean > 0)


def dormant_disagreement(
    stats: HeadStats, *, mass: float = 0.5, output: float = 0.5
) -> pd.DataFrame:
    """Heads that one score calls dormant and the other does not.

    Dormant by mass: `dormant_score_mass` > `mass`; dormant by output: `dormant_score_output` <
    `output`.  Both thresholds are ours (the paper sweeps them) and stand in `table.attrs` with the
    number of heads in each of the four cells.  Columns: `layer, head, label, mass, mass_null,
    output, output_null, says`.  Needs what the two probes need.
    """
    looks, writes = dormant_score_mass(stats), dormant_score_output(stats)
    table = looks.loc[:, ["layer", "head", "label"]].copy()
    table["mass"], table["mass_null"] = looks["value"], looks["null"]
    table["output"], table["output_null"] = writes["value"], writes["null"]
    looked, written = looks["value"].to_numpy(), writes["value"].to_numpy()
    known = np.isfinite(looked) & np.isfinite(written)
    by_mass, by_output = known & (looked > mass), known & (written < output)
    table["says"] = np.where(by_mass, "dormant by mass only", "dormant by output only")
    table.attrs.update(
        mass=mass,
        output=output,
        both=int((by_mass & by_output).sum()),
        by_mass_only=int((by_mass & ~by_output).sum()),
        by_output_only=int((by_output & ~by_mass).sum()),
        neither=int((known & ~by_mass & ~by_output).sum()),
        null_mass=null_mass.WITH,
    )
    return table.loc[by_mass != by_output].reset_index(drop=True)


@probe(
    question="Is the value at the sink smaller than elsewhere?",
    needs=("vo_norm",),
    units="ratio",
    bounds=(0, _INF),
    counts="prompts",
    null="every other position in turn in the place of the sink, averaged (about 1)",
    paper="Guo et al. 2024, arXiv 2410.13835 (value-state drain); after W_O",
    direction="low",
)
def value_drain(stats: HeadStats, *, position: int = 0) -> pd.DataFrame:
    """Value norm at the sink over that of the others: ||W_O v_s|| / mean_{j!=s} ||W_O v_j||; >= 0.

    Below 1 the sink adds less than another token would.  `position` is the sink's position (a later
    one for secondary sinks; in `table.attrs`).  Prompts need two other tokens.  Raises
    `WorkbenchError` where the position was not captured.
    """
    found = against_others(stats["vo_norm"], "key", position)
    table = pool_prompts(stats, found["ratio"], found["null_ratio"])
    table.attrs.update(position=position, null_mass=null_mass.NO_ATTENTION)
    return table
