"""Bring your own arrays: attention patterns, or queries and keys, or another library's cache.

    stats = wb.view(outputs.attentions, tokens=["The", "cat", "sat"])
    stats = wb.view(q=q, k=k, causal=True)
    stats = from_cache(cache, tokens=ids, tokenizer=tokenizer)      # transformer-lens

All of them give the `HeadStats` that probes, runs and the app take; no model is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from workbench.arrayparts import (
    Tokens,
    Wanted,
    given_site,
    joined,
    one_prompt,
    prompts_first,
    spoken_tokens,
    to_numpy,
)
from workbench.errors import SchemaError, WorkbenchError
from workbench.kernels.attention_stats import attention_stats, stats_from_pattern
from workbench.names import resolve
from workbench.parameters import Parameters
from workbench.patterns import array_name
from workbench.schema import KEY, ROW, SAME_AXIS, kernel_want
from workbench.spec import Spec
from workbench.stats import HeadStats, label

__all__ = ["from_cache", "from_patterns", "from_qk", "view"]

# Rows of half-precision softmaxes sum to one only this well.
_ROW_SUM_TOLERANCE = 5e-3
_NEEDS_IDS = ("duplicate_mass", "induction_mass")


def view(  # noqa: PLR0913 - what can be said about arrays
    attention: Any = None,
    *,
    q: Any = None,
    k: Any = None,
    v: Any = None,
    tokens: Any = None,
    tokenizer: Any = None,
    causal: bool | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    want: str | Sequence[str] | None = None,
    parameters: Parameters | None = None,
    name: str = "arrays",
) -> HeadStats:
    """Statistics of arrays of one's own: either `attention` patterns, or `q` and `k`.

    `attention`: [layer, head, query, key], [prompt, layer, head, query, key], or the tuple of
    [prompt, head, query, key] per layer that transformers returns.  `q`: [layer, head, query, d] or
    with a prompt dim in front, after rotary embedding; `k` the same with its own number of heads.
    `tokens`: words or ids per prompt, the shorter prompts being padded at the end.  `causal` is
    found out from patterns, and must be said for q and k.  `want` and `parameters` as in
    `workbench.capture`.
    """
    if (attention is None) == (q is None and k is None):
        raise WorkbenchError(
            "view takes either attention patterns or q and k; give one of the two."
        )
    if attention is not None:
        return from_patterns(
            attention, tokens, tokenizer=tokenizer, causal=causal, want=want,
            parameters=parameters, name=name,
        )  # fmt: skip
    if q is None or k is None:
        raise WorkbenchError(
            "view needs both q and k to compute a pattern; give the other one too."
        )
    return from_qk(
        q, k, v, tokens, tokenizer=tokenizer, causal=causal, scale=scale, window=window,
        softcap=softcap, want=want, parameters=parameters, name=name,
    )  # fmt: skip


def from_patterns(
    patterns: Any,
    tokens: Any = None,
    *,
    tokenizer: Any = None,
    causal: bool | None = None,
    kind: str = "text",
    learned_sink: bool = False,
    want: str | Sequence[str] | None = None,
    parameters: Parameters | None = None,
    name: str = "arrays",
) -> HeadStats:
    """Statistics of explicit patterns (see `view` for their layouts); rows are queries.

    A row must sum to one; a row of zeros or NaN sees nothing and is padding.  With `learned_sink` a
    row may sum to less, the rest being its null mass; without it rows are divided by their sum,
    which undoes the rounding of half precision.  Raises `SchemaError` naming the first bad row.
    """
    asked = Wanted.of(want, parameters)
    maps = prompts_first(patterns, 4, "attention").astype(np.float64)
    spoken = spoken_tokens(tokens, tokenizer, len(maps), maps.shape[-1])
    cut = [_cut(whole, words, kind) for whole, words in zip(maps, spoken, strict=True)]
    for p in cut:
        _check_rows(p, learned_sink)
    if not learned_sink:
        cut = [p / np.where(p.any(-1), p.sum(-1), 1.0)[..., None] for p in cut]
    if causal is None:
        causal = kind != "cross" and all(_looks_causal(p) for p in cut)
    parts = []
    for prompt, (p, words) in enumerate(zip(cut, spoken, strict=True)):
        found = [_reduced(layer, words, causal, kind, learned_sink, asked) for layer in p]
        arrays = {
            array_name(prompt, layer, "pattern"): p[layer].astype(np.float32)
            for layer in range(len(p))
        }
        parts.append(one_prompt(prompt, found, words, arrays, asked))
    heads = maps.shape[2]
    sites = [
        given_site(i, heads, heads, 0, causal, kind, sink_logit=learned_sink)
        for i in range(maps.shape[1])
    ]
    return joined(parts, sites, name, kind, spoken, "float64 specification", asked)


def from_qk(
    q: Any,
    k: Any,
    v: Any = None,
    tokens: Any = None,
    *,
    tokenizer: Any = None,
    causal: bool | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    want: str | Sequence[str] | None = None,
    parameters: Parameters | None = None,
    name: str = "arrays",
) -> HeadStats:
    """Statistics from queries and keys (see `view`), by the blockwise kernels: no map is made."""
    asked = Wanted.of(want, parameters)
    if causal is None:
        raise WorkbenchError(
            "q and k do not say what a query may see; give causal=True or causal=False."
        )
    qs, ks = prompts_first(q, 4, "q"), prompts_first(k, 4, "k")
    vs = None if v is None else prompts_first(v, 4, "v")
    heads, kv_heads = qs.shape[2], ks.shape[2]
    if qs.shape[:2] != ks.shape[:2] or qs.shape[-1] != ks.shape[-1] or heads % kv_heads:
        raise WorkbenchError(
            f"q {qs.shape} and k {ks.shape} do not fit: prompts, layers and width must agree, and "
            f"the heads of q be a multiple of those of k."
        )
    d_head = qs.shape[-1]
    sites = [
        given_site(i, heads, kv_heads, d_head, causal, "text", window=window, softcap=softcap)
        for i in range(qs.shape[1])
    ]
    spoken = spoken_tokens(tokens, tokenizer, len(qs), ks.shape[-2])
    parts = []
    for prompt, words in enumerate(spoken):
        n_key = len(words.ids)
        n_query = min(qs.shape[-2], n_key)
        terms = {"causal": causal, "scale": scale, "window": window, "softcap": softcap}
        found, arrays = [], {}
        for layer in range(qs.shape[1]):
            own_q, own_k = qs[prompt, layer, :, :n_query], ks[prompt, layer, :, :n_key]
            own_v = None if vs is None else vs[prompt, layer, :, :n_key]
            found.append(_from_kernel(own_q, own_k, own_v, words, terms, asked))
            found[-1]["q_norm"] = np.linalg.norm(own_q, axis=-1)
            found[-1]["k_norm"] = np.repeat(np.linalg.norm(own_k, axis=-1), heads // kv_heads, 0)
            if own_v is not None:
                norms = np.linalg.norm(own_v, axis=-1)
                found[-1]["v_norm"] = np.repeat(norms, heads // len(norms), 0)
            arrays[array_name(prompt, layer, "q")] = own_q.astype(np.float32)
            arrays[array_name(prompt, layer, "k")] = own_k.astype(np.float32)
            arrays[array_name(prompt, layer, "scale")] = np.float32(scale or d_head**-0.5).reshape(
                ()
            )
        parts.append(one_prompt(prompt, found, words, arrays, asked))
    return joined(parts, sites, name, "text", spoken, "torch blockwise", asked)


def from_cache(
    cache: Mapping[str, Any],
    tokens: Any = None,
    tokenizer: Any = None,
    *,
    kind: str | None = None,
    name: str = "cache",
) -> HeadStats:
    """Statistics of a transformer-lens `ActivationCache`, or any mapping with its hook names.

    Older names and those of the bridge are understood; with and without the batch dim.  Norms of v
    and z are taken along where the cache holds them.
    """
    kind, layers = resolve(cache.keys(), kind)
    first = to_numpy(cache[next(iter(layers.values()))["pattern"]])
    batched = first.ndim == 4
    maps = [to_numpy(cache[parts["pattern"]]) for parts in layers.values()]
    stats = from_patterns(
        tuple(m if batched else m[None] for m in maps),
        tokens,
        tokenizer=tokenizer,
        kind=kind,
        name=name,
    )
    data = stats.data
    for part, variable, dims in (("v", "v_norm", KEY), ("z", "z_norm", ROW)):
        if not all(part in parts for parts in layers.values()):
            continue
        norms = [np.linalg.norm(to_numpy(cache[parts[part]]), axis=-1) for parts in layers.values()]
        # Hooks hold [batch, position, head, d]; grouped keys and values have fewer heads.
        stacked = np.stack([n if batched else n[None] for n in norms], 1).swapaxes(2, 3)
        stacked = np.repeat(stacked, data.sizes["head"] // stacked.shape[2], 2)
        length = data.sizes[dims[-1]]
        inside = data["key_mass" if dims == KEY else "max_prob"].notnull().to_numpy()
        values = np.where(inside, stacked[..., :length], np.nan).astype("float32")
        data = data.assign({variable: (dims, values)})
    numbers = dict(enumerate(layers))
    if any(i != layer for i, layer in numbers.items()):
        return _renumbered(stats, data, numbers)
    return HeadStats(label(data), stats.tokens, stats.spec, stats.provenance, kind, stats.arrays)


def _cut(whole: np.ndarray, words: Tokens, kind: str) -> np.ndarray:
    """Patterns of one prompt without its padding."""
    n_key = len(words.ids)
    n_query = whole.shape[-2] if kind == "cross" else min(whole.shape[-2], n_key)
    return np.nan_to_num(whole[:, :, :n_query, :n_key])


def _looks_causal(p: np.ndarray) -> bool:
    n_query, n_key = p.shape[-2:]
    return n_query == n_key and not np.triu(p.reshape(-1, n_query, n_key), 1).any()


def _check_rows(p: np.ndarray, learned_sink: bool) -> None:
    sums = p.sum(-1)
    if not (sums > 0).any():
        raise SchemaError(
            "the attention given holds nothing but zeros or NaN; give probabilities after the "
            "softmax."
        )
    wrong = (p < -1e-6).any(-1) | (sums > 1 + _ROW_SUM_TOLERANCE)
    if not learned_sink:
        wrong |= (np.abs(sums - 1) > _ROW_SUM_TOLERANCE) & (np.abs(p).sum(-1) > 0)
    if wrong.any():
        layer, head, row = (int(i) for i in np.argwhere(wrong)[0])
        raise SchemaError(
            f"row {row} of L{layer}H{head} sums to {sums[layer, head, row]:.4g} instead of 1; give "
            f"probabilities after the softmax, rows being queries."
        )


def _possible(asked: Wanted, words: Tokens, kind: str) -> list[str]:
    """What of the kernels' statistics these arrays have."""
    without = set(SAME_AXIS) if kind == "cross" else set()
    without |= set() if words.known else set(_NEEDS_IDS)
    return [name for name in kernel_want(asked.names) if name not in without]


