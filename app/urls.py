"""The one codec between what a page shows and its address: state is the URL, nothing is hidden.

`/r/<run>/atlas?metric=..&metric2=..&sel=L9H6&top=50`, `/r/<run>/sinks?prompt=3&at=0&eps=0.2` and
`/r/<run>/head/L9H6?prompt=3&query=12&ramp=log`; `mask=1` on any of them hides the sinks.
`/lab/<laboratory>?run=STACK/RUN&beside=STACK/RUN&head=L0H0&step=200&curve=risk` is the training
page.
Defaults are left out, so that every state has exactly one address; unknown parameters are dropped;
a value that cannot be meant is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from workbench.errors import WorkbenchError
from workbench.heads import KINDS, Head

RAMPS = ("linear", "sqrt", "log")
TOPS = (10, 20, 50, 0)
AXES = ("log", "linear")
OPERATIONS = ("zero", "drop", "null")
SCOPES = ("head", "layer", "all")
STRONGEST = "strongest"
# One path component: no slash, no leading dot, so it cannot leave the folder of the runs.
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# A shipped laboratory, or the folders that lead to one, each behind a "~".
_LABORATORY = re.compile(rf"{RUN_ID.pattern}|(~{RUN_ID.pattern}){{1,6}}")
_TRAINED = re.compile(rf"{RUN_ID.pattern}/{RUN_ID.pattern}")
_METRIC = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
_DECIMAL = re.compile(r"-?[0-9]{1,4}(\.[0-9]{1,6})?")
_LABEL = re.compile(r"([LVXERA])(\d{1,4})H(\d{1,4})")
_KIND = {prefix: kind for kind, prefix in KINDS.items()}


@dataclass(frozen=True)
class AtlasState:
    """What the Atlas shows: colour, second axis, selected head, rows of the table (0: all)."""

    run: str
    metric: str = ""
    metric2: str = ""
    sel: str = ""
    top: int = 20
    mask: bool = False


@dataclass(frozen=True)
class SinksState:
    """What the Sinks page shows.

    `at` is the key that is called the sink: "" for position 0, "strongest" for that of the prompt,
    else a position of the prompt.  `layer` None means all.  `eps` is the attention from which a key
    is a sink of a head, `cos` and `life` the cosine and the share of the model's layers from which
    a token is a secondary sink.  `other` is the run compared with; `op`, `scope` and `logit` are
    what to ablate, `sel` the head it is done to.
    """

    run: str
    prompt: int = 0
    at: str = ""
    metric: str = "sink_mass"
    layer: int | None = None
    axis: str = "log"
    eps: float = 0.3
    cos: float = 0.9
    life: float = 0.1
    other: str = ""
    sel: str = ""
    op: str = "zero"
    scope: str = "head"
    logit: float = 0.0
    mask: bool = False


@dataclass(frozen=True)
class HeadState:
    """What the Head page shows: a head on a prompt, the locked query, colour ramp, sink mask."""

    run: str
    head: str
    prompt: int = 0
    query: int | None = None
    ramp: str = "sqrt"
    mask: bool = False


@dataclass(frozen=True)
class LabState:
    """What the training page shows: runs (STACK/RUN) of a laboratory, a head, a text, a step.

    `curve` is the one drawn of every run of the stack.  Empty `run`, `beside`, `head` and `curve`
    are the page's own choice, `step` None the last one; `beside` may be "none".
    """

    lab: str
    run: str = ""
    beside: str = ""
    head: str = ""
    text: int = 0
    step: int | None = None
    axis: str = "log"
    curve: str = ""


State = AtlasState | HeadState | SinksState | LabState


def is_run_id(text: str) -> bool:
    """Whether `text` may name a run directory."""
    return RUN_ID.fullmatch(text) is not None


def head_of(label: str) -> Head:
    """A `Head` from its canonical label; raises `WorkbenchError` for anything else.

    >>> head_of("L9H6").index
    (9, 6)
    """
    match = _LABEL.fullmatch(label)
    if match is None:
        raise WorkbenchError(f"head {label[:40]!r} in the address is no label; write it like L9H6.")
    return Head(int(match[2]), int(match[3]), _KIND[match[1]])


def encode(state: State) -> str:
    """The address of a state: path and query, defaults left out.

    >>> encode(HeadState("demo", "L9H6", prompt=3, mask=True))
    '/r/demo/head/L9H6?prompt=3&mask=1'
    """
    if isinstance(state, LabState):
        return _with_query(f"/lab/{quote(state.lab, safe='~')}", state, ("lab",))
    path = f"/r/{quote(state.run, safe='')}/{_PAGES[type(state)]}"
    if isinstance(state, HeadState):
        path += f"/{quote(state.head, safe='')}"
    return _with_query(path, state, ("run", "head"))


def _with_query(path: str, state: State, in_path: tuple[str, ...]) -> str:
    """The path and, behind it, every other field that is not as usual."""
    query = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in in_path}
    usual = {f.name: f.default for f in fields(state)}
    # A float such as 0.30000000000000004 must not get an address of its own.
    said = {name: f"{v:g}" if isinstance(v, float) else v for name, v in query.items()}
    kept = {name: v for name, v in said.items() if query[name] != usual[name]}
    kept |= {name: int(v) for name, v in kept.items() if isinstance(v, bool)}
    return f"{path}?{urlencode(kept)}" if kept else path


def decode(url: str) -> State:
    """The state of an address (path and query); raises `WorkbenchError` naming what is wrong."""
    parts = urlsplit(url)
    steps = [unquote(s) for s in parts.path.split("/")[1:]]
    query = dict(parse_qsl(parts.query))
    if len(steps) == 3 and steps[0] == "r" and steps[2] in _OF_RUN:
        return _OF_RUN[steps[2]](steps[1], query)
    if len(steps) == 4 and steps[0] == "r" and steps[2] == "head":
        return head_state(steps[1], steps[3], query)
    if len(steps) == 2 and steps[0] == "lab":
        return lab_state(steps[1], query)
    raise WorkbenchError(
        f"address {parts.path[:80]!r} is no page; pages are /r/RUN/atlas, /r/RUN/sinks, "
        "/r/RUN/head/L9H6 and /lab/LABORATORY."
    )


def atlas_state(run: str, query: Mapping[str, str]) -> AtlasState:
    """State of the Atlas from a run id and query parameters."""
    return AtlasState(
        _run(run),
        _metric(query, "metric"),
        _metric(query, "metric2"),
        _selected(query),
        _count(query, "top", AtlasState.top),
        query.get("mask") == "1",
    )


def sinks_state(run: str, query: Mapping[str, str]) -> SinksState:
    """State of the Sinks page from a run id and query parameters."""
    usual = SinksState
    at = query.get("at") or ""
    if at and at != STRONGEST:
        at = str(_count(query, "at", 0))
    other = query.get("other") or ""
    return SinksState(
        _run(run),
        _count(query, "prompt", 0),
        at,
        _metric(query, "metric") or usual.metric,
        _count(query, "layer", 0) if query.get("layer") else None,
        _one_of(query, "axis", AXES),
        _number(query, "eps", usual.eps, 0, 1),
        _number(query, "cos", usual.cos, 0, 1),
        _number(query, "life", usual.life, 0, 1),
        _run(other) if other else "",
        _selected(query),
        _one_of(query, "op", OPERATIONS),
        _one_of(query, "scope", SCOPES),
        _number(query, "logit", usual.logit, -100, 100),
        query.get("mask") == "1",
    )


def head_state(run: str, head: str, query: Mapping[str, str]) -> HeadState:
    """State of the Head page from a run id, a label and query parameters."""
    return HeadState(
        _run(run),
        str(head_of(head)),
        _count(query, "prompt", 0),
        _count(query, "query", 0) if query.get("query") else None,
        _one_of(query, "ramp", RAMPS, HeadState.ramp),
        query.get("mask") == "1",
    )


def lab_state(lab: str, query: Mapping[str, str]) -> LabState:
    """State of the training page from a laboratory's id and query parameters."""
    if not _LABORATORY.fullmatch(lab):
        raise WorkbenchError(
            f"laboratory {lab[:40]!r} is no name of one; choose it on the home page."
        )
    for name in ("run", "beside"):
        value = query.get(name) or ""
        if value and not _TRAINED.fullmatch(value) and (name, value) != ("beside", "none"):
            raise WorkbenchError(f"{name}={value[:40]!r} is no training run; write STACK/RUN.")
    return LabState(
        lab,
        query.get("run") or "",
        query.get("beside") or "",
        str(head_of(query["head"])) if query.get("head") else "",
        _count(query, "text", 0),
        _count(query, "step", 0) if query.get("step") else None,
        _one_of(query, "axis", AXES),
        query.get("curve") or "",
    )


