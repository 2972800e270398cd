"""What to change in a model's heads, as data: frozen, comparable, written to and read from JSON.

An `Intervention` names heads, positions and an operation; `workbench.intervene` applies it.  Three
kinds: operations on a head's output z (zero, mean, resample, scale, add, replace), on its scores
(block, add_logits, drop_keys, keep_keys, streaming) and on its pattern (pattern, redistribute,
null_logit).  Those on scores act before the others, wherever they stand in a list; the rest in the
order written.  Neutral ones (scale 1, add 0, no logit, nothing moved) leave every bit of the logits
as it was.  `workbench.stream_edits` has what changes the residual stream.

Positions are `None` (all), absolute token indices (negative ones count from the end of the prompt),
the name of a role ("special", "text", "image", "generated"), of a segment of the prompt, or "last"
(the newest position of every forward pass, so each step of a generation).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.heads import Head

Positions = None | str | tuple[int, ...]

OUTPUT_EDITS = ("zero", "mean", "resample", "scale", "add", "replace")
SCORE_EDITS = ("block", "add_logits", "drop_keys", "keep_keys", "streaming")
PATTERN_EDITS = ("pattern", "redistribute")
NULL_EDITS = ("null_logit",)
_NEEDS_VALUE = {"mean", "resample", "add", "replace", "pattern"}
# Fields that one operation only is defined with.
_OWN_FIELDS = {
    "redistribute": ("to", "within", "least_mass", "least_ratio"),
    "streaming": ("first", "window", "positions"),
}


def positions_of(at: Any, what: str) -> Positions:
    """Positions as they are kept: None, a name or a tuple of indices; raises `WorkbenchError`."""
    if at is None or isinstance(at, str):
        return at
    if isinstance(at, Integral):
        return (int(at),)
    if isinstance(at, Iterable):
        values = np.asarray(list(at))
        if values.size and values.dtype.kind not in "iu":
            raise WorkbenchError(
                f"{what} holds {values.dtype} values, not indices; of a mask give "
                "np.flatnonzero(mask)."
            )
        return tuple(int(i) for i in values)
    raise WorkbenchError(
        f"{what}={at!r} names no positions; give None, a role, a segment name, an index or a list "
        "of indices."
    )


def finite_array(value: Any, what: str) -> np.ndarray:
    """A read-only float32 array; raises `WorkbenchError` for NaN and infinity."""
    found = np.array(value, dtype=np.float32)
    if not np.isfinite(found).all():
        raise WorkbenchError(f"the value of {what!r} holds NaN or infinity; give finite numbers.")
    found.setflags(write=False)
    return found


def _labels(heads: Any) -> tuple[str, ...]:
    if isinstance(heads, str):
        return (heads,)
    if isinstance(heads, Head):
        return (str(heads),)
    items = list(heads) if isinstance(heads, Iterable) else [heads]
    if len(items) == 2 and isinstance(heads, tuple) and all(isinstance(i, Integral) for i in items):
        return (str(Head(int(items[0]), int(items[1]))),)
    return tuple(label for item in items for label in _labels(item))


@dataclass(frozen=True, eq=False)
class Intervention:
    """One change of heads, to be given to `workbench.intervening`.

    `heads` are labels or selectors (`"L9H6"`, `"L5-8H*"`, a probe table's `label` column);
    `queries` the positions whose rows change (`at` in the constructors of output edits), `keys` the
    attended positions, `factor` a scale, a logit or the fraction that moves, `value` an array: a z
    vector [d_head], one per head [head, d_head] or per head and position [head, query, d_head]; for
    "pattern" [query, key] or [head, query, key].  The other fields belong to one operation each:
    see `redistribute` (to, within, least_mass, least_ratio) and `streaming` (first, window,
    positions).
    """

    how: str
    heads: tuple[str, ...]
    queries: Positions = None
    keys: Positions = None
    factor: float = 1.0
    value: np.ndarray | None = None
    to: Positions = None
    within: Positions = None
    least_mass: float = 0.0
    least_ratio: float = 0.0
    first: int = 0
    window: int = 0
    positions: str = ""

    def __post_init__(self) -> None:
        known = (*OUTPUT_EDITS, *SCORE_EDITS, *PATTERN_EDITS, *NULL_EDITS)
        if self.how not in known:
            raise WorkbenchError(f"how={self.how!r} is no intervention; known: {', '.join(known)}.")
        object.__setattr__(self, "heads", _labels(self.heads))
        for name in ("queries", "keys", "to", "within"):
            object.__setattr__(self, name, positions_of(getattr(self, name), name))
        object.__setattr__(self, "factor", float(self.factor))
        if not self.heads:
            raise WorkbenchError(
                f"the intervention {self.how!r} names no head; give at least one, such as 'L5H1'."
            )
        if (self.value is None) == (self.how in _NEEDS_VALUE):
            state = "needs" if self.how in _NEEDS_VALUE else "takes no"
            raise WorkbenchError(
                f"the intervention {self.how!r} {state} value array; see Intervention.{self.how}."
            )
        if self.value is not None:
            object.__setattr__(self, "value", finite_array(self.value, self.how))
        if not np.isfinite(self.factor):
            raise WorkbenchError(
                f"factor={self.factor} is not finite; to remove an edge use Intervention.block."
            )
        if self.how == "redistribute":
            self._check_redistribution()
        if self.how == "streaming":
            self._check_streaming()

    def _check_redistribution(self) -> None:
        if not 0 <= self.factor <= 1:
            raise WorkbenchError(
                f"move_fraction={self.factor} is no fraction; give 0 (nothing moves) to 1 (all)."
            )
        if self.keys is None or self.to is None:
            raise WorkbenchError(
                "redistribute moves mass from `keys` to `to`, so both must name positions; None "
                "means all of them."
            )
        for name in ("least_mass", "least_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise WorkbenchError(
                    f"{name}={getattr(self, name)} is no share of a row; give 0 to 1."
                )
        shared = set(self.keys) & set(self.to) if not isinstance(self.keys, str) else set()
        if self.keys == self.to or (shared and not isinstance(self.to, str)):
            raise WorkbenchError(
                f"redistribute: keys={self.keys!r} and to={self.to!r} share positions; mass can "
                "only move from some keys to others."
            )

    def _check_streaming(self) -> None:
        for name, least in (("first", 0), ("window", 1)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise WorkbenchError(
                    f"streaming: {name}={value!r} is no number of keys; give {least} or more."
                )
            object.__setattr__(self, name, int(value))
        if self.positions not in ("cache", "absolute"):
            raise WorkbenchError(
                f"streaming: positions={self.positions!r} is not known; give 'cache' or 'absolute'."
            )

    @classmethod
    def zero(cls, heads: object, at: object = None) -> Intervention:
        """z := 0: the head writes nothing at `at`."""
        return cls("zero", heads, at)  # type: ignore[arg-type]

    @classmethod
    def mean(cls, heads: object, value: object, at: object = None) -> Intervention:
        """z := a mean over a reference set, `value` from `workbench.intervene.mean_z`: [d_head] or
        [head, d_head]."""
        return cls("mean", heads, at, value=value)  # type: ignore[arg-type]

    @classmethod
    def resample(cls, heads: object, value: object, at: object = None) -> Intervention:
        """z := z of another run, `value` from `workbench.intervene.head_outputs`: [head, query,
        d_head]."""
        return cls("resample", heads, at, value=value)  # type: ignore[arg-type]

    @classmethod
    def scale(cls, heads: object, factor: float, at: object = None) -> Intervention:
        """z := factor * z; factor 1 changes nothing."""
        return cls("scale", heads, at, factor=factor)  # type: ignore[arg-type]

    @classmethod
    def add(cls, heads: object, value: object, at: object = None) -> Intervention:
        """z := z + value, [d_head], [head, d_head] or [head, query, d_head]; zeros change
        nothing."""
        return cls("add", heads, at, value=value)  # type: ignore[arg-type]

    @classmethod
    def replace(cls, heads: object, value: object, at: object = None) -> Intervention:
        """z := value, [d_head], [head, d_head] or [head, query, d_head]."""
        return cls("replace", heads, at, value=value)  # type: ignore[arg-type]

    @classmethod
    def block(cls, heads: object, queries: object = None, keys: object = None) -> Intervention:
        """Attention edges queries x keys get probability 0 and the rest of the row is
        renormalised."""
        return cls("block", heads, queries, keys)  # type: ignore[arg-type]

    @classmethod
    def drop_keys(cls, heads: object, keys: object) -> Intervention:
        """No query may look at `keys`."""
        return cls("drop_keys", heads, None, keys)  # type: ignore[arg-type]

    @classmethod
    def keep_keys(cls, heads: object, keys: object) -> Intervention:
        """Queries may look at `keys` only; a row that then sees nothing writes zero."""
        return cls("keep_keys", heads, None, keys)  # type: ignore[arg-type]

    @classmethod
    def add_logits(
        cls, heads: object, factor: float, queries: object = None, keys: object = None
    ) -> Intervention:
        """Scores of the edges queries x keys := score + factor (nats); 0 changes nothing."""
        return cls("add_logits", heads, queries, keys, factor=factor)  # type: ignore[arg-type]

    @classmethod
    def pattern(cls, heads: object, value: object, queries: object = None) -> Intervention:
        """Rows of the pattern := value, [query, key] or [head, query, key]; z follows from the
        values."""
        return cls("pattern", heads, queries, value=value)  # type: ignore[arg-type]

    @classmethod
    def redistribute(
        cls,
        heads: object,
        keys: object,
        to: object,
        move_fraction: float,
        queries: object = None,
        *,
        within: object = None,
        least_mass: float = 0.0,
        least_ratio: float = 0.0,
    ) -> Intervention:
        """Rows give `move_fraction` of their mass on `keys` to the keys `to`, in proportion to the
        weights these have; a row keeps its sum.

        A row changes only if it has mass on `to`, its mass on `within` (default all keys) is at
        least `least_mass`, and mass(to) / mass(within) at least `least_ratio`.  0 changes nothing.
        Each call of a head holds that head's map [query, key] while it is changed.  Source: Kang
        et al. 2025 (arXiv 2503.03321), section 5; their code's p and rho are 1 - move_fraction and
        1 - least_ratio.
        """
        more = {"within": within, "least_mass": least_mass, "least_ratio": least_ratio}
        return cls("redistribute", heads, queries, keys, move_fraction, to=to, **more)  # type: ignore[arg-type]

    @classmethod
    def null_logit(cls, heads: object, logit: float) -> Intervention:
        """A learned sink: `logit` (nats) joins the denominator of every row, which then sums to one
        minus the null mass; z := z * sigmoid(lse - logit).

        It joins what the model has of its own.  Source: softmax of gpt-oss; logit 0 is the
        "softmax-off-by-one".
        """
        return cls("null_logit", heads, factor=logit)  # type: ignore[arg-type]

    @classmethod
    def streaming(
        cls, heads: object, first: int = 4, window: int = 1020, positions: str = "cache"
    ) -> Intervention:
        """Each query sees the first `first` keys and its last `window` keys, itself among them.

        `positions="cache"`: a rotary model measures distances as in a cache that holds these keys
        only, so the first keys are `window` to `window + first - 1` away; "absolute": nothing but a
        mask, for any model; where a head looks both ways, so does its window.  Nothing changes
        while everything fits.  Source: Xiao et al. 2023 (arXiv 2309.17453), section 3.2; their
        evaluation evicts after a step, which is a window larger by one.
        """
        return cls("streaming", heads, first=first, window=window, positions=positions)  # type: ignore[arg-type]

    @property
    def neutral(self) -> bool:
        """True if it provably changes nothing, so that applying it must not even change
        rounding."""
        if self.how == "scale":
            return self.factor == 1.0
        if self.how == "add_logits":
            return self.factor == 0.0
        if self.how == "add":
            return self.value is not None and not self.value.any()
        if self.how == "redistribute" and (self.factor == 0.0 or self.to == ()):
            return True
        return any(at == () for at in (self.queries, self.keys)) and self.how != "keep_keys"

    def to_json(self) -> dict:
        """A plain dict; `Intervention.from_json` gives the same intervention back."""
        found: dict = {"how": self.how, "heads": list(self.heads)}
        for name in ("queries", "keys", "factor", "value", *_OWN_FIELDS.get(self.how, ())):
            found[name] = plain(getattr(self, name))
        return found

    @classmethod
    def from_json(cls, value: dict) -> Intervention:
        known = ("how", "heads", "queries", "keys", "factor", "value")
        known = (*known, *_OWN_FIELDS.get(value.get("how", ""), ()))
        unknown = set(value) - set(known)
        if unknown or "how" not in value or "heads" not in value:
            what = (
                f"unknown field {sorted(unknown)[0]!r}"
                if unknown
                else "'how' and 'heads' are required"
            )
            raise WorkbenchError(f"intervention JSON: {what}; fields are {', '.join(known)}.")
        heads = value["heads"]
        if not isinstance(heads, (list, tuple, str)):
            raise WorkbenchError(
                f"intervention JSON: heads is {heads!r}; a list of labels was expected."
            )
        try:
            return cls(**{**value, "heads": _labels(heads)})
        except (TypeError, ValueError) as error:
            raise WorkbenchError(f"intervention JSON: {error}.") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervention) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.how, self.heads, self.queries, self.keys, self.factor))


def plain(value: Any) -> Any:
    """A field as JSON has it."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
