"""The ways of mixing positions: attention, and what is left of it when a principle is taken away.

Of Xue et al. 2025 (arXiv 2510.11602, section 3).  With scores s_ij = q_i'k_j / sqrt d_head and keys
j <= i only, head by head:

    standard         A_ij ~ exp s_ij
    approximate      A_ij ~ 1 + s_ij + s_ij^2 / 2, the second-order Taylor polynomial: never below
                     1/2, so its rows are weights
    non-approximate  A_ij ~ exp s_jj with q = SiLU(W_q h): every key has one score, its own

Rows sum to one.  Each row is normalised over its own past, which is what makes the softmax over
time of the last one causal: the denominator grows from query to query and never sees a later key.
The last two have a recurrent form, linear in the length, which here is written with running sums.
The paper prints the recurrence of the polynomial with a denominator per order (their equations 14
to 17); with one denominator, as here, it is the polynomial normalised, the form of Arora et al.
2024 (arXiv 2402.18668).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

# Rotary angles of a pair of coordinates: one radian per position for the first, BASE times slower
# for the one after the last.
BASE = 100.0


def rotate(x: Tensor) -> Tensor:
    """Rotary positions on [..., position, d_head]: coordinate i is paired with i + d_head / 2."""
    length, half = x.shape[-2], x.shape[-1] // 2
    rates = BASE ** (-torch.arange(half) / half)
    angles = torch.arange(length)[:, None] * rates
    a, b = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    """Pairwise scores [..., query, key] of q and k [..., position, d_head]."""
    return q @ k.mT / math.sqrt(q.shape[-1])


def gate_scores(q: Tensor, k: Tensor) -> Tensor:
    """Every key's one score with itself, the same for every query: [..., query, key]."""
    own = (functional.silu(q) * k).sum(dim=-1) / math.sqrt(q.shape[-1])
    return own[..., None, :].expand(*own.shape, own.shape[-1])


def softmax_rows(scores: Tensor) -> Tensor:
    """Softmax over the keys up to the query, [..., query, key]."""
    return scores.masked_fill(_hidden(scores), -math.inf).softmax(dim=-1)


def taylor_rows(scores: Tensor) -> Tensor:
    """1 + s + s^2/2 over the keys up to the query, divided by its sum, [..., query, key]."""
    raw = (1.0 + scores + 0.5 * scores.square()).masked_fill(_hidden(scores), 0.0)
    return raw / raw.sum(dim=-1, keepdim=True)


def taylor_recurrent(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The output of `taylor_rows` in time linear in the length: [..., position, d_value].

    phi(q)'phi(k) = 1 + s + s^2/2 for phi(x) = (1, x, x x' / sqrt 2) and x scaled by d_head^(-1/4);
    sums of phi(k) v' and of phi(k) run over positions.
    """
    q, k = (_features(x / x.shape[-1] ** 0.25) for x in (q, k))
    memory = (k[..., :, None] * v[..., None, :]).cumsum(dim=-3)
    out = torch.einsum("...tf,...tfd->...td", q, memory)
    return out / (q * k.cumsum(dim=-2)).sum(dim=-1, keepdim=True)


def gate_recurrent(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The output of the non-approximate head with running sums (their equation 18)."""
    weight = gate_scores(q, k)[..., 0, :].exp()[..., None]
    return (weight * v).cumsum(dim=-2) / weight.cumsum(dim=-2)


def _features(x: Tensor) -> Tensor:
    square = (x[..., :, None] * x[..., None, :]).flatten(-2) / math.sqrt(2.0)
    return torch.cat([torch.ones_like(x[..., :1]), x, square], dim=-1)


def _hidden(scores: Tensor) -> Tensor:
    """Keys after the query, bool [query, key]."""
    return torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
