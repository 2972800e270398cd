"""What must come out of the laboratory: laws with marks and controls.

Accuracies are those of reversed images, which no linear classifier reads (`task`); the worst seed
counts.  The control of most laws is the network whose patches attend to all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr

from workbench.zoo.claims import Claim, Values, last
from workbench.zoo.minimal import model
from workbench.zoo.minimal.recipe import LAYERS, WIDTH
from workbench.zoo.minimal.task import REVERSED
from workbench.zoo.trajectory import Mark

BERMEITINGER = "Bermeitinger et al. 2024, arXiv 2410.13732"
Runs = Mapping[str, Sequence[xr.Dataset]]
# What the paper finds with more layers and data; looked at here, and not required.
AT_ITS_SIZE = f"{BERMEITINGER}, at its size"
# Between networks whose attention compares patches (.89 or more) and those where it is even (.76 to
# .86).
READ = 0.875


def of(variant: str, kind: str = REVERSED) -> str:
    """Name of a setting."""
    return f"{variant}-{kind}"


def accuracies(runs: Runs, variant: str, kind: str = REVERSED) -> list[float]:
    """Final accuracy of every run of a setting."""
    return [last(run, "accuracy") for run in runs.get(of(variant, kind), ())]


def unlike_itself(run: xr.Dataset) -> float:
    """Share of queries whose score for their own key is negative, mean over layers, at the end."""
    return float(run["unlike_itself"].isel(step=-1).mean())


def smaller(variant: str) -> float:
    """Parameters of the layers, as a share of those of the whole network."""
    return (
        model.size(variant, WIDTH, LAYERS)["layers"]
        / model.size(model.WHOLE, WIDTH, LAYERS)["layers"]
    )


def _reads(variant: str) -> Callable[[Runs], tuple[Values, Values]]:
    return lambda runs: (accuracies(runs, variant), accuracies(runs, model.UNIFORM))


def _over_uniform(variant: str) -> tuple[str, ...]:
    return of(variant), of(model.UNIFORM)


def _lost(before: str, after: str) -> Callable[[Runs], tuple[Values, Values]]:
    """Accuracy of every run less the mean of those before, beside that lost without similarity."""

    def read(runs: Runs) -> tuple[Values, Values]:
        mean = np.mean(accuracies(runs, before))
        with_it, without = accuracies(runs, after), accuracies(runs, model.UNIFORM)
        return [float(mean - one) for one in with_it], [float(mean - one) for one in without]

    return read


def _unlike(runs: Runs) -> tuple[Values, Values]:
    free, symmetric = (
        [unlike_itself(run) for run in runs.get(of(variant), ())]
        for variant in (model.NO_MLP, model.SYMMETRIC)
    )
    return free, symmetric


_ACCURACY = "accuracy on held-out images, contrast reversed at random"
_LOST = "accuracy lost against the mean of the runs that have it"
_UNIFORM = "every patch attends to all alike"
CLAIMS: tuple[Claim[Runs], ...] = (
    Claim("attention is non-linear enough", BERMEITINGER, _ACCURACY, Mark(">", READ), _UNIFORM,
          "Without any MLP a network classifies what no linear classifier can: its attention "
          "compares patches.", _reads(model.NO_MLP), _over_uniform(model.NO_MLP)),
    Claim("the MLP adds little", BERMEITINGER, _LOST, Mark("<", 0.05), _UNIFORM,
          "It classifies as well as the whole network.", _lost(model.WHOLE, model.NO_MLP),
          (of(model.WHOLE), of(model.NO_MLP), of(model.UNIFORM))),
    Claim("query and key collapse", BERMEITINGER, _LOST, Mark("<", 0.05), _UNIFORM,
          "One matrix in the place of query and key loses next to nothing.",
          _lost(model.NO_MLP, model.COLLAPSED),
          (of(model.NO_MLP), of(model.COLLAPSED), of(model.UNIFORM))),
    Claim("value and output can go", BERMEITINGER, _ACCURACY, Mark(">", READ), _UNIFORM,
          "So does a network whose layers hold nothing but one similarity matrix each.",
          _reads(model.BARE), _over_uniform(model.BARE)),
    Claim("similarity can be symmetric", AT_ITS_SIZE, _ACCURACY, Mark(">", READ), _UNIFORM,
          "And one whose similarity is a scalar product, with half of that matrix.",
          _reads(model.SYMMETRIC), _over_uniform(model.SYMMETRIC), whole=True),
    Claim("a tenth of the parameters", BERMEITINGER, "parameters of the layers, by those of the "
          "whole network", Mark("<", 0.1), "no MLP, all else kept",
          "The smallest variant has less than a tenth of the parameters in its layers.",
          lambda _: ([smaller(model.SYMMETRIC)], [smaller(model.NO_MLP)])),
    Claim("a patch can be unlike itself", BERMEITINGER, "share of queries with a negative score "
          "for their own key", Mark(">", 0.1), "symmetric similarity",
          "With free matrices a patch may repel itself; a scalar product cannot do that.",
          _unlike, (of(model.NO_MLP), of(model.SYMMETRIC))),
)  # fmt: skip
