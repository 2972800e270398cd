"""Values to the files of a run and back: tables in parquet, arrays in safetensors, JSON.

Every file is written under a scratch name, through to the disk, and renamed; every reader names the
file it cannot read in one sentence.  `workbench.runs` decides which files there are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from workbench import tensorfile
from workbench.errors import SchemaError
from workbench.provenance import Provenance
from workbench.schema import ROW, SCHEMA
from workbench.spec import Spec
from workbench.stats import HeadStats, label
from workbench.tensorfile import TensorFile

FORMAT, VERSION = "attention-workbench run", 1
MANIFEST, PROGRESS, PARTS = "manifest.json", "progress.json", "parts"
STATS, QK, TOKENS = "stats.safetensors", "qk.safetensors", "tokens.parquet"
HEADS, ROWS, INTERVENTIONS = "heads.parquet", "stats.parquet", "interventions.parquet"
FILES = {STATS, TOKENS, HEADS, ROWS, QK, INTERVENTIONS}
REQUIRED = {STATS, TOKENS, HEADS, ROWS}
_FIELDS = {"id": str, "model": str, "kind": str, "spec": dict, "files": dict, "created": str}


def write_values(folder: Path, stats: HeadStats, arrays: list[Mapping] | None = None) -> None:
    """Write statistics, labels, tokens and kept arrays of `stats` into `folder`.

    `arrays` replaces `stats.arrays` by several mappings, whose bytes are copied file to file.
    """
    data = stats.data
    coords = {
        str(name): [list(map(str, coord.dims)), coord.to_numpy().tolist()]
        for name, coord in data.coords.items()
    }
    arrays = [stats.arrays] if arrays is None and len(stats.arrays) else arrays or []
    variables = {
        str(name): array.to_numpy().astype("<f4") for name, array in data.data_vars.items()
    }
    scratch = folder / f".{STATS}.tmp"
    tensorfile.write(scratch, variables, {"format": FORMAT, "coords": json.dumps(coords)})
    tensorfile.replace_file(scratch, folder / STATS)
    if arrays:
        scratch = folder / f".{QK}.tmp"
        tensorfile.merge(scratch, arrays, {"format": FORMAT})
        tensorfile.replace_file(scratch, folder / QK)
    write_table(folder / TOKENS, stats.tokens)


def read_part(folder: Path) -> HeadStats:
    """The values of one finished part; its arrays stay on disk."""
    about = read_json(folder / MANIFEST)
    arrays = TensorFile(folder / QK) if (folder / QK).exists() else {}
    tokens = read_table(folder / TOKENS)
    return assemble(folder, about, about["provenance"], arrays, tokens)


def is_whole(folder: Path) -> bool:
    """Whether a part can be read: its files are there and none is cut off."""
    try:
        read_json(folder / MANIFEST)
        TensorFile(folder / STATS)
        read_table(folder / TOKENS)
        if (folder / QK).exists():
            TensorFile(folder / QK)
    except SchemaError:
        return False
    return True


def assemble(
    folder: Path, about: dict, provenance: dict, arrays: Mapping, tokens: pd.DataFrame
) -> HeadStats:
    """`HeadStats` from the files of a folder and the JSON forms of spec and provenance."""
    file = TensorFile(folder / STATS)
    try:
        coords = json.loads(file.metadata["coords"])
        data = xr.Dataset(
            {name: (SCHEMA[name].dims, file[name]) for name in SCHEMA if name in file},
            coords={name: (dims, values) for name, (dims, values) in coords.items()},
        )
        unknown = set(file) - set(SCHEMA)
        if unknown:
            raise ValueError(f"unknown statistic {min(unknown)!r}")
        spec, origin = Spec.from_json(about["spec"]), Provenance.from_json(provenance)
    except (ValueError, KeyError, TypeError) as error:
        raise SchemaError(f"{STATS} in {folder} is not as a run has it ({error}).") from None
    return HeadStats(label(data), tokens, spec, origin, kind=about["kind"], arrays=arrays)


def row_means(stats: HeadStats) -> pd.DataFrame:
    """One row per prompt, layer and head of the model; roles become columns of their own."""
    columns: dict[str, xr.DataArray] = {}
    for name, array in stats.data.data_vars.items():
        if array.dims == ROW:
            columns[str(name)] = array.mean("query", skipna=True)
        elif name == "role_mass":
            means = array.mean("query", skipna=True)
            columns.update(
                {f"role_mass_{r}": means.sel(role=r, drop=True) for r in means["role"].to_numpy()}
            )
    prompts = stats.data.indexes["prompt"]
    index = pd.MultiIndex.from_tuples(
        [(p, h.layer, h.head, str(h)) for p in prompts for h in stats.heads()],
        names=["prompt", "layer", "head", "label"],
    )
    table = index.to_frame(index=False)
    at = {d: xr.DataArray(table[d].to_numpy(), dims="row") for d in ("prompt", "layer", "head")}
    for name, means in columns.items():
        table[name] = means.sel(at).to_numpy().astype("float32")
    return table


def summary(stats: HeadStats, rows: pd.DataFrame, extra: pd.DataFrame | None) -> pd.DataFrame:
    """Mean, spread and number over prompts of every row mean, one row per head, then `extra`."""
    table = pd.DataFrame(
        [(h.layer, h.head, str(h)) for h in stats.heads()], columns=["layer", "head", "label"]
    )
    names = [c for c in rows.columns if c not in ("prompt", "layer", "head", "label")]
    grouped = rows.groupby(["layer", "head"], sort=False)
    for name in names:
        found = grouped[name].agg(["mean", "std", "count"])
        found.columns = [name, f"{name}_sd", f"{name}_n"]
        table = table.merge(found.reset_index(), on=["layer", "head"], how="left")
    return table if extra is None else merge_columns(table, extra)


def merge_columns(table: pd.DataFrame, extra: pd.DataFrame) -> pd.DataFrame:
    """`table` with the columns of `extra` joined by layer and head; those of `extra` win."""
    new = [c for c in extra.columns if c not in ("layer", "head", "label")]
    kept = table.drop(columns=[c for c in new if c in table.columns])
    return kept.merge(extra[["layer", "head", *new]], on=["layer", "head"], how="left")


def intervention_rows(provenance: Provenance) -> pd.DataFrame:
    """One row per intervention in order, as JSON text."""
    texts = [json.dumps(i, sort_keys=True, default=str) for i in provenance.interventions]
    return pd.DataFrame({"order": range(len(texts)), "intervention": texts})


def is_scratch(entry: Path) -> bool:
    """True for what an interrupted write left behind."""
    return entry.name.startswith(".") and entry.name.endswith(".tmp")


def is_run(folder: Path) -> bool:
    """True for a folder with a finished or unfinished run."""
    return (folder / MANIFEST).is_file() or (folder / PROGRESS).is_file()


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    scratch = path.with_name(f".{path.name}.tmp")
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    scratch.write_text(text + "\n", encoding="utf-8")
    _sync(scratch)
    tensorfile.replace_file(scratch, path)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as parquet, atomically."""
    scratch = path.with_name(f".{path.name}.tmp")
    table.to_parquet(scratch, engine="pyarrow", compression="zstd", index=False)
    _sync(scratch)
    tensorfile.replace_file(scratch, path)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def read_table(path: Path) -> pd.DataFrame:
    """A parquet table; raises `SchemaError` with the name of a file that is none."""
    from pyarrow import ArrowException

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SchemaError(
            f"{path.name} in {path.parent} is no readable table ({reason})."
        ) from None


