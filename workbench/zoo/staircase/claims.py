"""The laws of the staircase: statistic, mark, control, and the law in words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workbench.zoo.claims import OURS, Claim, Values
from workbench.zoo.staircase import closed, laws
from workbench.zoo.staircase.laws import ZHANG, Run, Runs
from workbench.zoo.trajectory import Mark

Reader = Callable[[Runs], tuple[Values, Values]]
Statistic = Callable[[Run], float]
LOW_RANK, FULL_RANK = "rank-1", "rank-8"


def _of(runs: Runs, *settings: str) -> list[Run]:
    return [run for setting in settings for run in runs.get(setting, ())]


def _against(of: Statistic, settings: tuple[str, ...], control: str) -> Reader:
    """One statistic of runs against the same of the control's."""
    return lambda runs: (
        [of(run) for run in _of(runs, *settings)], [of(run) for run in _of(runs, control)]
    )  # fmt: skip


def _own(of: Statistic, settings: tuple[str, ...], nulls: Statistic) -> Reader:
    """One statistic of runs against another of the same runs."""
    return lambda runs: (
        [of(run) for run in _of(runs, *settings)], [nulls(run) for run in _of(runs, *settings)]
    )  # fmt: skip


def _overlaps(runs: Runs, setting: str) -> Values:
    """Those of the runs that have a plateau; `laws.count` tells of the others."""
    return [laws.overlap(run) for run in _of(runs, setting) if laws.plateaus(run)]


def _ends(runs: Runs) -> tuple[Values, Values]:
    """Excess of the runs that learned every direction in time, and of their last plateaus."""
    done = [run for run in _of(runs, "merged", "separate") if laws.finished(run)]
    return [laws.excess(run) for run in done], [
        laws.excess(run, laws.plateaus(run)[-1].place) for run in done if laws.plateaus(run)
    ]


def _ordered(runs: Runs) -> tuple[Values, Values]:
    """Order of every run; that of the control as a mean, for one in 24 is in order by chance."""
    return [laws.order(run) for run in _of(runs, "separate")], [
        float(np.mean([laws.order(run) for run in _of(runs, "equal")]))
    ]


CLAIMS: tuple[Claim[Runs], ...] = (
    Claim("merged: one abrupt drop", ZHANG, "plateaus between drops", Mark("<", 0.5),
          "separate keys and queries", "With key and query merged into one matrix the loss falls "
          "once: no plateau lies between the first and the last.",
          _against(laws.count, ("merged",), "separate"), ("merged", "separate")),
    Claim("separate: a staircase", ZHANG, "plateaus between drops", Mark(">", 1.5), "merged",
          "With separate key and query of rank one the loss falls in steps.",
          _against(laws.count, ("separate",), "merged"), ("merged", "separate"), whole=True),
    Claim("the plateaus are the closed form", ZHANG, "|loss / height - 1|, the worst plateau",
          Mark("<", 0.02), "heights for endless prompts", "Every plateau lies where the m largest "
          "eigenvalues put it, with the noise of a prompt of N examples.",
          _own(laws.height_error(closed.heights), ("separate",),
               laws.height_error(closed.endless_heights)), ("separate",)),
    Claim("each plateau is regression on m components", ZHANG, "cosine of M to it, the worst",
          Mark(">", 0.9), "equal eigenvalues", "At plateau m the network regresses in context on "
          "the first m principal components.",
          lambda runs: (_overlaps(runs, "separate"), _overlaps(runs, "equal")),
          ("separate", "equal")),
    Claim("directions come in order", ZHANG, "Kendall's tau, eigenvalue and time", Mark(">", 0.8),
          "equal eigenvalues (mean)", "Every direction is learned before those of smaller "
          "eigenvalue.", _ordered, ("separate", "equal")),
    Claim("the entries are the closed form", ZHANG, "|M_dd / entry - 1| at the end, the worst",
          Mark("<", 0.02), "the inverse covariance", "Each entry learned by half of the steps is "
          "lambda / (lambda^2 (1 + 1/N) + lambda trace / N), which shrinks the inverse covariance.",
          _own(laws.entry_error(closed.entries), ("merged", "separate"),
               laws.entry_error(closed.endless)), ("merged", "separate"), whole=True),
    Claim("both end at one solution", ZHANG, "loss over the best one, less 1", Mark("<", 0.01),
          "the last plateau", "Merged and separate reach the same loss; only the way differs.",
          _ends, ("merged", "separate"), whole=True),
    Claim("merged: the time of the drop", ZHANG, "|time / closed form - 1|", Mark("<", 0.05),
          "the time of rank-one heads", "On white directions an aligned start grows as a logistic "
          "function.", _own(laws.time_error(laws.merged_times), ("merged-aligned",),
                            laws.time_error(laws.rank_one_times)), ("merged-aligned",)),
    Claim("rank one: the times of the drops", ZHANG, "|time / closed form - 1|, the worst",
          Mark("<", 0.05), "the time of a merged head", "Aligned heads follow one scalar equation "
          "each, w' ~ w^2 (1 - w^3 / end).",
          _own(laws.time_error(laws.rank_one_times), ("aligned",),
               laws.time_error(laws.merged_times)), ("aligned",), whole=True),
    Claim("fixed sequences climb the same stairs", OURS, "|loss / height - 1|, the worst plateau",
          Mark("<", 0.13), "heights for endless prompts", "Trained on 5000 fixed sequences, full "
          "batch, the plateaus lie within a tenth of those of the population.",
          _own(laws.height_error(closed.heights), ("sequences",),
               laws.height_error(closed.endless_heights)), ("sequences",)),
    Claim("large starts blur the stairs", OURS, "plateaus between drops", Mark("<", 1.5),
          "small starts", "From a start of .5 the directions grow together.",
          _against(laws.count, ("large",), "separate"), ("large", "separate"), whole=True),
    Claim("full rank: one drop again", OURS, "plateaus between drops", Mark("<", 0.5), "rank one",
          "Eight directions, keys and queries of rank eight: no plateau is left, as if merged.",
          _against(laws.count, (FULL_RANK,), LOW_RANK), (FULL_RANK, LOW_RANK)),
)  # fmt: skip
