"""What is logged of every run: risks against the oracle, sink, logit margin, drain, residual.

Definitions of Guo et al. 2024 (arXiv 2410.13835) with two repairs: the oracle of the first symbol
is exact, and queries 0 and 1, which have no key to compare with, are left out of what is said about
rows.  `tr` marks queries that hold a trigger; there are two families of numbers, "on" and "off".

    risk          mean over queries of -sum_v Q(v) log p(v), Q the exact next-symbol distribution
    sink          mean weight on key 0, queries >= 2
    delta_logit   score of key 0 minus the mean score of keys 1..q-1 (neither key 0 nor the query's
                  own), averaged per token type, then mean and 10-90 % quantiles across types
    value_norm    ||W_O v|| of `<s>`, of triggers, of the other symbols
    edit_*        the risks again with one part gone, queries >= FIRST_EDITED only
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.schema import INF, Variable

FIRST_ROW = 2  # the first query with a key that is neither `<s>` nor itself
FIRST_EDITED = 8  # an evicted key is missed by late queries; early ones have few keys anyway
LOW, HIGH = 0.1, 0.9  # the band across token types
DELTA_KIND = "key 0 minus mean of keys 1..q-1, per token type"

_RUN = ("run", "step")
_HEAD = (*_RUN, "layer", "head")
_EDIT = (*_RUN, "edit")
_PATTERN = (*_HEAD, "probe", "query", "key")


_ANY, _POSITIVE, _SHARE = (-INF, INF), (0.0, INF), (0.0, 1.0)
# By group: what shares a figure.  A band, NAME_low to NAME_high, belongs to the curve before it.
_GROUPS = {
    "risks against the oracle": (
        ("excess_off", _RUN, "nats", _POSITIVE, "risk_off minus the oracle's own entropy"),
        ("excess_on", _RUN, "nats", _POSITIVE, "risk_on minus the oracle's own entropy"),
        ("risk_off", _RUN, "nats", _POSITIVE, "cross-entropy to the oracle elsewhere"),
        ("risk_on", _RUN, "nats", _POSITIVE, "cross-entropy to the oracle after triggers"),
    ),
    "weight on <s>": (
        ("sink_off", _HEAD, "probability", _SHARE, "weight on <s>, other queries"),
        ("sink_on", _HEAD, "probability", _SHARE, "weight on <s>, queries with a trigger"),
        ("null_off", _HEAD, "probability", _SHARE, "mass of the null sink, other queries"),
    ),
    "logit margin of <s>": (
        ("delta_logit", (*_HEAD, "token"), "logits", _ANY, DELTA_KIND),
        ("delta_logit_off", _HEAD, "logits", _ANY, "mean over the other types"),
        ("delta_logit_low", _HEAD, "logits", _ANY, "10 % quantile over the other types"),
        ("delta_logit_high", _HEAD, "logits", _ANY, "90 % quantile over the other types"),
        ("delta_logit_on", _HEAD, "logits", _ANY, "mean over trigger types"),
    ),
    "what a value writes": (
        ("value_norm", (*_HEAD, "role"), "L2 norm", _POSITIVE, "||W_O v||, mean over keys"),
    ),
    "residual stream after the block": (
        ("resid_norm", (*_RUN, "stream", "role"), "L2 norm", _POSITIVE,
         "norm of the residual stream"),
    ),
    "entropy of the row": (
        ("entropy_off", _HEAD, "nats", _POSITIVE, "entropy of the row, other queries"),
    ),
    "risks with a part gone": (
        ("edit_excess_on", _EDIT, "nats", _POSITIVE, "excess_on with a part gone, late rows"),
        ("edit_excess_off", _EDIT, "nats", _POSITIVE, "excess_off with a part gone, late rows"),
    ),
    "pattern": (
        ("pattern", _PATTERN, "probability", (0.0, INF), "weights on the probe texts"),
    ),
}  # fmt: skip
VARIABLES = tuple(
    Variable(name, dims, units, low, high, group, about)
    for group, rows in _GROUPS.items()
    for name, dims, units, (low, high), about in rows
)
ROLES = ("begin", "trigger", "other")


def excess(
    log_p: xr.DataArray, oracle: xr.DataArray, rows: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray]:
    """Risk and excess risk [run], means over the marked `rows` [run, text, query], in nats.

    `log_p` and `oracle` are [run, text, query, token].  NaN where no row is marked.
    """
    risk = -(oracle * log_p).sum("token").where(rows).mean(("text", "query"))
    floor = -xr.where(oracle > 0, oracle * np.log(oracle.where(oracle > 0, 1.0)), 0.0)
    return risk, risk - floor.sum("token").where(rows).mean(("text", "query"))


def sink_mass(pattern: xr.DataArray, rows: xr.DataArray) -> xr.DataArray:
    """Mean weight on key 0 over the marked rows from query 2 on, [run, layer, head].

    `pattern` [run, layer, head, text, query, key], `rows` bool [run, text, query].
    """
    return row_mean(pattern.isel(key=0), rows)


def null_mass(pattern: xr.DataArray, rows: xr.DataArray) -> xr.DataArray:
    """What the marked rows lack to a sum of one: the null sink's share, [run, layer, head]."""
    return row_mean(1.0 - pattern.sum("key"), rows)


