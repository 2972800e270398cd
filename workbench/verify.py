"""Prove an adapter: that what the tap reports is what the model does (nnterp's habit, causally).

On a short input: (1) every declared site is called, with the declared shapes; (2) the model's
output with the tap open is bit-identical to the output without; (3) rows of every site sum to one,
with the null mass of a learned sink, and the pattern rebuilt from q, k and the terms, times v, is
the site's own output; (4) the declared output projection receives exactly z; (5) writing into a
head changes the output.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from workbench.calls import Call
from workbench.errors import CaptureError
from workbench.guards import evaluating
from workbench.kernels.attention_stats import MAP_TERMS, attention_stats, pattern
from workbench.spec import AttentionSite
from workbench.tap import check_seen

if TYPE_CHECKING:
    from workbench.models import Model

_ROW_SUM = 1e-3  # float16 q and k leave this much
# Largest |p v - z| relative to the largest |z|: rounding of the model's own backend in its own
# dtype.
_REBUILT = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_SAME_OUTPUT = (
    0.05  # of the output's scale: float16 between two backends stays below, another mask does not
)


@dataclass(frozen=True)
class Verification:
    """What was proved: `kinds` of towers reached, number of `sites`, largest |row sum - 1|, largest
    |p v - z| relative to the largest |z|, and the `effect` of writing into a head; NaN where not
    applicable."""

    family: str
    kinds: tuple[str, ...]
    sites: int
    row_sum_error: float
    output_error: float
    effect: float

    def __str__(self) -> str:
        if self.output_error != self.output_error:
            return (
                f"{self.family}: {self.sites} attention maps ({', '.join(self.kinds)}) returned by "
                "the model; rows sum to "
                f"one within {self.row_sum_error:.1e}; it cannot be tapped, so nothing can be "
                "written into it."
            )
        return (
            f"{self.family}: {self.sites} attention sites ({', '.join(self.kinds)}) seen as "
            "declared; output with the "
            f"tap bit-identical; rows sum to one within {self.row_sum_error:.1e}; pattern times v "
            "is the output within "
            f"{self.output_error:.1e}; writing into a head moves the output "
            f"by {self.effect:.2e}."
        )


class _Probe:
    """A listener that checks row sums and z, and an editor that writes into one head when armed."""

    def __init__(self) -> None:
        self.seen: list[AttentionSite] = []
        self.z: dict[str, list[torch.Tensor]] = {}
        self.row_sum_error = 0.0
        self.output_error = 0.0
        self.armed: str | None = None

    def __call__(self, call: Call) -> None:
        self.seen.append(call.site)
        self.z.setdefault(call.site.name, []).append(call.z.detach())
        ones = torch.zeros(call.q.shape[0], call.k.shape[2], dtype=torch.long, device=call.q.device)
        found = attention_stats(
            call.q,
            call.k,
            ["role_mass", "null_mass", "n_visible"],
            key_segments=ones,
            n_segments=1,
            **call.terms,
        )
        total = found["role_mass"][..., 0] + found["null_mass"]
        off = (total - 1).abs()[found["n_visible"] > 0]
        if off.numel():
            self.row_sum_error = max(self.row_sum_error, float(off.max()))
        self._rebuild(call, found["n_visible"] > 0)

    def _rebuild(self, call: Call, sighted: torch.Tensor) -> None:
        """The strongest check of scale, mask, bias, softcap and sink: they must give the model's
        own output."""
        own = {name: call.terms[name] for name in MAP_TERMS if name in call.terms}
        groups = call.site.n_heads // call.site.n_kv_heads
        z = call.z.transpose(1, 2).float()
        rebuilt = pattern(call.q, call.k, **own).float() @ call.v.float().repeat_interleave(
            groups, dim=1
        )
        error = (rebuilt - z).abs().amax(-1)[sighted]
        if error.numel():
            self.output_error = max(
                self.output_error, float(error.max() / z.abs().max().clamp(min=1e-12))
            )

    def touches(self, site: AttentionSite) -> bool:
        return site.name == self.armed

    def edit_scores(self, call: Call, mask: torch.Tensor | None) -> torch.Tensor | None:  # noqa: ARG002
        return mask

    def edit_output(self, call: Call) -> torch.Tensor:
        z = call.z.clone()
        z[:, :, 0] = z[:, :, 0] + 1.0
        return z


def verify(model: Model, inputs: dict[str, Any] | None) -> Verification:
    """See `Model.verify`."""
    if model.spec.sites[0].tap == "returned":
        return _verify_returned(model, inputs)
    # What is proved is the model as it is, also when asked inside an `intervening` block.
    held, model.tap.editors = model.tap.editors, []
    try:
        with evaluating(model.net):
            return _verify_tapped(model, inputs if inputs is not None else dummy_inputs(model))
    finally:
        model.tap.editors = held


def _verify_tapped(model: Model, inputs: dict[str, Any]) -> Verification:
    probe = _Probe()
    with torch.no_grad():
        plain = _output(model.net(**inputs))
        with _watch_w_o(model, probe), model.open_tap(probe):
            tapped = _output(model.net(**inputs))
    seen = {site.name: site for site in probe.seen}
    if not seen:
        raise CaptureError(
            f"no attention site of {model.name} ({model.spec.family}) was called by a forward "
            "pass: "
            f"its attention does not go through transformers' registry."
        )
    kinds = tuple(kind for kind in model.spec.kinds if any(s.kind == kind for s in seen.values()))
    check_seen(model.spec, list(seen.values()), kinds)
    if not torch.equal(plain, tapped):
        raise CaptureError(
            f"the output of {model.name} ({model.spec.family}) changes by "
            f"{float((plain - tapped).abs().max()):.2e} when "
            f"its attention is tapped; nothing measured through it would be right."
        )
    if probe.row_sum_error > _ROW_SUM:
        raise CaptureError(
            f"rows of {model.name} ({model.spec.family}) miss a sum of one by "
            f"{probe.row_sum_error:.2e}; "
            f"the tap misreads its mask or bias."
        )
    allowed = _REBUILT.get(getattr(torch, model.dtype), 5e-2)
    if probe.output_error > allowed:
        raise CaptureError(
            f"the patterns rebuilt from q and k of {model.name} ({model.spec.family}) miss its own "
            "attention output by "
            f"{probe.output_error:.1e} of its size; a term of the scores is missing or misread."
        )
    # The last layer reaches the output by the shortest way.
    site = model.spec.of(kinds[0])[-1]
    probe.armed = site.name
    with torch.no_grad(), model.open_tap(editor=probe):
        effect = float((_output(model.net(**inputs)) - plain).abs().max())
    if not effect > 0:
        raise CaptureError(
            f"writing into {site.name} of {model.name} ({model.spec.family}) does not change its "
            "output; "
            f"interventions would do nothing."
        )
    return Verification(
        model.spec.family, kinds, len(seen), probe.row_sum_error, probe.output_error, effect
    )


def _watch_w_o(model: Model, probe: _Probe) -> ExitStack:
    """Hooks that compare what enters each declared output projection with the z the tap saw."""
    stack = ExitStack()
    for site in model.spec.sites:
        if site.w_o is None:
            continue

        def check(_module: torch.nn.Module, args: tuple, site: AttentionSite = site) -> None:
            expected = probe.z.get(site.name)
            if not expected:
                return
            # Packed vision towers call the tap per image and concatenate before projecting.
            z = torch.cat([part.flatten(2) for part in expected], dim=1)
            if args[0].numel() != z.numel() or not torch.equal(args[0].reshape(z.shape), z):
                raise CaptureError(
                    f"{site.w_o} was taken for the output projection of {site.name}, but it "
                    "receives something else "
                    f"than the heads' outputs; W_O norms and head results would be wrong."
                )

        stack.callback(model.net.get_submodule(site.w_o).register_forward_pre_hook(check).remove)
    return stack


def _output(out: Any) -> torch.Tensor:
    for name in ("logits", "last_hidden_state", "logits_per_image", "image_embeds"):
        value = getattr(out, name, None)
        if isinstance(value, torch.Tensor):
            return value
    return next(v for v in out.values() if isinstance(v, torch.Tensor))


def _verify_returned(model: Model, inputs: dict[str, Any] | None) -> Verification:
    inputs = inputs if inputs is not None else dummy_inputs(model)
    maps, with_maps = _run_returned(model, inputs)
    error = max(float((m.float().sum(-1) - 1).abs().max()) for m in maps)
    # A weight is rounded by half of eps at most; bfloat16 maps therefore miss one by more.
    if error > max(_ROW_SUM, torch.finfo(maps[0].dtype).eps):
        raise CaptureError(
            f"the attention maps {model.name} returns have rows that miss a sum of one by "
            f"{error:.2e}."
        )
    # Falcon's maps under SDPA are those of another computation: no mask enters them.
    with torch.no_grad():
        plain = _output(model.net(**inputs))
    off = float((plain - with_maps).abs().max() / plain.abs().max().clamp(min=1e-12))
    if off > _SAME_OUTPUT:
        raise CaptureError(
            f"{model.name} ({model.spec.family}) computes another output (by {off:.2e} of its "
            "scale) when it returns its "
            f"attention maps; they are not those of the model as it runs."
        )
    if model.spec.sites[0].causal and any(bool((m.triu(1) > 0).any()) for m in maps):
        raise CaptureError(
            f"{model.name} ({model.spec.family}) was taken for a causal model, but the maps it "
            "returns look ahead."
        )
    return Verification(
        model.spec.family, model.spec.kinds, len(maps), error, float("nan"), float("nan")
    )


def returned_maps(model: Model, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """Attention maps [row, head, query, key] per layer from `output_attentions=True`; raises
    `CaptureError`."""
    return _run_returned(model, inputs)[0]


def _run_returned(
    model: Model, inputs: dict[str, Any]
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """The maps, and the output of the pass that returned them."""
    old = model.net.config._attn_implementation_internal
    try:
        # These families return maps from their eager path only.
        model.net.config._attn_implementation_internal = "eager"
        with torch.no_grad():
            out = model.net(**inputs, output_attentions=True)
    finally:
        model.net.config._attn_implementation_internal = old
    maps, n = getattr(out, "attentions", None), len(model.spec.sites)
    if not maps or len(maps) != n or any(m is None for m in maps):
        raise CaptureError(
            f"{model.name} is a {model.spec.family} model: its attention cannot be tapped and it "
            "returns "
            f"{len(maps or ())} attention maps where {n} were expected, so nothing can be captured "
            "from it."
        )
    return tuple(maps), _output(out)


def dummy_inputs(model: Model) -> dict[str, Any]:
    """A short valid input for any tower that needs no processor: eight tokens, one image, one
    stretch of audio."""
    config: Any = model.net.config
    device = model.device
    text: Any = getattr(config, "text_config", config)
    inputs: dict[str, Any] = {}
    if isinstance(getattr(text, "vocab_size", None), int):
        ids = torch.arange(8, device=device)[None] % max(1, text.vocab_size - 3) + 2
        inputs["input_ids"] = ids.clamp(max=text.vocab_size - 1)
        inputs["attention_mask"] = torch.ones_like(ids)
    if model.is_seq2seq:
        start = getattr(config, "decoder_start_token_id", None) or 0
        inputs["decoder_input_ids"] = torch.tensor([[start, 3, 4]], device=device)
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        size = (1, config.num_mel_bins, 2 * config.max_source_positions)
        inputs = {"input_features": torch.zeros(size, device=device), **inputs}
        inputs.pop("input_ids", None)
        inputs.pop("attention_mask", None)
    vision: Any = getattr(config, "vision_config", config)
    # Contrastive models need both towers; in others text alone reaches the language model.
    # PaliGemma's configuration has a projection too, but its pictures need placeholders among the
    # ids.
    contrastive = hasattr(config, "projection_dim") and not hasattr(config, "image_token_id")
    alone = "input_ids" not in inputs or contrastive
    if alone and hasattr(vision, "image_size"):
        side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
        shape = (1, getattr(vision, "num_channels", 3), side, side)
        pixels = torch.linspace(-1, 1, steps=shape[1] * side * side, device=device).reshape(shape)
        inputs["pixel_values"] = pixels.to(next(model.net.parameters()).dtype)
    return inputs
