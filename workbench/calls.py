"""One call of an attention site as the tap saw it, and the forward pass it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.spec import AttentionSite

# Facts about masks kept at a time: full and sliding layers have one mask each; a tower that makes
# one per layer or image must not pile them up.
_FACTS = 6


@dataclass
class Axis:
    """Positions of one tower in one pass: ids [row, position] and, per row, the (begin, end) of
    every prompt in it (padding lies outside; only packed rows hold several)."""

    ids: torch.Tensor
    spans: list[tuple[tuple[int, int], ...]]


@dataclass
class Forward:
    """One forward pass of the language tower, as its inputs tell it.

    `own` are the positions so far (None where the pass was given embeddings), `start` the absolute
    position of the first query of this pass, larger than 0 in the decoding steps of a generation;
    `growing` whether the pass fills a cache, so that positions may follow in later passes;
    `encoder` the positions of a sequence-to-sequence model's encoder.  `segments` are masks [row,
    position] of named segments and `packed` the prompts of a packed row; a capture sets both.
    """

    own: Axis | None = None
    start: int = 0
    growing: bool = False
    encoder: Axis | None = None
    segments: dict[str, torch.Tensor] = field(default_factory=dict)
    packed: tuple[tuple[int, int], ...] = ()
    _facts: dict[tuple[int, str], tuple[torch.Tensor, Any]] = field(default_factory=dict)

    @property
    def ids(self) -> torch.Tensor | None:
        return None if self.own is None else self.own.ids

    def about(self, mask: torch.Tensor, what: str, find: Callable[[], Any]) -> Any:
        """`find()`, found once per pass and mask: the layers of a model share one mask, which is
        as large as a map."""
        if (id(mask), what) not in self._facts:
            if len(self._facts) >= _FACTS:
                self._facts.pop(next(iter(self._facts)))
            # The mask is kept with it: another tensor must not get its id.
            self._facts[id(mask), what] = (mask, find())
        return self._facts[id(mask), what][1]

    def forget(self) -> None:
        """Drop what is known about the masks of a pass that is over."""
        self._facts.clear()


@dataclass
class Call:
    """One call of one attention site, after rotary embedding and cache update.

    `q` [row, head, query, d_head], `k` [row, kv_head, key, d_head], `v` [row, kv_head, key,
    d_value], `z` [row, query, head, d_value] after edits; `terms` are the arguments of
    `kernels.attention_stats` that describe scale, mask, bias, softcap and sink; `patterns` maps a
    head to the map an edit put in place of its own; `forward` is the pass it belongs to; `lse`
    [row, head, query] is the log-sum-exp of exactly these scores, where the model's own forward
    gave it and a listener asked for it.
    """

    site: AttentionSite
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    z: torch.Tensor
    terms: dict[str, Any]
    forward: Forward
    patterns: dict[int, torch.Tensor] = field(default_factory=dict)
    lse: torch.Tensor | None = None
