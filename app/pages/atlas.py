"""Atlas: which heads matter?  Every head as a cell, a table row and a point, selected together."""

from __future__ import annotations

from typing import Any

import numpy as np
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate
from dash_ag_grid import AgGrid

from workbench.app import figures, masking, parts, readings, sink_figures, sink_readings
from workbench.app.readings import Metric
from workbench.app.store import store
from workbench.app.urls import AtlasState, HeadState, atlas_state, decode, encode
from workbench.errors import WorkbenchError
from workbench.spec import Spec

PAGE = {
    "path_template": "/r/<run>/atlas",
    "title": "Atlas · Attention Workbench",
}
_CONTROLS = ("metric", "metric2", "top")
_SINKS_SHOWN = 8


def layout(run: str = "", **query: str) -> html.Div:
    """The Atlas of one run in the state of the address."""
    try:
        state = atlas_state(run, query)
        return _page(state)
    except WorkbenchError as error:
        return parts.problem(str(error))


def _page(state: AtlasState) -> html.Div:
    run = store().run(state.run)
    metrics = store().metrics(state.run)
    first = store().metric(state.run, state.metric)
    second = store().metric(state.run, state.metric2, 1)
    options = [{"label": m.name, "value": m.name, "title": m.question} for m in metrics.values()]
    return parts.page(
        "atlas",
        [
            dcc.Store(id="atlas-url", data=encode(state)),
            dcc.Store(id="atlas-data"),
            dcc.Store(id="atlas-drawn"),
            parts.bar(run, "atlas"),
            html.Main(
                [
                    _grid_box(options, first.name),
                    _scatter_box(options, second.name),
                    _table_box(state),
                    _sinks_box(state.run),
                ],
                className="atlas",
            ),
        ],
        run=state.run,
        # What an address without a metric means, for the script.
        metric=store().metric(state.run, "").name,
        metric2=store().metric(state.run, "", 1).name,
        head=store().lead(state.run),
    )


def _grid_box(options: list[dict], metric: str) -> html.Section:
    return parts.box(
        "Heads",
        [
            html.Div(
                [
                    parts.control("colour by", _dropdown("metric", options, metric)),
                    html.P(id="atlas-question", className="question"),
                ],
                className="row",
            ),
            html.Div(
                parts.canvas("atlas-canvas", "layer by head"),
                className="canvas",
            ),
            html.Div(id="atlas-legend", className="legend"),
            html.Div(
                [
                    html.Span(id="atlas-selected"),
                    dcc.Link("", href="/", id="atlas-open", className="open"),
                ],
                className="chosen",
            ),
        ],
        note="hover for numbers, click to select, double click or Enter to open",
        className="wide",
    )


def _scatter_box(options: list[dict], metric: str) -> html.Section:
    return parts.box(
        "Two metrics",
        [
            html.Div(
                parts.control("y axis", _dropdown("metric2", options, metric)), className="row"
            ),
            parts.graph("atlas-scatter"),
        ],
        note="x: the colour metric; each point is a head, click selects it",
    )


def _dropdown(name: str, options: list[dict], value: str) -> dcc.Dropdown:
    return dcc.Dropdown(
        options, value, id={"control": "atlas", "name": name}, clearable=False, maxHeight=360
    )


def _table_box(state: AtlasState) -> html.Section:
    tops = [{"label": str(n) if n else "all", "value": n} for n in (10, 20, 50, 0)]
    grid = AgGrid(
        id="atlas-table",
        columnDefs=[],
        rowData=[],
        getRowId="params.data.label",
        selectedRows={"ids": [state.sel] if state.sel else []},
        columnSize="responsiveSizeToFit",
        defaultColDef={"sortable": True, "resizable": False, "suppressMovable": True},
        dashGridOptions={
            "rowSelection": {
                "mode": "singleRow",
                "checkboxes": False,
                "enableClickSelection": False,
            },
            "rowHeight": 28,
            "headerHeight": 32,
            "animateRows": False,
        },
        csvExportParams={"fileName": f"{state.run}-ranked.csv"},
        className="ag-theme-house",
        style={"height": "100%", "width": "100%"},
    )
    return parts.box(
        "Ranked",
        [
            html.Div(
                [
                    parts.control(
                        "top",
                        dcc.RadioItems(
                            tops, state.top, inline=True, id={"control": "atlas", "name": "top"}
                        ),
                    ),
                    html.Button("CSV of this table", id="atlas-csv", className="quiet"),
                    html.A(
                        "CSV of every metric",
                        href=f"/data/{state.run}/heads.csv",
                        className="quiet",
                    ),
                ],
                className="row",
            ),
            html.Div(grid, className="grid"),
        ],
        className="wide",
    )


