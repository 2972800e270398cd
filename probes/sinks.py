"""Which heads park their attention on a token that carries nothing, and on which token?

An attention sink is a key that receives far more attention than its content explains; in most
models it is the first token.  Five measures: the rate of Gu et al. (a share of texts above a
threshold), the mass itself, the list of sink tokens, a position's share of all attention, and a
test by entropies that names no position.

With a learned sink logit all masses are those of the full softmax, "with" the null mass: what goes
to that logit is on no key.  `renormalised=True` divides every row by what falls on keys ("without")
where rows are stored; what is stored as a sum over rows is refused.  `table.attrs["null_mass"]`
says which.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.probes import null_mass, uniform
from workbench.probes.pooling import counted_rows, mean_rows, pool_prompts, refuse_two_sequences
from workbench.probing import head_table, pooled, probe
from workbench.stats import HeadStats

_GU = "Gu et al. 2024, arXiv 2410.10781, section 3"
_GUO = "Guo et al. 2024, arXiv 2410.13835"
# The mean over few queries is large by arithmetic alone (one query alone sees the last causal key).
MIN_QUERIES = 8


class Share(NamedTuple):
    """A share of the attention on keys: `value`, `sd` over `n` prompts, `null` under uniform
    attention; attention to a learned sink logit is not in it."""

    value: float
    sd: float
    n: int
    null: float
    null_mass: str = null_mass.WITHOUT


def first_token_alpha(
    stats: HeadStats, T: int = 64, *, renormalised: bool = False
) -> tuple[xr.DataArray, xr.DataArray, object]:
    """Gu's alpha_1 of every prompt and head, its value under uniform attention, and the T used.

    alpha_1 = 1/T * sum_{i=1}^{T} A[i, 1] (one-based; the diagonal A[1, 1] is included), probability
    in 1/T .. 1; dims (prompt, layer, head).  Computed from `first_mass` of the first T queries of
    the whole prompt, which for causal models is exactly the value on the prompt cut to T tokens.
    Where queries see later keys cutting would change the pattern: all queries are used and T is
    "whole prompt".  A row of a sliding window that no longer sees the first key counts as 0.
    `renormalised` divides every row by its mass on keys (needs `null_mass`).  Raises
    `WorkbenchError` when a prompt has fewer than T tokens or its first T rows were not captured.
    """
    first, n_visible = stats["first_mass"], stats["n_visible"]
    if renormalised:
        first = null_mass.without_null(stats, first)
    query = first["query"]
    counted = counted_rows(stats, first)
    control = uniform.at_key(uniform.visible_span(stats), 0)
    if bool((n_visible > query + 1).any()):
        return mean_rows(first, counted), mean_rows(control, counted), "whole prompt"
    lengths = stats.lengths
    if int(lengths.min()) < T:
        shortest = int(lengths.idxmin())
        raise WorkbenchError(
            f"prompt {shortest} has {int(lengths.min())} tokens, fewer than T={T}; leave out "
            f"prompts that short or pass a smaller T (the rate falls with T: all share one)."
        )
    counted = counted & (query < T)
    rows = counted.sum("query")
    if bool(((rows > 0) & (rows < T)).any()):
        raise WorkbenchError(
            f"alpha_1 needs the rows of queries 0 to {T - 1}; capture all positions."
        )
    return mean_rows(first, counted), mean_rows(control, counted), T


@probe(
    question="On what share of texts is the first token a sink of this head?",
    needs=("first_mass", "n_visible"),
    units="share of prompts",
    bounds=(0, 1),
    counts="prompts",
    null="the same rate for uniform attention over the visible keys (alpha_1 = H_T/T when causal)",
    paper=_GU,
)
def first_token_sink_rate(
    stats: HeadStats, *, epsilon: float = 0.3, T: int = 64, renormalised: bool = False
) -> pd.DataFrame:
    """Sink_1^epsilon per head: mean over prompts of [alpha_1 > epsilon]; share in 0..1.

    The indicator comes first, then the average: it is a rate, not a thresholded mean.  The mean of
    the column `value` over heads is the model's number in the paper.  `epsilon` and `T` used stand
    in `table.attrs`; T is "whole prompt" for models whose queries see later keys (see
    `first_token_alpha`, also for the errors).
    """
    above, null, used = first_token_above(stats, epsilon, T, renormalised)
    table = pool_prompts(stats, above, null)
    table.attrs.update(epsilon=epsilon, T=used, null_mass=null_mass.said(renormalised))
    return table


def first_token_above(
    stats: HeadStats, epsilon: float, T: int, renormalised: bool
) -> tuple[xr.DataArray, xr.DataArray, object]:
    """Gu's indicator [alpha_1 > epsilon] of every prompt and head, the same for uniform attention
    (0 or 1, NaN where unknown; dims (prompt, layer, head)), and the T used."""
    if not 0 < epsilon < 1 or T < 1:
        raise WorkbenchError(
            f"epsilon={epsilon}, T={T}: epsilon must lie between 0 and 1, T at 1 or above."
        )
    alpha, control, used = first_token_alpha(stats, T, renormalised=renormalised)
    above, null = ((a > epsilon).astype("float64").where(alpha.notnull()) for a in (alpha, control))
    return above, null, used


@probe(
    question="How much attention does the first position receive?",
    needs=("key_mean", "key_count", "n_visible"),
    units="probability",
    bounds=(0, 1),
    counts="queries that can see the first position",
    null="uniform attention over the visible keys: the column mean it gives the first position",
    paper=f"Xiao et al. 2023, arXiv 2309.17453, section 3.1; column mass m_0 of {_GUO}",
)
def sink_mass(stats: HeadStats, *, position: int = 0, renormalised: bool = False) -> pd.DataFrame:
    """Column mass of position 0: sum_q A[q, 0] over the queries that see it / their number; 0..1.

    Pooled over queries (long prompts weigh more), the diagonal included.  `position` is another key
    to ask about (in `table.attrs`); raises `WorkbenchError` where no prompt is that long.
    `renormalised` takes the column from its rows (needs `first_mass, null_mass`), to divide each by
    its mass on keys; that of another position than 0 is stored as a sum only, and refused.
    """
    if position not in stats["key_mean"]["key"]:
        raise WorkbenchError(f"no prompt has a key at position {position}; choose one it has.")
    at = {"key": position}
    count = stats["key_count"].sel(at, drop=True).fillna(0).where(stats.lengths >= 2, 0)
    value = stats["key_mean"].sel(at, drop=True).astype("float64").where(count > 0)
    if renormalised and position == 0:
        rows = null_mass.without_null(stats, stats["first_mass"]).sum("query")
        value = rows / count.where(count > 0)
    elif renormalised:
        null_mass.refuse_column_sums(stats, f"sink_mass at position {position}")
    control = uniform.columns(stats, position + 1).isel(key=position, drop=True)
    mean, sd = pooled(value, count)
    null, _ = pooled(control / count.where(count > 0), count)
    table = head_table(stats, mean, sd, count.sum("prompt"), null)
    table.attrs.update(position=position, null_mass=null_mass.said(renormalised))
    return table


def attention_share(stats: HeadStats, position: int = 0) -> Share:
    """Share of all attention that one position receives, over all heads, layers and prompts.

    sum of `key_mass` at `position` / sum of `key_mass`; 0..1.  A negative `position` counts from
    the end of each prompt.  Needs `key_mass` and `n_visible`.  The share of a sink falls with the
    length of the text ([CLS] of MiniLM on the twelve demo paragraphs cut to 16, 32, 64 and 256
    tokens: .46, .37, .29, .18), so compare equal lengths.  Attention to a learned sink logit is on
    no position and in neither sum.  Raises `WorkbenchError` where no prompt has the position.
    """
    mass = stats["key_mass"].astype("float64")
    at = mass["key"] == xr.where(position < 0, _n_keys(stats) + position, position)
    heads = ("layer", "head", "key")
    here, whole = mass.where(at).sum(heads), mass.sum(heads)
    has = at.any("key") & (whole > 0)
    if not bool(has.any()):
        raise WorkbenchError(f"no prompt has a key at position {position}; choose one it has.")
    control = uniform.columns(stats, mass.sizes["key"]).where(mass.notnull())
    null = float(control.where(at).where(has).sum() / control.where(has).sum())
    each = (here / whole).where(has, drop=True).to_numpy()
    value = float(here.where(has).sum() / whole.where(has).sum())
    return Share(
        value, float(np.std(each, ddof=1)) if len(each) > 1 else float("nan"), len(each), null
    )


def _n_keys(stats: HeadStats) -> xr.DataArray:
    """Number of keys of every prompt, dims (prompt)."""
    mass = stats["key_mass"]
    return (mass.notnull().any(("layer", "head")) * (mass["key"] + 1)).max("key")


def sink_positions(
    stats: HeadStats, *, threshold: float = 0.3, renormalised: bool = False
) -> pd.DataFrame:
    """Sink tokens: every position that is a sink of at least one head, most attended first.

    Columns: `prompt, position, token, role`; `received`, attention received as the mean over layers
    and heads of `key_mean` (probability); `n_heads`, heads with key_mean > `threshold`; `share`,
    the position's part of the prompt's attention (sum of `key_mass` over heads); `null_share`, the
    same for uniform attention over the visible keys.  `key_mean` is Gu's alpha_k (arXiv 2410.10781,
    section 3); keys seen by fewer than 8 queries are left out, as their mean rests on few rows.
    `threshold` stands in `table.attrs`.  Needs `key_mean, key_mass, key_count, n_visible`.  Raises
    `WorkbenchError` for cross-attention and resamplers, whose keys are not in the token table, and
    for `renormalised` where there is a null mass.
    """
    refuse_two_sequences(stats, "sink_positions")
    if renormalised:
        null_mass.refuse_column_sums(stats, "sink_positions")
    received, mass = stats["key_mean"].astype("float64"), stats["key_mass"].astype("float64")
    control = uniform.columns(stats, mass.sizes["key"])
    heads = ("layer", "head")
    enough = (stats["key_count"] >= MIN_QUERIES).any(heads)
    n_heads = ((received > threshold) & (stats["key_count"] >= MIN_QUERIES)).sum(heads)
    columns = xr.Dataset(
        {
            "received": received.mean(heads),
            "n_heads": n_heads.where(enough, 0),
            "share": mass.sum(heads) / mass.sum((*heads, "key")),
            "null_share": control.sum(heads) / control.sum((*heads, "key")),
        }
    )
    table = columns.to_dataframe().reset_index().rename(columns={"key": "position"})
    table = table[table["n_heads"] > 0].astype({"n_heads": "int64"})
    tokens = stats.tokens.loc[:, ["prompt", "position", "text", "role"]].rename(
        columns={"text": "token"}
    )
    table = table.merge(tokens, on=["prompt", "position"], how="left")
    order = ["prompt", "position", "token", "role", "received", "n_heads", "share", "null_share"]
    table = table.loc[:, order].sort_values(
        ["share", "prompt"], ascending=[False, True], ignore_index=True
    )
    table.attrs.update(
        threshold=threshold, min_queries=MIN_QUERIES, null_mass=null_mass.said(renormalised)
    )
    return table


def entropy_detector(
    stats: HeadStats, *, row: float, column: float, renormalised: bool = False
) -> pd.DataFrame:
    """Sink-like heads by two entropies, without naming a position (Guo et al. 2024, arXiv
    2410.13835, their code): every query is certain, and some key is received by all alike.

    Per head: `row_entropy`, mean over queries that see two keys or more of H(row) / ln n_visible;
    `column_entropy`, the largest over keys of key_entropy / ln key_count, keys seen by fewer than 8
    queries left out; both 0..1, means over `n` prompts.  `sink_like` iff row_entropy < `row` and
    column_entropy > `column`; the source leaves both thresholds to its user, and so does this.
    `row_null` and `column_null` are those of uniform attention over the visible keys: 1 for rows,
    and near 1 for columns too, so that only both together say anything.  Needs `entropy, n_visible,
    key_entropy, key_count` (the group "spread").  Raises `WorkbenchError` for thresholds outside
    0..1, and for `renormalised` where there is a null mass.
    """
    if not (0 <= row <= 1 and 0 <= column <= 1):
        raise WorkbenchError(f"row={row}, column={column}: both thresholds must lie in 0..1.")
    if renormalised:
        null_mass.refuse_column_sums(stats, "entropy_detector")
    rows, columns = _row_entropy(stats), _column_entropy(stats)
    spread, profile = pool_prompts(stats, *rows), pool_prompts(stats, *columns)
    table = spread.loc[:, ["layer", "head", "label"]].copy()
    for name, part in (("row", spread), ("column", profile)):
        table[f"{name}_entropy"], table[f"{name}_null"] = part["value"], part["null"]
    table["n"] = np.minimum(spread["n"], profile["n"])
    table["sink_like"] = (table["row_entropy"] < row) & (table["column_entropy"] > column)
    table.attrs.update(
        row=row, column=column, min_queries=MIN_QUERIES, null_mass=null_mass.said(renormalised)
    )
    return table


def _row_entropy(stats: HeadStats) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean relative entropy of the rows of every prompt, and that of uniform attention (1)."""
    n = stats["n_visible"].astype("float64")
    most = n.where(n >= 2)
    relative = stats["entropy"].astype("float64") / most.copy(data=np.log(most.to_numpy()))
    value = mean_rows(relative, counted_rows(stats, relative))
    return value, xr.ones_like(value)


def _column_entropy(stats: HeadStats) -> tuple[xr.DataArray, xr.DataArray]:
    """The largest relative entropy of a column of every prompt, and that of uniform attention.

    A key seen by queries with n_q visible keys receives shares (1/n_q) / S, S the sum of all 1/n_q;
    their entropy is ln S + sum_q (ln n_q / n_q) / S.
    """
    count = stats["key_count"].astype("float64")
    enough = count.where(count >= MIN_QUERIES)
    most = enough.copy(data=np.log(enough.to_numpy()))
    span = uniform.visible_span(stats)
    n, n_keys = span["n"], count.sizes["key"]
    total = uniform.column_sums(span, 1 / n, n_keys)
    total = total.where(total > 0)
    surprise = uniform.column_sums(span, n.copy(data=np.log(n.to_numpy())) / n, n_keys)
    control = total.copy(data=np.log(total.to_numpy())) + surprise / total
    value = stats["key_entropy"].astype("float64") / most
    return value.max("key"), (control / most).max("key")
