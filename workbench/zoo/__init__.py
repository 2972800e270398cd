"""Model zoo: small models trained here whose mechanism is known, shipped with recipe and card.

A member is a model, `zoo:NAME`, or a laboratory: a whole set of training runs with what was logged
while they learned (`workbench.zoo.trajectory`), each run a model too, `zoo:NAME/RUN`.  Some keep
the weights of steps in between as well: revisions `step200` of that model.

Nothing is imported but the standard library, so that listing the zoo costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.zoo.trajectory import Results

__all__ = [
    "card",
    "code_of",
    "laboratories",
    "laboratory",
    "names",
    "open_run",
    "path",
    "recipes",
    "revisions",
]

_WEIGHTS = Path(__file__).resolve().parent / "weights"
# A folder under it is a model when it holds the first file, a laboratory when it holds the second.
_MODEL, _LABORATORY = "config.json", "laboratory.json"
# The code of each laboratory by its name.  A package may have: `shipped` makes it and opens its
# runs, `published` has what others measured, `fates` says where its runs ended.
_CODE = {
    "bigram-backcopy": "workbench.zoo.backcopy",
    "icl-regression": "workbench.zoo.regression",
    "induction": "workbench.zoo.induction",
}


def names() -> tuple[str, ...]:
    """Names of the shipped models, sorted; each is loaded as ``zoo:<name>``."""
    return _holding(_MODEL)


def laboratories() -> tuple[str, ...]:
    """Names of the shipped laboratories, sorted."""
    return _holding(_LABORATORY)


def _holding(file: str) -> tuple[str, ...]:
    if not _WEIGHTS.is_dir():
        return ()
    return tuple(sorted(p.name for p in _WEIGHTS.iterdir() if (p / file).is_file()))


def path(name: str) -> Path:
    """Directory of one shipped model or laboratory, with its weights, recipe and card."""
    known = (*names(), *laboratories())
    if name not in known:
        from workbench.errors import WorkbenchError

        listed = ", ".join(known) or "none"
        raise WorkbenchError(f"there is no model {name!r} in the zoo; known names: {listed}.")
    return _WEIGHTS / name


def card(name: str) -> str:
    """Card of one member (Markdown): what it is, how it was made, what it shows."""
    return (path(name) / "CARD.md").read_text(encoding="utf-8")


def laboratory(name: str) -> Results:
    """What a shipped laboratory logged and its weights, without training anything."""
    from workbench.zoo.trajectory import Results

    if name not in laboratories():
        from workbench.errors import WorkbenchError

        listed = ", ".join(laboratories()) or "none"
        raise WorkbenchError(f"there is no laboratory {name!r} in the zoo; known names: {listed}.")
    return Results(path(name))


def code_of(name: str, module: str) -> Any:
    """A module of a laboratory's code, None where it has none or was made elsewhere."""
    full = f"{_CODE[name]}.{module}" if name in _CODE else ""
    return import_module(full) if full and find_spec(full) else None


def recipes() -> tuple[str, ...]:
    """Names of the models and laboratories that can be trained, shipped or not, sorted."""
    from workbench.zoo.train import RECIPES

    made = (name for name in _CODE if code_of(name, "shipped") is not None)
    return tuple(sorted((*RECIPES, *made)))


def open_run(name: str, revision: str | None = None) -> tuple[Any, Any]:
    """Network and tokenizer of `LABORATORY/RUN`, or of `LABORATORY`: the run its card names.

    `revision` is one of `revisions`: the network after that many steps.  Raises `WorkbenchError`
    for an unknown run or revision.
    """
    results, shipped, run = _run(name)
    if revision is None or revision == revisions(name)[-1]:
        return shipped.open_run(results, run)
    if revision not in revisions(name):
        from workbench.errors import WorkbenchError

        raise WorkbenchError(
            f"there is no revision {revision!r} of zoo:{name}; it has {', '.join(revisions(name))}."
        )
    return shipped.open_run(results, run, _step(revision))


def revisions(name: str) -> tuple[str, ...]:
    """Revisions of `LABORATORY/RUN`: `step0`, `step200`, ..., the last one the final weights.

    A laboratory that keeps no weights in between has only the last.
    """
    results, _, run = _run(name)
    return tuple(f"step{step}" for step in results.steps(results.stack_of(run)))


def _run(name: str) -> tuple[Results, Any, str]:
    """Laboratory, the module that opens its runs, and the run's label."""
    laboratory_name, slash, run = name.partition("/")
    results, shipped = laboratory(laboratory_name), code_of(laboratory_name, "shipped")
    label = run if slash else shipped.DEFAULT_RUN
    results.stack_of(label)
    return results, shipped, label


def _step(revision: str) -> int:
    return int(revision.removeprefix("step"))
