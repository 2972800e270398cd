"""What a laboratory claims, and what was found: one way from runs to a law with its verdict.

A `Claim` says which statistic must meet which mark, and where it must not.  It reads its numbers
from the laboratory's evidence, whatever that is: runs by setting, curves, a table.  A law that
holds, holds for every run against every control.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import xarray as xr

from workbench.zoo.trajectory import Law, Mark

E = TypeVar("E")
Values = Sequence[float]
# Source of a law that no paper claims; such laws are reported and fail nothing.
OURS = "this laboratory"


@dataclass(frozen=True)
class Finding:
    """A law that was checked.

    `says` is the law in words, `n` the number of runs, texts or heads behind its value.  A required
    law that is not held fails the study.
    """

    law: Law
    says: str
    required: bool
    n: int


@dataclass(frozen=True)
class Claim(Generic[E]):
    """One law before it is looked up.

    `read` gives the values and the nulls, one per run; `says` is the law in words; `needs` are the
    settings it cannot do without; `whole` laws are read from the whole recipe only.
    """

    name: str
    source: str
    statistic: str
    mark: Mark
    control: str
    says: str
    read: Callable[[E], tuple[Values, Values]]
    needs: tuple[str, ...] = ()
    whole: bool = False

    def law(self, evidence: E) -> tuple[Law, int]:
        """The law and the number of runs behind it; without runs NaN and 0."""
        values, nulls = (np.asarray(found, float) for found in self.read(evidence))
        # Below a bound the largest value is the worst, and the smallest null the nearest.
        below = self.mark.sign == "<"
        worst, nearest = (np.max, np.min) if below else (np.min, np.max)
        value = worst(values) if len(values) else np.nan
        null = nearest(nulls) if len(nulls) else np.nan
        if np.isnan(value) and np.isfinite(values).any():
            # A run without a value must not hide behind those that have one.
            value = np.inf if below else -np.inf
        return self._with(float(value), float(null)), len(values)

    def left_out(self) -> Law:
        """The law where its runs are missing: not applicable."""
        return self._with(np.nan, np.nan)

    def _with(self, value: float, null: float) -> Law:
        return Law(self.name, self.source, self.statistic, self.mark, value, self.control, null)


def readable(
    claims: Sequence[Claim], settings: Collection[str], *, whole: bool = True
) -> list[str]:
    """Names of the claims that runs of these settings decide."""
    known = set(settings)
    return [c.name for c in claims if set(c.needs) <= known and (whole or not c.whole)]


def findings(
    evidence: E,
    claims: Sequence[Claim[E]],
    only: Collection[str] | None = None,
    reported: Collection[str] = (OURS,),
) -> list[Finding]:
    """Every claim looked up, in order; with `only`, the others are not applicable.

    Laws of the sources in `reported` are not required.
    """
    found = []
    for claim in claims:
        law, n = (
            claim.law(evidence) if only is None or claim.name in only else (claim.left_out(), 0)
        )
        found.append(Finding(law, claim.says, claim.source not in reported, n))
    return found


def by_setting(trajectories: Mapping[str, xr.Dataset]) -> dict[str, list[xr.Dataset]]:
    """Trajectories of single runs, by setting."""
    found: dict[str, list[xr.Dataset]] = {}
    for data in trajectories.values():
        for i, setting in enumerate(data["setting"].to_numpy()):
            found.setdefault(str(setting), []).append(data.isel(run=i))
    return found


def last(run: xr.Dataset, name: str) -> float:
    """A logged scalar at the end."""
    return float(run[name].isel(step=-1))


def first(run: xr.Dataset, name: str) -> float:
    """The same before training."""
    return float(run[name].isel(step=0))
