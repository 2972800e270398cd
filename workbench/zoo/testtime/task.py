"""Prompts of test-time regression: keys, their values under a map that is new each time, queries.

    linear      v = A k                  affine      v = A k + b
    piecewise   v = A_s k, s = [u'k > 0] quadratic   v_c = k'Q_c k
    drift       v = A_s k, s the segment of the sequence; keys and queries of a segment lie around
                a centre of its own, and queries belong to the last one
    unshifted   drift without centres: keys do not show their segment

Keys are N(0, I) around their centre; A, b, Q are Gaussian with E v^2 = 1 for keys around zero.
There is no noise.  Zuo et al. 2025 (arXiv 2510.01450) test on maps and keys that change along the
sequence; the sizes here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import WorkbenchError

SPREAD = 3.0  # deviation of the centres of segments, in deviations of the keys around them
KINDS = ("linear", "affine", "piecewise", "quadratic", "drift", "unshifted")
_DRIFTING = ("drift", "unshifted")


@dataclass(frozen=True, eq=False)
class Prompts:
    """`keys` [prompt, key, coordinate], `values` [prompt, key, value], `queries` [prompt, query,
    coordinate], `targets` [prompt, query, value], float64."""

    keys: np.ndarray
    values: np.ndarray
    queries: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Task:
    """A kind of map, `d` coordinates of a key, `d_value` of a value, `segments` of a drift."""

    kind: str
    d: int = 4
    d_value: int = 2
    segments: int = 4

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise WorkbenchError(f"task {self.kind!r} is not known; known: {', '.join(KINDS)}.")
        if min(self.d, self.d_value, self.segments) < 1:
            raise WorkbenchError(
                f"d {self.d}, d_value {self.d_value}, segments {self.segments}: each must be at "
                "least 1."
            )

    def prompts(self, count: int, length: int, seed: int | list[int], queries: int = 8) -> Prompts:
        """`count` prompts of `length` keys that `seed` decides.

        Raises for a drift whose length is not a multiple of its segments.
        """
        rng = np.random.default_rng(seed)
        if self.kind in _DRIFTING and length % self.segments:
            raise WorkbenchError(
                f"{length} keys do not divide into {self.segments} segments; give a multiple of "
                f"{self.segments}."
            )
        segment = np.zeros(length + queries, int)
        if self.kind in _DRIFTING:
            # Queries come after the keys and go on with the last segment.
            segment = np.minimum(np.arange(length + queries) * self.segments // length,
                                 self.segments - 1)  # fmt: skip
        keys = rng.standard_normal((count, length + queries, self.d))
        if self.kind == "drift":
            keys += SPREAD * rng.standard_normal((count, self.segments, self.d))[:, segment]
        values = self._values(keys, segment, rng)
        return Prompts(
            keys[:, :length], values[:, :length], keys[:, length:], values[:, length:]
        )  # fmt: skip

    def _values(self, keys: np.ndarray, segment: np.ndarray, rng: np.random.Generator):
        count, d, c = len(keys), self.d, self.d_value
        if self.kind == "quadratic":
            # E |k|^4 = d (d + 2).
            forms = rng.standard_normal((count, c, d, d)) / np.sqrt(d * (d + 2))
            return np.einsum("pki,pcij,pkj->pkc", keys, forms, keys, optimize=True)
        parts = {"piecewise": 2, "drift": self.segments, "unshifted": self.segments}
        maps = rng.standard_normal((count, parts.get(self.kind, 1), c, d)) / np.sqrt(d)
        if self.kind == "piecewise":
            side = np.einsum("pki,pi->pk", keys, rng.standard_normal((count, d))) > 0
            chosen = np.take_along_axis(maps, side.astype(int)[..., None, None], axis=1)
        else:
            chosen = maps[:, segment]
        values = np.einsum("pkci,pki->pkc", chosen, keys)
        if self.kind == "affine":
            values += rng.standard_normal((count, 1, c))
        return values
