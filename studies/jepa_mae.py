"""Which features are learned first: those that covary, or those that can be predicted?

The JEPA laboratory (`workbench.zoo.jepa`) repeats Littwin et al. 2024 (arXiv 2407.03475) in deep
linear networks: predicting the latents of a second view follows the regression coefficient,
predicting the view itself the covariance, and depth strengthens the preference.  Default: encoders
of one to four layers, orders opposed, agreed and equal, aligned and free starts.  Quick: the
shallowest and the deepest encoder; laws that need the others are not applicable.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.studies import jepa_mae_figures as figures
from workbench.studies.study import DEFAULT, QUICK, Content, Plate, Progress, Study, pictures
from workbench.zoo import claims
from workbench.zoo.jepa import closed, laws, recipe
from workbench.zoo.jepa.claims import CLAIMS
from workbench.zoo.jepa.laws import Evidence

if TYPE_CHECKING:
    from workbench.zoo.jepa.recipe import Recipe

LABORATORY = "laboratory"
NOTES = (
    "Of the paper its abstract was read, and summaries; setting and closed forms are derived here "
    "and checked by integration. Features are directions along which both views are uncorrelated "
    "with all others.",
    f"All encoders start with the same product of their layers, {recipe.PRODUCT:g}. That is where "
    "the influence of depth comes from: a deeper encoder has larger layers for the same product, "
    "and the coefficient enters by the size of a layer. With the same small weight per layer "
    "depth changes little from two layers on, and from tiny products every JEPA follows the "
    "covariance.",
    "The preference is finite: it overturns covariances that differ by less than the ratio shown "
    "in the figure of preferences. With four layers a feature of half the coefficient must covary "
    "nearly twice as much to be learned as early.",
    "The theory is about aligned starts: features are rotated from layer to layer and come back. "
    f"Seeds add {100 * recipe.JITTER:g} % to the entries, which moves critical times by several "
    "percent at depth four, for they go with a high power of the start.",
    "From free starts, with independent rotations in all layers, JEPA learns some features and "
    "loses them again; why was not examined. That the most predictable feature is the one that "
    "stays was found by looking at these runs. The first statement, that it is also the first one "
    "learned, did not hold (3 of 8 starts at the worst depth).",
    "Both methods end with the same features in the aligned runs, but not with equal strength: "
    "rho^L for JEPA and rho^(L/(L+1)) for MAE. A deep JEPA weakens what is hard to predict much "
    "more.",
    "JEPA needs up to a hundred times the time of MAE, as its target begins as small as its "
    "encoder. Orders are compared within a method, never across.",
    "The teacher is the encoder itself without gradient. A moving average, as used in practice, "
    "would lag behind; it is not run here.",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """`size` is quick or default."""

    size: str = DEFAULT

    def recipes(self) -> tuple[Recipe, ...]:
        return recipe.quick() if self.size == QUICK else recipe.small()

    def to_json(self) -> dict[str, Any]:
        recipes = [stack.to_json() for stack in self.recipes()]
        return {"size": self.size, "laws": self.laws(), "recipes": recipes}

    def laws(self) -> list[str]:
        """Names of the laws whose runs are trained."""
        trained = {
            f"{setting.name} {stack.method} {stack.depth}"
            for stack in self.recipes()
            for setting in stack.settings
        }
        return claims.readable(CLAIMS, trained)

    def banner(self) -> str:
        if self.size != QUICK:
            return ""
        runs, whole = (
            sum(len(stack.settings) for stack in stacks)
            for stacks in (recipe.quick(), recipe.small())
        )
        return (
            f"Quick look: {runs} runs of encoders of one and four layers in place of {whole} of "
            "one to four. Laws that need the others are not applicable."
        )


def run(config: Config, folder: Path, progress: Progress) -> Content:
    """Train what is not trained yet, read the laws, draw the figures."""
    from workbench.zoo.jepa import training

    recipes = config.recipes()
    results = training.train(folder / LABORATORY, recipes, progress)
    evidence = Evidence(training.runs(results))
    return Content(
        findings=claims.findings(evidence, CLAIMS, config.laws()),
        pictures=pictures(PLATES, evidence, {str(r["setting"].item()) for r in evidence.runs}),
        tables=tables(evidence),
        notes=NOTES,
        seeds=sorted({setting.seed for stack in recipes for setting in stack.settings}),
        facts={"training": results.cost},
        banner=config.banner(),
    )


def tables(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """The numbers behind the figures: curves, critical times, preferences."""
    curves, times = [], []
    for one in evidence.runs:
        method, depth = laws.method_of(one), laws.depth_of(one)
        name = {
            "run": figures.name_of(one), "setting": str(one["setting"].item()), "method": method,
            "depth": depth,
        }  # fmt: skip
        curves.append(
            one[["learned", "strength"]].reset_coords(drop=True).to_dataframe().reset_index()
            .assign(**name)
        )  # fmt: skip
        rows = zip(
            one["feature"].to_numpy(), one["lam"].to_numpy(), one["rho"].to_numpy(),
            laws.times(one), laws.expected(one, method), strict=True,
        )  # fmt: skip
        times += [
            name | {"feature": feature, "lam": lam, "rho": rho, "time": time, "closed_form": form}
            for feature, lam, rho, time, form in rows
        ]
    preferences = [
        {"method": method, "depth": depth, "product": product, "rho": rho,
         "preference": closed.preference(method, rho, depth, product)}
        for method in closed.METHODS for depth in recipe.DEPTHS
        for product in figures.PRODUCTS for rho in recipe.RHO
    ]  # fmt: skip
    return {
        "curves": pd.concat(curves, ignore_index=True),
        "times": pd.DataFrame(times),
        "preferences": pd.DataFrame(preferences),
    }


# In the order of the story.
PLATES = (
    Plate(
        "courses", "The same data, learned in opposite orders",
        "How much of each feature the encoder has, of its strength at the end. Blue is predicted "
        "best and covaries least, red is predicted worst and covaries most. MAE learns red first "
        "at every depth; JEPA does so with one layer, and turns the order round with four. "
        "Dotted: half learned.",
        figures.courses, ("opposed",),
    ),
    Plate(
        "preferences", "How far the preference goes",
        "Covariance that a feature must have, by that of a perfectly predictable one, to be "
        "learned as early: closed form (lines; dotted MAE, at the same depths) and the ratio of "
        "times in the runs of JEPA with equal covariances (points). Left from the product of "
        "layers used here, for every coefficient; right with four layers from smaller products.",
        figures.preferences, ("equal",),
    ),
    Plate(
        "times", "Critical times against the closed form",
        "Every feature of the aligned runs whose covariances differ. Circles: exact starts; "
        "crosses: starts with a jitter.",
        figures.times, ("exact",),
    ),
    Plate(
        "ends", "Where the encoders end",
        "Strength of each feature at the end by its coefficient, beside rho^L for JEPA and "
        "rho^(L/(L+1)) for MAE. Covariances, opposed or agreed, leave no trace.",
        figures.ends, ("opposed", "agreed"),
    ),
    Plate(
        "free", "Free starts: what stays",
        "Features that the encoder has at the end, by run, from starts whose layers are not "
        "aligned. JEPA keeps the most predictable one alone, MAE several.",
        figures.free, ("free",),
    ),
)  # fmt: skip

STUDY = Study(
    name="jepa-mae",
    question="Which features are learned first when latents are predicted, which when data are?",
    paper=laws.LITTWIN,
    cost="1 CPU min; --quick 10 CPU s",
    needs="",
    configs={QUICK: Config(QUICK), DEFAULT: Config()},
    run=run,
)
