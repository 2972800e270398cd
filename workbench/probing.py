"""A probe: a plain function from `HeadStats` to a table with one row per head, and what it
declares.

The decorator attaches a `ProbeInfo` and registers the function by name; it changes nothing else.
The table always has the columns `layer, head, label, value, sd, n, null`: `sd` is the spread over
prompts, `n` what was averaged (said in `info.counts`), `null` the value of a stated control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.stats import HeadStats

COLUMNS = ("layer", "head", "label", "value", "sd", "n", "null")


@dataclass(frozen=True)
class ProbeInfo:
    """What a probe declares: the question, needed statistics, unit, bounds, null, source.

    `direction` is the end of the scale where the effect lies, "high" or "low".
    """

    name: str
    question: str
    needs: tuple[str, ...]
    units: str
    low: float
    high: float
    counts: str
    null: str
    paper: str
    direction: str = "high"


Probe = Callable[..., pd.DataFrame]
PROBES: dict[str, Probe] = {}


def probe(
    *,
    question: str,
    needs: tuple[str, ...],
    units: str,
    bounds: tuple[float, float],
    counts: str,
    null: str,
    paper: str,
    direction: str = "high",
) -> Callable[[Probe], Probe]:
    """Declare a function of `HeadStats` as a probe; its name is the function's."""
    if direction not in ("high", "low"):
        raise WorkbenchError(f"direction={direction!r}: a probe's effect is at 'high' or at 'low'.")

    def declare(function: Probe) -> Probe:
        name = function.__name__
        if name in PROBES and PROBES[name].__module__ != function.__module__:
            raise WorkbenchError(f"two probes are called {name!r}; give one of them another name.")
        function.info = ProbeInfo(  # type: ignore[attr-defined]
            name, question, needs, units, *bounds, counts, null, paper, direction
        )
        PROBES[name] = function
        return function

    return declare


def head_table(
    stats: HeadStats, value: xr.DataArray, sd: xr.DataArray, n: xr.DataArray, null: xr.DataArray
) -> pd.DataFrame:
    """One row per head of the model from four arrays with dims (layer, head).

    Heads of layers that were not captured get NaN and n = 0.
    """
    heads = stats.heads()
    table = pd.DataFrame([(h.layer, h.head, str(h)) for h in heads], columns=list(COLUMNS[:3]))
    layer, head = table["layer"].to_numpy(), table["head"].to_numpy()
    everything = {"layer": np.arange(layer.max() + 1), "head": np.arange(head.max() + 1)}
    for name, array in zip(COLUMNS[3:], (value, sd, n, null), strict=True):
        full = array.transpose("layer", "head").reindex(everything)
        table[name] = full.to_numpy()[layer, head].astype("float64")
    table["n"] = table["n"].fillna(0).astype("int64")
    return table


def pooled(per_prompt: xr.DataArray, weight: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Weighted mean over prompts and the spread (sd, ddof 1) of the per-prompt values.

    `per_prompt` has dims (prompt, layer, head), `weight` (prompt) or the same; prompts with NaN or
    zero weight do not count; one prompt gives sd NaN.
    """
    weight = weight.broadcast_like(per_prompt).where(per_prompt.notnull(), 0.0)
    total = weight.sum("prompt")
    mean = (per_prompt.fillna(0.0) * weight).sum("prompt") / total.where(total > 0)
    counted = per_prompt.where(weight > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        n = counted.notnull().sum("prompt")
        squares = ((counted - counted.mean("prompt")) ** 2).sum("prompt")
        sd = (squares / (n - 1).where(n > 1)) ** 0.5
    return mean, sd
