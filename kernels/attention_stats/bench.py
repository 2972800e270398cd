"""Time and memory of the statistics against the eager full map, on this machine's CPU.

    workbench bench stats [--lengths 1024,2048] [--threads 1] [--base REV]

Both sides get the same causal float32 input (12 heads of width 64), the same statistics and the
same number of threads; each measurement runs in its own process, so that its peak memory is its
own. `eager` is what a reader of `output_attentions` does: the map of all heads by softmax(q k^T),
then plain torch reductions. `map` is that map without a single statistic. `stock`, where it is
available, takes lse, entropy and key_mass from torch's own attention kernels; `torch_few` is ours
with those three. Prints one `ratio NAME VALUE` line per comparison: how many times less time or
memory the blockwise path needs.

The growth with the length is `bench_curve`, the comparison with another commit `bench_base`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.kernels.attention_stats.bench_one import FEW, HEADS

LENGTHS = (1024, 2048, 4096)
_ONE = Path(__file__).with_name("bench_one.py")


def run(
    lengths: Sequence[int] = LENGTHS, threads: int | None = None, repeats: int = 3
) -> dict[str, Any]:
    """Measure and print. Returns {"machine": str, "rows": [...], "ratios": {name: value}}.

    Args:
        lengths: tokens of the one prompt.
        threads: intra-op threads of either side; None: as many as torch would take.
        repeats: timed runs after one that is not counted; the fastest is reported.

    Raises:
        RuntimeError: a measurement's process failed; the message holds the end of its output.
    """
    machine = describe_machine(threads)
    say(f"machine {machine}")
    methods = ("map", "eager", "torch")
    if "stock" in ask("known")["backends"]:
        methods += ("stock", "torch_few")
    else:
        say("stock is not measured: the backend is not available here")
    rows, ratios = [], {}
    for length in lengths:
        found = {}
        for method in methods:
            found[method] = measure(method, length, threads=threads, repeats=repeats)
            say(line_of(found[method]))
        rows += found.values()
        ratios |= _ratios(found, length)
    for name, value in ratios.items():
        say(f"ratio {name} {value:.2f}")
    return {"machine": machine, "few": FEW, "rows": rows, "ratios": ratios}


def _ratios(found: dict[str, dict[str, Any]], length: int) -> dict[str, float]:
    ours, eager = found["torch"], found["eager"]
    ratios = {
        f"stats_time_{length}": eager["seconds"] / ours["seconds"],
        f"stats_cpu_{length}": eager["cpu_seconds"] / ours["cpu_seconds"],
        f"stats_memory_{length}": eager["extra_mb"] / max(ours["extra_mb"], 0.1),
        f"map_time_{length}": found["map"]["seconds"] / ours["seconds"],
    }
    if "stock" in found:
        stock, few = found["stock"], found["torch_few"]
        ratios[f"stock_time_{length}"] = stock["seconds"] / few["seconds"]
        ratios[f"stock_cpu_{length}"] = stock["cpu_seconds"] / few["cpu_seconds"]
    return ratios


def say(text: str) -> None:
    """One line, at once: a run that is stopped keeps what it printed."""
    print(text, flush=True)  # noqa: T201


def line_of(row: dict[str, Any], name: str | None = None) -> str:
    """A measurement for people."""
    seconds, cpu, extra = row["seconds"], row["cpu_seconds"], row["extra_mb"]
    size = f"{name or row['method']:13s} L={row['length']:6d}"
    return f"{size} {seconds:9.4f} s {cpu:9.4f} cpu s {extra:9.1f} MB extra"


def write_json(file: Path, found: dict[str, Any]) -> None:
    """Replace `file` in one step: a reader sees the old numbers or the new ones, never half."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    part.replace(file)


def describe_machine(threads: int | None) -> str:
    """One line: processor, cores, threads used, versions."""
    from importlib.metadata import version

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            x.split(":", 1)[1].strip()
            for x in info.read_text().splitlines()
            if x.startswith("model name")
        ]
        name = models[0] if models else name
    used = "all" if threads is None else threads
    versions = f"python {platform.python_version()}, torch {version('torch')}"
    return f"{name}, {os.cpu_count()} cores, threads {used}, {versions}"


def measure(
    method: str,
    length: int,
    *,
    heads: int = HEADS,
    threads: int | None = None,
    repeats: int = 3,
    want: Sequence[str] | None = None,
    tree: Path | None = None,
) -> dict[str, Any]:
    """One row of `bench_one`, measured in a process of its own; `tree` as in `ask`."""
    options = {"length": length, "heads": heads, "repeats": repeats, "threads": threads}
    options["want"] = None if want is None else ",".join(want)
    given = [(f"--{name}", str(value)) for name, value in options.items() if value is not None]
    return ask(method, *(part for pair in given for part in pair), tree=tree)


def ask(method: str, *options: str, tree: Path | None = None) -> dict[str, Any]:
    """What `bench_one METHOD OPTIONS` prints, with the workbench of this process or of `tree`.

    Raises RuntimeError with the end of its output when it failed.
    """
    paths = [str(tree)] if tree else []
    paths += [path or str(Path.cwd()) for path in sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    # -P: the folder of the script holds a triton.py, which is not triton.
    command = [sys.executable, "-P", str(_ONE), method, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
        what = " ".join((method, *options))
        raise RuntimeError(f"measuring {what} ended with {done.returncode}: {' '.join(tail)}")
    return json.loads(done.stdout.strip().splitlines()[-1])
