"""Chunks of one batch to one `HeadStats`: cut every prompt out of its row, pad with NaN, label.

Where rows hold known prompts (`Span`s), padding is cut away and positions count from the prompt's
first token, whichever side was padded or however many prompts share a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from workbench.chunks import Chunk
from workbench.errors import CaptureError
from workbench.heads import Head
from workbench.record import KEY_INDICES, Recorder
from workbench.residual import ResidualRecorder
from workbench.schema import SCHEMA, extent
from workbench.spec import Spec
from workbench.stats import dim_labels, label


@dataclass(frozen=True)
class Span:
    """Where one prompt lies: `row` of the batch, positions start..stop (queries) and the same of
    its keys."""

    prompt: int
    row: int
    start: int
    stop: int
    key_start: int
    key_stop: int


def free_spans(recorder: Recorder, first_prompt: int) -> list[Span]:
    """One span per row of the calls, for towers whose rows are images or tiles."""
    chunks = next(iter(recorder.chunks.values()), [])
    if not chunks:
        return []
    n_rows = _rows(chunks)
    n_query, n_key = _extent(chunks)
    return [Span(first_prompt + row, row, 0, n_query, 0, n_key) for row in range(n_rows)]


def _rows(chunks: list[Chunk]) -> int:
    return max(c.n_rows for c in chunks)


def _extent(chunks: list[Chunk]) -> tuple[int, int]:
    return max(c.q0 + c.n_query for c in chunks), max(c.k0 + c.n_key for c in chunks)


def assemble(
    spec: Spec,
    kind: str,
    want: tuple[str, ...],
    recorder: Recorder,
    residual: ResidualRecorder | None,
    spans: list[Span],
    roles: tuple[str, ...],
) -> xr.Dataset:
    """The labelled dataset of one batch; variables of `want` that this tower cannot give are
    absent."""
    n_layers, n_heads = spec.n_layers(kind), spec.n_heads(kind)
    n_query = max((s.stop - s.start for s in spans), default=0)
    n_key = max((s.key_stop - s.key_start for s in spans), default=0)
    lead = (len(spans), n_layers, n_heads)
    found: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for site in spec.of(kind):
        chunks = recorder.chunks.get(site.name, [])
        if not chunks:
            continue
        values = _join_rows(chunks)
        values |= recorder.columns[site.name].result() | recorder.maps[site.name].result()
        for name in want:
            if name not in values:
                continue
            parts = [_cut(name, values[name][span.row], span, recorder) for span in spans]
            shape = [max(sizes) for sizes in zip(*(p.shape[1:] for p in parts), strict=True)]
            empty = np.full((*lead, *shape), np.nan, dtype=np.float32)
            target = found.setdefault(name, (SCHEMA[name].dims, empty))[1]
            for i, part in enumerate(parts):
                inner = tuple(slice(n) for n in part.shape)
                target[i, site.layer][inner] = part
    data = xr.Dataset({name: (dims, values) for name, (dims, values) in found.items()})
    pool = recorder.asked.parameters.get("pool")
    data = _coordinates(data, spans, roles, pool)
    if residual is not None:
        data = data.merge(residual.dataset(spans, n_query, want))
    return label(_with_patterns(data, kind, recorder, spans, n_query, n_key))


def _cut(name: str, values: np.ndarray, span: Span, recorder: Recorder) -> np.ndarray:
    """[head, ...] of one prompt out of its row; a bin or block belongs to it if it begins in it."""
    dims = SCHEMA[name].dims[3:]
    sizes = {"query": span.stop - span.start, "key": span.key_stop - span.key_start}
    if dims[0] in ("query", "key"):
        start = span.start if dims[0] == "query" else span.key_start
        values = values[:, start : start + sizes[dims[0]]]
        return values - span.key_start if name in KEY_INDICES else values
    length = {"distance_bin": max(sizes.values()), "query_block": sizes["query"]}
    pool = recorder.asked.parameters.get("pool", 1)
    own = [extent(dim, length.get(dim, sizes["key"]), pool) for dim in dims]
    # A generation need not have reached the last bin: nothing lies that far inside a window.
    whole = np.zeros((len(values), *own), dtype=values.dtype)
    inner = tuple(slice(min(n, have)) for n, have in zip(own, values.shape[1:], strict=True))
    whole[:, *inner] = values[:, *inner]
    return whole


def _coordinates(
    data: xr.Dataset, spans: list[Span], roles: tuple[str, ...], pool: int | None
) -> xr.Dataset:
    coords: dict = {
        dim: dim_labels(str(dim), n, pool) for dim, n in data.sizes.items() if dim != "prompt"
    }
    if "role" in data.dims:
        coords["role"] = list(roles)
    return data.assign_coords(coords | {"prompt": [span.prompt for span in spans]})


def _join_rows(chunks: list[Chunk]) -> dict[str, np.ndarray]:
    """Row statistics of all chunks side by side along the query axis."""
    names = chunks[0].rows
    return {name: np.concatenate([c.rows[name] for c in chunks], axis=2) for name in names}


def _with_patterns(
    data: xr.Dataset, kind: str, recorder: Recorder, spans: list[Span], n_query: int, n_key: int
) -> xr.Dataset:
    if not recorder.patterns:
        return data
    heads = sorted(recorder.patterns)
    full = np.full((len(spans), len(heads), n_query, n_key), np.nan, dtype=np.float32)
    for h, head in enumerate(heads):
        for i, span in enumerate(spans):
            whole = _whole_pattern(recorder.patterns[head], span.row)
            part = whole[span.start : span.stop, span.key_start : span.key_stop]
            full[i, h, : part.shape[0], : part.shape[1]] = part
    labels = [str(Head(layer, head, kind)) for layer, head in heads]
    array = xr.DataArray(
        full, dims=("prompt", "pattern_head", "query", "key"), coords={"pattern_head": labels}
    )
    coords = {"query": np.arange(n_query), "key": np.arange(n_key)}
    return data.assign(pattern=array).assign_coords(coords)


def _whole_pattern(parts: list[tuple[int, int, np.ndarray]], row: int) -> np.ndarray:
    n_query = max(q0 + p.shape[1] for q0, _, p in parts)
    n_key = max(k0 + p.shape[2] for _, k0, p in parts)
    whole = np.zeros((n_query, n_key), dtype=np.float32)
    for q0, k0, p in parts:
        whole[q0 : q0 + p.shape[1], k0 : k0 + p.shape[2]] = p[row]
    return whole


def token_table(
    spans: list[Span],
    ids: list[np.ndarray],
    texts: list[list[str]],
    roles: list[np.ndarray],
    segments: list[list[str]],
) -> pd.DataFrame:
    """One row per (prompt, position) in the columns of `stats.TOKEN_COLUMNS`."""
    frames = []
    for span, i, t, r, s in zip(spans, ids, texts, roles, segments, strict=True):
        n = span.stop - span.start
        if not len(i) == len(t) == len(r) == len(s) == n:
            raise CaptureError(
                f"prompt {span.prompt} has {n} positions but {len(i)} token ids; please report "
                "this."
            )
        frames.append(
            pd.DataFrame(
                {
                    "prompt": span.prompt,
                    "position": np.arange(n),
                    "id": i,
                    "text": t,
                    "role": r,
                    "segment": s,
                    "image_row": -1,
                    "image_col": -1,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def qk_arrays(recorder: Recorder, spans: list[Span]) -> dict[str, np.ndarray]:
    """q, k and what is needed to rebuild any pattern, per prompt and layer (`p0.L3.q`)."""
    arrays = {}
    for layer, kept in recorder.qk.items():
        for span in spans:
            name = f"p{span.prompt}.L{layer}."
            arrays[name + "q"] = kept["q"][span.row, :, span.start : span.stop].copy()
            arrays[name + "k"] = kept["k"][span.row, :, span.key_start : span.key_stop].copy()
            arrays[name + "scale"] = kept["scale"]
            if "sink" in kept:
                arrays[name + "sink"] = kept["sink"]
            for term in ("mask", "bias"):
                if term in kept:
                    full = kept[term][span.row if kept[term].shape[0] > 1 else 0]
                    arrays[name + term] = full[
                        :, span.start : span.stop, span.key_start : span.key_stop
                    ].copy()
    return arrays
