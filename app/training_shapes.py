"""Variables of a trajectory that are more than curves: matrices and sweeps.

- a variable of group "circuits" whose last two dims are labelled is a matrix, rows by columns; the
  layer is that of the chosen head, every other dim gives one matrix per label;
- a variable of group "sweep" whose last dim is a number (of examples, of tokens) is a line over
  that dim; a coordinate NAME_baseline ("predictor", that dim) holds lines to compare it with.

Pure functions on datasets over `step`; nothing here knows of Dash.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from workbench.errors import WorkbenchError

CIRCUITS, SWEEP = "circuits", "sweep"
MOST_BLOCKS, MOST_SIDE = 16, 128  # matrices of one variable, and their rows or columns
MOST_LINES, MOST_SWEEPS = 6, 2


@dataclass(frozen=True, eq=False)
class Matrices:
    """One variable as matrices, `values` [step, block, row, column]; `blocks` are their labels."""

    name: str
    units: str
    about: str
    row_dim: str
    column_dim: str
    blocks: list[str]
    rows: list[str]
    columns: list[str]
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class Sweep:
    """One variable over `x`, a line [step, x] per label; `baseline` [x] by predictor."""

    name: str
    units: str
    about: str
    dim: str
    x: np.ndarray
    lines: dict[str, np.ndarray]
    baseline: dict[str, np.ndarray]


def is_matrix(array: xr.DataArray) -> bool:
    """Whether a variable [step, ...] is drawn as matrices."""
    inner = _inner(array)
    labelled = all(dim in array.coords for dim in inner)
    return array.attrs.get("group") == CIRCUITS and len(inner) > 1 and labelled


def is_sweep(array: xr.DataArray) -> bool:
    """Whether a variable [step, ...] is drawn as lines over its last dim."""
    inner = _inner(array)
    if array.attrs.get("group") != SWEEP or not inner or inner[-1] not in array.coords:
        return False
    return bool(np.issubdtype(array[inner[-1]].dtype, np.number))


def _inner(array: xr.DataArray) -> list[str]:
    return [str(dim) for dim in array.dims if dim != "step"]


def places(array: xr.DataArray, dims: list[str]) -> Iterator[tuple[str, dict[str, int]]]:
    """(label, place) for every combination of labels of these dims.

    A label that is a number has the name of its dim before it, `head 0`; dims of one label are not
    named.
    """
    labels = [[_label(array, dim, i) for i in range(array.sizes[dim])] for dim in dims]
    for place in np.ndindex(*map(len, labels)):
        said = [one[i] for one, i in zip(labels, place, strict=True) if len(one) > 1]
        yield " ".join(said), dict(zip(dims, place, strict=True))


def _label(array: xr.DataArray, dim: str, i: int) -> str:
    value = array[dim].to_numpy()[i]
    number = np.issubdtype(array[dim].dtype, np.number)
    return f"{words(dim)} {value}" if number else str(value)


def words(dim: str) -> str:
    """A dim as words.

    >>> words("query_coordinate")
    'query coordinate'
    """
    return dim.replace("_", " ")


def matrices(data: xr.Dataset) -> list[Matrices]:
    """Every variable that is drawn as matrices, the first `MOST_BLOCKS` of each.

    Raises `WorkbenchError` for one with more than `MOST_SIDE` rows or columns.
    """
    return [_matrices(str(name), array) for name, array in data.data_vars.items()
            if is_matrix(array)]  # fmt: skip


def _matrices(name: str, array: xr.DataArray) -> Matrices:
    *outer, rows, columns = _inner(array)
    if max(array.sizes[rows], array.sizes[columns]) > MOST_SIDE:
        raise WorkbenchError(
            f"{name} has {array.sizes[rows]} rows and {array.sizes[columns]} columns; the viewer "
            f"draws matrices of up to {MOST_SIDE}: log a part of it, or give it another group."
        )
    found = list(places(array, outer))[:MOST_BLOCKS]
    ordered = array.transpose("step", *outer, rows, columns)
    blocks = [ordered.isel(place).to_numpy().astype("float32") for _, place in found]
    row_labels, column_labels = (list(map(str, array[dim].to_numpy())) for dim in (rows, columns))
    attrs = array.attrs
    return Matrices(
        name, str(attrs.get("units", "")), str(attrs.get("long_name", "")), words(rows),
        words(columns), [label for label, _ in found], row_labels, column_labels,
        np.stack(blocks, axis=1),
    )  # fmt: skip


def sweeps(data: xr.Dataset) -> list[Sweep]:
    """The first `MOST_SWEEPS` variables that are drawn over their last dim, `MOST_LINES` of each.

    Raises `WorkbenchError` for a baseline with other dims.
    """
    found = [_sweep(data, str(name)) for name, array in data.data_vars.items() if is_sweep(array)]
    return found[:MOST_SWEEPS]


def _sweep(data: xr.Dataset, name: str) -> Sweep:
    array = data[name]
    *outer, dim = _inner(array)
    ordered = array.transpose("step", *outer, dim)
    lines = {
        label: ordered.isel(place).to_numpy().astype(float)
        for label, place in list(places(array, outer))[:MOST_LINES]
    }
    attrs = array.attrs
    return Sweep(
        name, str(attrs.get("units", "")), str(attrs.get("long_name", "")), words(dim),
        array[dim].to_numpy().astype(float), lines, _baseline(data, f"{name}_baseline", dim),
    )  # fmt: skip


def _baseline(data: xr.Dataset, name: str, dim: str) -> dict[str, np.ndarray]:
    if name not in data.coords:
        return {}
    array = data[name]
    if array.dims != ("predictor", dim) or "predictor" not in array.coords:
        raise WorkbenchError(
            f"{name} has dims {array.dims}; give it ('predictor', {dim!r}) and predictors names."
        )
    return {
        str(label): array.isel(predictor=i).to_numpy().astype(float)
        for i, label in enumerate(array["predictor"].to_numpy())
    }


def rounded(values: np.ndarray) -> list[float | None]:
    """Four digits; JSON has no NaN."""
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in values]
