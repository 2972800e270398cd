"""The laboratory as it comes with the workbench: how its folder is made, and its runs as models.

`workbench zoo train induction` makes the folder again, byte for byte on the same processor and the
same version of torch, except for its dates and seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.zoo.induction import card, recipe
from workbench.zoo.trajectory import Results

if TYPE_CHECKING:
    from workbench.zoo.train import Progress

# The run of the zoo's plain name.
DEFAULT_RUN = "two-layers-s0"


def make(folder: Path | str, progress: Progress | None = None) -> Results:
    """Train every run of `recipe.shipped` into `folder` and write its card."""
    from workbench.zoo.induction import training

    results = training.train(folder, recipe.shipped(), progress)
    (results.path / "CARD.md").write_text(card.write(results), encoding="utf-8")
    return results


def open_run(results: Results, run: str = "", step: int | None = None) -> tuple[Any, Any]:
    """Network (GPT-2, on the CPU) and tokenizer of one run, at its end or after `step` steps.

    Without a name, of `DEFAULT_RUN`.  Raises `WorkbenchError` for an unknown run or step.
    """
    from workbench.zoo.induction import export

    run = run or DEFAULT_RUN
    name = results.stack_of(run)
    stack = next((one for one in recipe.shipped() if one.name == name), None)
    if stack is None or results.about["settings"][name] != json.loads(json.dumps(stack.to_json())):
        raise WorkbenchError(
            f"{results.path} was trained by another recipe than recipe.shipped(); open its runs "
            "with export.gpt2 and the recipe that made them."
        )
    net = export.gpt2(stack, results.weights(name, step), run)
    return net, export.tokenizer(stack.language)
