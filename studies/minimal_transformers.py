"""How much of a transformer does classification need?

The minimal transformer laboratory (`workbench.zoo.minimal`) repeats Bermeitinger et al. 2024 (arXiv
2410.13732) on scikit-learn's digits: no MLP, query and key collapsed into one matrix, no value and
output matrices, a symmetric similarity.  Because plain digits are nearly linear, the laws are read
from digits whose contrast is reversed at random, which no linear classifier reads; the control is
a network whose patches attend to all alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.app.figures import base
from workbench.studies.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LOG_STEPS,
    ORANGE,
    PURPLE,
    STEP,
    line,
    name_of,
)
from workbench.studies.study import DEFAULT, QUICK, Content, Plate, Progress, Study, pictures

if TYPE_CHECKING:
    from workbench.zoo.minimal.claims import Runs
    from workbench.zoo.minimal.recipe import Recipe

LABORATORY = "laboratory"
NOTES = (
    "The paper classifies MNIST and CIFAR-10 with 6 and 12 layers; here it is 1297 digits of 8 x 8 "
    "pixels and four layers of width 32, one head. Its accuracies are not ours to compare with.",
    "On plain digits logistic regression reads about 96 %: a variant that reads as many has not "
    "shown that its attention does anything. With the contrast of every image reversed at random "
    "the mean image of every class is zero; logistic regression then reads less than a half.",
    "The variants are not equal. To leave out the MLP costs little here, and to collapse query "
    "and key nothing; to leave out value and output costs some three points, and a symmetric "
    "similarity some five more: at this size it is hardly better than the control. The paper, with "
    "more layers and data, loses less; that law is looked at and not required.",
    "Query and key of one head collapse without loss as functions; as parameters to train they "
    "are two different things, so that the trained networks differ.",
    "LayerNorm stays in all variants, without parameters. It is a non-linearity too: it is why the "
    "control without similarity reads reversed images better than logistic regression does.",
    "Rates were found by trying: networks without value and output matrices learn slowly at the "
    "rate that suits the others, and those diverge at the higher one. The marks were set between "
    "the values and the controls seen then.",
)
_WORDS = {
    "whole": ("whole", INK), "no-mlp": ("no MLP", BLUE),
    "collapsed": ("and query with key collapsed", PURPLE),
    "bare": ("and no value and output", GREEN), "symmetric": ("and symmetric", ORANGE),
    "uniform": ("control: attends to all alike, no MLP", GREY),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """`size` is quick or default."""

    size: str = DEFAULT

    def recipes(self) -> tuple[Recipe, ...]:
        from workbench.zoo.minimal import recipe

        return recipe.quick() if self.size == QUICK else recipe.small()

    def to_json(self) -> dict[str, Any]:
        recipes = [stack.to_json() for stack in self.recipes()]
        return {"size": self.size, "laws": self.laws(), "recipes": recipes}

    def laws(self) -> list[str]:
        """Names of the laws whose runs are trained."""
        from workbench.zoo.claims import readable
        from workbench.zoo.minimal.claims import CLAIMS

        trained = {setting.name for stack in self.recipes() for setting in stack.settings}
        return readable(CLAIMS, trained, whole=self.size != QUICK)

    def banner(self) -> str:
        return "Quick look: three variants, one seed, 600 steps." if self.size == QUICK else ""


def run(config: Config, folder: Path, progress: Progress) -> Content:
    """Train what is not trained yet, read the laws, draw the figures."""
    from workbench.zoo import claims
    from workbench.zoo.minimal import training
    from workbench.zoo.minimal.claims import AT_ITS_SIZE, CLAIMS

    recipes = config.recipes()
    results = training.train(folder / LABORATORY, recipes, progress)
    runs = claims.by_setting(results.trajectories)
    return Content(
        findings=claims.findings(runs, CLAIMS, config.laws(), (AT_ITS_SIZE,)),
        pictures=pictures(PLATES, runs, runs),
        tables={"runs": final(runs), "linear": references()},
        notes=NOTES,
        seeds=sorted({setting.seed for stack in recipes for setting in stack.settings}),
        facts={"training": results.cost},
        banner=config.banner(),
    )


def final(runs: Runs) -> pd.DataFrame:
    """One row per run: parameters of the layers and of all, accuracy, similarity at the end."""
    from workbench.zoo.minimal import claims, model
    from workbench.zoo.minimal.recipe import LAYERS, WIDTH

    rows = []
    for setting, group in runs.items():
        variant, _, kind = setting.rpartition("-")
        size = model.size(variant, WIDTH, LAYERS)
        for one in group:
            last = one.isel(step=-1)
            rows.append(
                {
                    "run": name_of(one), "variant": variant, "images": kind,
                    "parameters_layers": size["layers"], "parameters": size["all"],
                    "accuracy": float(last["accuracy"]), "loss": float(last["loss"]),
                    "asymmetry": float(last["asymmetry"].mean()),
                    "unlike_itself": claims.unlike_itself(one),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def references() -> pd.DataFrame:
    """What classifiers that know no patches reach on the same images: one linear, one not."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    from workbench.zoo.minimal import task
    from workbench.zoo.minimal.training import CONTRAST_SEED, TEST_SEED

    learned, held_out = task.digits()
    rows = []
    for kind in (task.PLAIN, task.REVERSED):
        train, test = (
            task.seen_with(images, task.signs(kind, len(images.labels), [seed]))
            for images, seed in ((learned, CONTRAST_SEED), (held_out, TEST_SEED))
        )
        for name, model in (
            ("logistic regression", LogisticRegression(max_iter=500)),
            ("support vectors, radial kernel", SVC(gamma=1 / train.flat.shape[1])),
        ):
            score = model.fit(train.flat, train.labels).score(test.flat, test.labels)
            rows.append({"images": kind, "classifier": name, "accuracy": score})
    return pd.DataFrame(rows)


