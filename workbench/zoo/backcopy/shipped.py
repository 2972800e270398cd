"""The laboratory as it comes with the workbench: how its folder is made, and its runs as models.

`workbench zoo train bigram-backcopy` makes the folder again, byte for byte on the same processor
and the same version of torch, except for its dates and seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.zoo.backcopy import card, recipe
from workbench.zoo.trajectory import Results

if TYPE_CHECKING:
    from workbench.zoo.train import Progress

# The run of the zoo's plain name: one layer, one head, and of its three seeds the largest sink.
DEFAULT_RUN = "main-s0"


def make(folder: Path | str, progress: Progress | None = None) -> Results:
    """Train every run of `recipe.small` into `folder` and write the card with its laws."""
    from workbench.zoo.backcopy import training

    results = training.train(folder, recipe.small(), progress)
    (results.path / "CARD.md").write_text(card.write(results), encoding="utf-8")
    return results


def recipe_of(results: Results, run: str) -> recipe.Recipe:
    """The recipe of the stack in which `run` was trained; refuses a recipe that has changed."""
    for stack in recipe.small():
        if run in results.about["runs"].get(stack.name, ()):
            if results.about["settings"][stack.name] != _as_stored(stack):
                raise WorkbenchError(
                    f"{results.path} was trained by another recipe than recipe.small(); open its "
                    "runs with export.gpt2 and the recipe that made them."
                )
            return stack
    listed = ", ".join(label for stack in results.about["runs"].values() for label in stack)
    raise WorkbenchError(f"there is no run {run!r} in {results.path.name}; it has {listed}.")


def open_run(results: Results, run: str = "") -> tuple[Any, Any]:
    """Network (GPT-2, on the CPU) and tokenizer of one run; without a name, of `DEFAULT_RUN`.

    Raises `WorkbenchError` for an unknown run and for one that is no GPT-2 (ReLU attention, a null
    sink).
    """
    from workbench.zoo.backcopy import export

    run = run or DEFAULT_RUN
    stack = recipe_of(results, run)
    net = export.gpt2(stack, results.weights(stack.name), run)
    return net, export.tokenizer(stack.task())


def _as_stored(stack: recipe.Recipe) -> Any:
    """A recipe's JSON form as it is read back: tuples have become lists."""
    return json.loads(json.dumps(stack.to_json()))
