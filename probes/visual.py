"""Which image tokens are sinks of a language model, and which patches of a vision tower outliers?

Sink tokens carry massive activations in a few dimensions of the residual stream (Sun et al. 2024,
arXiv 2402.17762).  Kang et al. 2025 (arXiv 2503.03321, section 3) call x, the input of a layer, a
sink where phi(x) = max_{d in D} |x_d| / RMS(x) > 20, and a visual one if it stands for a piece of
the image.  The dimensions D differ from model to model, so they are searched for, never assumed,
and phi is at most the square root of the width: a stream of 400 dimensions never exceeds 20.
Darcet et al. 2023 (arXiv 2309.16588) find the same tokens in vision towers by their norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import median_abs_deviation, norm

from workbench.errors import WorkbenchError
from workbench.probes.residual import gaussian_ratio, level_name, rule_met
from workbench.stats import HeadStats

# Streams of random models are mixtures of scales: their largest activation over their median
# reaches 3.2 times that of independent normal numbers (`workbench.families`, three seeds each).
NULL_MARGIN = 4.0
_TOKEN = ["prompt", "position"]


def find_sink_dims(
    stats: HeadStats,
    *,
    absolute: float = 100.0,
    ratio: float = 1000.0,
    share: float = 0.25,
    most: int = 3,
) -> pd.DataFrame:
    """The dimensions in which tokens carry massive activations, the clearest first.

    One row per dimension among the three of largest activation of any level (a prompt's stream
    after a layer): `dim`; where it stands out most, `value` (signed), `median` |h| of the level,
    `ratio` (Psi = |value| / median), `null_ratio` (that of independent normal numbers, as in
    `massive_activations`), `rule` met there, `prompt, stream, position, token, role`; `share` of
    the `n` levels in which the dimension is among the three, `share_fired` in which both rules
    hold: |value| > `absolute` and Psi > `ratio` (Sun et al. 2024, arXiv 2402.17762, section 2),
    and Psi > 4 null_ratio, for thresholds lowered to where chance reaches them; `n_positions` it
    was seen at.

    `attrs["sink_dims"]`: at most `most` dimensions whose share_fired is at least `share`, for
    `wb.Parameters(sink_dims=...)`; empty where there are none, as in a random model.  The absolute
    rule presumes the scale of a language model's stream: pass absolute=0 for normalised ones.
    Needs `resid_median, resid_top_value, resid_top_dim, resid_top_position`.
    """
    levels: Any = _levels(stats)
    levels["fired"] = (
        (levels["size"] > absolute)
        & (levels["ratio"] > ratio)
        & (levels["ratio"] > NULL_MARGIN * levels["null_ratio"])
    )
    n = len(levels[["prompt", "stream"]].drop_duplicates())
    clearest = levels.sort_values("ratio", ascending=False).drop_duplicates("dim").set_index("dim")
    by_dim = levels.groupby("dim").agg(
        share=("fired", "size"), share_fired=("fired", "sum"), n_positions=("position", "nunique")
    )
    by_dim[["share", "share_fired"]] /= n
    clearest = clearest.join(by_dim).assign(n=n)
    clearest["rule"] = [
        rule_met(bool(size > absolute), bool(psi > ratio), absolute, ratio)
        for size, psi in zip(clearest["size"], clearest["ratio"], strict=True)
    ]
    table = clearest.reset_index().merge(stats.tokens, on=_TOKEN, how="left")
    table = table.rename(columns={"text": "token"})
    order = [
        "dim", "value", "median", "ratio", "null_ratio", "rule", "share", "share_fired",
        "n_positions", "n", "prompt", "stream", "position", "token", "role",
    ]  # fmt: skip
    table = table.loc[:, order].sort_values(
        ["share_fired", "ratio"], ascending=False, ignore_index=True
    )
    fired = table[(table["share_fired"] >= share) & (table["share_fired"] > 0)]
    chosen = tuple(int(dim) for dim in fired["dim"].head(most))
    table.attrs.update(sink_dims=chosen, absolute=absolute, ratio=ratio, min_share=share)
    return table


def _levels(stats: HeadStats) -> pd.DataFrame:
    """One row per prompt, level and dimension among the level's largest activations."""
    names = {name: f"resid_top_{name}" for name in ("value", "dim", "position")}
    tops = xr.Dataset({name: stats[top].astype("float64") for name, top in names.items()})
    median = stats["resid_median"].astype("float64")
    tops["median"] = median.where(median > 0)
    found: Any = tops.to_dataframe().reset_index().dropna(subset=["value", "median"])
    if found.empty:
        raise WorkbenchError(
            "the residual statistics hold no numbers; capture again with group 'residual'."
        )
    found = found.astype({"dim": "int64", "position": "int64"})
    found["size"] = found["value"].abs()
    found["ratio"] = found["size"] / found["median"]
    null = {prompt: gaussian_ratio(stats, prompt) for prompt in found["prompt"].unique()}
    found["null_ratio"] = found["prompt"].map(null)
    return found


