"""Which later tokens join the first one as sinks, from which layer, and for how long?

A secondary sink is a token whose residual state turns, at some layer, into the direction of the
primary sink's state and stays there for a number of layers (Wong et al. 2025, arXiv 2512.22213).
The detector takes |cos(S^l_p, S^l_primary)| > 0.9 inside the layers in which the primary sink has
its large norm; l_start is the first such layer and the lifetime their number.

All states are block outputs before the final norm: layer l is level l + 1 of the stream.  The
paper reads the last level behind the final norm, which ends every sink there; here one ends where
its norm falls, or not at all.  The cosine is governed by the few dimensions in which the primary
sink is massive, so each token is told with them and without them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.probes import uniform
from workbench.probes.pooling import refuse_two_sequences
from workbench.stats import HeadStats

# A primary sink has this many times the norm of the median other token: below that, a cosine of 0.9
# only says that all states are alike.  Ours; Guo et al. 2024 (arXiv 2410.13835) have 496 against 37
# behind layer 24 of Llama-3.1-8B.
STANDS_OUT = 2.0
# The part of the steepest rise that a fall undoes if it ends the sink.  Ours: before the final norm
# there need not be any fall, and the steepest of small ones would mean nothing.
FALL = 0.25
_TYPES = {
    "prompt": "int64", "position": "int64", "id": "int64", "token": "str", "primary": "int64",
    "l_start": "int64", "l_end": "int64", "lifetime": "int64", "contiguous": "bool",
    "relative_lifetime": "float64", "cos": "float64", "cos_trimmed": "float64",
    "norm_start": "float64", "norm_max": "float64", "score": "float64", "score_null": "float64",
    "primary_score": "float64", "primary_null": "float64",
    "label_absolute": "str", "label_relative": "str",
}  # fmt: skip


def primary_sink(stats: HeadStats, candidates: Sequence[int] = (0,)) -> pd.DataFrame:
    """The primary sink of every prompt and the layers in which its norm is large.

    Columns: `prompt, position, token`; `position` is the candidate of largest mean norm over the
    layers; `start, end`: from the layer that raises its norm most to the one before the layer that
    lowers it most (steps 1 and 2 of Wong et al. 2025, arXiv 2512.22213), on block outputs before
    the final norm; an embedding larger than every rise counts as one, with `start` 0; `norm`, its
    mean L2 norm there, and `null`, that of the median other token.  A fall of less than a quarter
    of the rise ends nothing: then `end` is the number of layers.  `start` and `end` are missing
    where the candidate does not stand out (norm at most twice the null); `table.attrs["left_out"]`
    says why, by prompt.  Needs `resid_norm`.  Raises `WorkbenchError` where no prompt has any of
    the candidates.
    """
    wanted = _positions(candidates)
    norms = stats["resid_norm"].astype("float64").transpose("prompt", "stream", "query")
    rows, left_out = [], {}
    for prompt, found in zip(norms["prompt"].to_numpy(), norms.to_numpy(), strict=True):
        # A block that this prompt did not need (cross-attention without an image) changed nothing.
        levels = pd.DataFrame(found).ffill().to_numpy()
        inside = [c for c in wanted if c < levels.shape[1] and np.isfinite(levels[:, c]).all()]
        if not inside:
            left_out[int(prompt)] = f"prompt {prompt} has no token at positions {list(wanted)}."
            continue
        position = max(inside, key=lambda c, levels=levels: levels[1:, c].mean())
        window = _window(levels[:, position])
        inner = levels[window[0] + 1 : window[1] + 1]
        others = np.delete(inner, position, axis=1)
        others = others[:, np.isfinite(others).all(axis=0)].mean(axis=0)
        row = {"prompt": prompt, "position": position, "norm": inner[:, position].mean()}
        row["null"] = np.median(others) if len(others) else np.nan
        beside = (
            f"that of the median other token is {row['null']:.3g}" if len(others) else "it is alone"
        )
        if row["norm"] > STANDS_OUT * row["null"]:
            row["start"], row["end"] = window
        else:
            left_out[int(prompt)] = (
                f"position {position} of prompt {prompt} is no primary sink: its norm is "
                f"{row['norm']:.3g} where {beside}."
            )
        rows.append(row)
    if not rows:
        raise WorkbenchError(
            f"candidates={list(wanted)}: no prompt has a token there; give earlier positions."
        )
    table = pd.DataFrame(rows).reindex(
        columns=["prompt", "position", "start", "end", "norm", "null"]
    )
    table = table.astype({"start": "Int64", "end": "Int64"})
    table.insert(2, "token", _from_tokens(stats, table, "text"))
    table.attrs.update(candidates=list(wanted), stands_out=STANDS_OUT, fall=FALL, left_out=left_out)
    return table


def _positions(candidates: Sequence[int]) -> tuple[int, ...]:
    wanted = tuple(candidates)
    if not wanted or any(not isinstance(c, int | np.integer) or c < 0 for c in wanted):
        raise WorkbenchError(
            f"candidates={list(wanted)} are no positions of a primary sink; give (0,), or "
            "(0, 1, 2) for prompts with a chat template."
        )
    return tuple(dict.fromkeys(int(c) for c in wanted))


def _window(norm: np.ndarray) -> tuple[int, int]:
    """(start, end) of the layers with a large norm, from the norms [stream] of one position."""
    rise, change = np.diff(norm, prepend=0), np.diff(norm)
    start = max(int(rise.argmax()) - 1, 0)
    after = change[start + 1 :]
    if not len(after) or -after.min() < FALL * rise.max():
        return start, len(change)
    return start, start + 1 + int(after.argmin())


def _from_tokens(stats: HeadStats, table: pd.DataFrame, column: str) -> list:
    known = stats.tokens.set_index(["prompt", "position"])[column]
    return known.reindex(pd.MultiIndex.from_arrays([table["prompt"], table["position"]])).to_list()


def secondary_sinks(
    stats: HeadStats,
    *,
    candidates: Sequence[int] = (0,),
    cosine: float = 0.9,
    trimmed: float = 0.5,
    absolute: tuple[int, int] = (4, 15),
    relative: tuple[float, float] = (0.1, 0.8),
) -> pd.DataFrame:
    """Tokens behind the primary sink whose state points along it, one row per prompt and position.

    Columns: `prompt, position, id, token`; `primary`, the primary sink's position; `l_start`, the
    first layer with |cos| > `cosine`, `l_end` the one after the last, `lifetime` their number,
    `contiguous` whether none between is missing, `relative_lifetime` = lifetime / layers of the
    primary sink; `cos`, the largest |cos|; `cos_trimmed`, that at l_start without the primary
    sink's three largest dimensions; `norm_start, norm_max`, the L2 norm at l_start and its largest
    over the lifetime; `score`, mean over heads and queries q >= p of A[q, p] in the layers that
    read these states (l + 1 for each l of the lifetime), `score_null` the same under uniform
    attention; `primary_score, primary_null`, those of the primary sink in the same layers.

    Labels: "massive only" where cos_trimmed < `trimmed` (0 calls nothing so), else "primary",
    "secondary" or "noise".  `label_absolute` is the rule of Wong et al. 2025 (arXiv 2512.22213)
    with `absolute` = (a, b) and L layers: primary from lifetime L - b on, else noise up to a;
    nothing is secondary for L <= a + b + 1.  `label_relative` is ours, for any depth: with
    `relative` = (a, b) a relative lifetime of b or more is primary, one of a or less, or a single
    layer, is noise.  On the lifetimes reported for the paper's two models both rules agree.

    `table.attrs`: the thresholds, and `left_out` (prompt -> why it has no primary sink).  Needs
    `resid_norm, resid_cos, resid_cos_trimmed, key_mean, key_count, n_visible`.
    """
    refuse_two_sequences(stats, "secondary_sinks")
    _refuse_unknown(stats, candidates, cosine, relative)
    primaries, heads = primary_sink(stats, candidates), _received(stats)
    rows = []
    for primary in primaries[primaries["start"].notna()].itertuples():
        window = range(int(primary.start), int(primary.end))  # type: ignore[arg-type]
        rows += _found(stats, heads, int(primary.prompt), int(primary.position), window, cosine)  # type: ignore[arg-type]
    table = pd.DataFrame(rows, columns=[c for c in _TYPES if c not in ("id", "token")])
    for at, (name, column) in enumerate({"id": "id", "token": "text"}.items()):
        table.insert(2 + at, name, _from_tokens(stats, table, column))
    n_layers = stats["resid_cos"].sizes["stream"] - 1
    massive = table["cos_trimmed"].to_numpy() < trimmed
    life, share = table["lifetime"].to_numpy(), table["relative_lifetime"].to_numpy()
    table["label_absolute"] = _labels(massive, life >= n_layers - absolute[1], life <= absolute[0])
    table["label_relative"] = _labels(
        massive, share >= relative[1], (share <= relative[0]) | (life < 2)
    )
    table = table.astype(_TYPES)
    table.attrs = {
        **primaries.attrs,
        "cosine": cosine,
        "trimmed": trimmed,
        "absolute": list(absolute),
        "relative": list(relative),
        "n_layers": n_layers,
    }
    return table


def _refuse_unknown(
    stats: HeadStats, candidates: Sequence[int], cosine: float, relative: tuple[float, float]
) -> None:
    known = stats["resid_cos"]["candidate"].to_numpy()
    beyond = [c for c in _positions(candidates) if c not in known]
    if beyond:
        raise WorkbenchError(
            f"candidates names position {beyond[0]}, but directions were captured of positions "
            f"{known.min()} to {known.max()} only; give some of these."
        )
    if not 0 < cosine < 1 or not 0 <= relative[0] < relative[1] <= 1:
        raise WorkbenchError(
            f"cosine={cosine}, relative={relative}: the cosine must lie between 0 and 1, the "
            "relative lifetimes rise within 0 to 1."
        )


def _labels(massive: np.ndarray, primary: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return np.select(
        [massive, primary, noise], ["massive only", "primary", "noise"], default="secondary"
    )


def _received(stats: HeadStats) -> xr.Dataset:
    """Attention a key receives, mean over heads, `score` and uniform `null`: [prompt, layer, key].

    Every layer of the stream has its place; those without attention are NaN.
    """
    score = stats["key_mean"].astype("float64")
    count = stats["key_count"].where(stats["key_count"] > 0)
    null = uniform.columns(stats, score.sizes["key"]) / count
    layers = np.arange(stats["resid_cos"].sizes["stream"] - 1)
    means = {"score": score.mean("head"), "null": null.mean("head")}
    return xr.Dataset(means).reindex(layer=layers).transpose("prompt", "layer", "key")


def _found(
    stats: HeadStats, heads: xr.Dataset, prompt: int, primary: int, window: range, cosine: float
) -> list[dict]:
    """The sinks of one prompt, without token and labels."""
    at = {"prompt": prompt, "candidate": primary}
    cos, trimmed = (
        stats[name].sel(at).transpose("stream", "query").to_numpy()[1:].astype("float64")
        for name in ("resid_cos", "resid_cos_trimmed")
    )
    norm = stats["resid_norm"].sel(prompt=prompt).transpose("stream", "query").to_numpy()[1:]
    score, null = (heads[name].sel(prompt=prompt).to_numpy() for name in ("score", "null"))
    alive = np.abs(cos) > cosine
    alive[:, : primary + 1] = False
    alive[: window.start] = alive[window.stop :] = False
    rows = []
    for position in np.flatnonzero(alive.any(axis=0)):
        life = np.flatnonzero(alive[:, position])
        start, end = int(life[0]), int(life[-1]) + 1
        # What layer l wrote is read by the attention of layer l + 1.
        read = life[life + 1 < len(score)] + 1
        rows.append(
            {
                "prompt": prompt,
                "position": int(position),
                "primary": primary,
                "l_start": start,
                "l_end": end,
                "lifetime": len(life),
                "contiguous": end - start == len(life),
                "relative_lifetime": len(life) / len(window),
                "cos": np.abs(cos[life, position]).max(),
                "cos_trimmed": abs(trimmed[start, position]),
                "norm_start": norm[start, position],
                "norm_max": norm[life, position].max(),
                "score": _mean(score[read, position]),
                "score_null": _mean(null[read, position]),
                "primary_score": _mean(score[read, primary]),
                "primary_null": _mean(null[read, primary]),
            }
        )
    return rows


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def sink_levels(sinks: pd.DataFrame) -> pd.DataFrame:
    """How many sinks share a level (l_start, lifetime): `l_start, lifetime, n, n_prompts`.

    The numbers behind figure 2 of Wong et al. 2025 (arXiv 2512.22213).  `sinks` is the table of
    `secondary_sinks`, or those of its rows that are meant.
    """
    levels = sinks.groupby(["l_start", "lifetime"], as_index=False)
    return levels.agg(n=("position", "size"), n_prompts=("prompt", "nunique"))


def same_token_control(
    stats: HeadStats, sinks: pd.DataFrame, *, candidates: Sequence[int] = (0,)
) -> pd.DataFrame:
    """Do other occurrences of a sink's token point along the primary sink as well?

    One row per row of `sinks` (of `secondary_sinks`, with the same `candidates`): `prompt,
    position, id, token, l_start`; `cos`, the sink's |cos| at l_start; `n_sinks`, occurrences of the
    id, in any prompt, that are in `sinks`; `n_others`, those behind a primary sink that are not;
    `cos_others, cos_others_max`, mean and largest |cos| of these with the primary sink of their
    prompt at l_start; `norm, norm_others`, L2 norm there.  NaN without others.  A token identity
    that decided alone would leave no others, or others with the same cosine.  Needs `resid_norm,
    resid_cos`.
    """
    primaries = primary_sink(stats, candidates)
    primary_of = dict(zip(primaries["prompt"], primaries["position"], strict=True))
    prompt, position, ids = (stats.tokens[c].to_numpy() for c in ("prompt", "position", "id"))
    first = np.array([primary_of.get(p, np.inf) for p in prompt])
    marked = set(zip(sinks["prompt"], sinks["position"], strict=True))
    is_sink = np.array([at in marked for at in zip(prompt, position, strict=True)])
    rows = []
    for at in np.flatnonzero(is_sink):
        own = (sinks["prompt"] == prompt[at]) & (sinks["position"] == position[at])
        sink = sinks.loc[own].iloc[0]
        # Positions without a token identity share the id -1.
        same = (ids == ids[at]) & (ids >= 0)
        others = np.flatnonzero(same & (position > first) & ~is_sink)
        here = np.array([at, *others])
        cos, norm = _at(stats, prompt[here], first[here], position[here], sink["l_start"])
        row = {name: sink[name] for name in ("prompt", "position", "id", "token", "l_start")}
        rows.append(
            {
                **row,
                "cos": cos[0],
                "n_sinks": int((same & is_sink).sum()),
                "n_others": len(others),
                "cos_others": _mean(cos[1:]),
                "cos_others_max": cos[1:].max() if len(others) else np.nan,
                "norm": norm[0],
                "norm_others": _mean(norm[1:]),
            }
        )
    columns = ["prompt", "position", "id", "token", "l_start", "cos", "n_sinks", "n_others",
               "cos_others", "cos_others_max", "norm", "norm_others"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _at(
    stats: HeadStats, prompt: np.ndarray, primary: np.ndarray, position: np.ndarray, layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """|cos| with the primary sink of their prompt, and norm, of some tokens behind one layer."""
    where = {"prompt": prompt, "query": position, "candidate": primary.astype(int)}
    named = {dim: xr.DataArray(values, dims="token") for dim, values in where.items()}
    cos = stats["resid_cos"].sel({"stream": layer + 1, **named})
    del named["candidate"]
    return np.abs(cos.to_numpy()), stats["resid_norm"].sel(
        {"stream": layer + 1, **named}
    ).to_numpy()


def primary_weakening(
    stats: HeadStats, sinks: pd.DataFrame, *, candidates: Sequence[int] = (0,)
) -> pd.DataFrame:
    """Attention to the primary sink layer by layer, beside that to the sinks alive there.

    Columns: `layer`; `score`, mean over prompts of the mean over heads and queries of A[q, p] for
    the primary sink p, `sd` over the `n` prompts, `null` under uniform attention; `n_sinks`, rows
    of `sinks` whose state this layer's attention reads (l_start < layer <= l_end), `sinks` their
    mean score and `sinks_null`.  Wong et al. 2025 (arXiv 2512.22213): the primary sink weakens
    where secondary sinks live.  Give the rows of `secondary_sinks` that are meant.  Needs
    `resid_norm, resid_cos, key_mean, key_count, n_visible`.
    """
    primaries, received = primary_sink(stats, candidates), _received(stats)
    score, null = (received[name].to_numpy() for name in ("score", "null"))
    row_of = {int(p): i for i, p in enumerate(received["prompt"].to_numpy())}
    l_start, l_end = sinks["l_start"].to_numpy(), sinks["l_end"].to_numpy()
    # Index (prompt, layer, key) of the primary sinks, and of the sinks given.
    (rows1, keys1), (rows2, keys2) = (
        (np.array([row_of[p] for p in t["prompt"]], int), t["position"].to_numpy(int))
        for t in (primaries, sinks)
    )
    rows = []
    for layer in range(score.shape[1]):
        alive = (l_start < layer) & (layer <= l_end)
        mine, theirs = (rows1, layer, keys1), (rows2[alive], layer, keys2[alive])
        known = score[mine][np.isfinite(score[mine])]
        rows.append(
            {
                "layer": layer,
                "score": _mean(known),
                "sd": known.std(ddof=1) if len(known) > 1 else np.nan,
                "n": len(known),
                "null": _mean(null[mine]),
                "n_sinks": int(alive.sum()),
                "sinks": _mean(score[theirs]),
                "sinks_null": _mean(null[theirs]),
            }
        )
    return pd.DataFrame(rows)
