"""`workbench bench`: time the kernels against the eager path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.errors import WorkbenchError

# What each benchmark can be told; anything else given to it is refused.
_TAKES = {
    "stats": ("lengths", "threads", "base"),
    "curve": ("lengths", "threads", "heads"),
    "capture": ("lengths", "model"),
    "long": ("lengths",),
    "gpu": ("budget", "only", "smoke"),
}


def bench(  # noqa: PLR0917 - typer reads the signature
    name: Annotated[
        str, typer.Argument(help=f"What to time: {', '.join(_TAKES)}.", show_default=True)
    ] = "stats",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every number to this file.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Tokens, separated by commas; default: its own list.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="stats, curve: threads of either side; default: all.", min=1)
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="stats: compare with this git revision, not with eager.")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="curve: number of heads.", min=1)] = None,
    model: Annotated[
        str | None, typer.Option(help="capture: hub id, directory or zoo:NAME.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="gpu: seconds after which nothing more is started.", min=1)
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="gpu: only measurements whose name holds this text.")
    ] = None,
    smoke: Annotated[
        bool | None, typer.Option("--smoke", help="gpu: the same steps, tiny; also without a GPU.")
    ] = None,
) -> None:
    """Time the statistics kernels (stats; how they grow with the length: curve; on a GPU: gpu), or
    a whole model's capture (against its eager maps: capture; against its plan, at lengths without
    maps: long). Ends with one `ratio NAME VALUE` line per comparison."""
    given = {
        "lengths": _numbers(lengths), "threads": threads, "base": base, "heads": heads,
        "model": model, "budget": budget, "only": only, "smoke": smoke,
    }  # fmt: skip
    if name not in _TAKES:
        raise WorkbenchError(f"there is no benchmark {name!r}; known: {', '.join(_TAKES)}.")
    asked = {option: value for option, value in given.items() if value is not None}
    for option in asked:
        if option not in _TAKES[name]:
            takes = ", ".join(f"--{x}" for x in _TAKES[name])
            raise WorkbenchError(
                f"--{option} does not belong to the benchmark {name!r}; it takes {takes}."
            )
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise WorkbenchError(f"--json {json_file}: there is no directory {json_file.parent}.")
    try:
        _run(name, asked, json_file)
    except (ValueError, RuntimeError) as error:
        raise WorkbenchError(str(error)) from error


def _run(name: str, asked: dict[str, Any], json_file: Path | None) -> None:
    from workbench.kernels.attention_stats.bench import write_json

    if name == "gpu":
        # It keeps its own file, measurement by measurement.
        from workbench.kernels.attention_stats.bench_gpu import run

        run(json_file, **asked)
        return
    if name == "capture":
        from workbench.capture_bench import run
    elif name == "long":
        from workbench.capture_bench import run_long as run
    elif name == "curve":
        from workbench.kernels.attention_stats.bench_curve import run
    elif "base" in asked:
        from workbench.kernels.attention_stats.bench_base import run
    else:
        from workbench.kernels.attention_stats.bench import run
    found = run(**asked)
    if json_file is not None:
        write_json(json_file, found)


def _numbers(lengths: str | None) -> list[int] | None:
    """512,2048 as numbers."""
    if lengths is None:
        return None
    parts = [part.strip() for part in lengths.split(",")]
    if not all(part.isdigit() and int(part) > 1 for part in parts):
        raise WorkbenchError(f"--lengths {lengths!r} is not a list of numbers such as 512,2048.")
    return [int(part) for part in parts]
