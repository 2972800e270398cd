"""The Triton column pass: a program owns a block of keys and runs over the queries that see them,
given their lse. The tile is transposed, keys by queries: what a key is summed over lies along the
axis that a thread holds.

Dims: B batch, H query heads (head h reads kv head h // G), Q queries, K keys, D width, F features;
query i sits at position i + offset. Blocks own their outputs: no atomics, the same bits every time.
Importing this needs triton.
"""

# Optional, and typed for its compiler only.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from workbench.kernels.attention_stats.triton_row_kernels import LIFT, LIFTED, sharp_sums
from workbench.kernels.attention_stats.triton_tiles import (
    HIDDEN,
    START,
    capped,
    load_tile,
    narrowed,
    shifted,
)


@triton.jit
def log_weights(  # noqa: PLR0917 - kernels have no keyword objects
    s, lse, query, key, terms, SOFTCAP: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, SEQUENCE: tl.constexpr,
):  # fmt: skip
    """log2 p of a tile of products s, -2e30 where a mask, a bias or a sequence hides it. query and
    key are the indices of the tile, one a row and one a column; lse lies along the queries, in
    units of log 2, 2e30 for a row without a pattern; `terms` are of `head_terms`."""
    (factor, inner, n_q, n_k, offset, p_mask, mask_q, mask_k, p_bias, bias_q, bias_k, slope, p_own,
     p_theirs, per_factor) = terms  # fmt: skip
    if SOFTCAP:
        s = capped(s, inner)
    if MASK or BIAS or ALIBI or SEQUENCE:
        s = shifted(s, query, key, query + offset - key, p_mask, mask_q, mask_k, p_bias, bias_q,
                    bias_k, slope, p_own, p_theirs, per_factor, n_q, n_k, MASK, BIAS, ALIBI,
                    SEQUENCE)  # fmt: skip
    z = s * factor - lse
    return tl.where(s > START, z, HIDDEN) if MASK or BIAS or SEQUENCE else z