def _about_tokens(words: Tokens, n_query: int) -> dict[str, Any]:
    n_key = len(words.ids)
    names = list(dict.fromkeys(words.roles))
    return {
        "query_ids": words.ids[None, n_key - n_query :],
        "key_ids": words.ids[None],
        "key_segments": np.array([[names.index(role) for role in words.roles]]),
        "n_segments": len(names),
    }


def _reduced(
    p: np.ndarray, words: Tokens, causal: bool, kind: str, learned_sink: bool, asked: Wanted
) -> dict[str, np.ndarray]:
    """Statistics [head, ...] of one layer's patterns [head, query, key]; empty rows are padding."""
    about = _about_tokens(words, 0 if kind == "cross" else p.shape[-2])
    if kind == "cross":
        about = {name: about[name] for name in ("key_segments", "n_segments")}
    valid = np.asarray(p.any(axis=(0, 2)))[None]
    about |= {"causal": causal, "query_valid": valid} | asked.parameters
    want = [name for name in _possible(asked, words, kind) if name not in ("lse", "value_mass")]
    found = stats_from_pattern(p[None], want, **about)
    found = {name: values[0].astype(np.float64) for name, values in found.items()}
    for name in {"argmax", "n_visible"} & set(found):
        found[name][:, ~valid[0]] = np.nan
    if not learned_sink and "null_mass" in found:
        # What is missing from one is rounding here, and no mass of anything.
        found["null_mass"] = np.where(np.isnan(found["null_mass"]), np.nan, 0.0)
    return found


