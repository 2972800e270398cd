"""One measurement of the CPU benchmarks, in a process of its own: `bench.measure` runs this file.

    python -P bench_one.py METHOD --length 4096

It is run by its path and imports nothing of ours but the package's public function, so that the
same measurement can be made of another commit: whichever `workbench` comes first on PYTHONPATH.
Prints one JSON object. The last line of stdout is the result.

Dims: B batch, H heads, L tokens, D width, S segments.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

HEADS, WIDTH, SEGMENTS = 12, 64, 4
# Deviation of the logits.
SPREAD = 2.0
# Everything a capture of one layer asks for by default.
WANT = (
    "lse", "entropy", "max_prob", "argmax", "self_mass", "prev_mass", "first_mass", "distance",
    "distance_sq", "duplicate_mass", "induction_mass", "role_mass", "key_mass", "key_max",
)  # fmt: skip
# What the stock kernels give.
FEW = ("lse", "entropy", "key_mass")
# What costs no sweep once the lse is known.
BAND = ("waad", "prev_mass", "first_mass")
WAAD_WINDOW = 10
# A run of more seconds than this is not repeated: its caches are full after the first tenth.
_LONG = 5.0


def inputs(length: int, heads: int = HEADS, width: int = WIDTH) -> dict[str, Any]:
    """Fixed random q, k [1, H, L, D], token ids and four segments.

    In place: a freed temporary would hide as much of the memory measured later.
    """
    import torch

    made = torch.Generator().manual_seed(0)
    q = torch.randn(1, heads, length, width, generator=made).mul_(SPREAD)
    k = torch.randn(1, heads, length, width, generator=made)
    # A long-tailed vocabulary, as in text: few tokens make up most repeats.
    ids = (torch.rand(1, length, generator=made).pow(3) * 5000).long()
    segments = (torch.arange(length)[None] * SEGMENTS) // length
    return {"q": q, "k": k, "ids": ids, "segments": segments}


def expected_lse(heads: int, length: int) -> torch.Tensor:
    """About the lse [1, H, L] of causal normal logits: log of the keys, plus half the variance.

    For timing what is given an lse: the values do not change the cost.
    """
    import torch

    rows = torch.arange(1, length + 1, dtype=torch.float32).log() + SPREAD**2 / 2
    return rows.expand(1, heads, length).contiguous()


def eager_map(q: torch.Tensor, k: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores, probabilities) [1, H, L, L], as eager attention makes them."""
    import torch

    length = q.shape[2]
    lowest = torch.finfo(q.dtype).min
    hidden = torch.full((length, length), lowest, dtype=q.dtype, device=q.device).triu(1)
    s = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5 + hidden
    return s, torch.softmax(s, dim=-1, dtype=torch.float32)


def eager_stats(
    q: torch.Tensor, k: torch.Tensor, ids: torch.Tensor, segments: torch.Tensor, **_: Any
) -> dict[str, Any]:
    """The statistics of WANT from the full map, by plain reductions."""
    import torch

    s, p = eager_map(q, k)
    length = q.shape[2]
    index = torch.arange(length, device=q.device)
    back = index[:, None] - index
    repeated = (ids[0, :, None] == ids[0]) & (back > 0)
    after = torch.zeros_like(repeated)
    after[:, 1:] = repeated[:, :-1]
    after &= back >= 0
    one_hot = torch.nn.functional.one_hot(segments[0], SEGMENTS).to(p.dtype)
    return {
        "lse": torch.logsumexp(s, -1),
        "entropy": -torch.xlogy(p, p).sum(-1),
        "max_prob": p.amax(-1),
        "argmax": p.argmax(-1),
        "self_mass": p.diagonal(dim1=-2, dim2=-1),
        "prev_mass": torch.nn.functional.pad(p.diagonal(-1, dim1=-2, dim2=-1), (1, 0)),
        "first_mass": p[..., 0],
        "distance": (p * back).sum(-1),
        "distance_sq": (p * back.square()).sum(-1),
        "duplicate_mass": (p * repeated).sum(-1),
        "induction_mass": (p * after).sum(-1),
        "role_mass": p @ one_hot,
        "key_mass": p.sum(-2),
        "key_max": p.amax(-2),
    }


