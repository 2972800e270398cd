"""Apply interventions: `with wb.intervening(model, [...])`, and the reference outputs they need.

Inside the block every forward pass and every step of a generation runs changed; after it, or after
an exception, nothing is left behind.  Nested blocks compose in the order they were opened.  What an
intervention names is checked against the model before anything runs.

Edits of scores become an additive mask given to the model's own backend, and act before the others;
edits of the pattern and of what a head writes change z, its output before W_O, in the order written
(`workbench.intervene_patterns`); edits of the stream are hooks (`workbench.intervene_stream`).
Neutral ones are recognised and skipped, so the logits stay bit for bit the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.calls import Call
from workbench.errors import WorkbenchError
from workbench.heads import KINDS, Head, parse_heads
from workbench.intervene_patterns import add_null_logit, redistribute, write_pattern
from workbench.intervene_stream import stream_edited
from workbench.interventions import OUTPUT_EDITS, PATTERN_EDITS, SCORE_EDITS, Intervention
from workbench.positions import by_position, rows_of
from workbench.prompts import as_prompts
from workbench.spec import AttentionSite
from workbench.stream_edits import StreamEdit
from workbench.streaming import StreamingCache

if TYPE_CHECKING:
    from workbench.models import Model


class _Active:
    """One intervention resolved against a model: which heads of which site, in the order of the
    selectors."""

    def __init__(self, model: Model, intervention: Intervention) -> None:
        self.what = intervention
        self.heads: tuple[Head, ...] = _resolve(model, intervention)
        self.at: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for i, head in enumerate(self.heads):
            self.at.setdefault((head.kind, head.layer), []).append((i, head.head))
        if intervention.how in (*SCORE_EDITS, *PATTERN_EDITS) and model.backend.startswith("flash"):
            raise WorkbenchError(
                f"{intervention.how!r} changes where heads look, which {model.backend} cannot do; "
                f"load the model with attention='sdpa'."
            )
        self._check_value(model)
        self.cache = None
        if intervention.how == "streaming":
            sites = {head: _site_of(model, head) for head in self.heads}
            self.cache = StreamingCache(model, intervention, sites)

    def _check_value(self, model: Model) -> None:
        value = self.what.value
        if value is None or self.what.how == "pattern":
            if value is not None and value.ndim not in (2, 3):
                raise WorkbenchError(
                    f"the value of 'pattern' has shape {value.shape}; [query, key] or [head, "
                    "query, key] was expected."
                )
            return
        for head in self.heads:
            site = _site_of(model, head)
            good = value.shape[-1:] == (site.d_value,) and value.ndim <= 3
            if value.ndim > 1:
                good = good and value.shape[0] in (1, len(self.heads))
            if not good:
                raise WorkbenchError(
                    f"the value of {self.what.how!r} has shape {value.shape}; [{site.d_value}], "
                    f"[{len(self.heads)}, {site.d_value}] or [{len(self.heads)}, query, "
                    f"{site.d_value}] was expected "
                    f"for {', '.join(map(str, self.heads[:4]))}."
                )


def _site_of(model: Model, head: Head) -> AttentionSite:
    for site in model.spec.of(head.kind):
        if site.layer == head.layer:
            if head.head >= site.n_heads:
                raise WorkbenchError(
                    f"{head} does not exist: layer {head.layer} has {site.n_heads} heads."
                )
            return site
    raise WorkbenchError(
        f"{head} does not exist: layer {head.layer} of {model.name} has no {head.kind} attention."
    )


def _resolve(model: Model, intervention: Intervention) -> tuple[Head, ...]:
    found: dict[Head, None] = {}
    # Each label carries its own tower, so a list in one string is taken apart first.
    for selector in (
        part for text in intervention.heads for part in re.split(r"[,\s]+", text) if part
    ):
        kind = _kind_of(selector, model)
        spec = model.spec
        for head in parse_heads(selector, spec.n_layers(kind), spec.n_heads(kind), kind):
            if "*" in selector or "-" in selector:
                # A range may run over layers without attention or with fewer heads.
                if not any(s.layer == head.layer and head.head < s.n_heads for s in spec.of(kind)):
                    continue
            else:
                _site_of(model, head)
            found.setdefault(head)
    return tuple(found)


def _kind_of(selector: str, model: Model) -> str:
    prefixes = {prefix: kind for kind, prefix in KINDS.items() if prefix != "L"}
    return prefixes.get(selector[:1], model.spec.main)


class Interventions:
    """The editor a tap calls: all interventions of one `intervening` block, in order; edits of the
    stream are `stream`."""

    def __init__(self, model: Model, interventions: Iterable[Intervention | StreamEdit]) -> None:
        self.model = model
        self.all = list(interventions)
        heads = [_Active(model, i) for i in self.all if isinstance(i, Intervention)]
        self.active = [a for a in heads if not a.what.neutral]
        self.stream = [i for i in self.all if isinstance(i, StreamEdit)]
        self._json: list[dict] | None = None

    def to_json(self) -> list[dict]:
        # Written into the provenance of every part of a run; large values make it slow.
        if self._json is None:
            self._json = [i.to_json() for i in self.all]
        return self._json

    def touches(self, site: AttentionSite) -> bool:
        return any((site.kind, site.layer) in a.at for a in self.active)

    def edit_scores(self, call: Call, mask: torch.Tensor | None) -> torch.Tensor | None:
        """The additive mask [row, head, query, key] with edges blocked and logits added, or `mask`
        untouched."""
        edits = [a for a in self.active if a.what.how in SCORE_EDITS and _key(call) in a.at]
        edits = [a for a in edits if a.cache is None or a.cache.acts(call)]
        if not edits:
            return mask
        if mask is not None and mask.dtype != torch.bool and mask.dim() == 4:
            additive = mask.expand(call.q.shape[0], call.q.shape[1], -1, -1).clone()
        else:
            additive = _additive(call)
        for edit in edits:
            heads = [head for _, head in edit.at[_key(call)]]
            if edit.cache is not None:
                edit.cache.write(call, additive, heads)
            else:
                self._write_edges(call, additive, edit.what, heads)
        return additive

    def _write_edges(
        self, call: Call, additive: torch.Tensor, what: Intervention, heads: list[int]
    ) -> None:
        low = torch.finfo(additive.dtype).min
        queries = rows_of(self.model, call, what.queries, along="query")
        keys = rows_of(self.model, call, what.keys, along="key")
        edges = queries[:, :, None] & keys[:, None, :]
        if what.how == "keep_keys":
            edges = ~keys[:, None, :].expand_as(edges)
        for head in heads:
            own = additive[:, head]
            if what.how == "add_logits":
                additive[:, head] = torch.where(edges & (own > low / 2), own + what.factor, own)
            else:
                additive[:, head] = own.masked_fill(edges, low)

    def edit_output(self, call: Call) -> torch.Tensor:
        """z [row, query, head, d_value] after output and pattern edits; rows left without any key
        write zero."""
        z = call.z
        for edit in self.active:
            pairs = edit.at.get(_key(call))
            if not pairs:
                continue
            heads = [head for _, head in pairs]
            if edit.what.how in SCORE_EDITS:
                z = _silence_blind_rows(call, z, heads)
            elif edit.what.how in OUTPUT_EDITS:
                z = self._write_outputs(call, z, edit, pairs)
            elif edit.what.how == "null_logit":
                z = add_null_logit(call, z, edit.what.factor, heads)
            else:
                z = self._write_patterns(call, z, edit, pairs)
        return z

    def _write_outputs(
        self, call: Call, z: torch.Tensor, edit: _Active, pairs: list[tuple[int, int]]
    ) -> torch.Tensor:
        z = z.clone()
        rows = rows_of(self.model, call, edit.what.queries, along="query")[..., None]
        for i, head in pairs:
            old = z[:, :, head]
            if edit.what.how == "scale":
                new = old * edit.what.factor
            elif edit.what.how == "zero":
                new = torch.zeros_like(old)
            else:
                value = self._value(call, edit, i).to(old)
                new = old + value if edit.what.how == "add" else value.expand_as(old)
            z[:, :, head] = torch.where(rows, new, old)
        return z

    def _value(self, call: Call, edit: _Active, i: int) -> torch.Tensor:
        value = torch.as_tensor(np.array(edit.what.value))
        if value.dim() >= 2:
            value = value[i if value.shape[0] > 1 else 0]
        if value.dim() == 1:
            return value[None, None]
        return by_position(call, value, edit.what.how)

    def _write_patterns(
        self, call: Call, z: torch.Tensor, edit: _Active, pairs: list[tuple[int, int]]
    ) -> torch.Tensor:
        for i, head in pairs:
            label = str(edit.heads[i])
            if edit.what.how == "pattern":
                z = write_pattern(self.model, call, z, edit.what, i, head, label)
            else:
                z = redistribute(self.model, call, z, edit.what, head, label)
        return z


def _key(call: Call) -> tuple[str, int]:
    return call.site.kind, call.site.layer


def _additive(call: Call) -> torch.Tensor:
    """The call's visibility as an additive mask [row, head, query, key]; a position bias stays
    separate."""
    rows, heads, n_query = call.q.shape[:3]
    n_key = call.k.shape[2]
    terms = call.terms
    visible = torch.ones(1, 1, n_query, n_key, dtype=torch.bool, device=call.q.device)
    if terms.get("causal"):
        offset = terms.get("query_offset", n_key - n_query)
        visible = visible.tril(offset).triu(offset + 1 - terms.get("window", n_query + n_key))
    if "mask" in terms:
        visible = visible & terms["mask"]
    additive = torch.zeros(rows, heads, n_query, n_key, dtype=call.q.dtype, device=call.q.device)
    return additive.masked_fill(~visible, torch.finfo(call.q.dtype).min)


def _silence_blind_rows(call: Call, z: torch.Tensor, heads: list[int]) -> torch.Tensor:
    """A row with every key blocked would come out of a softmax uniform; it must write nothing."""
    if "mask" not in call.terms:
        # Nothing was taken away in this call.
        return z
    visible = call.terms["mask"].any(dim=-1)
    visible = visible.expand(call.q.shape[0], call.q.shape[1], -1)
    blind = ~visible[:, heads]
    if not bool(blind.any()):
        return z
    z = z.clone()
    for i, head in enumerate(heads):
        z[:, :, head] = torch.where(
            blind[:, i, :, None], torch.zeros_like(z[:, :, head]), z[:, :, head]
        )
    return z


@contextmanager
def intervening(
    model: Model, interventions: Intervention | StreamEdit | Iterable[Intervention | StreamEdit]
) -> Iterator[Model]:
    """Run the model changed inside the block: forward passes, captures and cached generation alike.

    `interventions` are applied in order; nested blocks after the outer ones.  Raises
    `WorkbenchError` before anything runs when one does not fit the model, `CaptureError` for models
    that cannot be tapped.
    """
    alone = isinstance(interventions, (Intervention, StreamEdit))
    many = [interventions] if alone else list(interventions)  # type: ignore[arg-type]
    wrong = [i for i in many if not isinstance(i, (Intervention, StreamEdit))]
    if wrong:
        raise WorkbenchError(
            f"intervening takes Interventions and StreamEdits, got {type(wrong[0]).__name__}; see "
            "wb.Intervention and wb.StreamEdit."
        )
    if model.verified is None:
        # Proved before anything is changed: inside the block every pass is tapped already.
        model.verify()
    editor = Interventions(model, many)

    def is_open() -> bool:
        # Whoever sets the editors aside for a while means the model as it is.
        return editor in model.tap.editors

    with model.open_tap(editor=editor), stream_edited(model, editor.stream, is_open):
        yield model


def head_outputs(model: Model, heads: Any, prompt: object) -> np.ndarray:
    """z of some heads on one prompt, [head, query, d_value]: the value of
    `Intervention.resample`."""
    chosen = parse_heads(heads, model.spec.n_layers(), model.spec.n_heads(), model.spec.main)
    found: dict[tuple[int, int], np.ndarray] = {}

    def listen(call: Call) -> None:
        for head in chosen:
            if _key(call) == (head.kind, head.layer):
                found[head.index] = call.z[0, :, head.head].float().cpu().numpy()

    if model.is_seq2seq:
        raise WorkbenchError(
            f"{model.name} is a sequence-to-sequence model: take outputs of its heads by a "
            "listener of model.open_tap, with both inputs given."
        )
    (encoded,) = model.encode(prompt)
    ids = torch.as_tensor(encoded.ids, device=model.device)[None]
    with model.open_tap(listen), torch.no_grad():
        model.net(input_ids=ids, **encoded.extra)
    widths = {values.shape[-1] for values in found.values()}
    if len(widths) > 1:
        raise WorkbenchError(
            "the heads named have different widths; take their outputs one layer at a time."
        )
    return np.stack([found[head.index] for head in chosen])


def mean_z(model: Model, heads: Any, prompts: Iterable[object]) -> np.ndarray:
    """Mean z of some heads over all tokens of reference prompts, [head, d_value]: the value of
    `Intervention.mean`."""
    outputs = [head_outputs(model, heads, p) for p in as_prompts(prompts)]
    return np.concatenate(outputs, axis=1).mean(axis=1)
