"""What is read from runs of the JEPA laboratory: when features are learned, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.stats import kendalltau, rankdata

from workbench.zoo.jepa import closed
from workbench.zoo.jepa.closed import JEPA, LEARNED, MAE

LITTWIN = "Littwin et al. 2024, arXiv 2407.03475"

Run = xr.Dataset


@dataclass(frozen=True, eq=False)
class Evidence:
    """All runs, of every method, depth and setting."""

    runs: Sequence[Run]

    def of(self, setting: str, method: str, depth: int | None = None) -> list[Run]:
        """Runs of one setting and method, of one depth or of all."""
        return [
            run for run in self.runs
            if str(run["setting"].item()) == setting and method_of(run) == method
            and depth in (None, depth_of(run))
        ]  # fmt: skip

    @property
    def depths(self) -> list[int]:
        """Depths that were trained, ascending."""
        return sorted({depth_of(run) for run in self.runs})

    @property
    def settings(self) -> list[str]:
        """`SETTING METHOD DEPTH` of everything that was trained: what laws need."""
        return sorted(
            {f"{run['setting'].item()} {method_of(run)} {depth_of(run)}" for run in self.runs}
        )


def method_of(run: Run) -> str:
    return str(run["method"].item())


def depth_of(run: Run) -> int:
    return int(run["depth"])


def times(run: Run) -> np.ndarray:
    """Steps times rate until the encoder has half of each feature, between logged steps, in the
    logarithm; NaN if it never has."""
    steps = run["step"].to_numpy().astype(float)
    found = np.full(run.sizes["feature"], np.nan)
    for i, learned in enumerate(run["learned"].transpose("feature", "step").to_numpy()):
        above = np.flatnonzero(learned > LEARNED)
        if len(above) and above[0] > 1:
            b = above[0]
            x = np.log(steps[b - 1 : b + 1])
            y = np.log(learned[b - 1 : b + 1])
            found[i] = np.exp(x[0] + (np.log(LEARNED) - y[0]) * (x[1] - x[0]) / (y[1] - y[0]))
    return found * float(run["rate"])


def order(run: Run, by: str) -> float:
    """Kendall's tau between learning early and a large `lam` or `rho`; what was never learned
    comes last, together."""
    found = np.nan_to_num(times(run), nan=np.inf)
    return float(np.asarray(kendalltau(run[by].to_numpy(), -rankdata(found)))[0])


def kept(run: Run) -> list[int]:
    """The features that the encoder has at the end, at more than half of their strength."""
    return np.flatnonzero(run["learned"].isel(step=-1).to_numpy() > LEARNED).tolist()


def spread(run: Run) -> float:
    """Time of the least predictable feature over that of the most predictable one."""
    found, rho = times(run), run["rho"].to_numpy()
    return float(found[np.argmin(rho)] / found[np.argmax(rho)])


def expected(run: Run, method: str) -> np.ndarray:
    """Critical times in closed form for this depth and start, [feature]."""
    features = zip(run["lam"].to_numpy(), run["rho"].to_numpy(), strict=True)
    return np.array([
        closed.critical_time(method, float(lam), float(rho), depth_of(run), float(run["product"]))
        for lam, rho in features
    ])  # fmt: skip


def time_error(run: Run, method: str) -> float:
    """Largest relative distance of the times of a run to the closed form of a method."""
    return float(np.abs(times(run) / expected(run, method) - 1.0).max())


def other(method: str) -> str:
    """The method that is not this one."""
    return MAE if method == JEPA else JEPA


def pairs(evidence: Evidence, setting: str) -> list[tuple[Run, Run]]:
    """Runs of JEPA and of MAE that differ in nothing else."""
    return [
        pair
        for depth in evidence.depths
        for pair in zip(
            evidence.of(setting, JEPA, depth), evidence.of(setting, MAE, depth), strict=True
        )
    ]


def mismatch(pair: tuple[Run, Run], place: int = -1) -> float:
    """Largest |log e_JEPA - (L + 1) log e_MAE| over features, e the strengths in the encoder; 0
    where both keep the same features as far as they are predictable."""
    jepa, mae = (np.log(run["strength"].isel(step=place).to_numpy()) for run in pair)
    return float(np.abs(jepa - (depth_of(pair[0]) + 1) * mae).max())
