"""How this project trains a laboratory: stacks of small runs, logged, resumable, seeded.

A laboratory is a task with an exact oracle, a small model, a recipe, logged scalars and laws.  Here
is the part they share.  Seeds and settings of equal shape are one `Stack`: every parameter has a
leading axis `run`, the loss is summed over runs, and optimisers that work element by element (Adam,
SGD) then treat each run as if it were alone.  What a stack logs goes, with its weights, into the
folder that `workbench.zoo.trajectory` describes.

A run is decided by its settings: text from (seed, step), everything on one CPU thread.  A killed
laboratory goes on at its last checkpoint and ends with the same bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.provenance import digest, versions
from workbench.runfiles import fingerprint, is_scratch, read_json, write_json
from workbench.schema import Variable
from workbench.tensorfile import TensorFile
from workbench.zoo.train import Progress, one_thread
from workbench.zoo.trajectory import (
    ABOUT,
    CHECKPOINT,
    FORMAT,
    TRAJECTORY,
    VERSION,
    WEIGHTS,
    Results,
    declare,
    kept_file,
    pack,
    unpack,
    write,
    write_dataset,
)

Parameters = dict[str, Tensor]
CHECKPOINT_EVERY = 50  # steps: a few seconds of work
REPORT_EVERY = 5


def cosine(step: int, steps: int, floor: float) -> float:
    """Factor on a rate that falls from 1 to `floor` along half a cosine of `steps` steps.

    >>> [round(cosine(step, 100, 0.02), 2) for step in (0, 50, 100)]
    [1.0, 0.51, 0.02]
    """
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class Stack:
    """Runs of equal shape, trained together.

    `settings` is the JSON form of everything that decides the numbers.  `start()` gives the
    parameters, each [run, ...]; `batch(step)` the data of one step; `loss(parameters, batch)` one
    loss per run, [run]; `optimiser` an element-wise one over the parameters; `measure(parameters)`
    a dataset without `step`, logged after each number of steps in `logged`, which `variables`
    declares with dims (run, step, ...).  `schedule(step)` is the factor on the optimiser's rates at
    that step.  `kept` are numbers of steps after which the parameters are kept too, besides those
    of the end.
    """

    name: str
    settings: dict[str, Any]
    runs: tuple[str, ...]
    steps: int
    logged: tuple[int, ...]
    start: Callable[[], Parameters]
    batch: Callable[[int], Any]
    loss: Callable[[Parameters, Any], Tensor]
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer]
    measure: Callable[[Parameters], xr.Dataset]
    variables: tuple[Variable, ...]
    schedule: Callable[[int], float] = lambda _: 1.0
    kept: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.runs)) != len(self.runs) or not self.runs:
            raise WorkbenchError(f"stack {self.name} needs runs with different names.")
        if tuple(sorted({*self.logged, self.steps})) != self.logged or self.logged[0] < 0:
            raise WorkbenchError(
                f"stack {self.name} must log at ascending steps, the last one {self.steps}; "
                f"it has {self.logged}."
            )
        if tuple(sorted({*self.kept})) != self.kept or not {*self.kept} <= {*range(self.steps)}:
            raise WorkbenchError(
                f"stack {self.name} must keep weights at ascending steps below its last, "
                f"{self.steps}, which is always kept; it has {self.kept}."
            )


@dataclass(frozen=True)
class _State:
    """Where the training of a stack stands after `step` steps."""

    step: int
    parameters: Parameters
    optimiser: torch.optim.Optimizer
    rates: tuple[float, ...]
    log: list[xr.Dataset]
    seconds: float


def run(
    name: str,
    stacks: tuple[Stack, ...],
    folder: str | Path,
    progress: Progress | None = None,
    checkpoint_every: int = CHECKPOINT_EVERY,
) -> Results:
    """Train all stacks into `folder` and return what is there; goes on where it was stopped.

    `progress(done, total, message)` counts steps of stacks.  A finished folder with the same
    settings is returned as it is; one with other settings, or other contents, is refused.
    """
    folder = Path(folder)
    about = _open_folder(folder, name, stacks)
    total = sum(stack.steps for stack in stacks)
    done = 0
    with one_thread():
        for stack in stacks if not about["finished"] else ():

            def report(
                step: int, message: str, before: int = done, label: str = stack.name
            ) -> None:
                if progress is not None:
                    progress(before + step, total, f"{label}: {message}")

            if stack.name not in about["cpu_seconds"]:
                about["cpu_seconds"][stack.name] = _train(stack, folder, checkpoint_every, report)
                write_json(folder / ABOUT, about)
            (folder / f"{stack.name}{CHECKPOINT}").unlink(missing_ok=True)
            done += stack.steps
    if not about["finished"]:
        files = [f"{stack.name}{kind}" for stack in stacks for kind in (TRAJECTORY, WEIGHTS)]
        files += [kept_file(stack.name, step) for stack in stacks for step in stack.kept]
        about["files"] = {file: fingerprint(folder / file) for file in files}
        write_json(folder / ABOUT, {**about, "finished": True})
    return Results(folder)


def _open_folder(folder: Path, name: str, stacks: tuple[Stack, ...]) -> dict[str, Any]:
    """The folder's `laboratory.json`, new or from an earlier start with the same settings."""
    if len({stack.name for stack in stacks}) != len(stacks) or not stacks:
        raise WorkbenchError(f"laboratory {name} needs stacks with different names.")
    key = digest([name, {s.name: [s.runs, s.settings, *s.kept] for s in stacks}])
    if (folder / ABOUT).is_file():
        about = read_json(folder / ABOUT)
        if about.get("key") != key or about.get("schema") != VERSION:
            raise WorkbenchError(
                f"{folder} holds a laboratory with other settings; name another folder, or delete "
                "that one."
            )
        return about
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(not is_scratch(entry) for entry in folder.iterdir()):
            raise WorkbenchError(
                f"{folder} is not empty and holds no laboratory; name a new folder."
            )
        about = {
            "format": FORMAT,
            "schema": VERSION,
            "name": name,
            "key": key,
            "finished": False,
            "stacks": [stack.name for stack in stacks],
            "runs": {stack.name: stack.runs for stack in stacks},
            "settings": {stack.name: stack.settings for stack in stacks},
            "kept": {stack.name: stack.kept for stack in stacks},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "cpu_seconds": {},
        }
        write_json(folder / ABOUT, about)
    except OSError as error:
        raise WorkbenchError(
            f"{folder} cannot be written ({error.strerror}); name another folder."
        ) from None
    return about


