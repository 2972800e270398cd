"""Every statistic the workbench stores: its dims, unit, bounds and the pass that yields it.

This table is the only list of statistics: capture plans from it, `HeadStats` validates against it,
the app labels its axes from it, the docs print it.  Dims are the words of the field: `prompt,
layer, head, query, key`; `role` for token roles and named segments; `stream` for the residual
stream (0 is the embedding, l + 1 the output of layer l); `rank` for the few largest activations;
`candidate` for the first positions of a prompt, one of which is its primary sink; `top` for the
keys of largest weight; `distance_bin`, `query_block` and `key_block` for bins and
blocks, labelled by the distance or position they begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.errors import SchemaError

ROW = ("prompt", "layer", "head", "query")
KEY = ("prompt", "layer", "head", "key")
COSINE = ("prompt", "stream", "candidate", "query")
BLOCKS = ("prompt", "layer", "head", "query_block", "key_block")
# Dims whose size follows from the length of the text, see `extent`.
EXTENTS = ("distance_bin", "query_block", "key_block")
INF = float("inf")


@dataclass(frozen=True)
class Variable:
    """One stored quantity.

    `group` says which work it needs: "rows", "roles", "columns" (from q and k, through the
    kernels), "norms" (of q, k, v, z and their images under W_O), "residual" (hooks on blocks).
    Only when asked for: "spread", "values", "rhythm", "top", "blocks", "margins" (through the
    kernels as well), "phi" (hooks on blocks) and "pattern" (full maps, only for named heads).
    `parameter` is the field of `workbench.parameters.Parameters` it is defined with.
    """

    name: str
    dims: tuple[str, ...]
    units: str
    low: float
    high: float
    group: str
    about: str
    parameter: str = ""


def _row(
    name: str,
    units: str,
    low: float,
    high: float,
    about: str,
    group: str = "rows",
    parameter: str = "",
) -> Variable:
    return Variable(name, ROW, units, low, high, group, about, parameter)


def _key(
    name: str,
    units: str,
    low: float,
    high: float,
    about: str,
    group: str = "columns",
    parameter: str = "",
) -> Variable:
    return Variable(name, KEY, units, low, high, group, about, parameter)


_VARIABLES = (
    _row(
        "lse",
        "nats",
        -INF,
        INF,
        "log-sum-exp of the scores of a row, the learned sink logit included",
    ),
    _row(
        "entropy",
        "nats",
        0,
        INF,
        "entropy of a row over the keys; without the null mass it sums to less",
    ),
    _row("max_prob", "probability", 0, 1, "largest weight of a row"),
    _row("argmax", "key index", 0, INF, "key with the largest weight; the first one on a tie"),
    _row("self_mass", "probability", 0, 1, "weight on the query's own position"),
    _row("prev_mass", "probability", 0, 1, "weight on the position before the query"),
    _row("first_mass", "probability", 0, 1, "weight on the first position of the prompt"),
    _row("null_mass", "probability", 0, 1, "mass of the learned sink logit: one minus the row sum"),
    _row("distance", "tokens", 0, INF, "mean |query - key| under the row"),
    _row("distance_sq", "tokens^2", 0, INF, "mean (query - key)^2 under the row"),
    _row(
        "duplicate_mass",
        "probability",
        0,
        1,
        "weight on earlier positions holding the query's token",
    ),
    _row(
        "induction_mass",
        "probability",
        0,
        1,
        "weight on positions right after an earlier same token",
    ),
    _row("n_visible", "keys", 0, INF, "number of keys the mask lets the query see"),
    Variable(
        "role_mass", (*ROW, "role"), "probability", 0, 1, "roles", "weight on keys of one role"
    ),
    _key(
        "key_mass",
        "probability summed over queries",
        0,
        INF,
        "attention received: sum over queries",
    ),
    _key(
        "key_mean",
        "probability",
        0,
        1,
        "attention received, mean over the queries that can see the key",
    ),
    _key("key_max", "probability", 0, 1, "largest weight any query puts on the key"),
    _key("key_count", "queries", 0, INF, "number of queries that can see the key"),
    _row("q_norm", "L2 norm", 0, INF, "norm of the query vector after rotary embedding", "norms"),
    _key("k_norm", "L2 norm", 0, INF, "norm of the key vector after rotary embedding", "norms"),
    _key("v_norm", "L2 norm", 0, INF, "norm of the value vector", "norms"),
    _key(
        "vo_norm",
        "L2 norm",
        0,
        INF,
        "norm of W_O v: the value as the residual stream receives it",
        "norms",
    ),
    _row("z_norm", "L2 norm", 0, INF, "norm of the head's output before W_O", "norms"),
    _row(
        "result_norm", "L2 norm", 0, INF, "norm of W_O z: the head's output in the stream", "norms"
    ),
    Variable(
        "resid_norm",
        ("prompt", "stream", "query"),
        "L2 norm",
        0,
        INF,
        "residual",
        "norm of the residual stream",
    ),
    Variable(
        "resid_median",
        ("prompt", "stream"),
        "|activation|",
        0,
        INF,
        "residual",
        "median |activation| over tokens and dimensions",
    ),
    Variable(
        "resid_top_value",
        ("prompt", "stream", "rank"),
        "activation",
        -INF,
        INF,
        "residual",
        "signed activations of largest magnitude, one per dimension",
    ),
    Variable(
        "resid_top_dim",
        ("prompt", "stream", "rank"),
        "dimension",
        0,
        INF,
        "residual",
        "their dimensions",
    ),
    Variable(
        "resid_top_position",
        ("prompt", "stream", "rank"),
        "position",
        0,
        INF,
        "residual",
        "their token positions",
    ),
    Variable(
        "resid_cos",
        COSINE,
        "cosine",
        -1,
        1,
        "residual",
        "cosine of a token's residual stream with that of one of the first positions",
    ),
    Variable(
        "resid_cos_trimmed",
        COSINE,
        "cosine",
        -1,
        1,
        "residual",
        "the same without the three dimensions in which the first position's is largest",
    ),
    Variable(
        "resid_phi",
        ("prompt", "stream", "query"),
        "ratio to the RMS",
        0,
        INF,
        "phi",
        "largest |activation| in sink_dims over the root mean square of all dimensions",
        "sink_dims",
    ),
    _row(
        "sink_margin",
        "nats",
        -INF,
        INF,
        "score of the first key minus the mean of the other visible keys' but the query's own",
        "margins",
    ),
    _row(
        "participation",
        "probability",
        0,
        1,
        "sum of squared weights of a row; its inverse is the number of keys that matter",
        "spread",
    ),
    _key(
        "key_var",
        "probability^2",
        0,
        1,
        "attention received, variance over the queries that can see the key",
        "spread",
    ),
    _key(
        "key_entropy",
        "nats",
        0,
        INF,
        "entropy over the queries of the attention a key receives; 0 without any",
        "spread",
    ),
    _row("value_mass", "L2 norm", 0, INF, "mean norm of the values under the row", "values"),
    _row(
        "waad",
        "tokens",
        0,
        INF,
        "windowed average attention distance: distances count up to waad_window",
        "rhythm",
        "waad_window",
    ),
    _row(
        "local_mass",
        "probability",
        0,
        1,
        "weight on keys less than local_window tokens away",
        "rhythm",
        "local_window",
    ),
    _key(
        "fai",
        "probability",
        0,
        1,
        "future attention influence: mean weight from the queries horizon tokens after the key",
        "rhythm",
        "horizon",
    ),
    Variable(
        "top_keys",
        (*ROW, "top"),
        "key index",
        0,
        INF,
        "top",
        "keys of largest weight, largest first",
        "topk",
    ),
    Variable(
        "top_probs", (*ROW, "top"), "probability", 0, 1, "top", "weights of the top keys", "topk"
    ),
    Variable(
        "distance_histogram",
        ("prompt", "layer", "head", "distance_bin"),
        "probability summed over queries",
        0,
        INF,
        "blocks",
        "attention by |query - key| in tokens: 0, 1, 2-3, 4-7, 8-15, ...",
    ),
    Variable(
        "block_mass",
        BLOCKS,
        "probability summed over queries",
        0,
        INF,
        "blocks",
        "attention summed over blocks of pool x pool positions",
        "pool",
    ),
    Variable(
        "block_max",
        BLOCKS,
        "probability",
        0,
        1,
        "blocks",
        "largest weight in a block of pool x pool positions",
        "pool",
    ),
    Variable(
        "pattern",
        ("prompt", "pattern_head", "query", "key"),
        "probability",
        0,
        1,
        "pattern",
        "full attention pattern of a named head",
    ),
)

SCHEMA: dict[str, Variable] = {v.name: v for v in _VARIABLES}
GROUPS = tuple(dict.fromkeys(v.group for v in _VARIABLES))
# The others cost time or space beyond these, or are defined with a parameter; patterns cost L^2.
DEFAULT_GROUPS = ("rows", "roles", "columns", "norms", "residual")
# Hooks on blocks.
STREAM_GROUPS = ("residual", "phi")
DEFAULT_WANT = tuple(v.name for v in _VARIABLES if v.group in DEFAULT_GROUPS)
# What `kernels.attention_stats` computes from q and k.
KERNEL_GROUPS = ("rows", "roles", "columns", "spread", "values", "rhythm", "top", "blocks")
# Presume that queries and keys are positions of one text, which those of cross-attention are not.
SAME_AXIS = frozenset(
    {"self_mass", "prev_mass", "first_mass", "distance", "distance_sq", "duplicate_mass",
     "induction_mass", "waad", "local_mass", "fai", "distance_histogram", "sink_margin"}
)  # fmt: skip
# What a statistic of several calls of one site cannot be joined without, and what a row that sees
# nothing is known by.
_BESIDE = {
    "key_mean": ("key_mass", "key_count"),
    "key_var": ("key_mass", "key_count"),
    "key_entropy": ("key_mass",),
    "argmax": ("n_visible",),
}


def expand_want(want: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names and group names to names, in schema order; raises `SchemaError` for an unknown one.

    `None` is the default: the groups of `DEFAULT_GROUPS`.

    >>> expand_want(["columns", "lse"])
    ('lse', 'key_mass', 'key_mean', 'key_max', 'key_count')
    """
    if want is None:
        return DEFAULT_WANT
    asked = [want] if isinstance(want, str) else list(want)
    unknown = [w for w in asked if w not in SCHEMA and w not in GROUPS]
    if unknown:
        raise SchemaError(
            f"unknown statistic {unknown[0]!r}; known groups: {', '.join(GROUPS)}; known names: "
            f"{', '.join(SCHEMA)}."
        )
    return tuple(v.name for v in _VARIABLES if v.name in asked or v.group in asked)


def extent(dim: str, length: int, pool: int = 1) -> int:
    """Bins or blocks of `pool` positions that a text of `length` tokens has.

    >>> extent("distance_bin", 9), extent("query_block", 9, 4)
    (5, 3)
    """
    return 1 + max(0, length - 1).bit_length() if dim == "distance_bin" else -(-length // pool)


def kernel_want(want: Sequence[str]) -> tuple[str, ...]:
    """What the kernels are asked for to give `want`.

    A mean is asked for as its sum and count, since only these can be added over calls.

    >>> kernel_want(["q_norm", "entropy", "key_mean"])
    ('entropy', 'key_mass', 'key_count')
    """
    beside = [name for w in want for name in _BESIDE.get(w, ())]
    own = [w for w in want if SCHEMA[w].group in KERNEL_GROUPS and w != "key_mean"]
    return tuple(dict.fromkeys([*own, *beside]))
