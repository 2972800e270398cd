"""When does an attention head turn dormant, and what does it then attend to?

The Bigram-Backcopy laboratory (`workbench.zoo.backcopy`) retrains the experiment of Guo et al. 2024
(arXiv 2410.13835) small enough for a CPU, with controls that must fail where it holds, and reads
its laws.  Default: 16 runs of one and three layers, two CPU minutes.  Quick: three short runs,
for a look; laws that need the others are not applicable.  Full: size and text of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.studies import active_dormant_figures as figures
from workbench.studies import active_dormant_panels as panels
from workbench.studies.study import DEFAULT, FULL, QUICK, Content, Plate, Progress, Study, pictures
from workbench.zoo import claims
from workbench.zoo.backcopy import laws, published
from workbench.zoo.backcopy.recipe import Recipe, full, small, steps_to

if TYPE_CHECKING:
    import xarray as xr


LABORATORY = "laboratory"
QUICK_STEPS = 200
_QUICK_RUNS = ("main-s0", "no-copy-s0", "no-attention-s0")
NOTES = (
    "The recipe was found by trying: rates, sizes and numbers of steps were chosen so that every "
    "seed passes, and the marks lie between the values and the controls seen then. The laws say "
    "that the effects are there under this recipe, not that they are there under any. At rate 1e-3 "
    "and d_model 64, 400 steps are too few for some seeds (module workbench.zoo.backcopy.recipe).",
    "The marks are for the synthetic chain of 64 states. On the characters of an English text one "
    "seed of two had its sink after 500 steps, and after 1000 the other still had not.",
    "Required are the laws of the paper itself. The eviction laws (Xiao et al. 2023) and those of "
    "the null sink (ours) are checked and reported, and do not fail the study.",
    "The eviction laws are read as growth of the excess risk relative to itself: the excess falls "
    "throughout training, and with it what an eviction can cost in nats. Only queries from the "
    "eighth on are counted.",
    "Drain is measured against the value's own maximum. Against the other symbols' values it would "
    "not tell softmax from ReLU: in ReLU runs <s> falls below the others as well, because the "
    "others' values grow.",
    "At this size the norm of the residual says only the sign of its slope, by optimiser. The "
    "height of the peak and its absence under ReLU attention, both in the paper, want full size.",
    "The theory's own laws, a slope of one half of the sink logit in ln t and a loss that falls as "
    "1/t, are exact for the reduced model and false for a network trained with Adam. They are "
    "tested apart: tests/zoo/test_backcopy_reduced.py.",
    "The published curve was read from the authors' own saved numbers. It is another size (d_model "
    "256, 256 positions, 512 texts per step) and another language (Tiny Shakespeare), and their "
    "mean weight on <s> counts queries 0 and 1. Compare shapes, not heights.",
)


@dataclass(frozen=True)
class Config:
    """`size` is quick, default or full; `text_file` a text whose characters replace the chain."""

    size: str = DEFAULT
    text_file: str = ""

    def recipes(self) -> tuple[Recipe, ...]:
        if self.size == FULL:
            if not self.text_file:
                raise WorkbenchError(
                    "the full size learns the characters of a text; give --text-file FILE "
                    "(the paper's is Tiny Shakespeare)."
                )
            return full(self.text_file)
        stacks = small(self.text_file)
        return (_shortened(stacks[0]),) if self.size == QUICK else stacks

    def to_json(self) -> dict[str, Any]:
        recipes = [recipe.to_json() for recipe in self.recipes()]
        return {"size": self.size, "laws": self.laws(), "recipes": recipes}

    def laws(self) -> list[str]:
        """Names of the laws whose runs and controls are trained."""
        trained = {setting.name for recipe in self.recipes() for setting in recipe.settings}
        return claims.readable(laws.CLAIMS, trained)

    def banner(self) -> str:
        if self.size != QUICK:
            return ""
        return (
            f"Quick look: one seed and {QUICK_STEPS} steps, {len(_QUICK_RUNS)} runs in place of 16 "
            "of up to 1000 steps. Laws that need the whole recipe are not applicable."
        )


def _shortened(stack: Recipe) -> Recipe:
    settings = tuple(setting for setting in stack.settings if setting.run in _QUICK_RUNS)
    logged = steps_to(QUICK_STEPS, 10, QUICK_STEPS, 50)
    return replace(stack, settings=settings, steps=QUICK_STEPS, logged=logged)


def run(config: Config, folder: Path, progress: Progress) -> Content:
    """Train what is not trained yet, read the laws, draw the figures."""
    from workbench.zoo.backcopy import training

    recipes = config.recipes()
    results = training.train(folder / LABORATORY, recipes, progress)
    runs = claims.by_setting(results.trajectories)
    return Content(
        findings=laws.check(results, config.laws()),
        pictures=pictures(PLATES, runs, runs),
        tables=tables(runs),
        notes=NOTES,
        seeds=sorted({setting.seed for recipe in recipes for setting in recipe.settings}),
        facts={"training": results.cost},
        banner=config.banner(),
    )


def tables(runs: figures.Runs) -> dict[str, pd.DataFrame]:
    """The curves as numbers, one row per run and step, and the published ones."""
    every = [one for group in runs.values() for one in group]
    return {
        "curves": pd.concat([_curves(one) for one in every], ignore_index=True),
        "published": published.curve(),
        "published_residual": published.residuals(),
    }


def _curves(one: xr.Dataset) -> pd.DataFrame:
    head = laws.head_of(one)
    columns = {name: array for name, array in head.data_vars.items() if array.dims == ("step",)}
    for role in head["role"].to_numpy():
        columns[f"value_norm_{role}"] = head["value_norm"].sel(role=role)
        columns[f"resid_norm_{role}"] = head["resid_norm"].sel(role=role, stream=1)
    for edit in head["edit"].to_numpy():
        for rows in ("on", "off"):
            name = f"edit_excess_{rows}"
            columns[f"{name}: {edit}"] = head[name].sel(edit=edit)
    label = {"run": figures.name_of(one), "setting": figures.setting_of(one)}
    place = {"layer": int(head["layer"]), "head": int(head["head"])}
    values = {str(name): array.to_numpy() for name, array in columns.items()}
    return pd.DataFrame({**label, **place, "step": one["step"].to_numpy(), **values})


# In the order of the story.
PLATES: tuple[Plate[figures.Runs], ...] = (
    Plate(
        "risks", "Two things are learned, one after the other",
        "Risk above the exact oracle on held-out texts, one line per seed. Diamonds mark the "
        "first logged step below the dotted thresholds.",
        figures.risks, ("main",),
    ),
    Plate(
        "sink", "The head begins to attend to <s> where it has nothing to copy",
        "Mean weight on <s> over queries from the second on, one line per seed.",
        figures.sink, ("main",),
    ),
    Plate(
        "sink-by-run", "Where every run ends",
        "Mean weight on <s> at the last step, off and on trigger, and what a null sink takes "
        "in the runs that have one. ReLU rows do not sum to one. The runs adamw and sgd have "
        "three layers; there the head with the largest sink is shown.",
        figures.sink_by_run, ("main",),
    ),
    Plate(
        "margin", "The score of <s> rises for all token types",
        "Score of <s> minus the mean score of the keys between it and the query, per token "
        "type at the query, triggers left out. Line: mean over types; band: 10–90 % of types.",
        figures.margin, ("main",),
    ),
    Plate(
        "values", "What <s> writes drains",
        "Norm of the value as the residual stream receives it, by role of the attended symbol.",
        figures.values, ("main", "no-copy"),
    ),
    Plate(
        "residual", "The residual of <s> grows under AdamW and shrinks under SGD",
        "Three-layer runs. The slope is fitted over the later half.",
        figures.residual, ("adamw", "sgd"),
    ),
    Plate(
        "interventions", "What breaks when a part is taken away",
        "Excess risk of the trained network with one part gone, as a multiple of that of the "
        "whole one; bars: geometric mean over seeds. Hover for nats and seeds.",
        figures.interventions, ("main",),
    ),
    Plate(
        "patterns", "The pattern on one text, while it is learned",
        "First seed. Rows are queries, columns keys; column 0 is <s>. Named rows hold a trigger: "
        "there the head looks one symbol back.",
        lambda runs: panels.patterns(runs["main"][0]), ("main",),
    ),
    Plate(
        "published", "Beside the published full-size curve",
        "Orange: published, not run here (one layer, d_model 256, 256 positions, Tiny "
        "Shakespeare; last panel three layers). Blue: this study's first seed. Unless "
        "it was run at full size, size and language differ: compare shapes, not heights. In the "
        "last panel AdamW is solid and SGD dotted. Step 0 is left out where steps are logarithmic.",
        panels.published_curve, ("main",),
    ),
)  # fmt: skip


STUDY = Study(
    name="active-dormant",
    question="When does an attention head turn dormant, and what does it then attend to?",
    paper=laws.GUO,
    cost="2 CPU min; --quick 15 CPU s; --full some 600 CPU hours (estimated)",
    needs="nothing; --full wants a text file (Tiny Shakespeare)",
    configs={QUICK: Config(QUICK), DEFAULT: Config(), FULL: Config(FULL)},
    run=run,
)
