"""A map far too large to hold, looked at like a street map: coarse levels of the whole, exact tiles
of any part.

    levels = pyramid(q, k, causal=True)          # 256 x 256 blocks, 128 x 128, ..., 1 x 1
    p = tile(q, k, lse, slice(90_000, 90_256), slice(0, 256), causal=True)

A tile of R queries and C keys costs two products of R x C x D and no sweep: its weights within the
rectangle, times exp(its own lse - the lse of the whole rows). A pyramid costs one call of
attention_stats for the finest level (a row pass, unless lse is given, and a column pass).

Dims: B batch, H query heads, Q queries, K keys, D head width; R queries and C keys of a tile; n, m
blocks of queries and keys of a level. No torch at import.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from workbench.kernels.attention_stats.checks import check_qk, check_terms
from workbench.kernels.attention_stats.dispatch import choose
from workbench.kernels.attention_stats.terms import MAP_TERMS, TERMS
from workbench.kernels.attention_stats.variants import BIASES, MASKS

if TYPE_CHECKING:
    import torch

REDUCTIONS = ("max", "sum", "mean")


def tile(
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor | None,
    rows: slice,
    keys: slice,
    *,
    backend: str = "auto",
    **terms: Any,
) -> torch.Tensor:
    """Exact weights [B, H, R, C] of the queries in `rows` and the keys in `keys`, 0 where hidden;
    the same numbers as that part of `pattern`.

    Args:
        q, k: [B, H, Q, D] and [B, Hkv, K, D], the whole of them.
        lse: [B, H, Q], natural log, of the whole rows (with the sink logit, if there is one), as
            attention_stats returns it; None only where `activation` is not softmax.
        rows, keys: slices with step 1, cut at the ends like those of a list; an empty one gives an
            empty tile.
        terms: those that describe the map (MAP_TERMS), for the whole of it.

    Rows that see no key are 0 whatever finite value their lse has; a row whose lse is NaN (of a
    query that is not valid) is NaN. With activation "relu" or "linear" the keys that a whole row
    sees are counted as well, O(R K) where a mask has to be read for that.

    Raises ValueError for an lse that is missing or not wanted, a step, and as `pattern` does.
    """
    _check_names("tile", terms, MAP_TERMS)
    shape = check_qk(q, k)
    given = dict.fromkeys(TERMS) | {"causal": False} | terms | {"lse": lse}
    checked = check_terms(shape, given, q.device)
    if lse is None and checked["activation"] == "softmax":
        raise ValueError("lse is None; expected [batch, heads, queries] of the rows of the map.")
    r, c = _bounds("rows", rows, shape[2]), _bounds("keys", keys, shape[3])
    n_rows, n_keys = r.stop - r.start, c.stop - c.start
    if not (n_rows and n_keys):
        return q.new_zeros(shape[0], shape[1], n_rows, n_keys, dtype=value_dtype(q))
    own = cut(checked, r, c, q.device)
    own = {name: own[name] for name in MAP_TERMS if name in own}
    module = choose(backend, q, (), own)
    p = module.pattern(q[:, :, r], k[:, :, c], slice(0, n_rows), **own)
    factor = _share(module, q, k, checked, r, c)
    return p if factor is None else p.mul_(factor[..., None])


def pyramid(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    size: int = 256,
    reduce: str = "max",
    backend: str = "auto",
    **terms: Any,
) -> list[torch.Tensor]:
    """The whole map at halving resolutions: [B, H, n, m] each, the finest first, down to 1 x 1.

    A block of level l holds 2^l * ceil(max(Q, K) / size) queries and as many keys, so that the
    finest level has at most `size` blocks a side; the last block of a side may hold fewer. Every
    level is made from the one before by 2 x 2, and is what the map itself would give:
        "max"   largest weight in the block, exact to the bit of the finest level
        "sum"   sum of the weights, exact but for the order of summation
        "mean"  sum / (queries x keys in the block): hidden entries count as 0, and a block at the
                end is divided by what it really holds

    terms: those that describe the map, lse and query_valid. Raises ValueError for a size below 1,
    an unknown reduction, "max" of weights that may be negative, and as attention_stats does.
    """
    import torch

    _check_names("pyramid", terms, (*MAP_TERMS, "lse", "query_valid"))
    b, h, n_q, n_k = check_qk(q, k)
    if not n_q:
        raise ValueError("q has 0 queries; expected at least one for a pyramid.")
    if size < 1:
        raise ValueError(f"size is {size}; expected at least 1 block a side.")
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce is {reduce!r}; expected one of {', '.join(REDUCTIONS)}.")
    if reduce == "max" and terms.get("activation") == "linear":
        raise ValueError("reduce is 'max' with activation 'linear', whose weights may be negative.")
    given = dict.fromkeys(TERMS) | {"causal": False} | terms
    pool = max(1, math.ceil(max(n_q, n_k) / size))
    checked = check_terms((b, h, n_q, n_k), given | {"pool": pool}, q.device)
    name = "block_max" if reduce == "max" else "block_mass"
    module = choose(backend, q, (name,), checked)
    levels = [module.attention_stats(q, k, (name,), **checked)[name]]
    while max(levels[-1].shape[2:]) > 1:
        levels.append(_halved(levels[-1], reduce))
    if reduce == "mean":
        for n, level in enumerate(levels):
            level /= torch.outer(
                _held(n_q, pool << n, level[0, 0, :, 0]), _held(n_k, pool << n, level[0, 0, 0])
            )
    return levels


def cut(terms: dict[str, Any], rows: slice, keys: slice, device: Any) -> dict[str, Any]:
    """Checked terms of a map, for the rectangle rows x keys of it alone (lse and the sink logit,
    which belong to whole rows, left out). A mask by description becomes a bool [1, 1, R, C]."""
    import torch

    offset = terms["query_offset"]
    own = terms | {
        "query_offset": offset + rows.start - keys.start,
        "lse": None,
        "sink_logit": None,
    }
    mask, bias = terms.get("mask"), terms.get("bias")
    if isinstance(mask, MASKS):
        # Positions of a description are those of the whole map.
        i = torch.arange(rows.start, rows.stop, device=device)[:, None] + offset
        j = torch.arange(keys.start, keys.stop, device=device)[None]
        own["mask"] = mask.visible(i, j)[None, None]
    elif mask is not None:
        own["mask"] = cut_dense(mask, rows, keys)
    if isinstance(bias, BIASES):
        own["bias"] = replace(bias, left=bias.left[:, :, rows], right=bias.right[:, :, keys])
    elif bias is not None:
        own["bias"] = cut_dense(bias, rows, keys)
    for name, where in (("key_valid", keys), ("key_sequence", keys), ("query_sequence", rows)):
        if terms.get(name) is not None:
            own[name] = terms[name][:, where]
    return own


def cut_dense(x: torch.Tensor, rows: slice, keys: slice) -> torch.Tensor:
    """rows x keys of what broadcasts to [B, H, Q, K], as 4 dims, without copying."""
    x = x[(None,) * (4 - x.dim())]
    x = x[:, :, rows] if x.shape[2] > 1 else x
    return x[..., keys] if x.shape[3] > 1 else x


def _share(
    module: ModuleType,
    q: torch.Tensor,
    k: torch.Tensor,
    terms: dict[str, Any],
    rows: slice,
    keys: slice,
) -> torch.Tensor | None:
    """[B, H, R] or None for 1: what the rectangle's own weights must be multiplied by to be those
    of the whole rows."""
    import torch

    q = q[:, :, rows]
    whole, part = slice(0, k.shape[2]), k[:, :, keys]
    own = cut(terms, rows, keys, q.device)
    if terms["activation"] == "sigmoid":
        return None
    if terms["activation"] == "softmax":
        found = module.attention_stats(q, part, ("lse",), **own)["lse"]
        factor = torch.exp(found - terms["lse"][:, :, rows].to(found.dtype))
        return torch.where(found == -math.inf, 0.0, factor)
    name = ("n_visible",)
    seen = module.attention_stats(q, part, name, **own)["n_visible"]
    every = module.attention_stats(q, k, name, **cut(terms, rows, whole, q.device))["n_visible"]
    return seen.to(value_dtype(q)) / every.clamp(min=1)


def value_dtype(x: torch.Tensor) -> torch.dtype:
    """Of the weights: float64 for float64 inputs, else float32."""
    import torch

    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _halved(x: torch.Tensor, reduce: str) -> torch.Tensor:
    """2 x 2 blocks of [B, H, n, m], the odd ones at the ends alone; weights are never negative
    where 0 would matter."""
    import torch

    x = torch.nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    x = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2))
    return x.amax((3, 5)) if reduce == "max" else x.sum((3, 5))


def _held(tokens: int, block: int, side: torch.Tensor) -> torch.Tensor:
    """Tokens in each of the blocks along one side of a level, the last one ragged."""
    held = side.new_full(side.shape, block)
    held[-1] = tokens - block * (side.shape[0] - 1)
    return held


def _bounds(name: str, part: slice, n: int) -> slice:
    start, stop, step = part.indices(n)
    if step != 1:
        raise ValueError(f"{name} has step {step}; expected a slice with step 1.")
    return slice(start, max(start, stop))


def _check_names(caller: str, terms: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in terms:
        if name not in known:
            raise ValueError(
                f"{caller} has no argument {name!r}; expected some of {', '.join(known)}."
            )
