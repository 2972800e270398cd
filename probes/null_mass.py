"""What a learned sink logit takes of the attention, and statistics with or without that part.

A learned sink logit s joins the denominator of a row's softmax and has no key (gpt-oss, OpenAI
2025, arXiv 2508.10925).  With lse_q the log-sum-exp of the row's scores alone, the null mass is
m_q = sigmoid(s - lse_q), and every weight is that of the plain softmax times 1 - m_q =
sigmoid(lse_q - s).  Dividing a row by 1 - m_q therefore gives the plain softmax back, exactly and
at no cost.  That can be done per query only: a column statistic has summed rows of different null
mass, and the sum does not tell them apart.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.probes.pooling import counted_rows, pool_rows
from workbench.probing import probe
from workbench.stats import HeadStats

# What tables say in attrs["null_mass"]; the last where no attention enters the number.
WITH, WITHOUT, NO_ATTENTION = "with", "without", "no attention in it"
# A row of half precision sums to one only this well; less than this is no null mass.
_ROUNDING = 5e-3


def said(renormalised: bool) -> str:
    """How a table says which of the two it holds."""
    return WITHOUT if renormalised else WITH


def without_null(stats: HeadStats, mass: xr.DataArray) -> xr.DataArray:
    """A mass per query divided by 1 - null_mass: its value under the softmax of the keys alone.

    `mass` has dims (prompt, layer, head, query), probability in 0..1; NaN where all of a row went
    to the sink logit.  Exact up to the rounding of the stored null_mass.  Needs `null_mass`.
    """
    kept = 1 - stats["null_mass"].astype("float64")
    return mass.astype("float64") / kept.where(kept > 0)


def entropy_without_null(stats: HeadStats) -> xr.DataArray:
    """Row entropy under the softmax of the keys alone, nats, dims (prompt, layer, head, query).

    With a_j = (1 - m) p_j the stored entropy is H = -sum a_j ln a_j, so that -sum p_j ln p_j =
    H / (1 - m) + ln(1 - m).  Needs `entropy, null_mass`.
    """
    kept = 1 - stats["null_mass"].astype("float64")
    kept = kept.where(kept > 0)
    return without_null(stats, stats["entropy"]) + kept.copy(data=np.log(kept.to_numpy()))


def refuse_column_sums(stats: HeadStats, name: str) -> None:
    """Raise `WorkbenchError` where rows have a null mass that a column sum cannot be freed of."""
    if bool((stats["null_mass"] > _ROUNDING).any()):
        raise WorkbenchError(
            f"{name} sums columns over queries of different null mass and cannot be renormalised "
            "from what is stored; leave renormalised=False, or ask about the first token, "
            "whose rows are stored one by one (first_token_sink_rate, sink_mass)."
        )


@probe(
    question="How much attention goes to the learned sink logit, that is to no key?",
    needs=("null_mass", "n_visible"),
    units="probability",
    bounds=(0, 1),
    counts="queries",
    null="even attention to the visible keys and one key more: mean of 1 / (n_visible + 1)",
    paper="OpenAI 2025, arXiv 2508.10925 (gpt-oss): a learned logit per head in the denominator",
)
def null_sink_mass(stats: HeadStats) -> pd.DataFrame:
    """Mean over queries of the null mass, m_q = sigmoid(s - lse_q); probability in 0..1.

    Exactly 0 for heads without a learned sink logit; the null is what the logit would take if it
    and all scores were equal, which such heads have not.
    """
    value = stats["null_mass"]
    null = 1 / (stats["n_visible"].astype("float64") + 1)
    table = pool_rows(stats, value, null, counted_rows(stats, value))
    table.attrs["null_mass"] = WITH
    return table
