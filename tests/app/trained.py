"""A laboratory with known answers: straight lines and one head whose pattern moves, no model."""

import json

import numpy as np
import xarray as xr
from app_made import HOSTILE

from workbench.runfiles import fingerprint
from workbench.zoo.trajectory import (
    ABOUT,
    FORMAT,
    TRAJECTORY,
    VERSION,
    WEIGHTS,
    write,
    write_dataset,
)

STEPS = [0, 4, 20, 100]
TOKENS = ["<s>", HOSTILE, "b", "c"]


def rising(shape: tuple[int, ...], top: float) -> np.ndarray:
    """[run, step, ...]: a straight line from 0 to `top`, for run 1 a tenth of it."""
    line = np.linspace(0, 1, len(STEPS)).reshape(1, -1, *[1] * (len(shape) - 2))
    return np.broadcast_to(top * line * np.array([1.0, 0.1]).reshape(2, *[1] * line[0].ndim), shape)


def trajectory() -> xr.Dataset:
    """Two runs, two layers of two heads; the pattern of L1H0 moves to key 0, and no other does."""
    runs, steps = 2, len(STEPS)
    pattern = np.zeros((runs, steps, 2, 2, 1, 4, 4))
    pattern[:] = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    for i, share in enumerate(np.linspace(0, 1, steps)):
        sink = np.eye(4)[0][None].repeat(4, 0)
        pattern[0, i, 1, 0, 0] = (1 - share) * pattern[0, i, 1, 0, 0] + share * sink
    head, role = (runs, steps, 2, 2), (runs, steps, 2, 2, 2)
    by_head = np.arange(4).reshape(2, 2)
    a = {"units": "nats", "long_name": "a loss", "group": "losses"}
    b = {"units": "probability", "long_name": f"weight on {HOSTILE}", "group": "weights"}
    return xr.Dataset(
        {
            "loss": (("run", "step"), rising((runs, steps), -3.0) + 3.001, a),
            "weight": (("run", "step", "layer", "head"), rising(head, 0.1) * by_head, b),
            "weight_low": (("run", "step", "layer", "head"), rising(head, 0.05) * by_head, b),
            "weight_high": (("run", "step", "layer", "head"), rising(head, 0.2) * by_head, b),
            "norm": (("run", "step", "layer", "head", "role"), rising(role, 5.0),
                     {"units": "L2 norm", "long_name": "a norm"}),
            "stream_norm": (("run", "step", "stream"),
                            rising((runs, steps, 3), 1.0) + np.arange(3.0), {"units": "L2 norm"}),
            "absent": (("run", "step"), np.full((runs, steps), np.nan), a),
            "by_token": (("run", "step", "token"), np.zeros((runs, steps, 40)), {"units": "nats"}),
            "pattern": (("run", "step", "layer", "head", "probe", "query", "key"),
                        pattern.astype("float16")),
        },
        coords={
            "run": ["sinks-s0", "control-s0"], "setting": ("run", ["sinks", "control"]),
            "step": STEPS, "layer": [0, 1], "head": [0, 1], "stream": [0, 1, 2],
            "role": ["begin", "other"], "token": TOKENS + [f"t{i}" for i in range(36)],
            "trigger": ("token", [False, True] + [False] * 38),
            "probe_id": (("run", "probe", "query"), [[[0, 1, 2, 3]]] * 2),
        },
    )  # fmt: skip


def write_laboratory(folder, *, finished: bool = True, stacks: dict | None = None, **changed):
    """A folder as `zoo.lab` leaves it, of stacks by name; `changed` is put into its JSON."""
    folder.mkdir(parents=True)
    stacks = stacks or {"deep": trajectory()}
    files = [f"{name}{kind}" for name in stacks for kind in (TRAJECTORY, WEIGHTS)]
    for name, data in stacks.items():
        write_dataset(folder / f"{name}{TRAJECTORY}", data)
        write(folder / f"{name}{WEIGHTS}", {"w": np.zeros(1)}, {})
    runs = {name: data["run"].to_numpy().tolist() for name, data in stacks.items()}
    about = {
        "format": FORMAT, "schema": VERSION, "name": "planted", "finished": finished,
        "stacks": list(stacks), "runs": runs,
        "settings": {name: {"layers": 2} for name in stacks}, "versions": {"torch": "2"},
        "cpu_seconds": dict.fromkeys(stacks, 1), "created": "2026-01-02T03:04:05",
        "files": {file: fingerprint(folder / file) for file in files},
    }  # fmt: skip
    (folder / ABOUT).write_text(json.dumps(about | changed))
    return folder