def _from_kernel(
    q: np.ndarray, k: np.ndarray, v: np.ndarray | None, words: Tokens, terms: dict, asked: Wanted
) -> dict[str, np.ndarray]:
    import torch

    about: dict[str, Any] = {
        name: torch.as_tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in _about_tokens(words, q.shape[-2]).items()
    }
    want = [n for n in _possible(asked, words, "text") if n != "value_mass" or v is not None]
    if v is not None:
        about["v"] = torch.as_tensor(v.astype(np.float32))[None]
    q_, k_ = (torch.as_tensor(a.astype(np.float32))[None] for a in (q, k))
    found = attention_stats(q_, k_, want, **terms, **about, **asked.parameters)
    return {name: value[0].numpy() for name, value in found.items()}


def _renumbered(stats: HeadStats, data: xr.Dataset, numbers: dict[int, int]) -> HeadStats:
    """Layers under their absolute index, for a cache that holds some of them only."""
    sites = tuple(replace(site, layer=numbers[site.layer]) for site in stats.spec.sites)
    data = data.assign_coords(layer=list(numbers.values()))
    data = data.reindex(layer=np.arange(max(numbers.values()) + 1))
    arrays = {
        array_name(int(p), layer, "pattern"): stats.arrays[array_name(int(p), i, "pattern")]
        for p in data["prompt"].to_numpy()
        for i, layer in numbers.items()
    }
    spec = Spec(stats.spec.family, sites)
    return HeadStats(label(data), stats.tokens, spec, stats.provenance, stats.kind, arrays)
