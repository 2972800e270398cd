"""`workbench demo`: a real encoder and a model with a known mechanism, looked at in the browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.commands import console
from workbench.commands.app import Open, Port, serve_runs
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.runs import Run

_MECHANISMS = ("induction_head_score", "duplicate_token_score", "previous_token_score")


def demo(
    no_serve: Annotated[bool, typer.Option("--no-serve", help="Print and leave.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Make the runs anew.")] = False,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Where the runs are, or are made.")
    ] = None,
    port: Port = None,
    open_browser: Open = False,
) -> None:
    """Show the attention heads of a real pretrained model on real text, with its sinks named."""
    from workbench.commands.demo_runs import open_or_make

    root = runs or _root()
    found = open_or_make(root, fresh)
    if not found:
        raise WorkbenchError(
            "there is no model to show: pip install 'attention-workbench[demo]', or train one with "
            "workbench zoo train mix-3l."
        )
    _print_sinks(found)
    _print_mechanisms(found)
    typer.echo(f"\nruns     {root}")
    if no_serve:
        typer.echo(f"look     workbench app {root}")
        return
    serve_runs(root, port, open_browser)


def _root() -> Path:
    """./runs/demo in a place that keeps runs, the user's cache elsewhere."""
    here = Path("runs") / "demo"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cached = cache / "attention-workbench" / "demo"
    if here.is_dir() or (not cached.is_dir() and (Path("runs").is_dir() or _is_checkout())):
        return here
    return cached


def _is_checkout() -> bool:
    return Path("pyproject.toml").is_file() and Path("workbench", "zoo").is_dir()


def _print_sinks(runs: list[Run]) -> None:
    """First and last position of every run: their share of all attention beside the uniform one."""
    rows = [_sink_row(run, position) for run in runs for position in (0, -1)]
    columns = (
        "run", "tokens", "position", "token", "share", "sd", "uniform", "prompts", "sink heads",
    )  # fmt: skip
    console.show(rows, columns, "Attention sinks: a position's share of all attention, per cent")
    for run, row in zip(runs, rows[::2], strict=True):
        column = f"the first token ({row[3]})" if row[3].endswith(" different") else row[3]
        typer.echo(
            f"{run.manifest['model']}, texts of about {row[1]} tokens: the column of {column} "
            f"takes {row[4]} % of all attention; evenly spread it would be {row[6]} %."
        )
    typer.echo("A sink head puts more than 0.3 of a row there, on average over the rows seeing it.")


def _sink_row(run: Run, position: int) -> tuple[Any, ...]:
    """One line of the table; `position` -1 is the last token of each prompt."""
    from workbench.probes import attention_share, sink_positions

    stats = run.stats
    share = attention_share(stats, position)
    texts = stats.tokens.groupby("prompt")["text"].nth(position).unique()
    token = texts[0] if len(texts) == 1 else f"{len(texts)} different"
    sinks = sink_positions(stats)
    lengths = dict(zip(stats.data["prompt"].to_numpy(), stats.lengths.to_numpy(), strict=True))
    wanted = sinks["prompt"].map(lengths.get) - 1 if position < 0 else 0
    n_heads = sinks.loc[sinks["position"] == wanted, "n_heads"].sum() / share.n
    return (
        run.id,
        round(float(stats.lengths.mean())),
        "first" if position == 0 else "last",
        token,
        f"{100 * share.value:.1f}",
        f"{100 * share.sd:.1f}",
        f"{100 * share.null:.1f}",
        share.n,
        f"{n_heads:.1f} of {len(stats.heads())}",
    )


def _print_mechanisms(runs: list[Run]) -> None:
    """The heads that find the earlier copy, where the prompts repeat."""
    rows = []
    for run in runs:
        heads = run.heads
        for name in _MECHANISMS:
            if name in heads and bool(heads[name].notna().any()):
                best = heads.loc[heads[name].idxmax()]
                numbers = float(best[name]), float(best[f"{name}_null"])
                rows.append((run.id, name, best["label"], *numbers))
    if rows:
        typer.echo("")
        columns = ("run", "probe", "best head", "value", "null")
        console.show(rows, columns, "Mechanisms: mean weight on the token the mechanism predicts")
