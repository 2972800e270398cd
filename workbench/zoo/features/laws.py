"""What is read from the tables: errors of one model over those of another, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from workbench.zoo.features import recipe
from workbench.zoo.features.task import Target

FU = "Fu et al. 2023, arXiv 2307.11353"
# The tables of `measure.errors`, settings and seeds one below another.
Evidence = Mapping[str, pd.DataFrame]


def seeds(evidence: Evidence) -> list[int]:
    """The seeds of the tables."""
    return sorted({int(seed) for seed in evidence["errors"]["seed"]})


def most(evidence: Evidence) -> int:
    """The largest number of inputs."""
    return int(evidence["errors"]["n"].to_numpy().max())


def error(
    evidence: Evidence, seed: int, model: str, target: Target, n: int = 0,
    setting: str = recipe.WIDE,
) -> float:  # fmt: skip
    """Test error of one model on one function; `n` inputs, 0 for the most."""
    rows = evidence["errors"]
    found = rows[
        (rows["setting"] == setting)
        & (rows["seed"] == seed)
        & (rows["model"] == model)
        & (rows["target"] == target.name)
        & (rows["n"] == (n or most(evidence)))
    ]
    return float(found["error"].item())


def ratio(
    evidence: Evidence, seed: int, models: tuple[str, str], target: Target, n: int = 0,
    setting: str = recipe.WIDE,
) -> float:  # fmt: skip
    """Error of the first model over that of the second."""
    one, other = (error(evidence, seed, model, target, n, setting) for model in models)
    return one / other


def moved(evidence: Evidence, seed: int, model: str) -> float:
    """How far predictions go when keys change places; the worst setting."""
    rows = evidence["moved"]
    return float(rows.loc[(rows["seed"] == seed) & (rows["model"] == model), "moved"].max())
