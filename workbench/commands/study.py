"""`workbench study`: repeat a paper's finding end to end; lists what there is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.commands import console
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.studies.study import Content, Study

_ROOT = Path("runs") / "studies"


def study(
    name: Annotated[str, typer.Argument(help="Name of a study; or list, all, report.")] = "list",
    quick: Annotated[
        bool, typer.Option("--quick", help="A short look: fewer steps, fewer laws.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="The paper's own size; see the list for its cost.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Hub id, directory or zoo:NAME, for studies of a model.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Texts for --model: .txt with blank lines between, or .jsonl."),
    ] = None,
    revisions: Annotated[
        str | None,
        typer.Option(help="Checkpoints of --model, with commas between: step0,step512."),
    ] = None,
    text_file: Annotated[
        Path | None, typer.Option(help="Text to count a language in, for studies that train.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory; default ./runs/studies/NAME.")
    ] = None,
) -> None:
    """Repeat a paper's finding end to end and say which of its laws held. Exit status 1 when a
    required law is not held. A stopped study goes on where it was when called again. `all` repeats
    every study and lists all laws on one page; `report` makes that page of the studies there are.
    """
    from workbench.studies import registry
    from workbench.studies.study import DEFAULT, FULL, QUICK

    asked = {"model": model, "prompts": prompts, "revisions": revisions, "text_file": text_file}
    changes = {option: str(value) for option, value in asked.items() if value is not None}
    if quick and full:
        raise WorkbenchError("--quick and --full exclude one another; give one of them.")
    size = QUICK if quick else FULL if full else DEFAULT
    if name == "list":
        if changes or out or size != DEFAULT:
            raise WorkbenchError("the list takes no options; name a study to run it.")
        _list()
        return
    if name in ("all", "report"):
        if changes or size == FULL or (name == "report" and size != DEFAULT):
            raise WorkbenchError(
                f"{name} takes no option but --out, and all takes --quick; leave them out, or "
                "name one study."
            )
        root = out or _ROOT
        failed = _every(size, root) if name == "all" else []
        _together(root)
        if failed:
            raise typer.Exit(1)
        return
    found = registry.find(name)
    config = found.config(size, **changes)
    failed = _perform(found, config, size, out or _ROOT / _folder(name, size), changes)
    if failed:
        raise typer.Exit(1)


def _folder(name: str, size: str) -> str:
    from workbench.studies.study import DEFAULT

    return name if size == DEFAULT else f"{name}-{size}"


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _list() -> None:
    from workbench.studies.registry import STUDIES

    rows = [
        (s.name, s.paper, s.cost, s.needs or "nothing that is not here") for s in STUDIES.values()
    ]
    console.show(rows, ("study", "paper", "cost", "needs"))
    for found in STUDIES.values():
        typer.echo(f"\n{found.name}: {found.question}")


def _perform(
    found: Study, config: Any, size: str, folder: Path, changes: Mapping[str, str]
) -> list[str]:
    """Run one study and say what it found; returns the required laws that are not held."""
    from workbench.studies.study import DEFAULT, REPORT, closing_line, failures, perform

    flags = [f"--{size}"] if size != DEFAULT else []
    options = [part for name, value in changes.items() for part in (_flag(name), value)]
    command = shlex.join(["workbench", "study", found.name, *flags, *options, "--out", str(folder)])
    try:
        with console.progress(f"study {found.name}", "steps") as report:
            content = perform(found, config, folder, report, command)
    except KeyboardInterrupt:
        console.complain(f"stopped; the finished part is in {folder}: repeat the command to go on.")
        raise typer.Exit(130) from None
    _show_laws(content)
    if content.banner:
        typer.echo(f"setting  {content.banner}")
    failed = failures(content.findings)
    for law in failed:
        typer.echo(f"failed   the required law {law!r} is not held")
    typer.echo(f"report   {folder / REPORT}")
    typer.echo(closing_line(content.findings))
    return failed


def _every(size: str, root: Path) -> list[str]:
    """Run every study at this size; returns the required laws that are not held."""
    from workbench.studies.registry import STUDIES

    failed = []
    for name, found in STUDIES.items():
        typer.echo(f"\n{name}: {found.question}")
        failed += _perform(found, found.config(size), size, root / _folder(name, size), {})
    return failed


def _together(root: Path) -> None:
    """Write the page with the laws of all studies in the folder and say what it holds."""
    from workbench.studies import together

    studies = together.write(root)
    for done in studies:
        if done.problem:
            console.complain(f"{done.folder} is left out: {done.problem}.")
    typer.echo(f"\nreport   {root / together.PAGE}")
    typer.echo(together.closing_line(studies))


def _show_laws(content: Content) -> None:
    rows = [
        (
            finding.law.verdict,
            finding.law.name,
            finding.law.value,
            str(finding.law.mark),
            finding.law.null,
            finding.law.control,
            finding.n,
            "yes" if finding.required else "",
        )
        for finding in content.findings
    ]
    columns = ("verdict", "law", "value", "mark", "null", "null of", "n", "required")
    console.show(rows, columns)
