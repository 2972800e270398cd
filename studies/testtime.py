"""Which regression does a layer of attention do on the keys and values it has seen?

The test-time regression laboratory (`workbench.zoo.testtime`): softmax, linear attention, the mesa
layer and local linear attention as fits (Zuo et al. 2025, arXiv 2510.01450), and which patterns
tell queries apart and look near (Han et al. 2024, arXiv 2412.06590).  Closed forms and random
prompts; nothing is trained, so nothing is kept: a killed study begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.studies import testtime_figures as figures
from workbench.studies.study import DEFAULT, QUICK, Content, Plate, Progress, Study, pictures
from workbench.zoo import claims
from workbench.zoo.testtime import laws
from workbench.zoo.testtime.claims import CLAIMS

if TYPE_CHECKING:
    from workbench.zoo.testtime.laws import Evidence

NOTES = (
    "Errors are shares: squared error by squared target, so predicting zero has error 1. There is "
    "no noise on values: with noise a local fit pays for its variance, which is not measured here.",
    "Bandwidth, step and penalty of every estimator are chosen, per task and number of keys, on "
    "other prompts than those of the errors. Tasks and sizes are ours: of Zuo et al. only the "
    "abstract and reviews could be read, and their code is not published.",
    "Against softmax the gain of local linear attention on the drifting task is small: once "
    "segments lie apart both keep to the last one, and along the sequence they end alike. The "
    "required law compares it with the global fits.",
    "Softmax here has the Gaussian kernel; it is dot-product attention where keys have equal "
    "norms. The penalty of local linear attention is relative to the weight of the nearest key.",
    "Han et al. measure locality on trained vision transformers. Here fields are random and "
    "nothing is trained: it shows what the two patterns do with keys that resemble their "
    "neighbours, not what networks learn. These laws are reported, not required.",
    "Queries for ReLU features have a positive first coordinate; where all are negative, linear "
    "attention divides zero by zero.",
)


@dataclass(frozen=True)
class Config:
    """`size` is quick or default."""

    size: str = DEFAULT

    @property
    def seeds(self) -> tuple[int, ...]:
        return (0, 1) if self.size == QUICK else (0, 1, 2, 3)

    @property
    def count(self) -> int:
        """Prompts per seed, task and number of keys."""
        return 24 if self.size == QUICK else 64

    @property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of keys."""
        return laws.LENGTHS[:-1] if self.size == QUICK else laws.LENGTHS

    def to_json(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "laws": self.laws(),
            "seeds": self.seeds,
            "prompts": self.count,
            "lengths": self.lengths,
            "stream": laws.STREAM,
        }

    def laws(self) -> list[str]:
        """Names of the laws that are decided."""
        return claims.readable(CLAIMS, (), whole=self.size != QUICK)

    def banner(self) -> str:
        if self.size != QUICK:
            return ""
        return (
            f"Quick look: {len(self.seeds)} x {self.count} prompts of at most {self.lengths[-1]} "
            "keys. The law about how errors fall is not applicable."
        )


def run(config: Config, folder: Path, progress: Progress) -> Content:  # noqa: ARG001 the frame's
    """Compute the evidence, read the laws, draw the figures."""
    progress(0, 1, f"{len(config.seeds)} x {config.count} prompts per task and number of keys")
    evidence = laws.look(config.seeds, config.count, config.lengths)
    progress(1, 1, "computed")
    return Content(
        findings=claims.findings(evidence, CLAIMS, config.laws()),
        pictures=pictures(PLATES, evidence, ()),
        tables=tables(evidence),
        notes=NOTES,
        seeds=config.seeds,
        banner=config.banner(),
    )


def tables(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """The numbers behind the figures."""
    errors = [
        data.to_dataframe().reset_index().assign(task=task)
        for task, data in evidence.errors.items()
    ]
    return {
        "errors": pd.concat(errors, ignore_index=True),
        "streams": pd.concat(
            [
                data.to_dataframe().reset_index().assign(task=task)
                for task, data in evidence.streams.items()
            ],
            ignore_index=True,
        ),
        "limits": evidence.limits,
        "pairs": evidence.pairs,
        "local": evidence.local,
    }


PLATES = (
    Plate(
        "fits", "Four fits of the same keys and values, one coordinate",
        "Dots are keys with their values, curves what each kind of attention answers at every "
        "query. Softmax is a local constant and flattens at the edges; local linear attention goes "
        "on with the slope it finds; the mesa layer is one line through zero.",
        figures.fits,
    ),
    Plate(
        "errors", "Error against the number of keys",
        "Every estimator with the setting that is best on other prompts; lines are means, points "
        "single seeds. Errors below 10⁻⁶ are exact fits and drawn there. In the last two panels "
        "the map changes along the sequence: keys show their segment in drift, in unshifted they "
        "do not and no pattern without positions can follow.",
        figures.errors,
    ),
    Plate(
        "stream", "Read along a sequence whose map changes",
        "Causal patterns predict each value before they see it; dotted lines are the changes. "
        "Whatever is local recovers when the keys of the new segment have come; the mesa layer "
        "goes on mixing all maps it has seen. Mean over seeds and five positions.",
        figures.stream,
    ),
    Plate(
        "pairs", "Which patterns tell two queries apart",
        "L1 distance of the two rows of weights, mean over queries and seeds; 0 means that two "
        "different queries look at the same keys in the same way. The twin of a query has ELU "
        "features twice as large. The last column changes a coordinate below zero.",
        figures.pairs,
    ),
    Plate(
        "local", "Looking near on smooth fields",
        "Left: share of the weights on the 3 × 3 around a token, and the same where tokens are "
        "shuffled; dotted: uniform attention. Right: error of recovering the field, with the "
        "neighbourhood hidden and with as many other tokens hidden.",
        figures.local,
    ),
)  # fmt: skip

STUDY = Study(
    name="test-time-regression",
    question="Which regression does a layer of attention do on the keys and values it has seen?",
    paper=laws.ZUO,
    cost="20 CPU s; --quick 5 CPU s",
    needs="",
    configs={QUICK: Config(QUICK), DEFAULT: Config()},
    run=run,
)