def ends(runs: Runs) -> go.Figure:
    """Accuracy of every run by the parameters of its layers."""
    figure = base("paper", height=420)
    table = final(runs)
    for kind, symbol in (("reversed", "circle"), ("plain", "circle-open")):
        for variant, (words, colour) in _WORDS.items():
            some = table[(table["images"] == kind) & (table["variant"] == variant)]
            figure.add_trace(
                go.Scatter(
                    x=some["parameters_layers"], y=some["accuracy"], mode="markers",
                    name=f"{words}, {kind}", customdata=some["run"],
                    marker={"color": colour, "size": 10, "symbol": symbol,
                            "line": {"width": 1.6, "color": colour}},
                    hovertemplate="<b>%{customdata}</b><br>%{x:,} parameters in the layers<br>"
                    "accuracy %{y:.3f}<extra></extra>",
                )
            )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=130)
    figure.update_xaxes(
        title_text="parameters of the layers (log scale)", type="log", tickformat=",",
        tickvals=[1000, 2000, 5000, 10_000, 20_000, 50_000],
    )  # fmt: skip
    figure.update_yaxes(title_text="accuracy, held-out images (share)")
    return figure


def courses(runs: Runs) -> go.Figure:
    """Accuracy on reversed images over training, every run."""
    figure = base("paper", height=420)
    for variant, (words, colour) in _WORDS.items():
        for seed, one in enumerate(runs.get(f"{variant}-reversed", ())):
            shown = one.sel(step=one["step"] > 0)
            figure.add_trace(
                line(shown["step"].to_numpy(), shown["accuracy"].to_numpy(), words, colour,
                     legend=seed == 0, hover=name_of(one))
            )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=90)
    figure.update_xaxes(title_text=STEP, **LOG_STEPS)
    figure.update_yaxes(title_text="accuracy, reversed images (share)", range=[0, 1.02])
    return figure


def unlike(runs: Runs) -> go.Figure:
    """Share of patches unlike themselves, by layer, at the end."""
    figure = base("paper", height=320)
    for variant, (words, colour) in _WORDS.items():
        for seed, one in enumerate(runs.get(f"{variant}-reversed", ())):
            share = one["unlike_itself"].isel(step=-1, head=0).to_numpy()
            if np.isfinite(share).all():
                layers = one["layer"].to_numpy()
                figure.add_trace(
                    line(layers, share, words, colour, legend=seed == 0, hover=name_of(one))
                )
    figure.update_layout(showlegend=True, margin_t=80)
    figure.update_xaxes(title_text="layer", dtick=1)
    figure.update_yaxes(title_text="negative own scores (share)", range=[-0.03, 1.03])
    return figure


# In the order of the story.
PLATES: tuple[Plate[Runs], ...] = (
    Plate(
        "ends", "What every part is worth",
        "One point per run at its last step. Filled: contrast reversed at random, which logistic "
        "regression cannot read (table linear); open: plain digits. The paper's claim is that the "
        "points lie level; here that is so until value and output are left out.",
        ends,
    ),
    Plate(
        "courses", "While they learn",
        "Reversed images, one line per seed. The grey control has no similarity to learn with.",
        courses,
    ),
    Plate(
        "unlike", "Patches that are unlike themselves",
        "Share of queries whose score for their own key is negative, by layer, at the last step. "
        "With a symmetric similarity, a scalar product, there are none.", unlike,
    ),
)  # fmt: skip

STUDY = Study(
    name="minimal-transformers",
    question="How much of a transformer does classification need?",
    paper="Bermeitinger et al. 2024, arXiv 2410.13732",
    cost="3 CPU min; --quick half a minute",
    needs="",
    configs={QUICK: Config(QUICK), DEFAULT: Config()},
    run=run,
)