def blockwise_stats(
    q: torch.Tensor, k: torch.Tensor, ids: torch.Tensor, segments: torch.Tensor,
    want: Sequence[str] = WANT, backend: str = "torch", **terms: Any,
) -> dict[str, Any]:  # fmt: skip
    """`want` through the package."""
    from workbench.kernels.attention_stats import attention_stats

    if "role_mass" in want:
        terms |= {"key_segments": segments, "n_segments": SEGMENTS}
    if {"duplicate_mass", "induction_mass"} & set(want):
        terms |= {"query_ids": ids, "key_ids": ids}
    terms.setdefault("causal", True)
    return attention_stats(q, k, want, backend=backend, **terms)


def _few(backend: str) -> Callable[..., Any]:
    return lambda **given: blockwise_stats(**given, want=FEW, backend=backend)


def _columns(**given: Any) -> Any:
    return blockwise_stats(**given, want=("key_mass",))


def _band(**given: Any) -> Any:
    return blockwise_stats(**given, want=BAND, waad_window=WAAD_WINDOW)


METHODS: dict[str, Callable[..., Any]] = {
    "map": eager_map,
    "eager": eager_stats,
    "torch": blockwise_stats,
    "stock": _few("stock"),
    "torch_few": _few("torch"),
    "columns": _columns,
    "band": _band,
}


def measure_here(
    method: str, length: int, heads: int, threads: int | None, repeats: int, want: Sequence[str]
) -> dict[str, Any]:
    """One measurement in this process: the fastest run, and resident MB above the inputs'.

    `seconds` is wall time; `cpu_seconds` is the processor time of all threads, steadier on a shared
    machine.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)

    def given(n: int) -> dict[str, Any]:
        more = {"band": {"lse": expected_lse(heads, n)}, "torch": {"want": want}}
        return inputs(n, heads) | more.get(method, {})

    call = METHODS[method]
    call(**given(128))  # loads the libraries, so that they are not counted
    arguments = given(length)
    before = peak_mb()
    wall, cpu = [], []
    while len(wall) <= repeats and (not wall or wall[-1] < _LONG):
        start, start_cpu = time.perf_counter(), time.process_time()
        call(**arguments)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return {
        "method": method,
        "length": length,
        "heads": heads,
        # The first run also warms the caches up; of long ones it is the only one.
        "seconds": min(wall[1:] or wall),
        "cpu_seconds": min(cpu[1:] or cpu),
        "extra_mb": max(peak_mb() - before, 0.0),
        "threads": torch.get_num_threads(),
    }


def peak_mb() -> float:
    """Peak resident memory of this process, MB.

    VmHWM where there is a /proc: ru_maxrss starts from the parent's peak after a fork and exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def known() -> dict[str, Any]:
    """Statistics and CPU backends of the package on the path, and where it lies."""
    import workbench.kernels.attention_stats as package

    return {
        "stats": [*package.ROW_STATS, *package.COLUMN_STATS],
        "backends": list(package.available_backends("cpu")),
        "package": str(Path(package.__file__).resolve().parent),
    }


def main() -> None:
    """Command line; METHOD "known" says what the package has."""
    parser = argparse.ArgumentParser(description="one measurement of the CPU benchmarks")
    parser.add_argument("method", choices=("known", *METHODS))
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=HEADS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--want", default=",".join(WANT))
    a = parser.parse_args()
    if a.method == "known":
        found = known()
    else:
        want = tuple(a.want.split(","))
        found = measure_here(a.method, a.length, a.heads, a.threads, a.repeats, want)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
