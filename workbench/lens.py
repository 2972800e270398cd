"""transformer-lens models through the same adapter: a tap made of their own hooks.

A `HookedTransformer` or `TransformerBridge` does not use transformers' attention registry but names
q, k, v, scores and z with hook points.  `LensTap` listens there and speaks the same language as
`workbench.tap.Tap`: the same `Call` to listeners, the same edits.  transformer-lens materialises
the map itself, so memory is the map's, whatever we do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from workbench.calls import Call, Forward
from workbench.errors import CaptureError
from workbench.models import Model
from workbench.names import live_hooks
from workbench.spec import AttentionSite, Spec
from workbench.tap import Editor, Listener, axis

_NO_TERMS = ("alibi", "relative_positional_bias", "shortformer")


class LensNet(nn.Module):
    """A transformer-lens model with the calling convention of a transformers one."""

    def __init__(self, lens: Any) -> None:
        super().__init__()
        self.lens = lens
        cfg, tokenizer = lens.cfg, getattr(lens, "tokenizer", None)
        self.config = SimpleNamespace(
            model_type=f"transformer_lens {type(lens).__name__}",
            vocab_size=cfg.d_vocab,
            hidden_size=cfg.d_model,
            bos_token_id=getattr(tokenizer, "bos_token_id", None),
            eos_token_id=getattr(tokenizer, "eos_token_id", None),
            pad_token_id=getattr(tokenizer, "pad_token_id", None),
            is_encoder_decoder=False,
        )

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> SimpleNamespace:
        """Logits [row, position, vocab] as an object with `.logits`; padding as `attention_mask`
        says."""
        extra = {}
        if attention_mask is not None and not bool(attention_mask.bool().all()):
            extra["attention_mask"] = attention_mask
        logits = self.lens(input_ids, prepend_bos=False, **extra)
        return SimpleNamespace(logits=logits)

    def head_weights(self, layer: int) -> torch.Tensor:
        """W_O of a layer, [head, d_head, d_model]."""
        return self.lens.W_O[layer].detach()


class LensTap:
    """Same contract as `workbench.tap.Tap`, on hook points."""

    def __init__(self, net: LensNet, spec: Spec) -> None:
        self.net = net
        self.spec = spec
        self.listeners: list[Listener] = []
        self.editors: list[Editor] = []
        self.forward = Forward()
        self._depth = 0
        self._stack = ExitStack()
        self._calls: dict[int, dict[str, Any]] = {}

    @contextmanager
    def open(
        self,
        listener: Listener | None = None,
        editor: Editor | None = None,
        *,
        lse_of: str | None = None,  # noqa: ARG002 - no fused kernel runs inside transformer-lens
    ) -> Iterator[LensTap]:
        """Tap the model inside the block; nested blocks add listeners and compose editors in
        order."""
        if self._depth == 0:
            self._install()
        self._depth += 1
        self.listeners += [listener] if listener else []
        self.editors += [editor] if editor else []
        try:
            yield self
        finally:
            if listener:
                self.listeners.remove(listener)
            if editor:
                self.editors.remove(editor)
            self._depth -= 1
            if self._depth == 0:
                self._stack.close()
                self._calls.clear()
                self.forward = Forward()

    def _install(self) -> None:
        hooks: list[tuple[str, Callable]] = []
        names = list(self.net.lens.hook_dict)
        for site in self.spec.sites:
            for part, name in live_hooks(names, site.layer).items():
                handler = {"scores": self._at_scores, "z": self._at_z}.get(part)
                hooks.append(
                    (name, self._hook(site, handler) if handler else self._keep(site, part))
                )
        self._stack.enter_context(self.net.lens.hooks(fwd_hooks=hooks))
        before = self.net.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._stack.callback(before.remove)

    def _begin(self, _module: nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        mask = kwargs.get("attention_mask")
        if ids is None:
            return
        own = axis(ids, mask, ())
        self.forward = Forward(own, segments=self.forward.segments)

    def _keep(self, site: AttentionSite, part: str) -> Callable:
        def hook(value: torch.Tensor, hook: Any = None) -> None:  # noqa: ARG001  (transformer-lens passes it by name)
            # [row, position, head, d] to the registry's [row, head, position, d]
            self._calls.setdefault(site.layer, {})[part] = value.transpose(1, 2)

        return hook

    def _hook(self, site: AttentionSite, handler: Callable) -> Callable:
        def hook(value: torch.Tensor, hook: Any = None) -> torch.Tensor | None:  # noqa: ARG001
            return handler(site, value)

        return hook

    def _at_scores(self, site: AttentionSite, scores: torch.Tensor) -> torch.Tensor | None:
        seen = self._calls[site.layer]
        terms: dict[str, Any] = {
            "scale": _scale(self.net.lens, site),
            "mask": scores > torch.finfo(scores.dtype).min / 2,
        }
        if site.softcap:
            terms["softcap"] = site.softcap
        call = Call(site, seen["q"], seen["k"], seen["v"], seen["q"], terms, self.forward)
        seen["call"] = call
        mask = None
        for editor in self._touching(site):
            mask = editor.edit_scores(call, mask)
        if mask is None:
            return None
        blocked = mask <= torch.finfo(mask.dtype).min / 2
        call.terms = {**terms, "mask": terms["mask"] & ~blocked}
        bias = mask.masked_fill(blocked, 0.0)
        if bool(bias.any()):
            call.terms["bias"] = bias
        return (scores + bias).masked_fill(blocked, torch.finfo(scores.dtype).min)

    def _at_z(self, site: AttentionSite, z: torch.Tensor) -> torch.Tensor | None:
        call = self._calls.pop(site.layer)["call"]
        call.z = z.view(*z.shape[:2], site.n_heads, site.d_value) if z.dim() == 3 else z
        for editor in self._touching(site):
            call.z = editor.edit_output(call)
        for listener in self.listeners:
            listener(call)
        return call.z.view(z.shape) if self._touching(site) else None

    def _touching(self, site: AttentionSite) -> list[Editor]:
        return [editor for editor in self.editors if editor.touches(site)]


def _scale(lens: Any, site: AttentionSite) -> float:
    """The factor on q k^T; a bridge leaves `cfg.attn_scale` unset and keeps its module's own."""
    if not getattr(lens.cfg, "use_attn_scale", True):
        return 1.0
    configured = float(getattr(lens.cfg, "attn_scale", -1.0) or -1.0)
    if configured > 0:
        return 1.0 / configured
    for module in lens.blocks[site.layer].attn.modules():
        if isinstance(getattr(module, "scaling", None), float):
            return module.scaling
    return site.d_head**-0.5


