"""The statistics of the laboratory's laws, as numbers of single runs.

B(t) = integral of dz_top / f_top^2, f = c / ||c||, is the time of the theory: every distinct token
grows by f_l^2 dB (Tian et al. 2023, arXiv 2305.16380, section 5).  It is integrated over the logged
steps by trapezoids in z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import xarray as xr
from scipy.integrate import cumulative_trapezoid

from workbench.zoo.claims import by_setting, last
from workbench.zoo.scansnap.recipe import (
    RATIOS,
    SAMPLED_RATES,
    SAMPLED_RATIOS,
    TASK,
    sampled_name,
)
from workbench.zoo.trajectory import Results

TIAN = "Tian et al. 2023, arXiv 2305.16380"
# What the paper proves for nearly orthogonal classes (many tokens, few classes), read off them.
BEYOND = "Tian et al. 2023, beyond their assumptions"
STABLE, BROKEN = (
    6.0,
    15.0,
)  # rates of the decoder up to which momentum .9 keeps the order; breaks it
BEFORE = 10  # steps: before the snap
NEAR = 0.2  # attention logit of the most frequent token up to which attention is near its start
FLOW, WIDE = (tuple(f"{form}-{ratio:g}" for ratio in RATIOS) for form in ("ratio", "wide"))

Run = xr.Dataset


@dataclass(frozen=True, eq=False)
class Evidence:
    """Trajectories of single runs by setting; runs of a setting differ by their seed."""

    runs: Mapping[str, Sequence[Run]]

    def of(self, *settings: str) -> list[Run]:
        """Runs of these settings, in order; settings that were not made are left out."""
        return [run for setting in settings for run in self.runs.get(setting, ())]

    def sampled(self, rate_z: float, ratio: float) -> list[Run]:
        """Runs of one setting of the sampled sweep, by seed."""
        return self.of(sampled_name(rate_z, ratio))


def look(results: Results) -> Evidence:
    """The evidence of a trained laboratory."""
    return Evidence(by_setting(results.trajectories))


def stable(low: float = 0.0, high: float = STABLE) -> list[str]:
    """Settings of the sampled sweep whose decoder rate is in this range.

    >>> stable(BROKEN, 20.0)
    ['sampled-z2-r10', 'sampled-z3-r5']
    """
    return [
        sampled_name(rate, ratio)
        for rate in SAMPLED_RATES
        for ratio in SAMPLED_RATIOS
        if low <= rate * ratio <= high
    ]


def grown(run: Run) -> float:
    """Attention on the most frequent distinct token over that on the rarest, end by start."""
    values = run["top_over_rare"]
    return float(values.isel(step=-1) / values.isel(step=0))


def off_identity(run: Run) -> float:
    """Largest |r / (r(0) exp(2 z_top)) - 1| of all steps, top and rarest token."""
    return float(np.abs(run["gain_ratio"] - 1).max())


def log_gain(run: Run, rank: int) -> xr.DataArray:
    """ln(r / r(0)) over steps, of the top token of class 0 over its distinct token of this rank.

    Rank 0 is the rarest.  Theorem 3 says that it is 2 z_top.
    """
    own = run["attention"].isel(target=0, token=TASK.own[0]).astype(float)
    r = (own.isel(token=-1, drop=True) / own.isel(token=rank, drop=True)) ** 2 - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return r.copy(data=np.log(r / r.isel(step=0)))


def early_drift(run: Run) -> float:
    """Largest drift of any pair while z_top is below `NEAR`."""
    return float(run["drift"].where(run["z_top"] < NEAR).max())


def slowing(run: Run, step: int | None = None) -> float:
    """Rate of the entropy at a logged step (default: the last), by its largest value until then."""
    rate = -(run["entropy_rate"] if step is None else run["entropy_rate"].sel(step=slice(step)))
    return float(rate.isel(step=-1) / rate.max())


def still_moving(run: Run) -> float:
    """Share of the fall of the common mass that comes in the second half of the steps."""
    mass = run["common_mass"]
    half = mass.sel(step=run["step"].max() // 2)
    return float((half - mass.isel(step=-1)) / (mass.isel(step=0) - mass.isel(step=-1)))


def steps_up(runs: Sequence[Run]) -> list[float]:
    """Entropy on distinct tokens at the end, from each run to the next."""
    return [last(b, "entropy") - last(a, "entropy") for a, b in pairwise(runs)]


def by_ratio(evidence: Evidence, low: float, high: float) -> list[float]:
    """Entropy from one ratio of rates to the next, sampled; rates of the second in this range."""
    return [
        step
        for rate in SAMPLED_RATES
        for a, b in pairwise(SAMPLED_RATIOS)
        if low <= rate * b <= high
        for pair in zip(evidence.sampled(rate, a), evidence.sampled(rate, b), strict=True)
        for step in steps_up(pair)
    ]


def by_rate(evidence: Evidence) -> list[float]:
    """Fall of the entropy from one common rate to the next at the same ratio, stable rates."""
    return [
        step
        for ratio in SAMPLED_RATIOS
        for a, b in pairwise(SAMPLED_RATES)
        if b * ratio <= STABLE
        for pair in zip(evidence.sampled(b, ratio), evidence.sampled(a, ratio), strict=True)
        for step in steps_up(pair)
    ]


def peak_step(run: Run) -> int:
    """The logged step at which the entropy falls fastest."""
    return int(run["step"][int(run["entropy_rate"].to_numpy().argmin())])


def growth(run: Run) -> xr.DataArray:
    """B over steps."""
    b = cumulative_trapezoid(1 / run["top_energy"], run["z_top"], initial=0)
    return run["z_top"].copy(data=b).rename("B")


def exponent(run: Run, low: float, high: float) -> float:
    """Slope of log B in log step, steps from `low` to `high`."""
    b = growth(run).sel(step=slice(low, high))
    return float(np.polyfit(np.log(b["step"]), np.log(b), 1)[0])


def log_log_slope(run: Run, low: float, high: float | None = None) -> float:
    """Slope of B in ln ln(M eta_Y t / K), steps from `low` to `high` or the end.

    Theorem 4 says 1/2.
    """
    b = growth(run).sel(step=slice(low, high))
    time = TASK.tokens / TASK.classes * float(run["rate_y"]) * b["step"]
    return float(np.polyfit(np.log(np.log(time)), b, 1)[0])
