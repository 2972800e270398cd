"""Time, memory and parity of the statistics on a GPU, in one call of bounded length.

    python -m workbench.kernels.attention_stats.bench_gpu --json FILE [--budget 540] [--smoke]

It has not run on a GPU yet; `--smoke`, the same steps tiny, runs in triton's interpreter.

Needs torch, triton and numpy, and takes flash-colreduce along where it can be imported. Every
measurement is a `Case` of `bench_gpu_cases`, the most important first, made by another process
(`bench_gpu_work`): an exception is recorded and the next one goes on, and a process that dies,
hangs or loses its device is replaced. The file is rewritten after every measurement. What no longer
fits the budget is named. bfloat16; medians of device events after a warm-up.

Reported per line: milliseconds, TFLOP/s of the products it cannot do without, the share of the
bound (`Case.bound`: products at the rate of a large matmul measured in this run, or exponentials,
whichever takes longer), memory above the inputs, and the first call, which compiles. Then lines
`compile NAME SECONDS` and `ratio NAME VALUE`: `OTHER_over_OURS_...` is how many times longer the
other takes, `bound_over_...` the share of the bound.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from workbench.kernels.attention_stats.bench import say, write_json
from workbench.kernels.attention_stats.bench_gpu_cases import RATIOS, Case, cases
from workbench.kernels.attention_stats.bench_gpu_work import MARK

BUDGET = 540.0
# Seconds to load torch and to set the device up.
_START = 120.0
# Seconds a measurement gets beyond the budget before it is stopped.
_GRACE = 20.0
# Characters of an error that are printed; the file holds it whole.
_WIDTH = 120


def run(
    json_file: Path | None = None, budget: float = BUDGET, only: str = "", smoke: bool = False
) -> dict[str, Any]:
    """Measure and print. Returns what `json_file` holds: {"machine", "rows", "left_out", "compile",
    "ratios", "unequal", "finished"}.

    Args:
        budget: seconds after which nothing more is started.
        only: measure only what has this in its name.

    Raises:
        ValueError: no GPU and not `smoke`, or nothing has `only` in its name.
        RuntimeError: the measuring process does not start.
    """
    stop = time.monotonic() + budget
    todo = [case for case in cases(smoke) if only in case.name]
    if not todo:
        raise ValueError(f"no measurement has {only!r} in its name.")
    report: dict[str, Any] = {"budget": budget, "smoke": smoke, "rows": [], "left_out": []}
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        worker = Worker(Path(folder), smoke)
        try:
            report |= {"machine": worker.machine, "finished": False}
            if worker.machine["device"] == "cpu" and not smoke:
                raise ValueError(
                    "torch sees no GPU here; --smoke runs the same steps tiny, without one."
                )
            say(f"machine {json.dumps(worker.machine)}")
            for case in todo:
                sick = _one(worker, case, report, stop)
                if json_file is not None:
                    write_json(json_file, report | summary(report))
                if sick:
                    worker.end()
                    worker = Worker(worker.folder, smoke)
        except RuntimeError as error:
            # What was measured so far is still worth telling.
            if not report["rows"]:
                raise
            say(f"stopped: {error}")
        finally:
            worker.end()
    report |= summary(report) | {"finished": len(report["rows"] + report["left_out"]) == len(todo)}
    if json_file is not None:
        write_json(json_file, report)
    _tell(report)
    return report


def _one(worker: Worker, case: Case, report: dict[str, Any], stop: float) -> bool:
    """Measure one case, print and record it; True when the process cannot go on."""
    left = stop - time.monotonic()
    if left < case.guess:
        why = f"may take {case.guess:.0f} s and {max(left, 0):.0f} s are left"
        say(f"left out {case.name}: {why}")
        report["left_out"].append({"name": case.name, "why": why})
        return False
    start = time.monotonic()
    row = worker.measure(case.name, min(4 * case.guess + 60, left + _GRACE))
    size = None if case.size is None else asdict(case.size)
    row = {"name": case.name, "what": case.what, "size": size, "variant": case.variant} | row
    row["wall_seconds"] = time.monotonic() - start
    row |= _rates(case, row, report)
    report["rows"].append(row)
    say(line_of(row))
    return bool(row.pop("sick", False))


def _rates(case: Case, row: dict[str, Any], report: dict[str, Any]) -> dict[str, float]:
    """TFLOP/s and the share of the bound, where both are known."""
    if "seconds" not in row or case.size is None:
        return {}
    found = {"tflops": case.flop / row["seconds"] / 1e12}
    rate = next((r["flop_per_second"] for r in report["rows"] if "flop_per_second" in r), None)
    card = report["machine"].get("card") or {}
    clock = card.get("clocks.max.sm", "").split(" ")[0]
    if rate is None or not clock.isdigit():
        return found
    bound = case.bound(rate, report["machine"]["multiprocessors"], float(clock) * 1e6)
    if bound is not None:
        found |= {"bound_seconds": bound, "bound_share": bound / row["seconds"]}
    return found


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Ratios between the rows so far, seconds of compiling, and what is not equal."""
    timed = [row for row in report["rows"] if row["size"] and "seconds" in row]
    at: dict[str, dict[str, dict[str, Any]]] = {}
    for row in timed:
        at.setdefault(row["name"].split()[-1], {})[row["what"]] = row
    ratios: dict[str, float] = {}
    for tag, rows in at.items():
        for other, ours in RATIOS.items():
            if other in rows and ours in rows:
                name = f"{other}_over_{ours}_{tag}"
                ratios[name] = rows[other]["seconds"] / rows[ours]["seconds"]
                if rows[ours]["peak_mb"] and other.startswith("eager"):
                    ratios[f"memory_{name}"] = rows[other]["peak_mb"] / rows[ours]["peak_mb"]
        for what, row in rows.items():
            if "bound_share" in row:
                ratios[f"bound_over_{what}_{tag}"] = row["bound_share"]
    first = timed[0]["size"]["keys"] if timed else 0
    compiled = {
        row["name"]: max(row["first_seconds"] - row["seconds"], 0.0)
        for row in timed
        if row["size"]["keys"] == first
    }
    unequal = [row["name"] for row in report["rows"] if _wrong(row)]
    return {"ratios": ratios, "compile": compiled, "unequal": unequal}


