"""Does attention take steps of gradient descent in context?

The gradient-descent laboratory (`workbench.zoo.descent`): weights with which a layer of linear
attention is one exact step (von Oswald et al. 2022, arXiv 2212.07677), trained layers with and
without softmax beside it, and a small causal transformer beside the simple learners of Garg et al.
2022 (arXiv 2208.01066).  Quick: short runs without the transformer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.studies import gradient_descent_figures as figures
from workbench.studies.study import DEFAULT, QUICK, Content, Plate, Progress, Study, pictures
from workbench.zoo import claims
from workbench.zoo.descent import laws, recipe
from workbench.zoo.descent.claims import CLAIMS, REPORTED

if TYPE_CHECKING:
    from workbench.zoo.descent.laws import Evidence
    from workbench.zoo.descent.training import Recipe

LABORATORY = "laboratory"
NOTES = (
    "The query is no key: its label is not known. Losses of the layers are half the squared error "
    "with labels of variance d/12, errors of the learners and of the transformer are squared "
    "errors with labels of variance one (those of the paper, divided by d).",
    "Some random starts get stuck: one of eight layers of linear attention stays near the "
    "loss of predicting zero, and one of six with two softmax heads. The laws of what is found are "
    f"read from runs below {laws.SOLVED:g} of that loss; the others are drawn, not hidden.",
    "Start and rate deviate from the paper, which starts from weights of .002, clips gradients at "
    ".001 and trains 5000 steps at rate .001. Ours were found by trying and take 1000 steps.",
    "Two heads of softmax come near to gradient descent and stay some 7 % above its loss; "
    "what they do beyond is in the study icl-regression.",
    "More layers with one and the same best step are better; the step that is best for one layer "
    "is too long for ten.",
    "The transformer has two layers and three coordinates and is trained for 1800 steps, where the "
    "paper has twelve layers, twenty coordinates, a curriculum and 500 000 steps. It beats one "
    "step of gradient descent and its neighbours; it is not as good as least squares. That law "
    "is reported, with its verdict.",
    "At n = d the expected error of least squares with noise is infinite: its value there is that "
    "of the worst prompts drawn, and only says that it is large.",
    "The closed forms of the learners and of the best step are derived here and checked against "
    "simulation. Of both papers the code was read, not the text: the construction is re-derived, "
    "and alignment is measured as shares in place of absolute distances.",
)


@dataclass(frozen=True)
class Config:
    """`size` is quick or default."""

    size: str = DEFAULT

    def recipes(self) -> tuple[Recipe, ...]:
        quick = self.size == QUICK
        return (*recipe.layers(quick=quick), *recipe.transformers(quick=quick))

    def to_json(self) -> dict[str, Any]:
        recipes = [stack.to_json() for stack in self.recipes()]
        return {"size": self.size, "laws": self.laws(), "recipes": recipes, **self.counts()}

    def counts(self) -> dict[str, int]:
        """Prompts behind what is computed and not trained."""
        if self.size == QUICK:
            return {"count": 1000, "lasso": 40}
        return {"count": 4000, "lasso": 100}

    def laws(self) -> list[str]:
        """Names of the laws whose runs are trained."""
        trained = {setting.name for stack in self.recipes() for setting in stack.settings}
        return claims.readable(CLAIMS, trained, whole=self.size != QUICK)

    def banner(self) -> str:
        if self.size != QUICK:
            return ""
        return (
            "Quick look: few layers, up to 700 steps, no transformer. Laws that need it, or longer "
            "training, are not applicable."
        )


def run(config: Config, folder: Path, progress: Progress) -> Content:
    """Train what is not trained yet, read the laws, draw the figures."""
    from workbench.zoo.descent import training

    recipes = config.recipes()
    results = training.train(folder / LABORATORY, recipes, progress)
    runs = claims.by_setting(results.trajectories)
    evidence = laws.look(runs, **config.counts())
    return Content(
        findings=claims.findings(evidence, CLAIMS, config.laws(), REPORTED),
        pictures=pictures(PLATES, evidence, runs),
        tables=tables(evidence),
        notes=NOTES,
        seeds=sorted({setting.seed for stack in recipes for setting in stack.settings}),
        facts={"training": results.cost},
        banner=config.banner(),
    )


def tables(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """The numbers behind the figures."""
    every = [run for runs in evidence.runs.values() for run in runs]
    curves = [
        run[[str(n) for n, array in run.data_vars.items() if array.dims == ("step",)]]
        .reset_coords(drop=True)
        .to_dataframe()
        .reset_index()
        .assign(run=figures.name_of(run), setting=str(run["setting"].item()))
        for run in every
    ]
    learned = [
        errors.rename("error").to_dataframe().reset_index().assign(prompts=prompts)
        for prompts, errors in (
            ("plain", evidence.plain), ("noisy", evidence.noisy), ("sparse", evidence.sparse),
            ("dense", evidence.dense),
        )
    ]  # fmt: skip
    return {
        "curves": pd.concat(curves, ignore_index=True),
        "exact": evidence.exact,
        "steps": evidence.steps,
        "depths": evidence.depths,
        "learners": pd.concat(learned, ignore_index=True),
    }


PLATES = (
    Plate(
        "training", "Layers while they train",
        "Every run is a line. Left: loss by that of predicting zero, dotted: one best step of "
        "gradient descent. Middle: distance of the predictions to those of that step. Right: "
        "cosine of the sensitivities. Linear attention becomes that step, one head of softmax "
        "cannot, two heads nearly do; lines that stay up are starts that got stuck.",
        figures.training,
    ),
    Plate(
        "circuits", "What linear attention has learned",
        "The first solved run at its last step. KQ is a multiple of the identity, OV reads the "
        "label y0: the matrices of the construction. Both may have the other sign: what "
        "counts is the product.",
        figures.circuits, (recipe.LINEAR,),
    ),
    Plate(
        "steps", "Which step, and how many",
        "Left: loss of one step by its length; the line is the closed form, points are sampled, "
        "and the dotted line is the best step. Right: the construction stacked. One layer that "
        "goes as far at once overshoots.",
        figures.steps,
    ),
    Plate(
        "ranges", "Coordinates of another range, nothing retuned",
        "Loss by that of predicting zero, trained at .5. Linear attention fails where the step it "
        "has learned fails; softmax, whose weights sum to one, fails later.",
        figures.ranges,
    ),
    Plate(
        "learners", "What simple learners need",
        "Twenty coordinates. Lines are closed forms, points simulated; on the right labels have "
        "noise of variance .25. The upper parts are cut off.",
        figures.learners,
    ),
    Plate(
        "lasso", "Sparse functions",
        "Three of twenty coordinates matter on the left, all on the right. The Lasso, with the "
        "penalty that is best on other prompts, finds the few; where there are no few it loses.",
        figures.lasso,
    ),
    Plate(
        "transformer", "A small causal transformer, example by example",
        "Error after so many examples: both runs at the end, and the first one on its way, beside "
        "simple learners on prompts of the same kind. Averaging and 3-NN are cut off above 1.6.",
        figures.causal, (recipe.CAUSAL,),
    ),
)  # fmt: skip

STUDY = Study(
    name="gradient-descent",
    question="Does attention take steps of gradient descent in context?",
    paper=laws.OSWALD,
    cost="2 CPU min; --quick 10 CPU s",
    needs="",
    configs={QUICK: Config(QUICK), DEFAULT: Config()},
    run=run,
)
