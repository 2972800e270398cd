"""From numbers to what a person reads: formatted values, ranks, the verdict on a head, profiles.

Pure functions on arrays and tables; nothing here knows of Dash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

# What a head with a high value is called; other metrics go by their name.
WORDS = {
    "self_attention_score": "self-attending",
    "prev_token_score": "previous-token",
    "previous_token_score": "previous-token",
    "induction_score": "induction",
    "induction_head_score": "induction",
    "duplicate_token_score": "duplicate-token",
    "sink_mass": "sink",
}
STRONG, PARTLY = 0.3, 0.1
# Weights below this are rounding, not attention.
_NOTHING = 1e-6
_SPACES = {" ": "·", "\n": "↵", "\r": "↵", "\t": "⇥", "\u00a0": "·", "Ġ": "·", "▁": "·", "Ċ": "↵"}


class Reading(NamedTuple):
    """What one metric says of one head; NaN where there is nothing to say."""

    value: float
    sd: float
    n: float
    null: float


@dataclass(frozen=True)
class Metric:
    """One probe of a run: what it asks, and a row per head.

    `table`: index label, columns layer, head, value, sd, n, null (NaN where there is none).
    """

    name: str
    question: str
    units: str
    low: float
    high: float
    counts: str
    null: str
    paper: str
    table: pd.DataFrame
    # At which end of the scale the effect lies, see `ProbeInfo.direction`.
    low_tells: bool = False

    @property
    def signed(self) -> bool:
        """Whether zero lies inside the range, so that colour must say a direction."""
        return self.low < 0

    @property
    def word(self) -> str:
        """What heads with a high value are called."""
        return WORDS.get(self.name, self.name.removesuffix("_score").replace("_", " "))

    def rank(self, label: str) -> tuple[int, int] | None:
        """(rank from the telling end, number of heads with a value); None without a value."""
        own = self.of(label).value
        if not np.isfinite(own):
            return None
        values = self.table["value"].to_numpy(dtype="float64")
        ahead = values < own if self.low_tells else values > own
        return int(ahead.sum()) + 1, int(np.isfinite(values).sum())

    def of(self, label: str) -> Reading:
        """The numbers of one head; raises `KeyError` for a head that is not in the table."""
        columns = [self.table[name].to_numpy(dtype="float64") for name in Reading._fields]
        at = self.table.index.get_loc(label)
        return Reading(*(float(column[at]) for column in columns))


def number(value: float, digits: int = 2) -> str:
    """A number for people: about two digits, thousands separated, no leading zero.

    >>> number(0.8234), number(-0.05), number(12.34), number(2000.0), number(float("nan"))
    ('.82', '-.05', '12.3', '2,000', '–')
    """
    if value is None or not np.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size < 0.0005:
        return f"{value:.0e}".replace("e-0", "e-")
    places = digits if size >= 0.095 else digits + 1 if size < 0.0095 else digits
    text = f"{value:.{places}f}"
    return text.replace("0.", ".", 1) if size < 1 and not text.lstrip("-").startswith("1") else text


def with_spread(value: float, sd: float) -> str:
    """`.82 ± .02`; the spread is left out where there is none."""
    return number(value) if not np.isfinite(sd) else f"{number(value)} ± {number(sd)}"


def evidence(metric: Metric, label: str) -> str:
    """`.82 ± .02 (n = 2,000 queries; uniform attention would give .03); rank 3 of 144`."""
    found = metric.of(label)
    n = "" if np.isnan(found.n) else f"n = {found.n:,.0f} {metric.counts}".strip()
    null = "" if np.isnan(found.null) else null_words(metric.null, found.null)
    rank = metric.rank(label)
    notes = "; ".join(filter(None, [n, null]))
    text = with_spread(found.value, found.sd) + (f" ({notes})" if notes else "")
    return text if rank is None else f"{text}; rank {rank[0]} of {rank[1]}"


def null_words(control: str, value: float) -> str:
    """`uniform attention would give .03`; other controls are only named as such.

    >>> null_words("uniform attention over the visible keys", 0.03), null_words("shuffled", 1.0)
    ('uniform attention would give .03', 'null 1')
    """
    uniform = control.startswith("uniform attention")
    return f"uniform attention would give {number(value)}" if uniform else f"null {number(value)}"


def excess(metric: Metric, label: str) -> float:
    """How far the head goes from the null towards the upper bound, 0 to 1; NaN where undefined."""
    found = metric.of(label)
    null = 0.0 if np.isnan(found.null) else found.null
    room = metric.high - null
    return (found.value - null) / room if np.isfinite(room) and room > 0 else float("nan")


def verdict(metrics: dict[str, Metric], label: str) -> tuple[str, str]:
    """(headline, evidence) of a head: the bounded behaviour that goes farthest beyond its null.

    Only metrics with words and an upper bound compete: an entropy or a distance names no behaviour.
    """
    scores = {
        m.name: excess(m, label)
        for m in metrics.values()
        if m.name in WORDS and np.isfinite(m.high) and label in m.table.index
    }
    scores = {name: s for name, s in scores.items() if np.isfinite(s)}
    if not scores:
        return "no metric of this run names its behaviour", ""
    best = metrics[max(scores, key=scores.__getitem__)]
    strength = scores[best.name]
    if strength >= STRONG:
        head = f"{best.word} head"
    elif strength >= PARTLY:
        head = f"partly {best.word}"
    else:
        return "no behaviour stands out", f"nearest: {best.word} {evidence(best, label)}"
    return head, f"{best.word} {evidence(best, label)}"


def show_token(text: str) -> str:
    """A token with its whitespace visible.

    >>> show_token(" cat"), show_token("a\\n"), show_token("<0xE2>"), show_token("")
    ('·cat', 'a↵', '⟨0xE2⟩', '∅')
    """
    if text.startswith("<0x") and text.endswith(">"):
        return f"⟨{text[1:-1]}⟩"
    shown = "".join(_SPACES.get(c, c if c.isprintable() else f"⟨{ord(c):04X}⟩") for c in text)
    return shown or "∅"


def visible(n_query: int, n_key: int, causal: bool, window: int | None = None) -> np.ndarray:
    """[query, key] bool: which keys a query may see; queries are the last positions of the keys."""
    back = (np.arange(n_query)[:, None] + n_key - n_query) - np.arange(n_key)
    seen = back >= 0 if causal else np.ones((n_query, n_key), bool)
    return seen if window is None else seen & (np.abs(back) < window)


def by_distance(pattern: np.ndarray, seen: np.ndarray) -> pd.DataFrame:
    """Mean attention of a row by distance.

    Columns: low, high, back, ahead, uniform_back, uniform_ahead.

    Distances 0 to 4 stand alone, then bins grow by half: `low`..`high` tokens, inclusive.  A value
    is the share of all attention that lies that far away; "uniform" is the same for a head that
    spreads evenly over what it may see.
    """
    n_query, n_key = pattern.shape
    back = (np.arange(n_query)[:, None] + n_key - n_query) - np.arange(n_key)
    uniform = seen / np.maximum(seen.sum(1, keepdims=True), 1)
    edges = distance_edges(max(n_key, n_query))
    bins = np.searchsorted(edges, np.abs(back), side="right") - 1
    rows = max(n_query, 1)

    def share(weights: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.bincount(bins[where], weights[where], minlength=len(edges) - 1) / rows

    p = np.nan_to_num(np.asarray(pattern, dtype=np.float64))
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:] - 1,
            "back": share(p, back >= 0),
            "ahead": share(p, back < 0),
            "uniform_back": share(uniform, back >= 0),
            "uniform_ahead": share(uniform, back < 0),
        }
    )


def distance_edges(longest: int) -> np.ndarray:
    """Half-open bin edges: 0, 1, .. 5, then growing by half, up to `longest`."""
    edges = list(range(min(longest, 5) + 1))
    while edges[-1] < longest:
        edges.append(min(longest, round(edges[-1] * 1.5)))
    return np.asarray(edges)


def received(pattern: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Attention each key receives, mean over the queries that can see it; NaN where none can."""
    count = seen.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(pattern).sum(0) / np.where(count > 0, count, np.nan)


