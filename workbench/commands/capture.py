"""`workbench capture`: the plan, one line of progress, the best heads, the run."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.commands import console
from workbench.commands.opening import open_model
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.models import Model

# A capture that costs more than this is confirmed by a person, when one is there.
_ASK_SECONDS, _ASK_BYTES = 120, 1 << 30


def _option(flag: str, about: str, *more: str) -> Any:
    return typer.Option(flag, *more, help=about)


_Model = Annotated[str, typer.Argument(help="Hub id, local directory or zoo:NAME.")]
_Text = Annotated[list[str] | None, _option("--text", "A prompt; may be repeated.")]
_File = Annotated[Path | None, _option("--prompts", ".txt with blank lines between, or .jsonl.")]
_Repeated = Annotated[int | None, _option("--repeated", "N random tokens, each sequence twice.")]
_Count = Annotated[int, _option("--n-prompts", "Prompts made by --repeated.")]
_Seed = Annotated[int, _option("--seed", "Seed of --repeated.")]
_Want = Annotated[str | None, _option("--want", "Statistics or groups, by commas; default: all.")]
_Parameter = Annotated[
    list[str] | None,
    _option("--parameter", "NAME=NUMBER: waad_window, local_window, topk, pool; horizon=10:50."),
]
_Batch = Annotated[int | None, _option("--batch-size", "Prompts at a time.")]
_At = Annotated[str | None, _option("--positions", "Query rows: last, a role, 3,5 or 10:20.")]
_Generate = Annotated[int | None, _option("--generate", "Tokens to generate.")]
_Kind = Annotated[str | None, _option("--kind", "Tower: text, vision, cross, ...")]
_Pattern = Annotated[list[str] | None, _option("--pattern", "Keep this head's map, as L5H1.")]
_KeepQk = Annotated[bool, _option("--keep-qk", "Keep q and k: any pattern can be seen later.")]
_Out = Annotated[Path | None, _option("--out", "Run directory; default in ./runs.")]
_Dtype = Annotated[str | None, _option("--dtype", "float32, bfloat16, ...")]
_Device = Annotated[str | None, _option("--device", "cpu, cuda, mps, ...")]
_Revision = Annotated[str | None, _option("--revision", "Branch, tag or commit.")]
_Attention = Annotated[str | None, _option("--attention", "The model's backend: sdpa, eager, ...")]
_Trust = Annotated[bool, _option("--trust-remote-code", "Run code that comes with the model.")]
_PlanOnly = Annotated[bool, _option("--plan-only", "Print the plan and stop.")]
_Yes = Annotated[bool, _option("--yes", "Do not ask, whatever it costs.", "-y")]


def capture(  # noqa: PLR0913 - the options of the command
    model: _Model,
    *,
    text: _Text = None,
    prompts: _File = None,
    repeated: _Repeated = None,
    n_prompts: _Count = 8,
    seed: _Seed = 0,
    want: _Want = None,
    parameter: _Parameter = None,
    batch_size: _Batch = None,
    positions: _At = None,
    generate: _Generate = None,
    kind: _Kind = None,
    pattern: _Pattern = None,
    keep_qk: _KeepQk = False,
    out: _Out = None,
    dtype: _Dtype = None,
    device: _Device = None,
    revision: _Revision = None,
    attention: _Attention = None,
    trust_remote_code: _Trust = False,
    plan_only: _PlanOnly = False,
    yes: _Yes = False,
) -> None:
    """Run a model on prompts and keep statistics of every attention head."""
    loading = {
        "device": device, "dtype": dtype, "revision": revision, "attention": attention,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    settings = {
        "want": want.split(",") if want else None,
        "parameters": _parameters(parameter, want),
        "batch_size": batch_size, "positions": parse_positions(positions), "generate": generate,
        "kind": kind, "patterns": pattern or None, "keep_qk": keep_qk,
    }  # fmt: skip
    if sum(x is not None for x in (text or None, prompts, repeated)) != 1:
        raise WorkbenchError(
            "capture needs prompts: give one of --text, --prompts FILE, --repeated N."
        )
    _check_before_loading(prompts, settings["want"])
    opened = open_model(model, **loading)
    given, code = _prompts(opened, text, prompts, repeated, n_prompts, seed)
    from workbench.capturing import plan

    planned = plan(opened, given, **settings)
    typer.echo(f"{opened!r}\n{planned}")
    if plan_only:
        return
    _confirm(planned, yes)
    run_path = out or Path("runs") / f"{_slug(model)}-{time.strftime('%Y%m%d-%H%M%S')}"
    _run(opened, given, settings, run_path)
    _report(run_path)
    typer.echo(f"\nrun      {run_path}\nlook     workbench app {run_path}")
    typer.echo(f"python   {_python(model, loading, code, settings, run_path)}")


def _parameters(texts: list[str] | None, want: str | None) -> Any:
    """`wb.Parameters` out of NAME=NUMBER, refused before a model is loaded; None for the
    defaults."""
    from workbench.parameters import parse_parameters
    from workbench.schema import expand_want

    if not texts:
        return None
    parsed = parse_parameters(texts)
    parsed.used(expand_want(want.split(",") if want else None))
    return parsed


def parse_positions(text: str | None) -> Any:
    """`last` or a role stays text; `3`, `3,5` and `10:20` become indices.

    >>> parse_positions("3,-1"), parse_positions("10:20"), parse_positions("last")
    ([3, -1], slice(10, 20, None), 'last')
    """
    if text is None:
        return None
    if re.fullmatch(r"-?\d+(,-?\d+)*", text):
        return [int(part) for part in text.split(",")]
    match = re.fullmatch(r"(-?\d*):(-?\d*)", text)
    if match:
        return slice(*(int(part) if part else None for part in match.groups()))
    return text


def _check_before_loading(prompts: Path | None, want: list[str] | None) -> None:
    """What is wrong without a model should be said before minutes of loading one."""
    from workbench.prompts import read_prompts
    from workbench.schema import expand_want

    expand_want(want)
    if prompts is not None:
        read_prompts(prompts)


def _prompts(
    model: Model,
    text: list[str] | None,
    file: Path | None,
    repeated: int | None,
    n_prompts: int,
    seed: int,
) -> tuple[list, str]:
    """The prompts, and the Python that makes them."""
    from workbench.prompts import as_prompts, read_prompts

    if text:
        return as_prompts(text), repr(text)
    if file is not None:
        return read_prompts(file), f"wb.prompts.read_prompts({str(file)!r})"
    code = f"model.repeated_tokens({repeated}, {n_prompts}, seed={seed})"
    return model.repeated_tokens(repeated or 0, n_prompts, seed=seed), code


def _confirm(planned: Any, yes: bool) -> None:
    costly = planned.seconds > _ASK_SECONDS or planned.disk_bytes > _ASK_BYTES
    if costly and not yes and sys.stdin.isatty() and not typer.confirm("Go on?", default=True):
        raise WorkbenchError("not started: you said no to the plan.")


def _run(model: Model, prompts: list, settings: dict[str, Any], out: Path) -> None:
    from workbench.capturing import capture as run_capture

    try:
        with console.progress("captured", "tokens") as report:
            run_capture(model, prompts, out=out, progress=report, **settings)
    except KeyboardInterrupt:
        console.complain(
            f"stopped; the finished part is in {out}: repeat the command with --out {out} to go on."
        )
        raise typer.Exit(130) from None


def _report(path: Path) -> None:
    """Print the best heads of every probe, and what was asked for in vain."""
    from workbench.probes import find, tables
    from workbench.runs import open_run
    from workbench.stats import missing_lines

    stats = open_run(path).stats
    for line in missing_lines(stats.provenance.missing):
        console.note(line)
    rows = []
    for name, table in tables(stats)[0].items():
        best = table.dropna(subset="value").nlargest(3, "value")
        if len(best):
            heads = "  ".join(
                f"{label} {console.cell(float(value))}"
                for label, value in zip(best["label"], best["value"], strict=True)
            )
            null = console.cell(float(best["null"].iloc[0]))
            rows.append((name, heads, null, find(name).info.units))  # type: ignore[attr-defined]
    if rows:
        typer.echo("")
        console.show(rows, ("probe", "highest heads", "null of the first", "unit"))


def _slug(name: str) -> str:
    return (
        re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name if "/" in name else name).strip("-.")
        or "run"
    )


def _python(
    model: str, loading: dict[str, Any], prompts: str, settings: dict[str, Any], out: Path
) -> str:
    def given(options: dict[str, Any]) -> str:
        texts = {name: repr(value) for name, value in options.items() if value}
        if "parameters" in texts:
            texts["parameters"] = f"wb.{texts['parameters']}"
        return "".join(f", {name}={text}" for name, text in texts.items())

    # One expression, so that it can be pasted anywhere after `import workbench as wb`.
    opened = f"model := wb.load({model!r}{given(loading)})"
    return f"wb.capture({opened}, {prompts}{given(settings)}, out={str(out)!r})"
