"""The laws of the laboratory: statistic, mark, control, and the law in words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from workbench.zoo.claims import OURS, Claim, Values
from workbench.zoo.memory import closed, laws, recipe
from workbench.zoo.memory.laws import QIAO, Evidence
from workbench.zoo.trajectory import Mark

Reader = Callable[[Evidence], tuple[Values, Values]]
Statistic = Callable[[Evidence, int], float]


def _each(value: Statistic, null: Statistic) -> Reader:
    """A value and a null per seed."""
    return lambda e: ([value(e, s) for s in laws.seeds(e)], [null(e, s) for s in laws.seeds(e)])


def _law(table: str, column: str, kind: str, control: str) -> Reader:
    """Distance from the closed form of one kind of rows and of the control's."""

    def read(name: str) -> Statistic:
        return lambda e, seed: laws.off(laws.rows(e, table, seed, **{column: name}))

    return _each(read(kind), read(control))


def _slope(criterion: str, control: str, power: float = 0.0) -> Reader:
    """Distance of a capacity's slope from a power; the slope itself without one."""

    def read(name: str) -> Statistic:
        return lambda e, seed: abs(laws.slope(e, seed, name) - power)

    return _each(read(criterion), read(control))


def _compared(of: Callable[[Evidence, int, str], float], kind: str, control: str) -> Reader:
    return _each(lambda e, s: of(e, s, kind), lambda e, s: of(e, s, control))


def _full(e: Evidence, seed: int, rule: str) -> pd.DataFrame:
    """Rows of a rule where the memory has a coordinate for every item."""
    found = laws.rows(e, "rules", seed, rule=rule)
    return found.query("n < d")


def _over(e: Evidence, seed: int, rule: str) -> pd.DataFrame:
    """Rows of a rule beyond, beside the closed form of the pseudo-inverse."""
    law = laws.rows(e, "rules", seed, rule="pseudo-inverse").set_index("n")["law"]
    found = laws.rows(e, "rules", seed, rule=rule)
    found = found.query("n > d")
    return found.assign(law=law.loc[found["n"]].to_numpy())


def _delta(e: Evidence, seed: int, rule: str) -> float:
    """Distance of a rule from the closed form of the delta rule."""
    law = laws.rows(e, "rules", seed, rule="delta").set_index("n")["law"]
    found = laws.rows(e, "rules", seed, rule=rule)
    return laws.off(found.assign(law=law.loc[found["n"]].to_numpy()))


def _decoding(e: Evidence, seed: int) -> float:
    found = laws.rows(e, "capacity", seed, criterion="decoding")
    return float(np.abs(found["items"].to_numpy() / found["law"].to_numpy() - 1.0).max())


def _linear(e: Evidence, seed: int) -> float:
    """The same capacities beside the average one."""
    found = laws.rows(e, "capacity", seed, criterion="decoding")
    law = np.array([closed.average_capacity(recipe.EPS, d) for d in found["d"]])
    return float(np.abs(found["items"].to_numpy() / law - 1.0).max())


