"""Prompts of linear functions with uniform coordinates, as von Oswald et al. draw them.

    x_l, x_q ~ U(-half, half)^d,  w ~ N(0, I),  y = w'x without noise

In their code (arXiv 2212.07677) d = 10, ten labelled points, and `half` is 0.5.  Losses are half
the squared error, as there.  Prompts with Gaussian coordinates and labels of variance one, those of
Garg et al. 2022 (arXiv 2208.01066) divided by d, come from `workbench.zoo.regression.task.Task`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import WorkbenchError
from workbench.zoo.regression.task import Prompts


@dataclass(frozen=True)
class Uniform:
    """`d` coordinates between -`half` and `half`, `length` labelled points."""

    d: int = 10
    length: int = 10
    half: float = 0.5

    def __post_init__(self) -> None:
        if self.d < 1 or self.length < 2 or self.half <= 0:
            raise WorkbenchError(
                f"d {self.d}, length {self.length}, half {self.half}: give at least 1 coordinate, "
                "2 points and a range above 0."
            )

    @property
    def second(self) -> float:
        """E x^2 of a coordinate."""
        return self.half**2 / 3.0

    @property
    def fourth(self) -> float:
        """E x^4 of a coordinate."""
        return self.half**4 / 5.0

    def prompts(self, count: int, seed: int | list[int]) -> Prompts:
        """`count` prompts that `seed` decides."""
        rng = np.random.default_rng(seed)
        x = rng.uniform(-self.half, self.half, (count, self.length + 1, self.d))
        x = x.astype(np.float32)
        y = x @ rng.standard_normal((count, self.d, 1), np.float32)
        return Prompts(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1])


def loss(predicted: np.ndarray, prompts: Prompts) -> float:
    """Half the mean squared error of predictions [prompt, task]."""
    return 0.5 * float(np.mean((predicted - prompts.y_q) ** 2, dtype=np.float64))