def load_lens(lens: Any) -> Model:
    """The `Model` of a transformer-lens model; raises `CaptureError` for scores we cannot
    reproduce."""
    cfg = lens.cfg
    positions = getattr(cfg, "positional_embedding_type", "standard")
    if positions in _NO_TERMS or getattr(cfg, "use_attention_sinks", False):
        what = positions if positions in _NO_TERMS else "attention sinks"
        raise CaptureError(
            f"this transformer-lens model uses {what}, whose term in the scores cannot be read "
            "from its hooks; "
            f"load the transformers model itself."
        )
    net = LensNet(lens)
    n_kv = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    types = getattr(cfg, "attn_types", None) or ["global"] * cfg.n_layers
    softcap = getattr(cfg, "attn_scores_soft_cap", -1.0) or -1.0
    first = AttentionSite(
        name="",
        kind="text",
        layer=0,
        n_heads=cfg.n_heads,
        n_kv_heads=n_kv,
        d_head=cfg.d_head,
        d_value=cfg.d_head,
        causal=getattr(cfg, "attention_dir", "causal") == "causal",
        softcap=float(softcap) if softcap > 0 else None,
        tap="hooks",
    )
    sites = tuple(
        replace(
            first,
            name=f"lens.blocks.{i}.attn",
            layer=i,
            block=f"lens.blocks.{i}",
            window=getattr(cfg, "window_size", None) if types[i] == "local" else None,
        )
        for i in range(cfg.n_layers)
    )
    spec = Spec(net.config.model_type, sites)
    name = getattr(cfg, "model_name", None) or type(lens).__name__
    model = Model(net.eval(), spec, str(name), getattr(lens, "tokenizer", None))
    model.tap = LensTap(net, spec)  # type: ignore[assignment]
    return model
