"""Two views with features of given covariance and predictability, as their moments.

Feature i is a direction u_i.  The views x and y have along it

    cov(x_i, y_i) = lambda_i,    var(x_i) = lambda_i / rho_i,    rho_i the regression coefficient

and no covariance across features (Littwin et al. 2024, arXiv 2407.03475).  A noisy feature has a
large variance and a small rho.  Deep linear networks see the moments alone, so training on them is
full-batch training on endless data.  The directions are a random orthonormal basis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import WorkbenchError


@dataclass(frozen=True)
class Task:
    """Covariances `lam` and regression coefficients `rho` of the features, in one order."""

    lam: tuple[float, ...]
    rho: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.lam) != len(self.rho) or not self.lam or min(self.lam) <= 0:
            raise WorkbenchError(
                f"covariances {self.lam} and coefficients {self.rho}: give one positive covariance "
                "and one coefficient per feature."
            )
        if not all(0 < rho <= 1 for rho in self.rho):
            raise WorkbenchError(f"coefficients {self.rho} must lie above 0 and not above 1.")

    @property
    def d(self) -> int:
        return len(self.lam)

    @property
    def variances(self) -> np.ndarray:
        """Variance of x, and of y, along each feature, [feature]."""
        return np.array(self.lam) / np.array(self.rho)

    def directions(self, seed: int) -> np.ndarray:
        """An orthonormal basis, [coordinate, feature]."""
        return np.linalg.qr(np.random.default_rng(seed).standard_normal((self.d, self.d)))[0]

    def moments(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """E x x' and E y x', [coordinate, coordinate] each."""
        return (
            (directions * self.variances) @ directions.T,
            (directions * np.array(self.lam)) @ directions.T,
        )

    def draw(self, count: int, directions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples of both views, [sample, coordinate]: y = rho x + noise, of equal variance."""
        rng = np.random.default_rng(seed)
        rho = np.array(self.rho)
        x, noise = rng.standard_normal((2, count, self.d)) * np.sqrt(self.variances)
        return x @ directions.T, (rho * x + np.sqrt(1.0 - rho**2) * noise) @ directions.T
