"""In-context regression without noise, as the few moments that linear attention sees.

    x_n, x_q ~ N(0, Lambda),  w ~ N(0, I),  y = w'x;  beta = 1/N sum_n y_n x_n

Linear attention whose value reads the label predicts y_q = beta' M x_q, M the sum over heads of
value times key times query (Zhang et al. 2025, arXiv 2501.16265).  That is linear in the cubic
features beta x_q', so the loss is

    mean y_q^2 - 2 <b, M> + <M, C M>,   b = E y_q beta x_q',   C = E (beta x_q') (beta x_q')'

and full-batch training on any number of sequences costs no more than these moments.  In the
population E beta beta' = Lambda^2 (1 + 1/N) + trace(Lambda) Lambda / N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import WorkbenchError


@dataclass(frozen=True, eq=False)
class Moments:
    """`zero`, the loss without a prediction; `b` [key, query]; `c` [key * query, key * query]."""

    zero: float
    b: np.ndarray
    c: np.ndarray

    def loss(self, m: np.ndarray) -> np.ndarray:
        """Mean squared error of prediction matrices [..., key, query], squared label, [...]."""
        flat = m.reshape(*m.shape[:-2], -1)
        return self.zero - 2.0 * flat @ self.b.ravel() + ((flat @ self.c) * flat).sum(axis=-1)


@dataclass(frozen=True)
class Task:
    """Variances of the `eigenvalues`' directions, which are the coordinates; `length` N examples.

    The coordinates may be any orthonormal ones: starts have no preferred direction.
    """

    eigenvalues: tuple[float, ...]
    length: int = 31

    def __post_init__(self) -> None:
        if not self.eigenvalues or min(self.eigenvalues) <= 0 or self.length < 1:
            raise WorkbenchError(
                f"eigenvalues {self.eigenvalues} and length {self.length}: give positive variances "
                "and at least one example."
            )

    @property
    def d(self) -> int:
        return len(self.eigenvalues)

    @property
    def variances(self) -> np.ndarray:
        """[direction]."""
        return np.array(self.eigenvalues)

    def second(self) -> np.ndarray:
        """Variances of beta, E beta_i^2, [direction]; beta has no covariances."""
        lam = self.variances
        return lam**2 * (1.0 + 1.0 / self.length) + lam.sum() * lam / self.length

    def moments(self) -> Moments:
        """Those of the population (infinitely many sequences)."""
        lam = self.variances
        return Moments(
            float(lam.sum()), np.diag(lam**2), np.kron(np.diag(self.second()), np.diag(lam))
        )

    def draw(self, sequences: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Points x [sequence, key, direction], the last of them the query, and labels
        y [sequence, key]."""
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((sequences, self.length + 1, self.d)) * np.sqrt(self.variances)
        w = rng.standard_normal((sequences, self.d))
        return x, np.einsum("snd,sd->sn", x, w)

    def sample(self, sequences: int, seed: int) -> Moments:
        """Those of `sequences` fixed sequences: training on them is exact."""
        x, y = self.draw(sequences, seed)
        beta = np.einsum("sn,snd->sd", y[:, :-1], x[:, :-1]) / self.length
        features = np.einsum("si,sj->sij", beta, x[:, -1])
        flat = features.reshape(sequences, -1)
        return Moments(
            float((y[:, -1] ** 2).mean()),
            np.einsum("s,sij->ij", y[:, -1], features) / sequences,
            flat.T @ flat / sequences,
        )
