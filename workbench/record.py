"""The recorder: turns calls of the tap into statistics, call by call, and never keeps a map.

Each call of a site yields a chunk: row statistics of its queries, column statistics of its keys and
statistics of the map as a whole, computed by `kernels.attention_stats` from q and k.  A
generation's decoding steps and a vision tower's packed calls are further chunks of the same site,
placed by the absolute position of their first query and key.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from workbench.calls import Call, Forward
from workbench.chunks import Chunk, Rows
from workbench.columns import Columns, Maps
from workbench.errors import CaptureError
from workbench.kernels.attention_stats import BLOCK_STATS, ROW_STATS
from workbench.margins import sink_margin
from workbench.measuring import Asked, head_pattern, measure, place
from workbench.norms import ROW_NORMS, Norms
from workbench.schema import kernel_want
from workbench.spec import AttentionSite

# Indices among the keys of a call, which need not be those of the text.
KEY_INDICES = ("argmax", "top_keys")


class Recorder:
    """A listener for one batch of one tower; `chunks` maps a site's name to what its calls gave.

    `parameters` are those the statistics of `want` are defined with (`Parameters.used`).
    """

    def __init__(
        self,
        net: torch.nn.Module,
        kind: str,
        want: tuple[str, ...],
        rows: Rows | None,
        *,
        parameters: dict[str, Any] | None = None,
        backend: str = "auto",
        pattern_heads: tuple[tuple[int, int], ...] = (),
        keep_qk: bool = False,
    ) -> None:
        self.kind = kind
        self.rows = rows
        self.asked = Asked(kind, kernel_want(want), parameters or {}, backend)
        self.pattern_heads = pattern_heads
        self.keep_qk = keep_qk
        self.margins = "sink_margin" in want
        self.norms = Norms(net, want)
        self.chunks: dict[str, list[Chunk]] = {}
        self.patterns: dict[tuple[int, int], list[tuple[int, int, np.ndarray]]] = {}
        self.qk: dict[int, dict[str, np.ndarray]] = {}
        self.columns: dict[str, Columns] = {}
        self.maps: dict[str, Maps] = {}
        self.seen: dict[str, AttentionSite] = {}
        self.forward: Forward | None = None

    @property
    def lse_of(self) -> str | None:
        """The tower whose calls shall carry the log-sum-exp of the model's own forward."""
        return self.kind if self.asked.profits_from_lse else None

    @torch.no_grad()
    def __call__(self, call: Call) -> None:
        if call.site.kind != self.kind:
            return
        self._check(call)
        name = call.site.name
        self.seen[name] = call.site
        self.forward = call.forward
        before = self.chunks.setdefault(name, [])
        q0, k0 = self._place(call, before)
        chunk = Chunk(q0, k0, call.q.shape[2], call.k.shape[2], call.q.shape[0])
        self._check_apart(call, chunk)
        self._statistics(call, chunk)
        self._norms(call, chunk)
        self._margins(call, chunk)
        self.columns.setdefault(name, Columns()).add(k0, chunk.keys)
        pool = self.asked.parameters.get("pool")
        self.maps.setdefault(name, Maps()).add(q0, k0, chunk.maps, pool)
        chunk.keys, chunk.maps = {}, {}
        before.append(chunk)
        if self.keep_qk:
            self._keep(call, chunk)

    def _check(self, call: Call) -> None:
        site = call.site
        seen = (call.q.shape[1], call.k.shape[1], call.q.shape[3], call.v.shape[3])
        declared = (site.n_heads, site.n_kv_heads, site.d_head, site.d_value)
        if seen != declared:
            raise CaptureError(
                f"{site.name} was declared with (heads, kv heads, d_head, d_value) = {declared} "
                f"but runs with {seen}; "
                f"the adapter is wrong for this family, please report it."
            )

    def _check_apart(self, call: Call, chunk: Chunk) -> None:
        """Prompts packed into one row must not see each other; some families (GPT-OSS) ignore the
        restart."""
        rows = self.rows
        if rows is None or chunk.q0 or rows.begin.shape[0] > 1:
            return
        if int(rows.begin[rows.valid].unique().numel()) < 2:
            return
        mask = call.terms.get("mask")
        begin = rows.begin[0]
        if mask is None or call.forward.about(mask, "mixes", lambda: _mixes(mask, begin)):
            raise CaptureError(
                f"{call.site.name} lets packed prompts see each other: this family does not "
                "separate prompts by their "
                f"position ids; use padding='right' or 'left'."
            )

    def _place(self, call: Call, before: list[Chunk]) -> tuple[int, int]:
        """Absolute positions of the first query and the first key of this call."""
        done = sum(chunk.n_query for chunk in before)
        if self.kind == "text":
            # A cached sliding layer keeps only its last keys: the last key is the newest position.
            seen = done + call.q.shape[2]
            cached = done > 0 or call.forward.start > 0
            return done, (max(0, seen - call.k.shape[2]) if cached else 0)
        if self.kind == "cross":
            return done, 0
        return done, sum(chunk.n_key for chunk in before)

    def _statistics(self, call: Call, chunk: Chunk) -> None:
        found = measure(call, chunk, self.rows, self.asked) if self.asked.stats else {}
        recorded = self._recorded(chunk)
        for name, value in found.items():
            array = value.to(torch.float32).cpu().numpy()
            if name in KEY_INDICES:
                # A row without any visible key has no largest one, and none beyond those it sees.
                none = array < 0 if name == "top_keys" else found["n_visible"].cpu().numpy() == 0
                array = np.where(none, np.float32(np.nan), array + np.float32(chunk.k0))
            if name in ROW_STATS:
                if not recorded.all():
                    array[np.broadcast_to(~recorded[:, None, :], array.shape[:3])] = np.nan
                chunk.rows[name] = array
            else:
                (chunk.maps if name in BLOCK_STATS else chunk.keys)[name] = array
        for layer, head in self.pattern_heads:
            if layer == call.site.layer:
                self._pattern(call, chunk, head)

    def _pattern(self, call: Call, chunk: Chunk, head: int) -> None:
        values = call.patterns.get(head)
        if values is None:
            values = head_pattern(call, head, place(call, chunk, self.rows, self.asked))
        entry = (chunk.q0, chunk.k0, values.to(torch.float32).cpu().numpy())
        self.patterns.setdefault((call.site.layer, head), []).append(entry)

    def _norms(self, call: Call, chunk: Chunk) -> None:
        for name, value in self.norms.of(call).items():
            array = value.cpu().numpy()
            if name in ROW_NORMS:
                # Rows that are not recorded have no norm either: means must cover the same rows.
                array = np.where(self._recorded(chunk)[:, None, :], array, np.float32(np.nan))
            (chunk.rows if name in ROW_NORMS else chunk.keys)[name] = array

    def _margins(self, call: Call, chunk: Chunk) -> None:
        if self.margins and self.kind != "cross":
            terms = place(call, chunk, self.rows, self.asked)
            array = sink_margin(call, terms).float().cpu().numpy()
            chunk.rows["sink_margin"] = np.where(
                self._recorded(chunk)[:, None, :], array, np.float32(np.nan)
            )

    def _recorded(self, chunk: Chunk) -> np.ndarray:
        """Mask [row, query] of the queries of a call that are recorded."""
        if self.rows is None:
            return np.ones((1, chunk.n_query), dtype=bool)
        return self.rows.recorded(*chunk.queries).numpy()

    def _keep(self, call: Call, chunk: Chunk) -> None:
        kept = self.qk.setdefault(call.site.layer, {})
        q, k = call.q.float().cpu().numpy(), call.k.float().cpu().numpy()
        first = "q" not in kept
        kept["q"] = q if first else np.concatenate([kept["q"], q], axis=2)
        # The key cache of a decoding step holds the earlier keys too, unless a sliding layer
        # dropped them.
        kept["k"] = k if first else np.concatenate([kept["k"][:, :, : chunk.k0], k], axis=2)
        kept["scale"] = np.asarray(call.terms["scale"], dtype=np.float32)
        if "sink_logit" in call.terms:
            kept["sink"] = call.terms["sink_logit"].float().cpu().numpy()
        if not first:
            return
        for name in ("mask", "bias"):
            if name in call.terms:
                kept[name] = call.terms[name].cpu().numpy()
        if "mask" not in call.terms and _unlike_site(call):
            kept["mask"] = _visible(call).cpu().numpy()


def _mixes(mask: torch.Tensor, begin: torch.Tensor) -> bool:
    """Whether a mask lets a position see one of another prompt of its row."""
    foreign = begin[:, None] != begin[None, :]
    return bool((mask.cpu() & foreign).any())


def _unlike_site(call: Call) -> bool:
    """Whether a site sees in another window here than it declares, which q and k do not tell."""
    n_key = call.k.shape[2]
    seen, declared = (
        n_key if w is None else min(w, n_key) for w in (call.terms.get("window"), call.site.window)
    )
    return bool(call.terms.get("causal")) and seen != declared


def _visible(call: Call) -> torch.Tensor:
    """The causal rule and window of a call as a mask [1, 1, query, key]."""
    n_query, n_key = call.q.shape[2], call.k.shape[2]
    window = call.terms.get("window", n_key)
    rule = torch.ones(1, 1, n_query, n_key, dtype=torch.bool, device=call.q.device)
    return rule.tril(n_key - n_query).triu(n_key - n_query + 1 - window)
