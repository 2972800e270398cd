"""Triton kernels for statistics of the map as a whole, given the rows' lse: sums and maxima of
blocks, sums along diagonals.

Dims: B batch, H query heads (head h reads kv head h // G), Q queries, K keys, D width; query i sits
at position i + offset. Blocks own their outputs: no atomics, the same bits every time. Importing
this needs triton.
"""

# Optional, and typed for its compiler only.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from workbench.kernels.attention_stats.triton_column_kernels import (
    column_span,
    head_terms,
    log_weights,
    seen_by,
)
from workbench.kernels.attention_stats.triton_tiles import load_tile, narrowed


@triton.jit
def weights(  # noqa: PLR0913, PLR0917 - kernels have no keyword objects
    keys, p_q, p_lse, p_valid, first, o_q, m_q, band, terms, stride_qn, stride_qd,
    BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, CHECK: tl.constexpr, RAGGED: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, CLEAN: tl.constexpr, VALID: tl.constexpr,
    SOFTCAP: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr,
    SEQUENCE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """p of a tile, keys by the queries first + o_q, 0 where anything hides it. `keys` are (k, their
    indices, m_k); m_q and m_k tell which count: all without CHECK, all queries that exist without
    RAGGED. The lse goes on beyond the last query; the pointers are at this prompt and head."""
    k, key, m_k = keys
    query, o_d = first + o_q, tl.arange(0, BLOCK_D)
    q = load_tile(p_q + tl.cast(first, tl.int64) * stride_qn, o_q[None, :], o_d[:, None], stride_qn,
                  stride_qd, m_q[None, :], WIDTH, BLOCK_D, CHECK)  # fmt: skip
    lse = tl.load(p_lse + query)
    s = tl.dot(k, q, input_precision=PRECISION)
    z = log_weights(s, lse[None, :], query[None, :], key[:, None], terms, SOFTCAP, MASK, BIAS,
                    ALIBI, SEQUENCE)  # fmt: skip
    p = tl.exp2(z)
    if CHECK:
        _, _, offset, low, high = band
        back = (query + offset)[None, :] - key[:, None]
        p = tl.where(seen_by(back, low, high, LOW, HIGH), p, 0.0)
        p = tl.where(m_k[:, None], p, 0.0)
    if RAGGED:
        p = tl.where(m_q[None, :], p, 0.0)
    if CLEAN:
        # Padding may hold NaN.
        p = tl.where((lse < 1e29)[None, :], p, 0.0)
    if VALID:
        there = tl.load(p_valid + key, m_k, 0) if CHECK else tl.load(p_valid + key)
        p = tl.where((there != 0)[:, None], p, 0.0)
    return p


@triton.jit
def some_keys(  # noqa: PLR0917 - kernels have no keyword objects
    p_k, i_k, at_k, pool_k, n_k, stride_kn, stride_kd, BLOCK_K: tl.constexpr, PART_K: tl.constexpr,
    BLOCK_D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """(k, key, m_k) of a tile: PART_K keys, from the at_k-th on, of each block of keys of group
    i_k."""
    o_n, o_d = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    o_k, in_k = o_n // PART_K * pool_k + o_n % PART_K, o_n % PART_K
    first = i_k * (BLOCK_K // PART_K) * pool_k + at_k
    m_k = (at_k + in_k < pool_k) & (first + o_k < n_k)
    k = load_tile(p_k + tl.cast(first, tl.int64) * stride_kn, o_k[:, None], o_d[None, :], stride_kn,
                  stride_kd, m_k[:, None], WIDTH, BLOCK_D, True)  # fmt: skip
    return k, first + o_k, m_k


@triton.jit
def block_sweep(  # noqa: PLR0913, PLR0917 - one call per range of blocks of queries
    p_q, p_k, p_lse, p_valid, p_mass, p_most, pool_q, pool_k, i_k, lo, hi, cells_q, cells_k, band,
    terms, stride_qn, stride_qd, stride_kn, stride_kd, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, PART_Q: tl.constexpr, PART_K: tl.constexpr,
    WHOLE: tl.constexpr, HELD: tl.constexpr, CHECK: tl.constexpr, LOW: tl.constexpr,
    HIGH: tl.constexpr, CLEAN: tl.constexpr, VALID: tl.constexpr, SOFTCAP: tl.constexpr,
    MASK: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr, SEQUENCE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum and largest p of the blocks of keys of a program with the groups lo..hi of blocks of
    queries. HELD: one tile holds those keys; without CHECK every query sees every key and no block
    is ragged."""
    CELLS_Q: tl.constexpr = BLOCK_Q // PART_Q
    CELLS_K: tl.constexpr = BLOCK_K // PART_K
    o_n, cell_k = tl.arange(0, BLOCK_Q), i_k * CELLS_K + tl.arange(0, CELLS_K)
    o_q, in_q = o_n // PART_Q * pool_q + o_n % PART_Q, o_n % PART_Q
    keys = some_keys(p_k, i_k, 0, pool_k, band[1], stride_kn, stride_kd, BLOCK_K, PART_K, BLOCK_D,
                     WIDTH)  # fmt: skip
    for i_q in range(lo, hi):
        mass = tl.zeros([BLOCK_K, CELLS_Q], tl.float32)
        most = tl.zeros([BLOCK_K, CELLS_Q], tl.float32)
        for at_k in range(0, pool_k, PART_K):
            if not HELD:
                keys = some_keys(p_k, i_k, at_k, pool_k, band[1], stride_kn, stride_kd, BLOCK_K,
                                 PART_K, BLOCK_D, WIDTH)  # fmt: skip
            for at_q in range(0, pool_q, PART_Q):
                first = i_q * CELLS_Q * pool_q + at_q
                m_q = (at_q + in_q < pool_q) & (first + o_q < band[0])
                p = weights(keys, p_q, p_lse, p_valid, first, o_q, m_q, band, terms, stride_qn,
                            stride_qd, BLOCK_D, WIDTH, CHECK, not WHOLE, LOW, HIGH, CLEAN, VALID,
                            SOFTCAP, MASK, BIAS, ALIBI, SEQUENCE, PRECISION)  # fmt: skip
                if CELLS_Q == 1:
                    mass += tl.sum(p, 1)[:, None]
                    most = tl.maximum(most, tl.max(p, 1)[:, None])
                else:
                    p = tl.reshape(p, [BLOCK_K, CELLS_Q, PART_Q])
                    mass += tl.sum(p, 2)
                    most = tl.maximum(most, tl.max(p, 2))
        mass = tl.sum(tl.reshape(mass, [CELLS_K, PART_K, CELLS_Q]), 1)
        most = tl.max(tl.reshape(most, [CELLS_K, PART_K, CELLS_Q]), 1)
        cell_q = i_q * CELLS_Q + tl.arange(0, CELLS_Q)
        there = (cell_q < cells_q)[None, :] & (cell_k < cells_k)[:, None]
        cell = cell_q.to(tl.int64)[None, :] * cells_k + cell_k[:, None]
        tl.store(p_mass + cell, mass, there)
        tl.store(p_most + cell, most, there)


@triton.jit(do_not_specialize=("n_q", "n_k", "offset", "low", "high", "pool_q", "pool_k", "part"))
def block_kernel(  # noqa: PLR0913, PLR0917 - a launch has no keyword objects
    p_q, p_k, p_lse, p_valid, p_mass, p_most, p_bounds, pool_q, pool_k, part, n_heads, groups, n_q,
    n_k, offset, low, high, factor, inner, stride_qb, stride_qh, stride_qn, stride_qd, stride_kb,
    stride_kh, stride_kn, stride_kd, p_mask, mask_b, mask_h, mask_q, mask_k, p_bias, bias_b, bias_h,
    bias_q, bias_k, p_alibi, p_query_seq, p_key_seq, per_factor, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, PART_Q: tl.constexpr,
    PART_K: tl.constexpr, WHOLE: tl.constexpr, HELD: tl.constexpr, LOW: tl.constexpr,
    HIGH: tl.constexpr, CLEAN: tl.constexpr, VALID: tl.constexpr, SOFTCAP: tl.constexpr,
    MASK: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr, SEQUENCE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum and largest p of blocks of pool_q queries by pool_k keys, to `mass` and `most`
    [B, H, query blocks, key blocks], which hold zeros; `lse` is [B, H, whole groups of queries and
    another tile].

    A tile holds PART_K tokens of each of BLOCK_K // PART_K blocks of keys, the same for queries:
    several small blocks, or a part of a large one; WHOLE: the parts fill the blocks; HELD: one part
    of the keys does. A program owns
    those blocks of keys with `part` such groups of blocks of queries."""
    i_h, i_b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    cells_q, cells_k = (n_q + pool_q - 1) // pool_q, (n_k + pool_k - 1) // pool_k
    width, height = BLOCK_K // PART_K * pool_k, BLOCK_Q // PART_Q * pool_q
    n_groups = (n_k + width - 1) // width
    i_k, i_part = tl.program_id(0) % n_groups, tl.program_id(0) // n_groups
    p_q += i_b * stride_qb + i_h.to(tl.int64) * stride_qh
    p_k += i_b * stride_kb + (i_h // groups).to(tl.int64) * stride_kh
    p_lse += (i_b * n_heads + i_h) * ((n_q + height - 1) // height * height + BLOCK_Q)
    p_valid += i_b * n_k
    p_mass += (i_b * n_heads + i_h) * cells_q * cells_k
    p_most += (i_b * n_heads + i_h) * cells_q * cells_k
    band = (n_q, n_k, offset, low, high)
    terms = head_terms(i_b, i_h, factor, inner, n_q, n_k, offset, p_mask, mask_b, mask_h, mask_q,
                       mask_k, p_bias, bias_b, bias_h, bias_q, bias_k, p_alibi, p_query_seq,
                       p_key_seq, per_factor, MASK, BIAS, ALIBI, SEQUENCE)  # fmt: skip
    ends = column_span(i_k * width, (i_k + 1) * width, band, height, LOW, HIGH)
    if SEQUENCE:
        ends = narrowed(ends, p_bounds + (i_b * n_groups + i_k) * 2, height)
    lo, middle, edge, hi = ends
    if not WHOLE:
        middle = hi
    middle = tl.where((i_k + 1) * width > n_k, hi, middle)
    ends = (lo, middle, tl.maximum(edge, middle), hi)
    for i_range in tl.static_range(0, 3):
        if WHOLE or i_range == 0:
            first = tl.maximum((ends[i_range] + height - 1) // height, i_part * part)
            stop = tl.minimum((ends[i_range + 1] + height - 1) // height, (i_part + 1) * part)
            block_sweep(
                p_q, p_k, p_lse, p_valid, p_mass, p_most, pool_q, pool_k, i_k, first, stop, cells_q,
                cells_k, band, terms, stride_qn, stride_qd, stride_kn, stride_kd, BLOCK_Q, BLOCK_K,
                BLOCK_D, WIDTH, PART_Q, PART_K, WHOLE, HELD, i_range != 1, LOW, HIGH, CLEAN, VALID,
                SOFTCAP, MASK, BIAS, ALIBI, SEQUENCE, PRECISION,
            )  # fmt: skip


@triton.jit
def diagonal_sweep(  # noqa: PLR0913, PLR0917 - one call per range of tiles
    total, p_q, p_k, p_lse, p_valid, apart, lo, hi, band, terms, stride_qn, stride_qd, stride_kn,
    stride_kd, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr,
    CHECK: tl.constexpr, CLEAN: tl.constexpr, VALID: tl.constexpr, SOFTCAP: tl.constexpr,
    MASK: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr, SEQUENCE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the tiles lo..hi of a diagonal of square blocks. What lies at a hidden distance is added
    as well; it lies at the same entries in every tile."""
    o_n, o_d = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    for i_k in range(lo, hi):
        key, first = i_k * BLOCK + o_n, (i_k + apart) * BLOCK
        m_q, m_k = first + o_n < band[0], key < band[1]
        k = load_tile(p_k + tl.cast(i_k, tl.int64) * BLOCK * stride_kn, o_n[:, None], o_d[None, :],
                      stride_kn, stride_kd, m_k[:, None], WIDTH, BLOCK_D, CHECK)  # fmt: skip
        total += weights((k, key, m_k), p_q, p_lse, p_valid, first, o_n, m_q, band, terms,
                         stride_qn, stride_qd, BLOCK_D, WIDTH, CHECK, False, False, False, CLEAN,
                         VALID, SOFTCAP, MASK, BIAS, ALIBI, SEQUENCE, PRECISION)  # fmt: skip
    return total


@triton.jit(do_not_specialize=("n_q", "n_k", "offset", "low", "high"))
def diagonal_kernel(  # noqa: PLR0913, PLR0917 - a launch has no keyword objects
    p_q, p_k, p_lse, p_valid, p_out, n_heads, groups, n_q, n_k, offset, low, high, factor, inner,
    stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kh, stride_kn, stride_kd, p_mask,
    mask_b, mask_h, mask_q, mask_k, p_bias, bias_b, bias_h, bias_q, bias_k, p_alibi, p_query_seq,
    p_key_seq, per_factor, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, CLEAN: tl.constexpr,
    VALID: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, SEQUENCE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of p along diagonals. A program owns one diagonal of square blocks: its tiles all lie at
    the same distances, so they are added entry by entry, and only their sum is summed along
    diagonals. `lse` is [B, H, whole blocks of queries], `out` [B, H, diagonals of blocks, 2,
    BLOCK_Q]: of query - key at 0..BLOCK_Q - 1 above the first distance of the block, and at that
    many below it."""
    n_blocks_q, n_blocks_k = (n_q + BLOCK_Q - 1) // BLOCK_Q, (n_k + BLOCK_K - 1) // BLOCK_K
    i_h, i_b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    apart = tl.program_id(0) - (n_blocks_k - 1)
    o_n = tl.arange(0, BLOCK_Q)
    p_q += i_b * stride_qb + i_h.to(tl.int64) * stride_qh
    p_k += i_b * stride_kb + (i_h // groups).to(tl.int64) * stride_kh
    p_lse += (i_b * n_heads + i_h) * n_blocks_q * BLOCK_Q
    p_valid += i_b * n_k
    band = (n_q, n_k, offset, low, high)
    terms = head_terms(i_b, i_h, factor, inner, n_q, n_k, offset, p_mask, mask_b, mask_h, mask_q,
                       mask_k, p_bias, bias_b, bias_h, bias_q, bias_k, p_alibi, p_query_seq,
                       p_key_seq, per_factor, MASK, BIAS, ALIBI, SEQUENCE)  # fmt: skip
    lo, hi = tl.maximum(0, -apart), tl.minimum(n_blocks_k, n_blocks_q - apart)
    middle = apart * BLOCK_Q + offset
    if LOW:
        hi = tl.where(middle + BLOCK_Q <= low, lo, hi)
    if HIGH:
        hi = tl.where(middle - BLOCK_Q >= high, lo, hi)
    full = tl.maximum(tl.minimum(tl.minimum(hi, n_k // BLOCK_K), n_q // BLOCK_Q - apart), lo)
    total = tl.zeros([BLOCK_K, BLOCK_Q], tl.float32)
    for i_range in tl.static_range(0, 2):
        begin, end = (full, hi) if i_range == 1 else (lo, full)
        total = diagonal_sweep(
            total, p_q, p_k, p_lse, p_valid, apart, begin, end, band, terms, stride_qn, stride_qd,
            stride_kn, stride_kd, BLOCK_Q, BLOCK_D, WIDTH, i_range == 1, CLEAN, VALID, SOFTCAP,
            MASK, BIAS, ALIBI, SEQUENCE, PRECISION,
        )  # fmt: skip
    seen = seen_by(middle + o_n[None, :] - o_n[:, None], low, high, LOW, HIGH)
    # Entry (c, t) becomes the one of key c and query c + t, around the corner where that ends.
    turned = o_n[:, None] + o_n[None, :]
    total = tl.gather(tl.where(seen, total, 0.0), turned % BLOCK_Q, 1)
    above = tl.sum(tl.where(turned < BLOCK_Q, total, 0.0), 0)
    below = tl.sum(tl.where(turned < BLOCK_Q, 0.0, total), 0)
    p_out += ((i_b * n_heads + i_h) * tl.num_programs(0) + tl.program_id(0)) * 2 * BLOCK_Q
    tl.store(p_out + o_n, above)
    tl.store(p_out + BLOCK_Q + o_n, below)