def _sinks_box(run: str) -> html.Section:
    table, sentence = store().sinks_or_reason(run)
    children: list[Any] = [html.P(sentence, id="sinks-sentence", className="sentence")]
    if table is not None and len(table):
        named = sink_readings.name_sinks(table, store().run(run).tokens)
        head = ["token", "position", "in prompts", "heads", "share", "uniform"]
        rows = [
            [html.Code(token), place, f"{prompts:,}", f"{heads:,}", f"{100 * share:.1f} %",
             f"{100 * null:.1f} %"]
            for token, place, prompts, heads, share, null in named.head(_SINKS_SHOWN).to_numpy()
        ]  # fmt: skip
        children.append(
            html.Table(
                [
                    html.Thead(html.Tr([html.Th(h) for h in head])),
                    html.Tbody([html.Tr([html.Td(c) for c in row]) for row in rows]),
                ],
                id="sinks",
                className="list",
            )
        )
        threshold = float(table.attrs.get("threshold", np.nan))
        children.append(
            html.P(
                f"A sink receives more than {readings.number(threshold)} of the attention of at "
                "least one head, averaged over the queries that see it; heads: most of any "
                "prompt; share: of all attention of its prompts, mean over them. Keys that fewer "
                f"than {table.attrs['min_queries']} queries see are left out.",
                className="note",
            )
        )
    elif table is not None:
        children.append(html.P("No position is a sink of any head in this run."))
    children.append(html.H3("share of all attention on position 0, by layer"))
    children.append(parts.graph("sinks-layers", "tiny"))
    note = "tokens on which attention is parked; more on the page Sinks"
    return parts.box("Sinks", children, note=note)


def cells(metric: Metric, second: Metric, spec: Spec, kind: str) -> dict[str, Any]:
    """What the canvas draws: range, rows of layers (missing ones empty), one cell per head."""
    values = np.abs(metric.table["value"].to_numpy(dtype="float64"))
    top = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    low, high = (-top, top) if metric.signed else (0.0, top)
    sites = {s.layer: s for s in spec.of(kind)}
    layers, found = [], []
    for layer in range(spec.n_layers(kind)):
        site = sites.get(layer)
        heads = site.n_heads if site else 0
        group = heads // site.n_kv_heads if site and site.n_kv_heads else 1
        layers.append({"layer": layer, "heads": heads, "group": group, "start": len(found)})
        at = metric.table.query("layer == @layer").sort_values("head")
        found += [_cell(metric, str(label)) for label in at.index]
    words = f"{metric.name} ({metric.units})"
    return {
        "metric": metric.name,
        "metric2": second.name,
        "low": low,
        "high": high or 1.0,
        "signed": metric.signed,
        "words": f"red: below zero, blue: above zero; {words}" if metric.signed else words,
        "n_heads": spec.n_heads(kind),
        "layers": layers,
        "cells": found,
    }


def _cell(metric: Metric, label: str) -> dict[str, Any]:
    found, rank = metric.of(label), metric.rank(label)
    notes = [
        "" if np.isnan(found.n) else f"n {found.n:,.0f}",
        "" if np.isnan(found.null) else f"null {readings.number(found.null)}",
        f"rank {rank[0]} of {rank[1]}" if rank else "no value",
    ]
    return {
        "label": label,
        "value": _plain(found.value),
        "text": f"{readings.with_spread(found.value, found.sd)} {metric.units}",
        "more": " · ".join(filter(None, notes)),
    }


