"""Statistics of one call of a site: the kernels' arguments for it, and what they give.

Queries and keys of a call stand at absolute positions (`Chunk`); what is passed to the kernels
counts from the call's first key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

from workbench.calls import Call
from workbench.chunks import Chunk, Rows
from workbench.errors import CaptureError
from workbench.kernels.attention_stats import (
    MAP_TERMS,
    attention_stats,
    passes,
    pattern,
    stats_from_pattern,
)
from workbench.schema import SAME_AXIS
from workbench.stats import ROLES

_NEEDS_IDS = ("duplicate_mass", "induction_mass")
_BLOCKS = ("block_mass", "block_max")
# Means over the queries that can see a key: a map put in place of the head's own does not say
# which these are.
_OF_VISIBLE = ("key_var", "fai")


@dataclass(frozen=True)
class Asked:
    """What is asked of every call of the tower `kind`: statistics of the kernels by name, and the
    parameters they are defined with."""

    kind: str
    stats: tuple[str, ...]
    parameters: dict[str, Any]
    backend: str = "auto"

    @property
    def profits_from_lse(self) -> bool:
        """Whether the log-sum-exp of the model's own forward would spare a sweep over the map."""
        horizon = self.parameters.get("horizon")
        without, given = (passes(self.stats, lse=lse, horizon=horizon) for lse in (False, True))
        return len(given) < len(without)


def measure(call: Call, chunk: Chunk, rows: Rows | None, asked: Asked) -> dict[str, torch.Tensor]:
    """The statistics of `asked` that this call has, as the kernels return them."""
    terms = place(call, chunk, rows, asked)
    want = _possible(asked, terms)
    first = terms.get("first_key")
    outside = None
    if first is not None and bool((first < 0).any()):
        # The first token has left a sliding layer's cache: nothing can look at it.
        outside, terms["first_key"] = first < 0, first.clamp(min=0)
    # A call that begins inside a block (a decoding step, the next image) is shifted for these.
    inside = _inside_block(chunk, asked)
    apart = [name for name in want if any(inside) and name in _BLOCKS]
    together = [name for name in want if name not in apart]
    found: dict[str, torch.Tensor] = {}
    if together:
        found = attention_stats(
            call.q, call.k, together, backend=asked.backend, **_for_stats(call, together, terms)
        )
    if apart:
        if call.patterns:
            raise CaptureError(
                f"{apart[0]} of a replaced pattern cannot be joined over several calls of "
                f"{call.site.name}; leave it out, or capture one prompt without generate=."
            )
        found |= _shifted(call, terms, inside, apart, asked.backend)
    if "induction_mass" in found and chunk.k0 > 0:
        found["induction_mass"] = _induction_at_window(call, chunk, terms)
    if call.patterns:
        _replaced(call, terms, together, found)
    if "fai" in found:
        found["fai_count"] = _horizon_count(call, terms, asked.backend)
    if outside is not None and "first_mass" in found:
        found["first_mass"][outside[:, None, :].expand_as(found["first_mass"])] = 0.0
    return found


def place(call: Call, chunk: Chunk, rows: Rows | None, asked: Asked) -> dict[str, Any]:
    """The kernels' arguments for a call, on its device, whatever is asked of it."""
    terms: dict[str, Any] = {**call.terms, **asked.parameters}
    terms["query_offset"] = chunk.q0 - chunk.k0
    if rows is not None:
        terms |= _about_rows(call, chunk, rows, asked)
    if call.lse is not None:
        terms["lse"] = _own_lse(call)
    return {
        name: value.to(call.q.device) if isinstance(value, torch.Tensor) else value
        for name, value in terms.items()
    }


