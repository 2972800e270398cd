"""Sinks: where is attention parked, since which layer, at what cost, and what if it cannot be?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.exceptions import PreventUpdate

from workbench.app import ablate_panel, figures, parts, readings, sink_figures, sink_readings
from workbench.app import sink_boxes as boxes
from workbench.app import sink_tables as tables
from workbench.app.store import store
from workbench.app.urls import HeadState, SinksState, decode, encode, sinks_state
from workbench.errors import WorkbenchError
from workbench.probes import attention_share

PAGE = {
    "path_template": "/r/<run>/sinks",
    "title": "Sinks · Attention Workbench",
}
_CONTROLS = ("prompt", "at", "metric", "layer", "axis", "eps", "cos", "life", "other")
# What each part of the page depends on: a change of anything else leaves it alone.
_PARTS = {
    "place": "at prompt mask",
    "heat": "metric at prompt mask sel",
    "curve": "prompt layer axis at mask",
    "list": "eps cos life",
    "norms": "at prompt",
    "compare": "other",
    "ablate": "prompt at op scope sel logit axis",
}


def layout(run: str = "", **query: str) -> html.Div:
    """The Sinks page of one run in the state of the address."""
    try:
        state = sinks_state(run, query)
        store().tokens(state.run, state.prompt)
        tables.place_of(state)
        if state.other:
            store().run(state.other)
        return _page(state)
    except WorkbenchError as error:
        return parts.problem(str(error))


def _page(state: SinksState) -> html.Div:
    run = store().run(state.run)
    usual = SinksState(state.run)
    found = [dcc.Store(id={"part": name, "of": of}) for name, of in _PARTS.items()]
    return parts.page(
        "sinks",
        [
            dcc.Store(id="sinks-url", data=encode(state)),
            dcc.Store(id="sinks-links"),
            *found,
            parts.bar(run, "sinks"),
            html.Main(
                [
                    boxes.top(state),
                    boxes.heat_box(state),
                    boxes.curve_box(state),
                    ablate_panel.box(state),
                    boxes.list_box(state),
                    boxes.levels_box(),
                    boxes.norm_box(
                        "residual", "Residual stream", "norm at the sink beside the others"
                    ),
                    boxes.norm_box("values", "Values", "what the sink would add, by layer"),
                    boxes.massive_box(state),
                    boxes.compare_box(state),
                ],
                className="sinks",
            ),
        ],
        run=state.run,
        head=store().lead(state.run),
        # What an address without the parameter means, for the script.
        metric=usual.metric,
        at=boxes.FIRST,
        layer=boxes.ALL,
        other=boxes.NONE,
        axis=usual.axis,
        eps=str(usual.eps),
        cos=str(usual.cos),
        life=str(usual.life),
        op=usual.op,
        scope=usual.scope,
        logit=str(usual.logit),
    )


def compare_rows(state: SinksState) -> list[list[str]]:
    """One row per run: begin token, length, share of position 0 and of the strongest sink."""
    found = []
    for run_id in filter(None, (state.run, state.other)):
        run = store().run(run_id)
        first = attention_share(run.stats, 0)
        named = sink_readings.name_sinks(store().sinks(run_id), run.tokens)
        strongest = ["none", "–", "–"]
        if len(named):
            top = named.iloc[0]
            strongest = [
                f"{top['token']} ({top['place']})",
                _percent(top["share"]),
                str(top["heads"]),
            ]
        length = len(run.tokens) / run.tokens["prompt"].nunique()
        found.append([run_id, str(run.manifest.get("bos") or "unknown"), f"{length:.0f}",
                      _percent(first.value), _percent(first.null), *strongest])  # fmt: skip
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if np.isfinite(share) else "–"


def rows_of(state: SinksState) -> list[dict]:
    """The list of sinks as the grid takes it, at most `MOST_ROWS` rows."""
    table = tables.listed(state).head(sink_readings.MOST_ROWS)
    names = [c["field"] for c in boxes.columns()]
    found = []
    for row in table.to_dict("records"):
        kept = {n: None if pd.isna(row[n]) else row[n] for n in names}
        found.append({**kept, "id": f"{row['prompt']}.{row['position']}"})
    return found


def count_words(state: SinksState) -> str:
    """How many sinks there are under the thresholds, and of what levels."""
    table = tables.listed(state)
    n, prompts = len(table), table["prompt"].nunique()
    shown = (
        f", of which {sink_readings.MOST_ROWS} are listed" if n > sink_readings.MOST_ROWS else ""
    )
    heads = "1 token gets" if n == 1 else f"{n:,} tokens get"
    words = (
        f"{heads} more than {state.eps:g} of a head's attention, in {prompts:,} of "
        f"{len(store().prompts(state.run)):,} prompts{shown}."
    )
    found, _ = tables.secondary(state)
    if found is None:
        return f"{words} Their levels are not known."
    kinds = found["label_relative"].value_counts()
    said = ", ".join(f"{count:,} {label}" for label, count in kinds.items()) or "none"
    return (
        f"{words} By direction (|cosine| above {state.cos:g}, a life of more than "
        f"{100 * min(state.life, 1):.0f} % of the first sink's): {said}."
    )


def place_sentences(state: SinksState) -> tuple[str, str]:
    """What the sink is, and what the mask hides."""
    words = f"= {tables.place_words(state)}"
    if not state.mask:
        return words, ""
    hidden, stats = store().hidden(state.run), tables.stats_of(state)
    here = hidden[state.prompt]
    names = store().tokens(state.run, state.prompt)["shown"]
    keys = ", ".join(f"{k} “{names[k]}”" for k in here[:6]) + (" …" if len(here) > 6 else "")
    every = sink_readings.hidden_share(stats, hidden)
    mine = sink_readings.hidden_share(stats.prompt(state.prompt), {state.prompt: here})
    return words, (
        f"Sinks masked: {100 * every:.1f} % of all attention is hidden, in this prompt "
        f"{100 * mine:.1f} %, on key {keys} (attention above .3 of a head). The others are "
        "not renormalised; norms, levels and comparison are not touched by the mask."
    )


def question_of(state: SinksState) -> str:
    """What the heat map asks, and of which key."""
    metric = tables.heat_metric(state)
    low = " Low values tell." if metric.low_tells else ""
    if state.mask and state.metric in ("sink_mass", "dormant_score_mass"):
        return (
            "How much attention does the strongest of the other keys receive? "
            f"(mean over prompts of the largest key_mean; {metric.units})"
        )
    if state.metric in tables.OF_KEY:
        return f"{metric.question} Here: {tables.place_words(state)}.{low} Unit: {metric.units}."
    return f"{metric.question}{low} Unit: {metric.units}."


def curve_of(state: SinksState, theme: str) -> Any:
    """The curve of the state."""
    table = tables.received(state)
    sinks = store().sinks(state.run)
    marked = sinks.loc[sinks["prompt"] == state.prompt, "position"].tolist()
    place = tables.place_of(state)
    return sink_figures.curve(
        table, table["token"].tolist(), marked, axis=state.axis, place=place.position, theme=theme
    )


def register(app: Dash) -> None:
    """Callbacks: the address decides everything; clicks and sliders only change the address."""
    parts.register_bar(app, "sinks")
    _register_figures(app)
    _register_tables(app)
    _register_sentences(app)
    ablate_panel.register(app, _part("ablate"))
    _register_scripts(app)


def _part(name: str) -> Input:
    return Input({"part": name, "of": _PARTS[name]}, "data")


def _drawn(url: str | None, theme: str | None, draw: Any) -> Any:
    """The figure, or one that says why there is none."""
    if not url or theme is None:
        raise PreventUpdate
    try:
        return draw(here(url), theme)
    except WorkbenchError as reason:
        return figures.empty(theme, str(reason))


def here(url: str) -> SinksState:
    """The state of the page's address."""
    state = decode(url)
    if not isinstance(state, SinksState):
        raise PreventUpdate
    return state


