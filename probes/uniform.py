"""The control beside every mass: attention spread evenly over the keys each query can see.

For query q with n visible keys a = first .. b = last, every visible key gets 1/n.  Everything below
follows in closed form from `n_visible`, the mask's direction (`AttentionSite.causal`) and the token
table, so the control costs no second run.  Which keys are visible is inferred from their number n:

- causal sites: the n keys ending at the query; when n exceeds q + 1 (a prefix that sees itself
  whole), keys 0 .. n - 1;
- sites that look both ways: the n keys nearest to the query (exact without a mask and for symmetric
  windows; an approximation for masks made of separate blocks);
- cross-attention and resamplers: keys 0 .. n - 1.

Positions are those of the `query` coordinate.  Rows that see no key are NaN.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.schema import KEY
from workbench.stats import HeadStats

# Towers whose queries and keys are positions of different sequences.
TWO_SEQUENCES = ("cross", "resampler")


def visible_span(stats: HeadStats) -> xr.Dataset:
    """Number `n`, `first` and `last` of the visible keys of every query, dims of a row statistic.

    Needs `n_visible`; unit: key index (n: keys); NaN for padding and for rows that see no key.
    """
    n = stats["n_visible"].astype("float64")
    n = n.where(n > 0)
    query = n["query"]
    if stats.kind in TWO_SEQUENCES:
        first = n - n
    else:
        ending_here = (query - n + 1).clip(min=0)
        room = (stats.lengths - n).clip(min=0)
        nearest = (query - (n - 1) // 2).clip(min=0)
        nearest = nearest.where(nearest <= room, room)
        first = ending_here.where(_is_causal(stats), nearest).transpose(*n.dims)
    return xr.Dataset({"n": n, "first": first, "last": first + n - 1})


def _is_causal(stats: HeadStats) -> xr.DataArray:
    causal = {site.layer: site.causal for site in stats.spec.of(stats.kind)}
    layers = stats["n_visible"]["layer"]
    return xr.DataArray(
        [causal.get(int(layer), True) for layer in layers], coords={"layer": layers}
    )


def at_key(span: xr.Dataset, key: xr.DataArray | int) -> xr.DataArray:
    """Uniform weight on one key per query: 1/n if visible, else 0; probability, dims of `span`."""
    visible = (span["first"] <= key) & (key <= span["last"])
    return (visible / span["n"]).where(span["n"].notnull()).transpose(*span["n"].dims)


def distances(span: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Uniform mean of |q - k| (tokens) and of (q - k)^2 (tokens^2) per query, dims of `span`.

    With A = q - first keys before and B = last - q after: (A(A+1) + B(B+1)) / 2n and
    (A(A+1)(2A+1) + B(B+1)(2B+1)) / 6n.
    """
    before, after = span["query"] - span["first"], span["last"] - span["query"]
    linear = (before * (before + 1) + after * (after + 1)) / 2
    square = sum(m * (m + 1) * (2 * m + 1) / 6 for m in (before, after))
    dims = span["n"].dims
    return (linear / span["n"]).transpose(*dims), (square / span["n"]).transpose(*dims)


def on_earlier_copies(stats: HeadStats, shift: int) -> xr.DataArray:
    """Uniform weight on keys j + shift, j < q holding the query's token: matches/n; dims of a row.

    `shift` 0 is the duplicate-token target, 1 the induction target.  Probability in 0..1.
    """
    span = visible_span(stats)
    found = np.zeros(span["n"].shape)
    first, last = (span[name].fillna(0).to_numpy() for name in ("first", "last"))
    queries = span["query"].to_numpy()
    for row, prompt in enumerate(span["prompt"].to_numpy()):
        ids = token_ids(stats, prompt)
        inside = queries < len(ids)
        at = queries[inside]
        low, high = (edge[row][..., inside] - shift for edge in (first, last))
        found[row][..., inside] = _count_copies(
            ids, at, np.maximum(low, 0), np.minimum(high, at - 1)
        )
    return span["n"].copy(data=found) / span["n"]


def earlier_copies(stats: HeadStats, like: xr.DataArray) -> xr.DataArray:
    """Number of earlier occurrences of each query's token in the prompt, dims (prompt, query).

    Counted from the token table alone, so a window does not change it; negative ids mark positions
    without a token identity and have none.  `like` gives the prompts and queries.
    """
    queries = like["query"].to_numpy()
    found = np.zeros((like.sizes["prompt"], len(queries)))
    for row, prompt in enumerate(like["prompt"].to_numpy()):
        ids = token_ids(stats, prompt)
        inside = queries < len(ids)
        at = queries[inside]
        found[row, inside] = _count_copies(ids, at, np.zeros_like(at), at - 1)
    return xr.DataArray(
        found, dims=("prompt", "query"), coords={"prompt": like["prompt"], "query": like["query"]}
    )


def token_ids(stats: HeadStats, prompt: int) -> np.ndarray:
    """Token ids of one prompt in order of position, int [position]; -1 where there is none."""
    tokens = stats.tokens.loc[stats.tokens["prompt"] == prompt]
    return tokens.sort_values("position")["id"].fillna(-1).to_numpy(dtype=np.int64)


def _count_copies(ids: np.ndarray, at: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """How many j in low .. high hold the token of query `at` ([query]); low, high: [..., query]."""
    _, rank = np.unique(ids, return_inverse=True)
    # One sorted list of (token, position) pairs, packed into integers, answers every range.
    stride = len(ids) + 2
    packed = np.sort(rank * stride + np.arange(len(ids)))
    base = rank[at] * stride
    upto = np.searchsorted(packed, base + high.astype(np.int64), side="right")
    before = np.searchsorted(packed, base + low.astype(np.int64), side="left")
    return np.where(ids[at] < 0, 0, np.maximum(upto - before, 0))


def columns(stats: HeadStats, n_keys: int) -> xr.DataArray:
    """Attention every key would receive: sum over the queries that see it of 1/n, dims (.., key).

    Unit: probability summed over queries, as `key_mass`; keys nobody sees get 0.
    """
    span = visible_span(stats)
    return column_sums(span, 1 / span["n"], n_keys)


def column_sums(span: xr.Dataset, weight: xr.DataArray, n_keys: int) -> xr.DataArray:
    """Sum over the queries that see a key of `weight` >= 0 (one number per query), dims (.., key).

    `weight` has the dims of `span["n"]`; NaN counts as 0.
    """
    each = weight.fillna(0).to_numpy()
    start = span["first"].fillna(0).to_numpy().astype(np.int64)
    stop = span["last"].fillna(-1).to_numpy().astype(np.int64) + 1
    rows = int(np.prod(each.shape[:3]))
    offset = (np.arange(rows) * (n_keys + 1)).reshape((*each.shape[:3], 1))
    size = rows * (n_keys + 1)
    # Each row adds a step up at its first key and a step down after its last: one cumulative sum.
    steps = np.zeros(size)
    for edge, sign in ((start, 1.0), (stop, -1.0)):
        at = (np.clip(edge, 0, n_keys) + offset).ravel()
        steps += np.bincount(at, weights=sign * each.ravel(), minlength=size)
    mass = steps.reshape((*each.shape[:3], n_keys + 1)).cumsum(-1)[..., :n_keys]
    coords = {dim: span[dim] for dim in KEY[:3]}
    return xr.DataArray(np.maximum(mass, 0), dims=KEY, coords=coords)