def _about_rows(call: Call, chunk: Chunk, rows: Rows, asked: Asked) -> dict[str, Any]:
    terms: dict[str, Any] = {}
    valid = rows.recorded(*chunk.queries)
    if not bool(valid.all()):
        terms["query_valid"] = valid
    if asked.kind == "cross":
        return terms
    terms["first_key"] = rows.cut(rows.begin, *chunk.queries, fill=0) - chunk.k0
    if rows.roles is not None and "role_mass" in asked.stats:
        segments = rows.cut(rows.roles, *chunk.key_span, fill=False)
        later = max(0, rows.roles.shape[2] - chunk.k0)
        segments[:, ROLES.index("generated"), later:] = True
        terms["key_segments"], terms["n_segments"] = segments, segments.shape[1]
    ids = rows.ids if rows.ids is not None else call.forward.ids
    if ids is not None and any(s in asked.stats for s in _NEEDS_IDS):
        # Prompts packed into one row must not match each other's tokens across their boundary.
        own = ids.cpu() + (rows.cut(rows.begin, 0, ids.shape[1], fill=0) << 32)
        terms["query_ids"] = own[:, slice(*chunk.queries)]
        terms["key_ids"] = own[:, slice(*chunk.key_span)]
    return terms


def _own_lse(call: Call) -> torch.Tensor:
    """The log-sum-exp of the model's own forward; a row that sees nothing has none, whatever the
    forward made of it."""
    assert call.lse is not None
    mask = call.terms.get("mask")
    if mask is None:
        return call.lse
    blind = ~call.forward.about(mask, "sighted", lambda: mask.any(dim=-1))
    return call.lse.masked_fill(blind, -torch.inf)


def _for_stats(call: Call, want: list[str], terms: dict[str, Any]) -> dict[str, Any]:
    return {**terms, "v": call.v} if "value_mass" in want else terms


def _possible(asked: Asked, terms: dict[str, Any]) -> list[str]:
    """Statistics that make sense for this call: no token identity without ids, no distance to
    another axis."""
    without = set(SAME_AXIS) if asked.kind == "cross" else set()
    if "query_ids" not in terms:
        without |= set(_NEEDS_IDS)
    if "key_segments" not in terms:
        without.add("role_mass")
    return [name for name in asked.stats if name not in without]


def _inside_block(chunk: Chunk, asked: Asked) -> tuple[int, int]:
    """How many positions into a block the queries and the keys of a call begin."""
    pool = asked.parameters.get("pool")
    return (chunk.q0 % pool, chunk.k0 % pool) if pool else (0, 0)


def _behind(call: Call, terms: dict[str, Any], n_query: int, n_key: int) -> dict[str, Any]:
    """q, k and the terms of the map with hidden positions put in front of queries and keys."""
    rows, heads, queries = call.q.shape[:3]
    own = {name: terms[name] for name in MAP_TERMS if name in terms}
    own["query_offset"] = terms["query_offset"] - n_query + n_key
    # Hidden by the mask, not by key_valid: an invalid key's token would not count as an earlier
    # one.
    shape = (1, 1, queries, call.k.shape[2])
    own["mask"] = own.get("mask", torch.ones(shape, dtype=torch.bool, device=call.q.device))
    for name, fill in (("mask", False), ("bias", 0.0)):
        if name in own:
            whole = own[name].expand(-1, -1, queries, -1)
            own[name] = pad(whole, (n_key, 0, n_query, 0), value=fill)
    if "key_valid" in own:
        own["key_valid"] = pad(own["key_valid"], (n_key, 0), value=True)
    if n_query:
        everyone = torch.ones(rows, queries, dtype=torch.bool, device=call.q.device)
        own["query_valid"] = pad(terms.get("query_valid", everyone), (n_query, 0), value=False)
    if "lse" in terms:
        own["lse"] = pad(terms["lse"].expand(rows, heads, -1), (n_query, 0))
    own["q"], own["k"] = pad(call.q, (0, 0, n_query, 0)), pad(call.k, (0, 0, n_key, 0))
    return own


