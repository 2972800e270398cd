"""The laws of the laboratory: statistic, mark, control, and the law in words."""

from __future__ import annotations

from collections.abc import Callable

from workbench.zoo.claims import OURS, Claim, Values, first, last
from workbench.zoo.descent import laws
from workbench.zoo.descent.laws import AT_SIZE, GARG, OSWALD, Evidence, Run
from workbench.zoo.descent.recipe import CAUSAL, LINEAR, ONE, TWO
from workbench.zoo.trajectory import Mark

Reader = Callable[[Evidence], tuple[Values, Values]]
Statistic = Callable[[Run], float]
REPORTED = (OURS, AT_SIZE)
EXACT = 1e-12
_UNDER = (5, 8, 10, 12, 15, 18, 19, 20, 25, 40)


def _table(table: str, value: str, null: str) -> Reader:
    """Two columns of a table."""
    return lambda e: (getattr(e, table)[value].tolist(), getattr(e, table)[null].tolist())


def _untrained(name: str) -> Reader:
    """A logged scalar of solved linear layers, at the end and before training."""
    return lambda e: (
        [last(run, name) for run in e.solved(LINEAR)],
        [first(run, name) for run in e.solved(LINEAR)],
    )


def _against(of: Statistic, settings: tuple[str, ...], control: str) -> Reader:
    """One statistic of solved runs of `settings` and of all runs of the control."""
    return lambda e: ([of(r) for r in e.solved(*settings)], [of(r) for r in e.of(control)])


def _end(name: str) -> Statistic:
    return lambda run: last(run, name)


def _over(run: Run) -> float:
    """Loss by that of one best step, on the same prompts."""
    return float(run["loss_over"].isel(step=-1).sel(predictor="GD, best step"))


def _off_best(run: Run) -> float:
    """How far the step is from the best one, from 1."""
    return abs(last(run, "size") - 1.0)


def _elsewhere(run: Run) -> float:
    """How far the loss at twice the range is from that of the same step, from 1."""
    known = run["by_range_baseline"].sel(predictor="GD, step of training", half=1.0)
    return abs(float(run["by_range"].isel(step=-1).sel(half=1.0) / known) - 1.0)


def _untrained_loss(e: Evidence) -> tuple[Values, Values]:
    before = [run.isel(step=[0]) for run in e.solved(LINEAR)]
    return [_over(run) for run in e.solved(LINEAR)], [_over(run) for run in before]


def _one_head(e: Evidence) -> tuple[Values, Values]:
    return [_over(run) for run in e.of(ONE)], [_over(run) for run in e.solved(TWO)]


def _deep(e: Evidence) -> tuple[Values, Values]:
    five = e.depths.set_index("layers").loc[5]
    one = e.depths.set_index("layers").loc[1, "loss"]
    return [five["loss"] / one], [five["at_once"] / one]


def _causal(of: Statistic) -> Reader:
    return lambda e: (
        [of(run) for run in e.of(CAUSAL)], [of(run.isel(step=[0])) for run in e.of(CAUSAL)]
    )  # fmt: skip