def _plain(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def ranking(metric: Metric, second: Metric, top: int) -> tuple[list[dict], list[dict]]:
    """(columns, rows) of the table: the most telling heads by the first metric first."""
    table = metric.table.dropna(subset=["value"])
    table = table.sort_values("value", ascending=metric.low_tells, kind="stable")
    labels = [str(label) for label in table.index[: top or None]]
    rows = [
        {
            "rank": i,
            "label": label,
            **{name: _plain(number) for name, number in metric.of(label)._asdict().items()},
            "second": _plain(second.of(label).value),
        }
        for i, label in enumerate(labels, 1)
    ]
    shown = {"function": "wbNumber(params.value)"}
    names = {"value": metric.name, "sd": "± sd", "n": "n", "null": "null", "second": second.name}
    columns: list[dict] = [
        {"field": "rank", "headerName": "", "width": 44, "maxWidth": 50, "cellClass": "faint"},
        {"field": "label", "headerName": "head", "width": 70, "maxWidth": 84, "cellClass": "label"},
    ]
    columns += [
        {"field": f, "headerName": h, "headerTooltip": h, "type": "rightAligned", "width": w,
         "valueFormatter": shown}
        for (f, h), w in zip(names.items(), (150, 64, 70, 64, 150), strict=True)
        if f != "second" or second.name != metric.name
    ]  # fmt: skip
    return columns, rows


def register(app: Dash) -> None:
    """Callbacks: the address decides everything; clicks only change the address."""

    @app.callback(
        Output("atlas-data", "data"),
        Output("atlas-question", "children"),
        Output("atlas-table", "columnDefs"),
        Output("atlas-table", "rowData"),
        Input("atlas-url", "data"),
        State("atlas-data", "data"),
    )
    def values(url: str, shown: dict | None) -> tuple:
        state = _here(url)
        metric, second = _two(state)
        key = [metric.name, second.name, state.top, state.mask]
        if shown and shown["key"] == key:
            raise PreventUpdate
        about = store().run(state.run).manifest
        data = cells(metric, second, Spec.from_json(about["spec"]), about["kind"])
        return {**data, "key": key}, _question(state, metric), *ranking(metric, second, state.top)

    @app.callback(
        Output("atlas-scatter", "figure"), Input("atlas-url", "data"), Input("theme", "data")
    )
    def points(url: str, theme: str | None) -> Any:
        if theme is None:
            raise PreventUpdate
        state = _here(url)
        return figures.scatter(*_two(state), state.sel, theme)

    _register_selection(app)
    _register_scripts(app)
    parts.register_bar(app, "atlas")


def _register_selection(app: Dash) -> None:
    @app.callback(
        Output("sinks-layers", "figure"),
        Input("theme", "data"),
        State("atlas-url", "data"),
    )
    def layers(theme: str | None, url: str) -> Any:
        if theme is None:
            raise PreventUpdate
        stats = store().run(_here(url).run).stats
        if "key_mass" not in stats:
            return figures.empty(theme, "The attention keys receive (key_mass) was not captured.")
        return sink_figures.by_layer({"position 0": sink_readings.share_by_layer(stats)}, theme)

    @app.callback(
        Output("atlas-selected", "children"),
        Output("atlas-open", "children"),
        Output("atlas-open", "href"),
        Input("atlas-url", "data"),
    )
    def selected(url: str) -> tuple:
        state = _here(url)
        metric, _ = _two(state)
        if state.sel not in metric.table.index:
            return "No head selected: click a cell, a row or a point.", "", no_update
        text = f"{state.sel}: {metric.name} {readings.evidence(metric, state.sel)}"
        head = HeadState(state.run, state.sel, mask=state.mask)
        return text, f"Open {state.sel} →", encode(head)

    @app.callback(
        Output("atlas-table", "exportDataAsCsv"),
        Input("atlas-csv", "n_clicks"),
        prevent_initial_call=True,
    )
    def csv(clicks: int | None) -> bool:
        return bool(clicks and ctx.triggered_id)


def _register_scripts(app: Dash) -> None:
    def script(name: str, *wires: Any, wait: bool = False) -> None:
        app.clientside_callback(ClientsideFunction("wb", name), *wires, prevent_initial_call=wait)

    script("atlas", Output("atlas-drawn", "data"), Input("atlas-data", "data"),
           Input("atlas-url", "data"), Input("theme", "data"))  # fmt: skip
    script("rows", Output("atlas-table", "selectedRows"), Input("atlas-url", "data"))
    script("cell", Input("atlas-table", "cellClicked"), wait=True)
    script("point", Input("atlas-scatter", "clickData"), wait=True)
    for name in _CONTROLS:
        this = {"control": "atlas", "name": name}
        script("control", Input(this, "value"), State(this, "id"), wait=True)
        script("sync", Output(this, "value"), Input("atlas-url", "data"), State(this, "id"))


def _here(url: str) -> AtlasState:
    state = decode(url)
    if not isinstance(state, AtlasState):
        raise PreventUpdate
    return state


def _two(state: AtlasState) -> tuple[Metric, Metric]:
    return _shown(state, state.metric, 0), _shown(state, state.metric2, 1)


def _shown(state: AtlasState, name: str, default: int) -> Metric:
    """A metric, without position 0 where the sinks are masked and that can be had."""
    metric = store().metric(state.run, name, default)
    return (state.mask and store().without_first(state.run, metric.name)) or metric


def _question(state: AtlasState, metric: Metric) -> str:
    words = f"{metric.question} Unit: {metric.units}."
    if metric.low_tells:
        words += " Low values tell: the lowest stand first."
    if state.mask:
        masked = store().without_first(state.run, metric.name) is not None
        words += f" {masking.about_mask(metric.name, masked)}"
    return words
