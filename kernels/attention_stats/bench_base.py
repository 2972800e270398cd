"""This commit against another one: the same measurement, interleaved, on this machine's CPU.

    workbench bench stats --base REV [--lengths 1024,2048]

The other commit is checked out into a temporary git worktree, which is removed at the end however
the run ends. `bench_one` of this commit measures both, so that inputs, repeats and timing are the
same; the statistics are those both have. Rounds alternate which side goes first, and the fastest of
each side counts. A ratio above one says that this commit needs more.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.kernels.attention_stats.bench import (
    LENGTHS,
    ask,
    describe_machine,
    line_of,
    measure,
    say,
)
from workbench.kernels.attention_stats.bench_one import WANT

ROUNDS = 3
_INSIDE = Path("kernels/attention_stats")


def run(
    base: str, lengths: Sequence[int] = LENGTHS, threads: int | None = None, repeats: int = 3
) -> dict[str, Any]:
    """Measure and print. Returns {"machine", "base", "want", "rows", "ratios"}.

    Raises:
        ValueError: no git checkout, an unknown revision, or one without these statistics.
        RuntimeError: a measurement's process failed.
    """
    root = checkout_root()
    commit = resolve(root, base)
    machine = describe_machine(threads)
    rows: list[dict[str, Any]] = []
    with worktree(root, commit) as tree:
        want = common(tree, base)
        say(f"machine {machine}")
        say(f"base {base} ({commit[:10]}); statistics: {', '.join(want)}")
        ratios: dict[str, float] = {}
        for length in lengths:
            new = _rounds(length, tree, threads=threads, repeats=repeats, want=want)
            rows += new
            ratios |= _ratios(new, length)
    for name, value in ratios.items():
        say(f"ratio {name} {value:.3f}")
    return {"machine": machine, "base": commit, "want": want, "rows": rows, "ratios": ratios}


def _rounds(length: int, tree: Path, **settings: Any) -> list[dict[str, Any]]:
    sides: dict[str, Path | None] = {"this": None, "base": tree}
    rows = []
    for number in range(ROUNDS):
        for side in sorted(sides, reverse=number % 2 == 0):
            row = measure("torch", length, tree=sides[side], **settings)
            rows.append({"side": side, "round": number} | row)
            say(line_of(row, f"{side} {number}"))
    return rows


def _ratios(rows: list[dict[str, Any]], length: int) -> dict[str, float]:
    def best(side: str, key: str) -> float:
        return min(row[key] for row in rows if row["side"] == side)

    keys = {"time": "seconds", "cpu": "cpu_seconds", "memory": "extra_mb"}
    return {
        f"this_over_base_{name}_{length}": best("this", key) / max(best("base", key), 1e-9)
        for name, key in keys.items()
    }


def common(tree: Path, base: str) -> tuple[str, ...]:
    """The statistics of a capture that the other commit has as well."""
    try:
        known = ask("known", tree=tree)
    except RuntimeError as error:
        raise ValueError(f"the revision {base!r} has no attention_stats to compare.") from error
    if not Path(known["package"]).is_relative_to(tree.resolve()):
        raise ValueError(f"the revision {base!r} has no {_INSIDE} to compare.")
    want = tuple(name for name in WANT if name in known["stats"])
    if not want:
        raise ValueError(f"the revision {base!r} has none of the statistics {', '.join(WANT)}.")
    return want


def checkout_root() -> Path:
    """The git checkout this file belongs to; ValueError when it belongs to none."""
    here = Path(__file__).resolve().parent
    try:
        found = _git(here, "rev-parse", "--show-toplevel")
    except FileNotFoundError:
        raise ValueError("comparing with another revision needs git, which is missing.") from None
    root = Path(found.stdout.strip()).resolve()
    # An environment inside somebody else's checkout is none of ours.
    if found.returncode or root / _INSIDE != here:
        raise ValueError(
            f"comparing with another revision needs a git checkout of the workbench, and {here} "
            f"is not in one."
        )
    return root


def resolve(root: Path, revision: str) -> str:
    """The full hash of a revision; ValueError when there is no such commit."""
    found = _git(
        root, "rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}"
    )
    if found.returncode:
        raise ValueError(f"there is no revision {revision!r} in {root}.")
    return found.stdout.strip()


@contextmanager
def worktree(root: Path, commit: str) -> Iterator[Path]:
    """A temporary checkout of `commit`, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="bench-base-") as folder:
        tree = Path(folder) / "tree"
        # No hooks: what a checkout sets off is for working in it.
        hookless = ("-c", "core.hooksPath=/dev/null")
        try:
            made = _git(root, *hookless, "worktree", "add", "--detach", str(tree), commit)
            if made.returncode:
                raise ValueError(
                    f"git could not check {commit[:10]} out: {' '.join(made.stderr.split())}"
                )
            yield tree
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _git(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A process group of its own: Ctrl-C stops the measurement, not the cleaning up.
    return subprocess.run(
        ["git", "-C", str(where), *arguments],
        capture_output=True, text=True, check=False, start_new_session=True,
    )  # fmt: skip
