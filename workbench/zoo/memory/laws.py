"""What is read from the tables of the experiments: slopes, and distances from the closed forms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

QIAO = "Qiao 2025, arXiv 2508.08289"
# Every table of `measure`, the seeds one below another.
Evidence = Mapping[str, pd.DataFrame]


def seeds(evidence: Evidence) -> list[int]:
    """The seeds of the tables."""
    return sorted({int(seed) for seed in evidence["capacity"]["seed"]})


def pick(table: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """The rows in which the columns have the wanted values."""
    for column in wanted:
        table = table.query(f"{column} == @wanted[@column]")
    return table


def rows(evidence: Evidence, table: str, seed: int, **wanted: object) -> pd.DataFrame:
    """The rows of one seed in which the columns have the wanted values."""
    return pick(evidence[table], seed=seed, **wanted)


def off(found: pd.DataFrame) -> float:
    """The largest |error / law - 1|."""
    return float(np.abs(found["error"].to_numpy() / found["law"].to_numpy() - 1.0).max())


def slope(evidence: Evidence, seed: int, criterion: str) -> float:
    """Power of d_k with which the number of interfering items, capacity - 1, grows."""
    found = rows(evidence, "capacity", seed, criterion=criterion)
    return float(np.polyfit(np.log(found["d"]), np.log(found["items"] - 1.0), 1)[0])


def ratio(evidence: Evidence, seed: int, rule: str) -> float:
    """Error of a rule over that of Hebb, as many items as coordinates."""
    hebb, other = (
        found.loc[found["n"] == found["d"], "error"].item()
        for found in (rows(evidence, "rules", seed, rule=name) for name in ("Hebb", rule))
    )
    return float(other / hebb)


def compounding(evidence: Evidence, seed: int, items: int) -> float:
    """Error after all layers over the number of layers times the error after one."""
    found = rows(evidence, "depth", seed, keys="fresh", n=items).set_index("layers")["error"]
    return float(found.iloc[-1] / (found.index[-1] * found.iloc[0]))


def gain(evidence: Evidence, seed: int, items: str, heads: int) -> float:
    """Error of `heads` heads over that of one."""
    found = rows(evidence, "heads", seed, items=items).set_index("heads")["error"]
    return float(found.loc[heads] / found.loc[1])


def left(evidence: Evidence, seed: int, items: str) -> float:
    """Error of the most heads by the error of one head over their number: 1 without a floor."""
    found = rows(evidence, "heads", seed, items=items).set_index("heads")["error"]
    return float(found.iloc[-1] * found.index[-1] / found.loc[1])


def ageing(evidence: Evidence, seed: int, rule: str) -> float:
    """Mean error of the oldest eighth of the items over that of the newest eighth."""
    found = rows(evidence, "ages", seed, rule=rule).sort_values("later")["error"]
    eighth = len(found) // 8
    return float(found.iloc[-eighth:].mean() / found.iloc[:eighth].mean())
