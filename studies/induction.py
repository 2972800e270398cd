"""How do induction heads form, and is it they that make a model learn from its context?

The laboratory of induction (`workbench.zoo.induction`) repeats the phase change of Olsson et al.
2022 (arXiv 2209.11895) small enough for a CPU: attention-only networks of two layers and of one, on
texts whose words have favourite successors, new in every text.  Default: 14 runs, among them one
layer with smeared keys and two layers on texts with nothing to copy.  Quick: one short run of each
kind, for a look; laws that are read from the whole recipe are not applicable.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.studies import induction_figures as figures
from workbench.studies.study import DEFAULT, QUICK, Content, Plate, Progress, Study, pictures
from workbench.zoo import claims
from workbench.zoo.induction import laws, recipe
from workbench.zoo.induction.claims import CLAIMS, TWO

if TYPE_CHECKING:
    from workbench.zoo.induction.laws import Evidence
    from workbench.zoo.induction.recipe import Recipe

LABORATORY = "laboratory"
NOTES = (
    "The language, sizes and rates were found by trying, so that every seed changes within 1000 "
    "steps. In a first language, whose favourites were certain, texts ran into loops, and one "
    "layer gained most of the context's worth from which words were frequent.",
    "The paper measures the loss at token 500 minus that at token 50 of natural text. Texts here "
    "have 32 tokens: late is the mean of the last eight predictions, early that of positions 2 to "
    "5. Losses are exact in the next token: the oracle's probabilities stand in for draws.",
    "The change is a drop from a plateau. The small rise of the loss that the paper sees before it "
    "is not there.",
    "Previous-token heads do not come first when each score is read at half its own way: the first "
    "layer's score goes on rising long after the second layer matches prefixes. At the half-time "
    "of the prefix score it is .07 to .13, two to three times uniform attention (.04). What comes "
    "first is the circuit: its matching score moves on the plateau.",
    "Copying is not what is new in the window: heads of one layer copy as well, and those of two "
    "do after 100 steps already. What is new is where they look.",
    "K-composition as a norm hardly tells the circuit from chance: without favourites single pairs "
    "of heads reach as much. The eigenvalues of the composed circuit on the words do tell it.",
    "Both heads of the second layer become induction heads in every run; they are removed "
    "together, which is all of that layer. The control is the head of the first layer that looks "
    "back least, which may look back a little too.",
    "The mark of the removed previous-token head was set after looking: a first guess, .5, lay on "
    "the value of one seed, in which the other head of the first layer looks back as well.",
    "That smeared keys come sooner is counted in steps; a step of one layer is also cheaper.",
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
        return claims.readable(CLAIMS, trained, whole=self.size != QUICK)

    def banner(self) -> str:
        if self.size != QUICK:
            return ""
        return (
            "Quick look: 4 runs of 600 steps in place of 14 of 1000. Laws that need the whole "
            "recipe are not applicable."
        )


def run(config: Config, folder: Path, progress: Progress) -> Content:
    """Train what is not trained yet, remove heads, read the laws, draw the figures."""
    from workbench.studies import induction_removal
    from workbench.zoo.induction import training

    recipes = config.recipes()
    results = training.train(folder / LABORATORY, recipes, progress)
    removed = induction_removal.icl_without(results, recipes)
    evidence = laws.Evidence(claims.by_setting(results.trajectories), removed)
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
    """The numbers behind the figures: curves, losses by position, half-times, removed heads."""
    every = [run for runs in evidence.runs.values() for run in runs]
    curves, by_position = [], []
    for one in every:
        name, setting = figures.name_of(one), str(one["setting"].item())
        scalars = {
            "step": one["step"], "icl": one["icl"], "slope": one["slope"], "loss": one["loss"],
            "excess": one["excess"], "prefix": laws.prefix(one), "previous": laws.previous(one),
        }  # fmt: skip
        curves.append(pd.DataFrame(scalars).assign(run=name, setting=setting))
        table = one["loss_at"].to_dataframe()["loss_at"].reset_index()
        by_position.append(table.assign(run=name, setting=setting))
    times = [
        {"run": figures.name_of(one)}
        | {name: laws.half_time(one, of(one)) for name, _, of in figures.CHANGES}
        for one in evidence.of(TWO)
    ]
    removed = pd.DataFrame(evidence.icl).T.rename_axis("run").reset_index()
    return {
        "curves": pd.concat(curves, ignore_index=True),
        "positions": pd.concat(by_position, ignore_index=True),
        "half_times": pd.DataFrame(times),
        "removal": removed,
    }


# In the order of the story.
PLATES = (
    Plate(
        "windows", "Two layers change at once, one layer does not",
        "Every run. The score of learning in context is the loss late in the text minus that "
        "early; prefix matching is the weight on what followed the earlier copy, on repeated "
        "random words. With smeared keys one layer does it too, and sooner; without anything to "
        "copy two layers do not.",
        figures.windows,
    ),
    Plate(
        "phases", "What changes, and when",
        "One run of two layers, every number on its way from start to end. First the chain, then "
        "a plateau, then the context and the heads together; the first layer's look back is "
        "sharpened last.",
        figures.phases, (TWO,),
    ),
    Plate(
        "half_times", "Half-times, run by run",
        "The step at which each number has come half its way. Learning in context and prefix "
        "matching lie on one another in every seed.",
        figures.half_times, (TWO,),
    ),
    Plate(
        "positions", "Loss by position",
        "One run of two layers before, in and after the window, beside the exact oracle, the "
        "chain without context, and one layer.",
        figures.positions, (TWO,),
    ),
    Plate(
        "patterns", "The two heads of the circuit",
        "Patterns on 15 random words written twice, before, in and after the window. Above, the "
        "first layer's head that looks back; below, a head of the second layer: in the second "
        "half it looks at what followed the earlier copy.",
        figures.patterns, (TWO,),
    ),
    Plate(
        "removal", "What is left without these heads",
        "The trained runs as GPT-2s, heads zeroed by interventions, on fresh texts. Higher is "
        "more from the context.",
        figures.removal, (TWO,),
    ),
    Plate(
        "paths", "Losses of single tokens",
        "Losses of 256 tokens at every logged step, on their first two principal components, all "
        "runs together: on the plateau all go one way, at the window those that change turn off.",
        figures.paths, (TWO,),
    ),
)  # fmt: skip

STUDY = Study(
    name="induction",
    question="How do induction heads form, and is learning in context their work?",
    paper=laws.OLSSON,
    cost="1.5 CPU min; --quick 25 CPU s",
    needs="",
    configs={QUICK: Config(QUICK), DEFAULT: Config()},
    run=run,
)
