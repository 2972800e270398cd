"""The scalar equations of one feature, where it ends, and its critical time, in closed form.

An encoder of L layers and one layer of predictor or decoder, all aligned with the features and of
equal size w, keep that balance under gradient flow: the encoder has w^L of the feature and

    JEPA    w' = lambda w^(2L) (1 - w / rho)             ends at w = rho
    MAE     w' = lambda w^L (1 - w^(L+1) / rho)          ends at w = rho^(1/(L+1))

because the target of JEPA carries the encoder's own small w^L (derived here; Littwin et al. 2024,
arXiv 2407.03475, say the same of the encoder's product).  From a small start epsilon of the product
the critical times are, in leading orders,

    JEPA    1/lambda [ w0^(1-2L) / (2L-1) + w0^(2-2L) / ((2L-2) rho) + ... ],   w0 = epsilon^(1/L)
    MAE     1/lambda [ w0^(1-L) / (L-1) + ... ]: rho comes in with the last, bounded term

so rho enters JEPA's time by a share of about epsilon^(1/L) / rho, more with every layer at the same
product epsilon, and vanishing for every depth as epsilon does.
"""

from __future__ import annotations

from workbench.errors import WorkbenchError
from workbench.zoo import growth

JEPA, MAE = "jepa", "mae"
METHODS = (JEPA, MAE)
LEARNED = 0.5  # share of its final strength at which the encoder has learned a feature


def end(method: str, rho: float, depth: int) -> float:
    """Weight of every layer at the end, 1."""
    _known(method)
    return rho if method == JEPA else rho ** (1.0 / (depth + 1))


def strength(method: str, rho: float, depth: int) -> float:
    """Strength of the feature in the encoder at the end, the product of its layers, 1."""
    return end(method, rho, depth) ** depth


def critical_time(method: str, lam: float, rho: float, depth: int, product: float) -> float:
    """Time until the encoder has half of the feature, from the start `product` of its layers.

    Time counts steps times rate.  Raises `WorkbenchError` for a start that is beyond that already.
    """
    last = end(method, rho, depth)
    power, order = (2 * depth, 1) if method == JEPA else (depth, depth + 1)
    root = 1.0 / depth
    return growth.time(product**root, last * LEARNED**root, lam, power, order, last)


def preference(method: str, rho: float, depth: int, product: float) -> float:
    """Critical time of a feature of coefficient `rho` over that of one of coefficient 1 and equal
    covariance: the covariance a less predictable feature must have to be learned as early."""
    return critical_time(method, 1.0, rho, depth, product) / critical_time(
        method, 1.0, 1.0, depth, product
    )


def _known(method: str) -> None:
    if method not in METHODS:
        raise WorkbenchError(f"there is no method {method!r}; known: {', '.join(METHODS)}.")