def hidden_mass(pattern: np.ndarray, columns: list[int]) -> float:
    """Share of the attention that lies on the given key columns (mean over rows)."""
    p = np.nan_to_num(pattern)
    total = p.sum()
    return float(p[:, columns].sum() / total) if columns and total > 0 else 0.0


def strongest(weights: np.ndarray, count: int = 8) -> list[tuple[int, float]]:
    """The largest weights above 1e-6 with their positions, largest first."""
    found = np.nan_to_num(weights)
    order = np.argsort(-found, kind="stable")[:count]
    return [(int(i), float(found[i])) for i in order if found[i] > _NOTHING]


def to_codes(pattern: np.ndarray) -> np.ndarray:
    """Probabilities as uint8, `round(255 p^(1/3))`: the cube root keeps 1e-6 apart from 0.

    A linear byte would turn the uniform attention over 512 tokens into zero.
    """
    return np.rint(255 * np.cbrt(np.clip(np.nan_to_num(pattern), 0, 1))).astype(np.uint8)


def from_codes(codes: np.ndarray) -> np.ndarray:
    """Inverse of `to_codes`, to half a step."""
    return (codes.astype(np.float64) / 255) ** 3


def pool_max(pattern: np.ndarray, limit: int = 1024) -> tuple[np.ndarray, int]:
    """(the pattern with blocks of `factor` x `factor` replaced by their maximum, factor)."""
    factor = -(-max(pattern.shape) // limit)
    if factor <= 1:
        return pattern, 1
    pads = [(0, -size % factor) for size in pattern.shape]
    padded = np.pad(np.nan_to_num(pattern), pads)
    rows, columns = (size // factor for size in padded.shape)
    return padded.reshape(rows, factor, columns, factor).max(axis=(1, 3)), factor
