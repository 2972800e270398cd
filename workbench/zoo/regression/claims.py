"""The laws of the laboratory: statistic, mark, control, and the law in words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workbench.zoo.claims import OURS, Claim, Values, first, last
from workbench.zoo.regression import closed
from workbench.zoo.regression.laws import (
    AHN,
    FAR,
    HE,
    TWO,
    Evidence,
    Run,
    agreement,
    baseline,
    excess,
    final,
    other_split,
    shrunk,
    slope,
    stuck_counts,
    way_down,
    width,
)
from workbench.zoo.trajectory import Mark

Reader = Callable[[Evidence], tuple[Values, Values]]
Statistic = Callable[[Run], float]
QUIET = 3.0  # label noise at which gradient descent is nearly as good as Bayes
# Length and dimension of the recipe's prompts, for the two laws that need no run.
D, LENGTH, NOISE = 5, 40, 0.1
_MANY = ("h4", "h8")


def _read(values: Statistic, settings: tuple[str, ...], nulls: Statistic, control: str) -> Reader:
    """One statistic of solved runs against one of the control's."""
    return lambda e: (
        [values(run) for run in e.solved(*settings)], [nulls(run) for run in e.of(control)]
    )  # fmt: skip


def _own(values: Statistic, settings: tuple[str, ...], nulls: Statistic) -> Reader:
    """One statistic of solved runs against another of the same runs."""
    return lambda e: (
        [values(run) for run in e.solved(*settings)], [nulls(run) for run in e.solved(*settings)]
    )  # fmt: skip


def _apart(values: Statistic, nulls: Statistic) -> Reader:
    """Two statistics of simple predictors alone, on the prompts of one run."""
    return lambda e: ([values(e.of("opposite")[0])], [nulls(e.of("opposite")[0])])


def _tasks(of: Statistic) -> Reader:
    """Two tasks, with three heads against two."""
    return lambda e: ([of(run) for run in e.of("tasks-h3")], [of(run) for run in e.of("tasks-h2")])


def _untrained(name: str, settings: tuple[str, ...]) -> Reader:
    return _own(lambda run: last(run, name), settings, lambda run: first(run, name))


def _one_head(of: Statistic, settings: tuple[str, ...] = TWO) -> Reader:
    return _read(of, settings, of, "h1")


def _scalar(name: str) -> Statistic:
    return lambda run: last(run, name)


def _step_error(run: Run) -> float:
    """eta by the best step of debiased gradient descent, from 1."""
    best = closed.best_step(np.eye(D), LENGTH, NOISE, debiased=True)
    return abs(last(run, "eta") / best - 1.0)


def _closer(run: Run) -> float:
    return last(run, "to_dgd") / last(run, "to_gd")


def _over(predictor: str) -> Statistic:
    return lambda run: final(run) / baseline(run, predictor)


def _debiasing(suffix: str) -> Statistic:
    return lambda run: baseline(run, f"debiased GD{suffix}") / baseline(run, f"GD{suffix}")


def _growth(predictor: str) -> Statistic:
    """Risk at prompts `FAR` times longer by that at the length of training."""
    return lambda run: baseline(run, predictor, FAR) / baseline(run, predictor)


def _gain(settings: tuple[str, ...]) -> Callable[[Evidence], Values]:
    """Lowest risk of one head over that of these runs."""

    def read(e: Evidence) -> Values:
        lowest = min((final(run) for run in e.of("h1")), default=np.nan)
        runs = e.solved(*settings) if settings == TWO else e.of(*settings)
        return [lowest / final(run) for run in runs]

    return read


def _superposed(run: Run) -> float:
    """The worse of off_e and zero_sum: what T + 1 heads can bring to zero together."""
    return max(last(run, "off_e"), last(run, "zero_sum"))


def _bayes(e: Evidence) -> tuple[Values, Values]:
    ratio = D / LENGTH
    quiet = closed.limit_gd_risk(ratio, QUIET) / closed.limit_bayes_risk(ratio, QUIET)
    return [_over("ridge")(run) for run in e.solved(*TWO)], [quiet]


def _slopes(of: Callable, law: float) -> Reader:
    return lambda e: ([abs(slope(e.opposite, of) - law)], [abs(slope(e.same, of) - law)])


