"""Families with an attention of their own: statistics from the maps they return.

Costs the maps themselves (L^2 per head); q, k, v and W_O are out of reach, so norms and lse are
absent, and the provenance says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from workbench.assemble import Span, token_table
from workbench.columns import with_mean
from workbench.encode import Encoded, roles_of, token_texts
from workbench.guards import require_any
from workbench.kernels.attention_stats import stats_from_pattern
from workbench.parameters import of_kernels
from workbench.provenance import Provenance
from workbench.schema import SCHEMA, kernel_want
from workbench.stats import HeadStats, dim_labels, label
from workbench.verify import returned_maps

if TYPE_CHECKING:
    from workbench.models import Model

_NOT_IN_MAPS = ("lse", "null_mass", "value_mass")
_MISSING = "it does not follow from the maps a model returns"
_NOTE = (
    "statistics come from the attention maps the model returned: no lse, no norms, no interventions"
)


def returned_stats(
    model: Model,
    kind: str,
    want: tuple[str, ...],
    members: tuple[int, ...],
    encoded: list[Encoded],
    roles: tuple[str, ...],
    parameters: dict[str, Any],
    provenance: Provenance,
) -> HeadStats:
    """One prompt at a time, so that no padding is involved."""
    # A map does not say what was hidden; without this every key would count as visible.
    causal = model.spec.of(kind)[0].causal
    parts, spans, ids, texts, role_names, segments = [], [], [], [], [], []
    for prompt, e in zip(members, encoded, strict=True):
        tensor = torch.as_tensor(e.ids, device=model.device)[None]
        maps = returned_maps(
            model, {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}
        )
        own = roles_of(e.ids, model.special_ids, model.image_token_id, len(e))
        masks = np.stack([np.asarray(e.segments.get(r, own == r), dtype=bool) for r in roles])
        parts.append(_dataset(prompt, maps, tensor, masks, want, roles, causal, parameters))
        n = len(e)
        spans.append(Span(prompt, 0, 0, n, 0, n))
        ids.append(e.ids)
        texts.append(token_texts(e.ids, model.tokenizer))
        role_names.append(own)
        named = [""] * n
        for name, mask in e.segments.items():
            named = [name if m else old for m, old in zip(mask, named, strict=True)]
        segments.append(named)
    data = xr.concat(parts, "prompt", join="outer", coords="minimal", compat="override")
    assert isinstance(data, xr.Dataset)
    tokens = token_table(spans, ids, texts, role_names, segments)
    prov = replace(
        provenance,
        notes=(*provenance.notes, _NOTE),
        missing=dict.fromkeys((n for n in want if n not in data), _MISSING),
        kernel="returned maps",
    )
    require_any(data, want, f"{model.name} (read from the maps it returns)")
    return HeadStats(label(data), tokens, model.spec, prov, kind)


def _dataset(
    prompt: int,
    maps: tuple[torch.Tensor, ...],
    ids: torch.Tensor,
    masks: np.ndarray,
    want: tuple[str, ...],
    roles: tuple[str, ...],
    causal: bool,
    parameters: dict[str, Any],
) -> xr.Dataset:
    """Dataset of one prompt; `masks` [role, position]."""
    names = [name for name in kernel_want(want) if name not in _NOT_IN_MAPS]
    segments = torch.as_tensor(masks)[None]
    found: dict[str, list[np.ndarray]] = {}
    for p in maps:
        values = stats_from_pattern(
            p,
            names,
            causal=causal,
            query_offset=0,
            query_ids=ids,
            key_ids=ids,
            key_segments=segments,
            n_segments=len(roles),
            **of_kernels(parameters),
        )
        for name, value in values.items():
            found.setdefault(name, []).append(np.asarray(value, dtype=np.float32)[0])
    arrays = with_mean({name: np.stack(layers)[None] for name, layers in found.items()})
    if "top_keys" in arrays:
        arrays["top_keys"] = np.where(arrays["top_keys"] < 0, np.nan, arrays["top_keys"])
    data = xr.Dataset({n: (SCHEMA[n].dims, arrays[n]) for n in want if n in arrays})
    pool = parameters.get("pool")
    coords: dict = {dim: dim_labels(str(dim), n, pool) for dim, n in data.sizes.items()}
    if "role" in data.dims:
        coords["role"] = list(roles)
    return data.assign_coords(coords | {"prompt": [prompt]})
