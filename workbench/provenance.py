"""Where a set of numbers came from: enough to repeat the run, and to refuse mixing two of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass, field
from importlib import metadata

_PACKAGES = ("attention-workbench", "torch", "transformers", "numpy", "transformer-lens", "triton")


def digest(value: object) -> str:
    """First 16 hex digits of the SHA-256 of `value` written as sorted JSON.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers, as far as installed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Provenance:
    """Model, inputs and settings behind a `HeadStats`.

    `attention` names the model's own backend that computed the outputs, `kernel` the backend that
    computed the statistics; `bos` says whether a begin token stands at position 0 ("yes", "no",
    "mixed", "unknown"); `interventions` are the JSON forms of what was active; `notes` are
    sentences a reader of the numbers must know (truncated rows, masses without the learned sink,
    ...); `missing` says of every statistic that was asked for and is not there why.
    """

    model: str
    family: str = ""
    revision: str = ""
    dtype: str = ""
    device: str = ""
    attention: str = ""
    kernel: str = ""
    tokenizer: str = ""
    prompts: str = ""
    bos: str = "unknown"
    settings: dict = field(default_factory=dict)
    interventions: tuple = ()
    notes: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    created: str = ""
    command: str = ""
    versions: dict = field(default_factory=versions)

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict) -> Provenance:
        known = {f.name for f in dataclasses.fields(cls)}
        kept = {k: v for k, v in value.items() if k in known}
        kept["notes"] = tuple(kept.get("notes", ()))
        kept["interventions"] = tuple(kept.get("interventions", ()))
        return cls(**kept)
