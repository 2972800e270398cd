"""Run directories: what a capture leaves on disk, written so that nothing finished is ever lost.

    manifest.json        where everything came from, and the size and digest of every other file
    heads.parquet        one row per layer and head: NAME, NAME_sd, NAME_n, for probes NAME_null
    stats.parquet        one row per prompt, layer and head: row statistics averaged over queries
    tokens.parquet       one row per prompt and position
    stats.safetensors    every statistic as float32, labels of the dims in the metadata
    qk.safetensors       queries and keys (or patterns) per prompt and layer, when they were kept
    interventions.parquet   what was changed in the model, when something was

While a run is being made its finished parts lie in `parts/` and `progress.json` says whose they
are; the manifest is written last, so a directory with a manifest is whole.  Nothing is pickled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from workbench import tensorfile
from workbench.errors import SchemaError, WorkbenchError
from workbench.provenance import digest
from workbench.runfiles import (
    FORMAT,
    HEADS,
    INTERVENTIONS,
    MANIFEST,
    PARTS,
    PROGRESS,
    QK,
    ROWS,
    STATS,
    TOKENS,
    VERSION,
    assemble,
    check_size,
    fingerprint,
    intervention_rows,
    is_run,
    is_scratch,
    is_whole,
    merge_columns,
    read_json,
    read_manifest,
    read_part,
    read_table,
    row_means,
    summary,
    write_json,
    write_table,
    write_values,
)
from workbench.stats import HeadStats, concat
from workbench.tensorfile import TensorFile

__all__ = ["Run", "RunSummary", "RunWriter", "find_run", "list_runs", "open_run", "save", "wide"]

# A run is also reached through a name in an address of the app: no separators, no leading dot.
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class RunWriter:
    """Writes one run part by part; a second writer with the same `key` goes on where one stopped.

    `key` is the digest of model, prompts and settings.  A directory that holds a finished run,
    another run's parts, or anything else is refused with a `WorkbenchError`.  Parts that cannot be
    read any more are deleted, their numbers being in `damaged`: they have to be made again.
    """

    def __init__(self, path: str | Path, *, key: str, manifest: dict) -> None:
        self.path, self.key, self.manifest = Path(path), key, dict(manifest)
        self._parts = self.path / PARTS
        if self._exists(MANIFEST):
            raise WorkbenchError(
                f"{self.path} already holds a finished run; open it with workbench.open_run, "
                f"or name another directory."
            )
        progress = self.path / PROGRESS
        if self._exists(PROGRESS):
            if read_json(progress).get("key") != key:
                raise WorkbenchError(
                    f"{self.path} holds the beginning of another run (other model, prompts or "
                    f"settings); name another directory, or delete that one."
                )
        else:
            self._start(progress)
        for leftover in self._parts.glob(".*.tmp"):
            tensorfile.remove_tree(leftover)
        broken = [folder for folder in sorted(self._parts.glob("[0-9]*")) if not is_whole(folder)]
        for folder in broken:
            tensorfile.remove_tree(folder)
        self.damaged = tuple(int(folder.name) for folder in broken)

    def _start(self, progress: Path) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if any(not is_scratch(entry) for entry in self.path.iterdir()):
                raise WorkbenchError(
                    f"{self.path} is not empty and holds no run; name a new directory for the run."
                )
            self._parts.mkdir(exist_ok=True)
            write_json(progress, {"format": FORMAT, "schema": VERSION, "key": self.key})
        except OSError as error:
            raise self._not_writable(error) from None

    def _exists(self, name: str) -> bool:
        try:
            return (self.path / name).exists()
        except OSError as error:
            raise self._not_writable(error) from None

    def _not_writable(self, error: OSError) -> WorkbenchError:
        return WorkbenchError(
            f"{self.path} cannot be written ({error.strerror}); name another directory."
        )

    def _folder(self, part: int) -> Path:
        return self._parts / f"{part:06d}"

    def has(self, part: int) -> bool:
        """True if this part is on disk, whole."""
        return self._folder(part).is_dir()

    def add(self, part: int, stats: HeadStats) -> None:
        """Store one part: written beside its place, through to the disk, then renamed."""
        if self.has(part):
            raise WorkbenchError(f"part {part} of {self.path} is already written; ask has() first.")
        scratch = self._parts / f".{part:06d}.tmp"
        tensorfile.remove_tree(scratch)
        scratch.mkdir()
        write_values(scratch, stats)
        about = {
            "kind": stats.kind,
            "spec": stats.spec.to_json(),
            "provenance": stats.provenance.to_json(),
        }
        write_json(scratch / MANIFEST, about)
        tensorfile.sync_folder(scratch)
        tensorfile.replace_file(scratch, self._folder(part))

    def finish(self, stats_summary: pd.DataFrame | None = None) -> Run:
        """Join the parts into the run's files, write the manifest, remove the parts.

        `stats_summary` is a table with `layer`, `head` and further columns (see `wide`) to put
        into `heads.parquet` beside the plain means.
        """
        folders = sorted(f for f in self._parts.iterdir() if not is_scratch(f))
        if not folders:
            raise WorkbenchError(
                f"nothing was captured into {self.path}; add a part before finishing."
            )
        parts = [read_part(folder) for folder in folders]
        stats = concat(parts)
        rows = row_means(stats)
        kept = [part.arrays for part in parts if len(part.arrays)]
        write_values(self.path, stats, kept)
        write_table(self.path / ROWS, rows)
        write_table(self.path / HEADS, summary(stats, rows, stats_summary))
        written = [STATS, TOKENS, ROWS, HEADS, *([QK] if kept else [])]
        if stats.provenance.interventions:
            write_table(self.path / INTERVENTIONS, intervention_rows(stats.provenance))
            written.append(INTERVENTIONS)
        tensorfile.sync_folder(self.path)
        write_json(self.path / MANIFEST, self._manifest_of(stats, written))
        tensorfile.remove_tree(self._parts)
        (self.path / PROGRESS).unlink(missing_ok=True)
        return Run(self.path)

    def _manifest_of(self, stats: HeadStats, written: Iterable[str]) -> dict:
        return {
            **self.manifest,
            **stats.provenance.to_json(),
            "format": FORMAT,
            "schema": VERSION,
            "id": self.path.resolve().name,
            "key": self.key,
            "kind": stats.kind,
            "n_prompts": int(stats.data.sizes["prompt"]),
            "n_tokens": len(stats.tokens),
            "statistics": [str(name) for name in stats.data.data_vars],
            "spec": stats.spec.to_json(),
            "files": {name: fingerprint(self.path / name) for name in written},
        }


class Run:
    """A finished run on disk; tables and statistics are read, and checked, when first asked for.

    Opening reads the manifest and compares the size of every file, and raises `SchemaError` with
    the name of the first file that is missing, truncated or foreign.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest: dict = read_manifest(self.path)
        for name, about in self.manifest["files"].items():
            check_size(self.path / name, about)

    def __repr__(self) -> str:
        about = self.manifest
        return f"Run({str(self.path)!r}: {about['model']}, {about.get('n_prompts')} prompts)"

    @property
    def id(self) -> str:
        """Name of the directory."""
        return self.path.resolve().name

    @cached_property
    def heads(self) -> pd.DataFrame:
        """One row per layer and head."""
        return self._table(HEADS)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per prompt, layer and head: means over the queries."""
        return self._table(ROWS)

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One row per prompt and position."""
        return self._table(TOKENS)

    @cached_property
    def stats(self) -> HeadStats:
        """The captured values; q and k stay on disk until `patterns.pattern_of` asks for them."""
        self._check_digest(STATS)
        arrays = TensorFile(self.path / QK) if QK in self.manifest["files"] else {}
        return assemble(self.path, self.manifest, self.manifest, arrays, self.tokens)

    def add_summary(self, table: pd.DataFrame) -> None:
        """Put further columns (see `wide`) into `heads.parquet`; nothing else changes."""
        scratch = self.path / f".{HEADS}.tmp"
        write_table(scratch, merge_columns(self.heads, table))
        files = {**self.manifest["files"], HEADS: fingerprint(scratch)}
        tensorfile.replace_file(scratch, self.path / HEADS)
        self.manifest = {**self.manifest, "files": files}
        write_json(self.path / MANIFEST, self.manifest)
        self.__dict__.pop("heads", None)

    def check(self) -> None:
        """Compare every byte of every file with the digests of the manifest."""
        for name in self.manifest["files"]:
            self._check_digest(name)

    def _table(self, name: str) -> pd.DataFrame:
        self._check_digest(name)
        return read_table(self.path / name)

    def _check_digest(self, name: str) -> None:
        expected = self.manifest["files"][name]
        check_size(self.path / name, expected)
        if fingerprint(self.path / name) != expected:
            raise SchemaError(
                f"{name} in {self.path} is corrupt: its digest is not that of the manifest; "
                f"capture the run again."
            )