def _rates(e: Evidence) -> tuple[Values, Values]:
    counts = stuck_counts(e)
    return agreement(counts, lambda h: 2.0 ** (1 - h)), [min(agreement(counts, lambda _: 0.5))]


CLAIMS: tuple[Claim[Evidence], ...] = (
    Claim("KQ becomes a multiple of the identity", HE, "energy of KQ[:, :d] off the identity",
          Mark("<", 0.01), "untrained", "The scores of both heads compare x with x and read "
          "nothing else.", _untrained("off_kq", TWO), TWO),
    Claim("OV reads the label", HE, "energy of OV off the label", Mark("<", 0.01), "untrained",
          "Both heads write the labels of what they attend to.", _untrained("ov_x", TWO), TWO),
    Claim("the heads cancel", HE, "|sum mu| / sum |mu|", Mark("<", 0.02), "one head",
          "A positive head and a negative one: their output weights sum to zero.",
          _one_head(_scalar("zero_sum")), (*TWO, "h1")),
    Claim("the heads are alike", HE, "coefficient of variation of |omega|", Mark("<", 0.01),
          "untrained", "The omega of the two heads are equal but for the sign.",
          _untrained("spread", TWO), TWO),
    Claim("the second moment cancels", HE, "|sum mu omega^2| / sum |mu| omega^2", Mark("<", 0.05),
          "one head", "What is even in the scores is taken off, not the mean label alone.",
          _one_head(_scalar("moment_2")), (*TWO, "h1")),
    Claim("E becomes the identity", HE, "1 - cos^2(E, I)", Mark("<", 1e-3), "untrained",
          "The matrix of the step of gradient descent is a multiple of the identity.",
          _untrained("off_e", TWO), TWO),
    Claim("so it does for more heads", OURS, "1 - cos^2(E, I)", Mark("<", 1e-3), "untrained",
          "With four and eight heads as well, although single heads stray from the pattern: E "
          "counts what labels scored and x read contribute together.", _untrained("off_e", _MANY),
          _MANY),
    Claim("the step is the best one", HE, "|eta / eta* - 1|", Mark("<", 0.04), "one head",
          "The step is that of the best debiased gradient descent, L / (L + d (1 + noise)).",
          _one_head(_step_error), (*TWO, "h1")),
    Claim("so it is for more heads", OURS, "|eta / eta* - 1|", Mark("<", 0.04), "one head",
          "With four and eight heads as well.", _one_head(_step_error, _MANY), (*_MANY, "h1")),
    Claim("the predictions are debiased GD", HE, "||y - eta DGD||^2 / ||y||^2", Mark("<", 0.003),
          "GD not debiased", "The network predicts what one step of debiased gradient descent "
          "does.", _own(_scalar("to_dgd"), TWO, _scalar("to_gd")), TWO, whole=True),
    Claim("closer to it than to plain GD", HE, "distance to debiased GD over that to GD",
          Mark("<", 0.7), "one head", "With any number of heads from two on.",
          _one_head(_closer, (*TWO, *_MANY)), ("h1",)),
    Claim("the risk is that of debiased GD", HE, "risk over that of best debiased GD",
          Mark("<", 1.01), "one head", "On the same prompts two heads score as debiased gradient "
          "descent with the best step.", _one_head(_over("debiased GD")), (*TWO, "h1"), whole=True),
    Claim("two heads beat one", HE, "risk of one head over that of two", Mark(">", 1.5),
          "two heads of the same sign", "The gain is in the second head; a second head of the same "
          "sign gains nothing.", lambda e: (_gain(TWO)(e), _gain(("same",))(e)),
          (*TWO, "h1", "same")),
    Claim("debiasing costs", OURS, "risk of best debiased GD over that of best GD",
          Mark(">", 1.002), "labels raised by one", "On prompts of mean zero debiasing "
          "does not help: it costs a degree of freedom. It pays where labels have a mean.",
          _apart(_debiasing(""), _debiasing(", raised")), ("opposite",)),
    Claim("not Bayes at low noise", OURS, "risk over that of ridge regression", Mark(">", 1.9),
          f"limit at noise {QUIET:g}", "At noise .1 the best predictor has half the risk; at high "
          "noise a step of gradient descent is nearly as good.", _bayes, TWO),
    Claim("omega shrinks, the step stays", HE, "|omega| at the end over its maximum",
          Mark("<", 0.7), "one head", "After an overshoot |omega| falls while the step is already "
          "the best one; one head keeps its |omega|.", _one_head(shrunk, ("h2",)), ("h2", "h1"),
          whole=True),
    Claim("omega falls as t^(-1/6)", OURS, "distance of the slope from -1/6, reduced flow",
          Mark("<", 0.01), "heads of the same sign", "In the gradient flow of the reduced loss, "
          "two heads of opposite signs.", _slopes(width, -1 / 6)),
    Claim("excess loss falls as t^(-2/3)", OURS, "distance of the slope from -2/3, reduced flow",
          Mark("<", 0.03), "heads of the same sign", "The loss above its floor, in the same flow.",
          _slopes(excess, -2 / 3)),
    Claim("heads of one sign are a minimum", OURS, "smallest Hessian eigenvalue, reduced loss",
          Mark(">", -1e-3), "one head of the other sign", "Where heads of the same sign end "
          "nothing leads away. As soon as one of them changes sign, something does.",
          lambda e: ([way_down(e.same[-1])], [way_down(other_split(e.same[-1]))])),
    Claim("both signs never stick", OURS, "share of stuck starts, reduced flow", Mark("<", 0.01),
          "starts of one sign", "The flow sticks only where all heads begin to grow with one sign.",
          lambda e: ([t.mixed for t in e.traps.values()], [t.one_sign for t in e.traps.values()])),
    Claim("the same sign is a trap", HE, "risk", Mark(">", 0.33), "opposite signs", "Networks "
          "whose two heads start with the same sign stay on the one-head plateau.",
          lambda e: ([final(r) for r in e.of("same")], [max(map(final, e.of("opposite")))]),
          ("same", "opposite")),
    Claim("how often: 2^(1-H)", OURS, "p-value of the counts, the worst of H = 2, 3, 4, 8",
          Mark(">", 0.01), "1/2 for every H", "As many random starts stick as draw heads of one "
          "sign. It is an upper bound: see the notes.", _rates, ("h2", "h3", "h4", "h8"),
          whole=True),
    Claim("longer prompts, lower risk", OURS, f"risk at {FAR} L over that at L", Mark("<", 0.8),
          "linear attention, unscaled", "The softmax divides by itself: trained at one length it "
          "goes on at others.", lambda e: (
              [final(run, FAR) / final(run) for run in e.solved(*TWO)],
              [_growth("linear, unscaled")(run) for run in e.of("opposite")]), TWO),
    Claim("and with linear attention / L", OURS, f"risk at {FAR} L over that at L", Mark("<", 0.8),
          "linear attention, unscaled", "Linear attention divided by the length of the prompt does "
          "so too: the softmax's gain is this division.",
          _apart(_growth("linear"), _growth("linear, unscaled")), ("opposite",)),
    Claim("coloured x: E preconditions", AHN, "cos(E, Gamma)", Mark(">", 0.999),
          "inverse covariance in place of Gamma", "On correlated coordinates E becomes the best "
          "matrix for one step, which is not the inverse covariance.",
          _own(_scalar("cos_e"), ("coloured",), _scalar("cos_inverse")), ("coloured",)),
    Claim("coloured x: better than any step", AHN, "risk over that of best GD without matrix",
          Mark("<", 0.8), "uncorrelated x", "There the network beats gradient descent with the "
          "best multiple of the identity.",
          _read(_over("plain GD"), ("coloured",), _over("plain GD"), "opposite"),
          ("coloured", "opposite")),
    Claim("T + 1 heads serve T tasks", HE, "risk over that of a debiased GD per task",
          Mark("<", 1.1), "T heads", "Three heads do two tasks at once, two heads do not.",
          _tasks(_over("debiased GD")), ("tasks-h3", "tasks-h2")),
    Claim("by superposition", OURS, "the larger of off_e and zero_sum", Mark("<", 0.02), "T heads",
          "Every task has a zero sum and its own matrix; two heads can have either, not both.",
          _tasks(_superposed), ("tasks-h3", "tasks-h2")),
)  # fmt: skip