def row_entropy(pattern: xr.DataArray, rows: xr.DataArray) -> xr.DataArray:
    """Mean entropy of the marked rows over their keys, in nats, [run, layer, head]."""
    # x log x goes to 0 with x; the null sink's mass is left out.
    terms = -pattern * np.log(pattern.where(pattern > 0, 1.0))
    return row_mean(terms.sum("key"), rows)


def row_mean(values: xr.DataArray, rows: xr.DataArray) -> xr.DataArray:
    """Mean of [run, ..., text, query] over the marked rows from query 2 on; NaN without any."""
    late = xr.DataArray(np.arange(rows.sizes["query"]) >= FIRST_ROW, dims="query")
    return values.where(rows & late).mean(("text", "query"))


def delta_logit(scores: xr.DataArray, ids: xr.DataArray, n_tokens: int) -> xr.DataArray:
    """Score of key 0 minus the mean score of keys 1..q-1, by the token at the query.

    `scores` [run, layer, head, text, query, key] before the mask, `ids` [run, text, query]; returns
    [run, layer, head, token], NaN for tokens that stand at no query from 2 on.
    """
    places = np.arange(scores.sizes["query"])
    query, key = xr.DataArray(places, dims="query"), xr.DataArray(places, dims="key")
    between = (key >= 1) & (key < query)
    margin = scores.isel(key=0) - scores.where(between).mean("key")
    of_token = (ids == xr.DataArray(np.arange(n_tokens), dims="token")) & (query >= FIRST_ROW)
    total = xr.dot(margin.fillna(0.0), of_token.astype(margin.dtype), dim=("text", "query"))
    return total / of_token.sum(("text", "query")).where(lambda n: n > 0)


def spread(by_token: xr.DataArray, tokens: np.ndarray) -> tuple[xr.DataArray, ...]:
    """Mean, 10 % and 90 % quantile over the token types in the mask `tokens` that occur."""
    kept = by_token.isel(token=np.nonzero(tokens)[0])
    low, high = (kept.quantile(q, "token", skipna=True).drop_vars("quantile") for q in (LOW, HIGH))
    return kept.mean("token"), low, high


def role_mean(norms: xr.DataArray, triggers: xr.DataArray) -> xr.DataArray:
    """Mean norm by role of the position, [..., role].

    `norms` [run, ..., text, key]; `triggers` bool [run, text, key].
    """
    begin = xr.DataArray(np.arange(norms.sizes["key"]) == 0, dims="key")
    masks = (begin, triggers & ~begin, ~triggers & ~begin)
    means = [norms.where(mask).mean(("text", "key")) for mask in masks]
    return xr.concat(means, xr.DataArray(list(ROLES), dims="role", name="role")).transpose(
        ..., "role"
    )
