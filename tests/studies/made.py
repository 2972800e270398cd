"""Studies without content, and trajectories with planted numbers."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from workbench.studies.study import Content, Finding, Picture, Study
from workbench.zoo.backcopy import measure
from workbench.zoo.trajectory import Law, Mark, declare

HOSTILE = "</script><script>alert(1)</script>"


@dataclass(frozen=True)
class Coin:
    """Settings of the fake study: values of its laws, and a model it could take."""

    values: tuple[float, ...] = (0.9, 0.9, float("nan"))
    required: tuple[bool, ...] = (True, False, True)
    model: str = ""
    steps: int = 5
    stop_at: int = -1

    def to_json(self) -> dict[str, Any]:
        # Where it is stopped decides no number.
        return {k: str(v) for k, v in asdict(self).items() if k != "stop_at"}


def finding(value: float, required: bool = True, null: float = 0.1) -> Finding:
    law = Law(f"law {HOSTILE}", "a paper", "a share", Mark(">", 0.5), value, "control", null)
    return Finding(law, "What it says.", required, 2)


def toss(config: Coin, folder, progress) -> Content:
    """Counts to `steps` in a file, from where an earlier start stopped."""
    place = folder / "counted.txt"
    begun = int(place.read_text()) if place.exists() else 0
    for step in range(begun, config.steps):
        if step == config.stop_at:
            raise KeyboardInterrupt
        place.write_text(str(step + 1))
        progress(step + 1, config.steps, f"began at {begun}")
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name=HOSTILE))
    return Content(
        findings=[finding(v, r) for v, r in zip(config.values, config.required, strict=True)],
        pictures=[Picture("line", f"A line {HOSTILE}", "Its caption.", figure)],
        tables={"numbers": pd.DataFrame({"x": [1, 2]})},
        notes=[f"A note {HOSTILE}."],
        seeds=[3],
        facts={"began": begun},
        banner="Only a coin.",
    )


def study(**configs: Coin) -> Study:
    return Study(
        name="coin", question="Which side?", paper="Nobody 2020", cost="a coin",
        needs="a table", configs=configs or {"default": Coin()}, run=toss,
    )  # fmt: skip


STEPS = [0, 10, 20, 50, 100]
SIZES = {"layer": 1, "head": 1, "stream": 2, "probe": 1, "query": 6, "key": 6}
TOKENS = ["w0", "w1", "w2", "w3", "<s>"]
EDITS = ["none", "L0H0", "L0 mlp", "key 0", "key 1", "key 2"]


def planted(setting: str, seed: int = 0, **last: float) -> xr.Dataset:
    """One run: every variable rises in a straight line from 0 to its value in `last`, or 0.1."""
    coords: dict[str, Any] = {
        "run": [f"{setting}-s{seed}"], "setting": ("run", [setting]), "seed": ("run", [seed]),
        "step": STEPS, "role": list(measure.ROLES), "edit": EDITS, "token": TOKENS,
        "trigger": ("token", [True, False, False, False, False]), "layer": [0], "head": [0],
        "stream": [0, 1], "probe_id": (("run", "probe", "query"), [[[4, 1, 0, 1, 2, 3]]]),
    }  # fmt: skip
    sizes = {**SIZES, "run": 1, "step": 5, "role": 3, "edit": len(EDITS), "token": len(TOKENS)}
    rise = np.linspace(0, 1, 5)
    data = {}
    for v in measure.VARIABLES:
        shape = [sizes[d] if d == "step" else 1 for d in v.dims]
        values = last.get(v.name, 0.1) * rise.reshape(shape)
        data[v.name] = (v.dims, np.broadcast_to(values, [sizes[d] for d in v.dims]).copy())
    return declare(xr.Dataset(data, coords=coords), measure.VARIABLES).isel(run=0)
