"""Every statistic of the specification, from a whole map in float64; `naive` makes the map.

Dims: B batch, H query heads, Hkv key/value heads, Q queries, K keys, S segments, F and G features,
N keys or offsets.
"""

import numpy as np

from workbench.kernels.attention_stats.terms import ROW_STATS, histogram_bins


def reduce_pattern(p, want, *, seen, offset, query_valid=None, **terms):
    """The statistics `want` of a map p [B, H, Q, K] and its visibility `seen`; hidden entries and
    rows of invalid queries count as 0."""
    b, _, n_q, _ = p.shape
    valid = np.ones((b, n_q), bool) if query_valid is None else np.asarray(query_valid, bool)
    seen = np.broadcast_to(seen, p.shape)
    reduction = Reduction(p, seen, valid, offset, terms)
    out = {}
    for name in want:
        value = getattr(reduction, name)()
        if name in ROW_STATS:
            row = valid[:, None, :].reshape(b, 1, n_q, *[1] * (value.ndim - 3))
            empty = -1 if name == "top_keys" else 0 if value.dtype.kind == "i" else np.nan
            value = np.where(row, value, empty)
        out[name] = value
    return out


class Reduction:
    """One method per statistic, of the same name."""

    def __init__(self, p, seen, valid, offset, terms):
        self.visible, self.valid = seen, valid
        self.seen = seen & valid[:, None, :, None]
        self.p = np.where(self.seen, p, 0.0)
        self.terms, self.offset = terms, offset
        n_q, n_k = p.shape[2:]
        self.back = (np.arange(n_q) + offset)[:, None] - np.arange(n_k)  # [Q, K], tokens
        self.away = np.abs(self.back)

    def _given(self, name):
        return self.terms.get(name) is not None

    def _array(self, name):
        return np.asarray(self.terms[name])

    # Rows, [B, H, Q].

    def lse(self):
        return self.terms["lse"]

    def null_mass(self):
        return self.terms["null_mass"]

    def entropy(self):
        return -np.sum(self.p * np.log(np.where(self.p > 0, self.p, 1.0)), -1)

    def participation(self):
        return (self.p ** self.terms.get("power", 2)).sum(-1)

    def max_prob(self):
        best = np.where(self.seen, self.p, -np.inf).max(-1)
        return np.where(np.isneginf(best), 0.0, best)

    def argmax(self):
        return np.where(self.seen.any(-1), np.where(self.seen, self.p, -np.inf).argmax(-1), 0)

    def self_mass(self):
        return np.where(self.back == 0, self.p, 0.0).sum(-1)

    def prev_mass(self):
        return np.where(self.back == 1, self.p, 0.0).sum(-1)

    def first_mass(self):
        b, n_k = self.p.shape[0], self.p.shape[3]
        first = np.zeros((b, 1), int)
        if self._given("first_key"):
            first = self._array("first_key").reshape(b, -1)
        return np.where(np.arange(n_k) == first[:, None, :, None], self.p, 0.0).sum(-1)

    def distance(self):
        return (self.p * self.away).sum(-1)

    def distance_sq(self):
        return (self.p * self.away.astype(float) ** 2).sum(-1)

    def waad(self):
        return (self.p * np.minimum(self.away, self.terms["waad_window"])).sum(-1)

    def local_mass(self):
        return np.where(self.away < self.terms["local_window"], self.p, 0.0).sum(-1)

    def duplicate_mass(self):
        return (self.p * self._repeats()[:, None]).sum(-1)

    def induction_mass(self):
        return (self.p[..., 1:] * self._repeats()[:, None, :, :-1]).sum(-1)

    def n_visible(self):
        return self.visible.sum(-1)

    def value_mass(self):
        norm = np.linalg.norm(self._per_head("v"), axis=-1)  # [B, H, K]
        return (self.p * norm[:, :, None]).sum(-1)

    # Rows with one more dim, [B, H, Q, .].

    def role_mass(self):
        return np.einsum("bhqk,bsk->bhqs", self.p, self._one_hot("key_segments"))

    def feature_mass(self):
        return self.p @ self._per_head("key_features")

    def offset_mass(self):
        each = [np.where(self.back == d, self.p, 0.0).sum(-1) for d in self.terms["offsets"]]
        return np.stack(each, -1)

    def keys_mass(self):
        keys = self._array("keys")[:, None, None]  # [B, 1, 1, N]
        shape = (*self.p.shape[:3], keys.shape[-1])
        return np.take_along_axis(self.p, np.broadcast_to(keys, shape), -1)

    def top_keys(self):
        return self._top()[0]

    def top_probs(self):
        return self._top()[1]

    def output(self):
        return self.p @ self._per_head("v")

    # Columns, [B, H, K].

    def key_mass(self):
        return self.p.sum(-2)

    def key_max(self):
        best = np.where(self.seen, self.p, -np.inf).max(-2, initial=-np.inf)
        return np.where(np.isneginf(best), 0.0, best)

    def key_count(self):
        return self.seen.sum(-2)

    def key_mean(self):
        return _mean(self.p, self.seen)

    def key_var(self):
        return _mean((self.p - self.key_mean()[:, :, None]) ** 2, self.seen)

    def key_entropy(self):
        total = self.p.sum(-2, keepdims=True)
        share = self.p / np.where(total > 0, total, 1.0)
        return -np.sum(share * np.log(np.where(share > 0, share, 1.0)), -2)

    def fai(self):
        lo, hi = self.terms["horizon"]
        later = (self.back >= lo) & (self.back <= (np.inf if hi is None else hi))
        return _mean(self.p, self.seen & later)

    def query_feature_mass(self):
        return np.einsum("bhqk,bqg->bhkg", self.p, self._query_features())

    # The map as a whole, [B, H, ...].

    def diagonal_mass(self):
        b, h, n_q, n_k = self.p.shape
        out = np.zeros((b, h, n_q + n_k - 1))
        for i in range(n_q):  # keys from the last to the first: i - j + K - 1 runs from i on
            out[..., i : i + n_k] += self.p[:, :, i, ::-1]
        return out

    def distance_histogram(self):
        n_q, n_k = self.p.shape[2:]
        # 0 -> 0, 1 -> 1, 2..3 -> 2, 4..7 -> 3, ...
        bin_of = np.frexp(self.away.astype(float))[1]
        bins = range(histogram_bins(n_q, n_k, self.offset))
        return np.stack([(self.p * (bin_of == n)).sum((-2, -1)) for n in bins], -1)

    def block_mass(self):
        return self._blocks(self.p, 0.0).sum((-3, -1))

    def block_max(self):
        best = self._blocks(np.where(self.seen, self.p, -np.inf), -np.inf).max((-3, -1))
        return np.where(np.isneginf(best), 0.0, best)

    def segment_mean(self):
        """Mean of p over (valid queries of segment a) x (keys of segment b), hidden entries
        included; NaN where either is empty."""
        rows = self._one_hot("query_segments") * self.valid[:, None]
        columns = self._one_hot("key_segments")
        total = np.einsum("bsq,bhqk,btk->bhst", rows, self.p, columns)
        area = np.einsum("bs,bt->bst", rows.sum(-1), columns.sum(-1))[:, None]
        return np.where(area > 0, total / np.where(area > 0, area, 1.0), np.nan)

    # What they share.

    def _repeats(self):
        """Bool [B, Q, K]: valid key j < i + offset of the query's own sequence holds its token."""
        same = self._pairs("query_ids", "key_ids") & (self.back > 0)
        if self._given("key_valid"):
            same = same & self._array("key_valid").astype(bool)[:, None, :]
        if self._given("query_sequence"):
            same = same & self._pairs("query_sequence", "key_sequence")
        return same

    def _pairs(self, of_query, of_key):
        """Bool [B, Q, K]: query and key hold the same number."""
        return self._array(of_query)[:, :, None] == self._array(of_key)[:, None, :]

    def _one_hot(self, name):
        return one_hot(self.terms[name], self.terms["n_segments"])

    def _per_head(self, name):
        """A term [B, 1 or Hkv, K, .] for every query head; 0 at keys that nobody sees, which may
        hold anything."""
        x = self._array(name).astype(float)
        x = np.repeat(x, self.p.shape[1] // x.shape[1], 1)
        return np.where(self.seen.any(-2)[..., None], x, 0.0)

    def _query_features(self):
        """[B, Q, G], 0 for invalid queries."""
        return np.where(self.valid[..., None], self._array("query_features").astype(float), 0.0)

    def _top(self):
        """Keys and weights [B, H, Q, topk], the largest first; -1 and 0 beyond the visible ones."""
        topk, n_k = self.terms["topk"], self.p.shape[-1]
        value = np.where(self.seen, self.p, -np.inf)
        keys = np.argsort(-value, -1, kind="stable")[..., :topk]
        weight = np.take_along_axis(value, keys, -1)
        hidden = np.isneginf(weight)
        keys, weight = np.where(hidden, -1, keys), np.where(hidden, 0.0, weight)
        missing = [(0, 0)] * 3 + [(0, max(0, topk - n_k))]
        return np.pad(keys, missing, constant_values=-1), np.pad(weight, missing)

    def _blocks(self, x, fill):
        """[B, H, blocks, queries of one, blocks, keys of one], ragged ends filled."""
        rows, columns = self.terms["pool"]
        n_q, n_k = x.shape[2:]
        edge = [(0, 0), (0, 0), (0, -n_q % rows), (0, -n_k % columns)]
        x = np.pad(x, edge, constant_values=fill)
        return x.reshape(*x.shape[:2], x.shape[2] // rows, rows, x.shape[3] // columns, columns)


def _mean(x, where):
    """Mean over the queries of `where`; NaN where there is none."""
    count = where.sum(-2)
    return np.where(count > 0, np.where(where, x, 0.0).sum(-2) / np.maximum(count, 1), np.nan)


def one_hot(segments, n_segments):
    """Membership as floats [B, S, N], from labels [B, N] (-1 = none) or from bool [B, S, N]."""
    segments = np.asarray(segments)
    if segments.ndim == 3:
        return segments.astype(float)
    return (segments[:, None, :] == np.arange(n_segments)[:, None]).astype(float)
