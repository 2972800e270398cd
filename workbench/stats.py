"""`HeadStats`: the one value everything passes along: labelled statistics, tokens, provenance.

It composes an `xarray.Dataset` whose variables are those of `workbench.schema`, a token table and a
`Provenance`.  Prompts of different lengths are padded with NaN, never with a sentinel.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import xarray as xr

from workbench.errors import SchemaError
from workbench.heads import Head
from workbench.provenance import Provenance, digest
from workbench.schema import SCHEMA
from workbench.spec import Spec

TOKEN_COLUMNS = ("prompt", "position", "id", "text", "role", "segment", "image_row", "image_col")
ROLES = ("special", "text", "image", "generated")
# Dims that grow with the text; bins and blocks are labelled by what they begin with.
_LONG = ("query", "key", "distance_bin", "query_block", "key_block")
# float32 sums of a hundred thousand probabilities stay this close to their bounds.
_SLACK = 1e-4


@dataclass(frozen=True)
class HeadStats:
    """Statistics of every head of one tower (`kind`) on a set of prompts.

    `data` has the dims of `workbench.schema`; `tokens` one row per (prompt, position) with the
    columns of `TOKEN_COLUMNS`; `arrays` optional per-prompt q and k
    (`"p0.L3.q"`: [head, query, d_head]) from which any pattern can be recomputed.
    """

    data: xr.Dataset
    tokens: pd.DataFrame
    spec: Spec
    provenance: Provenance
    kind: str = "text"
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        validate(self.data)
        missing = [c for c in TOKEN_COLUMNS if c not in self.tokens.columns]
        if missing:
            raise SchemaError(
                f"token table lacks the column {missing[0]!r}; it needs {', '.join(TOKEN_COLUMNS)}."
            )

    def __getitem__(self, name: str) -> xr.DataArray:
        if name not in self.data:
            have = ", ".join(map(str, self.data.data_vars))
            hint = self.provenance.missing.get(name) or (
                "capture again with it in want"
                if name in SCHEMA
                else "that is no statistic of the schema"
            )
            raise SchemaError(f"this HeadStats has no {name!r} ({hint}); it has {have}.")
        return self.data[name]

    def __contains__(self, name: object) -> bool:
        return name in self.data

    @property
    def lengths(self) -> xr.DataArray:
        """Number of tokens of every prompt, dims (prompt)."""
        counts = (
            self.tokens.groupby("prompt").size().reindex(self.data.indexes["prompt"], fill_value=0)
        )
        return xr.DataArray(
            counts.to_numpy(), dims="prompt", coords={"prompt": self.data["prompt"]}
        )

    def summary(self) -> str:
        """A few lines for people: model, prompts, statistics, and what was asked for in vain."""
        sizes = ", ".join(f"{n} {dim}" for dim, n in self.data.sizes.items())
        lines = [
            f"{self.kind} tower of {self.provenance.model}: {sizes}",
            "statistics " + ", ".join(map(str, self.data.data_vars)),
            *missing_lines(self.provenance.missing),
            *self.provenance.notes,
        ]
        return "\n".join(lines)

    def heads(self) -> list[Head]:
        """Every (layer, head) that exists in the model, in order."""
        return [
            Head(site.layer, head, self.kind)
            for site in self.spec.of(self.kind)
            for head in range(site.n_heads)
        ]

    def only(self, names: tuple[str, ...] | list[str]) -> HeadStats:
        """The same value with no other variables than `names` (what a probe's contract test
        needs)."""
        return replace(self, data=self.data[list(names)], arrays={})

    def prompt(self, prompt: int) -> HeadStats:
        """One prompt alone, cut to its own length."""
        if prompt not in self.data.indexes["prompt"]:
            raise SchemaError(
                f"prompt {prompt} is not in this HeadStats, which holds prompts "
                f"{self.data.indexes['prompt'].min()} to {self.data.indexes['prompt'].max()}."
            )
        tokens = self.tokens[self.tokens["prompt"] == prompt]
        data = self.data.sel(prompt=[prompt])
        # Towers whose keys are not the prompt's own tokens (cross-attention) keep their length.
        if self.kind != "cross":
            data = data.isel({d: _within(data, d, len(tokens)) for d in _LONG if d in data.dims})
        return replace(self, data=data, tokens=tokens.reset_index(drop=True))


def dim_labels(dim: str, n: int, pool: int | None = None) -> np.ndarray:
    """Labels of a dim of size n: the smallest distance of a bin, the first position of a block of
    `pool` positions, else the index.

    >>> dim_labels("distance_bin", 5).tolist(), dim_labels("key_block", 3, 64).tolist()
    ([0, 1, 2, 4, 8], [0, 64, 128])
    """
    if dim == "distance_bin":
        return np.array([0, *(1 << b for b in range(n - 1))][:n])
    return np.arange(n) * (pool or 1 if dim.endswith("_block") else 1)


def missing_lines(missing: Mapping[str, str]) -> list[str]:
    """One line per reason: which statistics are missing, and why.

    >>> missing_lines({"lse": "not in a map", "q_norm": "not in a map"})
    ['missing lse, q_norm: not in a map']
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in missing.items():
        reasons.setdefault(reason, []).append(name)
    return [f"missing {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _within(data: xr.Dataset, dim: str, length: int) -> slice:
    """What of a dim belongs to a text of `length` tokens: a bin or block that begins in it."""
    labels = data[dim].to_numpy() if dim in data.coords else np.arange(data.sizes[dim])
    return slice(int((labels < length).sum()))


def validate(data: xr.Dataset) -> None:
    """Check names, dims and bounds of every variable; raises `SchemaError` naming the first
    offence."""
    for name, array in data.data_vars.items():
        variable = SCHEMA.get(str(name))
        if variable is None:
            raise SchemaError(f"unknown statistic {name!r}; known: {', '.join(SCHEMA)}.")
        if array.dims != variable.dims:
            raise SchemaError(f"{name} has dims {array.dims}, expected {variable.dims}.")
        if not array.size:
            continue
        # NaN is padding: comparisons with it are False, which is what is wanted here.
        slack = _SLACK * max(1.0, abs(variable.high) if np.isfinite(variable.high) else 1.0)
        values = array.to_numpy()
        if (values < variable.low - slack).any() or (values > variable.high + slack).any():
            raise SchemaError(
                f"{name} leaves its bounds [{variable.low}, {variable.high}] {variable.units}: "
                f"it spans {np.nanmin(values):.6g} to {np.nanmax(values):.6g}."
            )


def label(data: xr.Dataset) -> xr.Dataset:
    """Attach unit and meaning to every variable, so a table or figure can say them."""
    for name in data.data_vars:
        variable = SCHEMA[str(name)]
        data[name].attrs.update(units=variable.units, long_name=variable.about)
    return data


def concat(parts: Sequence[HeadStats]) -> HeadStats:
    """Several captures of the same model and settings as one, ordered by prompt.

    Shorter prompts are padded with NaN to the longest query and key, a role that a part does not
    know is NaN there; arrays stay where they are (lazy ones are not read).  The provenance is that
    of the first part, with seconds summed and notes united.  Raises `SchemaError` when tower, spec,
    settings, interventions or variables differ, or a prompt occurs twice.
    """
    if not parts:
        raise SchemaError("there is nothing to join: give at least one HeadStats.")
    first = parts[0]
    for other in parts[1:]:
        _refuse_different(first, other)
    data = _join([part.data for part in parts])
    prompts = data.indexes["prompt"]
    if prompts.has_duplicates:
        again = prompts[prompts.duplicated()][0]
        raise SchemaError(
            f"prompt {again} occurs in two of the joined captures; number them apart first."
        )
    tokens = pd.concat([part.tokens for part in parts], ignore_index=True)
    tokens = tokens.sort_values(["prompt", "position"], kind="stable", ignore_index=True)
    arrays: Mapping[str, np.ndarray] = ChainMap(*(part.arrays for part in parts))  # type: ignore[arg-type]
    return replace(
        first,
        data=data.sortby("prompt"),
        tokens=tokens,
        provenance=_join_provenance([part.provenance for part in parts]),
        arrays=arrays,
    )


def _refuse_different(first: HeadStats, other: HeadStats) -> None:
    a, b = first.provenance, other.provenance
    pairs = {
        "tower (kind)": (first.kind, other.kind),
        "model": ((a.model, a.revision, a.dtype), (b.model, b.revision, b.dtype)),
        "model spec": (first.spec, other.spec),
        "settings": (digest(a.settings), digest(b.settings)),
        "interventions": (digest(a.interventions), digest(b.interventions)),
        "statistics": (set(first.data.data_vars), set(other.data.data_vars)),
    }
    for what, (left, right) in pairs.items():
        if left != right:
            raise SchemaError(
                f"captures with different {what} cannot be joined; keep them as separate runs."
            )


def _join(parts: list[xr.Dataset]) -> xr.Dataset:
    """Datasets along `prompt`, every other dim widened to the union of its labels in order of
    arrival."""
    # A dim without labels is counted from 0; it needs labels only where the parts differ in length.
    uneven = {d for part in parts for d, n in part.sizes.items() if n != parts[0].sizes.get(d, n)}
    numbered = [
        part.assign_coords(
            {
                d: np.arange(part.sizes[d])
                for d in uneven - {"prompt"}
                if d in part.dims and d not in part.coords
            }
        )
        for part in parts
    ]
    union: dict[Hashable, np.ndarray] = {}
    for part in numbered:
        for dim in part.dims:
            if dim != "prompt" and dim in part.coords:
                labels = [*union.get(dim, ()), *part[dim].to_numpy().tolist()]
                union[dim] = np.array(list(dict.fromkeys(labels)))
    wide = [part.reindex({d: v for d, v in union.items() if d in part.dims}) for part in numbered]
    joined = xr.concat(
        wide, "prompt", join="exact", data_vars="all", coords="minimal", compat="override"
    )
    return label(joined)


def _join_provenance(parts: list[Provenance]) -> Provenance:
    first = parts[0]
    prompts = list(dict.fromkeys(part.prompts for part in parts))
    return replace(
        first,
        # Batches of one run carry the digest of all its prompts; separate runs get one of their
        # own.
        prompts=first.prompts if len(prompts) == 1 else digest(prompts),
        bos=first.bos if len({part.bos for part in parts}) == 1 else "mixed",
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        seconds=sum(part.seconds for part in parts),
    )
