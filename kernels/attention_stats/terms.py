"""Names of the statistics and their order; the checks every call passes are in `checks`. No torch.

Dims: B batch, H query heads, Hkv key/value heads, Q queries, K keys, D head width, S segments,
F key features, G query features, N keys looked at or kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Row statistics are [B, H, Q], those of WIDE_ROWS with one more dim.
ROW_STATS = (
    "lse", "entropy", "max_prob", "argmax", "self_mass", "prev_mass", "first_mass", "null_mass",
    "distance", "distance_sq", "duplicate_mass", "induction_mass", "n_visible", "participation",
    "waad", "local_mass", "value_mass", "role_mass", "feature_mass", "offset_mass", "keys_mass",
    "top_keys", "top_probs", "output",
)  # fmt: skip
WIDE_ROWS = (
    "role_mass", "feature_mass", "offset_mass", "keys_mass", "top_keys", "top_probs", "output",
)  # fmt: skip
# Column statistics are [B, H, K], query_feature_mass [B, H, K, G].
COLUMN_STATS = (
    "key_mass", "key_mean", "key_max", "key_var", "key_entropy", "key_count", "fai",
    "query_feature_mass",
)  # fmt: skip
# Statistics of the map as a whole, [B, H, ...].
BLOCK_STATS = (
    "diagonal_mass", "distance_histogram", "block_mass", "block_max", "segment_mean",
)  # fmt: skip
STATS = ROW_STATS + COLUMN_STATS + BLOCK_STATS
INT_STATS = ("argmax", "n_visible", "key_count", "top_keys")
# NaN where it is the mean of nothing: no query can see the key (within the horizon).
MEAN_STATS = ("key_mean", "key_var", "fai")

# Arguments a statistic cannot do without; first_mass has a default (key 0), so it is not here.
NEEDS = {
    "duplicate_mass": ("query_ids", "key_ids"),
    "induction_mass": ("query_ids", "key_ids"),
    "role_mass": ("key_segments", "n_segments"),
    "segment_mean": ("query_segments", "key_segments", "n_segments"),
    "feature_mass": ("key_features",),
    "query_feature_mass": ("query_features",),
    "value_mass": ("v",),
    "output": ("v",),
    "offset_mass": ("offsets",),
    "keys_mass": ("keys",),
    "waad": ("waad_window",),
    "local_mass": ("local_window",),
    "fai": ("horizon",),
    "top_keys": ("topk",),
    "top_probs": ("topk",),
    "block_mass": ("pool",),
    "block_max": ("pool",),
}
# Arguments that describe the map itself, in the order of the public signature.
MAP_TERMS = (
    "scale", "causal", "query_offset", "window", "softcap", "sink_logit", "mask", "bias", "alibi",
    "key_valid", "key_lengths", "query_sequence", "key_sequence", "activation",
)  # fmt: skip
# Arguments that only some statistics read.
STAT_TERMS = (
    "v", "lse", "query_valid", "first_key", "query_ids", "key_ids", "query_segments",
    "key_segments", "n_segments", "query_features", "key_features", "offsets", "keys", "horizon",
    "waad_window", "local_window", "pool", "topk", "power",
)  # fmt: skip
TERMS = MAP_TERMS + STAT_TERMS
# Rows of these do not sum to one, so that nothing that presumes a distribution is defined.
ACTIVATIONS = ("softmax", "relu", "sigmoid", "linear")
SOFTMAX_ONLY = ("lse", "entropy", "null_mass", "key_entropy")

# Given the lse of a row, its weight on one key costs one dot product: these need no pass over the
# map, O(L) keys in all (fai only with an end to its horizon).
GIVEN_LSE = frozenset(
    {"lse", "null_mass", "self_mass", "prev_mass", "first_mass", "offset_mass", "keys_mass", "waad",
     "local_mass", "fai", "duplicate_mass", "induction_mass"}
)  # fmt: skip
# What positions and masks alone tell.
COUNTS = frozenset({"n_visible", "key_count"})
# What streams along the keys of a row, and what needs normalised weights, thus the lse, before it
# is summed over queries.
ROW_PASS = frozenset(ROW_STATS) - GIVEN_LSE - COUNTS | {"segment_mean"}
COLUMN_PASS = (frozenset(COLUMN_STATS) | frozenset(BLOCK_STATS)) - COUNTS - {"segment_mean", "fai"}


def check_want(want: Iterable[str], terms: dict[str, Any]) -> tuple[str, ...]:
    """`want` as a tuple without repeats; ValueError for an unknown name or a missing argument."""
    names = (want,) if isinstance(want, str) else tuple(dict.fromkeys(want))
    for name in names:
        if name not in STATS:
            raise ValueError(f"unknown statistic {name!r}; expected some of {', '.join(STATS)}.")
        for argument in NEEDS.get(name, ()):
            if terms.get(argument) is None or (argument == "n_segments" and not terms[argument]):
                raise ValueError(
                    f"the statistic {name!r} needs the argument {argument}, which is missing."
                )
        if name in SOFTMAX_ONLY and (terms.get("activation") or "softmax") != "softmax":
            raise ValueError(
                f"the statistic {name!r} needs rows that are a softmax; activation is "
                f"{terms['activation']!r}. Leave {name!r} out."
            )
    return names


def passes(want: Iterable[str], *, lse: bool, horizon: tuple[int, int | None] | None) -> tuple:
    """The sweeps over the map that `want` costs, the fewest: some of "band", "rows", "columns".

    "band" looks at O(L) keys; "rows" and "columns" are each one sweep of q k^T. `lse`: it is given,
    so that no row pass is needed to have it; `horizon` as in `attention_stats`.

    >>> passes(["waad", "first_mass"], lse=True, horizon=None)
    ('band',)
    >>> passes(["entropy", "key_mass", "first_mass"], lse=False, horizon=None)
    ('band', 'rows', 'columns')
    """
    names = set(want) - COUNTS
    open_end = "fai" in names and horizon is not None and horizon[1] is None
    columns = bool(names & COLUMN_PASS) or open_end
    band = bool(names & (GIVEN_LSE - {"lse", "null_mass"}) - ({"fai"} if open_end else set()))
    rows = bool(names & ROW_PASS) or (bool(names) and not lse)
    found = (("band", band), ("rows", rows), ("columns", columns))
    return tuple(name for name, needed in found if needed)


def offset_of(n_q: int, n_k: int, causal: bool, query_offset: int | None) -> int:
    """Position of query 0: as given, else K - Q when causal (ends aligned), else 0."""
    return int(query_offset) if query_offset is not None else (n_k - n_q if causal else 0)


def histogram_bins(n_q: int, n_k: int, offset: int) -> int:
    """Number of bins of distance_histogram: 0, then [2^(b-1), 2^b) tokens for b = 1, 2, ...

    >>> histogram_bins(8, 8, 0)
    4
    """
    return 1 + max(abs(offset - (n_k - 1)), abs(n_q - 1 + offset)).bit_length()


def pool_of(pool: int | tuple[int, int]) -> tuple[int, int]:
    """(queries, keys) of one block; (0, 0) for what is neither a number nor a pair."""
    if isinstance(pool, int):
        return pool, pool
    return (int(pool[0]), int(pool[1])) if len(pool) == 2 else (0, 0)
