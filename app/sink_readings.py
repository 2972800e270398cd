"""What the Sinks page shows, as tables: pure functions of `HeadStats` and of probes' tables.

A sink here is one key position: position 0 of every prompt, or a position of one prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr

from workbench.app.readings import show_token
from workbench.probes import uniform
from workbench.probes.sinks import MIN_QUERIES
from workbench.schema import KEY, SCHEMA
from workbench.stats import HeadStats

# A list of more rows helps nobody; the file has them all.
MOST_ROWS = 500


@dataclass(frozen=True)
class Place:
    """The key that is called the sink: `position`, in one `prompt` or, with None, in all."""

    position: int = 0
    prompt: int | None = None

    def of(self, stats: HeadStats) -> HeadStats:
        """The prompts in which it lies."""
        return stats if self.prompt is None else stats.prompt(self.prompt)


def without_columns(stats: HeadStats, hidden: Mapping[int, Sequence[int]]) -> HeadStats:
    """The same statistics with the column statistics of some keys (prompt -> positions) set to NaN.

    What is left is not renormalised: the weights are those the heads gave.
    """
    names = [n for n in stats.data.data_vars if SCHEMA[str(n)].dims == KEY]
    if not names:
        return stats
    keys = stats.data[names[0]]["key"]
    seen = np.ones((stats.data.sizes["prompt"], len(keys)), bool)
    for row, prompt in enumerate(stats.data["prompt"].to_numpy()):
        seen[row] = ~np.isin(np.arange(len(keys)), list(hidden.get(int(prompt), ())))
    keep = xr.DataArray(
        seen, dims=("prompt", "key"), coords={"prompt": stats.data["prompt"], "key": keys}
    )
    changed = {name: stats.data[name].where(keep) for name in names}
    return replace(stats, data=stats.data.assign(changed), arrays={})


def hidden_share(stats: HeadStats, hidden: Mapping[int, Sequence[int]]) -> float:
    """Share of all attention that lies on some keys (prompt -> positions); 0..1."""
    mass = stats["key_mass"].sum(("layer", "head"))
    wanted = [mass.sel(prompt=p, key=list(keys)).sum() for p, keys in hidden.items()]
    return float(sum(wanted) / mass.sum())


def received(stats: HeadStats, prompt: int, layer: int | None = None) -> pd.DataFrame:
    """Attention every position of a prompt receives: mean over heads of `key_mean`.

    Columns: position, received and uniform (probability, mean over the queries that see the key),
    queries (that see it, most of any head), few (fewer than `MIN_QUERIES`: a mean over so few is
    large by arithmetic alone).  Of one layer or of all.
    """
    one = stats.prompt(prompt)
    count = one["key_count"].astype("float64")
    control = uniform.columns(one, count.sizes["key"]) / count.where(count > 0)
    parts = xr.Dataset({"received": one["key_mean"], "uniform": control, "queries": count})
    if layer is not None:
        parts = parts.sel(layer=[layer])
    heads = ("prompt", "layer", "head")
    queries = parts["queries"].max(heads).fillna(0).to_numpy()
    return pd.DataFrame(
        {
            "position": np.arange(len(queries)),
            "received": parts["received"].mean(heads).to_numpy(),
            "uniform": parts["uniform"].mean(heads).to_numpy(),
            "queries": queries.astype(np.int64),
            "few": queries < MIN_QUERIES,
        }
    )


def norms(stats: HeadStats, place: Place) -> pd.DataFrame:
    """Norm of the residual stream at the sink and at the others, per level.

    Columns: stream, sink, others (means over prompts), low and high (5 and 95 per cent of the
    others); L2 norm.  Needs `resid_norm`.
    """
    norm = place.of(stats)["resid_norm"].astype("float64")
    at = norm["query"] == place.position
    others = norm.where(~at)
    ends = others.quantile([0.05, 0.95], ("prompt", "query"))
    return pd.DataFrame(
        {
            "stream": norm["stream"].to_numpy(),
            "sink": norm.where(at).mean(("query", "prompt")).to_numpy(),
            "others": others.mean("query").mean("prompt").to_numpy(),
            "low": ends.isel(quantile=0).to_numpy(),
            "high": ends.isel(quantile=1).to_numpy(),
        }
    )


def values(stats: HeadStats, place: Place) -> pd.DataFrame:
    """Norm of the value at the sink and at the others, per layer: means over heads and prompts.

    Columns: layer, sink, others; L2 norm of W_O v.  Needs `vo_norm`.
    """
    norm = place.of(stats)["vo_norm"].astype("float64")
    at = norm["key"] == place.position
    table = pd.DataFrame(
        {
            "layer": norm["layer"].to_numpy(),
            "sink": norm.where(at).mean(("key", "head", "prompt")).to_numpy(),
            "others": norm.where(~at).mean("key").mean(("head", "prompt")).to_numpy(),
        }
    )
    return table.dropna(ignore_index=True)


def listed(sinks: pd.DataFrame, secondary: pd.DataFrame | None) -> pd.DataFrame:
    """The list of sinks with the level of each: where it becomes one, and for how many layers.

    `sinks` is the table of `sink_positions`, `secondary` that of `secondary_sinks` or None; added
    columns: shown (token with whitespace visible), l_start, lifetime, label ("" where the stream of
    the token never points where that of the first sink does).
    """
    table = sinks.assign(shown=[show_token(str(t)) for t in sinks["token"]])
    if secondary is None or secondary.empty:
        return table.assign(l_start=np.nan, lifetime=np.nan, label="")
    level = secondary.rename(columns={"label_relative": "label"})
    level = level.loc[:, ["prompt", "position", "l_start", "lifetime", "label"]]
    table = table.merge(level, on=["prompt", "position"], how="left")
    return table.assign(label=table["label"].fillna(""))


def largest_cosine(stats: HeadStats) -> tuple[float, int, int, int]:
    """The largest |cos| of any later token with the first one: (value, prompt, position, stream).

    The embedding is left out.  NaN where no prompt has a later token.  Needs `resid_cos`.
    """
    cos = abs(stats["resid_cos"].sel(candidate=0, drop=True))
    cos = cos.where((cos["query"] > 0) & (cos["stream"] > 0)).transpose("prompt", "query", "stream")
    flat = cos.fillna(-1).to_numpy()
    at = np.unravel_index(int(flat.argmax()), flat.shape)
    if flat[at] < 0:
        return float("nan"), 0, 0, 0
    where = (int(cos[dim].to_numpy()[i]) for dim, i in zip(cos.dims, at, strict=True))
    return (float(flat[at]), *where)  # type: ignore[return-value]


def name_sinks(table: pd.DataFrame, tokens: pd.DataFrame) -> pd.DataFrame:
    """Sink tokens of single prompts joined by token and place: first, last, or the position itself.

    Columns: token, place, prompts, heads (largest), share and null (means over prompts), by share.
    """
    ordered = tokens.sort_values("position")
    # The last position of a prompt overwrites the earlier ones.
    last = dict(zip(ordered["prompt"], ordered["position"], strict=True))
    ends = np.array([last[prompt] for prompt in table["prompt"]], dtype=np.int64)
    place = np.where(
        table["position"] == 0,
        "first",
        np.where(table["position"] == ends, "last", table["position"].astype(str)),
    )
    shown = [show_token(str(t)) for t in table["token"]]
    grouped = table.assign(place=place, token=shown).groupby(["token", "place"], sort=False)
    named = grouped.agg(
        prompts=("prompt", "nunique"), heads=("n_heads", "max"), share=("share", "mean"),
        null=("null_share", "mean"),
    ).reset_index()  # fmt: skip
    named["weight"] = named["share"] * named["prompts"]
    return named.sort_values("weight", ascending=False, ignore_index=True).drop(columns="weight")


def share_by_layer(stats: HeadStats, position: int = 0) -> pd.DataFrame:
    """Share of a layer's attention on one position, all prompts: layer, share and uniform."""
    mass = stats["key_mass"].astype("float64")
    control = uniform.columns(stats, mass.sizes["key"]).where(mass.notnull())
    heads, at = ("prompt", "head"), {"key": position}
    columns = {
        name: (m.isel(at).sum(heads) / m.sum((*heads, "key"))).to_numpy()
        for name, m in (("share", mass), ("uniform", control))
    }
    return pd.DataFrame({"layer": mass["layer"].to_numpy(), **columns}).dropna(ignore_index=True)


def on_key(stats: HeadStats, position: int) -> pd.DataFrame:
    """Attention one key receives, by layer: `key_mean`, mean over heads and prompts; 0..1.

    Columns: layer, share, uniform.  A key that no query may look at receives 0.
    """
    count = stats["key_count"].astype("float64")
    control = uniform.columns(stats, count.sizes["key"]) / count.where(count > 0)
    heads, at = ("prompt", "head"), {"key": position}
    here = (a.isel(at).mean(heads) for a in (stats["key_mean"].astype("float64"), control))
    share, even = (values.fillna(0).to_numpy() for values in here)
    layers = [site.layer for site in stats.spec.of(stats.kind)]
    table = pd.DataFrame({"layer": stats["key_mean"]["layer"], "share": share, "uniform": even})
    return table.loc[table["layer"].isin(layers)].reset_index(drop=True)
