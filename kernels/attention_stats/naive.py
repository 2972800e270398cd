"""The specification of `attention_stats`: numpy, float64, the whole map in memory. Slow, short, and
right by inspection. This file makes the map; `naive_reductions` holds every formula on it.

Dims: B batch, H query heads, Hkv key/value heads (query head h reads kv head h // (H // Hkv)), Q
queries, K keys, D head width. Rows of a map are queries, columns are keys. Query i sits at position
i + query_offset, key j at position j.

The other backends are checked against this file, and this file against references that are not ours
(torch.softmax, scipy, closed forms).
"""

import numpy as np

from workbench.kernels.attention_stats.naive_reductions import reduce_pattern
from workbench.kernels.attention_stats.terms import offset_of
from workbench.kernels.attention_stats.variants import BIASES, MASKS

# A bias at or below this hides its key: additive masks of models are -inf or the most negative
# float32.
HIDING_BIAS = -1e30


def scores(q, k, *, scale=None, softcap=None, bias=None, alibi=None, query_offset=0):
    """Logits before masking, float64 [B, H, Q, K], in the order of transformers' eager attention.

    scale * q.k (scale None: D ** -0.5), then softcap * tanh(s / softcap), then + bias
    (broadcastable to [B, H, Q, K], or low rank), then - alibi[h] * |i + query_offset - j|.
    """
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    b, h, n_q, d = q.shape
    grouped = q.reshape(b, k.shape[1], h // k.shape[1], n_q, d)
    with np.errstate(invalid="ignore"):  # padding may hold anything; it is hidden later
        s = np.einsum("bgrqd,bgkd->bgrqk", grouped, k).reshape(b, h, n_q, k.shape[2])
        s = s * (d**-0.5 if scale is None else scale)
        if softcap is not None:
            s = softcap * np.tanh(s / softcap)
        if bias is not None:
            s = s + dense_bias(bias)
        if alibi is not None:
            away = np.abs(distances(n_q, s.shape[3], query_offset))
            s = s - np.asarray(alibi, np.float64)[:, None, None] * away
        return s


def distances(n_q, n_k, offset):
    """Signed distance in tokens of every query from every key, i + offset - j: int [Q, K]."""
    return (np.arange(n_q) + offset)[:, None] - np.arange(n_k)


def dense_bias(bias):
    """A bias as an array that broadcasts to [B, H, Q, K]."""
    if isinstance(bias, BIASES):
        left, right = (np.asarray(x, np.float64) for x in (bias.left, bias.right))
        return left @ np.swapaxes(right, -1, -2)
    return np.asarray(bias, np.float64)


def visible(
    shape,
    *,
    causal=False,
    query_offset=None,
    window=None,
    mask=None,
    bias=None,
    key_valid=None,
    query_sequence=None,
    key_sequence=None,
):
    """Bool map of `shape` = (B, H, Q, K): which query may see which key."""
    n_q, n_k = shape[2:]
    offset = offset_of(n_q, n_k, causal, query_offset)
    back = distances(n_q, n_k, offset)
    seen = np.ones((n_q, n_k), bool)
    if causal:
        seen &= back >= 0
    if window is not None:
        seen &= (back if causal else np.abs(back)) < window
    if isinstance(mask, MASKS):
        seen &= mask.visible((np.arange(n_q) + offset)[:, None], np.arange(n_k)[None])
        mask = None
    seen = np.broadcast_to(seen, shape).copy()
    if mask is not None:
        seen &= np.asarray(mask, bool)
    if bias is not None and not isinstance(bias, BIASES):
        seen &= ~(np.asarray(bias, np.float64) <= HIDING_BIAS)
    if key_valid is not None:
        seen &= np.asarray(key_valid, bool)[:, None, None, :]
    if query_sequence is not None:
        own, theirs = np.asarray(query_sequence), np.asarray(key_sequence)
        seen &= (own[:, :, None] == theirs[:, None, :])[:, None]
    return seen


def normalise(s, seen, sink_logit=None):
    """Softmax over the visible keys: (p [B, H, Q, K], lse [B, H, Q], null_mass [B, H, Q]).

    `sink_logit` [H] joins the denominator only: rows then sum to 1 - null_mass. A row that sees no
    key has p = 0 and lse = -inf, or the sink logit when there is one (null_mass 1).
    """
    s = np.where(seen, s, -np.inf)
    sink = np.full(s.shape[:3], -np.inf)
    if sink_logit is not None:
        sink = np.broadcast_to(np.asarray(sink_logit, float)[:, None], s.shape[:3])
    top = np.maximum(s.max(-1, initial=-np.inf), sink)
    # Finite, so that a row of -inf gives 0 and not NaN.
    shift = np.where(np.isneginf(top), 0.0, top)
    e, e_sink = np.exp(s - shift[..., None]), np.exp(sink - shift)
    total = e.sum(-1) + e_sink
    safe = np.where(total > 0, total, 1.0)
    with np.errstate(divide="ignore"):
        return e / safe[..., None], shift + np.log(total), e_sink / safe


def activate(s, seen, activation):
    """Weights [B, H, Q, K] of rows that are no softmax, 0 where hidden.

    relu: max(s, 0) / n; linear: s / n, n the keys the query can see; sigmoid: 1 / (1 + exp(-s)).
    """
    n = np.maximum(seen.sum(-1, keepdims=True), 1)
    with np.errstate(invalid="ignore", over="ignore"):  # hidden entries may hold anything
        weights = {
            "relu": lambda: np.maximum(s, 0.0) / n,
            "linear": lambda: s / n,
            "sigmoid": lambda: 1.0 / (1.0 + np.exp(-s)),
        }[activation]()
    return np.where(seen, weights, 0.0)


def _map(
    q,
    k,
    *,
    scale=None,
    softcap=None,
    sink_logit=None,
    bias=None,
    alibi=None,
    activation="softmax",
    query_offset=None,
    causal=False,
    **terms,
):
    """(p, lse, null_mass, seen, offset) of one call."""
    offset = offset_of(q.shape[2], k.shape[2], causal, query_offset)
    s = scores(q, k, scale=scale, softcap=softcap, bias=bias, alibi=alibi, query_offset=offset)
    seen = visible(s.shape, causal=causal, query_offset=offset, bias=bias, **terms)
    if activation == "softmax":
        return *normalise(s, seen, sink_logit), seen, offset
    return activate(s, seen, activation), None, None, seen, offset


def pattern(q, k, **terms):
    """Attention weights [B, H, Q, K]; `terms` are those of `scores` and `visible`, sink_logit and
    activation."""
    return _map(q, k, **terms)[0]


# What decides which key a query sees; the rest of the terms of a call belong to the reductions.
_VISIBLE = (
    "causal", "query_offset", "window", "mask", "key_valid", "query_sequence", "key_sequence",
)  # fmt: skip
_SCORES = ("scale", "softcap", "sink_logit", "bias", "alibi", "activation")


def _tokens(own):
    """The visibility terms that also tell which tokens are a text, for repeats in it."""
    names = ("key_valid", "query_sequence", "key_sequence")
    return {name: own.get(name) for name in names}


def attention_stats(q, k, want, *, lse=None, **terms):  # noqa: ARG001 - lse follows from q and k here
    """Statistics named in `want` as numpy arrays; terms and definitions are the package's."""
    own = {name: terms.pop(name) for name in (*_SCORES, *_VISIBLE) if name in terms}
    p, row_lse, null_mass, seen, offset = _map(q, k, **own)
    return reduce_pattern(
        p, want, seen=seen, offset=offset, lse=row_lse, null_mass=null_mass, **_tokens(own), **terms
    )


def stats_from_pattern(p, want, **terms):
    """Statistics of a given map; null_mass is what its rows lack, lse is unknown."""
    own = {name: terms.pop(name) for name in _VISIBLE if name in terms}
    p = np.asarray(p, np.float64)
    seen = visible(p.shape, **own)
    total = np.where(seen, p, 0.0).sum(-1)
    # Rounding may put a sum above one.
    null_mass = np.where(total > 0, np.maximum(0.0, 1.0 - total), 0.0)
    n_q, n_k = p.shape[2:]
    offset = offset_of(n_q, n_k, own.get("causal", False), own.get("query_offset"))
    return reduce_pattern(
        p, want, seen=seen, offset=offset, null_mass=null_mass, **_tokens(own), **terms
    )
