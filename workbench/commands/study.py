"""`workbench study`: repeat a paper's finding end to end; lists what there is."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.commands import console
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.studies.study import Content, Study


def study(
    name: Annotated[str, typer.Argument(help="Name of a study, or list.")] = "list",
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
    text_file: Annotated[
        Path | None, typer.Option(help="Text to count a language in, for studies that train.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory; default ./runs/studies/NAME.")
    ] = None,
) -> None:
    """Repeat a paper's finding end to end and say which of its laws held. Exit status 1 when a
    required law is not held. A stopped study goes on where it was when called again."""
    from workbench.studies import registry
    from workbench.studies.study import DEFAULT, FULL, QUICK

    asked = {"model": model, "prompts": prompts, "text_file": text_file}
    changes = {option: str(value) for option, value in asked.items() if value is not None}
    if quick and full:
        raise WorkbenchError("--quick and --full exclude one another; give one of them.")
    size = QUICK if quick else FULL if full else DEFAULT
    if name == "list":
        if changes or out or size != DEFAULT:
            raise WorkbenchError("the list takes no options; name a study to run it.")
        _list()
        return
    found = registry.find(name)
    config = found.config(size, **changes)
    folder = out or Path("runs") / "studies" / (name if size == DEFAULT else f"{name}-{size}")
    flags = [f"--{size}"] if size != DEFAULT else []
    options = [part for option in changes.items() for part in (_flag(option[0]), option[1])]
    command = shlex.join(["workbench", "study", name, *flags, *options, "--out", str(folder)])
    _perform(found, config, folder, command)


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


def _perform(found: Study, config: Any, folder: Path, command: str) -> None:
    from workbench.studies.study import REPORT, closing_line, failures, perform

    try:
        with console.progress(f"study {found.name}", "steps") as report:
            content = perform(found, config, folder, report, command)
    except KeyboardInterrupt:
        console.complain(f"stopped; the finished part is in {folder}: repeat the command to go on.")
        raise typer.Exit(130) from None
    _show_laws(content)
    if content.banner:
        typer.echo(f"setting  {content.banner}")
    for law in failures(content.findings):
        typer.echo(f"failed   the required law {law!r} is not held")
    typer.echo(f"report   {folder / REPORT}")
    typer.echo(closing_line(content.findings))
    if failures(content.findings):
        raise typer.Exit(1)


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
