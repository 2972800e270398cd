"""Exact statistics of attention maps, from q and k, without holding a map.

    stats = attention_stats(q, k, ["entropy", "key_mass"], causal=True)

Dims: B batch, H query heads, Hkv key/value heads (query head h reads kv head h // (H // Hkv)), Q
queries, K keys, D head width, S segments. Rows of a map are queries, columns are keys; query i sits
at position i + query_offset, key j at position j; d = i + query_offset - j is their distance.

    s = scale * q.k;  s = softcap * tanh(s / softcap);  s = s + bias - alibi |d|;  hidden keys out
    p[i, j] = exp(s[i, j] - lse[i]),  lse[i] = log(sum_j exp(s[i, j]) + exp(sink_logit))

Row statistics, each [B, H, Q] (NaN, or 0 for integers, where the query is not valid):
    lse             natural log; -inf where nothing is visible and there is no sink
    entropy         nats, -sum_j p log p over the keys, p as normalised with the sink
    participation   sum_j p^power (power 2: its inverse is the number of keys that matter)
    max_prob        largest p
    argmax          its key, the first one on a tie (int64)
    self_mass       p at the query's own position
    prev_mass       p at the position before
    first_mass      p at `first_key` (default key 0)
    null_mass       mass of the sink logit, 0 without one
    distance        sum_j p |d|, tokens
    distance_sq     sum_j p d^2, tokens^2
    waad            sum_j p min(|d|, waad_window), tokens: windowed average attention distance
    local_mass      p on keys with |d| < local_window
    value_mass      sum_j p |v_j|, units of v
    duplicate_mass  p on earlier valid keys of the query's sequence that hold its token
    induction_mass  p on keys, up to the query, right after such a key
    n_visible       keys the query can see (int64)
with one more dim:
    role_mass       [., S]: p summed over the keys of each segment
    feature_mass    [., F]: P F for any features F of the keys
    offset_mass     [., N]: p at the key `offsets[n]` positions back
    keys_mass       [., N]: p at `keys[n]`
    top_keys        [., topk]: the keys of largest p, largest first (int64, -1 beyond the visible
                    ones and where the query is not valid)
    top_probs       [., topk]: their p, 0 beyond
    output          [., Dv]: P V
Column statistics, each [B, H, K], over the valid queries:
    key_mass        sum of p
    key_mean        its mean over the queries that can see the key, NaN where none can
    key_max         largest p
    key_var         variance of p over those queries, NaN where none can
    key_entropy     nats, entropy of the received profile p[:, j] / key_mass[j]; 0 without mass
    key_count       queries that can see the key (int64)
    fai             future attention influence: mean of p over the queries that can see the key and
                    sit horizon[0] to horizon[1] positions after it; NaN where none does
    query_feature_mass  [., G]: P^T G for any features G of the queries
The map as a whole, over the valid queries:
    diagonal_mass   [B, H, Q + K - 1]: sum of p along diagonals; entry n is i - j = n - (K - 1)
    distance_histogram  [B, H, bins]: sum of p by |d|: 0, 1, 2-3, 4-7, 8-15, ...
    block_mass      [B, H, ceil(Q / pool), ceil(K / pool)]: sum of p in a block
    block_max       the same shape: largest p
    segment_mean    [B, H, S, S]: mean of p over (valid queries of segment a) x (keys of b), what
                    is hidden counting as 0; NaN where either is empty

Everything else is float32, or float64 when q and k are float64. A row that sees no key has masses,
entropy, argmax and n_visible 0. Mass and distance are linear in p (they commute with averaging
heads); entropy, participation and maxima are not.

With activation "relu" (max(s, 0) / n), "linear" (s / n, n the visible keys) or "sigmoid"
(1 / (1 + exp(-s))) the rows do not sum to one; lse, entropy, null_mass and key_entropy are refused.

Sources: online-softmax algebra, Milakov & Gimelshein 2018, arXiv:1805.02867, and FlashAttention,
arXiv:2205.14135; entropy as log l - E[s - m], which does not cancel for sharp rows; row-sum below
one with a learned sink logit as in gpt-oss; waad and fai, arXiv:2510.13554, definitions 4.1 and
4.2; value_mass, Kobayashi et al. 2020, arXiv:2004.10102; segment_mean, thought anchors,
arXiv:2506.19143. Importing this package does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from workbench.kernels.attention_stats.arguments import Terms, filled
from workbench.kernels.attention_stats.checks import check_qk, check_terms
from workbench.kernels.attention_stats.dispatch import (
    AUTO_ORDER,
    BACKENDS,
    available_backends,
    choose,
)
from workbench.kernels.attention_stats.terms import (
    BLOCK_STATS,
    COLUMN_STATS,
    MAP_TERMS,
    NEEDS,
    ROW_STATS,
    STATS,
    TERMS,
    check_want,
    passes,
)
from workbench.kernels.attention_stats.tiles import pyramid, tile
from workbench.kernels.attention_stats.variants import LowRankBias, Neighbourhood, Strided

if TYPE_CHECKING:
    import torch

__all__ = [
    "AUTO_ORDER",
    "BACKENDS",
    "BLOCK_STATS",
    "COLUMN_STATS",
    "MAP_TERMS",
    "NEEDS",
    "ROW_STATS",
    "STATS",
    "LowRankBias",
    "Neighbourhood",
    "Strided",
    "attention_stats",
    "available_backends",
    "passes",
    "pattern",
    "pyramid",
    "stats_from_pattern",
    "tile",
]


# Terms that make scores; a map has its weights already.
_OF_SCORES = ("scale", "softcap", "sink_logit", "bias", "alibi", "activation", "lse")


def attention_stats(
    q: torch.Tensor,
    k: torch.Tensor,
    want: Iterable[str],
    *,
    backend: str = "auto",
    **terms: Unpack[Terms],
) -> dict[str, torch.Tensor]:
    """The statistics named in `want` (see the package), a dict in that order.

    Args:
        q: [B, H, Q, D], after rotary embedding and normalisation. float16 and bfloat16 are computed
            in float32.
        k: [B, Hkv, K, D], same dtype and device.
        want: names, see the package.
        backend: "auto", "torch", "stock", "triton" or "naive"; `dispatch` has the rule.
        terms: what describes the map and what the statistics need, see `terms.Terms`.

    Raises:
        ValueError: an unknown statistic, term or backend, a term of the wrong shape, dtype or
            device, or one that a statistic needs and that is missing, or that the chosen backend
            does not support.
    """
    given = filled("attention_stats", terms, TERMS)
    names = check_want(want, given)
    checked = check_terms(check_qk(q, k), given, q.device, k.shape[1])
    return choose(backend, q, names, checked).attention_stats(q, k, names, **checked)


def pattern(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    rows: slice | None = None,
    backend: str = "auto",
    **terms: Unpack[Terms],
) -> torch.Tensor:
    """Exact weights [B, H, R, K] of the query rows in `rows` (None: all), for looking at one head.

    `terms` are those of `attention_stats` that describe the map (MAP_TERMS). float32, or float64
    for float64 inputs. Raises ValueError as `attention_stats` does.
    """
    given = filled("pattern", terms, MAP_TERMS)
    shape = check_qk(q, k)
    checked = check_terms(shape, given, q.device)
    start, stop, step = (rows or slice(None)).indices(shape[2])
    if step != 1:
        raise ValueError(f"rows has step {step}; expected a slice with step 1.")
    own = {name: checked[name] for name in MAP_TERMS if name in checked}
    return choose(backend, q, (), own).pattern(q, k, slice(start, max(start, stop)), **own)


def stats_from_pattern(
    p: torch.Tensor | np.ndarray, want: Iterable[str], **terms: Unpack[Terms]
) -> dict[str, Any]:
    """The same statistics from explicit maps p [B, H, Q, K], for models that only return their
    attentions.

    `terms` are those of `attention_stats` but for what makes scores: the visibility terms count
    n_visible and key_count and hide entries (a hidden entry counts as 0); without them every key is
    visible to every query. null_mass is one minus the row sum, 0 where the row is empty. numpy in,
    numpy out (float64); torch in, torch out (float32, or float64 for float64 maps) on the same
    device. Raises ValueError for `lse`, which a map does not hold, and as `attention_stats` does.
    """
    from workbench.kernels.attention_stats import naive

    given = filled("stats_from_pattern", terms, (x for x in TERMS if x not in _OF_SCORES))
    names = check_want(want, given)
    if "lse" in names:
        raise ValueError(
            "the statistic 'lse' is not available from a map; compute it from q and k."
        )
    if len(p.shape) != 4:
        raise ValueError(
            f"p has shape {tuple(p.shape)}; expected 4 dims [batch, heads, queries, keys]."
        )
    is_torch = not isinstance(p, np.ndarray)
    b, h, n_q, n_k = p.shape
    v, features = given["v"], given["key_features"]
    kv_heads = next((x.shape[1] for x in (v, features) if x is not None and x.ndim == 4), None)
    checked = check_terms((b, h, n_q, n_k), given, p.device if is_torch else None, kv_heads)
    own = {name: x for name, x in checked.items() if name not in _OF_SCORES}
    if not is_torch:
        return naive.stats_from_pattern(p, names, **own)
    from workbench.kernels.attention_stats import reference

    return reference.stats_from_pattern(p, names, **own)
