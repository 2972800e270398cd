"""What does one layer of softmax attention compute when it learns to regress in context?

The laboratory of in-context linear regression (`workbench.zoo.regression`) repeats He et al. 2025
(arXiv 2503.12734) small enough for a CPU: heads find a pattern, pair up with opposite signs, and
then predict what one step of debiased gradient descent does.  Default: 83 runs of one to eight
heads, on plain and correlated coordinates and on two tasks, beside the gradient flow of the reduced
loss.  Quick: five short runs, for a look; laws that need the others are not applicable.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.studies import icl_regression_figures as figures
from workbench.studies import icl_regression_panels as panels
from workbench.studies.study import DEFAULT, QUICK, Content, Plate, Progress, Study, pictures
from workbench.zoo import claims
from workbench.zoo.regression import laws, recipe, reduced
from workbench.zoo.regression.claims import CLAIMS

if TYPE_CHECKING:
    from workbench.zoo.regression.laws import Evidence
    from workbench.zoo.regression.recipe import Recipe

LABORATORY = "laboratory"
NOTES = (
    "Debiasing is not an improvement here. The coordinates have mean zero, so taking off the mean "
    "label costs a degree of freedom: debiased gradient descent scores slightly worse than plain "
    "gradient descent. Two heads are better than one head; they are not better than gradient "
    "descent. Debiasing pays when labels have a mean.",
    "The best predictor is ridge regression, with half the risk at this noise. One step of "
    "gradient descent comes close to it only at high noise.",
    "The laws of the pattern are read from runs that reached the risk of debiased gradient descent "
    f"(below {laws.SOLVED:g}) by half of their steps; the others are counted and shown, not "
    f"hidden. A run above {laws.STUCK:g} at its last step is called stuck; it may yet escape. "
    "One that escaped in the second half has had no time to settle and is called late.",
    "2^(1-H) is the chance that all heads draw one sign, and an upper bound of the trap: only such "
    "starts stick, but a small head can be turned by a large one before it has grown. The flow of "
    "the reduced loss sticks less often (table traps). The runs trained here are too few to tell "
    "the two rates apart.",
    "omega and mu depend on rate and time: their product is what is learned. Laws are about the "
    "step eta and the matrix E.",
    "E has two terms: labels written and coordinates scored, and coordinates written and labels "
    "scored. With more than two heads the second is not small: read without it, the step of four "
    "heads seems up to 8 % too short and that of eight up to 14 %, although their "
    "predictions are right.",
    "Linear attention divided by the length of the prompt goes on at other lengths as well as "
    "softmax attention does. What the softmax brings is that division. GD in that figure has the "
    "best step at every length; the networks keep what they learned at 40.",
    "The runs of a stack see the same prompts and differ by their start alone. Rates, sizes and "
    "numbers of steps were found by trying: cosine from 5e-3 in place of the authors' 500 000 "
    "steps at 1e-3. The query's target is as noisy as the labels, so every risk holds the noise.",
    "The laws of the flow are exact for the reduced loss of long prompts and large d; a network "
    "trained with Adam has no reason to show its exponents.",
    "The reduced loss puts one head at risk .372 and omega 1/sqrt d; at five coordinates the true "
    "optimum is near .405 and omega .52. Its numbers are bounds, not values to compare with.",
)


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
        trained = {setting.name for stack in self.recipes() for setting in stack.settings}
        # Two heads with random starts or with opposite signs: either shows the pattern.
        known = trained | (set(laws.TWO) if trained & set(laws.TWO) else set())
        return claims.readable(CLAIMS, known, whole=self.size != QUICK)

    def banner(self) -> str:
        if self.size != QUICK:
            return ""
        runs, whole = (
            sum(len(stack.settings) for stack in stacks)
            for stacks in (recipe.quick(), recipe.small())
        )
        return (
            f"Quick look: {runs} runs of up to 1000 steps in place of {whole} of up to 4000. Laws "
            "that need the whole recipe are not applicable."
        )


def run(config: Config, folder: Path, progress: Progress) -> Content:
    """Train what is not trained yet, read the laws, draw the figures."""
    from workbench.zoo.regression import training

    recipes = config.recipes()
    results = training.train(folder / LABORATORY, recipes, progress)
    evidence = laws.look(training.runs(results, recipes))
    return Content(
        findings=claims.findings(evidence, CLAIMS, config.laws()),
        pictures=pictures(PLATES, evidence, evidence.runs),
        tables=tables(evidence),
        notes=NOTES,
        seeds=sorted({setting.seed for stack in recipes for setting in stack.settings}),
        facts={"training": results.cost},
        banner=config.banner(),
    )


def tables(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """The numbers behind the figures: curves, final risks, the flow, the trap."""
    every = [run for runs in evidence.runs.values() for run in runs]
    curves = [
        run[[str(n) for n, array in run.data_vars.items() if array.dims == ("step",)]]
        .reset_coords(drop=True)
        .to_dataframe()
        .reset_index()
        .assign(run=figures.name_of(run), setting=str(run["setting"].item()))
        for run in every
    ]
    final = [
        run["baseline"]
        .to_pandas()
        .T.assign(risk=run["final"].to_pandas(), run=figures.name_of(run))
        .reset_index()
        for run in every
    ]
    flow = pd.DataFrame({"time": laws.FLOW_TIMES})
    for name, models in (("opposite", evidence.opposite), ("same", evidence.same)):
        flow[f"omega_{name}"] = [laws.width(model) for model in models]
        flow[f"loss_{name}"] = [float(model.loss()) for model in models]
    flow["omega_law"] = reduced.slide(evidence.opposite[0], laws.FLOW_TIMES)
    return {
        "curves": pd.concat(curves, ignore_index=True),
        "final": pd.concat(final, ignore_index=True),
        "flow": flow,
        "traps": _traps(evidence),
    }


def _traps(evidence: Evidence) -> pd.DataFrame:
    """Stuck starts by number of heads: trained, in the flow, and the chance of one sign."""
    counts = laws.stuck_counts(evidence)
    rows = [
        {
            "heads": heads,
            "one_sign": 2.0 ** (1 - heads),
            "flow": trap.all if (trap := evidence.traps.get(heads)) else np.nan,
            "flow_if_one_sign": trap.one_sign if trap else np.nan,
            "trained_stuck": counts.get(heads, (np.nan, np.nan))[0],
            "trained": counts.get(heads, (np.nan, np.nan))[1],
        }
        for heads in sorted({*evidence.traps, *counts})
    ]
    return pd.DataFrame(rows)


# In the order of the story.
PLATES = (
    Plate(
        "phases", "What emerges, and when",
        "One run of two heads. The risk falls to that of one head (the first shelf), the heads "
        "take opposite signs and their sum goes to zero, the circuits lose what is off the "
        "pattern; then |ω| falls while the step η stays. All curves are shares without unit; the "
        "risk is drawn as the part of the way from the zero predictor to debiased gradient "
        "descent that is left.",
        figures.phases,
    ),
    Plate(
        "circuits", "Where the circuits end",
        "The same run at its last step. Rows are coordinates of the key, columns of the query; y0 "
        "is the label. KQ is a multiple of the identity on x, OV reads the label, E is the matrix "
        "of the step of gradient descent. Every panel has its own scale around zero.",
        panels.circuits,
    ),
    Plate(
        "courses", "Risk while training, every run",
        "Blue: solved by half of the steps; orange: late; red: stuck on the plateau of one head, "
        "where one head has to stay. "
        "Numbers of steps differ between the panels.",
        figures.courses,
    ),
    Plate(
        "fates", "Where every run ends",
        "Risk of the final network on fresh prompts; dotted lines are predictors on the same "
        "prompts. Two heads reach debiased gradient descent, which here is slightly worse than "
        "plain gradient descent; ridge regression has half their risk.",
        figures.fates,
    ),
    Plate(
        "trap", "How often random starts stick",
        "Grey: the chance that all heads draw one sign. Purple: share of small random starts of "
        "the reduced flow that stick. It is lower, because a small head can still be turned by a "
        "large one; of starts with both signs none sticks.",
        figures.trapped, ("h2",),
    ),
    Plate(
        "lengths", "Prompts of other lengths, nothing retuned",
        "Two heads and one as trained, beside what gradient descent and ridge regression reach. "
        "Both orange curves are the same linear attention, with the step that is best at the "
        "length of training: divided by the length of the prompt it goes on; without that division "
        "it breaks. The upper part of the broken curve is cut off.",
        figures.lengths,
    ),
    Plate(
        "flow", "The slow end of the reduced flow",
        "Gradient flow of the reduced loss from small starts: with opposite signs it follows ω = "
        "(8 c d³ t)^(−1/6); with the same sign it stands still at the one-head solution.",
        figures.flow,
    ),
    Plate(
        "coloured", "Correlated coordinates: a matrix as step",
        "What four heads add up to, beside the best matrix for one step of gradient descent and "
        "the inverse covariance; each divided by its norm.",
        panels.coloured, ("coloured",),
    ),
    Plate(
        "tasks", "Two tasks with two and with three heads",
        "Task 0 depends on x0 to x3, task 1 on x2 to x5. μ is what a head writes to each label; "
        "the diagonal of E is the step on each coordinate. Two heads either share one step over "
        "all coordinates or take a task each and cannot cancel; three heads do both tasks.",
        panels.tasks, ("tasks-h2", "tasks-h3"),
    ),
)  # fmt: skip

STUDY = Study(
    name="icl-regression",
    question="What does a layer of softmax attention compute when it regresses in context?",
    paper=laws.HE,
    cost="3 CPU min; --quick 20 CPU s",
    needs="",
    configs={QUICK: Config(QUICK), DEFAULT: Config()},
    run=run,
)
