"""The laws of the JEPA laboratory: statistic, mark, control, and the law in words."""

from __future__ import annotations

from collections.abc import Callable

from workbench.zoo.claims import OURS, Claim, Values
from workbench.zoo.jepa import closed, laws
from workbench.zoo.jepa.closed import JEPA, MAE
from workbench.zoo.jepa.laws import LITTWIN, Evidence
from workbench.zoo.jepa.recipe import DEPTHS, PRODUCT, RHO
from workbench.zoo.trajectory import Mark

Reader = Callable[[Evidence], tuple[Values, Values]]
DEEP, SHALLOW = DEPTHS[-1], DEPTHS[0]
LEAST = RHO[-1]
LAYERS = (0.05, 0.1, 0.15)  # starts of every layer, where the product is not held
TINY = 1e-6


def _need(setting: str, method: str, depth: int) -> str:
    return f"{setting} {method} {depth}"


def _both(setting: str, *depths: int) -> tuple[str, ...]:
    return tuple(_need(setting, method, depth) for method in (JEPA, MAE) for depth in depths)


def _orders(e: Evidence, setting: str, method: str, by: str, depth: int | None = None) -> Values:
    return [laws.order(run, by) for run in e.of(setting, method, depth)]


def _growths(e: Evidence, method: str) -> Values:
    """How much the preference of each seed grows from the shallowest to the deepest encoder."""
    shallow, deep = (e.of("equal", method, depth) for depth in (SHALLOW, DEEP))
    return [laws.spread(b) / laws.spread(a) for a, b in zip(shallow, deep, strict=True)]


def _errors(e: Evidence) -> tuple[Values, Values]:
    """Times of exact starts by their own closed form, and by that of the other method."""
    runs = [run for method in (JEPA, MAE) for run in e.of("exact", method)]
    return (
        [laws.time_error(run, laws.method_of(run)) for run in runs],
        [laws.time_error(run, laws.other(laws.method_of(run))) for run in runs],
    )


def _alone(e: Evidence, method: str) -> Values:
    """Share of free starts, depth by depth, that end with the most predictable feature alone."""
    found = []
    for depth in e.depths:
        runs = e.of("free", method, depth)
        hits = [laws.kept(run) == [int(run["rho"].to_numpy().argmax())] for run in runs]
        found.append(sum(hits) / len(hits))
    return found


def _growth_of(products: tuple[float, float]) -> float:
    """Preference of the deepest JEPA over that at depth 2, from these products of layers."""
    deep, two = products
    return closed.preference(JEPA, LEAST, DEEP, deep) / closed.preference(JEPA, LEAST, 2, two)


CLAIMS: tuple[Claim[Evidence], ...] = (
    Claim("JEPA learns what is predictable first", LITTWIN, "Kendall's tau, rho and early",
          Mark(">", 0.8), "MAE", "Covariance and regression coefficient in opposite orders: a deep "
          "JEPA follows the coefficient.",
          lambda e: (_orders(e, "opposed", JEPA, "rho", DEEP),
                     _orders(e, "opposed", MAE, "rho", DEEP)), _both("opposed", DEEP)),
    Claim("MAE learns what covaries first", LITTWIN, "Kendall's tau, lambda and early",
          Mark(">", 0.8), "JEPA of the deepest encoder", "MAE follows the covariance, at every "
          "depth.",
          lambda e: (_orders(e, "opposed", MAE, "lam"), _orders(e, "opposed", JEPA, "lam", DEEP)),
          _both("opposed", DEEP)),
    Claim("at equal covariance JEPA prefers", LITTWIN,
          f"time of rho {LEAST:g} over that of rho 1", Mark(">", 1.3), "MAE",
          "Of features that covary equally a deep JEPA learns the predictable ones earlier; MAE "
          "learns all of them at once.",
          lambda e: ([laws.spread(run) for run in e.of("equal", JEPA, DEEP)],
                     [laws.spread(run) for run in e.of("equal", MAE, DEEP)]), _both("equal", DEEP)),
    Claim("the preference grows with depth", LITTWIN, "that ratio, deepest over shallowest encoder",
          Mark(">", 1.3), "MAE", "From one layer to four, at the same product of the layers.",
          lambda e: (_growths(e, JEPA), _growths(e, MAE)), _both("equal", SHALLOW, DEEP)),
    Claim("one layer follows the covariance", LITTWIN, "Kendall's tau, rho and early",
          Mark("<", -0.8), "the deepest encoder", "With an encoder of one layer JEPA has no such "
          "preference to speak of: on the same data it learns in the order of MAE.",
          lambda e: (_orders(e, "opposed", JEPA, "rho", SHALLOW),
                     _orders(e, "opposed", JEPA, "rho", DEEP)),
          (_need("opposed", JEPA, SHALLOW), _need("opposed", JEPA, DEEP))),
    Claim("critical times are the closed form", LITTWIN, "|time / closed form - 1|, the worst",
          Mark("<", 0.05), "the closed form of the other method", "Every feature of every depth, "
          "both methods, from an aligned start.", _errors, _both("exact", SHALLOW)),
    Claim("both end with the same features", LITTWIN, "|log e - (L + 1) log e'|, the worst feature",
          Mark("<", 0.1), "at the start", "The encoders end with strengths rho^L and "
          "rho^(L/(L+1)): the same features, ranked by how predictable they are; "
          "covariance is forgotten.",
          lambda e: ([laws.mismatch(pair) for pair in laws.pairs(e, "opposed")],
                     [laws.mismatch(pair, 0) for pair in laws.pairs(e, "opposed")]),
          _both("opposed", SHALLOW)),
    Claim("where the orders agree, so do the methods", OURS, "Kendall's tau, lambda and early",
          Mark(">", 0.8), "JEPA where they are opposed", "The same features with the covariances "
          "in the order of the coefficients.",
          lambda e: ([*_orders(e, "agreed", JEPA, "lam"), *_orders(e, "agreed", MAE, "lam", DEEP)],
                     _orders(e, "opposed", JEPA, "lam", DEEP)),
          (*_both("agreed", DEEP), _need("opposed", JEPA, DEEP))),
    Claim("free starts: the predictable one stays alone", OURS,
          "share of starts that end so, the worst depth", Mark(">", 0.6), "MAE",
          "From layers that are not aligned JEPA ends with the most predictable feature and loses "
          "the others, at every depth; MAE keeps several.",
          lambda e: (_alone(e, JEPA), _alone(e, MAE)),
          tuple(need for depth in DEPTHS for need in _both("free", depth))),
    Claim("it is the start of the layers", OURS, f"preference at depth {DEEP} over depth 2",
          Mark("<", 1.2), "the same product of layers", "Closed form. Started with the same "
          f"weight, {LAYERS[0]:g} to {LAYERS[-1]:g}, in every layer, the preference hardly grows "
          "from two layers to four: what depth changes is how large each layer is for the same "
          "small product. From one layer to two, and from larger weights, it grows.",
          lambda _: ([_growth_of((w**DEEP, w**2)) for w in LAYERS],
                     [_growth_of((PRODUCT, PRODUCT))])),
    Claim("tiny starts forget it", OURS, f"preference at depth {DEEP}", Mark("<", 1.1),
          f"a product of {PRODUCT:g}", "Closed form. From a product of 1e-6 even a deep JEPA "
          "follows the covariance, unless covariances are equal to a few percent.",
          lambda _: ([closed.preference(JEPA, LEAST, DEEP, TINY)],
                     [closed.preference(JEPA, LEAST, DEEP, PRODUCT)])),
)  # fmt: skip
