"""The Triton row pass: a program owns a block of queries and runs over the keys they can see.

A row is shifted by its running maximum and lifted: e = 2^LIFT exp2(factor * (s - max)). The lift is
part of the shift and costs nothing; sums are put down before they are written.

Dims: B batch, H query heads (head h reads kv head h // G), Q queries, K keys, D width, F features,
P splits of the keys; query i sits at position i + offset. Blocks own their outputs: no atomics, the
same bits every time. Importing this needs triton.
"""

# Optional, and typed for its compiler only.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from workbench.kernels.attention_stats.triton_tiles import (
    LIFT,
    LIFTED,
    START,
    load_tile,
    narrowed,
    sharp_sums,
    visible,
)


@triton.jit
def distance_sums(e, total, gap, from_end, alpha, far, farther, BEHIND: tl.constexpr):
    """Sums of e |i - j| and e (i - j)^2, where i - j is `gap`, of the row, plus `from_end`, of the
    key; exact in float32 up to 16 million. BEHIND: no key of the tile lies ahead of a row; both
    parts are then of one sign and can be summed apart without cancelling."""
    if BEHIND:
        first = tl.sum(e * from_end[None, :], 1)
        second = tl.sum(e * (from_end * from_end)[None, :], 1)
        far = far * alpha + (gap * total + first)
        return far, farther * alpha + ((gap * total + 2.0 * first) * gap + second)
    away = tl.abs(gap[:, None] + from_end[None, :])
    moment = e * away
    return far * alpha + tl.sum(moment, 1), farther * alpha + tl.sum(moment * away, 1)


@triton.jit
def repeat_sums(  # noqa: PLR0917 - kernels have no keyword objects
    e, back, p_ids, m_k, ids, alpha, duplicate, induction, BEHIND: tl.constexpr
):  # fmt: skip
    """Mass on earlier keys that hold the query's token, and on the keys after those. `p_ids` is at
    the key before each. BEHIND: every key of the tile is an earlier one."""
    same = tl.load(p_ids + 1, m_k, -1)[None, :] == ids
    after = tl.load(p_ids, m_k, -1)[None, :] == ids
    if not BEHIND:
        same, after = same & (back > 0), after & (back >= 0)
    duplicate = duplicate * alpha + tl.sum(tl.where(same, e, 0.0), 1)
    return duplicate, induction * alpha + tl.sum(tl.where(after, e, 0.0), 1)


@triton.jit
def feature_sums(  # noqa: PLR0917 - kernels have no keyword objects
    e, p_features, start, m_k, alpha, share, FEATURES: tl.constexpr, BLOCK_K: tl.constexpr,
    RAGGED: tl.constexpr,
):  # fmt: skip
    """Sums of e f for the features of each key. Every tile is summed from zero: tensor cores round
    towards zero, which a running sum would add up."""
    o_k, o_f = tl.arange(0, BLOCK_K), tl.arange(0, FEATURES)
    p_tile = p_features + tl.cast(start, tl.int64) * FEATURES
    f = load_tile(p_tile, o_k[:, None], o_f[None, :], FEATURES, 1, m_k[:, None], FEATURES, FEATURES,
                  RAGGED)  # fmt: skip
    high = e.to(tl.float16)
    low = (e - high.to(tl.float32)).to(tl.float16)
    return share * alpha[:, None] + tl.dot(low, f, tl.dot(high, f))


@triton.jit
def power_sums(e, z, down, alpha, total, power, POWER: tl.constexpr):
    """Sums of exp2(power * z); POWER 2 needs no second exponential. Put down already."""
    if POWER == 2:
        return total * (alpha * alpha) + tl.sum(e * e, 1) * (1.0 / (LIFTED * LIFTED))
    return total * tl.exp2(down * power) + tl.sum(tl.exp2((z - LIFT) * power), 1)


