"""The laboratory as it comes with the workbench: how its folder is made.

`workbench zoo train icl-regression` makes the folder again, byte for byte on the same processor
and the same version of torch, except for its dates and seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.zoo.regression import card, recipe
from workbench.zoo.trajectory import Results

if TYPE_CHECKING:
    from workbench.zoo.train import Progress

# The run of the zoo's plain name and the first in the viewer: two heads that leave the plateau.
DEFAULT_RUN = "h2-s0"


def make(folder: Path | str, progress: Progress | None = None) -> Results:
    """Train every run of `recipe.small` into `folder` and write the card with its laws."""
    from workbench.zoo.regression import training

    results = training.train(folder, recipe.small(), progress)
    (results.path / "CARD.md").write_text(card.write(results), encoding="utf-8")
    return results


def open_run(results: Results, run: str = "") -> tuple[Any, Any]:
    """Always raises `WorkbenchError`: these networks read points and labels, not text."""
    name = f"zoo:{results.path.name}" + (f"/{run}" if run else "")
    raise WorkbenchError(
        f"{name} is no language model: its networks read labelled points, not tokens; look at "
        f"them under /lab/{results.path.name} of workbench app, or read the weights with "
        f"zoo.laboratory({results.path.name!r}).weights(STACK)."
    )