def _shifted(
    call: Call, terms: dict[str, Any], inside: tuple[int, int], want: list[str], backend: str
) -> dict[str, torch.Tensor]:
    """Block statistics whose blocks begin at multiples of the pool in absolute positions."""
    own = _behind(call, terms, *inside)
    return attention_stats(**own, want=want, pool=terms["pool"], backend=backend)


def _induction_at_window(call: Call, chunk: Chunk, terms: dict[str, Any]) -> torch.Tensor:
    """Induction mass when a sliding cache has dropped early keys.

    Whether the first kept key is an induction target depends on the token just before it, so that
    token is given an invisible key of its own.
    """
    ids = call.forward.ids
    if ids is None:
        return torch.full(call.q.shape[:3], float("nan"))
    keys, queries = ids[:, chunk.k0 - 1 : chunk.key_span[1]], ids[:, slice(*chunk.queries)]
    own = _behind(call, terms, 0, 1)
    return attention_stats(**own, want=["induction_mass"], query_ids=queries, key_ids=keys)[
        "induction_mass"
    ]


def _horizon_count(call: Call, terms: dict[str, Any], backend: str) -> torch.Tensor:
    """Queries per key that `fai` is a mean over, [row, head, key]: those that can see the key and
    sit within the horizon.

    Of the queries from a key on, those less than n positions away are what a causal window of n
    leaves; counts of two windows differ by the horizon.
    """
    low, high = terms["horizon"]
    own = {name: terms[name] for name in (*MAP_TERMS, "query_valid") if name in terms}
    width = own.pop("window", None)

    def within(n: int | None) -> torch.Tensor:
        widths = [w for w in (n, width) if w is not None]
        looking: dict[str, Any] = own | {"causal": True, "window": min(widths) if widths else None}
        return attention_stats(call.q, call.k, ["key_count"], backend=backend, **looking)[
            "key_count"
        ]

    count = within(None if high is None else high + 1)
    return count - within(low) if low else count


def _replaced(call: Call, terms: dict[str, Any], want: list[str], found: dict) -> None:
    """Statistics of the heads whose map an edit has put in place of their own."""
    # What can be seen is the mask's business, not the map's; scores the map does not have.
    names = [name for name in want if name not in ("lse", "n_visible", "key_count")]
    groups = call.site.n_heads // call.site.n_kv_heads
    scores = ("lse", "scale", "softcap", "sink_logit", "bias", "alibi", "activation")
    extra = {name: value for name, value in terms.items() if name not in scores}
    seeing = {name: extra.pop(name) for name in MAP_TERMS[1:] if name in extra}
    extra["query_offset"] = terms["query_offset"]
    for head, replaced in call.patterns.items():
        extra["v"] = call.v[:, head // groups : head // groups + 1].to(replaced)
        mask = seeing.get("mask")
        own_mask = mask[:, head : head + 1] if mask is not None and mask.shape[1] > 1 else mask
        visible: dict[str, Any] = {**extra, **seeing, "mask": own_mask}
        p = replaced[:, None]
        own = stats_from_pattern(p, [n for n in names if n not in _OF_VISIBLE], **extra)
        own |= stats_from_pattern(p, [n for n in names if n in _OF_VISIBLE], **visible)
        for name in names:
            found[name][:, head] = own[name][:, 0].to(found[name])
        if "lse" in found:
            found["lse"][:, head] = float("nan")


def head_pattern(call: Call, head: int, terms: dict[str, Any]) -> torch.Tensor:
    """The exact pattern [row, query, key] of one query head of a call, under `terms`."""
    kv_head = head // (call.site.n_heads // call.site.n_kv_heads)
    own = {name: terms[name] for name in MAP_TERMS if name in terms}
    for name in ("mask", "bias"):
        if name in own and own[name].shape[1] > 1:
            own[name] = own[name][:, head : head + 1]
    if "sink_logit" in own:
        own["sink_logit"] = own["sink_logit"][head : head + 1]
    return pattern(call.q[:, head : head + 1], call.k[:, kv_head : kv_head + 1], **own)[:, 0]
