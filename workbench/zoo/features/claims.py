"""The laws of the laboratory: statistic, mark, control, and the law in words."""

from __future__ import annotations

from collections.abc import Callable

from workbench.zoo.claims import OURS, Claim, Values
from workbench.zoo.features import laws
from workbench.zoo.features.laws import FU, Evidence
from workbench.zoo.features.measure import ATTENTION, BIASED, LIMIT, MLP, MLP_LIMIT, SHIFTED
from workbench.zoo.features.recipe import SMALL, WIDE
from workbench.zoo.features.task import CORRELATED, FOURTH, ONE_KEY, SQUARE, TWICE, Target
from workbench.zoo.trajectory import Mark

Reader = Callable[[Evidence], tuple[Values, Values]]
Statistic = Callable[[Evidence, int], float]
# Numbers of inputs at which a bias is read: few, and not so few.
FEW, SOME = 128, 256
_MEANS = (SQUARE, FOURTH, CORRELATED)
_FEATURES, _LIMITS = (ATTENTION, MLP), (LIMIT, MLP_LIMIT)


def _each(value: Statistic, null: Statistic) -> Reader:
    """A value and a null per seed."""
    return lambda e: ([value(e, s) for s in laws.seeds(e)], [null(e, s) for s in laws.seeds(e)])


def _ratio(models: tuple[str, str], *targets: Target, n: int = 0, setting: str = WIDE) -> Statistic:
    """Error of one model over another's, the worst of some functions."""
    return lambda e, seed: max(laws.ratio(e, seed, models, t, n, setting) for t in targets)


# With 8 keys no model learns a function of one of them, so it tells nothing; with 4 the MLP does.
_ONE_OF_FOUR = _ratio(_FEATURES, ONE_KEY, setting=SMALL)

CLAIMS: tuple[Claim[Evidence], ...] = (
    Claim("attention learns means over keys sooner", FU, "error over that of the MLP, worst of 3",
          Mark("<", 0.5), "a function of one of 4 keys", "With as many features, from the same "
          "inputs: means of <β,x>², of <β,x>⁴ and of <x₀,x><β,x>.",
          _each(_ratio(_FEATURES, *_MEANS), _ONE_OF_FOUR), whole=True),
    Claim("so it does with infinitely many", OURS, "error over that of the MLP, worst of 3",
          Mark("<", 0.5), "a function of one of 4 keys", "The kernels that both models tend to: "
          "it is not a matter of which features were drawn.",
          _each(_ratio(_LIMITS, *_MEANS), _ratio(_LIMITS, ONE_KEY, setting=SMALL)), whole=True),
    Claim("the order of the keys does not matter", FU, "change of predictions, by their deviation",
          Mark("<", 1e-9), "MLP", "Predictions stay when the keys of an input change places; the "
          "MLP's do not, although its functions do.",
          _each(lambda e, s: max(laws.moved(e, s, m) for m in (ATTENTION, BIASED)),
                lambda e, s: laws.moved(e, s, MLP))),
    Claim("a biased query-key matrix helps", FU, f"error over unbiased, n = {SOME}",
          Mark("<", 0.85), "a function without the query", "Where the function weighs keys by "
          "<x₀,x>, heads that compare query and key from the start need fewer inputs.",
          _each(_ratio((BIASED, ATTENTION), CORRELATED, n=SOME),
                _ratio((BIASED, ATTENTION), SQUARE, n=SOME))),
    Claim("because it compares", OURS, f"error over that of a constant bias, n = {FEW}",
          Mark("<", 0.85), "a function without the query", "A mean of the same size on the "
          "constant, which opens all ReLUs alike, does less there.",
          _each(_ratio((BIASED, SHIFTED), CORRELATED, n=FEW),
                _ratio((BIASED, SHIFTED), SQUARE, n=FEW))),
    Claim("only while inputs are few", OURS, "error over unbiased, most inputs", Mark(">", 1.2),
          f"n = {FEW}", "With more inputs the bias costs: unbiased heads learn the same function "
          "better.", _each(_ratio((BIASED, ATTENTION), CORRELATED),
                           _ratio((BIASED, ATTENTION), CORRELATED, n=FEW)), whole=True),
    Claim("then a constant bias is better", OURS, "error of constant bias over unbiased",
          Mark("<", 0.5), "a function of degree 4", "Heads whose ReLUs are mostly open are nearly "
          "polynomials of low degree, and so is the function.",
          _each(_ratio((SHIFTED, ATTENTION), CORRELATED),
                _ratio((SHIFTED, ATTENTION), FOURTH)), whole=True),
    Claim("a bias helps with <x₀,x>² too", OURS, "error over unbiased, most inputs",
          Mark("<", 0.85), "a function without the query", "For the mean of <x₀,x>²<β,x>.",
          _each(_ratio((BIASED, ATTENTION), TWICE),
                _ratio((BIASED, ATTENTION), SQUARE)), whole=True),
    Claim("attention learns <x₀,x>² sooner too", OURS, "error over that of the MLP",
          Mark("<", 0.5), "a function of one of 4 keys", "For the mean of <x₀,x>²<β,x>, with 8 "
          "coordinates and 8 keys.",
          _each(_ratio(_FEATURES, TWICE), _ONE_OF_FOUR), whole=True),
    Claim("it does where less is to be learned", OURS, "error over that of the MLP, infinite",
          Mark("<", 0.5), "8 coordinates and 8 keys", "The same function of 4 coordinates and 4 "
          "keys, infinitely many heads.",
          _each(_ratio(_LIMITS, TWICE, setting=SMALL), _ratio(_LIMITS, TWICE)), whole=True),
    Claim("there heads are too few", OURS, "error over that of infinitely many", Mark(">", 2.0),
          "MLP over infinite MLP", "200 heads are not enough for it, even with 4 coordinates; of "
          "MLPs, none of which learns it, one of as many features is as good as an infinite one.",
          _each(_ratio((ATTENTION, LIMIT), TWICE, setting=SMALL),
                _ratio((MLP, MLP_LIMIT), TWICE, setting=SMALL)), whole=True),
)  # fmt: skip
