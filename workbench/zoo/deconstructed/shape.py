"""Sizes of a network of the laboratory and the mixer of every layer, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import WorkbenchError

MIXERS = (
    "standard", "mlp", "approximate", "non-approximate", "rnd-emb-qk", "fixed-seq-qk",
    "static-emb-qk",
)  # fmt: skip
FROM_OUTSIDE = ("rnd-emb-qk", "fixed-seq-qk")


@dataclass(frozen=True)
class Shape:
    """Sizes that all runs of a stack share, and the mixer of every layer."""

    vocabulary: int
    d_model: int
    heads: int
    mixers: tuple[str, ...]

    def __post_init__(self) -> None:
        if wrong := [mixer for mixer in self.mixers if mixer not in MIXERS]:
            raise WorkbenchError(f"mixer {wrong[0]!r} is none of {', '.join(MIXERS)}.")
        if len(set(self.mixers) & set(FROM_OUTSIDE)) > 1:
            raise WorkbenchError(
                f"mixers {self.mixers} want a random stream and a fixed text; take one of the two."
            )
        if self.d_model % (6 * self.heads):
            raise WorkbenchError(
                f"width {self.d_model} with {self.heads} heads: give a multiple of 6 per head, so "
                "that heads are even and the MLP in place of attention has as many parameters."
            )

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads

    @property
    def d_mlp(self) -> int:
        """Width of the gated MLPs: three maps of it hold as much as four of d_model."""
        return 4 * self.d_model // 3