# What stands after the run in an address, and how an address without a head is read.
_PAGES = {AtlasState: "atlas", SinksState: "sinks", HeadState: "head"}
_OF_RUN: dict[str, Callable[[str, Mapping[str, str]], State]] = {
    "atlas": atlas_state,
    "sinks": sinks_state,
}


def _run(run: str) -> str:
    if not is_run_id(run):
        raise WorkbenchError(
            f"run {run[:40]!r} is no run name; use letters, digits, dot, dash and underscore."
        )
    return run


def _metric(query: Mapping[str, str], name: str) -> str:
    value = query.get(name) or ""
    if value and not _METRIC.fullmatch(value):
        raise WorkbenchError(f"{name}={value[:40]!r} is no metric name; choose one from the list.")
    return value


def _selected(query: Mapping[str, str]) -> str:
    return str(head_of(query["sel"])) if query.get("sel") else ""


def _one_of(query: Mapping[str, str], name: str, known: tuple[str, ...], usual: str = "") -> str:
    value = query.get(name) or usual or known[0]
    if value not in known:
        raise WorkbenchError(f"{name}={value[:20]!r} is unknown; choose {', '.join(known)}.")
    return value


def _number(query: Mapping[str, str], name: str, usual: float, low: float, high: float) -> float:
    text = query.get(name) or ""
    if not text:
        return usual
    value = float(text) if _DECIMAL.fullmatch(text) else float("nan")
    if not low <= value <= high:
        raise WorkbenchError(
            f"{name}={text[:20]!r} is no number from {low:g} to {high:g}, written like 0.3."
        )
    return value


def _count(query: Mapping[str, str], name: str, default: int) -> int:
    value = query.get(name) or ""
    if not value:
        return default
    # isdecimal alone would let other scripts' digits through.
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise WorkbenchError(f"{name}={value[:20]!r} is not a number from 0 on.")
    return int(value)