def _register_figures(app: Dash) -> None:
    theme = Input("theme", "data")

    def figure(name: str, part: str, draw: Any) -> None:
        def answer(url: str | None, look: str | None) -> Any:
            return _drawn(url, look, draw)

        app.callback(Output(name, "figure"), _part(part), theme)(answer)

    def heat(state: SinksState, look: str) -> Any:
        stats = tables.stats_of(state)
        metric = tables.heat_metric(state)
        return sink_figures.heat(metric, stats.spec, stats.kind, state.sel, look)

    def levels(state: SinksState, look: str) -> Any:
        table, stats = tables.levels(state), tables.stats_of(state)
        if table.empty:
            return figures.base(look)
        return sink_figures.levels(table, stats.spec.n_layers(stats.kind), look)

    def norm(name: str) -> Any:
        def draw(state: SinksState, look: str) -> Any:
            place = tables.place_of(state)
            said = f"position {place.position}"
            return getattr(sink_figures, name)(tables.TABLES[name](state), said, look)

        return draw

    figure("sinks-heat", "heat", heat)
    figure("sinks-curve", "curve", curve_of)
    figure("sinks-levels", "list", levels)
    figure("sinks-residual", "norms", norm("residual"))
    figure("sinks-values", "norms", norm("values"))
    figure("sinks-compare", "compare", lambda s, t: sink_figures.by_layer(tables.shares(s), t))


