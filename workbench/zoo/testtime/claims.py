"""The laws of the laboratory: statistic, mark, control, and the law in words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workbench.zoo.claims import OURS, Claim, Values
from workbench.zoo.testtime import laws
from workbench.zoo.testtime.injectivity import PAIRS
from workbench.zoo.testtime.laws import HAN, ZUO, Evidence
from workbench.zoo.trajectory import Mark

Statistic = Callable[[Evidence], np.ndarray]
TWICE, TWIN, BELOW = PAIRS
EXACT = 1e-9


def _read(values: Statistic, nulls: Statistic) -> Callable[[Evidence], tuple[Values, Values]]:
    return lambda e: (values(e).tolist(), nulls(e).tolist())


def _error(task: str, estimator: str, length: int) -> Statistic:
    return lambda e: e.error(task, estimator, length)


def _apart(pattern: str, pair: str, column: str = "distance") -> Statistic:
    return lambda e: e.apart(pattern, pair, column)


def _limit(column: str) -> Statistic:
    return lambda e: e.limits[column].to_numpy()


def _both(task: str, length: int) -> Statistic:
    return lambda e: laws.over_both(e, task, length)


def _global(task: str) -> Statistic:
    return lambda e: laws.over_best_global(e, task, 256)


def _slope(estimator: str) -> Statistic:
    return lambda e: laws.slope(e, "quadratic", estimator, (64, 256, 1024))


def _rise(pattern: str, column: str = "error_hidden") -> Statistic:
    def read(e: Evidence) -> np.ndarray:
        rows = e.nearby(pattern)
        return (rows[column] / rows["error"]).to_numpy()

    return read


def _mass(pattern: str, column: str = "local_mass") -> Statistic:
    return lambda e: e.nearby(pattern)[column].to_numpy()


def _joined(*statistics: Statistic) -> Statistic:
    """Several controls, the nearest of which counts."""
    return lambda e: np.concatenate([of(e) for of in statistics])


CLAIMS: tuple[Claim[Evidence], ...] = (
    Claim("affine maps are exact", ZUO, "error, 64 keys", Mark("<", EXACT), "softmax",
          "Local linear attention reproduces an affine map as soon as it has more keys than "
          "coordinates; a local constant does not.",
          _read(_error("affine", "local linear", 64), _error("affine", "softmax", 64))),
    Claim("the mesa layer has no intercept", OURS, "error of mesa on affine maps, 256 keys",
          Mark(">", 0.2), "linear maps", "A global linear fit through zero misses the constant, "
          "however many keys there are.",
          _read(_error("affine", "mesa", 256), _error("linear", "mesa", 256))),
    Claim("a local constant is slow on lines", ZUO, "error of softmax on linear maps, 256 keys",
          Mark(">", 0.01), "mesa", "On linear maps the global fit is exact and softmax is not.",
          _read(_error("linear", "softmax", 256), _error("linear", "mesa", 256))),
    Claim("curved maps: better than both", ZUO, "error over the better of softmax and mesa, 256 "
          "keys, quadratic", Mark("<", 0.6), "16 keys", "Between the two: local like softmax, "
          "linear like mesa. It takes more keys than a local line has coefficients.",
          _read(_both("quadratic", 256), _both("quadratic", 16))),
    Claim("broken lines: better than both", ZUO, "the same, 64 keys, piecewise linear",
          Mark("<", 0.95), "linear maps", "The gain is smaller: at a jump no line "
          "fits. On linear maps the mesa layer cannot be beaten.",
          _read(_both("piecewise", 64), _both("linear", 64))),
    Claim("its error falls faster", OURS, "slope of log error in log keys, 64 to 1024, quadratic",
          Mark("<", -0.75), "softmax", "Without noise the squared bias of a local line is of "
          "fourth order in the distance to the keys, that of a local constant of second: -4/d and "
          "-2/d at d = 4.", _read(_slope("local linear"), _slope("softmax")), whole=True),
    Claim("it follows a map that changes", ZUO, "error over the better of linear and mesa, 256 "
          "keys, drift", Mark("<", 0.3), "keys do not show their segment", "A local fit keeps to "
          "the keys of the last segment. It can only because those keys lie apart.",
          _read(_global("drift"), _global("unshifted"))),
    Claim("so it does along the sequence", ZUO, "error over that of mesa, late in the last "
          "segment, causal", Mark("<", 0.5), "keys do not show their segment",
          "Read along the sequence, with a causal mask.",
          _read(lambda e: laws.settled_over_mesa(e, "drift"),
                lambda e: laws.settled_over_mesa(e, "unshifted"))),
    Claim("wide: least squares", OURS, "distance to OLS with intercept, bandwidth 10^4",
          Mark("<", 1e-5), "bandwidth 1", "The limit of a large bandwidth.",
          _read(_limit("to_ols"), _limit("to_ols_near"))),
    Claim("stiff: softmax", OURS, "distance to softmax, penalty 10^9", Mark("<", 1e-5),
          "penalty 10^-6", "The limit of a large penalty.",
          _read(_limit("to_softmax"), _limit("to_softmax_loose"))),
    Claim("some of its weights are negative", OURS, "smallest weight", Mark("<", -1e-3), "softmax",
          "They sum to one, but an average they are not.",
          _read(_limit("least"), _limit("least_softmax"))),
    Claim("softmax tells q from 2q", HAN, "L1 distance of the weights", Mark(">", 0.2),
          "linear attention, ReLU", "Divided by its sum, linear attention sees the direction of "
          "phi(q) only.", _read(_apart("softmax", TWICE), _apart("linear, ReLU", TWICE))),
    Claim("injective features do not help", HAN, "L1 distance, linear attention, ELU + 1",
          Mark("<", EXACT), "softmax", "For every query there is another whose features are twice "
          "as large: its twin gets the same weights.",
          _read(_apart("linear, ELU + 1", TWIN), _apart("softmax", TWIN))),
    Claim("InLine tells them apart", HAN, "L1 distance, InLine", Mark(">", 0.2),
          "linear attention", "Subtracting the mean in place of dividing by the sum keeps the "
          "length of phi(q).", _read(
              _joined(_apart("InLine, ReLU", TWICE), _apart("InLine, ELU + 1", TWIN)),
              _joined(_apart("linear, ReLU", TWICE), _apart("linear, ELU + 1", TWIN)))),
    Claim("if phi does", OURS, "L1 distance, InLine, ReLU, a coordinate below zero",
          Mark("<", EXACT), "ELU + 1", "What the features do not see, InLine cannot see either.",
          _read(_apart("InLine, ReLU", BELOW), _apart("InLine, ELU + 1", BELOW))),
    Claim("InLine weights are no average", OURS, "smallest weight of InLine, ELU + 1",
          Mark("<", -1.0), "softmax", "They sum to one and may be far below zero.",
          _read(_apart("InLine, ELU + 1", TWICE, "least"), _apart("softmax", TWICE, "least"))),
    Claim("softmax looks near", OURS, "mass on the 3 x 3 around a token", Mark(">", 0.25),
          "linear attention, and tokens shuffled", "On smooth fields, untrained: neighbours have "
          "similar keys, and softmax is sharp enough to find them.",
          _read(_mass("softmax"), _joined(_mass("linear, ELU + 1"), _mass("softmax", "shuffled")))),
    Claim("and needs what is near", OURS, "error without neighbours over error with them",
          Mark(">", 1.6), "linear attention, and nine other tokens hidden", "Hiding the "
          "neighbourhood costs softmax more than it costs linear attention.", _read(
              _rise("softmax"),
              _joined(_rise("linear, ELU + 1"), _rise("softmax", "error_random")))),
)  # fmt: skip
