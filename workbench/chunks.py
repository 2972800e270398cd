"""What a recorder knows about a batch before it runs, and what it keeps of one call of a site."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Rows:
    """What is known about the rows of a batch before it runs.

    `begin` [row, position]: where the prompt of every position starts (rows may pack several
    prompts); `valid` [row, position]; `roles` [row, role, position]; `chosen` [row, position]:
    query rows that are recorded (None: all), `chosen_later` whether generated rows are; `ids` where
    the tower's are not those of the forward pass (an encoder's).
    """

    begin: torch.Tensor
    valid: torch.Tensor
    roles: torch.Tensor | None = None
    chosen: torch.Tensor | None = None
    chosen_later: bool = True
    ids: torch.Tensor | None = None

    def cut(self, values: torch.Tensor, start: int, stop: int, fill: Any) -> torch.Tensor:
        """Columns start..stop; positions beyond the prompt (generated ones) repeat `fill`."""
        have = values.shape[-1]
        part = values[..., min(start, have) : min(stop, have)]
        missing = (stop - start) - part.shape[-1]
        if missing <= 0:
            return part
        extra = torch.full((*values.shape[:-1], missing), fill, dtype=values.dtype)
        return torch.cat([part, extra], dim=-1)

    def recorded(self, start: int, stop: int) -> torch.Tensor:
        """Bool [row, query] of the queries start..stop that are recorded."""
        valid = self.cut(self.valid, start, stop, fill=True)
        if self.chosen is not None:
            valid = valid & self.cut(self.chosen, start, stop, fill=self.chosen_later)
        return valid


@dataclass
class Chunk:
    """Statistics of one call and where they go: its first query and key stand at the absolute
    positions `q0` and `k0`.

    `rows` are arrays [row, head, query(, .)]; `keys` [row, head, key] and `maps` [row, head, ...]
    are kept only until they are joined to those of the site's other calls.
    """

    q0: int
    k0: int
    n_query: int
    n_key: int
    n_rows: int
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    keys: dict[str, np.ndarray] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def queries(self) -> tuple[int, int]:
        """(start, stop) of the queries."""
        return self.q0, self.q0 + self.n_query

    @property
    def key_span(self) -> tuple[int, int]:
        """(start, stop) of the keys."""
        return self.k0, self.k0 + self.n_key
