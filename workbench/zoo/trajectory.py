"""Trajectories of training on disk, and the laws read from them; no torch is needed to read.

A laboratory trains small models and leaves one folder:

    laboratory.json              name, settings, versions, seconds, digests of the other files
    NAME.trajectory.safetensors  what was logged of one stack of runs, over (run, step, ...)
    NAME.weights.safetensors     its final parameters, [run, ...]
    NAME.step200.safetensors     its parameters after 200 steps, where the stack keeps them
    NAME.checkpoint.safetensors  while that stack is being trained

A trajectory is an `xarray.Dataset` whose variables, like those of `workbench.schema`, have declared
dims, units and bounds.  `laboratory.json` says `finished` only when every file is there, whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xarray as xr

from workbench import tensorfile
from workbench.errors import SchemaError
from workbench.runfiles import check_size, fingerprint, read_json
from workbench.schema import Variable
from workbench.tensorfile import TensorFile

FORMAT, VERSION = "attention-workbench laboratory", 1
ABOUT = "laboratory.json"
TRAJECTORY, WEIGHTS, CHECKPOINT = (
    f".{kind}.safetensors" for kind in ("trajectory", "weights", "checkpoint")
)
_SLACK = 1e-4
_FIELDS = {
    "name": str,
    "stacks": list,
    "runs": dict,
    "settings": dict,
    "files": dict,
    "cpu_seconds": dict,
}


def kept_file(stack: str, step: int) -> str:
    """Name of the file with the parameters of a stack after so many steps."""
    return f"{stack}.step{step}.safetensors"


def declare(data: xr.Dataset, variables: Iterable[Variable]) -> xr.Dataset:
    """Check dims and bounds of every variable and attach its unit, meaning and group.

    Variables come out in the order in which they are declared.
    Raises `SchemaError` for a variable that is missing or not declared, has other dims, or leaves
    its bounds.  NaN stands for what does not exist.
    """
    known = {variable.name: variable for variable in variables}
    if wrong := set(map(str, data.data_vars)) ^ set(known):
        raise SchemaError(f"{min(wrong)!r} is either measured or declared, not both.")
    for name, variable in known.items():
        if data[name].dims != variable.dims:
            raise SchemaError(f"{name} has dims {data[name].dims}, expected {variable.dims}.")
        values = data[name].to_numpy()
        slack = _SLACK * max(1.0, abs(variable.high) if math.isfinite(variable.high) else 1.0)
        if (values < variable.low - slack).any() or (values > variable.high + slack).any():
            raise SchemaError(
                f"{name} leaves its bounds [{variable.low}, {variable.high}] {variable.units}: it "
                f"spans {np.nanmin(values):.6g} to {np.nanmax(values):.6g}."
            )
        data[name].attrs.update(
            units=variable.units, long_name=variable.about, group=variable.group
        )
    # A coordinate of its own dims, such as the baselines of a sweep, must not be left behind.
    return data[list(known)].assign_coords(data.coords)


def pack(data: xr.Dataset) -> tuple[dict[str, np.ndarray], str]:
    """A dataset as arrays and one JSON text with dims, labels and attributes."""
    about = {
        "dims": {str(name): list(map(str, array.dims)) for name, array in data.data_vars.items()},
        "attrs": {str(name): array.attrs for name, array in data.data_vars.items()},
        "coords": {
            str(name): [list(map(str, coord.dims)), coord.to_numpy().tolist()]
            for name, coord in data.coords.items()
        },
    }
    arrays = {str(name): array.to_numpy() for name, array in data.data_vars.items()}
    return arrays, json.dumps(about)


def unpack(arrays: Mapping[str, np.ndarray], text: str) -> xr.Dataset:
    """The dataset that `pack` took apart."""
    about = json.loads(text)
    return xr.Dataset(
        {name: (dims, arrays[name], about["attrs"][name]) for name, dims in about["dims"].items()},
        coords={name: (dims, values) for name, (dims, values) in about["coords"].items()},
    )


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Arrays to a safetensors file, written beside its place and renamed."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        tensorfile.write(scratch, arrays, {"format": FORMAT, **metadata})
        tensorfile.replace_file(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_dataset(path: Path, data: xr.Dataset) -> None:
    """A dataset to one safetensors file."""
    arrays, text = pack(data)
    write(path, arrays, {"dataset": text})


def read_dataset(path: Path) -> xr.Dataset:
    """A dataset written by `write_dataset`; raises `SchemaError` naming a file that is none."""
    file = TensorFile(path)
    try:
        return unpack(file, file.metadata["dataset"])
    except (ValueError, KeyError, TypeError) as error:
        raise SchemaError(f"{path.name} in {path.parent} holds no trajectory ({error}).") from None


class Results:
    """A finished laboratory on disk; raises `SchemaError` for one that is missing or broken."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / ABOUT).is_file():
            raise SchemaError(f"{self.path} holds no laboratory: there is no {ABOUT} in it.")
        self.about = read_json(self.path / ABOUT)
        if self.about.get("format") != FORMAT or self.about.get("schema") != VERSION:
            raise SchemaError(f"{ABOUT} in {self.path} is not one this version reads; train again.")
        if not self.about.get("finished"):
            raise SchemaError(
                f"{self.path} holds an unfinished laboratory; run it again to go on where it "
                "stopped."
            )
        self._complete()
        for name, expected in self.about["files"].items():
            check_size(self.path / name, expected)

    def _complete(self) -> None:
        """Refuse a `laboratory.json` that lacks a field, or does not list a file it needs."""
        for field, kind in _FIELDS.items():
            if not isinstance(self.about.get(field), kind):
                raise SchemaError(
                    f"{ABOUT} in {self.path} has no {field!r} that can be read; train again."
                )
        # Weights may be missing: checkpoints of a model that was trained elsewhere are measured
        # and not stored again.
        needed = [f"{stack}{TRAJECTORY}" for stack in self.stacks]
        kept = self.about.get("kept", {})
        needed += [kept_file(stack, step) for stack in self.stacks for step in kept.get(stack, ())]
        if missing := sorted({*needed} - {*self.about["files"]}):
            raise SchemaError(f"{ABOUT} in {self.path} does not list {missing[0]}; train again.")

    def __repr__(self) -> str:
        return f"Results({str(self.path)!r}: {self.about['name']}, {', '.join(self.stacks)})"

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of the stacks of runs, in the order of training."""
        return tuple(self.about["stacks"])

    @property
    def cost(self) -> str:
        """What the training took, in words: in all, and stack by stack."""
        seconds = self.about["cpu_seconds"]
        each = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
        return f"{sum(seconds.values()):.0f} CPU seconds ({each})"

    @cached_property
    def trajectories(self) -> dict[str, xr.Dataset]:
        """What was logged, by stack; dims begin with (run, step)."""
        return {name: read_dataset(self._checked(f"{name}{TRAJECTORY}")) for name in self.stacks}

    def stack_of(self, run: str) -> str:
        """The stack in which a run was trained; raises `SchemaError` for an unknown run."""
        runs = self.about["runs"]
        for stack in self.stacks:
            if run in runs[stack]:
                return stack
        listed = ", ".join(label for stack in self.stacks for label in runs[stack])
        raise SchemaError(f"there is no run {run!r} in {self.path.name}; it has {listed}.")

    def steps(self, stack: str) -> tuple[int, ...]:
        """Numbers of steps after which parameters are there, ascending; the last is the end."""
        self._known(stack)
        kept = self.about.get("kept", {}).get(stack, [])
        return (*kept, int(self.trajectories[stack]["step"][-1]))

    def weights(self, stack: str, step: int | None = None) -> TensorFile:
        """Parameters of one stack by name, each [run, ...]: the final ones, or those after `step`.

        Raises `SchemaError` for a step whose parameters were not kept, and where none were.
        """
        self._known(stack)
        if f"{stack}{WEIGHTS}" not in self.about["files"]:
            raise SchemaError(f"{self.path} holds what was measured of {stack}, not its weights.")
        if step is None or step == self.steps(stack)[-1]:
            return TensorFile(self._checked(f"{stack}{WEIGHTS}"))
        if step not in self.steps(stack):
            listed = ", ".join(map(str, self.steps(stack)))
            raise SchemaError(
                f"there are no weights of {stack} after step {step}; this laboratory kept those "
                f"after {listed}."
            )
        return TensorFile(self._checked(kept_file(stack, step)))

    def _known(self, stack: str) -> None:
        if stack not in self.stacks:
            raise SchemaError(f"there is no stack {stack!r}; this laboratory has {self.stacks}.")

    def _checked(self, name: str) -> Path:
        path = self.path / name
        if fingerprint(path) != self.about["files"][path.name]:
            raise SchemaError(
                f"{path.name} in {self.path} is corrupt: its digest is not that of {ABOUT}; "
                "train again."
            )
        return path


@dataclass(frozen=True)
class Mark:
    """What a value must be: below or above a bound.

    >>> Mark("<", 0.5).met(0.4), Mark(">", 0.5).met(0.4), str(Mark("<", 0.5))
    (True, False, '< 0.5')
    """

    sign: str
    bound: float

    def __post_init__(self) -> None:
        if self.sign not in ("<", ">"):
            raise SchemaError(f"mark {self.sign!r} is neither '<' nor '>'.")

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"

    def met(self, value: float) -> bool:
        """NaN never meets a mark."""
        return value < self.bound if self.sign == "<" else value > self.bound


@dataclass(frozen=True)
class Law:
    """One claim of a paper with its numbers: `value` must meet the mark, `null` must not.

    `null` is the same statistic where the effect cannot be (`control` says where).  NaN as value
    means that the law does not apply to these runs.
    """

    name: str
    source: str
    statistic: str
    mark: Mark
    value: float
    control: str
    null: float

    @property
    def held(self) -> bool:
        return self.mark.met(self.value) and math.isfinite(self.null) and not self.null_passes

    @property
    def null_passes(self) -> bool:
        """True where the control meets the mark too, so that the value says nothing."""
        return self.mark.met(self.null)

    @property
    def verdict(self) -> str:
        if math.isnan(self.value):
            return "not applicable"
        return "held" if self.held else "not held"
