"""The tap: one attention function that sees q, k, v of every head of every current architecture.

transformers asks a registry for the attention function named in a module's configuration.  While a
tap is open, that name is `workbench_<base>`, where `base` is the model's own backend (eager, sdpa,
flash, ...). The function calls the base for the output, so the numbers of the model stay the
model's, then hands q, k, v and the output to whoever listens, and applies edits.  The mask builder
of the base is registered under the same name: without one, transformers builds no mask and a
decoder silently stops being causal.

Sites are keyed by module, never by `layer_idx`, which vision towers lack and T5 shares between
self- and cross-attention.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from workbench.calls import Axis, Call, Forward
from workbench.errors import CaptureError
from workbench.kernels.attention_stats.forward_lse import Seen, lse_of_forward
from workbench.scoring import score_terms
from workbench.spec import AttentionSite, Spec

PREFIX = "workbench_"


class Editor(Protocol):
    """What `workbench.intervene` gives to a tap."""

    def edit_scores(self, call: Call, mask: torch.Tensor | None) -> torch.Tensor | None: ...

    def edit_output(self, call: Call) -> torch.Tensor: ...

    def touches(self, site: AttentionSite) -> bool: ...


Listener = Callable[[Call], None]
_OWNERS: WeakKeyDictionary[nn.Module, Tap] = WeakKeyDictionary()
# How many open taps use each registered name, so that the last one removes it.
_USERS: dict[str, int] = {}
# Networks can share a configuration: its own implementation and how many open taps redirect it.
_CONFIGS: dict[int, list] = {}


class Tap:
    """Opens and closes the registry for one network; kept by its `Model`."""

    def __init__(self, net: nn.Module, spec: Spec) -> None:
        self.net = net
        self.spec = spec
        self.modules = {
            net.get_submodule(site.name): site for site in spec.sites if site.tap == "registry"
        }
        self.listeners: list[Listener] = []
        self.editors: list[Editor] = []
        self.lse_kinds: list[str] = []
        self.forward = Forward()
        self._depth = 0
        self._thread = 0
        self._restore: list[Callable[[], None]] = []

    @contextmanager
    def open(
        self,
        listener: Listener | None = None,
        editor: Editor | None = None,
        *,
        lse_of: str | None = None,
    ) -> Iterator[Tap]:
        """Tap the network inside the block; nested blocks add listeners and compose editors in
        order.  `lse_of` names the tower whose calls shall carry the log-sum-exp of the model's own
        forward, where it has one."""
        listeners = [listener] if listener else []
        editors = [editor] if editor else []
        lse_kinds = [lse_of] if lse_of else []
        self._check_thread()
        if self._depth == 0:
            self._install()
        self._depth += 1
        self.listeners += listeners
        self.editors += editors
        self.lse_kinds += lse_kinds
        try:
            yield self
        finally:
            for item in listeners:
                self.listeners.remove(item)
            for item in editors:
                self.editors.remove(item)
            for item in lse_kinds:
                self.lse_kinds.remove(item)
            self._depth -= 1
            if self._depth == 0:
                self._uninstall()

    def _check_thread(self) -> None:
        """Two threads in one tap would take each other's calls for their own."""
        if self._depth == 0:
            self._thread = threading.get_ident()
        elif self._thread != threading.get_ident():
            raise CaptureError(
                "this model is being tapped in another thread; give every thread a model of its "
                "own, or capture one after the other."
            )

    def _install(self) -> None:
        if any(_OWNERS.get(module) not in (None, self) for module in self.modules):
            raise CaptureError(
                "another Model of this network has its tap open; use that one, or leave its block."
            )
        try:
            for config in _configs(self.net):
                self._redirect(config)
            for module in self.modules:
                _OWNERS[module] = self
            hook = self.net.register_forward_pre_hook(self._begin_forward, with_kwargs=True)
            self._restore.append(hook.remove)
        except BaseException:
            self._uninstall()
            raise

    def _redirect(self, config: Any) -> None:
        held = _CONFIGS.setdefault(id(config), [config._attn_implementation_internal, 0])
        held[1] += 1
        base = held[0] or "eager"
        name = PREFIX + base
        if not _USERS.get(name):
            AttentionInterface.register(name, partial(_attend, base))
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
        _USERS[name] = _USERS.get(name, 0) + 1

        def restore() -> None:
            held[1] -= 1
            if not held[1]:
                config._attn_implementation_internal = held[0]
                _CONFIGS.pop(id(config), None)
            _USERS[name] -= 1
            if not _USERS[name]:
                AttentionInterface._global_mapping.pop(name, None)
                AttentionMaskInterface._global_mapping.pop(name, None)

        # The public setter would write through to every sub-configuration; each has its own base.
        config._attn_implementation_internal = name
        self._restore.append(restore)

    def _uninstall(self) -> None:
        for module in self.modules:
            if _OWNERS.get(module) is self:
                _OWNERS.pop(module)
        while self._restore:
            self._restore.pop()()
        self.forward = Forward()

    def _begin_forward(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Note ids, padding and start of this pass, so that positions can be named by index or
        role."""
        is_seq2seq = getattr(self.net.config, "is_encoder_decoder", False)
        ids = kwargs.get("decoder_input_ids" if is_seq2seq else "input_ids")
        if ids is None and args and isinstance(args[0], torch.Tensor) and not is_seq2seq:
            ids = args[0] if not args[0].is_floating_point() else None
        start = seen_tokens(kwargs.get("past_key_values"))
        growing = kwargs.get("past_key_values") is not None or bool(kwargs.get("use_cache"))
        old = self.forward
        old.forget()
        if start and old.own is not None and ids is not None:
            old.own.ids = torch.cat([old.own.ids[:, :start], ids.to(old.own.ids.device)], dim=1)
            old.start = start
            return
        # Without the ids before `start` no position of this pass can be named.
        mask = kwargs.get("decoder_attention_mask" if is_seq2seq else "attention_mask")
        own = axis(ids, mask, old.packed) if ids is not None and not start else None
        encoder = None
        if is_seq2seq and kwargs.get("input_ids") is not None:
            encoder = axis(kwargs["input_ids"], kwargs.get("attention_mask"), ())
        self.forward = Forward(
            own, start, growing, encoder or old.encoder, old.segments, old.packed
        )


def seen_tokens(cache: Any) -> int:
    length = cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
    return int(length)


def axis(ids: torch.Tensor, mask: torch.Tensor | None, packed: tuple[tuple[int, int], ...]) -> Axis:
    """The prompts of every row: where a 2-D mask is on, else the whole row, or as packed."""
    rows, length = ids.shape
    if packed and rows == 1:
        return Axis(ids, [packed])
    if mask is None or mask.dim() != 2 or mask.shape[1] != length:
        return Axis(ids, [((0, length),)] * rows)
    valid = mask.bool().cpu()
    begin = valid.int().argmax(dim=1).tolist()
    end = (length - valid.flip(1).int().argmax(dim=1)).tolist()
    return Axis(ids, [(span,) for span in zip(begin, end, strict=True)])


def _configs(net: nn.Module) -> list[Any]:
    """Every distinct configuration object in the network, the root one included."""
    found = {}
    for module in net.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


def own_registry(module: nn.Module) -> AttentionInterface:
    """The registry the module's own file uses: some files override an entry for themselves."""
    for cls in type(module).__mro__:
        registry = getattr(sys.modules.get(cls.__module__), "ALL_ATTENTION_FUNCTIONS", None)
        if registry is not None:
            return registry
    return ALL_ATTENTION_FUNCTIONS


def own_eager(module: nn.Module) -> Any:
    """The `eager_attention_forward` of the file the module's class comes from."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    return None


def _attend(
    base: str,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The registered function; parameter names are those transformers passes by keyword."""
    run = own_registry(module).get_interface(base, own_eager(module))
    if scaling is None:
        # SDPA and the eager functions would each fill in the same default; the kernels need it
        # said.
        scaling = query.shape[-1] ** -0.5
    tap = _OWNERS.get(module)
    if tap is None:
        return run(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    site = tap.modules[module]
    editors = [editor for editor in tap.editors if editor.touches(site)]
    call = Call(site, query, key, value, query, {}, tap.forward)
    call.terms = score_terms(base, call, module, attention_mask, scaling, kwargs)
    mask = attention_mask
    for editor in editors:
        mask = editor.edit_scores(call, mask)
    if mask is not attention_mask:
        call.terms = score_terms(base, call, module, mask, scaling, kwargs, edited=True)
        kwargs = {**kwargs, "is_causal": False}
    wanted = site.kind in tap.lse_kinds and mask is attention_mask and not dropout
    with lse_of_forward() if wanted else nullcontext() as seen:
        call.z, weights = run(
            module, query, key, value, mask, scaling=scaling, dropout=dropout, **kwargs
        )
    call.lse = _lse_of(call, seen) if seen is not None else None
    for editor in editors:
        call.z = editor.edit_output(call)
    for listener in tap.listeners:
        listener(call)
    return call.z, weights


def _lse_of(call: Call, seen: Seen) -> torch.Tensor | None:
    """What the fused kernel returned beside the output, where its scores are those of the terms.

    A softcap or a learned sink is applied around such a kernel, never inside.
    """
    lse = seen.lse
    fits = lse is not None and lse.shape == call.q.shape[:3]
    return lse if fits and not {"softcap", "sink_logit"} & set(call.terms) else None


def check_seen(spec: Spec, seen: Sequence[AttentionSite], kinds: Sequence[str]) -> None:
    """Raise `CaptureError` unless every declared site of `kinds` was called."""
    names = {site.name for site in seen}
    missing = [site.name for kind in kinds for site in spec.of(kind) if site.name not in names]
    if missing:
        raise CaptureError(
            f"{len(missing)} of {sum(len(spec.of(k)) for k in kinds)} declared attention sites of "
            f"this {spec.family} "
            f"model were never called (first: {missing[0]}); the input did not reach them, or the "
            "family keeps an "
            f"attention of its own."
        )
