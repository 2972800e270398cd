"""Where an intervention or a capture acts: names of positions to masks over rows.

Positions are indices (from a prompt's first token, wherever padding put it; negative ones from its
end), "last", a role or a segment.  What a call's queries and keys are is read from the pass it
belongs to (`workbench.tap.Forward`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from workbench.calls import Axis, Call, Forward
from workbench.encode import roles_of
from workbench.errors import WorkbenchError
from workbench.interventions import Positions
from workbench.stats import ROLES

if TYPE_CHECKING:
    from workbench.models import Model


def choose(positions: object, roles: np.ndarray, segments: dict[str, np.ndarray]) -> np.ndarray:
    """Boolean mask of the positions meant: an index, several, a slice, "last", a role or a segment.

    >>> choose([0, -1], np.array(["text"] * 3), {}).tolist()
    [True, False, True]
    """
    n = len(roles)
    mask = np.zeros(n, dtype=bool)
    if isinstance(positions, str):
        if positions == "last":
            mask[-1] = True
        elif positions in ROLES:
            mask = roles == positions
        elif positions in segments:
            mask = segments[positions].astype(bool)
        else:
            known = ", ".join((*ROLES, "last", *segments))
            raise WorkbenchError(
                f"positions={positions!r} is no role or segment of the prompt; known: {known}."
            )
        return mask
    if isinstance(positions, slice):
        mask[positions] = True
        if not mask.any():
            raise WorkbenchError(
                f"positions={positions!r} selects nothing of a prompt of {n} tokens; use positions "
                f"0 to {n - 1}."
            )
        return mask
    many = isinstance(positions, (Sequence, np.ndarray, range))
    indices = np.asarray(positions if many else [positions])
    if indices.dtype.kind not in "iu" or (
        len(indices) and (indices.min() < -n or indices.max() >= n)
    ):
        raise WorkbenchError(
            f"positions={positions!r} does not name positions of a prompt of {n} tokens; use "
            f"indices {-n} to {n - 1}."
        )
    mask[indices] = True
    return mask


def axis_of(call: Call, along: str) -> Axis | None:
    """The positions a call's queries or keys lie on, where this tower's ids are known."""
    return _axis(call.site.kind, call.forward, along)


def _axis(kind: str, forward: Forward, along: str) -> Axis | None:
    if kind == "text" or (kind == "cross" and along == "query"):
        return forward.own
    return forward.encoder if kind in ("encoder", "cross") else None


def rows_of(model: Model, call: Call, at: Positions, along: str) -> torch.Tensor:
    """Mask [row, position] of the queries or keys of this call that `at` names."""
    shape = (call.q.shape[0], call.q.shape[2] if along == "query" else call.k.shape[2])
    place = _Place(call.site.kind, along, shape, start_of(call, along))
    return _mask(model, call.forward, place, at).to(call.q.device)


def stream_rows(
    model: Model, kind: str, at: Positions, shape: tuple[int, int], forward: Forward
) -> torch.Tensor:
    """Mask [row, position] of the positions of a tower's stream that `at` names, in a pass of
    `shape` = (rows, positions)."""
    start = forward.start if kind in ("text", "cross") else 0
    return _mask(model, forward, _Place(kind, "query", shape, start), at)


def n_rows_of(kind: str, forward: Forward, at: Positions) -> int:
    """Number of rows of a pass whose stream comes without them, [row * position, d_model]."""
    known = _axis(kind, forward, "query")
    if known is not None:
        return len(known.spans)
    if at is not None and kind in ("text", "encoder", "cross"):
        raise WorkbenchError(
            f"positions {at!r} cannot be placed: the ids of this {kind} pass are not known, and "
            "its stream does not say where a row ends; give input_ids."
        )
    return 1


@dataclass(frozen=True)
class _Place:
    """Where positions lie: queries or keys of a tower, how many rows and positions of them, from
    which absolute one on."""

    kind: str
    along: str
    shape: tuple[int, int]
    start: int


def _mask(model: Model, forward: Forward, place: _Place, at: Positions) -> torch.Tensor:
    n_rows, n = place.shape
    if at is None:
        return torch.ones(n_rows, n, dtype=torch.bool)
    known = _axis(place.kind, forward, place.along)
    if known is not None and len(known.spans) != n_rows:
        known = None
    if known is None:
        return torch.as_tensor(np.stack([_indexed(model, forward, place, at)] * n_rows))
    mask = torch.zeros(n_rows, n, dtype=torch.bool)
    for row in range(n_rows):
        part = _named(model, forward, known, row, at)[place.start : place.start + n]
        mask[row, : len(part)] = torch.as_tensor(part)
    return mask


def counted(model: Model, call: Call, along: str) -> torch.Tensor:
    """How many tokens into its prompt every query or key of a call lies, [row, position]; negative
    in front of a prompt."""
    n_rows, n = call.q.shape[0], (call.q if along == "query" else call.k).shape[2]
    start, known = start_of(call, along), axis_of(call, along)
    if known is not None and len(known.spans) != n_rows:
        known = None
    if known is None:
        check_placeable(model, call.forward, call.site.kind, n_rows, "of a window")
    at = torch.arange(start, start + n)
    places = torch.full((n_rows, n), -1)
    for row in range(n_rows):
        spans = ((0, n),) if known is None else known.spans[row]
        for begin, _ in spans:
            # Up to the next prompt of the row, over padding and what was generated.
            places[row] = torch.where(at >= begin, at - begin, places[row])
    return places.to(call.q.device)


def start_of(call: Call, along: str) -> int:
    if call.site.kind not in ("text", "cross"):
        return 0
    if along == "query":
        return call.forward.start
    if call.site.kind == "cross":
        return 0
    # Decoding steps of a sliding layer hold only the last keys.
    return (
        max(0, call.forward.start + call.q.shape[2] - call.k.shape[2]) if call.forward.start else 0
    )


def _named(model: Model, forward: Forward, known: Axis, row: int, at: Positions) -> np.ndarray:
    """Mask over all positions of one row so far; indices count from each prompt's first token."""
    ids = known.ids[row].cpu().numpy()
    mask = np.zeros(len(ids), dtype=bool)
    decoding = known is forward.own and forward.start > 0
    for begin, end in known.spans[row]:
        # What lies after a prompt is padding, and in a decoding step what was generated.
        stop = len(ids) if decoding else end
        roles = roles_of(ids[begin:stop], model.special_ids, model.image_token_id, end - begin)
        if at == "last":
            mask[stop - 1] = True
        elif isinstance(at, str):
            masks = {
                name: _padded(m[row].numpy(), len(ids))[begin:stop]
                for name, m in forward.segments.items()
            }
            mask[begin:stop] |= choose(at, roles, masks)
        else:
            growing = known is forward.own and forward.growing
            mask[begin:stop] |= _places(at or (), end - begin, stop - begin, growing)
    return mask


