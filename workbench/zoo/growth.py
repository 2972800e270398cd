"""How long a weight takes to grow: the time course that deep linear networks share, in closed form.

In a network of stacked linear maps with balanced layers every feature has one weight w, and under
gradient flow

    w' = rate w^power (1 - (w / end)^order)

The staircase (`workbench.zoo.staircase`) and the JEPA laboratory (`workbench.zoo.jepa`) differ in
the three numbers.  With 1 / (1 - s) = 1 + s + ... + s^(J-1) + s^J / (1 - s) the time is a sum of
powers of w, perhaps a logarithm, and one hypergeometric function for the rest.
"""

from __future__ import annotations

import math

from scipy.special import hyp2f1

from workbench.errors import WorkbenchError


def time(start: float, stop: float, rate: float, power: int, order: int, end: float) -> float:
    """Time in which w grows from `start` to `stop`, in units of 1 / (rate of the flow).

    0 < start < stop < end; raises `WorkbenchError` for other weights.  Derived here.

    >>> round(time(0.01, 0.5, 1.0, 1, 1, 1.0), 4) == round(math.log(99), 4)  # logistic growth
    True
    """
    if not 0 < start < stop < end:
        raise WorkbenchError(
            f"a weight cannot grow from {start:g} to {stop:g} on its way to {end:g}; give three "
            "positive numbers that ascend."
        )
    args = (rate, power, order, end)
    return _antiderivative(stop, *args) - _antiderivative(start, *args)


def _antiderivative(w: float, rate: float, power: int, order: int, end: float) -> float:
    """Integral of 1 / (rate w^power (1 - (w / end)^order)), up to a constant."""
    total, raised = 0.0, 1 - power
    scale = 1.0
    while raised <= 0:
        total += scale * (math.log(w) if raised == 0 else w**raised / raised)
        raised += order
        scale /= end**order
    rest = hyp2f1(1.0, raised / order, 1.0 + raised / order, (w / end) ** order)
    return (total + scale * w**raised / raised * float(rest)) / rate
