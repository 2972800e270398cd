"""The six HeadVis metrics, by their names and definitions: what kind of pattern does a head draw?

Source: HeadVis (Anthropic 2026, repository anthropics/headvis) and its hosted form on Neuronpedia.
All pool over query positions: the mean runs over every query of every prompt, so long prompts weigh
more; prompts shorter than two tokens do not count.  A is the pattern, rows are queries.

With a learned sink logit ("null mass") the numbers are those of the full softmax: that mass stays
in the denominator, belongs to no key and has no distance, so rows sum to less than one.  Without
such a logit nothing changes.  The control of all six is uniform attention over the visible keys.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.probes import null_mass
from workbench.probes.pooling import counted_rows, mean_rows, pool_rows, refuse_two_sequences
from workbench.probes.uniform import (
    at_key,
    distances,
    earlier_copies,
    on_earlier_copies,
    visible_span,
)
from workbench.probing import head_table, pooled, probe
from workbench.stats import HeadStats

_SOURCE = "HeadVis (Anthropic 2026, anthropics/headvis)"
_INF = float("inf")


@probe(
    question="How much does a token look at itself?",
    needs=("self_mass", "n_visible"),
    units="probability",
    bounds=(0, 1),
    counts="queries",
    null="uniform attention over the visible keys: mean of 1/n_visible",
    paper=_SOURCE,
)
def self_attention_score(stats: HeadStats) -> pd.DataFrame:
    """Mean of the diagonal, mean_q A[q, q]; probability in 0..1, with the null mass.

    Raises `WorkbenchError` for cross-attention and resamplers.
    """
    refuse_two_sequences(stats, "self_attention_score")
    value = stats["self_mass"]
    span = visible_span(stats)
    return pool_rows(stats, value, at_key(span, span["query"]), counted_rows(stats, value))


@probe(
    question="How much does a token look at the token before it?",
    needs=("prev_mass", "n_visible"),
    units="probability",
    bounds=(0, 1),
    counts="queries at position 1 and later",
    null="uniform attention over the visible keys: mean of 1/n_visible, 0 where the key is masked",
    paper=_SOURCE,
)
def prev_token_score(stats: HeadStats) -> pd.DataFrame:
    """Mean of the first subdiagonal, mean_{q>=1} A[q, q-1]; probability, 0..1, with the null mass.

    Raises `WorkbenchError` for cross-attention and resamplers.
    """
    refuse_two_sequences(stats, "prev_token_score")
    value = stats["prev_mass"]
    span = visible_span(stats)
    counted = counted_rows(stats, value) & (value["query"] >= 1)
    return pool_rows(stats, value, at_key(span, span["query"] - 1), counted)


@probe(
    question="How widely is a query's attention spread?",
    needs=("entropy", "n_visible"),
    units="nats",
    bounds=(0, _INF),
    counts="queries",
    null="uniform attention over the visible keys: mean of log n_visible",
    paper=_SOURCE,
)
def pattern_entropy(stats: HeadStats, *, renormalised: bool = False) -> pd.DataFrame:
    """Mean row entropy, mean_q of -sum_k A[q, k] log A[q, k]; nats, >= 0.

    At most the null, unless a learned sink logit takes part of a row: its mass gives no term.
    `renormalised` gives the entropy of the softmax of the keys alone (needs `null_mass`);
    `table.attrs["null_mass"]` says which.
    """
    value = null_mass.entropy_without_null(stats) if renormalised else stats["entropy"]
    n = visible_span(stats)["n"]
    control = n.copy(data=np.log(n.to_numpy()))
    table = pool_rows(stats, value, control, counted_rows(stats, value))
    table.attrs["null_mass"] = null_mass.said(renormalised)
    return table


@probe(
    question="How far away does a head look?",
    needs=("distance", "n_visible"),
    units="tokens",
    bounds=(0, _INF),
    counts="queries",
    null="uniform attention over the visible keys: their mean distance",
    paper=_SOURCE,
)
def qk_distance(stats: HeadStats) -> pd.DataFrame:
    """Mean |q - k| weighted by attention, mean_q of sum_k A[q, k] |q - k|; tokens, >= 0.

    Raises `WorkbenchError` for cross-attention and resamplers.
    """
    refuse_two_sequences(stats, "qk_distance")
    value = stats["distance"]
    control, _ = distances(visible_span(stats))
    return pool_rows(stats, value, control, counted_rows(stats, value))


@probe(
    question="Does a head look at one distance or at many?",
    needs=("distance", "distance_sq", "n_visible"),
    units="tokens^2",
    bounds=(0, _INF),
    counts="queries",
    null="uniform attention over the visible keys: the same two moments of their distances",
    paper=_SOURCE,
)
def qk_distance_variance(stats: HeadStats) -> pd.DataFrame:
    """Variance of |q - k| over all attention: pooled E[(q-k)^2] minus the squared pooled E|q-k|.

    Not the mean of the variances of single rows: a head that always looks at one far key has rows
    without spread, yet many distances.  tokens^2, >= 0 (rounding below 0 is set to 0); sd is that
    of the variances of single prompts.  Raises `WorkbenchError` for cross-attention and resamplers.
    """
    refuse_two_sequences(stats, "qk_distance_variance")
    counted = counted_rows(stats, stats["distance"])
    weight = counted.sum("query")
    uniform = distances(visible_span(stats))
    found = []
    for linear, square in ((stats["distance"], stats["distance_sq"]), uniform):
        first, second = mean_rows(linear, counted), mean_rows(square, counted)
        mean, _ = pooled(first, weight)
        mean_square, _ = pooled(second, weight)
        _, sd = pooled(second - first**2, weight)
        found.append((np.maximum(mean_square - mean**2, 0), sd))
    (value, sd), (null, _) = found
    return head_table(stats, value, sd, weight.sum("prompt"), null)


@probe(
    question="When a token occurs again, does the head look at what followed it before?",
    needs=("induction_mass", "n_visible"),
    units="probability",
    bounds=(0, 1),
    counts="queries whose token occurred before in the prompt",
    null="uniform attention over the visible keys: visible targets / n_visible",
    paper=_SOURCE,
)
def induction_score(stats: HeadStats) -> pd.DataFrame:
    """Mean over queries with an earlier same token of sum_{j<q, x_j=x_q} A[q, j+1]; 0..1.

    Queries are counted from the token table, hidden targets of a window included (they hold 0).
    The public HeadVis pipeline first sets entries A < 0.01 to zero; this does not, so a head that
    spreads thinly over many copies scores higher here.  With the null mass.  NaN where no token
    occurs twice.  Raises `WorkbenchError` for cross-attention and resamplers.
    """
    refuse_two_sequences(stats, "induction_score")
    value = stats["induction_mass"]
    counted = counted_rows(stats, value) & (earlier_copies(stats, value) > 0)
    return pool_rows(stats, value, on_earlier_copies(stats, shift=1), counted)