CLAIMS: tuple[Claim[Evidence], ...] = (
    Claim("average capacity grows as d_k", QIAO, "|slope - 1| of log(N - 1) in log d_k",
          Mark("<", 0.1), "coherent keys", "Random keys, mean squared error below a quarter: twice "
          "the width holds twice the items.", _slope("mean", "guaranteed", 1.0)),
    Claim("guaranteed capacity grows as sqrt(d_k)", QIAO, "|slope - 1/2| of log(N - 1) in log d_k",
          Mark("<", 0.1), "random keys, mean error", "Keys of coherence 1 / sqrt(d_k) and values "
          "alike: four times the width holds twice the items.", _slope("guaranteed", "mean", 0.5)),
    Claim("random keys err by (N - 1) / d_k", OURS, "largest |error^2 / law - 1|", Mark("<", 0.1),
          "orthogonal keys", "The mean squared error, whatever width and load; orthogonal keys "
          "have none.", _law("interference", "keys", "random", "orthogonal")),
    Claim("coherent keys err by (N - 1) / sqrt(d_k)", OURS, "largest |error / law - 1|",
          Mark("<", 1e-9), "the same keys, random values", "Exactly: all errors point one way. "
          "Values in random directions let them cross.",
          _law("coherence", "values", "alike", "random")),
    Claim("random keys do not show the root", OURS, "slope of log(N - 1) in log d_k",
          Mark(">", 0.75), "coherent keys", "Even the largest error of a list, within bounds in 95 "
          "of 100 lists, allows a number of items that grows at least as d_k. The root is about "
          "keys that were chosen badly.", _slope("largest", "guaranteed")),
    Claim("decoding holds many more", OURS, "slope of log(N - 1) in log d_k", Mark(">", 1.5),
          "mean error", "If it is enough that the right value is the nearest one, capacity grows "
          "nearly as d_k d_v.", _slope("decoding", "mean")),
    Claim("as many as the comparisons allow", OURS, "largest |capacity / law - 1|",
          Mark("<", 0.2), "average capacity as the law", "N (N - 1) comparisons, "
          "each lost with the chance that two keys and two values and the other items leave.",
          _each(_decoding, _linear)),
    Claim("the delta rule errs less", QIAO, "error^2 over that of Hebb, N = d_k", Mark("<", 0.8),
          "corrections read at wrong keys", "Storing only what the memory does not say yet takes "
          "interference away.", _compared(laws.ratio, "delta", "delta, wrong keys")),
    Claim("by this much", OURS, "largest |error^2 / law - 1|", Mark("<", 0.1), "Hebb",
          "The closed form of one pass over random keys.", _compared(_delta, "delta", "Hebb")),
    Claim("it forgets the oldest", OURS, "error^2 of the oldest eighth over the newest",
          Mark(">", 3.0), "Hebb", "What the delta rule gains, new items gain; Hebb has no order.",
          _compared(laws.ageing, "delta", "Hebb")),
    Claim("the pseudo-inverse is exact up to d_k", OURS, "largest error^2 at N < d_k",
          Mark("<", 1e-9), "Hebb", "As long as keys are independent a memory without error exists.",
          _compared(lambda e, s, r: float(_full(e, s, r)["error"].to_numpy().max()),
                    "pseudo-inverse", "Hebb")),
    Claim("beyond, 1 - d_k / N remains", OURS, "largest |error^2 / law - 1| at N > d_k",
          Mark("<", 0.1), "Hebb", "What is left is the share of the values that no matrix of "
          "this width can hold.",
          _compared(lambda e, s, r: laws.off(_over(e, s, r)), "pseudo-inverse", "Hebb")),
    Claim("layers multiply 1 + error^2", OURS, "largest |error^2 / law - 1|", Mark("<", 0.1),
          "the same keys in every layer", "With fresh keys in every layer, 1 + error^2 is the L-th "
          "power of its value after one.", _law("depth", "keys", "fresh", "same")),
    Claim("a loaded memory cannot be stacked", QIAO, "error^2 after 6 layers over 6 of one",
          Mark(">", 2.0), "a nearly empty memory", "Depth costs width: at N = 3/4 d_k errors "
          "compound, at N = 2 they add up.",
          _each(lambda e, s: laws.compounding(e, s, 48), lambda e, s: laws.compounding(e, s, 2))),
    Claim("redundant heads err less", QIAO, "error^2 of 16 heads over that of one",
          Mark("<", 0.5), "copies of one head", "Heads with projections of their own average their "
          "errors out; copies say what one says and cannot.",
          _compared(lambda e, s, k: laws.gain(e, s, k, 16), "random", "copies")),
    Claim("by this much, with a floor", OURS, "largest |error^2 / law - 1|", Mark("<", 0.1),
          "copies of one head", "((N + 1) + (N - 1) / d) / (H d_k) + (N - 1) / d.",
          _law("heads", "items", "random", "copies")),
    Claim("the floor is that of the stream", OURS, "error^2 of 64 heads over 1/64 of one head's",
          Mark(">", 3.0), "orthogonal items", "More heads do not go below (N - 1) / d_model, where "
          "the items themselves overlap.", _compared(laws.left, "random", "orthogonal")),
)  # fmt: skip
