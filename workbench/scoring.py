"""From the arguments of a model's attention function to the terms of the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from workbench.calls import Call, Forward
from workbench.errors import CaptureError

# Rows of a mask compared at a time.
_STRIP = 256


def score_terms(
    base: str,
    call: Call,
    module: nn.Module,
    mask: torch.Tensor | None,
    scaling: float | None,
    kwargs: dict[str, Any],
    *,
    edited: bool = False,
) -> dict[str, Any]:
    """What the base does to q k^T before the softmax, as arguments of `kernels.attention_stats`.

    Order: scale, softcap, position bias, mask, learned sink logit.  A float mask is split in
    visibility (above half the dtype's minimum) and a remaining additive bias, if any.  A
    flash-style 2-D mask is key validity; a dense one that says no more than causal and windowed is
    described so.  An `edited` mask belongs to this call alone.  Raises `CaptureError` for a mask of
    another shape.
    """
    terms: dict[str, Any] = {"scale": scaling, "softcap": kwargs.get("softcap")}
    sink = kwargs.get("s_aux")
    terms["sink_logit"] = sink if sink is not None else kwargs.get("sinks")
    terms["bias"] = kwargs.get("position_bias")
    n_query, n_key = call.q.shape[2], call.k.shape[2]
    if mask is None:
        # The rule of transformers' own sdpa function; eager without a mask attends everywhere.
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        terms["causal"] = bool(base != "eager" and n_query > 1 and causal)
        if terms["causal"]:
            terms["query_offset"] = 0
        if base.startswith("flash") and kwargs.get("sliding_window"):
            terms["window"] = kwargs["sliding_window"]
    elif mask.dim() == 2:
        terms["key_valid"] = mask[:, -n_key:].bool()
        terms["causal"] = bool(n_query > 1 and getattr(module, "is_causal", True))
        terms["window"] = kwargs.get("sliding_window")
    elif mask.dim() == 4:
        forward = Forward() if edited else call.forward
        visible, bias = forward.about(mask, f"{n_key} keys", lambda: _split(mask[..., :n_key]))
        # An edit asks for the mask it made, whatever is in it.
        rule = None if edited else forward.about(visible, "rule", lambda: _rule(visible))
        terms |= {"mask": visible} if rule is None else rule
        if bias is not None:
            terms["bias"] = bias if terms["bias"] is None else terms["bias"] + bias
    else:
        raise CaptureError(
            f"the attention mask of {type(module).__name__} has shape {tuple(mask.shape)}; 2 or 4 "
            "dims were expected."
        )
    return {name: term for name, term in terms.items() if term is not None}


def _rule(visible: torch.Tensor) -> dict[str, Any] | None:
    """Causal, and in a window, as terms, if that is all a mask says: kernels then leave out what
    cannot be seen instead of reading [query, key] flags."""
    n_query, n_key = visible.shape[-2:]
    if n_query != n_key or n_query < 2:
        return None
    width, at = int(visible[0, 0, -1].sum()), torch.arange(n_key, device=visible.device)
    for strip in at.split(_STRIP):
        back = strip[:, None] - at
        if not bool((visible[:, :, strip] == (back >= 0) & (back < width)).all()):
            return None
    return {"causal": True, "query_offset": 0} | ({"window": width} if width < n_key else {})


def _split(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A dense mask as visibility and, where it says more than that, an additive bias."""
    if mask.dtype == torch.bool:
        return mask, None
    visible = mask > torch.finfo(mask.dtype).min / 2
    bias = mask.masked_fill(~visible, 0.0)
    return visible, bias if bool(bias.any()) else None
