"""The box "Ablate" of the Sinks page: choose, run, and see the change beside what was."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate

from workbench.app import ablate, parts, sink_figures
from workbench.app import sink_tables as tables
from workbench.app.ablate import LOSS, Outcome
from workbench.app.sink_boxes import control_id, said
from workbench.app.store import store
from workbench.app.urls import SinksState, decode
from workbench.errors import WorkbenchError

CONTROLS = ("op", "scope", "logit")
_OPERATIONS = {"zero": "silence heads", "drop": "hide the sink key", "null": "add a null logit"}
_SCOPES = {"head": "the head", "layer": "its layer", "all": "all heads"}


def box(state: SinksState) -> html.Section:
    """Controls, progress, verdict and the two figures."""
    operations = [{"label": said, "value": op} for op, said in _OPERATIONS.items()]
    scopes = [{"label": said, "value": scope} for scope, said in _SCOPES.items()]
    logit = dcc.Slider(-10, 10, 0.5, value=state.logit, id=control_id("logit"), marks=None,
                       updatemode="drag", included=False, allow_direct_input=False)  # fmt: skip
    return parts.box(
        "Ablate",
        [
            dcc.Store(id="ablate-tick"),
            dcc.Store(id="ablate-state"),
            html.Div(
                [
                    parts.control("do", dcc.RadioItems(operations, state.op, inline=True,
                                                       id=control_id("op"))),
                    parts.control("to", dcc.RadioItems(scopes, state.scope, inline=True,
                                                       id=control_id("scope"))),
                    html.Button("Run", id="ablate-run", className="quiet go"),
                    html.Button("Stop", id="ablate-stop", className="quiet"),
                ],
                className="row",
            ),
            html.Div(said("null logit (nats)", "logit", logit), id="ablate-logit"),
            html.P(id="ablate-what", className="question"),
            html.P(id="ablate-status", className="hidden-mass", role="status"),
            html.P(id="ablate-verdict", className="verdict"),
            html.P(id="ablate-controls", className="question"),
            html.Div(
                [
                    html.Div([html.H3("attention received by position"),
                              parts.graph("ablate-curve", "low")]),
                    html.Div([html.H3("attention the sink receives, by layer"),
                              parts.graph("ablate-layers", "low"),
                              html.Div(parts.csv_link("ablated"), className="row saves")]),
                ],
                id="ablate-figures",
                className="gone",
            ),
        ],
        note="the run's own model, on this machine, on this prompt",
        className="ablate",
    )  # fmt: skip


def what_words(state: SinksState) -> str:
    """What Run would do, or why it cannot, in a sentence."""
    run = store().run(state.run)
    try:
        change = tables.change_of(state)
        heads = change.heads(run.stats)
    except WorkbenchError as reason:
        return str(reason)
    return ablate.why_not(run, state.prompt) or (
        f"Run: {ablate.said(change, heads)}, on prompt {state.prompt}, with the sink at "
        f"{tables.place_words(state)}."
    )


def verdict(outcome: Outcome) -> tuple[str, str]:
    """(what it changed in a sentence, the controls and how the clean pass repeats the run)."""
    effect = outcome.effects[0]
    if outcome.unit == LOSS:
        words = (
            f"{outcome.what}: next-token loss {effect.base:.3f} → {effect.edited:.3f} nats "
            f"({_signed(effect.change)})"
        )
    else:
        words = (
            f"{outcome.what}: the final hidden states turn, cosine with those of the unchanged "
            f"model {1 - effect.edited:.4f} (1 is no change)"
        )
    controls = [
        f"{e.name} {_signed(e.change) if outcome.unit == LOSS else format(1 - e.edited, '.4f')}"
        for e in outcome.effects[1:]
    ]
    beside = "The same done elsewhere: " + ", ".join(controls) if controls else (
        "No control: every head is changed, so there is no other one to change instead"
    )  # fmt: skip
    return words, (
        f"{beside}. The unchanged pass repeats the run's attention received to "
        f"{outcome.repeats:.0e}; {outcome.seconds:.1f} s."
    )


def _signed(change: float) -> str:
    """`+0.163`; what rounds to nothing has no sign.

    >>> _signed(0.1631), _signed(-0.0001)
    ('+0.163', '0.000')
    """
    text = f"{change:+.3f}"
    return text if float(text) else "0.000"


def drawn(state: SinksState, outcome: Outcome, theme: str) -> tuple[Any, Any]:
    """Figures of an outcome: the curves side by side, the shares per layer."""
    tokens = store().tokens(state.run, state.prompt)["shown"].tolist()
    curves = sink_figures.before_after(outcome.before, outcome.after, tokens, state.axis, theme)
    shares = {"before": outcome.share_before, "after": outcome.share_after}
    return curves, sink_figures.by_layer(shares, theme, "probability")


def progress(state: SinksState, refused: str) -> tuple[str, dict[str, Any]]:
    """(words, {running, done}) of the change of an address; `done` when there is an outcome."""
    try:
        change = tables.change_of(state)
    except WorkbenchError as reason:
        return str(reason), {"running": False, "done": False}
    status = tables.jobs().status(change)
    running = status.state == "running"
    words = f"{status.words} …" if running else status.words
    return refused or words, {"running": running, "done": status.outcome is not None}


def register(app: Dash, part: Input) -> None:
    """Callbacks: one starts, stops and reports jobs, one draws what came out."""
    _register_outcome(app, State(part.component_id, "data"))

    @app.callback(
        Output("ablate-status", "children"),
        Output("ablate-state", "data"),
        part,
        Input("ablate-run", "n_clicks"),
        Input("ablate-stop", "n_clicks"),
        Input("ablate-tick", "data"),
    )
    def report(url: str | None, *_: int | None) -> tuple:
        if not url:
            raise PreventUpdate
        state, refused = _here(url), ""
        if ctx.triggered_id == "ablate-run":
            refused = _start(state)
        elif ctx.triggered_id == "ablate-stop":
            tables.jobs().stop()
        return progress(state, refused)

    # The next question is asked after the answer to the last one: an interval that outruns a busy
    # server would make the browser drop every answer.
    app.clientside_callback(ClientsideFunction("wb", "poll"), Input("ablate-state", "data"))

    @app.callback(Output("ablate-what", "children"), Output("ablate-logit", "className"), part)
    def what(url: str | None) -> tuple[str, str]:
        if not url:
            raise PreventUpdate
        state = _here(url)
        return what_words(state), "sliders" if state.op == "null" else "gone"


def _register_outcome(app: Dash, url_of: State) -> None:
    @app.callback(
        Output("ablate-verdict", "children"),
        Output("ablate-controls", "children"),
        Output("ablate-curve", "figure"),
        Output("ablate-layers", "figure"),
        Output("ablate-figures", "className"),
        Input("ablate-state", "data"),
        Input("theme", "data"),
        url_of,
    )
    def outcome(data: dict | None, theme: str | None, url: str | None) -> tuple:
        if not url or not data or theme is None:
            raise PreventUpdate
        if not data["done"]:
            return "", "", no_update, no_update, "gone"
        state = _here(url)
        found = tables.jobs().status(tables.change_of(state)).outcome
        if found is None:
            raise PreventUpdate
        return *verdict(found), *drawn(state, found, theme), "pair"


def _here(url: str) -> SinksState:
    state = decode(url)
    if not isinstance(state, SinksState):
        raise PreventUpdate
    return state


def _start(state: SinksState) -> str:
    """Begin the change of the address; "" or why it cannot begin."""
    run = store().run(state.run)
    try:
        change = tables.change_of(state)
        change.heads(run.stats)
    except WorkbenchError as reason:
        return str(reason)
    return ablate.why_not(run, state.prompt) or tables.jobs().start(run, change)
