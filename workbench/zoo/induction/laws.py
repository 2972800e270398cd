"""Statistics of the laws: when a run changes, what its heads do, what removing them does.

A half-time is the step at which a logged number has come half the way from its start to its end,
between logged steps by a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from workbench.zoo.claims import last
from workbench.zoo.induction.measure import EARLY

OLSSON = "Olsson et al. 2022, arXiv 2209.11895"
WINDOW = 0.2  # share of the steps in which most of the change must lie

Run = xr.Dataset


@dataclass(frozen=True, eq=False)
class Evidence:
    """`runs` by setting; `icl` by run and what was removed from it ("nothing", "induction heads",
    "previous-token head", "other head"), in nats, from interventions on the exported models."""

    runs: Mapping[str, Sequence[Run]]
    icl: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def of(self, *settings: str) -> list[Run]:
        """Runs of these settings, in order; settings that were not made are left out."""
        return [run for setting in settings for run in self.runs.get(setting, ())]

    def left(self, removed: str) -> list[float]:
        """What is left of learning in context without these heads, as a share, run by run."""
        return [of[removed] / of["nothing"] for of in self.icl.values()]


def prefix(run: Run) -> np.ndarray:
    """Prefix-matching score of the best head by step; the best at the end, in the last layer."""
    return _best(run["prefix"].isel(layer=-1))


def previous(run: Run) -> np.ndarray:
    """Previous-token score of the first layer's best head by step; the best at the end."""
    return _best(run["previous"].isel(layer=0))


def _best(scores: xr.DataArray) -> np.ndarray:
    found = scores.transpose("step", "head").to_numpy().astype(float)
    return found[:, found[-1].argmax()]


def early_loss(run: Run) -> np.ndarray:
    """Loss early in the text by step: what the chain gives before there is any context."""
    return run["loss_at"].isel(position=EARLY).mean("position").to_numpy().astype(float)


def icl(run: Run) -> np.ndarray:
    """Score of learning in context by step, nats."""
    return run["icl"].to_numpy().astype(float)


def half_time(run: Run, values: np.ndarray) -> float:
    """The step at which the values have come half their way; NaN where they went nowhere.

    >>> run = xr.Dataset(coords={"step": [0, 10, 20]})
    >>> half_time(run, np.array([0.0, 1.0, 3.0]))
    12.5
    """
    if values[-1] == values[0]:
        return float("nan")
    steps, way = run["step"].to_numpy(), (values - values[0]) / (values[-1] - values[0])
    after = int(np.argmax(way >= 0.5))
    share = (0.5 - way[after - 1]) / (way[after] - way[after - 1])
    return float(steps[after - 1] + share * (steps[after] - steps[after - 1]))


def apart(run: Run, one: np.ndarray, other: np.ndarray) -> float:
    """Half-times of two numbers: the later over the earlier."""
    times = sorted((half_time(run, one), half_time(run, other)))
    return times[1] / times[0]


def window_gain(run: Run) -> float:
    """Largest fall of the ICL score between logged steps `WINDOW` of all steps apart, nats."""
    values, steps = icl(run), run["step"].to_numpy()
    width = int(np.searchsorted(steps, WINDOW * steps[-1]))
    return float((values[:-width] - values[width:]).max())


def best_pair(run: Run, name: str) -> np.ndarray:
    """`matching` or `composition` of the best two heads by step: best prefix, best previous."""
    later = int(run["prefix"].isel(layer=-1, step=-1).to_numpy().argmax())
    earlier = int(run["previous"].isel(layer=0, step=-1).to_numpy().argmax())
    return run[name].isel(later_head=later, earlier_head=earlier).to_numpy().astype(float)


def copying(run: Run) -> np.ndarray:
    """Copying score of the head that matches best, by step."""
    head = int(run["prefix"].isel(layer=-1, step=-1).to_numpy().argmax())
    return run["copying"].isel(layer=-1, head=head).to_numpy().astype(float)


def plateau(run: Run, reference: Run) -> float:
    """Excess loss half-way to the change by that of the reference at the same step."""
    step = half_time(run, prefix(run)) / 2
    values = [float(one["excess"].interp(step=step)) for one in (run, reference)]
    return values[0] / values[1]


def ending(run: Run, reference: Run) -> float:
    """Excess loss at the end by that of the reference."""
    return last(run, "excess") / last(reference, "excess")
