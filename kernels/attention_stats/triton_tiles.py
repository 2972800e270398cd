"""What the Triton kernels share: tiles of q and k, what a query sees, scores.

A score is raw until it meets `factor`: the plain product q.k, or tanh(inner * q.k) with a softcap,
and exp2(score * factor) is what the softmax adds up. Hidden scores are a finite number below the
start of the running maximum, so that nothing is ever inf - inf or inf * 0 and a hidden key adds an
exact zero.

Dims: B batch, H query heads (head h reads kv head h // G), Q queries, K keys, D width, F features;
query i sits at position i + offset. Blocks own their outputs: no atomics, the same bits every time.
Importing this needs triton.
"""

# Optional, and typed for its compiler only.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-2e30)
START = tl.constexpr(-1e30)
# What is summed over a row or a column is lifted by 2^15 above its largest term: features are then
# summed on the tensor cores as two float16 parts, 22 bits, down to 2^-39 of the largest.
LIFT = tl.constexpr(15.0)
LIFTED = tl.constexpr(32768.0)


@triton.jit
def capped(s, inner):
    """tanh(inner * s) through exp2: the interpreter has no libdevice. Exact at both ends."""
    return 1.0 - 2.0 / (tl.exp2(s * (inner * 2.8853900817779268)) + 1.0)


@triton.jit
def within(back, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Which signed distances query - key are visible."""
    seen = back >= 0 if CAUSAL else back > -2147483648
    if WINDOW:
        seen = seen & (back < window)
        if not CAUSAL:
            seen = seen & (back > -window)
    return seen


@triton.jit
def load_tile(  # noqa: PLR0917 - kernels have no keyword objects
    p_tile, o_n, o_d, stride_n, stride_d, m_n, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
    RAGGED: tl.constexpr,
):  # fmt: skip
    """Tokens o_n by dimensions o_d, one of them a row and one a column; masks only where needed."""
    p_tile = p_tile + o_n * stride_n + o_d * stride_d
    if RAGGED and BLOCK_D != WIDTH:
        return tl.load(p_tile, m_n & (o_d < WIDTH), 0.0)
    if RAGGED:
        return tl.load(p_tile, m_n, 0.0)
    if BLOCK_D != WIDTH:
        return tl.load(p_tile, o_d < WIDTH, 0.0)
    return tl.load(p_tile)


@triton.jit
def shifted(  # noqa: PLR0913, PLR0917 - kernels have no keyword objects
    s, query, key, back, p_mask, mask_q, mask_k, p_bias, bias_q, bias_k, slope, p_query_seq,
    p_key_seq, per_factor, n_q, n_k, MASK: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr,
    SEQUENCE: tl.constexpr, KEYS_INSIDE=False,
):  # fmt: skip
    """The terms that are read once per score, of scores s that `capped` has seen already.

    query and key are the indices of the tile, one a row and one a column; back is their signed
    distance; the pointers are at this prompt and head. per_factor is log2(e) / factor: a bias in
    nats is then in the units of s. HIDDEN where the mask, a bias of -1e30 or less, or another
    packed sequence says so. KEYS_INSIDE: none of the tile's keys lies beyond the last one, so that
    they are read in vectors."""
    if MASK or BIAS:
        there = (query < n_q) & (key < n_k)
        if KEYS_INSIDE:
            there = query < n_q
        wide_query, wide_key = query.to(tl.int64), key.to(tl.int64)
    if BIAS:
        added = tl.load(p_bias + (wide_query * bias_q + wide_key * bias_k), there, 0.0)
        added = added.to(tl.float32)
        # Kept from -inf, which nothing here ever is.
        s = tl.where(added <= -1e30, HIDDEN, s + tl.maximum(added, -1e30) * per_factor)
    if ALIBI:
        s -= (slope * per_factor) * tl.abs(back).to(tl.float32)
    if MASK:
        shown = tl.load(p_mask + (wide_query * mask_q + wide_key * mask_k), there, 0)
        s = tl.where(shown != 0, s, HIDDEN)
    if SEQUENCE:
        own = tl.load(p_query_seq + query, query < n_q, -1)
        theirs = tl.load(p_key_seq + key, key < n_k, -2)
        s = tl.where(own == theirs, s, HIDDEN)
    return s


@triton.jit
def narrowed(ends, p_bounds, BLOCK: tl.constexpr):
    """The ranges (lo, middle, edge, hi) of a sweep cut to what a block can see, int32 [2] at
    `p_bounds`: other packed sequences are skipped."""
    lo, middle, edge, hi = ends
    first, stop = tl.load(p_bounds), tl.load(p_bounds + 1)
    lo = tl.maximum(lo, first // BLOCK * BLOCK)
    hi = tl.maximum(tl.minimum(hi, (stop + BLOCK - 1) // BLOCK * BLOCK), lo)
    middle = tl.minimum(tl.maximum(middle, lo), hi)
    return lo, middle, tl.minimum(tl.maximum(edge, middle), hi), hi


@triton.jit
def visible(  # noqa: PLR0913, PLR0917 - kernels have no keyword objects
    s, query, key, p_valid, terms, offset, window, inner, n_q, n_k, CHECK: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, VALID: tl.constexpr, SOFTCAP: tl.constexpr,
    MASK: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr, SEQUENCE: tl.constexpr,
):  # fmt: skip
    """Scores of products s, HIDDEN where the query does not see the key. CHECK: the tile touches an
    edge of the visible band or the end of the keys; `terms` are the arguments of `shifted`."""
    if SOFTCAP:
        s = capped(s, inner)
    back = query + offset - key
    s = shifted(s, query, key, back, *terms, n_q, n_k, MASK, BIAS, ALIBI, SEQUENCE,
                not CHECK)  # fmt: skip
    if CHECK:
        s = tl.where(within(back, window, CAUSAL, WINDOW) & (key < n_k), s, HIDDEN)
    if VALID:
        s = tl.where(tl.load(p_valid + key, key < n_k, 0) != 0, s, HIDDEN)
    return s


@triton.jit
def sharp_sums(  # noqa: PLR0917 - kernels have no keyword objects
    s, e, z, new, rose, down, alpha, total, tied, others, spread
):  # fmt: skip
    """Sums of e and of e log2(e) with the largest terms counted and the others summed: near 1
    float32 cannot hold what the entropy of a sharp row is made of."""
    below = tl.where(s < new[:, None], e, 0.0)
    rest = tl.sum(below, 1)
    count = tl.floor((total - rest) * (1.0 / LIFTED) + 0.5) * LIFTED
    apart = tl.sum(below * z, 1) - LIFT * rest
    spread = (spread + down * (tied + others)) * alpha + apart
    others = tl.where(rose, (tied + others) * alpha, others) + rest
    return tl.where(rose, 0.0, tied) + count, others, spread