def read_json(path: Path) -> dict:
    """A JSON object; raises `SchemaError` with the name of a file that holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SchemaError(f"{path.name} in {path.parent} is not readable JSON ({error}).") from None
    if not isinstance(value, dict):
        raise SchemaError(f"{path.name} in {path.parent} is foreign: it holds no object.")
    return value


def read_manifest(folder: Path) -> dict:
    """The manifest of a finished run, checked; raises `SchemaError` in one sentence."""
    if not (folder / MANIFEST).is_file():
        if (folder / PROGRESS).is_file():
            done = sum(not is_scratch(f) for f in (folder / PARTS).glob("*"))
            raise SchemaError(
                f"{folder} holds an unfinished run ({done} parts); repeat the capture to finish it."
            )
        raise SchemaError(f"{folder} holds no run: there is no {MANIFEST} in it.")
    manifest = read_json(folder / MANIFEST)
    version = manifest.get("schema")
    if manifest.get("format") != FORMAT or not isinstance(version, int):
        raise SchemaError(f"{MANIFEST} in {folder} is foreign: it is not that of an {FORMAT}.")
    if version != VERSION:
        raise SchemaError(
            f"{MANIFEST} in {folder} has schema version {version}, this is for version {VERSION}; "
            f"{'upgrade attention-workbench' if version > VERSION else 'capture the run again'}."
        )
    for name, kind in _FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            raise SchemaError(
                f"{MANIFEST} in {folder} lacks a valid {name!r}; capture the run again."
            )
    listed = set(manifest["files"])
    if not REQUIRED <= listed <= FILES:
        wrong = min((REQUIRED - listed) | (listed - FILES))
        raise SchemaError(f"{MANIFEST} in {folder} does not list the files of a run ({wrong}).")
    return manifest


def fingerprint(path: Path) -> dict:
    """Size and SHA-256 of a file, as in the manifest."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": path.stat().st_size, "sha256": found}
    except OSError as error:
        raise SchemaError(
            f"{path.name} in {path.parent} cannot be read ({error.strerror})."
        ) from None


def check_size(path: Path, about: object) -> None:
    """Refuse a file that is missing or has another size than the manifest says."""
    expected = about.get("bytes") if isinstance(about, dict) else None
    if not path.is_file():
        raise SchemaError(f"{path.name} is missing in {path.parent}; capture the run again.")
    size = path.stat().st_size
    if size != expected:
        verb = (
            "truncated"
            if isinstance(expected, int) and size < expected
            else "not the file of this run"
        )
        raise SchemaError(
            f"{path.name} in {path.parent} is {verb}: {size} bytes, the manifest says {expected}."
        )
