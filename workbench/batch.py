"""A batch: prompts laid into rows (padded right, padded left or packed), and cut out of the results
again.

Each prompt occupies one `Span` of one row.  Padding on either side and packing differ only in where
the spans lie, so nothing after this module needs to know which was used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.assemble import Span, assemble, free_spans, qk_arrays, token_table
from workbench.chunks import Rows
from workbench.encode import Encoded, roles_of, token_texts
from workbench.errors import WorkbenchError
from workbench.positions import choose
from workbench.prompts import Prompt
from workbench.record import Recorder
from workbench.residual import ResidualRecorder
from workbench.stats import ROLES

if TYPE_CHECKING:
    from workbench.models import Model


@dataclass
class Batch:
    """Inputs of one forward pass, what is known about its rows, and where each prompt lies."""

    inputs: dict[str, Any]
    rows: Rows | None
    spans: list[Span] | None
    encoded: list[Encoded]
    first_prompt: int = 0
    segments: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def packed(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of every prompt of a row that holds several."""
        spans = self.spans or []
        several = len(spans) > 1 and len({span.row for span in spans}) == 1
        return tuple((span.start, span.stop) for span in spans) if several else ()

    def result(
        self,
        model: Model,
        kind: str,
        want: tuple[str, ...],
        recorder: Recorder,
        residual: ResidualRecorder | None,
        final_ids: torch.Tensor | None,
        roles: tuple[str, ...],
    ) -> tuple[Any, Any, dict[str, np.ndarray]]:
        """(dataset, token table, arrays) of what the recorder saw."""
        spans = self.spans
        if spans is None:
            spans = free_spans(recorder, self.first_prompt)
        else:
            spans = _grown(spans, kind, recorder)
        data = assemble(model.spec, kind, want, recorder, residual, spans, roles)
        tokens = self._tokens(model, kind, spans, final_ids)
        return data, tokens, qk_arrays(recorder, spans) if recorder.keep_qk else {}

    def _tokens(
        self, model: Model, kind: str, spans: list[Span], final_ids: torch.Tensor | None
    ) -> Any:
        ids, texts, roles, segments = [], [], [], []
        for i, span in enumerate(spans):
            n = span.stop - span.start
            encoded = self.encoded[i] if i < len(self.encoded) and self.spans is not None else None
            if kind in ("text", "cross") and final_ids is not None:
                own = final_ids[span.row, span.start : span.stop].cpu().numpy()
            elif kind == "encoder" and encoded is not None:
                own = encoded.ids
            else:
                own = np.full(n, -1)
            if (own < 0).all():
                texts.append([f"{kind} {j}" for j in range(n)])
                roles.append(_patch_roles(model, kind, n))
            else:
                # The decoder of a sequence-to-sequence model starts from one token; the rest it
                # generated.
                n_prompt = (
                    1 if model.is_seq2seq and kind != "encoder" else len(encoded) if encoded else n
                )
                texts.append(token_texts(own, model.tokenizer))
                roles.append(roles_of(own, model.special_ids, model.image_token_id, n_prompt))
            named = [""] * n
            if (
                encoded is not None
                and len(encoded) <= n
                and not (model.is_seq2seq and kind != "encoder")
            ):
                for name, mask in encoded.segments.items():
                    named[: len(mask)] = [
                        name if m else old for m, old in zip(mask, named, strict=False)
                    ]
            ids.append(own)
            segments.append(named)
        return token_table(spans, ids, texts, roles, segments)


