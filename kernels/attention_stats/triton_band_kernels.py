"""Triton kernels for what needs no sweep over the map, given the lse: weights at few keys per
query, and sums over the keys near it.

Dims: B batch, H query heads (head h reads kv head h // G), Q queries, K keys, D width, N keys
looked at; query i sits at position i + offset. Blocks own their outputs: no atomics, the same bits
every time. Importing this needs triton.
"""

# Optional, and typed for its compiler only.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from workbench.kernels.attention_stats.triton_column_kernels import head_terms, log_weights, seen_by
from workbench.kernels.attention_stats.triton_tiles import START, load_tile


@triton.jit(do_not_specialize=("n", "n_q"))
def gather_kernel(  # noqa: PLR0913, PLR0917 - a launch has no keyword objects
    p_q, p_k, p_key, p_out, n, n_heads, groups, n_q, stride_qb, stride_qh, stride_qn, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """q.k of every query with n keys of its own, `key` int32 [B, N, Q] (-1: none, 0 is written), to
    `out` [B, H, N, Q]."""
    begin, i_h, i_b = tl.program_id(0) * BLOCK_Q, tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_q, o_d = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_D)
    m_q = begin + o_q < n_q
    p_q += i_b * stride_qb + i_h.to(tl.int64) * stride_qh + begin.to(tl.int64) * stride_qn
    p_k += i_b * stride_kb + (i_h // groups).to(tl.int64) * stride_kh
    p_key += i_b * n * n_q + begin + o_q
    p_out += (i_b * n_heads + i_h) * n * n_q + begin + o_q
    q = load_tile(p_q, o_q[:, None], o_d[None, :], stride_qn, stride_qd, m_q[:, None], WIDTH,
                  BLOCK_D, True).to(tl.float32)  # fmt: skip
    for i_n in range(0, n):
        at = tl.cast(i_n, tl.int64) * n_q
        key = tl.load(p_key + at, m_q, -1).to(tl.int64)
        there = key >= 0
        k = load_tile(p_k, key[:, None], o_d[None, :], stride_kn, stride_kd, there[:, None], WIDTH,
                      BLOCK_D, True)  # fmt: skip
        s = tl.sum(q * k.to(tl.float32), 1)
        tl.store(p_out + at, tl.where(there, s, 0.0), m_q)


@triton.jit(do_not_specialize=("n_q", "n_k", "offset", "low", "high", "waad", "local"))
def near_kernel(  # noqa: PLR0913, PLR0917 - a launch has no keyword objects
    p_q, p_k, p_lse, p_valid, p_out, waad, local, n_heads, groups, n_q, n_k, offset, low, high,
    factor, inner, stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kh, stride_kn,
    stride_kd, p_mask, mask_b, mask_h, mask_q, mask_k, p_bias, bias_b, bias_h, bias_q, bias_k,
    p_alibi, p_query_seq, p_key_seq, per_factor, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    VALID: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, SEQUENCE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over the keys at the signed distances low..high: one program owns BLOCK_Q queries of one
    head. To `out` [4, B, H, Q]: of p |d| and of p where |d| < waad, of p where |d| < local, and the
    number of visible keys where |d| < waad."""
    i_h, i_b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    begin = tl.program_id(0) * BLOCK_Q
    o_q, o_k, o_d = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    query = begin + o_q
    m_q = query < n_q
    p_q += i_b * stride_qb + i_h.to(tl.int64) * stride_qh + begin.to(tl.int64) * stride_qn
    p_k += i_b * stride_kb + (i_h // groups).to(tl.int64) * stride_kh
    row = (i_b * n_heads + i_h) * n_q + query
    q = load_tile(p_q, o_q[:, None], o_d[None, :], stride_qn, stride_qd, m_q[:, None], WIDTH,
                  BLOCK_D, True)  # fmt: skip
    lse = tl.load(p_lse + row, m_q, 2e30)[:, None]
    terms = head_terms(i_b, i_h, factor, inner, n_q, n_k, offset, p_mask, mask_b, mask_h, mask_q,
                       mask_k, p_bias, bias_b, bias_h, bias_q, bias_k, p_alibi, p_query_seq,
                       p_key_seq, per_factor, MASK, BIAS, ALIBI, SEQUENCE)  # fmt: skip
    moment, mass = tl.zeros([BLOCK_Q], tl.float32), tl.zeros([BLOCK_Q], tl.float32)
    close, count = tl.zeros([BLOCK_Q], tl.float32), tl.zeros([BLOCK_Q], tl.float32)
    first = tl.maximum(begin + offset - high, 0) // BLOCK_K * BLOCK_K
    stop = tl.minimum(tl.minimum(begin + BLOCK_Q, n_q) + offset - low, n_k)
    for start in range(first, stop, BLOCK_K):
        key = start + o_k
        m_k = key < n_k
        k = load_tile(p_k + tl.cast(start, tl.int64) * stride_kn, o_k[None, :], o_d[:, None],
                      stride_kn, stride_kd, m_k[None, :], WIDTH, BLOCK_D, True)  # fmt: skip
        if VALID:
            m_k = m_k & (tl.load(p_valid + i_b * n_k + key, m_k, 0) != 0)
        s = tl.dot(q, k, input_precision=PRECISION)
        z = log_weights(s, lse, query[:, None], key[None, :], terms, SOFTCAP, MASK, BIAS, ALIBI,
                        SEQUENCE)  # fmt: skip
        back = (query + offset)[:, None] - key[None, :]
        seen = seen_by(back, low, high, LOW, HIGH) & m_k[None, :] & (z > START)
        p = tl.where(seen, tl.exp2(z), 0.0)
        away = tl.abs(back)
        close += tl.sum(tl.where(away < local, p, 0.0), 1)
        p = tl.where(away < waad, p, 0.0)
        count += tl.sum((seen & (away < waad)).to(tl.float32), 1)
        mass += tl.sum(p, 1)
        moment += tl.sum(p * away.to(tl.float32), 1)
    size = tl.num_programs(2).to(tl.int64) * n_heads * n_q
    tl.store(p_out + row, moment, m_q)
    tl.store(p_out + size + row, mass, m_q)
    tl.store(p_out + 2 * size + row, close, m_q)
    tl.store(p_out + 3 * size + row, count, m_q)
