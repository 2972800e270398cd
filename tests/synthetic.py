"""`HeadStats` from explicit attention maps: what the tests know the answer for.

    stats = head_stats([maps], ids=[[7, 8, 9]])

`maps` holds one entry per prompt; an entry is a list with one array [head, query, key] per layer
(layers may have different numbers of heads).  Every statistic is computed here by plain loops over
rows and columns, in float64, without the kernels.  Patterns for one head: `uniform`, `identity`,
`previous`, `first`, `induction`, `random_map`; masks: `causal_mask`, `window_mask`, `full_mask`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from workbench.provenance import Provenance
from workbench.spec import AttentionSite, Spec
from workbench.stats import HeadStats

ROW_NAMES = (
    "entropy",
    "max_prob",
    "argmax",
    "self_mass",
    "prev_mass",
    "first_mass",
    "null_mass",
    "distance",
    "distance_sq",
    "duplicate_mass",
    "induction_mass",
    "n_visible",
    "sink_margin",
    "q_norm",
    "z_norm",
    "result_norm",
)
KEY_NAMES = (
    "key_mass", "key_mean", "key_max", "key_count", "key_entropy", "k_norm", "v_norm", "vo_norm"
)  # fmt: skip
D_HEAD = 4


def causal_mask(length):
    return np.tril(np.ones((length, length), dtype=bool))


def full_mask(length):
    return np.ones((length, length), dtype=bool)


def window_mask(length, width, causal=True):
    """Causal: the `width` keys ending at the query.  Otherwise the keys within `width` of it."""
    gap = np.arange(length)[:, None] - np.arange(length)[None, :]
    return (gap >= 0) & (gap < width) if causal else np.abs(gap) <= width


def uniform(mask):
    return mask / mask.sum(1, keepdims=True)


def identity(length):
    return np.eye(length)


def previous(length):
    """Each query looks at the token before it; the first one, having none, at itself."""
    found = np.eye(length, k=-1)
    found[0, 0] = 1
    return found


def first(length):
    found = np.zeros((length, length))
    found[:, 0] = 1
    return found


def induction(ids):
    """Each query looks right after the latest earlier copy of its token, else at position 0."""
    found = np.zeros((len(ids), len(ids)))
    for q, token in enumerate(ids):
        earlier = [j for j in range(q) if ids[j] == token]
        found[q, earlier[-1] + 1 if earlier else 0] = 1
    return found


def duplicate(ids):
    """Each query looks at the latest earlier copy of its token, else at position 0."""
    found = np.zeros((len(ids), len(ids)))
    for q, token in enumerate(ids):
        earlier = [j for j in range(q) if ids[j] == token]
        found[q, earlier[-1] if earlier else 0] = 1
    return found


def random_map(mask, rng, temperature=1.0):
    weight = np.exp(rng.normal(size=mask.shape) * temperature) * mask
    return weight / weight.sum(1, keepdims=True)


def repeated_ids(n, rng, begin=0, vocabulary=1000):
    """`[begin] r_1..r_n r_1..r_n`; begin None leaves it out."""
    half = list(rng.choice(np.arange(1, vocabulary), size=n, replace=False))
    return ([] if begin is None else [begin]) + half + half


def head_stats(
    maps, ids=None, *, masks=None, causal=True, layers=None, kind="text", norms=None, resid=None
):
    """The value under test.

    `masks`: per prompt a list with one mask [query, key] per layer (default: causal or full);
    `layers`: absolute layer indices of the maps (default 0, 1, ...); `norms`: values that replace
    random ones, name -> array as padded in the data; `resid`: list with one array [stream, query,
    d] per prompt (default random).
    """
    layers = list(range(len(maps[0]))) if layers is None else layers
    lengths = [prompt[0].shape[-1] for prompt in maps]
    widths = [layer.shape[0] for layer in maps[0]]
    shape = (len(maps), len(layers), max(widths), max(lengths))
    arrays = {name: np.full(shape, np.nan) for name in (*ROW_NAMES, *KEY_NAMES)}
    ids = [list(range(length)) for length in lengths] if ids is None else ids
    rng = np.random.default_rng(5)
    for p, prompt in enumerate(maps):
        for at, layer in enumerate(prompt):
            default = causal_mask(lengths[p]) if causal else full_mask(lengths[p])
            mask = default if masks is None else masks[p][at]
            for h, pattern in enumerate(layer):
                _fill_rows(arrays, (p, at, h), pattern, mask, ids[p])
                _fill_columns(arrays, (p, at, h), pattern, mask)
                for name in ("q_norm", "z_norm", "result_norm", "k_norm", "v_norm", "vo_norm"):
                    arrays[name][p, at, h, : lengths[p]] = rng.uniform(0.5, 1.5, size=lengths[p])
    arrays.update(norms or {})
    variables = {name: (("prompt", "layer", "head", "query"), arrays[name]) for name in ROW_NAMES}
    variables |= {name: (("prompt", "layer", "head", "key"), arrays[name]) for name in KEY_NAMES}
    if resid is None:
        resid = [rng.normal(size=(len(layers) + 1, length, 8)) for length in lengths]
    variables |= _residual(resid, max(lengths))
    length = np.arange(max(lengths))
    coords = {
        "prompt": np.arange(len(maps)),
        "layer": layers,
        "head": np.arange(max(widths)),
        "query": length,
        "key": length,
        "stream": np.arange(len(resid[0])),
        "rank": np.arange(3),
        "candidate": np.arange(3),
    }
    sites = tuple(
        AttentionSite(f"layers.{layer}.attn", kind, layer, width, width, D_HEAD, D_HEAD, causal)
        for layer, width in zip(layers, widths, strict=True)
    )
    data = xr.Dataset(variables, coords=coords)
    return HeadStats(data, tokens(ids), Spec("synthetic", sites), Provenance("synthetic"), kind)


def _fill_rows(arrays, at, pattern, mask, ids):
    for q, row in enumerate(pattern):
        where = (*at, q)
        seen = row[row > 0]
        arrays["entropy"][where] = -sum(a * np.log(a) for a in seen)
        arrays["max_prob"][where] = max(row)
        arrays["argmax"][where] = list(row).index(max(row))
        arrays["self_mass"][where] = row[q]
        arrays["prev_mass"][where] = row[q - 1] if q else 0.0
        arrays["first_mass"][where] = row[0]
        arrays["null_mass"][where] = max(0.0, 1 - sum(row))
        arrays["distance"][where] = sum(a * abs(q - k) for k, a in enumerate(row))
        arrays["distance_sq"][where] = sum(a * (q - k) ** 2 for k, a in enumerate(row))
        same = [j for j in range(q) if ids[j] == ids[q]]
        arrays["duplicate_mass"][where] = sum(row[j] for j in same)
        arrays["induction_mass"][where] = sum(row[j + 1] for j in same)
        arrays["n_visible"][where] = sum(mask[q])
        others = [k for k in range(1, len(row)) if mask[q, k] and k != q]
        if q and mask[q, 0] and others:
            # Log weights are scores up to a constant of the row; none of nothing.
            logs = np.log(np.maximum(row, 1e-9))
            arrays["sink_margin"][where] = logs[0] - sum(logs[others]) / len(others)


def _fill_columns(arrays, at, pattern, mask):
    for k in range(pattern.shape[1]):
        where = (*at, k)
        viewers = [q for q in range(len(pattern)) if mask[q, k]]
        arrays["key_mass"][where] = sum(pattern[q, k] for q in viewers)
        arrays["key_count"][where] = len(viewers)
        arrays["key_mean"][where] = arrays["key_mass"][where] / len(viewers)
        arrays["key_max"][where] = max(pattern[q, k] for q in viewers)
        shares = [pattern[q, k] / arrays["key_mass"][where] for q in viewers if pattern[q, k] > 0]
        arrays["key_entropy"][where] = -sum(a * np.log(a) for a in shares)


def _residual(resid, longest):
    streams = len(resid[0])
    norm = np.full((len(resid), streams, longest), np.nan)
    median = np.full((len(resid), streams), np.nan)
    top = {name: np.full((len(resid), streams, 3), np.nan) for name in ("value", "dim", "position")}
    for p, prompt in enumerate(resid):
        for s, h in enumerate(prompt):
            norm[p, s, : len(h)] = np.sqrt((h**2).sum(1))
            median[p, s] = np.median(np.abs(h))
            best = [(int(np.argmax(abs(h[:, dim]))), dim) for dim in range(h.shape[1])]
            order = sorted(best, key=lambda i, h=h: -abs(h[i]))[:3]
            for r, (position, dim) in enumerate(order):
                top["value"][p, s, r], top["dim"][p, s, r] = h[position, dim], dim
                top["position"][p, s, r] = position
    cos = np.full((2, len(resid), streams, 3, longest), np.nan)
    for p, prompt in enumerate(resid):
        for s, h in enumerate(prompt):
            for c, candidate in enumerate(h[:3]):
                kept = np.argsort(-np.abs(candidate))[3:]
                cos[0, p, s, c, : len(h)] = _cosine(h, candidate)
                cos[1, p, s, c, : len(h)] = _cosine(h[:, kept], candidate[kept])
    dims = ("prompt", "stream", "candidate", "query")
    found = {
        "resid_cos": (dims, cos[0]),
        "resid_cos_trimmed": (dims, cos[1]),
        "resid_norm": (("prompt", "stream", "query"), norm),
        "resid_median": (("prompt", "stream"), median),
    }
    return found | {
        f"resid_top_{name}": (("prompt", "stream", "rank"), a) for name, a in top.items()
    }


def _cosine(states, one):
    with np.errstate(invalid="ignore"):  # a zero state has no direction
        return states @ one / np.sqrt((states**2).sum(1) * (one**2).sum())


def tokens(ids):
    """A token table for lists of ids; the text of token 7 is "t7"."""
    rows = [
        {"prompt": p, "position": i, "id": int(t), "text": f"t{t}", "role": "text", "segment": "",
         "image_row": -1, "image_col": -1}
        for p, prompt in enumerate(ids)
        for i, t in enumerate(prompt)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def ragged(seed=0, *, causal=True, halves=(33, 40, 36), widths=(3, 2)):
    """Repeated random tokens, ragged; random maps; layers 0 and 2 with 3 and 2 heads."""
    rng = np.random.default_rng(seed)
    ids = [repeated_ids(n, rng) for n in halves]
    build = causal_mask if causal else full_mask
    maps = [
        [
            np.stack([random_map(build(len(prompt)), rng, 1.0 + h) for h in range(width)])
            for width in widths
        ]
        for prompt in ids
    ]
    return head_stats(maps, ids, causal=causal, layers=[0, 2])
