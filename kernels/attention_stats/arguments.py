"""The keyword arguments of `attention_stats`: what describes the map, and what the statistics need.

Dims: B batch, H query heads, Hkv key/value heads, Q queries, K keys, D head width, Dv width of v,
S segments, F key features, G query features, N keys or offsets; |d| distance in tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import torch

    from workbench.kernels.attention_stats.variants import LowRankBias, Neighbourhood, Strided

DEFAULTS: dict[str, Any] = {"causal": False, "activation": "softmax", "n_segments": 0, "power": 2}


class Terms(TypedDict, total=False):
    """Keyword arguments; all may be left out. None is the default unless something is said.

    The map:
        scale: factor on q.k, D ** -0.5 when None.
        causal: query i sees keys j <= i + query_offset (default False).
        query_offset: position of query 0 among the keys; None: K - Q when causal, else 0.
        window: keys less than `window` positions back (when not causal, in both directions).
        softcap: c in c * tanh(s / c), logits.
        sink_logit: [H], a logit that joins the denominator only.
        mask: bool, broadcastable to [B, H, Q, K], True where visible; or a Neighbourhood or
            Strided.
        bias: float, broadcastable to [B, H, Q, K], added to the logits; -inf or below -1e30 hides
            the key; or a LowRankBias, which hides nothing.
        alibi: [H], slopes: alibi * |d| is taken off the logits.
        key_valid: bool [B, K], False for padding.
        key_lengths: int [B], keys from there on are padding.
        query_sequence, key_sequence: int [B, Q] and [B, K], rising: packed sequences, each seeing
            its own tokens only.
        activation: "softmax" (default), "relu", "sigmoid" or "linear".

    The statistics:
        v: [B, Hkv, K, Dv], for value_mass and output.
        lse: [B, H, Q], natural log, of these very scores (with the sink logit, if there is one),
            where the caller has it: statistics that look at few keys per query then cost no sweep
            over the map (`passes` tells).
        query_valid: bool [B, Q], False for padding; such rows enter no column statistic.
        first_key: int [B] or [B, Q], the key `first_mass` looks at (default 0).
        query_ids, key_ids: int [B, Q] and [B, K], token ids, for duplicate_mass and induction_mass.
        query_segments, key_segments: int [B, Q] and [B, K] with -1 for none, or bool [B, S, .] for
            overlapping segments.
        n_segments: S.
        query_features, key_features: float [B, Q, G], and [B, K, F] or [B, Hkv, K, F].
        offsets: distances for offset_mass, tokens.
        keys: int [N] or [B, N], for keys_mass.
        horizon: (lo, hi) of fai in tokens, both included; hi None: to the end.
        waad_window, local_window: tokens.
        pool: tokens per block, or (queries, keys).
        topk: keys per row.
        power: exponent of participation, above 1 (default 2).
    """

    scale: float | None
    causal: bool
    query_offset: int | None
    window: int | None
    softcap: float | None
    sink_logit: torch.Tensor | None
    mask: torch.Tensor | Neighbourhood | Strided | None
    bias: torch.Tensor | LowRankBias | None
    alibi: torch.Tensor | None
    key_valid: torch.Tensor | None
    key_lengths: torch.Tensor | None
    query_sequence: torch.Tensor | None
    key_sequence: torch.Tensor | None
    activation: str
    v: torch.Tensor | None
    lse: torch.Tensor | None
    query_valid: torch.Tensor | None
    first_key: torch.Tensor | None
    query_ids: torch.Tensor | None
    key_ids: torch.Tensor | None
    query_segments: torch.Tensor | None
    key_segments: torch.Tensor | None
    n_segments: int
    query_features: torch.Tensor | None
    key_features: torch.Tensor | None
    offsets: Sequence[int] | None
    keys: torch.Tensor | None
    horizon: tuple[int, int | None] | None
    waad_window: int | None
    local_window: int | None
    pool: int | tuple[int, int] | None
    topk: int | None
    power: float


def filled(function: str, terms: Any, allowed: Iterable[str]) -> dict[str, Any]:
    """`terms` with the defaults of every other term; ValueError for one that is not `allowed`."""
    names = tuple(allowed)
    for name in terms:
        if name not in names:
            raise ValueError(
                f"{function} has no argument {name!r}; expected some of {', '.join(names)}."
            )
    return {name: terms.get(name, DEFAULTS.get(name)) for name in names}
