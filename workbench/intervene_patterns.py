"""Edits of a head's pattern: rows given, mass moved between keys, a null logit in the denominator.

A pattern edit makes the whole map of one head of one call (`head_pattern`), changes rows, and lets
z follow from the values; the changed map goes into `call.patterns`, so that captures measure it.
Rows and heads that are not selected keep every bit of z.  A null logit needs no map: softmax with
one more logit s in the denominator is the old one times sigmoid(lse - s).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from workbench.calls import Call
from workbench.errors import WorkbenchError
from workbench.interventions import Intervention
from workbench.kernels.attention_stats import MAP_TERMS, attention_stats
from workbench.measuring import head_pattern
from workbench.positions import rows_of, whole_pattern

if TYPE_CHECKING:
    from workbench.models import Model


def write_pattern(
    model: Model, call: Call, z: torch.Tensor, what: Intervention, i: int, head: int, label: str
) -> torch.Tensor:
    """z [row, query, head, d_value] with the rows of one head put to the map that was given for
    it, the `i`-th."""
    value = torch.as_tensor(np.array(what.value)).to(call.q.device)
    given = value if value.dim() == 2 else value[i if value.shape[0] > 1 else 0]
    own = _own(call, head)
    rows = rows_of(model, call, what.queries, along="query")
    new = torch.where(rows[..., None], whole_pattern(call, given.to(own), label), own)
    return _with_map(call, z, head, new, rows)


def redistribute(
    model: Model, call: Call, z: torch.Tensor, what: Intervention, head: int, label: str
) -> torch.Tensor:
    """z with part of a head's mass moved from some keys to others, row by row (Kang et al. 2025,
    arXiv 2503.03321)."""
    keys, to, within = (
        rows_of(model, call, at, along="key") for at in (what.keys, what.to, what.within)
    )
    if bool((keys & to).any()):
        raise WorkbenchError(
            f"redistribute of {label}: keys={what.keys!r} and to={what.to!r} share positions of "
            "this prompt; mass can only move from some keys to others."
        )
    own = _own(call, head)
    given, taking, inside = (_mass(own, at) for at in (keys, to, within))
    rows = rows_of(model, call, what.queries, along="query") & (taking > 0) & (given > 0)
    # As a product: a row may have no mass at all where the condition looks.
    rows &= (inside >= what.least_mass) & (taking >= what.least_ratio * inside)
    moved = what.factor * given / torch.where(taking > 0, taking, torch.ones_like(taking))
    new = own * (1 - what.factor * keys[:, None]) + own * to[:, None] * moved[..., None]
    new = torch.where(rows[..., None], new, own)
    return _with_map(call, z, head, new, rows)


def _own(call: Call, head: int) -> torch.Tensor:
    """The map [row, query, key] of a head as it stands, after the edits before."""
    own = call.patterns.get(head)
    return head_pattern(call, head, call.terms) if own is None else own


def _mass(own: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Mass [row, query] of a map on some keys [row, key]."""
    return (own * keys[:, None]).sum(-1)


def _with_map(
    call: Call, z: torch.Tensor, head: int, new: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    call.patterns[head] = new
    kv_head = head // (call.site.n_heads // call.site.n_kv_heads)
    out = new.to(call.v.dtype) @ call.v[:, kv_head]
    z = z.clone()
    z[:, :, head] = torch.where(rows[..., None], out, z[:, :, head])
    return z


def add_null_logit(call: Call, z: torch.Tensor, logit: float, heads: list[int]) -> torch.Tensor:
    """z with one more logit in the denominator of some heads; the terms of the call say so to
    whoever measures it.

    A pattern put in place by an edit before shrinks by the same factor.
    """
    own = {name: call.terms[name] for name in MAP_TERMS if name in call.terms}
    lse = attention_stats(call.q, call.k, ["lse"], **own)["lse"]
    kept = torch.sigmoid(lse - logit)
    z = z.clone()
    for head in heads:
        z[:, :, head] *= kept[:, head, :, None].to(z.dtype)
        if head in call.patterns:
            call.patterns[head] = call.patterns[head] * kept[:, head, :, None]
    none = torch.full((call.site.n_heads,), -torch.inf, device=call.q.device)
    sink = call.terms.get("sink_logit", none).float().clone()
    sink[heads] = torch.logaddexp(sink[heads], sink.new_tensor(logit))
    call.terms = {**call.terms, "sink_logit": sink}
    # The forward's own log-sum-exp is without it.
    call.lse = None
    return z
