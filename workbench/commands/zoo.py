"""`workbench zoo`: the small models that come with the workbench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.commands import console
from workbench.errors import WorkbenchError

commands = typer.Typer(
    no_args_is_help=True, help="Small models trained here, whose mechanism is known."
)


@commands.command("list")
def list_models() -> None:
    """Names of the shipped models and laboratories and of the recipes that can be trained."""
    from workbench import zoo
    from workbench.zoo.train import RECIPES

    shipped = zoo.names()
    rows = []
    for name in sorted({*shipped, *RECIPES}):
        weights = zoo.path(name) / "model.safetensors" if name in shipped else None
        size = weights.stat().st_size / 1e6 if weights is not None and weights.is_file() else None
        known = RECIPES.get(name)
        shape = f"{known.layers} layers x {known.heads} heads" if known else ""
        rows.append((f"zoo:{name}", shape, size, "yes" if name in shipped else "no: zoo train"))
    for name in sorted({*zoo.laboratories(), *zoo.recipes()} - {*shipped, *RECIPES}):
        if name not in zoo.laboratories():
            rows.append((f"zoo:{name}", "laboratory", None, "no: zoo train"))
            continue
        results = zoo.laboratory(name)
        shape = f"laboratory: {sum(map(len, results.about['runs'].values()))} runs, zoo:{name}/RUN"
        size = sum(file.stat().st_size for file in results.path.iterdir()) / 1e6
        rows.append((f"zoo:{name}", shape, size, "yes"))
    console.show(rows, ("model", "shape", "MB", "shipped"))


@commands.command("card")
def card(
    name: Annotated[str, typer.Argument(help="Name of a shipped model or laboratory.")],
) -> None:
    """Print the model card: how it was made and what it shows."""
    from workbench import zoo

    typer.echo(zoo.card(name.removeprefix("zoo:")))


@commands.command("train")
def train(
    name: Annotated[str, typer.Argument(help="Name of a model or laboratory; see the list.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory to write; default ./NAME.")
    ] = None,
) -> None:
    """Train a model or laboratory from its recipe: the same recipe gives the same weights."""
    from workbench import zoo
    from workbench.zoo import train as training

    name = name.removeprefix("zoo:")
    if name not in zoo.recipes():
        known = ", ".join(zoo.recipes())
        raise WorkbenchError(f"there is no recipe {name!r}; known recipes: {known}.")
    laboratory = zoo.code_of(name, "shipped")
    if laboratory is not None:
        with console.progress(f"training {name}", "steps") as report:
            results = laboratory.make(out or Path(name), report)
        typer.echo(f"wrote {results.path}")
        typer.echo(f"look     workbench app {results.path.parent}")
        return
    settings = training.recipe(name)
    with console.progress(f"training {settings.name}", "steps") as report:
        written = training.train(settings, out or Path(settings.name), report)
    typer.echo(f"wrote {written}")
    typer.echo(f"python   wb.load({str(written)!r})")
