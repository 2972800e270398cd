"""`capture`: run a model once over prompts and return labelled statistics of every head.

The map of a head is never held: the tap hands q and k to the kernels, which return vectors.
Prompts are batched, padded on either side or packed; padding never enters a statistic.  With `out=`
the run is written part by part, so a killed or interrupted run resumes where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.batch import Batch, batch_from_inputs, make_batch
from workbench.calls import Forward
from workbench.encode import Encoded
from workbench.errors import CaptureError, WorkbenchError
from workbench.guards import (
    check_packing,
    evaluating,
    missing_from,
    require_any,
    weights_digest,
)
from workbench.job import Job, settings_of, used_parameters
from workbench.kernels.attention_stats import available_backends
from workbench.legacy import returned_stats
from workbench.models import Model, generate_ids
from workbench.parameters import Parameters, of_kernels
from workbench.planning import Plan
from workbench.probes import tables
from workbench.provenance import Provenance, digest
from workbench.record import Recorder
from workbench.residual import ResidualRecorder
from workbench.runs import RunWriter, concat, wide
from workbench.schema import SCHEMA, STREAM_GROUPS, expand_want
from workbench.stats import ROLES, HeadStats
from workbench.tap import check_seen, seen_tokens

Progress = Callable[[int, int, str], None]


def plan(
    model: Model,
    prompts: object,
    *,
    want: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    positions: object = None,
    generate: int | None = None,
    kind: str | None = None,
    patterns: object = None,
    keep_qk: bool = False,
    padding: str = "right",
    parameters: Parameters | None = None,
) -> Plan:
    """What `capture` with the same arguments would do, and what it would cost; runs nothing."""
    return Job(model, prompts, settings_of(locals())).plan()


def capture(  # noqa: PLR0913 - what a capture is asked for
    model: Model,
    prompts: object,
    *,
    want: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    positions: object = None,
    generate: int | None = None,
    kind: str | None = None,
    patterns: object = None,
    keep_qk: bool = False,
    padding: str = "right",
    parameters: Parameters | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> HeadStats:
    """Statistics of every head of one tower on some prompts, dims (prompt, layer, head[, query][,
    key]).

    `prompts`: strings, chats, token ids, `Prompt`s.  `want`: names or groups of `workbench.schema`
    (default: the groups of `DEFAULT_GROUPS`), `parameters` the numbers some of them are defined
    with.  `positions`: query rows to record (an index, a list, a slice,
    "last", a role or a segment; default all); column statistics then sum over these rows only.
    `generate`: number of tokens to generate greedily; the rows of the decoding steps join those of
    the prompt. `kind`: tower (default the main one).  `patterns`: heads whose full maps are stored,
    at their L^2 cost. `keep_qk`: store q and k, so that any pattern can be recomputed later.
    `padding`: "right", "left" or "packed" (several prompts in one row). `out`: run directory,
    written part by part and resumable, with every probe that applies in its table of heads.
    `progress(done, total, message)` counts tokens.

    Raises `WorkbenchError` for bad input or when the plan does not fit in memory (naming what
    does), and `CaptureError` when the model cannot be read.
    """
    job = Job(model, prompts, settings_of(locals()))
    planned = job.plan()
    if not planned.fits:
        raise WorkbenchError(f"this capture needs more memory than there is: {planned.advice}")
    if model.verified is None:
        model.verify()
    writer = _writer(job, out, planned) if out is not None else None
    parts: list[HeadStats] = []
    for number, stats in _parts(job, planned, writer, progress):
        if writer is None:
            parts.append(stats)
        else:
            writer.add(number, stats)
    if writer is None:
        return concat(parts)
    run = writer.finish()
    run.add_summary(wide(tables(run.stats)[0]))
    return run.stats


def _parts(
    job: Job, planned: Plan, writer: RunWriter | None, progress: Progress | None
) -> Iterator[tuple[int, HeadStats]]:
    """(number, statistics) of every batch that is not on disk yet; reports all of them."""
    done, total = 0, planned.n_tokens - job.generate * planned.n_prompts
    for number, batch in enumerate(planned.batches):
        if writer is None or not writer.has(number):
            yield number, _run(job, batch)
        done += sum(len(job.encoded[i]) for i in batch)
        if progress is not None:
            again = writer is not None and number in writer.damaged
            note = ", made again: its file was damaged" if again else ""
            progress(done, total, f"batch {number + 1}/{len(planned.batches)}{note}")


def _writer(job: Job, out: str | Path, planned: Plan) -> RunWriter:
    prov = _provenance(job, 0.0).to_json()
    names = ("model", "revision", "tokenizer", "prompts", "settings", "interventions")
    identity = {name: prov[name] for name in (*names, "dtype", "attention", "kernel")}
    identity["weights"] = weights_digest(job.model.net)
    return RunWriter(out, key=digest(identity), manifest={"plan": str(planned)})


def _provenance(job: Job, seconds: float) -> Provenance:
    model = job.model
    first = [e.ids[0] for e in job.encoded if len(e)]
    bos = getattr(model.tokenizer, "bos_token_id", None)
    cls = getattr(model.tokenizer, "cls_token_id", None)
    with_begin = [int(i) in (bos, cls) for i in first] if (bos, cls) != (None, None) else []
    policy = (
        "unknown"
        if not with_begin
        else "yes"
        if all(with_begin)
        else "mixed"
        if any(with_begin)
        else "no"
    )
    settings = {k: (str(v) if isinstance(v, slice) else v) for k, v in job.settings.items()}
    notes = []
    if job.settings["positions"] is not None:
        notes.append("column statistics sum over the recorded query rows only")
    if job.generate:
        notes.append(
            "residual extremes are those of the prompt; decoding steps add norms and directions"
        )
    null = [i for i in _interventions(job.model) if i.get("how") == "null_logit"]
    if null or any(site.sink_logit for site in job.sites):
        notes.append(
            "a learned sink logit takes part of every row: masses are with it, rows sum to one "
            "minus null_mass"
        )
    if job.kind not in ("text", "encoder", "cross"):
        notes.append(
            f"prompts of the {job.kind} tower are its rows: images, tiles or stretches of audio"
        )
    return Provenance(
        model=model.name,
        family=model.spec.family,
        revision=model.revision,
        dtype=model.dtype,
        device=str(model.device),
        attention=model.backend,
        kernel=available_backends(model.device)[0],
        tokenizer=model.tokenizer_digest,
        prompts=digest([p.to_json() for p in job.prompts]),
        bos=policy,
        settings={
            **settings,
            "want": list(job.want),
            "kind": job.kind,
            "parameters": job.parameters,
        },
        interventions=_interventions(model),
        notes=tuple(notes),
        seconds=seconds,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _interventions(model: Model) -> tuple[dict, ...]:
    """JSON forms of what is open around this capture, outermost first."""
    return tuple(i for e in model.tap.editors for i in getattr(e, "to_json", list)())


def _run(job: Job, members: tuple[int, ...]) -> HeadStats:
    model, started = job.model, time.monotonic()
    encoded: list[Encoded] = [job.encoded[i] for i in members]
    if job.sites[0].tap == "returned":
        stats = returned_stats(
            model, job.kind, job.want, members, encoded, job.roles, job.parameters,
            _provenance(job, 0.0),
        )  # fmt: skip
        seconds = time.monotonic() - started
        return replace(stats, provenance=replace(stats.provenance, seconds=seconds))
    if job.settings["padding"] == "packed" and len(members) > 1:
        check_packing(model)
    batch = make_batch(
        model,
        job.kind,
        members,
        encoded,
        roles=job.roles,
        padding=job.settings["padding"],
        positions=job.settings["positions"],
    )
    data, tokens, arrays = record(
        model,
        job.kind,
        job.want,
        batch,
        generate=job.generate,
        roles=job.roles,
        parameters=job.parameters,
        pattern_heads=tuple(h.index for h in job.pattern_heads),
        keep_qk=job.settings["keep_qk"],
    )
    provenance = replace(
        _provenance(job, time.monotonic() - started),
        missing=missing_from(data, job.want, job.kind),
    )
    return HeadStats(data, tokens, model.spec, provenance, job.kind, arrays)


def record(
    model: Model,
    kind: str,
    want: tuple[str, ...],
    batch: Batch,
    *,
    generate: int = 0,
    roles: tuple[str, ...] = ROLES,
    parameters: dict[str, Any] | None = None,
    pattern_heads: tuple[tuple[int, int], ...] = (),
    keep_qk: bool = False,
) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """Run one batch under the tap: (dataset, token table, kept arrays)."""
    parameters = parameters or {}
    recorder = Recorder(
        model.net,
        kind,
        want,
        batch.rows,
        parameters=of_kernels(parameters),
        pattern_heads=pattern_heads,
        keep_qk=keep_qk,
    )
    of_stream = tuple(w for w in want if SCHEMA[w].group in STREAM_GROUPS)
    residual = None
    if of_stream and kind != "cross":
        dims = parameters.get("sink_dims", ())
        residual = ResidualRecorder(model.net, model.spec, kind, of_stream, dims)
    with (
        model.open_tap(recorder, lse_of=recorder.lse_of) as tap,
        residual.hooks(batch.spans) if residual else nullcontext(),
        evaluating(model.net),
        torch.no_grad(),
    ):
        tap.forward = Forward(segments=batch.segments, packed=batch.packed)
        if generate:
            generate_ids(model, batch.encoded[0], generate)
        else:
            model.net(**batch.inputs)
        final_ids = recorder.forward.ids if recorder.forward is not None else None
        # The names of this batch's segments must not reach the next pass of an outer block.
        tap.forward = Forward()
    check_seen(model.spec, list(recorder.seen.values()), (kind,))
    found = batch.result(model, kind, want, recorder, residual, final_ids, roles)
    require_any(found[0], want, f"the {kind} tower of {model.name}")
    return found


def capture_inputs(
    model: Model,
    inputs: dict[str, Any],
    *,
    want: str | Sequence[str] | None = None,
    kind: str | None = None,
    parameters: Parameters | None = None,
) -> HeadStats:
    """Statistics for ready-made keyword arguments of the network's forward (any tower, any
    modality).

    Rows of `input_ids` are prompts; padding is what `attention_mask` says.  Raises like `capture`.
    """
    kind = kind or model.spec.main
    names = expand_want(want)
    used = used_parameters(parameters, names)
    if model.spec.of(kind)[0].tap == "returned":
        raise CaptureError(
            f"{model.name} is read from the maps it returns; use capture with prompts instead."
        )
    if seen_tokens(inputs.get("past_key_values")):
        raise WorkbenchError(
            "capture_inputs takes no filled cache: the positions before it were not seen; give the "
            "whole text at once, or use capture(generate=...)."
        )
    started = time.monotonic()
    batch = batch_from_inputs(model, kind, inputs)
    late = [span for span in batch.spans or () if span.start or span.key_start]
    from_start = [name for name in names if SCHEMA[name].group == "blocks"]
    if late and from_start:
        raise WorkbenchError(
            f"{from_start[0]} counts from the start of a row, but prompt {late[0].prompt} starts "
            f"at position {late[0].start} of its; pad it on the right."
        )
    data, tokens, arrays = record(model, kind, names, batch, parameters=used)
    provenance = Provenance(
        model=model.name,
        family=model.spec.family,
        dtype=model.dtype,
        device=str(model.device),
        attention=model.backend,
        kernel=available_backends(model.device)[0],
        tokenizer=model.tokenizer_digest,
        prompts=digest([e.ids.tolist() for e in batch.encoded]),
        settings={"want": list(names), "kind": kind, "parameters": used},
        interventions=_interventions(model),
        missing=missing_from(data, names, kind),
        seconds=time.monotonic() - started,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return HeadStats(data, tokens, model.spec, provenance, kind, arrays)