def _register_tables(app: Dash) -> None:
    @app.callback(
        Output("sinks-list", "rowData"), Output("sinks-count", "children"),
        Output("levels-sentence", "children"), Output("levels-graph", "className"),
        _part("list"),
    )  # fmt: skip
    def thresholds(url: str | None) -> tuple:
        if not url:
            raise PreventUpdate
        state = here(url)
        try:
            rows, said = rows_of(state), count_words(state)
        except WorkbenchError as reason:
            return [], str(reason), "", "gone"
        none = tables.levels(state).empty
        return rows, said, tables.no_levels(state) if none else "", "gone" if none else ""

    @app.callback(Output("compare-rows", "data"), _part("compare"))
    def beside(url: str | None) -> list[list[str]]:
        if not url:
            raise PreventUpdate
        try:
            return compare_rows(here(url))
        except WorkbenchError:
            return []


def _register_sentences(app: Dash) -> None:
    @app.callback(
        Output("sinks-place", "children"), Output("sinks-hidden", "children"), _part("place")
    )
    def place(url: str | None) -> tuple[str, str]:
        if not url:
            raise PreventUpdate
        try:
            return place_sentences(here(url))
        except WorkbenchError as reason:
            return "", str(reason)

    @app.callback(
        Output("sinks-question", "children"), Output("sinks-selected", "children"),
        Output("sinks-open", "children"), Output("sinks-open", "href"), _part("heat"),
    )  # fmt: skip
    def chosen(url: str | None) -> tuple:
        if not url:
            raise PreventUpdate
        state = here(url)
        try:
            metric, question = tables.heat_metric(state), question_of(state)
        except WorkbenchError:
            # The figure says it.
            return "", "", "", no_update
        if state.sel not in metric.table.index:
            return question, "No head chosen: click a cell.", "", no_update
        text = f"{state.sel}: {readings.evidence(metric, state.sel)}"
        head = HeadState(state.run, state.sel, state.prompt, mask=state.mask)
        return question, text, f"Open {state.sel} →", encode(head)


def _register_scripts(app: Dash) -> None:
    def script(name: str, *wires: Any, wait: bool = False) -> None:
        app.clientside_callback(ClientsideFunction("wb", name), *wires, prevent_initial_call=wait)

    url = Input("sinks-url", "data")
    for name, of in _PARTS.items():
        store_id = {"part": name, "of": of}
        script("part", Output(store_id, "data"), url, State(store_id, "id"),
               State(store_id, "data"))  # fmt: skip
    for name in (*_CONTROLS, *ablate_panel.CONTROLS):
        this = boxes.control_id(name)
        script("control", Input(this, "value"), State(this, "id"), wait=True)
        script("sync", Output(this, "value"), url, State(this, "id"))
    for name in ("eps", "cos", "life", "logit"):
        script("said", Output({"value": name}, "children"), Input(boxes.control_id(name), "value"))
    script("links", Output("sinks-links", "data"), url)
    script("rows", Output("sinks-list", "selectedRows"), url)
    script("cell", Input("sinks-list", "cellClicked"), wait=True)
    script("square", Input("sinks-heat", "clickData"), wait=True)
    script("spot", Input("sinks-curve", "clickData"), wait=True)
    script("fill", Output("compare-body", "className"), Input("compare-rows", "data"),
           State("compare-body", "id"))  # fmt: skip
