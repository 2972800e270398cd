"""What a study is, and the run directory it leaves: one frame for all of them.

    study.json            what was run: settings, seeds, versions, seconds, digests of the others
    report.html           everything on one page that opens without a network
    laws.parquet          one row per law
    tables/NAME.parquet   what the figures show, as numbers
    figures/NAME.json     the figures, in Plotly's format
    laboratory/, ...      what the study itself keeps in order to go on where it was stopped

Every file is written beside its place and renamed; `study.json` says `finished` last of all.  The
same study with the same settings goes on in its folder; any other content is refused.
"""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import pandas as pd

from workbench import tensorfile
from workbench.errors import WorkbenchError
from workbench.provenance import digest, versions
from workbench.runfiles import fingerprint, is_scratch, read_json, write_json, write_table
from workbench.zoo.claims import Finding

if TYPE_CHECKING:
    import plotly.graph_objects as go

FORMAT, VERSION = "attention-workbench study", 2
ABOUT, REPORT, LAWS = "study.json", "report.html", "laws.parquet"
QUICK, DEFAULT, FULL = "quick", "default", "full"
VERDICTS = ("held", "not held", "not applicable")

E = TypeVar("E")
Progress = Callable[[int, int, str], None]


class Config(Protocol):
    """A frozen dataclass; its JSON form holds everything that decides the numbers."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Picture:
    """A figure of the report; `name` is its file's."""

    name: str
    title: str
    caption: str
    figure: go.Figure


@dataclass(frozen=True)
class Plate(Generic[E]):
    """A picture before it is drawn; `needs` are the settings that must have been run."""

    name: str
    title: str
    caption: str
    draw: Callable[[E], go.Figure]
    needs: tuple[str, ...] = ()


def pictures(plates: Sequence[Plate[E]], evidence: E, settings: Collection[str]) -> list[Picture]:
    """The plates that these settings allow, drawn, in the order of the story."""
    return [
        Picture(plate.name, plate.title, plate.caption, plate.draw(evidence))
        for plate in plates
        if set(plate.needs) <= set(settings)
    ]


@dataclass(frozen=True)
class Content:
    """What a study found.

    `notes` are sentences a reader of the numbers must know; `banner` is the first thing to be said
    of a setting that is not the whole study.
    """

    findings: Sequence[Finding]
    pictures: Sequence[Picture]
    tables: Mapping[str, pd.DataFrame]
    notes: Sequence[str]
    seeds: Sequence[int]
    facts: Mapping[str, Any] = field(default_factory=dict)
    banner: str = ""


@dataclass(frozen=True)
class Study:
    """One finding of a paper.

    `cost` is what it takes here; `needs` says which model or data that is not here it wants, empty
    for none.  `configs` has a config per size; `run(config, folder, progress)` computes, keeping
    what it wants to find again in `folder`.
    """

    name: str
    question: str
    paper: str
    cost: str
    needs: str
    configs: Mapping[str, Any]
    run: Callable[[Any, Path, Progress], Content]

    def config(self, size: str = DEFAULT, **changes: Any) -> Any:
        """The config of this size with fields changed; raises for what the study does not take."""
        if size not in self.configs:
            raise WorkbenchError(
                f"study {self.name} has no {size} setting; it has {', '.join(self.configs)}."
            )
        config = self.configs[size]
        known = {f.name for f in dataclasses.fields(config)}
        for name in changes:
            if name not in known:
                option = name.replace("_", "-")
                raise WorkbenchError(f"study {self.name} takes no --{option}; leave it out.")
        return dataclasses.replace(config, **changes)