def check_sink_dims(stats: HeadStats, dims: Iterable[int], **thresholds: float) -> pd.DataFrame:
    """Whether dimensions named elsewhere (by a paper, for another size) are sinks in this model.

    One row per dimension of `dims`, in their order: `dim, confirmed, says` (one sentence) and the
    numbers of `find_sink_dims`, whose `thresholds` may be given; NaN for a dimension that is never
    among the three largest.  `attrs`: `confirmed` (all of them), `sink_dims` (those searched).
    Raises `WorkbenchError` for what is no list of dimensions.
    """
    given: list[Any] = [dims] if isinstance(dims, (Integral, str)) else list(dims)
    wrong = [d for d in given if not isinstance(d, Integral) or isinstance(d, bool) or d < 0]
    if wrong or not given:
        raise WorkbenchError(
            f"dims={given!r} is no list of dimensions of the residual stream; give some, such as "
            "(1415, 2533)."
        )
    found = find_sink_dims(stats, **thresholds)  # type: ignore[arg-type]
    chosen, n = found.attrs["sink_dims"], int(found["n"].iloc[0])
    rows: Any = pd.DataFrame({"dim": given}).merge(found, on="dim", how="left")
    rows.insert(1, "confirmed", rows["dim"].isin(chosen))
    rows.insert(2, "says", [_verdict(row, chosen, n) for _, row in rows.iterrows()])
    rows.attrs.update(confirmed=bool(rows["confirmed"].all()), sink_dims=chosen)
    return rows


def _verdict(row: Any, chosen: tuple[int, ...], n: int) -> str:
    instead = f"the search finds {chosen}" if chosen else "the search finds none"
    if not np.isfinite(row["ratio"]):
        return (
            f"refused: dimension {row['dim']} is never among the three largest activations of {n} "
            f"levels; {instead}."
        )
    numbers = (
        f"|h| = {abs(row['value']):.4g}, {row['ratio']:.4g} times the median (chance: "
        f"{row['null_ratio']:.2g}), massive in {row['share_fired']:.0%} of {n} levels"
    )
    if row["confirmed"]:
        return f"confirmed: {numbers}."
    return f"refused: {numbers}; {instead}."


def visual_sinks(stats: HeadStats, *, tau: float = 20.0, first_layer: int = 2) -> pd.DataFrame:
    """Sink tokens of every layer, those of the image and those of the text.

    One row per (prompt, layer, token) with phi > `tau` at the input of the layer (stream `layer`),
    layers from `first_layer` on: the paper computes none for the first two, and the set once, for
    the prompt, without generated tokens (Kang et al. 2025, arXiv 2503.03321).  Columns: `prompt,
    layer, position, sink` ("visual" where the role is image, else "text"), `role, token, image_row,
    image_col, phi` and `psi`, max |h| / median |h| of that level, which is about 5 without massive
    activations and above 1000 with them.

    `attrs`: `tau, first_layer, dims` (of phi); `share`, flagged image tokens over all in these
    layers, `layer_share` of every layer (NaN without image tokens), and `caution`, a sentence where
    a layer's share is above one half: phi then says little about a token, look at psi and at the
    attention it receives.  Needs `resid_phi` (captured with `wb.Parameters(sink_dims=...)`),
    `resid_median, resid_top_value`.
    """
    n_layers = stats.spec.n_layers(stats.kind)
    if not 0 <= first_layer < n_layers:
        raise WorkbenchError(
            f"first_layer={first_layer} leaves no layer of {n_layers}; give 0 to {n_layers - 1}."
        )
    top, median = stats["resid_top_value"], stats["resid_median"].astype("float64")
    psi = abs(top.astype("float64")).isel(rank=0) / median.where(median > 0)
    phi = stats["resid_phi"].astype("float64")
    levels = xr.Dataset({"phi": phi, "psi": psi}).sel(stream=slice(first_layer, n_layers - 1))
    table: Any = levels.to_dataframe().reset_index().dropna(subset="phi")
    table = table.rename(columns={"stream": "layer", "query": "position"})
    table = table.merge(stats.tokens, on=_TOKEN, how="left").rename(columns={"text": "token"})
    table = table[table["role"] != "generated"].reset_index(drop=True)
    table["sink"] = np.where(table["role"] == "image", "visual", "text")
    flagged = table["phi"] > tau
    visual = table["sink"] == "visual"
    shares = flagged[visual].groupby(table["layer"]).mean()
    layer_share = {
        layer: float(shares.get(layer, np.nan)) for layer in range(first_layer, n_layers)
    }
    order = [
        "prompt", "layer", "position", "sink", "role", "token", "image_row", "image_col", "phi",
        "psi",
    ]  # fmt: skip
    found = table.loc[flagged, order].sort_values(["prompt", "layer", "position"])
    found = found.reset_index(drop=True)
    found.attrs.update(
        tau=tau,
        first_layer=first_layer,
        dims=_dims_of(stats),
        share=float(flagged[visual].mean()) if visual.any() else float("nan"),
        layer_share=layer_share,
        caution=_caution(layer_share),
    )
    return found


