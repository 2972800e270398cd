"""Blockwise torch: strips of query rows against all the keys they can see, exact in one pass over
the strip.

A strip holds whole visible rows, so its softmax is final at once and row and column statistics come
from the same scores; no tensor of Q x K is ever made. On a CPU this is faster than two-pass tiling
because the strip stays in cache. Where the lse is given and the statistics look at few keys per
query, only those are computed (`torch_bands`). Work items are groups of key/value heads of one
prompt; each owns its outputs, so the result does not depend on how many threads ran.

Numerics: scores are kept in units of log 2, hidden ones at the most negative finite value
(`torch_terms`), rows shifted by their maximum, row totals summed in float64, entropy as (log(l) *
sum e - sum e z) / l, whose terms are all positive (z = s - max <= 0).

    torch_problem   sizes, work items        torch_rows      sums over keys
    torch_geometry  reach of a strip         torch_distance  sums by distance
    torch_plan      what heads share         torch_columns   sums over queries
    torch_terms     scores                   torch_counts    visible pairs
    torch_strip     weights, statistics      torch_bands     few keys, given the lse
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from workbench.kernels.attention_stats.torch_bands import Bands
from workbench.kernels.attention_stats.torch_columns import accumulators, finish
from workbench.kernels.attention_stats.torch_counts import count
from workbench.kernels.attention_stats.torch_problem import SERIAL, Problem
from workbench.kernels.attention_stats.torch_rows import hide_padding, outputs
from workbench.kernels.attention_stats.torch_strip import Reduction, Strips
from workbench.kernels.attention_stats.torch_terms import Group


def available(device_type: str) -> bool:
    """Every device torch computes on."""
    return device_type != "meta"


def refuses(q: torch.Tensor, want: Sequence[str], terms: dict[str, Any]) -> str | None:  # noqa: ARG001
    """Nothing."""
    return None


def attention_stats(
    q: torch.Tensor, k: torch.Tensor, want: tuple[str, ...], **terms: Any
) -> dict[str, torch.Tensor]:
    """The statistics `want` of checked arguments; definitions in the package."""
    with torch.no_grad():
        problem = Problem.of(q, k, want, terms)
        rows, sums = outputs(problem), accumulators(problem)
        _run_all(problem, rows, sums)
        counts = count(problem)
        found = rows | finish(problem, sums, counts)
        for name in problem.want & counts.keys():
            shape = (*q.shape[:2], counts[name].shape[-1])
            found[name] = counts[name].expand(shape).contiguous()
        hide_padding(found, problem.terms["query_valid"])
        return {name: found[name] for name in want}


def pattern(q: torch.Tensor, k: torch.Tensor, rows: slice, **terms: Any) -> torch.Tensor:
    """Weights [B, H, R, K] of the rows, by the same strips."""
    with torch.no_grad():
        problem = Problem.of(q, k, (), terms)
        (b, h), count_rows = q.shape[:2], rows.stop - rows.start
        out = torch.zeros(b, h, count_rows, k.shape[2], dtype=problem.dtype, device=q.device)
        for group in problem.work():
            strips, own = Strips(problem, group), group.own(out)
            for i0 in range(rows.start, rows.stop, problem.rows):
                plan = strips.prompt.plan(i0, min(rows.stop, i0 + problem.rows))
                if plan is not None:
                    at = slice(i0 - rows.start, plan.i1 - rows.start)
                    own[:, :, at, plan.lo : plan.hi] = strips.weights(plan)[0].p
        return out


def _run_all(
    problem: Problem, rows: dict[str, torch.Tensor], sums: dict[str, torch.Tensor]
) -> None:
    """Every group, on a pool of one-thread workers when that pays and is safe."""
    if not rows and not sums:
        return
    sweeps = {"rows", "columns"} & set(problem.passes)
    reduction = Reduction if sweeps else Bands

    def run(group: Group) -> None:
        reduction(problem, group, rows, sums).run()

    work = list(problem.work())
    q, k = problem.q, problem.k
    scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    threads = min(len(work), torch.get_num_threads())
    if q.device.type != "cpu" or scores <= SERIAL:
        for group in work:
            run(group)
        return
    with _one_thread_each() as safe:
        if not safe or threads == 1:
            for group in work:
                run(group)
            return
        inference = torch.is_inference_mode_enabled()

        def run_alone(group: Group) -> None:
            torch.set_num_threads(1)
            # Both modes belong to the thread; tensors made under inference mode may only be written
            # in it.
            with torch.inference_mode(inference), torch.no_grad():
                run(group)

        with ThreadPoolExecutor(threads, thread_name_prefix="attention-stats") as pool:
            list(pool.map(run_alone, work))


@contextmanager
def _one_thread_each() -> Iterator[bool]:
    """One intra-op thread per worker, the caller's number restored afterwards; yields whether that
    is possible.

    Barriers of small operations cost more than a second thread brings, and a number of threads that
    changes how a product is split would change the bits. With OpenMP the number belongs to the
    calling thread; the native pool of torch takes it only once per process, so there nothing is
    touched.
    """
    if not _threads_are_local():
        yield False
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield True
    finally:
        torch.set_num_threads(before)


@cache
def _threads_are_local() -> bool:
    return "OpenMP" in torch.__config__.parallel_info().split("ATen parallel backend:")[-1]
