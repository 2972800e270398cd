"""`workbench probe`: tables from a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.commands import console
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    import pandas as pd


def probe(
    run: Annotated[Path | None, typer.Argument(help="A run directory.")] = None,
    names: Annotated[
        list[str] | None, typer.Argument(help="Probes; default: all that apply.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the long table to a .csv or .parquet.")
    ] = None,
    top: Annotated[int, typer.Option(help="Heads shown per probe; 0 shows all.")] = 10,
    list_probes: Annotated[
        bool, typer.Option("--list", help="List the probes: question, unit, paper.")
    ] = False,
) -> None:
    """Ask a run questions: one row per head with value, spread, number and null."""
    if list_probes:
        _list()
        return
    if run is None:
        raise WorkbenchError("probe needs a run directory; or see the probes with --list.")
    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise WorkbenchError(f"--out {out.name!r} has no known ending; write a .csv or a .parquet.")
    if out is not None and not out.resolve().parent.is_dir():
        raise WorkbenchError(f"--out {out}: there is no directory {out.parent}.")
    import pandas as pd

    from workbench import probes
    from workbench.runs import open_run

    stats = open_run(run).stats
    if names:
        tables, left_out = {name: probes.find(name)(stats) for name in names}, {}
    else:
        tables, left_out = probes.tables(stats)
    if not tables:
        reasons = "; ".join(f"{name} {why}" for name, why in left_out.items())
        raise WorkbenchError(f"no probe can be answered from this run: {reasons}")
    for name, table in tables.items():
        _show(name, table, top)
    for name, why in left_out.items():
        console.note(f"left out {name}: {why}")
    if out is not None:
        long = pd.concat(
            [table.assign(probe=name) for name, table in tables.items()], ignore_index=True
        )
        long = long[["probe", *[c for c in long.columns if c != "probe"]]]
        long.to_csv(out, index=False) if out.suffix == ".csv" else long.to_parquet(out, index=False)
        typer.echo(f"wrote {out}")


def _show(name: str, table: pd.DataFrame, top: int) -> None:
    from workbench.probes import find

    info = find(name).info  # type: ignore[attr-defined]
    settings = ", ".join(f"{key}={value}" for key, value in table.attrs.items())
    typer.echo(f"\n{name}: {info.question}")
    about = (info.units, settings, f"n counts {info.counts}", f"null: {info.null}")
    typer.echo("; ".join(filter(None, about)))
    # The heads that show the effect come first, at whichever end it is.
    ordered = table.sort_values("value", ascending=info.direction == "low", na_position="last")
    shown = ordered if top <= 0 else ordered.head(top)
    console.show(shown.filter(["label", "value", "sd", "n", "null"]))


def _list() -> None:
    from workbench import probes

    rows = [
        (p.info.name, p.info.question, p.info.units, p.info.paper)  # type: ignore[attr-defined]
        for p in probes.all_probes()
    ]
    console.show(rows, ("probe", "question", "unit", "paper"))