CLAIMS: tuple[Claim[Evidence], ...] = (
    Claim("one layer is one step", OSWALD, "distance of predictions, float64", Mark("<", EXACT),
          "twice the step", "With the constructed weights linear self-attention predicts what one "
          "step of gradient descent from zero does.", _table("exact", "one", "wrong_step")),
    Claim("five layers are five steps", OSWALD, "distance of predictions, float64",
          Mark("<", EXACT), "four steps", "Labels of the examples change too: the next layer goes "
          "on where this one stopped.", _table("exact", "five", "fewer")),
    Claim("the best step has a closed form", OURS, "|sampled step / closed form - 1|",
          Mark("<", 0.03), "that of Gaussian coordinates", "1 / (s (L - 1) + k / s + (d - 1) s), "
          "with the fourth moment k of the coordinates; it decides which step is best.",
          _table("steps", "off", "off_gaussian")),
    Claim("more layers, lower loss", OSWALD, "loss of five layers over that of one",
          Mark("<", 0.75), "one layer, five times the step", "With the step that is best for five; "
          "a single step as long as five overshoots.", _deep),
    Claim("training finds its loss", OSWALD, "loss over that of one best step", Mark("<", 1.02),
          "untrained", "A trained layer of linear attention is as good as the construction.",
          _untrained_loss, (LINEAR,)),
    Claim("and its predictions", OSWALD, "||y - y_GD||^2 / ||y_GD||^2", Mark("<", 0.02),
          "one head of softmax", "Prompt by prompt.", _against(_end("to_gd"), (LINEAR,), ONE),
          (LINEAR, ONE)),
    Claim("and its step", OURS, "|step / best step - 1|", Mark("<", 0.03), "one head of softmax",
          "The trained layer has the best step.", _against(_off_best, (LINEAR,), ONE),
          (LINEAR, ONE)),
    Claim("sensitivities point the same way", OSWALD, "cosine of dy/dx_q", Mark(">", 0.99),
          "one head of softmax", "It has the model that gradient descent finds, not the prediction "
          "alone.", _against(_end("cosine"), (LINEAR,), ONE), (LINEAR, ONE)),
    Claim("and are as long", OSWALD, "||difference||^2 / ||dy_GD/dx_q||^2", Mark("<", 0.02),
          "one head of softmax", "The L2 distance of the sensitivities.",
          _against(_end("to_sensitivity"), (LINEAR,), ONE), (LINEAR, ONE)),
    Claim("the weights are those of the construction", OSWALD, "energy of KQ off the identity",
          Mark("<", 0.01), "untrained", "Up to a factor that OV takes back.",
          _untrained("off_kq"), (LINEAR,)),
    Claim("which reads labels", OSWALD, "energy of OV off the label", Mark("<", 0.01), "untrained",
          "OV writes the labels of the examples and nothing else.", _untrained("ov_x"), (LINEAR,)),
    Claim("it is gradient descent elsewhere", OSWALD, "|loss over that of the same step - 1|, "
          "coordinates twice as large", Mark("<", 0.05), "two heads of softmax", "Where "
          "coordinates are larger, it fails as that step does.",
          _against(_elsewhere, (LINEAR,), TWO), (LINEAR, TWO)),
    Claim("one head of softmax cannot", OSWALD, "loss over that of one best step",
          Mark(">", 1.2), "two heads of softmax", "In the notebook of that paper as here, softmax "
          "needs two heads; their scores have opposite signs (see icl-regression).", _one_head,
          (ONE, TWO), whole=True),
    Claim("least squares: 1 - n/d", OURS, "largest distance to the line", Mark("<", 0.06),
          "averaging", "Without noise n examples fix n directions of d.", lambda e: (
              [laws.off_line(e.plain, "least squares", _UNDER)],
              [laws.off_line(e.plain, "averaging", _UNDER)])),
    Claim("averaging: (d + 1) / n", OURS, "largest relative distance", Mark("<", 0.15),
          "one step of GD, the best one", "A step of one: worse than nothing until n > d.",
          lambda e: ([laws.off_averaging(e.plain, "averaging", _UNDER)],
                     [laws.off_averaging(e.plain, "one step of GD", _UNDER)])),
    Claim("least squares peaks at n = d", OURS, "error at n = d over that at d / 2, with noise",
          Mark(">", 5.0), "ridge", "With noise the exact fit is worst where it is barely "
          "determined; Bayes keeps falling.", lambda e: (
              [laws.peak(e.noisy, "least squares")], [laws.peak(e.noisy, "ridge")])),
    Claim("the Lasso finds sparse functions", GARG, "error over that of least squares, n < d",
          Mark("<", 0.85), "dense functions", "Three coordinates of twenty matter.",
          lambda e: (laws.lasso_gain(e.sparse), laws.lasso_gain(e.dense))),
    Claim("a transformer learns in context", GARG, "error after 8 examples over that of one best "
          "step", Mark("<", 0.75), "untrained", "Two causal layers, trained for 1800 steps, are "
          "better than any single step of gradient descent.",
          _causal(lambda run: laws.beside(run, "one step of GD")), (CAUSAL,)),
    Claim("better than its neighbours", GARG, "error after 8 examples over that of 3-NN",
          Mark("<", 0.5), "untrained", "It does not copy the labels of near examples.",
          _causal(lambda run: laws.beside(run, "3-NN")), (CAUSAL,)),
    Claim("as good as least squares", AT_SIZE, "largest error above that of least squares",
          Mark("<", 0.1), "untrained", "What the large transformer of the paper reaches; "
          "this one has not.", _causal(laws.above_least_squares), (CAUSAL,)),
)  # fmt: skip