def _wrong(row: dict[str, Any]) -> bool:
    """A parity that does not hold or was not reached, or columns that do not sum to the rows."""
    if row["what"] == "parity":
        return bool("error" in row or row.get("unequal") or row.get("bits_differ"))
    return not row.get("mass_error", 0.0) <= 1e-3


def line_of(row: dict[str, Any]) -> str:
    """A measurement for people."""
    name = f"{row['name']:44s}"
    for key in ("skipped", "error"):
        if key in row:
            return f"{name} {key}: {row[key][:_WIDTH]}"
    if row["what"] == "parity":
        refused = ", ".join(f"{n} ({why})" for n, why in row["refused"].items())
        if not row["errors"]:
            return f"{name} refused: {refused[:_WIDTH]}"
        text = "wrong" if _wrong(row) else "equal"
        bad = {n: row["errors"][n] for n in row["unequal"]}
        worst = max((e for e in row["errors"].values() if isinstance(e, float)), default=None)
        text += f" {len(row['errors'])} statistics, largest error {worst}"
        text += f"; wrong: {str(bad)[:_WIDTH]}" if bad else ""
        text += f"; bits differ: {row['bits_differ']}" if row["bits_differ"] else ""
        return f"{name} {text}" + (f"; refused: {refused[:_WIDTH]}" if refused else "")
    if "bytes_per_second" in row:
        return f"{name} {row['bytes_per_second'] / 1e12:.2f} TB/s"
    if "flop_per_second" in row:
        return f"{name} {row['flop_per_second'] / 1e12:.1f} TFLOP/s"
    text = f"{name} {row['seconds'] * 1e3:10.3f} ms {row['tflops']:6.1f} TF"
    text += f" {row['bound_share']:5.2f} of bound" if "bound_share" in row else ""
    text += f" {row['peak_mb']:9.1f} MB" if row["peak_mb"] is not None else ""
    text += f" first {row['first_seconds']:.2f} s"
    return text + (f" MASSES OFF BY {row['mass_error']:.1e}" if _wrong(row) else "")


def _tell(report: dict[str, Any]) -> None:
    for name, value in report["compile"].items():
        say(f"compile {name.replace(' ', '_')} {value:.2f}")
    for name, value in report["ratios"].items():
        say(f"ratio {name} {value:.3f}")
    names = report["unequal"]
    say(f"unequal {len(names)}" + (f": {', '.join(names)}" if names else ""))
    failed = [row["name"] for row in report["rows"] if "error" in row]
    say(f"failed {len(failed)}" + (f": {', '.join(failed)}" if failed else ""))


class Worker:
    """The process that measures. A cache of its own for triton, so that compiling is seen."""

    def __init__(self, folder: Path, smoke: bool) -> None:
        self.folder, self.smoke = folder, smoke
        self.errors: IO[str] = (folder / "stderr.txt").open("a+")
        paths = [path or str(Path.cwd()) for path in sys.path]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(paths),
            "TRITON_CACHE_DIR": str(folder / "triton"), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        if smoke and not _gpu():
            environment["TRITON_INTERPRET"] = "1"
        command = [sys.executable, "-m", "workbench.kernels.attention_stats.bench_gpu_work"]
        self.process = subprocess.Popen(
            [*command, *(["--smoke"] if smoke else [])], env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        self.machine = self._answer(_START)
        if "error" in self.machine:
            self.end()
            raise RuntimeError(f"the measuring process does not start: {self.machine['error']}")

    def measure(self, name: str, seconds: float) -> dict[str, Any]:
        """The row of one case; "error" where it fails, dies or takes longer than `seconds`."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return self._dead()
        return self._answer(seconds)

    def end(self) -> None:
        """Stop the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.listener.join()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                self.lines.put(line.removeprefix(MARK))
        self.lines.put(None)

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self.lines.get(timeout=max(seconds, 1.0))
        except queue.Empty:
            return {"error": f"no answer after {seconds:.0f} s; stopped", "sick": True}
        return self._dead() if line is None else json.loads(line)

    def _dead(self) -> dict[str, Any]:
        self.errors.flush()
        self.errors.seek(0)
        said = self.errors.read().strip()[-300:]
        code = self.process.wait()
        return {"error": f"the process ended with {code}: {' '.join(said.split())}", "sick": True}


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def main() -> None:
    """Command line; status 1 when something is not equal to the specification."""
    parser = argparse.ArgumentParser(description="statistics of attention on a GPU")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--budget", type=float, default=BUDGET)
    parser.add_argument("--only", default="")
    parser.add_argument("--smoke", action="store_true")
    a = parser.parse_args()
    sys.exit(int(bool(run(a.json, a.budget, a.only, a.smoke)["unequal"])))


if __name__ == "__main__":
    main()
