"""Runs with a known answer: heads planted in queries and keys, no model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from workbench.kernels.attention_stats.naive import pattern as exact
from workbench.probes import heads_table
from workbench.provenance import Provenance
from workbench.runs import Run, save, wide
from workbench.schema import SCHEMA
from workbench.spec import AttentionSite, Spec
from workbench.stats import HeadStats

N_LAYERS, N_HEADS, KV_HEADS, WIDTH = 4, 6, 2, 48
LENGTHS = (40, 32)
# Layer 2 has no attention, as in hybrid models.
MISSING = 2
HOSTILE = "<img src=x onerror=window.pwned=1>"
WORDS = ["<s>", " the", " cat", "\n", HOSTILE, " sat", "\t", " on", "<0xE2>", " mat"]


def planted(kind: str, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """q and k of a head that looks at the previous token, the first one, or nowhere special."""
    angles = np.arange(length)[:, None] * rng.uniform(0.4, 2.7, WIDTH // 2)
    k = np.concatenate([np.cos(angles), np.sin(angles)], 1)
    if kind == "previous":
        back = (np.arange(length) - 1)[:, None] * (angles[1] if length > 1 else 0)
        return 4 * np.concatenate([np.cos(back), np.sin(back)], 1), k
    q = rng.normal(size=(length, WIDTH))
    if kind == "first":
        q = q + 6 * k[0]
    return q, k


def kind_of(layer: int, head: int) -> str:
    """L1H0 to L1H2 look back one token, L3H3 to L3H5 at the first; three heads share keys."""
    if layer == 1 and head < N_HEADS // KV_HEADS:
        return "previous"
    return "first" if layer == 3 and head >= N_HEADS // KV_HEADS else "none"


def arrays_of(lengths: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Kept q and k by name."""
    rng = np.random.default_rng(seed)
    found = {}
    for prompt, length in enumerate(lengths):
        for layer in layers():
            q, k = [], []
            for group in range(KV_HEADS):
                heads = range(group * N_HEADS // KV_HEADS, (group + 1) * N_HEADS // KV_HEADS)
                pairs = [
                    planted(kind_of(layer, h), length, np.random.default_rng(layer)) for h in heads
                ]
                k.append(pairs[0][1])
                noise = [rng.normal(size=pairs[0][0].shape) * 0.3 for _ in heads]
                q += [pair[0] + n for pair, n in zip(pairs, noise, strict=True)]
            found[f"p{prompt}.L{layer}.q"] = np.stack(q).astype("float32")
            found[f"p{prompt}.L{layer}.k"] = np.stack(k).astype("float32")
            found[f"p{prompt}.L{layer}.scale"] = np.float32(1.0).reshape(())
    return found


def layers() -> list[int]:
    return [i for i in range(N_LAYERS) if i != MISSING]


def site(layer: int) -> AttentionSite:
    return AttentionSite(f"h.{layer}.attn", "text", layer, N_HEADS, KV_HEADS, WIDTH, WIDTH, True)


def head_stats(lengths: tuple[int, ...] = LENGTHS, *, keep: bool = True) -> HeadStats:
    """Statistics of the planted heads, from their exact patterns; `keep` the q and k with them."""
    longest, arrays = max(lengths), arrays_of(lengths)
    coords = {
        "prompt": np.arange(len(lengths)),
        "layer": np.arange(N_LAYERS),
        "head": np.arange(N_HEADS),
        "query": np.arange(longest),
        "key": np.arange(longest),
    }
    names = ("entropy", "self_mass", "prev_mass", "first_mass", "distance", "distance_sq",
             "n_visible", "key_mass", "key_mean", "key_max", "key_count")  # fmt: skip
    shape = (len(lengths), N_LAYERS, N_HEADS, longest)
    values = {n: np.full(shape, np.nan, dtype="float32") for n in names}
    for prompt, length in enumerate(lengths):
        for layer in layers():
            for head in range(N_HEADS):
                p = pattern(arrays, prompt, layer, head)
                for name, row in rows_of(p).items():
                    values[name][prompt, layer, head, :length] = row
    data = xr.Dataset({n: (SCHEMA[n].dims, v) for n, v in values.items()}, coords=coords)
    spec = Spec("planted", tuple(site(layer) for layer in layers()))
    about = Provenance(
        "planted", "planted", dtype="float32", attention="exact", kernel="float64 specification",
        created="2026-01-02T03:04:05", bos="yes", notes=("heads were planted, not trained",),
    )  # fmt: skip
    return HeadStats(data, tokens(lengths), spec, about, arrays=arrays if keep else {})


def pattern(arrays: dict, prompt: int, layer: int, head: int) -> np.ndarray:
    """Exact map of one planted head."""
    q = arrays[f"p{prompt}.L{layer}.q"][head]
    k = arrays[f"p{prompt}.L{layer}.k"][head // (N_HEADS // KV_HEADS)]
    return exact(q[None, None], k[None, None], scale=1.0, causal=True)[0, 0]


def rows_of(p: np.ndarray) -> dict[str, np.ndarray]:
    """Row and column statistics of one causal map, by definition."""
    length = len(p)
    gap = np.arange(length)[:, None] - np.arange(length)
    count = length - np.arange(length)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(np.where(p > 0, p * np.log(p), 0), 1)
    return {
        "entropy": entropy,
        "self_mass": np.diag(p),
        "prev_mass": np.concatenate([[0], np.diag(p, -1)]),
        "first_mass": p[:, 0],
        "distance": (p * gap).sum(1),
        "distance_sq": (p * gap**2).sum(1),
        "n_visible": np.arange(length) + 1,
        "key_mass": p.sum(0),
        "key_mean": p.sum(0) / count,
        "key_max": p.max(0),
        "key_count": count,
    }


def tokens(lengths: tuple[int, ...]) -> pd.DataFrame:
    rows = [
        (
            prompt,
            i,
            i % len(WORDS),
            WORDS[i % len(WORDS)],
            "special" if i == 0 else "text",
            "",
            -1,
            -1,
        )
        for prompt, length in enumerate(lengths)
        for i in range(length)
    ]
    columns = ["prompt", "position", "id", "text", "role", "segment", "image_row", "image_col"]
    return pd.DataFrame(rows, columns=columns)


def write_run(
    path: Path, lengths: tuple[int, ...] = LENGTHS, *, keep: bool = True, probes: bool = True
) -> Run:
    """A whole run directory; `probes` puts their table into heads.parquet."""
    stats = head_stats(lengths, keep=keep)
    run = save(stats, path)
    if probes:
        table = heads_table(stats)
        run.add_summary(wide({str(n): t for n, t in table.groupby("probe", sort=False)}))
    return run


def with_secondary(stats: HeadStats, position: int, life: range) -> HeadStats:
    """The same with a residual stream: position 0 is a primary sink in every layer, `position` of
    prompt 0 points along it after the layers of `life`, everything else does not."""
    n_prompts, longest = len(stats.lengths), int(stats.lengths.max())
    shape = (n_prompts, N_LAYERS + 1, longest)
    norm, cos = np.ones(shape), np.full(shape, 0.2)
    norm[:, 1:, 0], cos[..., 0] = 100.0, 1.0
    for layer in life:
        cos[0, layer + 1, position] = 0.97
    for prompt, length in enumerate(stats.lengths.to_numpy()):
        norm[prompt, :, length:] = cos[prompt, :, length:] = np.nan
    levels = {"stream": np.arange(N_LAYERS + 1), "candidate": [0]}
    rows = ("prompt", "stream", "candidate", "query")
    made = {
        "resid_norm": (("prompt", "stream", "query"), norm.astype("float32")),
        "resid_cos": (rows, cos[:, :, None].astype("float32")),
        "resid_cos_trimmed": (rows, cos[:, :, None].astype("float32")),
    }
    return replace(stats, data=stats.data.assign_coords(levels).assign(made))


def break_run(path: Path) -> None:
    """A run whose manifest names a file that is not there."""
    write_run(path)
    (path / "tokens.parquet").unlink()
    assert json.loads((path / "manifest.json").read_text())
