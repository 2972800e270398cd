"""Which metrics of the Atlas can be had without position 0, from what a run holds?

Row statistics do not know the weights of a row, except the one on the first key, `first_mass` = p.
Taking that key out of the softmax divides every other weight by 1 - p, so that for a row

    entropy      (H + p log p) / (1 - p) + S log(1 - p),   S = sum of the other weights / (1 - p)
    distance     (D - p q) / (1 - p),    distance_sq  (D2 - p q^2) / (1 - p)
    self_mass, prev_mass    divided by 1 - p, without the query whose own or previous key it is

are exact, and the probes that read these are asked again.  Everything else stays as captured: a
sink elsewhere, a largest weight or the mass of a role cannot be taken out of a row.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.probes import find
from workbench.stats import HeadStats

MASKABLE = (
    "pattern_entropy",
    "qk_distance",
    "qk_distance_variance",
    "self_attention_score",
    "prev_token_score",
)
# What these measure is the sink itself.
_ABOUT_SINKS = ("sink_mass", "first_token_sink_rate", "dormant_score_mass", "first_mass")
# Below this the rest of a row is rounding; such rows are left out.
_LEAST_REST = 1e-3


def without_first(stats: HeadStats) -> HeadStats:
    """Row statistics of the heads as if nobody could look at position 0, the rest renormalised.

    Holds those of entropy, self_mass, prev_mass, distance and distance_sq that `stats` holds, and
    `n_visible` without that key.  Rows with more than 0.999 on position 0 are NaN.
    """
    first = stats["first_mass"].astype("float64")
    rest = (1 - first).where(first < 1 - _LEAST_REST)
    query = first["query"]
    null = stats["null_mass"].astype("float64").fillna(0) if "null_mass" in stats else 0.0
    changed: dict[str, xr.DataArray] = {"n_visible": _visible(stats).where(rest.notnull())}
    if "entropy" in stats:
        own = first * np.log(first.where(first > 0, 1.0))
        kept = (1 - null - first) / rest
        entropy = (stats["entropy"] + own) / rest + kept * np.log(rest)
        changed["entropy"] = entropy.clip(min=0)
    for name, power in (("distance", 1), ("distance_sq", 2)):
        if name in stats:
            changed[name] = ((stats[name] - first * query**power) / rest).clip(min=0)
    for name, excluded in (("self_mass", 0), ("prev_mass", 1)):
        if name in stats:
            changed[name] = (stats[name] / rest).where(query != excluded).clip(max=1)
    order = first.dims
    data = xr.Dataset({name: value.transpose(*order) for name, value in changed.items()})
    return replace(stats, data=data, arrays={})


def _visible(stats: HeadStats) -> xr.DataArray:
    """`n_visible` less one where the query sees position 0; of causal rows those that see all."""
    n = stats["n_visible"].astype("float64")
    sees = n == n["query"] + 1 if _causal(stats) else n >= stats.lengths
    return n - sees


def _causal(stats: HeadStats) -> bool:
    return all(site.causal for site in stats.spec.of(stats.kind))


def masked_table(stats: HeadStats, name: str) -> pd.DataFrame | None:
    """The table of a probe without position 0, or None where it cannot be had exactly.

    The control of heads that look both ways is NaN: which keys are left is not in `n_visible`.
    """
    probe = find(name) if name in MASKABLE else None
    if probe is None or "first_mass" not in stats:
        return None
    try:
        table = probe(without_first(stats))
    except WorkbenchError:
        # A statistic that was not captured; the metric itself came from the stored table.
        return None
    return table if _causal(stats) else table.assign(null=np.nan)


def about_mask(name: str, masked: bool) -> str:
    """One sentence: what the mask does to this metric on the Atlas."""
    if masked:
        return (
            f"Sinks masked: {name} without position 0, the other weights renormalised; exact, from "
            "first_mass. Sinks elsewhere cannot be taken out of row statistics."
        )
    if name in _ABOUT_SINKS:
        return f"Sinks masked: {name} measures the sink itself and is shown as captured."
    return (
        f"Sinks masked: {name} cannot be recomputed without the sink from what the run holds and "
        "is shown as captured."
    )
