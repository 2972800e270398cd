"""What the laws of the laboratory are read from, and the statistics they are about.

All are excess risks at the last step, in nats above the exact oracle, by rule (`task`): chain needs
no other position, copy needs a place that is the same in every text, recall needs a place that the
text decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from workbench.zoo.claims import last
from workbench.zoo.deconstructed.recipe import ODD
from workbench.zoo.deconstructed.task import RULES

XUE = "Xue et al. 2025, arXiv 2510.11602"
# Claims of the paper about networks much larger than these: reported, not required.
LARGE = f"{XUE}, of large networks"
FIXED = ("rnd-emb-qk", "fixed-seq-qk")
CONTEXT = ("copy", "recall")

Run = xr.Dataset


@dataclass(frozen=True, eq=False)
class Evidence:
    """`runs` by setting; for each variant with a linear form its distance from the trained heads
    and that to softmax attention, per run; and the parameters of every setting."""

    runs: Mapping[str, Sequence[Run]]
    linear: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    sizes: Mapping[str, int]

    def of(self, *settings: str) -> list[Run]:
        """Runs of these settings, in order; settings that were not made are left out."""
        return [run for setting in settings for run in self.runs.get(setting, ())]


def context(run: Run, prefix: str = "excess") -> float:
    """Excess after `~` and names together, their mean."""
    return float(np.mean([last(run, f"{prefix}_{rule}") for rule in CONTEXT]))


def whole(run: Run) -> float:
    """The mean excess of the three rules."""
    return float(np.mean([last(run, f"excess_{rule}") for rule in RULES]))


def lesser_context(run: Run) -> float:
    """The smaller excess of the two rules that need other positions."""
    return min(last(run, f"excess_{rule}") for rule in CONTEXT)


def recall_in(run: Run, layers: Sequence[int]) -> float:
    """The largest weight that a head of these layers puts on the answer of a recall."""
    return float(run["recall_mass"].isel(step=-1, layer=list(layers)).max())


def simple_layers(run: Run) -> float:
    return recall_in(run, ODD)


def standard_layers(run: Run) -> float:
    return recall_in(run, [layer for layer in range(run.sizes["layer"]) if layer not in ODD])


def largest_score(run: Run) -> float:
    """The largest |score| in the odd-numbered layers, logits."""
    return float(run["largest_score"].isel(step=-1, layer=list(ODD)).max())
