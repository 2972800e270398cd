"""How many items does a sum of outer products hold, and what changes that?

The associative memory laboratory (`workbench.zoo.memory`): linear attention as a Hebbian memory, as
in Qiao 2025 (arXiv 2508.08289).  Items are drawn, stored and read back; every error and every
capacity stands beside its closed form.  Nothing is trained.  Quick: one seed and fewer widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.studies import associative_memory_figures as figures
from workbench.studies.kept import kept, stacked
from workbench.studies.study import DEFAULT, QUICK, Content, Plate, Progress, Study, pictures
from workbench.zoo import claims
from workbench.zoo.memory import laws, measure, recipe
from workbench.zoo.memory.claims import CLAIMS

TABLES = "tables-by-seed"
NOTES = (
    "Capacity is nothing without its criterion. With the same memory and the same width, four "
    "criteria give from sqrt(d_k) to nearly d_k squared items: see the figure of capacities.",
    "The paper's first version names a capacity of order sqrt(d_k), a summary of a later one adds "
    "order d_k on average. Both are right: the first is guaranteed for keys of coherence "
    "1/sqrt(d_k), the second holds for random keys. The text of its proofs was not read here; "
    "constants and all formulas below the two orders are this laboratory's, checked against "
    "simulation.",
    "Random keys alone never show the root. Their largest error in a list grows with chance, not "
    "with the number of items times the coherence; the keys of the worst case are constructed.",
    "The largest-error criterion has no closed form here. Over the widths drawn its slope is above "
    "one, because at small widths a single bad pair of keys decides.",
    "The law of decoding is an approximation: comparisons are taken as independent and what other "
    "items add as normal. It was derived after a first form, which left out that two keys and two "
    "values overlap at once, had come out a quarter too low.",
    "Layers do not rescale what they return and have no residual stream; with either the numbers "
    "differ. The same keys in every layer are worse by far: errors then repeat in place of "
    "crossing.",
    "Marks are ours. Those on distances from a closed form leave room for the sampling error of "
    "the smallest lists; controls miss them by a factor of three or more.",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """`size` is quick or default."""

    size: str = DEFAULT

    def recipe(self) -> recipe.Size:
        return recipe.QUICK if self.size == QUICK else recipe.DEFAULT

    def to_json(self) -> dict[str, Any]:
        return {"size": self.size, "recipe": self.recipe().to_json()}

    def banner(self) -> str:
        if self.size != QUICK:
            return ""
        quick, whole = recipe.QUICK, recipe.DEFAULT
        return (
            f"Quick look: {len(quick.seeds)} seed in place of {len(whole.seeds)}, fewer lists and "
            "smaller widths."
        )


def run(config: Config, folder: Path, progress: Progress) -> Content:
    """Measure the seeds that are not measured yet, read the laws, draw the figures."""
    size = config.recipe()
    parts = []
    for i, seed in enumerate(size.seeds):
        progress(i, len(size.seeds), f"seed {seed}")
        parts.append(
            kept(folder / TABLES, str(seed), lambda seed=seed: measure.everything(size, seed))
        )
    progress(len(size.seeds), len(size.seeds), "measured")
    evidence: laws.Evidence = stacked(parts)
    return Content(
        findings=claims.findings(evidence, CLAIMS),
        pictures=pictures(PLATES, evidence, ()),
        tables=evidence,
        notes=NOTES,
        seeds=size.seeds,
        banner=config.banner(),
    )


# In the order of the story.
PLATES = (
    Plate(
        "interference", "What other items do to one",
        "Squared error of reading one item, in squared lengths of a value, by the load N / d_k. "
        "Dots are means over lists, one per seed and width; the line is (N − 1) / d_k. Orthogonal "
        "keys do not interfere.",
        figures.interference,
    ),
    Plate(
        "capacity", "Four capacities of the same memory",
        "Largest number of items by four criteria. Orange: no item may err by more than half its "
        "length, for the worst keys of coherence 1/√d_k. Blue: the mean squared error of random "
        "keys is below a quarter. Purple: no item of a random list errs by more than half, in 95 "
        "of 100 lists. Green: the nearest value is the right one for all, in 95 of 100 lists "
        "(d_v = d_k). Lines are closed forms, the green one an approximation.",
        figures.capacity,
    ),
    Plate(
        "rules", "Three rules on the same items",
        "Mean squared error over random items, width 64 (dotted line); thin lines are closed "
        "forms. The delta rule stores what the memory does not say yet; the pseudo-inverse is the "
        "best any matrix can do. Asked at wrong keys, the delta rule's corrections only do harm.",
        figures.rules,
    ),
    Plate(
        "ages", "Who pays: old items and new ones",
        "Error of an item by how many were stored after it. Hebb treats all alike, the delta rule "
        "has the last item right and forgets the first; lines are closed forms.",
        figures.ages,
    ),
    Plate(
        "depth", "Errors through layers",
        "Every layer stores what the one before returned, with fresh keys (blue) or with the same "
        "keys in every layer (red). The lines are (1 + (N − 1)/d_k)^L − 1, width 64.",
        figures.depth,
    ),
    Plate(
        "heads", "Redundant heads, and their floor",
        "Averaged heads, each with a projection of its own from 256 to 32 coordinates, 16 items. "
        "The error falls as 1/H down to (N − 1)/d_model (dotted), where the items themselves "
        "overlap; orthogonal items have no floor, copies of one head gain nothing.",
        figures.heads,
    ),
)  # fmt: skip

STUDY = Study(
    name="associative-memory",
    question="How many items does a sum of outer products hold, and what changes that?",
    paper=laws.QIAO,
    cost="70 CPU s; --quick 3 CPU s",
    needs="",
    configs={QUICK: Config(QUICK), DEFAULT: Config()},
    run=run,
)
