"""What is read from a run of the staircase: its drops and plateaus, times and distances.

Drops are the peaks of the speed -d loss / d log(step) that stand out by a tenth of the highest; a
plateau is the slowest place between two drops where the speed falls below 2 % of the highest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import xarray as xr
from scipy.signal import find_peaks
from scipy.stats import kendalltau

from workbench.zoo.staircase import closed
from workbench.zoo.staircase.task import Task

ZHANG = "Zhang et al. 2025, arXiv 2501.16265"
PROMINENCE, SLOW = 0.1, 0.02
LEARNED = 0.5  # share of its entry at which a direction counts as learned

Run = xr.Dataset
Runs = Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class Plateau:
    """Where a run stays: logged `place`, its `step`, the `loss`, and the number of `components`
    whose closed form is nearest."""

    place: int
    step: int
    loss: float
    components: int


def task_of(run: Run) -> Task:
    """The task a run was trained on."""
    values = tuple(run["eigenvalue"].to_numpy().tolist())
    return Task(values, int(run["examples"]))


def speed(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, loss, and how fast the loss falls, in squared labels per e-fold of steps."""
    part = run.sel(step=run["step"] > 0)
    steps, loss = part["step"].to_numpy(), part["loss"].to_numpy().astype(float)
    return steps, loss, -np.gradient(loss, np.log(steps))


def drops(run: Run) -> list[int]:
    """Places of the drops among the logged steps after step 0."""
    _, _, fall = speed(run)
    return find_peaks(fall, prominence=PROMINENCE * fall.max())[0].tolist()


def plateaus(run: Run) -> list[Plateau]:
    """The plateaus between the drops, in order."""
    steps, loss, fall = speed(run)
    peaks = drops(run)
    heights = closed.heights(task_of(run))
    found = []
    for a, b in pairwise(peaks):
        place = a + int(np.argmin(fall[a:b]))
        if fall[place] < SLOW * fall.max():
            near = int(np.argmin(np.abs(heights - loss[place])))
            # Before anything is learned, drops are noise and a plateau between them is none.
            if near > 0:
                found.append(Plateau(place + 1, int(steps[place]), float(loss[place]), near))
    return found


def count(run: Run) -> float:
    """Number of plateaus on the way."""
    return float(len(plateaus(run)))


def height_error(heights: Callable[[Task], np.ndarray]) -> Callable[[Run], float]:
    """Largest relative distance of a plateau of a run to the nearest of these heights."""

    def read(run: Run) -> float:
        wanted = heights(task_of(run))
        # Endless prompts leave nothing after the last direction: no height to be near to.
        wanted = wanted[wanted > 1e-9]
        return max(
            (float(np.abs(p.loss / wanted - 1.0).min()) for p in plateaus(run)), default=np.nan
        )

    return read


def entry_error(entries: Callable[[Task], np.ndarray]) -> Callable[[Run], float]:
    """Largest relative distance of the diagonal of M at the end to these entries, over directions
    that were learned by half of the steps; NaN where none was."""

    def read(run: Run) -> float:
        task = task_of(run)
        found = run["share"].isel(step=-1).to_numpy() * closed.entries(task)
        settled = times(run) < float(run["step"].max()) / 2
        return max(np.abs(found / entries(task) - 1.0)[settled].tolist(), default=np.nan)

    return read


def times(run: Run) -> np.ndarray:
    """Step at which each direction is half learned, between logged steps; NaN if it never is."""
    steps = run["step"].to_numpy().astype(float)
    found = np.full(run.sizes["direction"], np.nan)
    for i, share in enumerate(run["share"].transpose("direction", "step").to_numpy()):
        above = np.flatnonzero(share > LEARNED)
        if len(above) and above[0] > 0:
            b = above[0]
            part = (LEARNED - share[b - 1]) / (share[b] - share[b - 1])
            found[i] = steps[b - 1] + part * (steps[b] - steps[b - 1])
    return found


def finished(run: Run) -> bool:
    """Whether every direction was learned by 90 % of the steps; the last one then has settled."""
    return bool((times(run) < 0.9 * float(run["step"].max())).all())


def order(run: Run) -> float:
    """Kendall's tau between the numbers of the directions and the times; those never learned come
    last together."""
    found = np.nan_to_num(times(run), nan=2.0 * float(run["step"].max()))
    return float(np.asarray(kendalltau(np.arange(len(found)), found))[0])


def overlap(run: Run) -> float:
    """Smallest cosine, over the plateaus, of M to the regression on as many components."""
    task = task_of(run)

    def cosine(p: Plateau) -> float:
        m = run["m"].isel(step=p.place).to_numpy().astype(float)
        wanted = closed.components(task, p.components)
        return float((m * wanted).sum() / np.linalg.norm(m) / np.linalg.norm(wanted))

    return min(map(cosine, plateaus(run)), default=np.nan)


def excess(run: Run, place: int = -1) -> float:
    """Loss above that of the best prediction matrix, as a share of that, at a logged place."""
    return float(run["loss"].isel(step=place)) / closed.heights(task_of(run))[-1] - 1.0


def rank_one_times(run: Run) -> np.ndarray:
    """Steps at which aligned rank-one heads are half grown, in closed form, [direction]."""
    task, begun = task_of(run), float(run["initial"])
    found = [closed.rank_one_time(task, d, begun, LEARNED) for d in range(task.d)]
    return np.array(found) / float(run["rate"])


def merged_times(run: Run) -> np.ndarray:
    """The same for an aligned merged head on white directions, [direction]."""
    task = task_of(run)
    found = closed.merged_time(task, float(run["initial"]), LEARNED) / float(run["rate"])
    return np.full(task.d, found)


def time_error(expected: Callable[[Run], np.ndarray]) -> Callable[[Run], float]:
    """Largest relative distance of the times of a run to the expected ones."""
    return lambda run: float(np.abs(times(run) / expected(run) - 1.0).max())