def _train(stack: Stack, folder: Path, every: int, report: Callable[[int, str], None]) -> float:
    """Train one stack to its end and write its files; returns the CPU seconds it took."""
    place = folder / f"{stack.name}{CHECKPOINT}"
    state = _resume(stack, place) if place.is_file() else _begin(stack)
    wall, spent = time.monotonic(), time.process_time() - state.seconds
    first = state.step
    while True:
        if state.step in stack.logged:
            state.log.append(_measured(stack, state))
        if state.step in stack.kept:
            write(folder / kept_file(stack.name, state.step), _arrays(state.parameters), {})
        if state.step == stack.steps:
            break
        loss = _advance(stack, state)
        state = replace(state, step=state.step + 1, seconds=time.process_time() - spent)
        if state.step % every == 0 and state.step < stack.steps:
            _save(state, place)
        if state.step % REPORT_EVERY == 0 or state.step == stack.steps:
            rate = (state.step - first) / max(time.monotonic() - wall, 1e-9)
            report(state.step, f"loss {loss:.3f}, {rate:.1f} steps/s")
    write(folder / f"{stack.name}{WEIGHTS}", _arrays(state.parameters), {})
    write_dataset(folder / f"{stack.name}{TRAJECTORY}", _joined(state.log))
    return round(time.process_time() - spent, 2)


def _begin(stack: Stack) -> _State:
    """Before the first step."""
    parameters = {name: value.requires_grad_() for name, value in stack.start().items()}
    optimiser = stack.optimiser(list(parameters.values()))
    rates = tuple(group["lr"] for group in optimiser.param_groups)
    return _State(0, parameters, optimiser, rates, [], 0.0)


def _advance(stack: Stack, state: _State) -> float:
    """One step of every run, in place; returns the mean loss."""
    losses = stack.loss(state.parameters, stack.batch(state.step))
    bad = ~losses.detach().isfinite()
    if bad.any():
        which = stack.runs[int(bad.nonzero()[0, 0])]
        raise WorkbenchError(
            f"run {which} of stack {stack.name} diverged at step {state.step}; lower its rate."
        )
    state.optimiser.zero_grad()
    # A function of the step alone, so that a resumed run needs no memory of it.
    for group, rate in zip(state.optimiser.param_groups, state.rates, strict=True):
        group["lr"] = rate * stack.schedule(state.step)
    # The sum over runs: the gradient of each run is that of its own loss.
    losses.sum().backward()
    state.optimiser.step()
    return float(losses.detach().mean())


def _measured(stack: Stack, state: _State) -> xr.Dataset:
    """What is logged now, with its step."""
    with torch.no_grad():
        found = stack.measure(state.parameters)
    return declare(found.expand_dims(step=[state.step], axis=1), stack.variables)


def _joined(log: list[xr.Dataset]) -> xr.Dataset:
    """The log along `step`."""
    return xr.concat(
        log, "step", join="exact", data_vars="all", coords="minimal", compat="override"
    )


def _arrays(tensors: Parameters) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in tensors.items()}


def _save(state: _State, place: Path) -> None:
    """Everything that is needed to go on, in one file that is renamed into place."""
    arrays = {f"parameter/{name}": value for name, value in _arrays(state.parameters).items()}
    for i, slots in state.optimiser.state_dict()["state"].items():
        arrays |= {f"optimiser/{i}/{slot}": value.numpy() for slot, value in slots.items()}
    logged, text = pack(_joined(state.log)) if state.log else ({}, "")
    arrays |= {f"log/{name}": value for name, value in logged.items()}
    write(place, arrays, {"step": str(state.step), "cpu": str(state.seconds), "dataset": text})


def _resume(stack: Stack, place: Path) -> _State:
    """The state that `_save` wrote."""
    file = TensorFile(place)
    parts: dict[str, dict[str, np.ndarray]] = {"parameter": {}, "optimiser": {}, "log": {}}
    state = _begin(stack)
    shapes = {f"parameter/{name}": tuple(value.shape) for name, value in state.parameters.items()}
    if shapes != {name: file[name].shape for name in file if name.startswith("parameter/")}:
        raise WorkbenchError(
            f"{place} is no checkpoint of stack {stack.name} as it is now; delete it to train that "
            "stack from its start."
        )
    for name in file:
        kind, _, rest = name.partition("/")
        parts[kind][rest] = file[name]
    with torch.no_grad():
        for name, value in state.parameters.items():
            value.copy_(torch.from_numpy(parts["parameter"][name]))
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in parts["optimiser"].items():
        i, _, slot = name.partition("/")
        slots.setdefault(int(i), {})[slot] = torch.from_numpy(value)
    state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": slots})
    text = file.metadata["dataset"]
    log = unpack(parts["log"], text) if text else None
    rows = [] if log is None else [log.isel(step=[i]) for i in range(log.sizes["step"])]
    return replace(
        state, step=int(file.metadata["step"]), log=rows, seconds=float(file.metadata["cpu"])
    )
