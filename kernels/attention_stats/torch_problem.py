"""One call of the torch path: its arguments, the sizes of its strips, its work items and scratch.

Dims: B batch, H query heads, Hkv key/value heads, G = H // Hkv query heads per key head, Q queries,
K keys; N rows of a strip.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.kernels.attention_stats.terms import TERMS, passes
from workbench.kernels.attention_stats.torch_distance import BY_DISTANCE, Ruler, Skew
from workbench.kernels.attention_stats.torch_geometry import Geometry
from workbench.kernels.attention_stats.torch_plan import Prompt
from workbench.kernels.attention_stats.torch_terms import Group
from workbench.kernels.attention_stats.variants import MASKS

# Rows (queries x heads of a group) and elements of one strip: what fits the cache of a CPU core, or
# keeps a GPU busy.
_CPU_ROWS, _CPU_ELEMENTS = 128, 1 << 18
_GPU_ROWS, _GPU_ELEMENTS = 512, 1 << 26
# Below this many scores in all, starting threads costs more than it saves.
SERIAL = 1 << 19


@dataclass
class Problem:
    """Arguments and sizes of one call. Workers write disjoint parts of the outputs."""

    q: torch.Tensor
    k: torch.Tensor
    want: frozenset[str]
    terms: dict[str, Any]
    geometry: Geometry
    dtype: torch.dtype
    rows: int
    heads_per_group: int
    prompts: list[Prompt]
    ruler: Ruler | None
    passes: tuple[str, ...]
    worker: threading.local = field(default_factory=threading.local)

    @staticmethod
    def of(
        q: torch.Tensor, k: torch.Tensor, want: tuple[str, ...], terms: dict[str, Any]
    ) -> Problem:
        """Sizes depend on shapes only, never on the number of threads, so that the bits do not
        either."""
        (b, h, n_q, d), (_, h_kv, n_k, _) = q.shape, k.shape
        cpu = q.device.type == "cpu"
        rows, elements = (_CPU_ROWS, _CPU_ELEMENTS) if cpu else (_GPU_ROWS, _GPU_ELEMENTS)
        n = max(1, min(n_q, max(16, rows // (h // h_kv))))
        units = max(1, elements // max(1, n * (h // h_kv) * n_k))
        if b * h * n_q * n_k > SERIAL and cpu:
            units = min(units, max(1, b * h_kv // 4))
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        terms = dict.fromkeys(TERMS) | terms
        terms["scale"] = d**-0.5 if terms["scale"] is None else terms["scale"]
        terms |= {"dtype": dtype, "device": q.device}
        for name in ("mask", "bias"):
            x = terms[name]
            if isinstance(x, torch.Tensor):
                terms[name] = x[(None,) * (4 - x.dim())]
        described = terms["mask"] if isinstance(terms["mask"], MASKS) else None
        geometry = Geometry(
            n_q, n_k, terms["query_offset"], terms["causal"], terms["window"], described
        )
        wanted = frozenset(want)
        prompts = [Prompt(index, geometry, wanted, terms) for index in range(b)]
        ruler = Ruler(geometry, n, wanted, terms) if wanted & BY_DISTANCE else None
        sweeps = passes(want, lse=terms["lse"] is not None, horizon=terms["horizon"])
        return Problem(
            q, k, wanted, terms, geometry, dtype, n, min(units, h_kv), prompts, ruler, sweeps
        )

    @property
    def groups(self) -> int:
        """G, the query heads that share a key head."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def wide(self) -> torch.dtype:
        """The dtype of sums over many terms; Apple's GPU has no float64."""
        return torch.float32 if self.q.device.type == "mps" else torch.float64

    def work(self) -> Iterator[Group]:
        """All groups, in a fixed order."""
        h_kv, step = self.k.shape[1], self.heads_per_group
        for b in range(self.q.shape[0]):
            for h in range(0, h_kv, step):
                yield Group(b, slice(h, min(h_kv, h + step)), self.groups)

    def buffers(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Two flat scratch tensors of at least `size` elements that belong to this worker."""
        have = getattr(self.worker, "pair", None)
        if have is None or have[0].numel() < size:
            flat = torch.empty(2, size, dtype=self.dtype, device=self.q.device)
            have = (flat[0], flat[1])
            self.worker.pair = have
        return have

    @property
    def skew(self) -> Skew:
        """The scratch memory of this worker for strips laid out by distance."""
        have = getattr(self.worker, "skew", None)
        if have is None:
            have = Skew(self.rows, self.dtype, self.q.device)
            self.worker.skew = have
        return have
