"""Sizes of the causal transformer and kinds of single layers, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import WorkbenchError

KINDS = ("linear", "softmax")


@dataclass(frozen=True)
class Shape:
    """Sizes of the transformer; `examples` is the largest number it can see."""

    d: int = 3
    examples: int = 8
    width: int = 32
    layers: int = 2
    heads: int = 2

    def __post_init__(self) -> None:
        if min(self.d, self.examples, self.layers, self.heads) < 1 or self.width % self.heads:
            raise WorkbenchError(
                f"{self}: give sizes of at least 1 and a width that the heads divide."
            )

    @property
    def tokens(self) -> int:
        return 2 * self.examples + 1

    def names(self) -> list[str]:
        """Names of the tokens, `x1, y1, x2, ...`."""
        return [f"{'xy'[i % 2]}{i // 2 + 1}" for i in range(self.tokens)]
