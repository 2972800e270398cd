"""Head: what does this head do?  Its pattern on one prompt, the tokens, the numbers, in words."""

from __future__ import annotations

from typing import Any

import numpy as np
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from workbench.app import figures, parts, readings
from workbench.app.store import store
from workbench.app.urls import RAMPS, HeadState, decode, encode, head_state
from workbench.errors import WorkbenchError

PAGE = {
    "path_template": "/r/<run>/head/<head>",
    "title": "Head · Attention Workbench",
}
_CONTROLS = ("prompt", "ramp")
# The figures below the pattern do not depend on the locked query.
_PROFILES = {"part": "profiles", "of": "prompt mask"}
_WAYS = {"left": ("←", "h"), "right": ("→", "l"), "up": ("↑", "k"), "down": ("↓", "j")}


def layout(run: str = "", head: str = "", **query: str) -> html.Div:
    """The page of one head in the state of the address."""
    try:
        state = head_state(run, head, query)
        store().site(state.run, state.head)
        store().tokens(state.run, state.prompt)
        return _page(state)
    except WorkbenchError as error:
        return parts.problem(str(error))


def _page(state: HeadState) -> html.Div:
    run = store().run(state.run)
    return parts.page(
        "head",
        [
            dcc.Store(id="head-url", data=encode(state)),
            dcc.Store(id="head-data"),
            dcc.Store(id="head-cross"),
            dcc.Store(id="head-drawn"),
            dcc.Store(id="cross-drawn"),
            dcc.Store(id=_PROFILES),
            parts.bar(run, "head"),
            html.Main(
                [
                    _title(),
                    _pattern_box(state),
                    _tokens_box(),
                    _cross_box(),
                    _metrics_box(),
                    _distance_box(),
                    _received_box(),
                ],
                className="head",
            ),
        ],
        run=state.run,
        head=state.head,
    )


def _title() -> html.Div:
    moves = [
        html.Button(sign, id=f"go-{way}", className="step", title=f"{_says(way)} (key {key})")
        for way, (sign, key) in _WAYS.items()
    ]
    return html.Div(
        [
            html.Div(
                [html.H1(id="head-title"), html.Div(moves, className="steps")], className="name"
            ),
            html.Div(
                [html.P(id="head-verdict", className="verdict"), html.P(id="head-evidence")],
                className="says",
            ),
            dcc.Link("Ablate it →", href="/", id="head-tab-sinks-ablate", className="open"),
        ],
        className="title",
    )


def _says(way: str) -> str:
    return {
        "left": "previous head",
        "right": "next head",
        "up": "layer before",
        "down": "next layer",
    }[way]


def _control(name: str) -> dict[str, str]:
    return {"control": "head", "name": name}


def _pattern_box(state: HeadState) -> html.Section:
    ramps = [{"label": r, "value": r} for r in RAMPS]
    prompts = [
        {"label": parts.prompt_name(state.run, p), "value": p} for p in store().prompts(state.run)
    ]
    return parts.box(
        "Pattern",
        [
            html.Div(
                [
                    parts.control(
                        "prompt",
                        dcc.Dropdown(
                            prompts,
                            state.prompt,
                            id=_control("prompt"),
                            clearable=False,
                            maxHeight=360,
                        ),
                    ),
                ],
                className="row",
            ),
            html.Div(
                [
                    parts.control(
                        "ramp", dcc.RadioItems(ramps, state.ramp, inline=True, id=_control("ramp"))
                    ),
                    html.Span(id="pattern-hidden", className="hidden-mass"),
                ],
                className="row",
            ),
            html.Div(
                parts.canvas("pattern-canvas", "attention pattern"),
                className="canvas",
            ),
            html.Div(id="pattern-legend", className="legend"),
            html.Div(
                [
                    html.Span("save what is seen:"),
                    html.A("CSV", id="save-csv", href="#", className="quiet"),
                    html.A("SVG", id="save-svg", href="#", className="quiet"),
                    html.Button("PNG", id="save-png", className="quiet"),
                ],
                className="row saves",
            ),
        ],
        note="recomputed from q and k",
        className="pattern",
    )


def _tokens_box() -> html.Section:
    return parts.box(
        "Tokens",
        [
            html.P(id="strip-readout", className="sentence"),
            html.Div(id="strip", className="strip"),
            html.P(
                [
                    html.Span("orange", className="key out"),
                    " where the query looks (log ramp) ",
                    html.Span("grey bar", className="key back"),
                    " who looks at it · whitespace is shown as · ↵ ⇥",
                ],
                className="note",
            ),
        ],
        className="tokens",
    )


