"""What is logged of every run: risks above the oracle, rule by rule, and what its heads look like.

    excess_RULE   mean over the rule's queries of KL(oracle || network)
    skip_RULE     the same with the odd-numbered layers left out of the trained network

Indicators of a head are those of Xue et al. 2025 (arXiv 2510.11602, section 4.4), in their own
units, means over texts of a map A [query, key]:

    entropy        mean row of -sum_k A log A, nats
    concentration  Frobenius norm of A: 1 for weights all over, sqrt(length) for one key per query
    sink           mean weight on key 0, query 0 included
    locfoc_N       mean weight at distance N, over the queries that have such a key
    diversity      standard deviation over heads of each entry of A, mean over entries up to the
                   query; one number per layer

Two are ours: `recall_mass`, the weight on the symbols that followed earlier occurrences of the
name, at queries whose answer stands there; and `largest_score`, the largest |score|.  A layer
without attention has NaN.  Row statistics are those of the float64 specification of
`workbench.kernels.attention_stats`.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.kernels.attention_stats.naive_reductions import reduce_pattern
from workbench.schema import INF, Variable
from workbench.zoo.backcopy.measure import excess
from workbench.zoo.deconstructed.task import RULES

OFFSETS = (0, 1, 2, 3)

_RUN = ("run", "step")
_HEAD = (*_RUN, "layer", "head")
_MAP = (*_HEAD, "probe", "query", "key")
_POSITIVE, _SHARE = (0.0, INF), (0.0, 1.0)
_WORDS = {"chain": "after words", "copy": "after ~", "recall": "after names seen before"}
_GROUPS = {
    "risk above the oracle": tuple(
        (f"excess_{rule}", _RUN, "nats", _POSITIVE, words) for rule, words in _WORDS.items()
    ),
    "risk above the oracle, odd layers skipped": tuple(
        (f"skip_{rule}", _RUN, "nats", _POSITIVE, words) for rule, words in _WORDS.items()
    ),
    "weight of a head": (
        ("recall_mass", _HEAD, "probability", _SHARE, "on the answer of a recall"),
        ("sink", _HEAD, "probability", _SHARE, "on <s>"),
        *((f"locfoc_{n}", _HEAD, "probability", _SHARE, f"at distance {n}") for n in OFFSETS),
    ),
    "entropy of a row": (("entropy", _HEAD, "nats", _POSITIVE, "mean over queries"),),
    "concentration of a map": (
        ("concentration", _HEAD, "Frobenius norm", _POSITIVE, "mean over texts"),
    ),
    "heads of a layer": (
        ("diversity", (*_RUN, "layer"), "probability", _SHARE, "deviation of weights over heads"),
    ),
    "scores": (("largest_score", _HEAD, "logits", _POSITIVE, "largest |score|"),),
    "pattern": (("pattern", _MAP, "probability", _SHARE, "weights on the probe text"),),
}  # fmt: skip
VARIABLES = tuple(
    Variable(name, dims, units, low, high, group, about)
    for group, rows in _GROUPS.items()
    for name, dims, units, (low, high), about in rows
)


def by_rule(
    log_p: np.ndarray, oracle: np.ndarray, rules: np.ndarray, prefix: str
) -> dict[str, xr.DataArray]:
    """Risk above the oracle of every rule, `PREFIX_RULE` [run], nats.

    `log_p` [run, text, query, token], `oracle` [text, query, token], `rules` [text, query].
    """
    where = ("text", "query")
    found, exact = (
        xr.DataArray(log_p, dims=("run", *where, "token")),
        xr.DataArray(oracle, dims=(*where, "token")),
    )
    # The excess of a perfect answer is zero up to rounding.
    return {
        f"{prefix}_{rule}": excess(found, exact, xr.DataArray(rules == i, dims=where))[1].clip(0.0)
        for i, rule in enumerate(RULES)
    }


def of_maps(
    pattern: np.ndarray, scores: np.ndarray, ids: np.ndarray, recalls: np.ndarray
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """The indicators of all heads, [run, layer, head], and `diversity` [run, layer].

    `pattern` and `scores` [run, layer, text, head, query, key], NaN for layers without attention;
    `ids` [text, query], `recalls` bool [text, query].
    """
    runs, layers, texts, heads, length, _ = pattern.shape
    seen = np.tri(length, dtype=bool)
    repeated = np.tile(ids, (runs * layers, 1))
    want = ("entropy", "participation", "first_mass", "offset_mass", "induction_mass")
    flat = reduce_pattern(
        pattern.reshape(-1, heads, length, length).astype(float), want, seen=seen, offset=0,
        offsets=OFFSETS, query_ids=repeated, key_ids=repeated,
    )  # fmt: skip
    rows = {name: x.reshape(runs, layers, texts, *x.shape[1:]) for name, x in flat.items()}
    each = ("run", "layer", "head")
    over = (2, 4)  # texts and queries
    found = {
        "entropy": rows["entropy"].mean(over),
        "concentration": np.sqrt(rows["participation"].sum(axis=-1)).mean(axis=2),
        "sink": rows["first_mass"].mean(over),
        "recall_mass": np.moveaxis(rows["induction_mass"], 3, -1)[:, :, recalls].mean(axis=2),
        "largest_score": np.abs(np.where(seen, scores, 0.0)).max((2, 4, 5)),
    }
    # Queries before N have no key at distance N.
    found |= {
        f"locfoc_{n}": rows["offset_mass"][..., n:, i].mean(over) for i, n in enumerate(OFFSETS)
    }
    spread = pattern.std(axis=3)[..., seen].mean((2, 3))
    named: dict[str, tuple[tuple[str, ...], np.ndarray]] = {"diversity": (each[:2], spread)}
    return named | {name: (each, value) for name, value in found.items()}
