"""The process that does the GPU benchmark's measurements, one after the other, as it is asked.

Reads names of `bench_gpu_cases.cases` from stdin and answers each with one line, `@row` and JSON.
An exception is an answer as well ("error"); after one that leaves the device unusable ("sick") the
process that asks starts another one.

Dims: B batch, H query heads, Hkv key/value heads, L tokens, D width.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.kernels.attention_stats.bench_gpu_cases import Case, Size, cases
from workbench.kernels.attention_stats.bench_gpu_device import Clock, machine, roof
from workbench.kernels.attention_stats.bench_one import (
    BAND,
    SPREAD,
    WAAD_WINDOW,
    WANT,
    blockwise_stats,
    eager_map,
    eager_stats,
    expected_lse,
    inputs,
)

if TYPE_CHECKING:
    import torch

MARK = "@row "
# Seconds of timed runs that one measurement aims for, and the most runs.
_AIM, _MOST = 1.0, 20
# What needs no sweep given the lse; more of it takes an argument and is left to `everything`.
_GIVEN = (*BAND, "self_mass", "null_mass")


class Skipped(Exception):
    """A measurement that cannot be made here; its text says why."""


@dataclass(frozen=True)
class Inputs:
    """q [1, H, Q, D], k and v [1, Hkv, K, D] of normal numbers, ids and segments [1, K]."""

    size: Size
    q: torch.Tensor
    k: torch.Tensor
    ids: torch.Tensor
    segments: torch.Tensor

    @staticmethod
    def of(size: Size, device: str) -> Inputs:
        import torch

        made = torch.Generator(device).manual_seed(0)
        # The interpreter multiplies the bit patterns of bfloat16.
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        q, k = (
            torch.randn(1, h, n, size.width, dtype=dtype, device=device, generator=made)
            for h, n in ((size.heads, size.queries), (size.kv_heads, size.keys))
        )
        tokens = inputs(size.keys, 1, 1)
        return Inputs(
            size, q.mul_(SPREAD), k, tokens["ids"].to(device), tokens["segments"].to(device)
        )

    def stats(self, want: tuple[str, ...], backend: str = "triton", **terms: Any) -> Any:
        """`want` through the package, causal or not as the size says."""
        given = {"q": self.q, "k": self.k, "ids": self.ids, "segments": self.segments}
        terms = {"causal": self.size.causal} | terms
        return blockwise_stats(**given, want=want, backend=backend, **terms)

    def lse(self) -> torch.Tensor:
        return expected_lse(self.size.heads, self.size.queries).to(self.q.device)


def _ours(*want: str, given: bool = False, backend: str = "triton") -> Callable[[Inputs], Any]:
    def prepare(x: Inputs) -> Callable[[], Any]:
        terms: dict[str, Any] = {"lse": x.lse()} if given else {}
        terms |= {"waad_window": WAAD_WINDOW} if "waad" in want else {}
        return lambda: x.stats(want, backend, **terms)

    return prepare


def _everything(x: Inputs) -> Callable[[], Any]:
    """Every statistic the backend supports, with the arguments of the parity check."""
    import torch

    from workbench.kernels.attention_stats import attention_stats
    from workbench.kernels.attention_stats.bench_gpu_parity import arguments, supported

    made, n = torch.Generator().manual_seed(0), x.size.keys
    shape = (1, x.size.heads, x.size.kv_heads, n, n, x.size.width)
    terms: dict[str, Any] = {
        name: t.to(x.q.device) if hasattr(t, "device") else t
        for name, t in arguments(shape, made).items()
    } | {"query_ids": x.ids, "key_ids": x.ids}
    terms["v"] = terms["v"].to(x.q.dtype)
    want, _ = supported(x.q, x.k, terms)
    return lambda: attention_stats(x.q, x.k, want, backend="triton", **terms)


def _forward(backend: str) -> Callable[[Inputs], Any]:
    def prepare(x: Inputs) -> Callable[[], Any]:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        v = torch.randn_like(x.k)

        def call() -> torch.Tensor:
            with sdpa_kernel(getattr(SDPBackend, backend)), torch.no_grad():
                return torch.nn.functional.scaled_dot_product_attention(
                    x.q, x.k, v, is_causal=x.size.causal, enable_gqa=x.k.shape[1] != x.q.shape[1]
                )

        return call

    return prepare


def _peer(x: Inputs) -> Callable[[], Any]:
    try:
        from flash_colreduce import flash_colreduce  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Skipped(f"flash-colreduce cannot be imported: {error}") from error
    return lambda: flash_colreduce(x.q, x.k, "sum", is_causal=x.size.causal)


def _eager(reduce: Callable[..., Any], per_pair: int, shared: int) -> Callable[..., Any]:
    """The whole map, as many heads at a time as fit: `per_pair` bytes per pair and head, `shared`
    per pair."""

    def prepare(x: Inputs, clock: Clock) -> Callable[[], Any]:
        pairs_mb, free = x.size.queries * x.size.keys / 2**20, 0.8 * clock.free_mb()
        at_once = min(int((free - shared * pairs_mb) // (per_pair * pairs_mb)), x.size.heads)
        if at_once < 1:
            need = (per_pair + shared) * pairs_mb
            raise Skipped(f"one head's map needs about {need:,.0f} MB, and {free:,.0f} are free")
        group = x.size.heads // x.size.kv_heads

        def call() -> list[Any]:
            out = []
            for first in range(0, x.size.heads, at_once):
                heads = slice(first, first + at_once)
                k = x.k.repeat_interleave(group, 1)[:, heads]
                out.append(reduce(q=x.q[:, heads], k=k, ids=x.ids, segments=x.segments))
            return out

        return call

    return prepare


def _column_sum(q: torch.Tensor, k: torch.Tensor, **_: Any) -> torch.Tensor:
    import torch

    if q.shape[2] == k.shape[2]:
        return eager_map(q, k)[1].sum(-2)
    s = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5
    return torch.softmax(s, dim=-1, dtype=torch.float32).sum(-2)


METHODS: dict[str, Callable[..., Any]] = {
    "lse": _ours("lse"),
    "columns": _ours("key_mass", given=True),
    "two_pass": _ours("lse", "key_mass"),
    "full": _ours(*WANT),
    "given": _ours(*_GIVEN, given=True),
    "everything": _everything,
    "stock": _ours("lse", "entropy", "key_mass", backend="stock"),
    "torch": _ours(*WANT, backend="torch"),
    "sdpa": _forward("FLASH_ATTENTION"),
    "cudnn": _forward("CUDNN_ATTENTION"),
    "peer": _peer,
}
# Bytes per pair: scores and their sum with the mask (2 each), weights and two temporaries (4 each).
EAGER = {"eager": _eager(eager_stats, 20, 30), "eager_sum": _eager(_column_sum, 10, 4)}


def time_of(case: Case, clock: Clock, device: str) -> dict[str, Any]:
    """Time and memory of one case; `mass_error` is how far the columns of a head are from summing
    to its rows."""
    assert case.size is not None
    x = Inputs.of(case.size, device)
    prepare = EAGER.get(case.what)
    call = METHODS[case.what](x) if prepare is None else prepare(x, clock)
    peak, first, result = clock.peak_mb(call)
    row: dict[str, Any] = {"first_seconds": first, "peak_mb": peak}
    if isinstance(result, dict):
        row |= {"statistics": len(result)} | _checked(result, case)
    del result
    second, _ = clock.once(call)
    n = 1 if second > 2 * _AIM else max(3, min(_MOST, int(_AIM / max(second, 1e-9))))
    runs = clock.times(call, n if clock.gpu else 1)
    row |= {"seconds": statistics.median(runs), "fastest": min(runs), "slowest": max(runs)}
    return row | {"runs": len(runs)}


def _checked(result: dict[str, torch.Tensor], case: Case) -> dict[str, float]:
    """Every query has mass one, so the columns sum to their number (not for a made-up lse)."""
    if case.what not in ("two_pass", "full", "everything", "stock", "torch"):
        return {}
    assert case.size is not None
    off = result["key_mass"].double().sum(-1) / case.size.queries - 1
    # NaN passes through a maximum.
    return {"mass_error": float(off.abs().max())}


def perform(case: Case, clock: Clock, device: str, smoke: bool) -> dict[str, Any]:
    """One measurement."""
    if case.what == "parity":
        from workbench.kernels.attention_stats.bench_gpu_parity import parity

        return parity(case.variant, device, smoke)
    return roof(case.what, clock, device) if case.size is None else time_of(case, clock, device)


def answer(row: dict[str, Any]) -> None:
    print(MARK + json.dumps(row), flush=True)  # noqa: T201


def main(smoke: bool) -> None:
    """Say what the machine is, then measure what stdin names."""
    import torch

    known = {case.name: case for case in cases(smoke)}
    found = machine()
    device = found["device"]
    if device == "cpu":
        torch.set_num_threads(1)
    clock = Clock(device)
    answer(found)
    with ThreadPoolExecutor(1) as pool:
        for line in sys.stdin:
            done = pool.submit(perform, known[line.strip()], clock, device, smoke)
            error = done.exception()
            row: dict[str, Any]
            if error is None:
                row = done.result()
            elif isinstance(error, Skipped):
                row = {"skipped": str(error)}
            else:
                said = (str(error).strip().splitlines() or [""])[0][:300]
                trace = "".join(traceback.format_exception(error))[-3000:]
                row = {"error": f"{type(error).__name__}: {said}", "trace": trace}
            # A traceback holds the tensors of its frames.
            del done, error
            gc.collect()
            if clock.gpu:
                row["sick"] = pool.submit(torch.cuda.synchronize).exception() is not None
                if not row["sick"]:
                    torch.cuda.empty_cache()
            answer(row)


if __name__ == "__main__":
    main("--smoke" in sys.argv[1:])