def perform(
    study: Study,
    config: Config,
    folder: str | Path,
    progress: Progress | None = None,
    command: str = "",
) -> Content:
    """Run a study into `folder`, or go on where an earlier start stopped, and write its report."""
    from workbench.studies import report

    folder = Path(folder)
    about = _open(folder, study, config)
    wall, cpu = time.monotonic(), time.process_time()
    content = study.run(config, folder, progress or _silent)
    about |= {
        "finished": False,
        "command": command,
        "seeds": list(content.seeds),
        "seconds": {
            "wall": round(time.monotonic() - wall, 1),
            "cpu": round(time.process_time() - cpu, 1),
        },
        "facts": dict(content.facts),
        "banner": content.banner,
        "laws": closing_line(content.findings),
        "notes": list(content.notes),
    }
    # A finished folder is rewritten: unfinished from here on, until every file is there again.
    write_json(folder / ABOUT, about)
    files = [LAWS, REPORT]
    write_table(folder / LAWS, law_table(content.findings))
    for kind in ("tables", "figures"):
        tensorfile.remove_tree(folder / kind)
        (folder / kind).mkdir()
    for name, table in content.tables.items():
        files.append(f"tables/{name}.parquet")
        write_table(folder / files[-1], table)
    for picture in content.pictures:
        files.append(f"figures/{picture.name}.json")
        _write_text(folder / files[-1], str(picture.figure.to_json()))
    _write_text(folder / REPORT, report.page(study, content, about))
    about |= {"files": {name: fingerprint(folder / name) for name in files}, "finished": True}
    write_json(folder / ABOUT, about)
    return content


def _silent(done: int, total: int, message: str) -> None:
    """Progress that nobody looks at."""


def _open(folder: Path, study: Study, config: Config) -> dict[str, Any]:
    """What `study.json` begins with, written if the folder is new."""
    settings = config.to_json()
    key = digest([study.name, settings])
    about = {
        "format": FORMAT,
        "schema": VERSION,
        "name": study.name,
        "question": study.question,
        "paper": study.paper,
        "key": key,
        "finished": False,
        "config": settings,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "revision": revision(),
    }
    try:
        if (folder / ABOUT).is_file():
            earlier = read_json(folder / ABOUT)
            if [earlier.get(name) for name in ("format", "schema", "key")] != [
                FORMAT, VERSION, key,
            ]:  # fmt: skip
                raise WorkbenchError(
                    f"{folder} holds another study or other settings; name another folder with "
                    "--out, or delete that one."
                )
            return about | {"created": earlier["created"], "continued": True}
        folder.mkdir(parents=True, exist_ok=True)
        if any(not is_scratch(entry) for entry in folder.iterdir()):
            raise WorkbenchError(
                f"{folder} is not empty and holds no study; name a new folder with --out."
            )
        about |= {"continued": False}
        write_json(folder / ABOUT, about)
    except OSError as error:
        raise WorkbenchError(
            f"{folder} cannot be written ({error.strerror}); name another folder with --out."
        ) from None
    return about


def revision() -> str:
    """The git revision of the checkout this code runs from, "" for an installed package."""
    root = Path(tensorfile.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:  # no git here
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _write_text(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8")
    tensorfile.replace_file(scratch, path)


def law_table(findings: Sequence[Finding]) -> pd.DataFrame:
    """One row per law, in order."""
    rows = [
        {
            "law": f.law.name,
            "source": f.law.source,
            "statistic": f.law.statistic,
            "value": f.law.value,
            "mark": str(f.law.mark),
            "control": f.law.control,
            "null": f.law.null,
            "n": f.n,
            "required": f.required,
            "verdict": f.law.verdict,
            "says": f.says,
        }
        for f in findings
    ]
    return pd.DataFrame(rows)


def closing_line(findings: Sequence[Finding]) -> str:
    """`laws: 9 held, 1 not held, 2 not applicable`."""
    return counted([finding.law.verdict for finding in findings])


def counted(verdicts: Sequence[str]) -> str:
    """The closing line of these verdicts."""
    return "laws: " + ", ".join(f"{verdicts.count(kind)} {kind}" for kind in VERDICTS)


def failures(findings: Sequence[Finding]) -> list[str]:
    """Names of the required laws that are not held."""
    return [f.law.name for f in findings if f.required and f.law.verdict == "not held"]
