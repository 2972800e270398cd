"""What must come out of the laboratory, as numbers with marks and controls (`Law`).

Every value is the worst of its runs, every null the one that comes nearest to the mark.
Statistics are read at the last logged step unless they say otherwise.  A run is stuck if it ends on
the one-head plateau, solved if it has left it for debiased gradient descent by half of its steps,
late otherwise; laws about the emergent pattern are read from the solved ones, which had time to
settle, and the law of the trap from all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from workbench.zoo.claims import last
from workbench.zoo.regression import reduced

HE = "He et al. 2025, arXiv 2503.12734"
AHN = "Ahn et al. 2023, arXiv 2306.00297, with noise"
# Risks between debiased GD (.24) and the one-head plateau (.40).
STUCK, SOLVED = 0.33, 0.26
TWO, CONTROLS = ("h2", "opposite"), ("same",)
RANDOM = {"h2": 2, "h3": 3, "h4": 4, "h8": 8}
FLOW_TIMES = np.geomspace(200.0, 1e5, 25)
FLOW_HEADS, FLOW_STARTS = (2, 3, 4), 512
FAR = 4  # prompts this many times longer than those of training

Run = xr.Dataset


@dataclass(frozen=True, eq=False)
class Evidence:
    """`runs` by setting, as `training.runs` gives them; the flow of the reduced loss from heads of
    `opposite` and of the `same` signs at `FLOW_TIMES`, and its `traps`."""

    runs: Mapping[str, Sequence[Run]]
    opposite: Sequence[reduced.Reduced]
    same: Sequence[reduced.Reduced]
    traps: Mapping[int, reduced.Trap]

    def of(self, *settings: str) -> list[Run]:
        """Runs of these settings, in order; settings that were not made are left out."""
        return [run for setting in settings for run in self.runs.get(setting, ())]

    def solved(self, *settings: str) -> list[Run]:
        """Those that have reached the risk of debiased gradient descent by half of their steps."""
        return [run for run in self.of(*settings) if fate(run) == "solved"]


def look(runs: Mapping[str, Sequence[Run]]) -> Evidence:
    """The evidence: what was trained, beside the flow of the reduced loss, integrated here."""
    begun = np.array([1.0, 0.5]) * reduced.START
    flows = [
        reduced.flow(reduced.Reduced(begun * signs, begun * signs), FLOW_TIMES)
        for signs in (np.array([1.0, -1.0]), np.array([1.0, 1.0]))
    ]
    traps = {heads: reduced.trap(heads, FLOW_STARTS) for heads in FLOW_HEADS}
    return Evidence(runs, flows[0], flows[1], traps)


def fate(run: Run) -> str:
    """Where a run ended: stuck, solved or late."""
    if last(run, "risk") > STUCK:
        return "stuck"
    half = run["risk"].where(run["step"] <= run["step"].max() / 2, drop=True)
    return "solved" if float(half.isel(step=-1)) < SOLVED else "late"


def own_length(run: Run) -> int:
    """The length of the prompts of training."""
    return int(run["trained_length"])


def final(run: Run, times: int = 1) -> float:
    """Risk on fresh prompts, `times` as long as those of training."""
    return float(run["final"].sel(length=times * own_length(run)))


def baseline(run: Run, predictor: str, times: int = 1) -> float:
    """Risk of a predictor (`closed.baselines`) on the same prompts."""
    return float(run["baseline"].sel(predictor=predictor, length=times * own_length(run)))


def size(run: Run) -> xr.DataArray:
    """|omega| over steps, mean over heads weighted by |mu| of the first task."""
    weight = abs(run["mu"].isel(task=0))
    return (weight * abs(run["omega"])).sum("head") / weight.sum("head")


def shrunk(run: Run) -> float:
    """|omega| at the end over its maximum in training."""
    return float(size(run).isel(step=-1) / size(run).max())


def slope(models: Sequence[reduced.Reduced], of: Callable[[reduced.Reduced], float]) -> float:
    """Slope of a positive number in the flow against time, both in logarithms."""
    values = np.log([of(model) for model in models])
    return float(np.polyfit(np.log(FLOW_TIMES), values, 1)[0])


def width(model: reduced.Reduced) -> float:
    """Mean |omega|."""
    return float(np.abs(model.omega).mean())


def excess(model: reduced.Reduced) -> float:
    """The loss above its floor."""
    return float(model.loss() - model.floor)


def way_down(model: reduced.Reduced) -> float:
    """The smallest eigenvalue of the Hessian."""
    return float(np.linalg.eigvalsh(model.hessian())[0])


def other_split(model: reduced.Reduced) -> reduced.Reduced:
    """The same heads, their summed mu split so that one is negative: as good, and no minimum."""
    total = model.mu.sum()
    return model.at(model.omega, total * np.array([1.5, -0.5]))


def stuck_counts(evidence: Evidence) -> dict[int, tuple[int, int]]:
    """Of the runs with random starts: (stuck, all), by number of heads."""
    found = {}
    for setting, heads in RANDOM.items():
        if runs := evidence.of(setting):
            found[heads] = (sum(fate(run) == "stuck" for run in runs), len(runs))
    return found


def agreement(counts: Mapping[int, tuple[int, int]], rate: Callable[[int], float]) -> list[float]:
    """p-values of the counts under a rate per number of heads (exact binomial, two-sided)."""
    from scipy.stats import binomtest

    return [float(binomtest(k, n, rate(heads)).pvalue) for heads, (k, n) in counts.items()]