def _patch_roles(model: Model, kind: str, n: int) -> np.ndarray:
    """Positions of a vision tower: leading class or register tokens are special, the grid is
    image."""
    roles = np.full(n, "image" if kind in ("vision", "resampler") else "text", dtype=object)
    config = getattr(model.net.config, "vision_config", model.net.config)
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if kind == "vision" and isinstance(size, int) and isinstance(patch, int):
        extra = n - (size // patch) ** 2
        # Only a known count of extra tokens is named; packed towers have other lengths and none.
        if 0 < extra <= 1 + (getattr(config, "num_register_tokens", 0) or 0) + 1:
            roles[:extra] = "special"
    return roles


def _grown(spans: list[Span], kind: str, recorder: Recorder) -> list[Span]:
    """After a generation the span covers the decoding steps too."""
    chunks = next(iter(recorder.chunks.values()), [])
    if len(chunks) < 2 or kind not in ("text", "cross"):
        return spans
    n = max(c.q0 + c.n_query for c in chunks)
    return [
        Span(s.prompt, s.row, s.start, n, s.key_start, n if kind == "text" else s.key_stop)
        for s in spans
    ]


def make_batch(
    model: Model,
    kind: str,
    members: Sequence[int],
    encoded: list[Encoded],
    *,
    roles: tuple[str, ...],
    padding: str,
    positions: object,
) -> Batch:
    """Lay prompts `members` into rows; raises `WorkbenchError` where a layout is not possible for
    the model."""
    device = model.device
    extra = {k: v.to(device) if hasattr(v, "to") else v for k, v in encoded[0].extra.items()}
    if not len(encoded[0]):
        return Batch(_trimmed(model, extra), None, None, encoded, members[0])
    places, n_rows, length = _places([len(e) for e in encoded], padding if not extra else "right")
    ids = torch.full((n_rows, length), _pad_id(model), dtype=torch.long)
    valid = torch.zeros(n_rows, length, dtype=torch.bool)
    begin = torch.zeros(n_rows, length, dtype=torch.long)
    position = torch.zeros(n_rows, length, dtype=torch.long)
    for e, (row, start) in zip(encoded, places, strict=True):
        stop = start + len(e)
        ids[row, start:stop] = torch.as_tensor(e.ids)
        valid[row, start:stop] = True
        begin[row, start:stop] = start
        position[row, start:stop] = torch.arange(len(e))
    inputs: dict[str, Any] = {
        "input_ids": ids.to(device),
        "attention_mask": valid.long().to(device),
        **extra,
    }
    if padding != "right" and not extra and (padding == "packed" or not bool(valid.all())):
        _restart_positions(model, inputs, position.to(device), padding)
    spans = [
        Span(p, row, start, start + len(e), start, start + len(e))
        for p, e, (row, start) in zip(members, encoded, places, strict=True)
    ]
    rows = _known_rows(model, encoded, places, valid, begin, roles, positions)
    if model.is_seq2seq:
        inputs, rows, spans = _seq2seq(model, kind, inputs, rows, spans, len(roles))
    elif kind not in ("text", "cross", "encoder"):
        rows, spans = None, None
    segments = _segment_masks(encoded, places, valid.shape, roles)
    return Batch(_trimmed(model, inputs), rows, spans, encoded, members[0], segments)


def _places(lengths: Sequence[int], padding: str) -> tuple[list[tuple[int, int]], int, int]:
    """(row, start) of every prompt, number of rows, row length."""
    if padding == "packed":
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        return [(0, int(s)) for s in starts], 1, int(sum(lengths))
    longest = max(lengths)
    shift = [longest - n if padding == "left" else 0 for n in lengths]
    return list(enumerate(shift)), len(lengths), longest


def _restart_positions(
    model: Model, inputs: dict[str, Any], position: torch.Tensor, padding: str
) -> None:
    if not model.accepts("position_ids") or model.is_seq2seq:
        raise WorkbenchError(
            f"padding={padding!r} needs a model whose forward takes position_ids, which "
            f"{type(model.net).__name__} "
            f"does not; use padding='right'."
        )
    # RoBERTa and its kin count positions from just behind the padding index of their table.
    tables = [
        module.padding_idx + 1
        for name, module in model.net.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    inputs["position_ids"] = position + (tables[0] if tables else 0)
    if padding == "packed":
        # Restarting positions without a mask make transformers build a block-diagonal mask.
        del inputs["attention_mask"]


def _pad_id(model: Model) -> int:
    for owner in (model.tokenizer, getattr(model.net.config, "text_config", model.net.config)):
        value = getattr(owner, "pad_token_id", None)
        if isinstance(value, int) and value >= 0:
            return value
    return 0


def _known_rows(
    model: Model,
    encoded: list[Encoded],
    places: list[tuple[int, int]],
    valid: torch.Tensor,
    begin: torch.Tensor,
    roles: tuple[str, ...],
    positions: object,
) -> Rows:
    n_rows, length = valid.shape
    masks = torch.zeros(n_rows, len(roles), length, dtype=torch.bool)
    chosen = None if positions is None else torch.zeros(n_rows, length, dtype=torch.bool)
    for e, (row, start) in zip(encoded, places, strict=True):
        span = slice(start, start + len(e))
        own = roles_of(e.ids, model.special_ids, model.image_token_id, len(e))
        for r, role in enumerate(roles):
            mask = e.segments.get(role, own == role)
            masks[row, r, span] = torch.as_tensor(np.asarray(mask, dtype=bool))
        if chosen is not None:
            chosen[row, span] = torch.as_tensor(choose(positions, own, e.segments))
    return Rows(
        begin,
        valid,
        masks,
        chosen,
        chosen_later=positions is None or (isinstance(positions, str) and positions == "generated"),
    )


def _segment_masks(
    encoded: list[Encoded], places: list[tuple[int, int]], shape: torch.Size, roles: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    masks = {name: torch.zeros(shape, dtype=torch.bool) for name in roles[len(ROLES) :]}
    for e, (row, start) in zip(encoded, places, strict=True):
        for name, mask in e.segments.items():
            masks[name][row, start : start + len(e)] = torch.as_tensor(mask)
    return masks


def _seq2seq(
    model: Model, kind: str, inputs: dict[str, Any], rows: Rows, spans: list[Span], n_roles: int
) -> tuple[dict[str, Any], Rows, list[Span]]:
    """Encoder rows are the prompts; the decoder starts from its start token, and cross-attention
    joins the two."""
    start_id = getattr(model.net.config, "decoder_start_token_id", None)
    if start_id is None:
        raise WorkbenchError(
            f"{model.name} does not name its decoder_start_token_id; set it in the model's "
            "configuration."
        )
    n_rows = inputs["input_ids"].shape[0]
    decoder = torch.full((n_rows, 1), start_id, dtype=torch.long, device=model.device)
    inputs = {**inputs, "decoder_input_ids": decoder}
    if kind == "encoder":
        return (
            inputs,
            Rows(rows.begin, rows.valid, rows.roles, rows.chosen, ids=inputs["input_ids"]),
            spans,
        )
    special = torch.zeros(n_rows, n_roles, 1, dtype=torch.bool)
    special[:, ROLES.index("special")] = True
    ones = torch.ones(n_rows, 1, dtype=torch.bool)
    own = Rows(
        torch.zeros(n_rows, 1, dtype=torch.long), ones, special if kind == "text" else rows.roles
    )
    keys = [(s.start, s.stop) if kind == "cross" else (0, 1) for s in spans]
    return (
        inputs,
        own,
        [Span(s.prompt, s.row, 0, 1, a, b) for s, (a, b) in zip(spans, keys, strict=True)],
    )


def _trimmed(model: Model, inputs: dict[str, Any]) -> dict[str, Any]:
    """Spare what is not looked at: the cache, and all but the last position's logits."""
    for name, value in (("use_cache", False), ("logits_to_keep", 1)):
        if model.accepts(name):
            inputs.setdefault(name, value)
    return inputs


def batch_from_inputs(model: Model, kind: str, inputs: dict[str, Any]) -> Batch:
    """A batch out of ready-made forward arguments; prompts are the rows of the tower's ids."""
    name = "decoder_input_ids" if model.is_seq2seq and kind != "encoder" else "input_ids"
    ids = inputs.get(name)
    if ids is None or kind not in ("text", "encoder", "cross"):
        return Batch(dict(inputs), None, None, [])
    mask = inputs.get("attention_mask" if name == "input_ids" else "decoder_attention_mask")
    valid = (
        torch.ones_like(ids, dtype=torch.bool) if mask is None or mask.dim() != 2 else mask.bool()
    )
    valid = valid.cpu()
    starts = valid.int().argmax(dim=1).tolist()
    stops = (valid.shape[1] - valid.flip(1).int().argmax(dim=1)).tolist()
    encoded = [
        Encoded(Prompt(token_ids=tuple(ids[i, a:b].tolist())), ids[i, a:b].cpu().numpy())
        for i, (a, b) in enumerate(zip(starts, stops, strict=True))
    ]
    begin = torch.tensor(starts)[:, None].expand(valid.shape).contiguous()
    rows = _known_rows(model, encoded, list(enumerate(starts)), valid, begin, ROLES, None)
    if kind == "encoder":
        rows = Rows(rows.begin, rows.valid, rows.roles, rows.chosen, ids=ids)
    spans = [Span(i, i, a, b, a, b) for i, (a, b) in enumerate(zip(starts, stops, strict=True))]
    if kind == "cross":
        rows, spans = None, None
    return Batch(dict(inputs), rows, spans, encoded)
