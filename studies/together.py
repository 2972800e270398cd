"""What do all studies say together?  One page with every law, from the folders they left.

    all.html    every law of every study in the folder, with its verdict and a link to the report
    all.csv     the same as a table

Both are made anew from `study.json` and `laws.parquet` of the folders beside them; nothing is
computed twice.  A study that is unfinished, or whose files are not those of its `study.json`, is
named and left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import tensorfile
from workbench.errors import WorkbenchError
from workbench.runfiles import fingerprint, read_json
from workbench.studies import report
from workbench.studies.study import ABOUT, FORMAT, LAWS, REPORT, VERSION, counted

PAGE, TABLE = "all.html", "all.csv"
_FIRST = ["study", "folder"]


@dataclass(frozen=True, eq=False)
class Done:
    """A study on disk: what `study.json` holds and its law table; `problem` says what it lacks."""

    folder: str
    about: Mapping[str, Any]
    laws: pd.DataFrame
    problem: str = ""

    @property
    def verdicts(self) -> list[str]:
        """One per law, in order."""
        return [] if self.problem else self.laws["verdict"].astype(str).to_list()


def collect(root: Path) -> list[Done]:
    """Every study directly under `root`, by name; raises `WorkbenchError` where there is none."""
    folders = sorted(path.parent for path in root.glob(f"*/{ABOUT}"))
    if not folders:
        raise WorkbenchError(
            f"there is no study under {root}; run one with `workbench study NAME`, or name its "
            "folder with --out."
        )
    return [_read(folder) for folder in folders]


def _read(folder: Path) -> Done:
    nothing = pd.DataFrame()
    try:
        about = read_json(folder / ABOUT)
        if (about.get("format"), about.get("schema")) != (FORMAT, VERSION):
            return Done(folder.name, about, nothing, f"its {ABOUT} is not one this version reads")
        if not about.get("finished"):
            return Done(folder.name, about, nothing, "unfinished: run it again to go on")
        if fingerprint(folder / LAWS) != about["files"][LAWS]:
            return Done(folder.name, about, nothing, f"its {LAWS} is not the one it wrote")
        return Done(folder.name, about, pd.read_parquet(folder / LAWS))
    except (WorkbenchError, OSError, KeyError) as error:
        return Done(folder.name, {"name": folder.name}, nothing, str(error))


def table(studies: Sequence[Done]) -> pd.DataFrame:
    """The laws of all studies below each other."""
    parts = [
        done.laws.assign(study=done.about["name"], folder=done.folder)
        for done in studies
        if not done.problem
    ]
    joined = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_FIRST)
    return joined.loc[:, [*_FIRST, *(name for name in joined if name not in _FIRST)]]


def closing_line(studies: Sequence[Done]) -> str:
    """The closing line over all of them."""
    return counted([verdict for done in studies for verdict in done.verdicts])


def write(root: Path) -> list[Done]:
    """Write the page and the table into `root` and return what they hold."""
    studies = collect(root)
    _replace(root / PAGE, page(studies))
    _replace(root / TABLE, table(studies).to_csv(index=False))
    return studies


def _replace(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8")
    tensorfile.replace_file(scratch, path)


def page(studies: Sequence[Done]) -> str:
    """All laws on one page; the reports it links to lie in the folders beside it."""
    line = closing_line(studies)
    whole = [done for done in studies if not done.problem]
    overview = "".join(_row(done) for done in studies)
    head = (
        '<tr><th>study</th><th>question</th><th class="number">held</th>'
        '<th class="number">not held</th><th class="number">not applicable</th>'
        '<th class="number">CPU s, last start</th></tr>'
    )
    body = [
        "<h1>What the studies found</h1>",
        f'<p class="faint">{len(whole)} studies, made from the folders beside this page.</p>',
        f'<p class="closing">{escape(line)}</p>',
        f'<div class="panel scroll"><table>{head}{overview}</table></div>',
        "<h2>Every law</h2>",
        report.RULE,
        *(_section(done) for done in whole),
        f'<p class="closing">{escape(line)}</p>',
    ]
    return report.document(f"All studies: {line}", body)


def _link(done: Done) -> str:
    name = escape(done.folder)
    return f'<a href="{name}/{REPORT}">{name}</a>'


def _row(done: Done) -> str:
    if done.problem:
        said = f'<td colspan="5" class="faint">{escape(done.problem)}</td>'
        return f"<tr><td>{escape(done.folder)}</td>{said}</tr>"
    counts = "".join(
        f'<td class="number">{done.verdicts.count(kind)}</td>' for kind in report.VERDICTS
    )
    question = escape(done.about["question"])
    banner = f'<br><span class="statistic">{escape(done.about["banner"])}</span>'
    return (
        f'<tr><td class="short">{_link(done)}</td>'
        f"<td>{question}{banner if done.about['banner'] else ''}</td>{counts}"
        f'<td class="number">{done.about["seconds"]["cpu"]:,.0f}</td></tr>'
    )


def _section(done: Done) -> str:
    return (
        f'<h3 id="{escape(done.folder)}">{escape(done.about["question"])}</h3>'
        f'<p class="caption">{_link(done)}, after {escape(done.about["paper"])}. '
        f"{escape(done.about['laws'])}</p>{report.laws(done.laws)}"
    )
