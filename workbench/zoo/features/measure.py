"""Test errors: every model on every function from more and more inputs.

Linear regression on fixed features, with the ridge that leave-one-out errors on the training inputs
prefer, chosen for each number of inputs and each function (scikit-learn's RidgeCV).  Errors are
squared, by the variance of the function on the test inputs: 1 is what the mean predicts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from workbench.zoo.features import model, recipe, task
from workbench.zoo.features.model import Features
from workbench.zoo.features.recipe import Recipe
from workbench.zoo.features.task import Inputs

ATTENTION, BIASED, SHIFTED, MLP = (
    "attention", "biased attention", "shifted attention", "MLP",
)  # fmt: skip
LIMIT, MLP_LIMIT = "attention, infinite", "MLP, infinite"
MODELS = (ATTENTION, BIASED, SHIFTED, MLP, LIMIT, MLP_LIMIT)
# Ridge by the mean squared length of centred features, per input.
RIDGES = np.logspace(-11, 1, 25)
# Test inputs whose keys change places.
_MOVED = 200


def draw(name: str, setting: Recipe, rng: np.random.Generator, seen: Inputs) -> Features:
    """The features of a model; those of infinite ones are made from the inputs seen."""
    t, heads = setting.task, setting.heads
    drawn: dict[str, Callable[[], Features]] = {
        ATTENTION: lambda: model.attention(t, heads, rng, model.comparing(t, 0.0)),
        BIASED: lambda: model.attention(t, heads, rng, model.comparing(t, recipe.BIAS)),
        SHIFTED: lambda: model.attention(t, heads, rng, model.constant(t, recipe.BIAS)),
        MLP: lambda: model.mlp(t, setting.features, rng),
        LIMIT: lambda: model.embedded(model.attention_kernel, seen),
        MLP_LIMIT: lambda: model.embedded(model.mlp_kernel, seen),
    }
    return drawn[name]()


def fitted(features: Features, seen: Inputs, y: np.ndarray) -> tuple[Features, np.ndarray]:
    """Predictions [input, function] as a function of inputs, and the ridges chosen, [function].

    `y` is [input, function].
    """
    from sklearn.linear_model import RidgeCV

    known = features(seen)
    middle = known.mean(axis=0)
    scale = np.sqrt(((known - middle) ** 2).sum(axis=1).mean())
    ridge = RidgeCV(RIDGES * len(known), alpha_per_target=True)
    ridge.fit((known - middle) / scale, y)
    return (
        lambda inputs: ridge.predict((features(inputs) - middle) / scale),
        np.asarray(ridge.alpha_) / len(known),
    )


def errors(setting: Recipe, seed: int) -> dict[str, pd.DataFrame]:
    """`errors`, a row per number of inputs, model and function, and `moved`, a row per model.

    `moved` is how far predictions go when the keys of the test inputs change places, by their own
    deviation, of the worst function that does not change; from the most inputs.
    """
    rng = np.random.default_rng([seed, setting.task.d, setting.task.keys])
    beta = setting.task.direction(rng)
    most = setting.task.inputs(max(setting.counts), rng)
    test = setting.task.inputs(setting.tested, rng)
    few = Inputs(test.query[:_MOVED], test.keys[:_MOVED])
    mixed = few.shuffled(rng)
    truth = np.stack([task.values(f, test, beta) for f in task.TARGETS], axis=1)
    rows, moved = [], []
    for i, name in enumerate(MODELS):
        for n in setting.counts:
            seen = Inputs(most.query[:n], most.keys[:n])
            y = np.stack([task.values(f, seen, beta) for f in task.TARGETS], axis=1)
            # The same weights at every number of inputs.
            features = draw(name, setting, np.random.default_rng([seed, i]), seen)
            predict, ridges = fitted(features, seen, y)
            said = predict(test)
            share = ((said - truth) ** 2).mean(axis=0) / truth.var(axis=0)
            rows += [
                {"model": name, "target": f.name, "n": n, "error": e, "ridge": r}
                for f, e, r in zip(task.TARGETS, share, ridges, strict=True)
            ]
        step = np.sqrt(((predict(mixed) - said[:_MOVED]) ** 2).mean(axis=0)) / said.std(axis=0)
        kept = [i for i, f in enumerate(task.TARGETS) if not f.one_key]
        moved.append({"model": name, "moved": step[kept].max()})
    label = {"setting": setting.name, "seed": seed}
    return {
        "errors": pd.DataFrame(rows).assign(**label), "moved": pd.DataFrame(moved).assign(**label),
    }  # fmt: skip
