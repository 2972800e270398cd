"""How does linear attention learn to regress in context: at once, or one direction at a time?

The staircase laboratory (`workbench.zoo.staircase`) repeats Zhang et al. 2025 (arXiv 2501.16265):
with key and query merged the loss drops once; with separate key and query of rank one it goes down
a staircase whose plateaus, learned entries and times have closed forms.  Default: 74 runs, with
equal eigenvalues, large starts, fixed sequences and higher ranks beside them.  Quick: a few seeds
for fewer steps; laws that need the others are not applicable.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.studies import staircase_figures as figures
from workbench.studies.study import DEFAULT, QUICK, Content, Plate, Progress, Study, pictures
from workbench.zoo import claims
from workbench.zoo.staircase import closed, laws, recipe
from workbench.zoo.staircase.claims import CLAIMS

if TYPE_CHECKING:
    from workbench.zoo.staircase.laws import Runs
    from workbench.zoo.staircase.recipe import Recipe

LABORATORY = "laboratory"
NOTES = (
    "The network is the part of linear attention that matters: values that read the label, keys "
    "and queries that read the points. The other entries of its matrices start at zero in the "
    "paper's theory and stay there; here they are left out. Whether they stay small from a random "
    "start is not tested.",
    "The loss depends on the data by a few moments. Training on the moments of the population is "
    "full-batch gradient descent on endless sequences; training on the moments of 5000 sequences "
    "is full-batch gradient descent on these, exactly.",
    "Directions are the coordinates. The paper's code turns them by a random rotation; random "
    "starts have no preferred direction, so nothing but the labels of the figures changes.",
    f"Starts and rates are larger than in the paper's code (rank one {recipe.SMALL:g} and .8, "
    "there .01 and .02), which shortens the plateaus. From these starts two heads sometimes escape "
    "together: such a run skips a plateau. It counts with the plateaus it has.",
    f"A plateau is the slowest place between two drops, where the speed falls below "
    f"{100 * laws.SLOW:g} % of the highest. Both numbers were chosen before the final runs, after "
    "looking at a few.",
    "The order of directions under equal eigenvalues is a mean over runs: one run in 24 is in "
    "order by chance.",
    "The closed forms of the times hold for aligned starts. A random start of rank one first turns "
    "its heads, which takes a time that depends on the draw.",
    "With keys and queries of rank two and four plateaus are fewer and shorter; how many there are "
    "depends on the seed. Only rank eight of eight is a law here, and it is ours: the paper shows "
    "curves of other ranks, its theorems are about rank one.",
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
        trained = {setting.name for stack in self.recipes() for setting in stack.settings}
        return claims.readable(CLAIMS, trained, whole=self.size != QUICK)

    def banner(self) -> str:
        if self.size != QUICK:
            return ""
        runs, whole = (
            sum(len(stack.settings) for stack in stacks)
            for stacks in (recipe.quick(), recipe.small())
        )
        return (
            f"Quick look: {runs} runs of up to 2000 steps in place of {whole} of up to 12 000. "
            "Laws that need the whole recipe are not applicable."
        )


def run(config: Config, folder: Path, progress: Progress) -> Content:
    """Train what is not trained yet, read the laws, draw the figures."""
    from workbench.zoo.staircase import training

    recipes = config.recipes()
    results = training.train(folder / LABORATORY, recipes, progress)
    runs = training.runs(results)
    return Content(
        findings=claims.findings(runs, CLAIMS, config.laws()),
        pictures=pictures(PLATES, runs, runs),
        tables=tables(runs),
        notes=NOTES,
        seeds=sorted({setting.seed for stack in recipes for setting in stack.settings}),
        facts={"training": results.cost},
        banner=config.banner(),
    )


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """The numbers behind the figures: curves, plateaus, times."""
    every = [run for group in runs.values() for run in group]
    curves, plateaus, times = [], [], []
    for one in every:
        name = {"run": figures.name_of(one), "setting": str(one["setting"].item())}
        heights = closed.heights(laws.task_of(one))
        curves.append(
            one[["loss", "count", "off"]].reset_coords(drop=True).to_dataframe().reset_index()
            .assign(**name)
        )  # fmt: skip
        plateaus += [
            name | {"step": p.step, "loss": p.loss, "components": p.components,
                    "closed_form": heights[p.components]}
            for p in laws.plateaus(one)
        ]  # fmt: skip
        expected = {
            "aligned": laws.rank_one_times, "merged-aligned": laws.merged_times,
        }.get(name["setting"], lambda r: np.full(r.sizes["direction"], np.nan))(one)  # fmt: skip
        times += [
            name | {"direction": i, "step": step, "closed_form": form}
            for i, (step, form) in enumerate(zip(laws.times(one), expected, strict=True))
        ]
    return {
        "curves": pd.concat(curves, ignore_index=True),
        "plateaus": pd.DataFrame(plateaus),
        "times": pd.DataFrame(times),
    }


# In the order of the story.
PLATES = (
    Plate(
        "stairs", "One drop or a staircase",
        "Loss of every run. Dotted: the loss after the 0, 1, ..., 4 largest directions are "
        "learned, in closed form. Merged heads pass all of them in one drop; rank-one heads "
        "stop at them.",
        figures.stairs, ("merged", "separate"),
    ),
    Plate(
        "directions", "One direction per drop",
        "What is learned of each direction, as a share of its best entry; x0 has the largest "
        "eigenvalue. The first merged run, and a rank-one run with the most plateaus.",
        figures.directions, ("merged", "separate"),
    ),
    Plate(
        "matrices", "The prediction matrix on the way down",
        "M, the sum of value times key times query over heads, at every plateau of one run and at "
        "its end. One entry more per plateau: regression on one more principal component. Every "
        "panel has its own scale around zero.",
        figures.matrices, ("separate",),
    ),
    Plate(
        "heights", "Plateaus against the closed form",
        "Loss at every plateau found, by the number of components learned. For endless prompts the "
        "heights would be those of the grey line. 5000 fixed sequences have a trace and moments of "
        "their own, which moves their plateaus by up to a tenth.",
        figures.heights, ("separate", "sequences"),
    ),
    Plate(
        "times", "Aligned starts: when each direction is learned",
        "Shares learned in the runs whose heads start aligned, and dotted the times at which they "
        "are half learned in closed form. Left: a merged head on white directions, all at once. "
        "Right: rank-one heads, one each.",
        figures.times, ("aligned", "merged-aligned"),
    ),
    Plate(
        "controls", "Equal eigenvalues, large starts, fixed sequences",
        "Loss of every run; dotted the heights of its own task. Equal eigenvalues still give "
        "steps, for heads escape at different times, but no order of directions. From "
        "large starts the steps merge.",
        figures.controls, ("equal", "large", "sequences"),
    ),
    Plate(
        "ranks", "Eight directions, keys and queries of rank one to eight",
        "Loss of every run; dotted the heights in closed form. A head of higher rank learns "
        "as many directions once it has escaped: with rank four the plateau after four of them is "
        "left, with full rank one drop, as if merged.",
        figures.ranks, ("rank-1", "rank-8"),
    ),
)  # fmt: skip

STUDY = Study(
    name="staircase",
    question="Does linear attention learn to regress in context at once or direction by direction?",
    paper=laws.ZHANG,
    cost="1 CPU min; --quick 10 CPU s",
    needs="",
    configs={QUICK: Config(QUICK), DEFAULT: Config()},
    run=run,
)
