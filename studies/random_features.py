"""What can attention learn whose queries and keys are random and never trained?

The random-features laboratory (`workbench.zoo.features`) repeats the simulations of Fu et al. 2023
(arXiv 2307.11353) in small: frozen random heads and ridge regression on what they return, beside a
random-feature MLP of as many features, and both with infinitely many as kernels.  Default: four
seeds, two sizes of input, up to 1024 of them.  Quick: two seeds and up to 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.studies import random_features_figures as figures
from workbench.studies.kept import kept, stacked
from workbench.studies.study import DEFAULT, QUICK, Content, Plate, Progress, Study, pictures
from workbench.zoo import claims
from workbench.zoo.features import laws, measure, recipe
from workbench.zoo.features.claims import CLAIMS

TABLES = "tables-by-seed"
NOTES = (
    "Errors are squared test errors over the variance of the function: 1 is what the mean "
    "predicts. A seed decides the function's direction, the inputs and the weights.",
    "The ridge is chosen for every model, function and number of inputs, by leave-one-out on the "
    "training inputs. With one ridge for all, the order of the models depends on that choice.",
    "Models are compared at equal numbers of features, 1800 in the wide setting. An MLP of "
    "infinitely many units does better than that one with the most inputs; attention is ahead of "
    "it too.",
    "The mean of <x₀,x>²<β,x> is learned by no model in the wide setting: all are near what its "
    "linear part gives. With 4 coordinates and 4 keys infinitely many heads learn it and the MLP "
    "does not; 200 heads are on the way. That it is hard is a matter of how many products of "
    "coordinates it is made of, not of the kind of function.",
    "The gain of a biased query-key matrix is real and small: on the function that weighs keys by "
    "<x₀,x>, with few inputs. Elsewhere it costs. It is clearly ahead of a bias on the constant "
    "with 64 and 128 inputs, hardly with 256, and far behind with more. For <x₀,x>² there was "
    "none up to 1024 inputs.",
    "A mean of the same size on the constant coordinate is the better bias with many inputs: by "
    "far for the means of <β,x>² and <x₀,x><β,x>, hardly for the other two. It opens most ReLUs, "
    "so the features are nearly polynomials of low degree, as these two functions are. It is here "
    "as a control; whether the paper considers it was not read.",
    "The mean of the biased matrices, four deviations of a weight on the coordinates and none on "
    "the constant, is this laboratory's choice. The paper's text was not read beyond its "
    "abstract; its strength, sizes and functions may differ. Bounds and rates of its theorems are "
    "not tested.",
    "Attention here is ReLU of the score divided by the number of keys, as in the paper; there "
    "is no softmax.",
)


@dataclass(frozen=True)
class Config:
    """`size` is quick or default."""

    size: str = DEFAULT

    def recipes(self) -> tuple[recipe.Recipe, ...]:
        return recipe.QUICK if self.size == QUICK else recipe.DEFAULT

    def to_json(self) -> dict[str, Any]:
        recipes = [setting.to_json() for setting in self.recipes()]
        return {"size": self.size, "laws": self.laws(), "recipes": recipes}

    def laws(self) -> list[str]:
        """Names of the laws that these numbers of inputs decide."""
        return claims.readable(CLAIMS, (), whole=self.size != QUICK)

    def banner(self) -> str:
        if self.size != QUICK:
            return ""
        quick, whole = recipe.QUICK[0], recipe.DEFAULT[0]
        return (
            f"Quick look: {len(quick.seeds)} seeds and up to {quick.counts[-1]} inputs in place of "
            f"{len(whole.seeds)} and {whole.counts[-1]}. Laws that need more inputs are not "
            "applicable."
        )


def run(config: Config, folder: Path, progress: Progress) -> Content:
    """Measure what is not measured yet, read the laws, draw the figures."""
    jobs = [(setting, seed) for setting in config.recipes() for seed in setting.seeds]
    parts = []
    for i, (setting, seed) in enumerate(jobs):
        progress(i, len(jobs), f"{setting.name} inputs, seed {seed}")
        parts.append(
            kept(
                folder / TABLES, f"{setting.name}-s{seed}",
                lambda setting=setting, seed=seed: measure.errors(setting, seed),
            )
        )  # fmt: skip
    progress(len(jobs), len(jobs), "measured")
    evidence: laws.Evidence = stacked(parts)
    return Content(
        findings=claims.findings(evidence, CLAIMS, config.laws()),
        pictures=pictures(PLATES, evidence, ()),
        tables=evidence,
        notes=NOTES,
        seeds=sorted({seed for _, seed in jobs}),
        banner=config.banner(),
    )


# In the order of the story.
PLATES = (
    Plate(
        "errors-wide", "Test errors, 8 coordinates and 8 keys",
        "Mean of the seeds, with the lowest and the highest; 1 is what the mean predicts. "
        "Attention (blue) learns means over keys from far fewer inputs than an MLP of as many "
        "features (orange). Dotted: infinitely many heads or units. A function of the first key "
        "alone attention cannot learn; the MLP would need more inputs.",
        figures.errors_wide,
    ),
    Plate(
        "errors-small", "The same with 4 coordinates and 4 keys",
        "Here the mean of <x₀,x>²<β,x> can be learned as well, by infinitely many heads first. "
        "The function of one key is the MLP's: attention cannot tell keys apart.",
        figures.errors_small,
    ),
    Plate(
        "bias", "What a biased query-key matrix gains",
        "Error over that of unbiased heads, 8 coordinates and 8 keys, every seed; below 1 is a "
        "gain. Purple: a mean on the coordinates, which compares query with key. Green: a mean on "
        "the constant, which only opens the ReLUs.",
        figures.bias,
    ),
    Plate(
        "moved", "When keys change places",
        "Change of the predictions over their own deviation, every seed and setting. No function "
        "counted here depends on the order of keys.",
        figures.moved,
    ),
)  # fmt: skip

STUDY = Study(
    name="random-features",
    question="What can attention learn whose queries and keys are random and never trained?",
    paper=laws.FU,
    cost="2 CPU min; --quick 5 CPU s",
    needs="",
    configs={QUICK: Config(QUICK), DEFAULT: Config()},
    run=run,
)
