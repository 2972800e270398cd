"""The reduced model of the sink: three logits and a value, gradient flow integrated exactly.

For token types v whose next symbol is distributed p_v, a dormant head adds to the right prediction

    q_v(k) ~ p_v(k) exp( (e^{alpha_v} beta_k + zbar_k) / (e^{alpha_v} + W) )

alpha_v is the sink logit of type v, beta the value of `<s>` and zbar the summed values of the other
W keys, both in logit space (Guo et al. 2024, arXiv 2410.13835).  The loss is the mean over types of
KL(p_v || q_v), zero exactly where the exponent does not depend on k: beta = c - e^{-alpha} zbar.

- beta constant over symbols, flow on alpha: KL -> Var_v / 2 e^{-2 alpha}, hence
  alpha_v -> 1/2 ln(2 Var_v t / n) and KL_v -> n / (4 t), with n types and Var_v = Var_{p_v}(zbar):
  slope one half in ln t, and types differ by constants only (sink-logit concentration).
- alpha fixed, flow on beta: exponential approach to beta = c - e^{-alpha} zbar, where c is the mean
  of beta + e^{-alpha} zbar, conserved by the flow (value drain: the centred value is e^{-alpha}).
- both free: stops on that manifold at a finite alpha, the same for every type.

A trained transformer has no reason to show the slope: its logit keeps growing under Adam.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from workbench.errors import WorkbenchError

_TOLERANCE = 1e-10


@dataclass(frozen=True, eq=False)
class Reduced:
    """`p` [type, symbol] (rows sum to one), `alpha` [type], `beta` and `zbar` [symbol], `W` > 0."""

    p: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    zbar: np.ndarray
    others: float

    def _centred(self) -> tuple[np.ndarray, np.ndarray]:
        """Exponents [type, symbol] minus their mean under p, and e^alpha / (e^alpha + W)."""
        # Written with e^-alpha, which cannot overflow while the sink logit grows.
        small = np.exp(-self.alpha)[:, None]
        share = 1.0 / (1.0 + self.others * small)
        exponent = share * (self.beta + small * self.zbar)
        return exponent - (self.p * exponent).sum(axis=1, keepdims=True), share

    def predictions(self) -> np.ndarray:
        """q [type, symbol]."""
        centred, _ = self._centred()
        weights = self.p * np.exp(centred - centred.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def divergences(self) -> np.ndarray:
        """KL(p_v || q_v) of every type, in nats.

        It is ln sum_k p e^(x - mean x), here by log1p and expm1, so that tiny values are right.
        """
        centred, _ = self._centred()
        return np.log1p((self.p * (np.expm1(centred) - centred)).sum(axis=1))

    def gradients(self) -> tuple[np.ndarray, np.ndarray]:
        """Gradients of the mean KL by alpha [type] and beta [symbol]."""
        centred, share = self._centred()
        # q - p, again without the difference of nearly equal numbers.
        difference = self.p * np.expm1(centred - self.divergences()[:, None])
        # share beta + (1 - share) zbar / W, differentiated by alpha.
        slope = share * (1.0 - share) * (self.beta - self.zbar / self.others)
        n = len(self.p)
        return (difference * slope).sum(axis=1) / n, (share * difference).sum(axis=0) / n


def flow(
    start: Reduced, times: np.ndarray, *, alpha: bool = True, beta: bool = True
) -> list[Reduced]:
    """Gradient flow from time 0 through `times`, of `alpha`, of `beta` or of both.

    Integrated with error control by an implicit method: rates differ by many orders of magnitude.
    """
    from scipy.integrate import solve_ivp

    if not (alpha or beta):
        raise WorkbenchError("the flow needs something to move: alpha, beta or both.")
    n = len(start.alpha)
    free = np.r_[np.full(n, float(alpha)), np.full(len(start.beta), float(beta))]

    def at(state: np.ndarray) -> Reduced:
        return replace(start, alpha=state[:n], beta=state[n:])

    def velocity(_: float, state: np.ndarray) -> np.ndarray:
        return -free * np.concatenate(at(state).gradients())

    solved = solve_ivp(
        velocity, (0.0, float(times[-1])), np.r_[start.alpha, start.beta], t_eval=times,
        method="LSODA", rtol=_TOLERANCE, atol=1e-14,
    )  # fmt: skip
    if not solved.success:
        raise WorkbenchError(f"the gradient flow could not be integrated: {solved.message}")
    return [at(state) for state in solved.y.T]


def drained(model: Reduced) -> np.ndarray:
    """Where the flow on beta alone ends, [symbol]: c - e^-alpha zbar; all alpha must be equal."""
    if np.ptp(model.alpha) > 0:
        raise WorkbenchError("types with different sink logits share no drained value; fix one.")
    shift = np.exp(-model.alpha[0]) * model.zbar
    return (model.beta + shift).mean() - shift


def sink_logit_law(model: Reduced, time: float) -> np.ndarray:
    """What alpha tends to when beta is constant: 1/2 ln(2 Var_v t / n), [type]."""
    mean = (model.p * model.zbar).sum(axis=1, keepdims=True)
    variance = (model.p * (model.zbar - mean) ** 2).sum(axis=1)
    return 0.5 * np.log(2.0 * variance * time / len(model.p))
