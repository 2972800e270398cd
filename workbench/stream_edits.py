"""What to change in a model's residual stream, as data: frozen, comparable, written to JSON.

A `StreamEdit` names one place of the stream, positions and an operation; it is given to
`workbench.intervening` beside `Intervention`s, and `workbench.intervene_stream` applies it.  The
places:

    "L5 resid_post"   what leaves block 5
    "L5 mlp_out"      what the MLP of block 5 writes (the output of its last linear map)
    "L5 attn_out"     what the attention of block 5 writes (the output of W_O)
    "embed"           what enters block 0

with the prefixes of heads for other towers: "V3 mlp_out", "E2 resid_post", "V embed".  With these a
massive activation is set to zero or to its mean (Sun et al. 2024, arXiv 2402.17762) or added, and
the output of the MLP that makes a secondary sink is rescaled (Wong et al. 2025, arXiv 2512.22213).
Where a norm follows the writer (Gemma 2, OLMo 2), it takes a rescaling of all its dimensions back:
edit resid_post there.  Neutral edits (scale 1, add 0, no position, no dimension) leave every bit of
the logits as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.heads import KINDS
from workbench.interventions import Positions, finite_array, plain, positions_of

PARTS = ("resid_post", "mlp_out", "attn_out")
_LETTERS = "".join(KINDS.values())
_SITE = re.compile(
    rf"(?:(?P<prefix>[{_LETTERS}])(?P<layer>\d+) (?P<part>{'|'.join(PARTS)})"
    rf"|(?:(?P<tower>[{_LETTERS}]) )?embed)"
)
# What each operation is defined with, beside `site` and `at`.
_FIELDS = {
    "set": ("value", "dims"),
    "scale": ("factor", "dims"),
    "add": ("value",),
    "rescale": ("norm", "along", "cosine"),
}


@dataclass(frozen=True)
class Site:
    """A place of the stream: `prefix` of the tower ("L": the main one), block `layer`, `part` (one
    of `PARTS`, or "embed" with layer 0)."""

    prefix: str
    layer: int
    part: str


@dataclass(frozen=True, eq=False)
class StreamEdit:
    """One change of the stream, to be given to `workbench.intervening`; made by `set`, `scale`,
    `add` and `rescale`.

    `dims` are the dimensions that change (None: all), `at` the positions, as in `Intervention`;
    `value` is a number, one per dimension of `dims`, or a vector [d_model].
    """

    how: str
    site: str
    value: np.ndarray | None = None
    factor: float = 1.0
    dims: tuple[int, ...] | None = None
    at: Positions = None
    norm: float = 1.0
    along: np.ndarray | None = None
    cosine: float = 0.98

    def __post_init__(self) -> None:
        if self.how not in _FIELDS:
            raise WorkbenchError(
                f"how={self.how!r} is no edit of the stream; known: {', '.join(_FIELDS)}."
            )
        self.where  # noqa: B018 - raises for a site that cannot be read
        object.__setattr__(self, "at", positions_of(self.at, "at"))
        object.__setattr__(self, "dims", _dims(self.dims))
        for name in ("value", "along"):
            self._check_array(name)
        for name in ("factor", "norm", "cosine"):
            object.__setattr__(self, name, float(getattr(self, name)))
            if not np.isfinite(getattr(self, name)):
                raise WorkbenchError(
                    f"{name}={getattr(self, name)} of the stream edit {self.how!r} is not finite; "
                    "give a number."
                )
        if self.norm < 0 or not 0 <= self.cosine <= 1:
            raise WorkbenchError(
                f"rescale: norm={self.norm} and cosine={self.cosine}; a norm of 0 or more and a "
                "cosine of 0 to 1 were expected."
            )

    def _check_array(self, name: str) -> None:
        given = getattr(self, name)
        if (given is not None) != (name in _FIELDS[self.how]):
            state = "takes no" if given is not None else "needs"
            raise WorkbenchError(
                f"the stream edit {self.how!r} {state} {name}; see StreamEdit.{self.how}."
            )
        if given is None:
            return
        found = finite_array(given, self.how)
        if found.ndim > 1 or (name == "along" and (found.ndim == 0 or not found.any())):
            raise WorkbenchError(
                f"the {name} of the stream edit {self.how!r} has shape {found.shape}; "
                + ("a direction [d_model] that is not zero" if name == "along" else "a vector")
                + " was expected."
            )
        object.__setattr__(self, name, found)

    @property
    def where(self) -> Site:
        """`site`, read; raises `WorkbenchError` for one that is not understood."""
        match = _SITE.fullmatch(self.site) if isinstance(self.site, str) else None
        if match is None:
            raise WorkbenchError(
                f"site={self.site!r} is not understood; write 'L5 resid_post', 'L5 mlp_out', "
                "'L5 attn_out' or 'embed'."
            )
        if match["part"] is None:
            return Site(match["tower"] or "L", 0, "embed")
        return Site(match["prefix"], int(match["layer"]), match["part"])

    @classmethod
    def set(cls, site: str, value: object, dims: object = None, at: object = None) -> StreamEdit:
        """h[dims] := value: a number, or one per dimension (`dims` None: [d_model])."""
        return cls("set", site, value=value, dims=dims, at=at)  # type: ignore[arg-type]

    @classmethod
    def scale(cls, site: str, factor: float, dims: object = None, at: object = None) -> StreamEdit:
        """h[dims] := factor * h[dims]; factor 1 changes nothing, 0 removes an activation."""
        return cls("scale", site, factor=factor, dims=dims, at=at)  # type: ignore[arg-type]

    @classmethod
    def add(cls, site: str, vector: object, at: object = None) -> StreamEdit:
        """h := h + vector [d_model]; zeros change nothing."""
        return cls("add", site, value=vector, at=at)  # type: ignore[arg-type]

    @classmethod
    def rescale(
        cls, site: str, norm: float, along: object, cosine: float = 0.98, at: object = None
    ) -> StreamEdit:
        """Vectors with |cos(h, along)| > cosine get the L2 norm `norm`; the others stay.

        Source: steering of Wong et al. 2025 (arXiv 2512.22213): the output of the MLP that makes
        secondary sinks, where it points along that of the primary sink.
        """
        return cls("rescale", site, norm=norm, along=along, cosine=cosine, at=at)  # type: ignore[arg-type]

    @property
    def neutral(self) -> bool:
        """True if it provably changes nothing, so that applying it must not even change
        rounding."""
        if self.at == () or self.dims == ():
            return True
        if self.how == "scale":
            return self.factor == 1.0
        return self.how == "add" and self.value is not None and not self.value.any()

    def to_json(self) -> dict:
        """A plain dict; `StreamEdit.from_json` gives the same edit back."""
        names = ("how", "site", "at", *_FIELDS[self.how])
        return {name: plain(getattr(self, name)) for name in names}

    @classmethod
    def from_json(cls, value: dict) -> StreamEdit:
        unknown = set(value) - {field.name for field in fields(cls)}
        if unknown or not {"how", "site"} <= set(value):
            what = f"unknown field {sorted(unknown)[0]!r}" if unknown else "'how' and 'site' needed"
            raise WorkbenchError(
                f"stream edit JSON: {what}; fields are how, site, at and those of the operation."
            )
        try:
            return cls(**value)
        except (TypeError, ValueError) as error:
            raise WorkbenchError(f"stream edit JSON: {error}.") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StreamEdit) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.how, self.site, self.factor, self.dims, self.at, self.norm))


def _dims(dims: Any) -> tuple[int, ...] | None:
    if dims is None:
        return None
    found = [dims] if isinstance(dims, Integral) else dims
    good = isinstance(found, Iterable) and not isinstance(found, str)
    indices = tuple(found) if good else ()
    if (
        not good
        or not all(isinstance(i, Integral) and int(i) >= 0 for i in indices)
        or len(set(indices)) < len(indices)
    ):
        raise WorkbenchError(
            f"dims={dims!r} does not name dimensions of the stream; give indices from 0 on, each "
            "once."
        )
    return tuple(int(i) for i in indices)