def _list(name: str, columns: tuple[str, ...]) -> html.Table:
    head = html.Thead(html.Tr([html.Th(c) for c in columns]))
    return html.Table([head, html.Tbody(id=name)], className="list")


def _cross_box() -> html.Section:
    columns = ("position", "token", "weight")
    return parts.box(
        "Locked token",
        [
            html.P(id="cross-sentence", className="sentence"),
            html.Div(
                [
                    html.Div([html.H3("looks at"), _list("cross-out", columns)]),
                    html.Div([html.H3("is looked at by"), _list("cross-in", columns)]),
                ],
                className="pair",
            ),
        ],
        className="cross",
    )


def _metrics_box() -> html.Section:
    table = _list("head-metrics", ("metric", "value ± sd", "null", "rank"))
    return parts.box(
        "All metrics of this head", [html.Div(table, className="scroll")], className="metrics"
    )


def _distance_box() -> html.Section:
    graph = parts.graph("head-distance", "low")
    return parts.box("How far it looks", [graph], note="this prompt", className="distance")


def _received_box() -> html.Section:
    graph = parts.graph("head-received", "low")
    return parts.box("What is looked at", [graph], note="mean over the queries that see it",
                     className="received")  # fmt: skip


def facts_of(state: HeadState) -> dict[str, Any]:
    """What the script needs beside the pattern: neighbours, sinks and their mass, all metrics."""
    kept = store()
    run = kept.run(state.run)
    pattern, problem = _pattern(state)
    metrics = kept.metrics(state.run)
    rows = []
    for metric in metrics.values():
        found, rank = metric.of(state.head), metric.rank(state.head)
        value = readings.with_spread(found.value, found.sd)
        rows.append([metric.name, value, readings.number(found.null),
                     f"{rank[0]} of {rank[1]}" if rank else "–"])  # fmt: skip
    return {
        "run": state.run,
        "head": state.head,
        "prompt": state.prompt,
        "prompts": kept.prompts(state.run),
        "layers": [[s.layer, s.n_heads] for s in run.stats.spec.of(run.stats.kind)],
        "causal": kept.site(state.run, state.head).causal,
        "metrics": rows,
        "problem": problem,
        **({} if pattern is None else _masking(state, pattern)),
    }


def _pattern(state: HeadState) -> tuple[np.ndarray | None, str]:
    """The pattern, or the sentence that says why there is none (q and k were not kept)."""
    try:
        return store().pattern(state.run, state.head, state.prompt), ""
    except WorkbenchError as error:
        return None, str(error)


def _masking(state: HeadState, pattern: np.ndarray) -> dict[str, Any]:
    hidden = [k for k in store().sink_columns(state.run, state.prompt) if k < pattern.shape[1]]
    names = store().tokens(state.run, state.prompt)["shown"]
    share = readings.hidden_mass(pattern, hidden)
    which = ", ".join(f"{k} “{names[k]}”" for k in hidden[:4]) + (" …" if len(hidden) > 4 else "")
    return {
        "n_keys": pattern.shape[1],
        "sinks": hidden,
        "hidden_text": f"hidden: {100 * share:.1f} % of this pattern's attention, on key {which}",
    }


def crossing(state: HeadState) -> dict[str, Any]:
    """Exact numbers of the locked query: the keys it looks at, the queries that look at it."""
    names = store().tokens(state.run, state.prompt)["shown"].tolist()
    pattern, problem = _pattern(state)
    if pattern is None:
        return {"sentence": problem, "out": [], "in": []}
    if state.query is None or state.query >= min(pattern.shape):
        return {"sentence": "No token is locked: click one in the strip or a row of the pattern.",
                "out": [], "in": []}  # fmt: skip

    def rows(weights: np.ndarray) -> list[list[str]]:
        return [[str(i), names[i], readings.number(v)] for i, v in readings.strongest(weights)]

    row = np.nan_to_num(pattern[state.query])
    entropy = float(-(row[row > 0] * np.log(row[row > 0])).sum())
    sentence = (
        f"Query {state.query} “{names[state.query]}”: entropy {readings.number(round(entropy, 4))} "
        "nats; the largest weights, exact. Click a row to go there."
    )
    return {"sentence": sentence, "out": rows(row), "in": rows(pattern[:, state.query])}


