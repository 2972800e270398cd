"""The reduced loss of heads that have the emergent pattern, and its gradient flow.

Head h attends with logits omega_h x_l' x_q and writes mu_h y_l.  For long prompts its loss tends to

    1 + s2 - 2 mu'omega + mu' [omega omega' + c exp(d omega omega')] mu,    c = (1 + s2) / L

(He et al. 2025, arXiv 2503.12734; exp entry by entry).  In powers of omega the last term is
c [(sum mu)^2 + d (sum mu omega)^2 + d^2/2 (sum mu omega^2)^2 + ...], so the flow zeroes sum mu,
brings eta = sum mu omega to the step of debiased gradient descent, makes |omega| equal, and then
slides along eta = const.  For two heads on that slide, mu = +-eta / (2 omega) and

    excess = c eta^2 d^3 omega^4 / 6,    speed of omega -4/3 c d^3 omega^7
    hence omega = (8 c d^3 t)^(-1/6),  excess ~ t^(-2/3)

Heads that start with one sign meet at omega = 1/sqrt d instead: the one-head solution, where the
split of mu is free and nothing leads away (`hessian`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import WorkbenchError

_TOLERANCE = 1e-8
START = 0.01  # deviation of the starts of `starts`
TRAPPED = 0.3  # loss above which a flow has not left the one-head solution


@dataclass(frozen=True, eq=False)
class Reduced:
    """`omega` and `mu` [..., head]; leading axes are independent copies.

    `d`, `length` and `noise` are those of the task.
    """

    omega: np.ndarray
    mu: np.ndarray
    d: int = 5
    length: int = 40
    noise: float = 0.1

    @property
    def c(self) -> float:
        return (1.0 + self.noise) / self.length

    @property
    def eta(self) -> np.ndarray:
        """The step of gradient descent, sum mu omega."""
        return (self.mu * self.omega).sum(axis=-1)

    @property
    def zero_sum(self) -> np.ndarray:
        """|sum mu| / sum |mu|: 0 for heads that cancel, 1 for heads of one sign."""
        return np.abs(self.mu.sum(axis=-1)) / np.abs(self.mu).sum(axis=-1)

    @property
    def floor(self) -> float:
        """The lowest value of the loss, reached as omega goes to 0."""
        return 1.0 + self.noise - 1.0 / (1.0 + self.c * self.d)

    def _overlap(self) -> np.ndarray:
        """c exp(d omega omega'), [..., head, head]."""
        return self.c * np.exp(self.d * self.omega[..., :, None] * self.omega[..., None, :])

    def loss(self) -> np.ndarray:
        """The reduced loss, [...]."""
        noise = np.einsum("...g,...gh,...h->...", self.mu, self._overlap(), self.mu)
        return 1.0 + self.noise - 2.0 * self.eta + self.eta**2 + noise

    def gradients(self) -> tuple[np.ndarray, np.ndarray]:
        """Gradients by omega and by mu, [..., head] each."""
        overlap, left = self._overlap(), 1.0 - self.eta[..., None]
        pull = overlap * self.mu[..., :, None] * self.mu[..., None, :]
        by_omega = -2.0 * left * self.mu + 2.0 * self.d * np.einsum(
            "...gh,...h->...g", pull, self.omega
        )
        by_mu = -2.0 * left * self.omega + 2.0 * np.einsum("...gh,...h->...g", overlap, self.mu)
        return by_omega, by_mu

    def at(self, omega: np.ndarray, mu: np.ndarray) -> Reduced:
        """The same task with other heads."""
        return Reduced(omega, mu, self.d, self.length, self.noise)

    def hessian(self, step: float = 1e-5) -> np.ndarray:
        """Second derivatives by (omega, mu) of one copy, from differences of the gradient."""
        x, n = np.r_[self.omega, self.mu], len(self.omega)

        def gradient(x: np.ndarray) -> np.ndarray:
            return np.concatenate(self.at(x[:n], x[n:]).gradients())

        rows = [(gradient(x + e) - gradient(x - e)) / (2.0 * step) for e in step * np.eye(2 * n)]
        return (np.array(rows) + np.array(rows).T) / 2.0


def starts(count: int, heads: int, seed: int) -> Reduced:
    """`count` small random starts, omega and mu normal with deviation `START`."""
    omega, mu = np.random.default_rng(seed).normal(0.0, START, (2, count, heads))
    return Reduced(omega, mu)


def flow(start: Reduced, times: np.ndarray) -> list[Reduced]:
    """Gradient flow from time 0 through `times`; one start or many at once.

    One start is integrated by an implicit method, which long times want; many by an explicit one,
    whose cost does not grow with the square of their number.
    """
    from scipy.integrate import solve_ivp

    size = start.omega.size

    def at(state: np.ndarray) -> Reduced:
        halves = state[:size].reshape(start.omega.shape), state[size:].reshape(start.omega.shape)
        return start.at(*halves)

    def velocity(_: float, state: np.ndarray) -> np.ndarray:
        return -np.concatenate([gradient.ravel() for gradient in at(state).gradients()])

    solved = solve_ivp(
        velocity, (0.0, float(times[-1])), np.r_[start.omega.ravel(), start.mu.ravel()],
        t_eval=times, method="LSODA" if start.omega.ndim == 1 else "RK45", rtol=_TOLERANCE,
        atol=1e-10,
    )  # fmt: skip
    if not solved.success:
        raise WorkbenchError(f"the gradient flow could not be integrated: {solved.message}")
    return [at(state) for state in solved.y.T]


def slide(model: Reduced, times: np.ndarray) -> np.ndarray:
    """|omega| of two heads late in the flow: (8 c d^3 t)^(-1/6)."""
    return (8.0 * model.c * model.d**3 * times) ** (-1.0 / 6.0)


@dataclass(frozen=True)
class Trap:
    """How many of many random starts end at the one-head solution, as shares.

    `one_sign` and `mixed` are the shares among the starts whose heads grow with one sign, that of
    omega + mu, and with both.
    """

    heads: int
    starts: int
    all: float
    one_sign: float
    mixed: float


def trap(heads: int, count: int, seed: int = 0, time: float = 100.0) -> Trap:
    """The trap of the flow from `count` small random starts, read at `time`."""
    begun = starts(count, heads, seed)
    caught = flow(begun, np.array([time]))[0].loss() > TRAPPED
    alike = np.abs(np.sign(begun.omega + begun.mu).sum(axis=-1)) == heads
    shares = [float(caught[mask].mean()) for mask in (alike | True, alike, ~alike)]
    return Trap(heads, count, *shares)
