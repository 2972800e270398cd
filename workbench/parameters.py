"""The numbers some statistics are defined with, in one frozen value.

Defaults follow the papers where there is one: waad_window and horizon are those of the reasoning
rhythm (Li et al. 2025, arXiv:2510.13554).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from workbench.errors import WorkbenchError
from workbench.schema import SCHEMA


@dataclass(frozen=True)
class Parameters:
    """`wb.capture(model, prompts, want=["rhythm"], parameters=wb.Parameters(horizon=(10, 100)))`.

    waad_window: tokens; longer distances count as this one (waad).
    local_window: tokens; keys less than this many away are local (local_mass).
    horizon: (low, high) tokens after a key, both included, high None for the end (fai).
    topk: keys kept per row (top_keys, top_probs).
    pool: tokens along the side of a block (block_mass, block_max).
    sink_dims: dimensions of the residual stream that sink tokens write (resid_phi); they differ
        from model to model, `probes.find_sink_dims` searches for them.
    """

    waad_window: int = 10
    local_window: int = 16
    horizon: tuple[int, int | None] = (10, 50)
    topk: int = 8
    pool: int = 64
    sink_dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("waad_window", "local_window", "topk", "pool"):
            value = getattr(self, name)
            if not _whole(value, least=1):
                raise WorkbenchError(f"{name}={value!r} is not a number of tokens; give 1 or more.")
        pair = self.horizon
        two = isinstance(pair, (tuple, list)) and len(pair) == 2 and _whole(pair[0])
        if not two or not (pair[1] is None or _whole(pair[1], least=pair[0])):
            raise WorkbenchError(
                f"horizon={pair!r} is no pair (low, high) of tokens with 0 <= low <= high; "
                "give one, or high None for the end of the text."
            )
        object.__setattr__(self, "horizon", tuple(pair))
        dims = self.sink_dims
        if not isinstance(dims, (tuple, list)) or not all(_whole(dim) for dim in dims):
            raise WorkbenchError(
                f"sink_dims={dims!r} is no list of dimensions of the residual stream; give some, "
                "such as (1415, 2533)."
            )
        object.__setattr__(self, "sink_dims", tuple(dims))

    def used(self, want: Sequence[str]) -> dict[str, Any]:
        """Those that `want` is defined with, by name.

        Raises `WorkbenchError` for one that was set and that nothing in `want` uses.

        >>> Parameters(pool=32).used(["entropy", "block_max"])
        {'pool': 32}
        """
        needed = {SCHEMA[name].parameter for name in want}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in needed and value != field.default:
                users = [name for name, v in SCHEMA.items() if v.parameter == field.name]
                raise WorkbenchError(
                    f"{field.name}={value!r} is given, but nothing in want is defined with it; add "
                    f"{' or '.join(users)}, or leave it out."
                )
        if "sink_dims" in needed and not self.sink_dims:
            raise WorkbenchError(
                "resid_phi needs the dimensions that sink tokens write; give "
                "wb.Parameters(sink_dims=...), found by probes.find_sink_dims or named by a paper."
            )
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in needed}


def of_kernels(used: dict[str, Any]) -> dict[str, Any]:
    """Those of `Parameters.used` that are arguments of the kernels.

    >>> of_kernels({"pool": 32, "sink_dims": (7,)})
    {'pool': 32}
    """
    return {name: value for name, value in used.items() if name != "sink_dims"}


def _whole(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def parse_parameters(texts: Sequence[str]) -> Parameters:
    """`NAME=NUMBER`, `horizon=LOW:HIGH` or `LOW:` for the end, and `sink_dims=A,B`, as the command
    line has them.

    >>> parse_parameters(["pool=32", "horizon=0:"]).horizon
    (0, None)
    """
    known = [field.name for field in fields(Parameters)]
    given: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known or not value:
            raise WorkbenchError(
                f"parameter {text!r} is not understood; write NAME=NUMBER with one of "
                f"{', '.join(known)}."
            )
        try:
            given[name] = _READ.get(name, int)(value)
        except ValueError:
            example = f"{name}={_EXAMPLES.get(name, '16')}"
            raise WorkbenchError(
                f"parameter {text!r} holds no number; write it as {example}."
            ) from None
    return Parameters(**given)


def _range(text: str) -> tuple[int, int | None]:
    low, colon, high = text.partition(":")
    if not colon:
        raise ValueError(text)
    return int(low), int(high) if high else None


def _several(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


_READ = {"horizon": _range, "sink_dims": _several}
_EXAMPLES = {"horizon": "10:50", "sink_dims": "1415,2533"}