def _dims_of(stats: HeadStats) -> tuple[int, ...]:
    """The dimensions `resid_phi` was captured with."""
    parameters = stats.provenance.settings.get("parameters") or {}
    return tuple(parameters.get("sink_dims", ()))


def _caution(layer_share: dict[int, float]) -> str:
    wide = {layer: share for layer, share in layer_share.items() if share > 0.5}
    if not wide:
        return ""
    layer = max(wide, key=lambda at: wide[at])
    return (
        f"phi flags more than half of the image tokens in {len(wide)} layers, {wide[layer]:.0%} in "
        f"layer {layer}: these are not a few sinks; check the dimensions with check_sink_dims and "
        "look at psi and at the attention received."
    )


def register_outliers(stats: HeadStats, *, threshold: float | str = 150.0) -> pd.DataFrame:
    """Tokens of a vision tower whose norm stands out: patches used as registers, or registers.

    One row per (prompt, stream, token) with ||h|| > `threshold`, or, for "3sd", above the mean by
    three standard deviations of the patches of that level: `prompt, stream, level, position, role`
    (image for patches, special for class and register tokens), `image_row, image_col, norm`,
    `threshold`.  Darcet et al. 2023 (arXiv 2309.16588) use 150 for DINOv2, where 2.37 % of the
    patches lie above; the scale differs between models, which "3sd" (Jiang et al. 2025, arXiv
    2506.08010) does not mind.  With registers the large norms move from patches to special tokens.

    `attrs`, each by stream: `share` of patches above, `null_share` (a normal distribution with the
    median and the median absolute deviation of the same norms), `patch_norm` (median),
    `special_norm` (largest of the special tokens, NaN without any), `thresholds`; and `n_patches`
    per level.  Needs `resid_norm`.  Raises `WorkbenchError` where there are no image patches, or
    too few for "3sd".
    """
    values = stats["resid_norm"].astype("float64").rename("norm")
    table: Any = values.to_dataframe().reset_index().dropna(subset="norm")
    table = table.rename(columns={"query": "position"}).merge(stats.tokens, on=_TOKEN, how="left")
    patches = table[table["role"] == "image"]
    if patches.empty:
        raise WorkbenchError(
            f"the {stats.kind} tower has no image patches here; capture with kind='vision'."
        )
    norms = {int(s): own["norm"].to_numpy() for s, own in patches.groupby("stream")}
    cut = {s: _cut(own, threshold) for s, own in norms.items()}
    table["threshold"] = table["stream"].map(cut)
    special = table[table["role"] == "special"].groupby("stream")["norm"].max()
    found = table[table["norm"] > table["threshold"]].copy()
    found["level"] = [level_name(s) for s in found["stream"]]
    order = [
        "prompt", "stream", "level", "position", "role", "image_row", "image_col", "norm",
        "threshold",
    ]  # fmt: skip
    found = found.loc[:, order].sort_values(["prompt", "stream", "position"], ignore_index=True)
    found.attrs.update(
        share={s: float((own > cut[s]).mean()) for s, own in norms.items()},
        null_share={s: _normal_share(own, cut[s]) for s, own in norms.items()},
        patch_norm={s: float(np.median(own)) for s, own in norms.items()},
        special_norm={s: float(special.get(s, np.nan)) for s in norms},
        thresholds=cut,
        n_patches=min(map(len, norms.values())),
    )
    return found


def _cut(norms: np.ndarray, threshold: float | str) -> float:
    if threshold != "3sd":
        if not isinstance(threshold, (int, float)):
            raise WorkbenchError(f"threshold={threshold!r} is neither a norm nor '3sd'.")
        return float(threshold)
    # One of n numbers lies at most sqrt(n - 1) standard deviations above their mean.
    if len(norms) < 11:
        raise WorkbenchError(
            f"threshold='3sd' cannot be exceeded by any of {len(norms)} patches; capture 11 or "
            "more, or give a norm."
        )
    return float(norms.mean() + 3 * norms.std())


def _normal_share(norms: np.ndarray, cut: float) -> float:
    # Of a normal distribution the median absolute deviation is this part of the sd.
    spread = float(median_abs_deviation(norms)) / norm.ppf(0.75)
    return float(norm.sf((cut - np.median(norms)) / spread)) if spread else 0.0
