"""When the phases of a run begin, read from its logged scalars (He et al. 2025, arXiv 2503.12734).

A run passes through some of these, in this order.  With |omega| the mean over heads (`laws.size`):

    one-head plateau    first step at which the risk has halved and the heads still have one sign,
                        zero_sum > .9
    symmetry breaking   from here on zero_sum < .9, after such a plateau
    zero sum            from here on zero_sum < .05, the risk halved
    slow slide          from here on the risk is within 5 % of its last value, and |omega| falls by
                        another 5 %

Stuck runs keep zero_sum at 1; those that leave the plateau cross from .9 to .05 in between.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.zoo.regression import laws

NEEDS = ("risk", "zero_sum", "omega", "mu")  # of a run, for this to be asked
ONE_SIDED, CANCELLED = 0.9, 0.05
NEAR = 0.05
WORDS = {
    "one-head plateau": "all heads have one sign: the risk of one head",
    "symmetry breaking": "a head has turned: mu of both signs",
    "zero sum": "output weights cancel: sum mu = 0",
    "slow slide": "|omega| shrinks, the risk stays within 5 % of its last",
}


def begin(run: xr.Dataset) -> dict[str, int]:
    """The step at which each phase begins, by its word; phases that do not come are left out."""
    risk, zero_sum = run["risk"].to_numpy(), run["zero_sum"].to_numpy()
    size, halved = laws.size(run).to_numpy(), risk < risk[0] / 2
    found: dict[str, int] = {}
    plateau = halved & (zero_sum > ONE_SIDED)
    if plateau.any():
        found["one-head plateau"] = int(plateau.argmax())
        found["symmetry breaking"] = _for_good(zero_sum < ONE_SIDED)
    cancelled = _for_good(halved & (zero_sum < CANCELLED))
    found["zero sum"] = cancelled
    settled = _for_good(risk < (1 + NEAR) * risk[-1])
    if cancelled < len(risk) and size[-1] < (1 - NEAR) * size[max(settled, cancelled)]:
        found["slow slide"] = max(settled, cancelled)
    steps = run["step"].to_numpy()
    return {word: int(steps[at]) for word, at in found.items() if at < len(steps)}


def _for_good(holds: np.ndarray) -> int:
    """The first index from which on something always holds; the length where it never does."""
    broken = np.flatnonzero(~holds)
    return int(broken[-1]) + 1 if len(broken) else 0
