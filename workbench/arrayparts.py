"""Given arrays and tokens into the pieces of a `HeadStats`: shapes checked, labels set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.columns import with_mean
from workbench.errors import WorkbenchError
from workbench.parameters import Parameters
from workbench.provenance import Provenance, digest
from workbench.schema import SCHEMA, expand_want
from workbench.spec import AttentionSite, Spec
from workbench.stats import TOKEN_COLUMNS, HeadStats, concat, dim_labels, label


@dataclass(frozen=True)
class Wanted:
    """Statistics asked of given arrays, and the parameters they are defined with."""

    names: tuple[str, ...]
    parameters: dict[str, Any]

    @classmethod
    def of(cls, want: str | Sequence[str] | None, parameters: Parameters | None) -> Wanted:
        names = expand_want(want)
        return cls(names, (parameters or Parameters()).used(names))


@dataclass(frozen=True)
class Tokens:
    """Ids and texts of one prompt; `known` says whether the ids mean anything."""

    ids: np.ndarray
    texts: list[str]
    roles: list[str]
    known: bool


def to_numpy(values: Any) -> np.ndarray:
    """numpy from a list, numpy, torch (any device, any float type) or the like."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def prompts_first(values: Any, dims: int, what: str) -> np.ndarray:
    """[prompt, layer, head, ...] from one array or from the per-layer tuple of transformers."""
    if isinstance(values, (tuple, list)) and len(values) and getattr(values[0], "ndim", 0) == dims:
        found = np.stack([to_numpy(v) for v in values], axis=1)
    else:
        found = to_numpy(values)
        found = found[None] if found.ndim == dims else found
    if found.ndim != dims + 1 or not found.size:
        last = "query, key" if what == "attention" else "position, d"
        raise WorkbenchError(
            f"{what} has shape {found.shape}; expected [layer, head, {last}], with or without a "
            f"prompt dim in front."
        )
    return found


def spoken_tokens(tokens: Any, tokenizer: Any, n_prompts: int, length: int) -> list[Tokens]:
    """Tokens of every prompt: numbered positions when none are given."""
    if tokens is None:
        texts = [f"[{i}]" for i in range(length)]
        return [Tokens(np.full(length, -1), texts, ["text"] * length, False)] * n_prompts
    rows = to_numpy(tokens) if hasattr(tokens, "shape") else list(tokens)
    one = not len(rows) or np.ndim(rows[0]) == 0
    rows = [rows] if one else list(rows)
    if len(rows) != n_prompts or any(not 0 < len(row) <= length for row in rows):
        raise WorkbenchError(
            f"tokens are given for {len(rows)} prompts of {sorted({len(r) for r in rows})} tokens, "
            f"the arrays hold {n_prompts} prompts of {length}; give one token per key."
        )
    vocabulary: dict[str, int] = {}
    return [_spoken(row, tokenizer, vocabulary) for row in rows]


def _spoken(row: Any, tokenizer: Any, vocabulary: dict[str, int]) -> Tokens:
    values = [v.item() if hasattr(v, "item") else v for v in row]
    special = set(getattr(tokenizer, "all_special_ids", ()))
    if all(isinstance(v, str) for v in values):
        # Words get numbers of their own, so that repeated tokens are recognised.
        ids, texts = [vocabulary.setdefault(v, len(vocabulary)) for v in values], values
        special = set()
    else:
        ids = [int(v) for v in values]
        texts = [str(i) for i in ids] if tokenizer is None else [tokenizer.decode([i]) for i in ids]
    roles = ["special" if i in special else "text" for i in ids]
    return Tokens(np.array(ids), texts, roles, True)


def one_prompt(
    prompt: int,
    layers: list[dict[str, np.ndarray]],
    words: Tokens,
    arrays: dict,
    asked: Wanted,
) -> tuple[xr.Dataset, pd.DataFrame, dict]:
    """One prompt's dataset, tokens and arrays from the statistics of its layers."""
    found = {
        name: np.stack([layer[name] for layer in layers])[None].astype("float32")
        for name in layers[0]
    }
    if "top_keys" in found:
        found["top_keys"] = np.where(found["top_keys"] < 0, np.nan, found["top_keys"])
    found = with_mean(found)
    data = xr.Dataset({n: (SCHEMA[n].dims, found[n]) for n in asked.names if n in found})
    pool = asked.parameters.get("pool")
    coords: dict = {dim: dim_labels(str(dim), n, pool) for dim, n in data.sizes.items()}
    if "role" in data.dims:
        coords["role"] = list(dict.fromkeys(words.roles))
    n = len(words.ids)
    table = {
        "prompt": prompt, "position": np.arange(n), "id": words.ids, "text": words.texts,
        "role": words.roles, "segment": "", "image_row": -1, "image_col": -1,
    }  # fmt: skip
    tokens = pd.DataFrame(table, columns=list(TOKEN_COLUMNS))
    return data.assign_coords(coords | {"prompt": [prompt]}), tokens, arrays


def given_site(
    layer: int, heads: int, kv_heads: int, d_head: int, causal: bool, kind: str, **rest: Any
) -> AttentionSite:
    """The site of one layer of given arrays."""
    where = f"arrays.{layer}"
    return AttentionSite(
        where, kind, layer, heads, kv_heads, d_head, d_head, causal, tap="returned", **rest
    )


def joined(
    parts: list,
    sites: list[AttentionSite],
    name: str,
    kind: str,
    spoken: list[Tokens],
    kernel: str,
    asked: Wanted,
) -> HeadStats:
    """One `HeadStats` from the pieces of `one_prompt`; raises `WorkbenchError` where it would be
    empty."""
    missing = [n for n in asked.names if n not in parts[0][0]]
    if len(missing) == len(asked.names):
        raise WorkbenchError(
            f"nothing of what was asked for ({', '.join(missing[:6])}) follows from these arrays."
        )
    provenance = Provenance(
        model=name,
        family="arrays",
        attention="given",
        kernel=kernel,
        prompts=digest([words.texts for words in spoken]),
        settings={"want": list(asked.names), "parameters": asked.parameters},
        missing=dict.fromkeys(missing, "it does not follow from the arrays that were given"),
        notes=("statistics of arrays that were given: no model was run",),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    spec = Spec("arrays", tuple(sites))
    return concat([HeadStats(label(d), t, spec, provenance, kind, a) for d, t, a in parts])
