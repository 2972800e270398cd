"""Sink-logit margin: how far the score of the first key stands above those of the other keys.

For query i: s_i0 - mean over j of s_ij, j the visible keys but the first and i itself (Guo et al.
2024, arXiv 2410.13835; their code).  Scores are those the softmax gets: after scale, softcap and
bias.  With weights s / n, n the keys a query sees (the kernels' activation "linear"), a row's sum
is the mean score, so one sweep over the rows gives everything and no map is held.
"""

from __future__ import annotations

from typing import Any

import torch

from workbench.calls import Call
from workbench.kernels.attention_stats import MAP_TERMS, attention_stats

_AT = ("first_mass", "self_mass")
# Terms of the scores, not of what can be seen.
_OF_SCORES = ("scale", "softcap", "sink_logit", "bias", "alibi", "activation")


def sink_margin(call: Call, terms: dict[str, Any]) -> torch.Tensor:
    """Margin of every row of a call, [row, head, query], in nats; `terms` as `measuring.place`
    gives them.

    NaN for the first token's own row, for rows that do not see the first key or see no other key
    than it and their own, and where an edit has replaced the map: such a map has no scores.
    """
    own = {name: terms[name] for name in (*MAP_TERMS, "query_offset") if name in terms}
    # A learned sink has no key; its logit takes no part.
    own.pop("sink_logit", None)
    rows, _, n_query, _ = call.q.shape
    first = terms.get("first_key", torch.zeros(rows, 1, dtype=torch.int64, device=call.q.device))
    # Below 0 the first token has left a sliding layer's cache.
    own["first_key"] = first.clamp(min=0).expand(rows, n_query)
    at = torch.arange(n_query, device=call.q.device) + terms["query_offset"]
    another = (first >= 0) & (first != at)
    everyone = torch.ones(rows, 1, call.k.shape[2], dtype=torch.bool, device=call.q.device)
    score = attention_stats(
        call.q, call.k, (*_AT, "role_mass", "n_visible"), activation="linear",
        key_segments=everyone, n_segments=1, **own,
    )  # fmt: skip
    n = score["n_visible"].to(score["first_mass"].dtype)
    seen = _seen(call, own, n)
    others = n - seen["first_mass"].to(n) - seen["self_mass"].to(n)
    total = score["role_mass"][..., 0] - score["first_mass"] - score["self_mass"]
    margin = n * (score["first_mass"] - total / others)
    valid = seen["first_mass"] & (others > 0) & another[:, None, :]
    margin = margin.masked_fill(~valid, torch.nan)
    for head in call.patterns:
        margin[:, head] = torch.nan
    return margin


def _seen(call: Call, own: dict[str, Any], n: torch.Tensor) -> dict[str, torch.Tensor]:
    """Whether a query sees the first key, and its own: what has weight in uniform attention."""
    visible = {name: value for name, value in own.items() if name not in _OF_SCORES}
    found = attention_stats(call.q, call.k, _AT, scale=0.0, lse=n.log(), **visible)
    return {name: value > 0 for name, value in found.items()}
