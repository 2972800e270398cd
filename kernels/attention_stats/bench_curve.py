"""How time and memory of the statistics grow with the length, on this machine's CPU.

    workbench bench curve [--lengths 512,...,32768] [--heads 2] [--threads 1]

Four paths on the same causal float32 input, each measurement in a process of its own: `torch_all`
(the row strips, every statistic a capture asks for), `torch_columns` (key_mass alone), `torch_band`
(waad, prev_mass and first_mass, the lse being given) and `eager` (map and reductions). The exponent
is the slope of log time, or log memory, over log length, by least squares over the upper half of
the lengths: 2 for whatever looks at every pair, 1 for what is linear. Few heads, so that the
longest text takes a minute; the exponent does not depend on their number.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression
from typing import Any

from workbench.kernels.attention_stats.bench import describe_machine, line_of, measure, say
from workbench.kernels.attention_stats.bench_one import WIDTH

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
HEADS = 2
PATHS = {
    "torch_all": "torch", "torch_columns": "columns", "torch_band": "band", "eager": "eager",
}  # fmt: skip
_FITTED = ("seconds", "cpu_seconds", "extra_mb")
_NAMES = {"seconds": "time", "cpu_seconds": "cpu", "extra_mb": "memory"}
# Part of the free memory that one measurement may take.
_SHARE = 0.5


def run(
    lengths: Sequence[int] = LENGTHS,
    heads: int = HEADS,
    threads: int | None = None,
    limit_mb: float | None = None,
) -> dict[str, Any]:
    """Measure and print. Returns {"machine", "heads", "limit_mb", "rows", "skipped", "exponents"}.

    Args:
        limit_mb: what one measurement may need; None: half of the free memory. A length that needs
            more is skipped, with a line that says so.

    Raises:
        ValueError: fewer than two lengths.
        RuntimeError: a measurement's process failed.
    """
    lengths = sorted(set(lengths))
    if len(lengths) < 2:
        raise ValueError(f"a curve needs at least two lengths, got {list(lengths)}.")
    limit_mb = _SHARE * free_mb() if limit_mb is None else limit_mb
    machine = describe_machine(threads)
    say(f"machine {machine}")
    say(f"heads {heads} of width {WIDTH}; a measurement may take {limit_mb:,.0f} MB")
    rows, skipped = [], []
    for length in lengths:
        for path, method in PATHS.items():
            need = need_mb(method, length, heads)
            if need > limit_mb:
                skipped.append({"path": path, "length": length, "need_mb": need})
                say(f"skipped {path} L={length}: needs about {need:,.0f} MB, over the limit")
                continue
            rows.append({"path": path} | measure(method, length, heads=heads, threads=threads))
            say(line_of(rows[-1], path))
    exponents = {}
    for path in PATHS:
        exponents |= _exponents(path, [row for row in rows if row["path"] == path])
    return {
        "machine": machine, "heads": heads, "limit_mb": limit_mb, "rows": rows,
        "skipped": skipped, "exponents": exponents,
    }  # fmt: skip


def _exponents(path: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Fit and print one path."""
    found = {}
    for key in _FITTED:
        name = f"{path}_{_NAMES[key]}"
        value = exponent([row["length"] for row in rows], [row[key] for row in rows])
        if value is None:
            say(f"{name}: not fitted, fewer than two lengths with a value above zero")
        else:
            found[name] = value
            say(f"exponent {name} {value:.2f}")
    return found


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float | None:
    """b of value ~ length^b, by least squares of the logarithms over the upper half of the lengths
    (at least two); None where fewer than two of those values are above zero.

    >>> round(exponent([512, 1024, 2048, 4096], [9.0, 9.0, 4.0, 16.0]), 6)
    2.0
    """
    upper = sorted(zip(lengths, values, strict=True))[-max(2, math.ceil(len(lengths) / 2)) :]
    upper = [(length, value) for length, value in upper if value > 0]
    if len(upper) < 2:
        return None
    x, y = ([math.log(pair[i]) for pair in upper] for i in (0, 1))
    return linear_regression(x, y).slope


def need_mb(method: str, length: int, heads: int) -> float:
    """Upper estimate of what one measurement holds, MB: the maps of the eager path, else a strip of
    128 rows per thread and the vectors that come and go."""
    if method == "eager":
        # Per pair: scores, weights and two temporaries of every head; mask, distances and their
        # squares (int64), two masks.
        return length**2 * (16 * heads + 24) / 2**20
    strips = (os.cpu_count() or 1) * 128 * length * 4 * 3
    return (strips + length * heads * (2 * WIDTH + 64) * 8) / 2**20


def free_mb() -> float:
    """Memory a new process can have, MB."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