def profiles(state: HeadState, theme: str) -> tuple[Any, Any]:
    """Figures of distance and of attention received; the mask leaves sinks out of the second.

    Without a pattern the second comes from the statistics of the run, the first has nothing to say.
    """
    kept = store()
    site, stats = kept.site(state.run, state.head), kept.run(state.run).stats
    names = kept.tokens(state.run, state.prompt)["shown"].tolist()
    pattern, problem = _pattern(state)
    means = None
    if "key_mean" in stats:
        head = int(state.head.split("H")[1])
        means = stats["key_mean"].sel(layer=site.layer, head=head)
    everywhere = None
    if means is not None and means.sizes["prompt"] > 1:
        everywhere = means.mean("prompt").to_numpy()
    if pattern is None:
        distance = figures.empty(theme, problem)
        if means is None:
            return distance, figures.empty(theme, problem)
        here = means.sel(prompt=state.prompt).to_numpy()[: len(names)]
        seen = readings.visible(len(here), len(here), site.causal, site.window)
    else:
        seen = kept.visible(state.run, state.head, state.prompt)
        distance = figures.distance(readings.by_distance(pattern, seen), site.causal, theme)
        here = readings.received(pattern, seen)
    uniform = readings.received(seen / np.maximum(seen.sum(1, keepdims=True), 1), seen)
    if state.mask:
        hidden = [k for k in kept.sink_columns(state.run, state.prompt) if k < len(here)]
        here = _without(here, hidden)
        everywhere = None if everywhere is None else _without(everywhere, hidden)
    return distance, figures.profile(here, everywhere, names, uniform, theme)


def _without(values: np.ndarray, hidden: list[int]) -> np.ndarray:
    values = np.array(values, dtype=float)
    values[hidden] = np.nan
    return values


def register(app: Dash) -> None:
    """Callbacks: the address decides everything; clicks and keys only change the address."""

    @app.callback(
        Output("head-data", "data"),
        Output("head-title", "children"),
        Output("head-verdict", "children"),
        Output("head-evidence", "children"),
        Input("head-url", "data"),
        State("head-data", "data"),
    )
    def facts(url: str, shown: dict | None) -> tuple:
        state = _here(url)
        key = (state.run, state.head, state.prompt)
        if shown and (shown["run"], shown["head"], shown["prompt"]) == key:
            raise PreventUpdate
        words, evidence = readings.verdict(store().metrics(state.run), state.head)
        return facts_of(state), state.head, words, evidence

    @app.callback(
        Output("head-distance", "figure"),
        Output("head-received", "figure"),
        Input(_PROFILES, "data"),
        Input("theme", "data"),
    )
    def graphs(url: str | None, theme: str | None) -> tuple:
        if not url or theme is None:
            raise PreventUpdate
        return profiles(_here(url), theme)

    @app.callback(
        Output("head-cross", "data"),
        Output("cross-sentence", "children"),
        Input("head-url", "data"),
    )
    def locked(url: str) -> tuple:
        found = crossing(_here(url))
        return found, found["sentence"]

    _register_scripts(app)


def _register_scripts(app: Dash) -> None:
    def script(name: str, *wires: Any, wait: bool = False) -> None:
        app.clientside_callback(ClientsideFunction("wb", name), *wires, prevent_initial_call=wait)

    script("head", Output("head-drawn", "data"), Input("head-data", "data"),
           Input("head-url", "data"), Input("theme", "data"))  # fmt: skip
    script("cross", Output("cross-drawn", "data"), Input("head-cross", "data"))
    script("png", Input("save-png", "n_clicks"), wait=True)
    script("step", *(Input(f"go-{way}", "n_clicks") for way in _WAYS), wait=True)
    parts.register_bar(app, "head", "sinks-ablate")
    script("part", Output(_PROFILES, "data"), Input("head-url", "data"), State(_PROFILES, "id"),
           State(_PROFILES, "data"))  # fmt: skip
    for name in _CONTROLS:
        this = _control(name)
        script("control", Input(this, "value"), State(this, "id"), wait=True)
        script("sync", Output(this, "value"), Input("head-url", "data"), State(this, "id"))


def _here(url: str) -> HeadState:
    state = decode(url)
    if not isinstance(state, HeadState):
        raise PreventUpdate
    return state
