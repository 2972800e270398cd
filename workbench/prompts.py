"""Inputs of a run as values: text, chat, token ids or images, with named segments.

A `Prompt` is what a person writes; tokenising happens in the model adapter, which alone knows the
tokenizer.  Also here: deterministic test inputs whose positions of interest are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError


@dataclass(frozen=True)
class Prompt:
    """One input.  Exactly one of `text`, `chat` (list of role/content messages) and `token_ids` is
    set.

    `images` are file paths or PIL images for models that take them; `segments` maps a name to a
    substring of `text` or to a half-open token range `(start, stop)`, and adds a named role whose
    mass is measured; `add_special_tokens` is passed to the tokenizer.
    """

    text: str | None = None
    chat: tuple[Mapping[str, object], ...] | None = None
    token_ids: tuple[int, ...] | None = None
    images: tuple = ()
    segments: Mapping[str, str | tuple[int, int]] = field(default_factory=dict)
    add_special_tokens: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        given = [self.text is not None, self.chat is not None, self.token_ids is not None]
        if sum(given) != 1 and not (not any(given) and self.images):
            raise WorkbenchError(
                "a Prompt takes exactly one of text, chat and token_ids (or images alone); "
                f"{sum(given)} were given."
            )
        empty = (
            self.text == ""
            or (self.token_ids is not None and not len(self.token_ids))
            or (self.chat is not None and not len(self.chat))
        )
        if empty:
            raise WorkbenchError("a Prompt is empty; give at least one token, message or image.")

    def to_json(self) -> dict:
        """What identifies the input, for the prompts digest (images by path or by size)."""
        return {
            "text": self.text,
            "chat": self.chat,
            "token_ids": self.token_ids,
            "images": [
                str(getattr(i, "filename", "") or getattr(i, "size", i)) for i in self.images
            ],
            "segments": dict(self.segments),
            "add_special_tokens": self.add_special_tokens,
        }


def as_prompts(prompts: Any) -> list[Prompt]:
    """A string, Prompt, chat, list of token ids, array of ids or a list of any of these, as
    `Prompt`s.

    >>> [p.text for p in as_prompts(["a", "b"])], as_prompts([3, 1, 2])[0].token_ids
    (['a', 'b'], (3, 1, 2))
    """
    if isinstance(prompts, (str, Prompt)):
        return [_one(prompts)]
    if isinstance(prompts, Mapping):
        raise WorkbenchError(
            "prompts is a mapping; give strings, Prompts, chats or lists of token ids."
        )
    if not isinstance(prompts, Sequence) and not hasattr(prompts, "__array__"):
        prompts = list(prompts) if hasattr(prompts, "__iter__") else [prompts]
    if hasattr(prompts, "__array__") and not isinstance(prompts, Sequence):
        array = np.asarray(prompts)
        return [_one(row) for row in np.atleast_2d(array)]
    items = list(prompts)
    if not items:
        raise WorkbenchError("prompts is empty; give at least one prompt.")
    if all(_is_id(i) for i in items) or all(_is_message(i) for i in items):
        return [_one(items)]
    return [_one(item) for item in items]


def _is_id(value: object) -> bool:
    # numpy arrays of any size have __index__ too, so duck typing would take a row of ids for one
    # id.
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and "role" in value and "content" in value


def _one(item: object) -> Prompt:
    if isinstance(item, Prompt):
        return item
    if isinstance(item, str):
        return Prompt(text=item)
    values = item.tolist() if hasattr(item, "tolist") else item  # type: ignore[union-attr]
    if isinstance(values, (list, tuple)) and values and all(_is_message(v) for v in values):
        return Prompt(chat=tuple(values))
    if isinstance(values, (list, tuple)) and all(_is_id(v) for v in values):
        return Prompt(token_ids=tuple(int(v) for v in values))
    raise WorkbenchError(
        f"prompt {str(item)[:60]!r} ({type(item).__name__}) is not understood; give a string, a "
        "Prompt, "
        f"a list of chat messages or a list of token ids."
    )


def repeated_random_tokens(
    token_ids: Sequence[int], *, n: int, n_prompts: int, seed: int = 0, begin: int | None = None
) -> list[Prompt]:
    """`[begin] r_1..r_n r_1..r_n` with r drawn without replacement (so each token has one earlier
    copy).

    The standard test for induction, duplicate-token and previous-token heads (Olsson et al. 2022).
    `token_ids` are the ids to draw from; raises `WorkbenchError` if there are fewer than n.
    """
    pool = np.unique(np.asarray(token_ids, dtype=np.int64))
    if len(pool) < n:
        raise WorkbenchError(
            f"n={n} random tokens asked for, but only {len(pool)} distinct ids to draw from."
        )
    if seed < 0:
        raise WorkbenchError(f"seed={seed} is negative; give 0 or more.")
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n_prompts):
        half = rng.choice(pool, size=n, replace=False)
        ids = (
            np.concatenate([half, half]) if begin is None else np.concatenate([[begin], half, half])
        )
        found.append(Prompt(token_ids=tuple(int(t) for t in ids), name=f"repeated-{i}"))
    return found


def demo_paragraphs() -> list[Prompt]:
    """The dozen paragraphs written for this repository (`workbench/data/paragraphs.txt`)."""
    text = resources.files("workbench").joinpath("data/paragraphs.txt").read_text(encoding="utf-8")
    blocks = [b.strip() for b in text.split("\n\n") if b.strip() and not b.startswith("#")]
    return [Prompt(text=" ".join(b.split()), name=f"paragraph-{i}") for i, b in enumerate(blocks)]


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts from a text file: one per blank-line separated block, or one JSON value per line
    (.jsonl)."""
    import json

    path = Path(path)
    if not path.is_file():
        raise WorkbenchError(
            f"prompt file {str(path)!r} does not exist; give a .txt or .jsonl file."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WorkbenchError(
            f"prompt file {path.name} is not UTF-8 (byte {error.start}); save it as UTF-8."
        ) from None
    if path.suffix != ".jsonl":
        blocks = [b.strip() for b in text.split("\n\n") if b.strip()]
        return as_prompts(blocks)
    found = []
    for number, line in enumerate(filter(str.strip, text.splitlines()), 1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise WorkbenchError(f"{path.name} line {number} is not JSON ({error.msg}).") from None
        if not isinstance(value, dict) or "role" in value:
            found.append(_one(value))
            continue
        known = [f.name for f in fields(Prompt)]
        unknown = [key for key in value if key not in known]
        if unknown:
            raise WorkbenchError(
                f"{path.name} line {number} has the unknown key {unknown[0]!r}; known: "
                f"{', '.join(known)}."
            )
        found.append(Prompt(**value))
    return found