@triton.jit
def row_sweep(  # noqa: PLR0913, PLR0917 - one call per range of keys; everything is a register
    state, q, p_k, p_valid, p_ids, ids, p_features, extras, lo, hi, query, offset, n_q, n_k,
    stride_kn, stride_kd, window, factor, inner, power, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, FEATURES: tl.constexpr, CHECK: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, VALID: tl.constexpr, SOFTCAP: tl.constexpr,
    MASK: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr, SEQUENCE: tl.constexpr,
    SHARP: tl.constexpr, ARGMAX: tl.constexpr, DISTANCE: tl.constexpr, POWER: tl.constexpr,
    REPEATS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Carry the running sums of a block of rows over the keys lo..hi. CHECK: the range touches an
    edge of the visible band, or the end of the keys."""
    m, tied, others, spread, at, far, farther, powers, duplicate, induction, share = state
    o_k, o_d = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    from_end = (BLOCK_K - 1 - o_k).to(tl.float32)
    # Counted in tiles: the compiler then knows that a start is a multiple, and reads in vectors.
    for i_k in range((lo + BLOCK_K - 1) // BLOCK_K, (hi + BLOCK_K - 1) // BLOCK_K):
        start = i_k * BLOCK_K
        key = start + o_k
        m_k = key < n_k
        p_tile = p_k + tl.cast(start, tl.int64) * stride_kn
        k = load_tile(p_tile, o_k[None, :], o_d[:, None], stride_kn, stride_kd, m_k[None, :], WIDTH,
                      BLOCK_D, CHECK)  # fmt: skip
        s = tl.dot(q, k, input_precision=PRECISION)
        s = visible(
            s, query[:, None], key[None, :], p_valid, extras, offset, window, inner, n_q, n_k,
            CHECK, CAUSAL, WINDOW, VALID, SOFTCAP, MASK, BIAS, ALIBI, SEQUENCE,
        )  # fmt: skip
        new = tl.maximum(m, tl.max(s, 1))
        rose = new > m
        if ARGMAX:
            last = tl.max(tl.where(s < new[:, None], 0.0, from_end[None, :]), 1)
            at = tl.where(rose, start + (BLOCK_K - 1) - last.to(tl.int32), at)
        down = (m - new) * factor
        alpha = tl.exp2(down)
        z = s * factor - (new * factor - LIFT)[:, None]
        e = tl.exp2(z)
        total = tl.sum(e, 1)
        if SHARP:
            tied, others, spread = sharp_sums(
                s, e, z, new, rose, down, alpha, total, tied, others, spread
            )
        else:
            others = others * alpha + total
        if DISTANCE:
            gap = (query + offset - start - (BLOCK_K - 1)).to(tl.float32)
            far, farther = distance_sums(e, total, gap, from_end, alpha, far, farther,
                                         CAUSAL and not CHECK)  # fmt: skip
        if POWER > 0:
            powers = power_sums(e, z, down, alpha, powers, power, POWER)
        if REPEATS:
            back = (query + offset)[:, None] - key[None, :]
            duplicate, induction = repeat_sums(e, back, p_ids + key, m_k, ids, alpha, duplicate,
                                               induction, CAUSAL and not CHECK)  # fmt: skip
        if FEATURES > 0:
            share = feature_sums(e, p_features, start, m_k, alpha, share, FEATURES, BLOCK_K, CHECK)
        m = new
    return m, tied, others, spread, at, far, farther, powers, duplicate, induction, share


@triton.jit
def row_span(  # noqa: PLR0917 - kernels have no keyword objects
    begin, n_q, n_k, offset, window, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """(lo, middle, edge, hi): some row of the block sees keys lo..hi, every row middle..edge; a
    causal row has those behind it."""
    first, last = begin + offset, tl.minimum(begin + BLOCK_Q, n_q) - 1 + offset
    lo, inner_lo, hi, inner_hi = begin * 0, begin * 0, n_k, n_k
    if WINDOW:
        lo = tl.maximum(first - window + 1, 0) // BLOCK_K * BLOCK_K
        inner_lo = tl.maximum(last - window + 1, 0)
        hi, inner_hi = tl.minimum(last + window, n_k), tl.minimum(first + window, n_k)
    if CAUSAL:
        hi, inner_hi = tl.minimum(last + 1, n_k), tl.minimum(first, n_k)
    hi = tl.maximum(hi, lo)
    middle = tl.maximum((inner_lo + BLOCK_K - 1) // BLOCK_K * BLOCK_K, lo)
    middle = tl.minimum(middle, hi)
    return lo, middle, tl.maximum(tl.maximum(inner_hi, 0) // BLOCK_K * BLOCK_K, middle), hi


@triton.jit
def part_of(ends, i_part, parts, BLOCK_K: tl.constexpr):
    """One of `parts` runs of whole tiles of the ranges `ends`, as even as tiles allow."""
    lo, middle, edge, hi = ends
    tiles = (hi - lo + BLOCK_K - 1) // BLOCK_K
    each = (tiles + parts - 1) // parts * BLOCK_K
    first = tl.minimum(lo + i_part * each, hi)
    stop = tl.minimum(first + each, hi)
    middle = tl.minimum(tl.maximum(middle, first), stop)
    return first, middle, tl.minimum(tl.maximum(edge, middle), stop), stop


@triton.jit
def store_rows(  # noqa: PLR0913, PLR0917 - kernels have no keyword objects
    state, p_out, p_at, p_share, row, size, m_q, BLOCK_Q: tl.constexpr, FEATURES: tl.constexpr,
    SHARP: tl.constexpr, ARGMAX: tl.constexpr, DISTANCE: tl.constexpr, POWER: tl.constexpr,
    REPEATS: tl.constexpr,
):  # fmt: skip
    """Write what was asked for, put down; the order of `out` is SUMS in `triton_rows`."""
    m, tied, others, spread, at, far, farther, powers, duplicate, induction, share = state
    o_q = tl.arange(0, BLOCK_Q)
    p_out += row + o_q
    tl.store(p_out, m, m_q)
    tl.store(p_out + size, others * (1.0 / LIFTED), m_q)
    if SHARP:
        tl.store(p_out + 2 * size, tied * (1.0 / LIFTED), m_q)
        tl.store(p_out + 3 * size, spread * (1.0 / LIFTED), m_q)
    if DISTANCE:
        tl.store(p_out + 4 * size, far * (1.0 / LIFTED), m_q)
        tl.store(p_out + 5 * size, farther * (1.0 / LIFTED), m_q)
    if POWER > 0:
        tl.store(p_out + 6 * size, powers, m_q)
    if REPEATS:
        tl.store(p_out + 7 * size, duplicate * (1.0 / LIFTED), m_q)
        tl.store(p_out + 8 * size, induction * (1.0 / LIFTED), m_q)
    if ARGMAX:
        tl.store(p_at + row + o_q, at, m_q)
    if FEATURES > 0:
        p_share += row * FEATURES + o_q[:, None] * FEATURES + tl.arange(0, FEATURES)[None, :]
        tl.store(p_share, share * (1.0 / LIFTED), m_q[:, None])


@triton.jit(do_not_specialize=("n_q", "n_k", "offset", "window", "splits", "power"))
def row_kernel(  # noqa: PLR0913, PLR0917 - a launch has no keyword objects
    p_q, p_k, p_valid, p_query_ids, p_key_ids, p_features, feature_b, feature_h, p_bounds, p_out,
    p_at, p_share, splits, power, n_heads, groups, n_q, n_k, offset, window, factor, inner,
    stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kh, stride_kn, stride_kd, p_mask,
    mask_b, mask_h, mask_q, mask_k, p_bias, bias_b, bias_h, bias_q, bias_k, p_slope, p_query_seq,
    p_key_seq, per_factor, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr, FEATURES: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    VALID: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, SEQUENCE: tl.constexpr, SHARP: tl.constexpr, ARGMAX: tl.constexpr,
    DISTANCE: tl.constexpr, POWER: tl.constexpr, REPEATS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Row pass: one program owns BLOCK_Q rows of one head, or one of `splits` runs of their keys.
    Writes sums shifted by the maximum to `out` [9, P, B, H, Q], the argmax to `at` [P, B, H, Q],
    feature sums to `share` [P, B, H, Q, F]."""
    # The last rows see most: they start first.
    i_q, i_h = (tl.num_programs(0) - 1 - tl.program_id(0)) // splits, tl.program_id(1)
    i_p, i_b = tl.program_id(0) % splits, tl.program_id(2).to(tl.int64)
    o_q, o_d = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_D)
    begin = i_q * BLOCK_Q
    query = begin + o_q
    m_q = query < n_q
    p_q += i_b * stride_qb + i_h.to(tl.int64) * stride_qh + begin.to(tl.int64) * stride_qn
    p_k += i_b * stride_kb + (i_h // groups).to(tl.int64) * stride_kh
    q = load_tile(p_q, o_q[:, None], o_d[None, :], stride_qn, stride_qd, m_q[:, None], WIDTH,
                  BLOCK_D, True)  # fmt: skip
    ids = query[:, None]
    if REPEATS:
        ids = tl.load(p_query_ids + i_b * n_q + query, m_q, -2)[:, None]
    slope = 0.0
    if ALIBI:
        slope = tl.load(p_slope + i_h)
    extras = (p_mask + i_b * mask_b + i_h.to(tl.int64) * mask_h, mask_q, mask_k,
              p_bias + i_b * bias_b + i_h.to(tl.int64) * bias_h, bias_q, bias_k, slope,
              p_query_seq + i_b * n_q, p_key_seq + i_b * n_k, per_factor)  # fmt: skip
    zero = tl.zeros([BLOCK_Q], tl.float32)
    share = tl.zeros([BLOCK_Q, FEATURES if FEATURES > 0 else 1], tl.float32)
    state = (zero + START, zero, zero, zero, o_q * 0, zero, zero, zero, zero, zero, share)
    p_valid += i_b * n_k
    p_key_ids += i_b * (n_k + 1)
    p_features += i_b * feature_b + (i_h // groups).to(tl.int64) * feature_h
    ends = row_span(begin, n_q, n_k, offset, window, BLOCK_Q, BLOCK_K, CAUSAL, WINDOW)
    if SEQUENCE:
        blocks = tl.num_programs(0) // splits
        ends = narrowed(ends, p_bounds + (i_b * blocks + i_q) * 2, BLOCK_K)
    ends = part_of(ends, i_p, splits, BLOCK_K)
    for i_part in tl.static_range(0, 3):
        if WINDOW or i_part > 0:
            state = row_sweep(
                state, q, p_k, p_valid, p_key_ids, ids, p_features, extras, ends[i_part],
                ends[i_part + 1], query, offset, n_q, n_k, stride_kn, stride_kd, window,
                factor, inner, power, BLOCK_K, BLOCK_D, WIDTH, FEATURES, i_part != 1, CAUSAL,
                WINDOW, VALID, SOFTCAP, MASK, BIAS, ALIBI, SEQUENCE, SHARP, ARGMAX, DISTANCE, POWER,
                REPEATS, PRECISION,
            )  # fmt: skip
    rows = tl.num_programs(2).to(tl.int64) * n_heads * n_q
    row = i_p * rows + (i_b * n_heads + i_h) * n_q + begin
    store_rows(state, p_out, p_at, p_share, row, rows * splits, m_q, BLOCK_Q, FEATURES, SHARP,
               ARGMAX, DISTANCE, POWER, REPEATS)  # fmt: skip