@dataclass(frozen=True)
class RunSummary:
    """What a list of runs shows without reading numbers; `problem` is a sentence, or empty."""

    id: str
    path: Path
    model: str = ""
    kind: str = ""
    created: str = ""
    n_prompts: int = 0
    n_tokens: int = 0
    problem: str = ""


def open_run(path: str | Path) -> Run:
    """Open a finished run directory; raises `SchemaError` naming what is missing or broken."""
    return Run(path)


def save(stats: HeadStats, path: str | Path) -> Run:
    """Write statistics that are already in memory as a run directory."""
    key = digest([stats.provenance.to_json(), stats.kind, sorted(map(str, stats.data.data_vars))])
    writer = RunWriter(path, key=key, manifest={})
    if not writer.has(0):
        writer.add(0, stats)
    return writer.finish()


def find_run(root: str | Path, run_id: str) -> Run:
    """The run of this name directly under `root`; a name with separators is refused."""
    if not _RUN_ID.fullmatch(run_id):
        raise WorkbenchError(
            f"run name {run_id[:60]!r} is not allowed; use letters, digits, dot, dash, underscore."
        )
    return Run(Path(root) / run_id)


def list_runs(root: str | Path) -> list[RunSummary]:
    """Runs under `root` (or `root` itself), newest first; a broken one with its problem."""
    root = Path(root)
    if not root.is_dir():
        raise WorkbenchError(f"{root} is not a directory; give the folder that holds your runs.")
    if is_run(root):
        return [_summarise(root)]
    found = [_summarise(f) for f in root.iterdir() if _RUN_ID.fullmatch(f.name) and is_run(f)]
    return sorted(found, key=lambda s: (s.created, s.id), reverse=True)


def wide(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Probe tables (one row per head, columns `value, sd, n, null`) side by side, one row per head.

    The value of a probe is in the column of its name, the rest in `NAME_sd`, `NAME_n`, `NAME_null`.
    """
    columns = []
    for name, table in tables.items():
        names = {"value": name, "sd": f"{name}_sd", "n": f"{name}_n", "null": f"{name}_null"}
        kept = table.set_index(["layer", "head"])[list(names)]
        columns.append(kept.rename(names, axis="columns"))
    if not columns:
        return pd.DataFrame({"layer": pd.Series(dtype="int64"), "head": pd.Series(dtype="int64")})
    return pd.concat(columns, axis=1).reset_index()


def _summarise(folder: Path) -> RunSummary:
    try:
        about = Run(folder).manifest
    except SchemaError as problem:
        return RunSummary(folder.name, folder, problem=str(problem))
    return RunSummary(
        id=folder.resolve().name,
        path=folder,
        model=about["model"],
        kind=about["kind"],
        created=about["created"],
        n_prompts=int(about.get("n_prompts", 0)),
        n_tokens=int(about.get("n_tokens", 0)),
    )