@triton.jit
def seen_by(back, low, high, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Which signed distances `back` of a tile lie in low..high; an upper end comes with a lower
    one."""
    if HIGH:
        # Of an unsigned number one comparison tells both ends.
        return (back - low).to(tl.uint32, bitcast=True) <= (high - low).to(tl.uint32, bitcast=True)
    return back >= low if LOW else back > -2147483648


@triton.jit
def head_terms(  # noqa: PLR0913, PLR0917 - kernels have no keyword objects
    i_b, i_h, factor, inner, n_q, n_k, offset, p_mask, mask_b, mask_h, mask_q, mask_k, p_bias,
    bias_b, bias_h, bias_q, bias_k, p_alibi, p_query_seq, p_key_seq, per_factor,
    MASK: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr, SEQUENCE: tl.constexpr,
):  # fmt: skip
    """What `log_weights` reads per score, at one prompt and head; i_b is int64."""
    slope = 0.0
    if MASK:
        p_mask += i_b * mask_b + i_h.to(tl.int64) * mask_h
    if BIAS:
        p_bias += i_b * bias_b + i_h.to(tl.int64) * bias_h
    if ALIBI:
        slope = tl.load(p_alibi + i_h)
    if SEQUENCE:
        p_query_seq += i_b * n_q
        p_key_seq += i_b * n_k
    return (factor, inner, n_q, n_k, offset, p_mask, mask_q, mask_k, p_bias, bias_q, bias_k, slope,
            p_query_seq, p_key_seq, per_factor)  # fmt: skip


@triton.jit
def moments(  # noqa: PLR0917 - kernels have no keyword objects
    p, seen, sums, here, count, mean, deviation, HIDES: tl.constexpr, VAR: tl.constexpr
):  # fmt: skip
    """Count of the visible queries, `here` in this tile, and mean and sum of squared deviations of
    p over them (Chan et al. 1983): no difference of large sums."""
    total = count + here
    if VAR:
        centre = sums / tl.maximum(here, 1.0)
        away = p - centre[:, None]
        if HIDES:
            away = tl.where(seen, away, 0.0)
        share = here / tl.maximum(total, 1.0)
        step = centre - mean
        deviation += tl.sum(away * away, 1) + step * step * count * share
        mean += step * share
    return total, mean, deviation


@triton.jit
def add_features(share, e, alpha, p_g, o_q, low_part, FEATURES: tl.constexpr):
    """share * alpha + e G on the tensor cores: e and G are two float16 parts each, 22 bits; the
    product of the small parts is left out. `p_g` is at the tile's first query."""
    o_g = tl.arange(0, FEATURES)
    p_g = p_g + o_q[:, None] * FEATURES + o_g[None, :]
    g_high, g_low = tl.load(p_g), tl.load(p_g + low_part)
    high = e.to(tl.float16)
    low = (e - high.to(tl.float32)).to(tl.float16)
    share = tl.dot(high, g_high, share * alpha[:, None])
    return tl.dot(low, g_high, tl.dot(high, g_low, share))


@triton.jit
def pairs_seen(
    z, query, key, band, EXACT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr
):  # fmt: skip
    """Which pairs of a tile are in reach; EXACT: and neither hidden otherwise nor of a row that is
    none, where log2 p is -2e30 or NaN."""
    _, _, offset, low, high = band
    seen = seen_by((query + offset)[None, :] - key[:, None], low, high, LOW, HIGH)
    return seen & (z > START) if EXACT else seen


@triton.jit
def profile_sums(  # noqa: PLR0917 - kernels have no keyword objects
    z, mass, best, tied, spread, share, p_g, o_q, low_part, ENTROPY: tl.constexpr,
    FEATURES: tl.constexpr,
):  # fmt: skip
    """Sums of a tile of log2 p relative to the key's largest p so far, which counts 2^15, `best`
    being its log2: a key that receives 1e-20 in all has a profile as well. Also p and its sum."""
    new = tl.maximum(best, tl.max(z, 1))
    down = best - new
    alpha = tl.exp2(down)
    y = z - (new - LIFT)[:, None]
    e = tl.exp2(y)
    sums = tl.sum(e, 1)
    if ENTROPY:
        tied, mass, spread = sharp_sums(
            z, e, y, new, new > best, down, alpha, sums, tied, mass, spread
        )
    else:
        mass = mass * alpha + sums
    if FEATURES > 0:
        share = add_features(share, e, alpha, p_g, o_q, low_part, FEATURES)
    unit = tl.exp2(new - LIFT)
    return mass, new, tied, spread, share, e * unit[:, None], sums * unit


@triton.jit
def column_sweep(  # noqa: PLR0913, PLR0917 - one call per range of queries
    state, k, p_q, p_lse, p_g, lo, hi, key, band, terms, stride_qn, stride_qd, low_part,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, CHECK: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, CLEAN: tl.constexpr, SOFTCAP: tl.constexpr,
    MASK: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr, SEQUENCE: tl.constexpr,
    BEST: tl.constexpr, COUNT: tl.constexpr, VAR: tl.constexpr, ENTROPY: tl.constexpr,
    FEATURES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Carry the running sums of a block of keys over the queries lo..hi."""
    mass, best, tied, spread, count, mean, deviation, share = state
    # Otherwise every query that is one sees every key of the block.
    PAIRS: tl.constexpr = CHECK or MASK or BIAS or SEQUENCE
    o_q, o_d = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_D)
    for start in range(lo, hi, BLOCK_Q):
        query = start + o_q
        p_tile = p_q + tl.cast(start, tl.int64) * stride_qn
        q = load_tile(p_tile, o_q[None, :], o_d[:, None], stride_qn, stride_qd,
                      (query < band[0])[None, :], WIDTH, BLOCK_D, CHECK)  # fmt: skip
        lse = tl.load(p_lse + tl.multiple_of(tl.cast(start, tl.int32), BLOCK_Q) + o_q)
        s = tl.dot(k, q, input_precision=PRECISION)
        z = log_weights(s, lse[None, :], query[None, :], key[:, None], terms, SOFTCAP, MASK, BIAS,
                        ALIBI, SEQUENCE)  # fmt: skip
        seen = lse[None, :] < 1e29
        if PAIRS:
            seen = pairs_seen(z, query, key, band, CLEAN or COUNT or VAR, CHECK and LOW,
                              CHECK and HIGH)  # fmt: skip
        if ENTROPY or FEATURES > 0:
            if PAIRS or CLEAN:
                z = tl.where(seen, z, HIDDEN)
            mass, best, tied, spread, share, p, sums = profile_sums(
                z, mass, best, tied, spread, share, p_g + tl.cast(start, tl.int64) * FEATURES, o_q,
                low_part, ENTROPY, FEATURES,
            )  # fmt: skip
        else:
            p = tl.exp2(z)
            if PAIRS:
                p = tl.where(seen, p, 0.0)
            elif CLEAN:
                # Padding may hold NaN, which is below nothing.
                p = tl.where(p < 1e30, p, 0.0)
            sums = tl.sum(p, 1)
            mass += sums
            if BEST:
                best = tl.maximum(best, tl.max(p, 1))
        if COUNT or VAR:
            here = tl.full([1], BLOCK_Q, tl.float32)
            if PAIRS or CLEAN:
                here = tl.sum(seen.to(tl.float32), 1)
            count, mean, deviation = moments(
                p, seen, sums, here, count, mean, deviation, PAIRS or CLEAN, VAR
            )
    return mass, best, tied, spread, count, mean, deviation, share


@triton.jit
def column_span(begin, end, band, block, LOW: tl.constexpr, HIGH: tl.constexpr):
    """(lo, middle, edge, hi): queries lo..hi see some key of begin..end, middle..edge every one;
    all but the last are whole blocks."""
    n_q, n_k, offset, low, high = band
    first, last = begin - offset, tl.minimum(end, n_k) - 1 - offset
    lo, inner_lo, hi, inner_hi = begin * 0, begin * 0, n_q, n_q
    if LOW:
        lo, inner_lo = first + low, last + low
    if HIGH:
        hi, inner_hi = tl.minimum(last + high + 1, n_q), tl.minimum(first + high + 1, n_q)
    lo = tl.maximum(lo, 0) // block * block
    hi = tl.maximum(hi, lo)
    middle = (tl.maximum(inner_lo, 0) + block - 1) // block * block
    middle = tl.minimum(tl.maximum(middle, lo), hi)
    return lo, middle, tl.maximum(tl.maximum(inner_hi, 0) // block * block, middle), hi


@triton.jit
def store_columns(  # noqa: PLR0917 - kernels have no keyword objects
    state, p_out, p_share, column, size, m_k, SHIFTED: tl.constexpr, BEST: tl.constexpr,
    COUNT: tl.constexpr, VAR: tl.constexpr, ENTROPY: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """Write what was asked for; the order of `out` is SUMS in `triton_columns`."""
    mass, best, tied, spread, count, mean, deviation, share = state
    p_out += column
    unit = 1.0 / LIFTED if SHIFTED else 1.0
    tl.store(p_out, mass * unit, m_k)
    if BEST or SHIFTED:
        tl.store(p_out + size, best, m_k)
    if ENTROPY:
        tl.store(p_out + 2 * size, tied * unit, m_k)
        tl.store(p_out + 3 * size, spread * unit, m_k)
    if COUNT or VAR:
        tl.store(p_out + 4 * size, count, m_k)
    if VAR:
        tl.store(p_out + 5 * size, mean, m_k)
        tl.store(p_out + 6 * size, deviation, m_k)
    if FEATURES > 0:
        p_share += column[:, None] * FEATURES + tl.arange(0, FEATURES)[None, :]
        tl.store(p_share, share * unit, m_k[:, None])


@triton.jit(do_not_specialize=("n_q", "n_k", "offset", "low", "high", "part"))
def column_kernel(  # noqa: PLR0913, PLR0917 - a launch has no keyword objects
    p_q, p_k, p_lse, p_g, p_out, p_share, p_bounds, part, n_heads, groups, n_q, n_k, offset, low,
    high, factor, inner, stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kh,
    stride_kn, stride_kd, p_mask, mask_b, mask_h, mask_q, mask_k, p_bias, bias_b, bias_h, bias_q,
    bias_k, p_alibi, p_query_seq, p_key_seq, per_factor, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, LOW: tl.constexpr,
    HIGH: tl.constexpr, CLEAN: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr,
    BIAS: tl.constexpr, ALIBI: tl.constexpr, SEQUENCE: tl.constexpr, BEST: tl.constexpr,
    COUNT: tl.constexpr, VAR: tl.constexpr, ENTROPY: tl.constexpr, FEATURES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Column pass: one program owns BLOCK_K keys of one query head and a part of the queries, whole
    blocks; `lse` is [B, H, whole blocks of queries]. Writes its sums to `out` [7, parts, B, H, K]
    and `share` [parts, B, H, K, F]; G is [2, B, whole blocks of queries, F], high and low part."""
    SHIFTED: tl.constexpr = ENTROPY or FEATURES > 0
    i_h, i_b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    # The first keys are seen most: they start first.
    n_blocks = (n_k + BLOCK_K - 1) // BLOCK_K
    i_k, i_part = tl.program_id(0) % n_blocks, tl.program_id(0) // n_blocks
    o_k, o_d = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    begin = i_k * BLOCK_K
    key = begin + o_k
    p_q += i_b * stride_qb + i_h.to(tl.int64) * stride_qh
    p_k += i_b * stride_kb + (i_h // groups).to(tl.int64) * stride_kh
    p_k += begin.to(tl.int64) * stride_kn
    k = load_tile(p_k, o_k[:, None], o_d[None, :], stride_kn, stride_kd, (key < n_k)[:, None],
                  WIDTH, BLOCK_D, True)  # fmt: skip
    whole = (n_q + BLOCK_Q - 1) // BLOCK_Q * BLOCK_Q
    p_lse += (i_b * n_heads + i_h) * whole
    p_g += i_b * whole * FEATURES
    low_part = tl.num_programs(2).to(tl.int64) * whole * FEATURES
    band = (n_q, n_k, offset, low, high)
    terms = head_terms(i_b, i_h, factor, inner, n_q, n_k, offset, p_mask, mask_b, mask_h, mask_q,
                       mask_k, p_bias, bias_b, bias_h, bias_q, bias_k, p_alibi, p_query_seq,
                       p_key_seq, per_factor, MASK, BIAS, ALIBI, SEQUENCE)  # fmt: skip
    ends = column_span(begin, begin + BLOCK_K, band, BLOCK_Q, LOW, HIGH)
    if SEQUENCE:
        ends = narrowed(ends, p_bounds + (i_b * n_blocks + i_k) * 2, BLOCK_Q)
    zero = tl.zeros([BLOCK_K], tl.float32)
    share = tl.zeros([BLOCK_K, FEATURES if FEATURES > 0 else 1], tl.float32)
    state = (zero, zero + START if SHIFTED else zero, zero, zero, zero, zero, zero, share)
    for i_range in tl.static_range(0, 3):
        # Nothing is hidden before the middle without a lower or an upper end.
        if i_range > 0 or LOW or HIGH:
            lo = tl.maximum(ends[i_range], i_part * part)
            hi = tl.minimum(ends[i_range + 1], (i_part + 1) * part)
            state = column_sweep(
                state, k, p_q, p_lse, p_g, lo, hi, key, band, terms, stride_qn, stride_qd, low_part,
                BLOCK_Q, BLOCK_D, WIDTH, i_range != 1, LOW, HIGH, CLEAN, SOFTCAP, MASK, BIAS, ALIBI,
                SEQUENCE, BEST, COUNT, VAR, ENTROPY, FEATURES, PRECISION,
            )  # fmt: skip
    n_rows = tl.num_programs(2).to(tl.int64) * n_heads
    column = (i_part * n_rows + i_b * n_heads + i_h) * n_k + key
    size = tl.num_programs(0) // n_blocks * n_rows * n_k
    store_columns(state, p_out, p_share, column, size, key < n_k, SHIFTED, BEST, COUNT, VAR,
                  ENTROPY, FEATURES)  # fmt: skip
