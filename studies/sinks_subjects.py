"""What the study of sinks is run on: models with their texts, and the same texts changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import util
from typing import Any

import numpy as np

from workbench.commands.demo_runs import MINILM, MINILM_NAME, minilm
from workbench.commands.opening import open_model
from workbench.errors import WorkbenchError
from workbench.models import Model
from workbench.prompts import Prompt, demo_paragraphs, read_prompts

# Texts without names of their own are one domain.
ONE_DOMAIN = "all"
ZOO, LABORATORY = "mix-3l", "bigram-backcopy"


@dataclass(frozen=True)
class Subject:
    """A model and its texts; `open` gives both, and is called once."""

    name: str
    open: Callable[[], tuple[Model, list[Prompt]]]


def subjects(model: str, prompts: str, texts: int) -> list[Subject]:
    """One subject for a named model, else those that are here; at most `texts` prompts each."""
    if model:
        return [Subject(_short(model), lambda: _named(model, prompts, texts))]
    if prompts:
        raise WorkbenchError("--prompts belongs to a model; name it with --model.")
    found = [
        Subject(ZOO, lambda: (open_model(f"zoo:{ZOO}"), _of_the_zoo(texts))),
        Subject(LABORATORY, lambda: (open_model(f"zoo:{LABORATORY}"), _of_the_laboratory(texts))),
    ]
    if util.find_spec(MINILM) is not None:
        found.insert(0, Subject(MINILM_NAME, lambda: (minilm(), demo_paragraphs()[:texts])))
    return found


def _short(model: str) -> str:
    return model.removeprefix("zoo:").rstrip("/").rpartition("/")[2] or model


def _named(name: str, prompts: str, texts: int) -> tuple[Model, list[Prompt]]:
    model = open_model(name)
    if prompts:
        return model, read_prompts(prompts)
    if name == f"zoo:{ZOO}":
        return model, _of_the_zoo(texts)
    if name.startswith(f"zoo:{LABORATORY}"):
        return model, _of_the_laboratory(texts)
    if model.tokenizer is None:
        raise WorkbenchError(f"{name} has no tokenizer; give --prompts FILE with token_ids.")
    return model, demo_paragraphs()[:texts]


def _of_the_zoo(texts: int) -> list[Prompt]:
    """Texts of three kinds that the zoo model was trained on; their kind is their domain."""
    from workbench.zoo import tasks

    rng = np.random.default_rng(0)
    kinds = {"needle": tasks.needle, "chain": tasks.markov, "repeat": tasks.repeat}
    return [
        Prompt(token_ids=tuple(int(i) for i in row), name=f"{kind}-{i}")
        for kind, make in kinds.items()
        for i, row in enumerate(make(rng, -(-texts // len(kinds)), 96).ids)
    ]


def _of_the_laboratory(texts: int) -> list[Prompt]:
    """Fresh texts of the laboratory's language, as long as its positions reach."""
    from workbench.zoo.backcopy import recipe

    task = recipe.small()[0].task()
    uniforms = np.random.default_rng(0).random((texts, task.length))
    ids = task.texts(uniforms, np.ones(texts, dtype=bool))[:, :-1]
    return [
        Prompt(token_ids=tuple(int(i) for i in row), name=f"backcopy-{number}")
        for number, row in enumerate(ids)
    ]


def domain_of(prompt: Prompt) -> str:
    """The domain a prompt's name says: what stands before the number at its end.

    >>> domain_of(Prompt("x", name="wiki-3")), domain_of(Prompt("x"))
    ('wiki', 'all')
    """
    stem, dash, number = prompt.name.rpartition("-")
    return stem if dash and number.isdecimal() else prompt.name or ONE_DOMAIN


def as_ids(model: Model, prompts: list[Prompt]) -> list[Prompt]:
    """The same prompts as token ids, so that they can be cut and changed."""
    return [
        Prompt(token_ids=tuple(int(i) for i in encoded.ids), name=prompt.name)
        for encoded, prompt in zip(model.encode(prompts), prompts, strict=True)
    ]


def ends(model: Model, prompt: Prompt) -> tuple[bool, bool]:
    """Whether the first and the last token of a prompt of ids are special ones."""
    ids = list(prompt.token_ids or ())
    return ids[0] in model.special_ids, len(ids) > 1 and ids[-1] in model.special_ids


def without(prompt: Prompt, *, first: bool = False, last: bool = False) -> Prompt:
    """A prompt of ids without its first or last token."""
    ids = prompt.token_ids or ()
    return replace(prompt, token_ids=ids[int(first) : len(ids) - int(last)])


def cut(prompt: Prompt, length: int, keep_last: bool) -> Prompt:
    """The first `length` tokens; with `keep_last` the last of them is the prompt's own last one."""
    ids = list(prompt.token_ids or ())
    kept = [*ids[: length - 1], ids[-1]] if keep_last else ids[:length]
    return replace(prompt, token_ids=tuple(kept))


def settings(model: Model) -> dict[str, Any]:
    """What is known of a model, for the report."""
    return {
        "family": model.spec.family,
        "layers": model.spec.n_layers(),
        "heads": model.spec.n_heads(),
        "causal": all(site.causal for site in model.spec.of()),
        "learned sink": any(site.sink_logit for site in model.spec.of()),
    }