def _places(indices: tuple[int, ...], n_prompt: int, n: int, growing: bool) -> np.ndarray:
    mask = np.zeros(n, dtype=bool)
    for index in indices:
        place = n_prompt + index if index < 0 else index
        if place < 0:
            raise WorkbenchError(
                f"position {index} lies before the prompt, which has {n_prompt} tokens."
            )
        if place >= n and not growing:
            raise WorkbenchError(
                f"position {index} lies beyond the prompt, which has {n_prompt} tokens; use "
                f"positions {-n_prompt} to {n_prompt - 1}."
            )
        # A position not reached yet belongs to a later step of a generation.
        mask[place : place + 1] = True
    return mask


def _padded(mask: np.ndarray, n: int) -> np.ndarray:
    full = np.zeros(n, dtype=bool)
    full[: min(n, len(mask))] = mask[:n]
    return full


def _indexed(model: Model, forward: Forward, place: _Place, at: Positions) -> np.ndarray:
    """Positions of a tower whose ids are unknown: indices into what this call sees."""
    kind, (n_rows, n) = place.kind, place.shape
    if isinstance(at, str) and at != "last":
        raise WorkbenchError(
            f"positions {at!r} are named by role, but the ids of this {kind} pass are not known; "
            "use indices, and give input_ids rather than embeddings."
        )
    check_placeable(model, forward, kind, n_rows, at)
    return choose(list(at) if isinstance(at, tuple) else at, np.array(["text"] * n), {})


def check_placeable(model: Model, forward: Forward, kind: str, n_rows: int, at: object) -> None:
    """Raise `WorkbenchError` where positions of a tower whose ids are unknown may be anywhere."""
    # Frames of audio and patches of images are never padded; encoded text may be.
    texts = kind in ("text", "encoder") or (kind == "cross" and "encoder" in model.spec.kinds)
    if texts and (n_rows > 1 or (kind == "text" and forward.start > 0)):
        raise WorkbenchError(
            f"positions {at!r} cannot be placed: the ids of this {kind} pass are not known, and "
            "its rows may be padded; run one prompt at a time, with input_ids and no filled cache."
        )


def whole_pattern(call: Call, given: torch.Tensor, label: str) -> torch.Tensor:
    """The given map laid over every prompt of the pass, [row, query, key]; zero on padding."""
    n_query, n_key = call.q.shape[2], call.k.shape[2]
    queries, keys = axis_of(call, "query"), axis_of(call, "key")
    whole = torch.zeros(call.q.shape[0], n_query, n_key, dtype=given.dtype, device=given.device)
    for row in range(call.q.shape[0]):
        row_queries = queries.spans[row] if queries is not None else ((0, n_query),)
        row_keys = keys.spans[row] if keys is not None else ((0, n_key),)
        if call.forward.start:
            row_queries, row_keys = ((0, n_query),), ((0, n_key),)
        for (qa, qb), (ka, kb) in zip(row_queries, row_keys, strict=True):
            if tuple(given.shape) != (qb - qa, kb - ka):
                raise WorkbenchError(
                    f"the pattern given for {label} has shape {tuple(given.shape)}, but a prompt "
                    f"of this pass has {qb - qa} queries and {kb - ka} keys."
                )
            whole[row, qa:qb, ka:kb] = given
    return whole


def by_position(call: Call, value: torch.Tensor, how: str) -> torch.Tensor:
    """Rows of a [query, d_head] value for this pass, [row, query, d_head]; they count from each
    prompt's first token, wherever padding put it."""
    start, n = start_of(call, "query"), call.q.shape[2]
    known = axis_of(call, "query")
    spans = known.spans if known is not None else [((0, start + n),)] * call.q.shape[0]
    rows = torch.zeros(call.q.shape[0], n, value.shape[1], dtype=value.dtype)
    for row, own in enumerate(spans):
        for begin, end in own:
            stop = start + n if start else end
            first = max(begin, start)
            part = value[first - begin : stop - begin]
            if part.shape[0] != stop - first:
                raise WorkbenchError(
                    f"the value of {how!r} covers {value.shape[0]} positions, but a prompt of this "
                    f"pass reaches position {stop - begin - 1}; give one vector per position or a "
                    "single vector."
                )
            rows[row, first - start : stop - start] = part
    return rows
