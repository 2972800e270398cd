"""Triton kernels behind top_keys: the largest score of each block of keys, then the scores of the
few blocks that can hold one of the largest.

Dims: B batch, H query heads (head h reads kv head h // G), Q queries, K keys, D width; a launch
looks at R queries of N heads of one prompt, and at their T blocks of keys. Query i sits at position
i + offset. Blocks own their outputs: no atomics, the same bits every time. Importing this needs
triton.
"""

# Optional, and typed for its compiler only.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from workbench.kernels.attention_stats.triton_row_kernels import part_of, row_span
from workbench.kernels.attention_stats.triton_tiles import (
    load_tile,
    narrowed,
    visible,
)


@triton.jit(do_not_specialize=(
    "i_b", "head", "row", "rows", "splits", "n_q", "n_k", "offset", "window",
))  # fmt: skip
def peak_kernel(  # noqa: PLR0913, PLR0917 - the arguments all launches share
    p_q, p_k, p_valid, p_bounds, p_out, splits, i_b, head, row, rows, n_heads, groups, n_q, n_k,  # noqa: ARG001 - as in every launch
    offset, window, factor, inner, stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kh,  # noqa: ARG001 - as in every launch
    stride_kn, stride_kd, p_mask, mask_b, mask_h, mask_q, mask_k, p_bias, bias_b, bias_h, bias_q,
    bias_k, p_slope, p_query_seq, p_key_seq, per_factor, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, VALID: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr,
    BIAS: tl.constexpr, ALIBI: tl.constexpr, SEQUENCE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The largest score of every block of keys: `out` [N, R, T] for the queries from `row` and the
    heads from `head` of prompt i_b. Blocks that no query of a program sees are left as they are."""
    i_q, i_p, i_n = tl.program_id(0) // splits, tl.program_id(0) % splits, tl.program_id(1)
    i_h, i_b = (head + i_n).to(tl.int64), tl.cast(i_b, tl.int64)
    o_q, o_k, o_d = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    begin = row + i_q * BLOCK_Q
    query = begin + o_q
    m_q = query < n_q
    p_q += i_b * stride_qb + i_h * stride_qh + tl.cast(begin, tl.int64) * stride_qn
    p_k += i_b * stride_kb + (i_h // groups) * stride_kh
    q = load_tile(p_q, o_q[:, None], o_d[None, :], stride_qn, stride_qd, m_q[:, None], WIDTH,
                  BLOCK_D, True)  # fmt: skip
    slope = 0.0
    if ALIBI:
        slope = tl.load(p_slope + i_h)
    terms = (p_mask + i_b * mask_b + i_h * mask_h, mask_q, mask_k,
             p_bias + i_b * bias_b + i_h * bias_h, bias_q, bias_k, slope, p_query_seq + i_b * n_q,
             p_key_seq + i_b * n_k, per_factor)  # fmt: skip
    ends = row_span(begin, n_q, n_k, offset, window, BLOCK_Q, BLOCK_K, CAUSAL, WINDOW)
    if SEQUENCE:
        blocks = (n_q + BLOCK_Q - 1) // BLOCK_Q
        ends = narrowed(ends, p_bounds + (i_b * blocks + begin // BLOCK_Q) * 2, BLOCK_K)
    first, _, _, stop = part_of(ends, i_p, splits, BLOCK_K)
    n_blocks = (n_k + BLOCK_K - 1) // BLOCK_K
    p_out += (tl.cast(i_n, tl.int64) * rows + i_q * BLOCK_Q + o_q) * n_blocks
    for i_k in range((first + BLOCK_K - 1) // BLOCK_K, (stop + BLOCK_K - 1) // BLOCK_K):
        start = i_k * BLOCK_K
        key = (start + o_k)[None, :]
        p_tile = p_k + tl.cast(start, tl.int64) * stride_kn
        k = load_tile(p_tile, o_k[None, :], o_d[:, None], stride_kn, stride_kd, key < n_k, WIDTH,
                      BLOCK_D, True)  # fmt: skip
        s = tl.dot(q, k, input_precision=PRECISION)
        s = visible(
            s, query[:, None], key, p_valid + i_b * n_k, terms, offset, window, inner, n_q, n_k,
            True, CAUSAL, WINDOW, VALID, SOFTCAP, MASK, BIAS, ALIBI, SEQUENCE,
        )  # fmt: skip
        tl.store(p_out + i_k, tl.max(s, 1), m_q)


@triton.jit(do_not_specialize=("i_b", "head", "row", "rows", "n_q", "n_k", "offset", "window"))
def chosen_kernel(  # noqa: PLR0913, PLR0917 - the arguments all launches share
    p_q, p_k, p_valid, p_block, p_out, i_b, head, row, rows, n_heads, groups, n_q, n_k, offset,  # noqa: ARG001 - as in every launch
    window, factor, inner, stride_qb, stride_qh, stride_qn, stride_qd, stride_kb, stride_kh,  # noqa: ARG001 - as in every launch
    stride_kn, stride_kd, p_mask, mask_b, mask_h, mask_q, mask_k, p_bias, bias_b, bias_h, bias_q,
    bias_k, p_slope, p_query_seq, p_key_seq, per_factor, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    VALID: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, SEQUENCE: tl.constexpr,
):  # fmt: skip
    """The scores of chosen blocks: `block` int32 [N, R, C] to `out` [N, R, C, BLOCK_K], one program
    per query and block."""
    i_r, i_c, i_n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i_h, i_b = (head + i_n).to(tl.int64), tl.cast(i_b, tl.int64)
    o_k, o_d = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    at = (tl.cast(i_n, tl.int64) * rows + i_r) * tl.num_programs(1) + i_c
    key = tl.load(p_block + at) * BLOCK_K + o_k
    query = row + i_r + o_k * 0
    p_q += i_b * stride_qb + i_h * stride_qh + tl.cast(row + i_r, tl.int64) * stride_qn
    p_k += i_b * stride_kb + (i_h // groups) * stride_kh
    q = tl.load(p_q + o_d * stride_qd, o_d < WIDTH, 0.0).to(tl.float32)
    k = load_tile(p_k, key.to(tl.int64)[:, None], o_d[None, :], stride_kn, stride_kd,
                  (key < n_k)[:, None], WIDTH, BLOCK_D, True)  # fmt: skip
    slope = 0.0
    if ALIBI:
        slope = tl.load(p_slope + i_h)
    terms = (p_mask + i_b * mask_b + i_h * mask_h, mask_q, mask_k,
             p_bias + i_b * bias_b + i_h * bias_h, bias_q, bias_k, slope, p_query_seq + i_b * n_q,
             p_key_seq + i_b * n_k, per_factor)  # fmt: skip
    s = tl.sum(q[None, :] * k.to(tl.float32), 1)
    s = visible(s, query, key, p_valid + i_b * n_k, terms, offset, window, inner, n_q, n_k, True,
                CAUSAL, WINDOW, VALID, SOFTCAP, MASK, BIAS, ALIBI, SEQUENCE)  # fmt: skip
    tl.store(p_out + at * BLOCK_K + o_k, s)
