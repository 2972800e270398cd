"""The boxes of the Sinks page: what stands where, with which controls; nothing is computed here."""

from __future__ import annotations

from typing import Any

from dash import dcc, html
from dash_ag_grid import AgGrid

from workbench.app import parts, readings
from workbench.app import sink_tables as tables
from workbench.app.store import store
from workbench.app.urls import AXES, STRONGEST, SinksState
from workbench.errors import WorkbenchError

# Choices that an address says by leaving them out.
FIRST, ALL, NONE = "first", "all", "none"


def control_id(name: str) -> dict[str, str]:
    """Id of a control whose value stands in the address under `name`."""
    return {"control": "sinks", "name": name}


def top(state: SinksState) -> html.Div:
    """What the page is about: the prompt, and which key is called the sink."""
    prompts = [
        {"label": parts.prompt_name(state.run, p), "value": p} for p in store().prompts(state.run)
    ]
    places = [
        {"label": "position 0", "value": FIRST},
        {"label": "strongest of the prompt", "value": STRONGEST},
    ]
    prompt = dcc.Dropdown(
        prompts, state.prompt, id=control_id("prompt"), clearable=False, maxHeight=360
    )
    place = dcc.RadioItems(places, state.at or FIRST, inline=True, id=control_id("at"))
    _, sentence = store().sinks_or_reason(state.run)
    return html.Div(
        [
            html.Div([html.H1("Sinks"), html.P(sentence, className="lead")], className="name"),
            html.Div(
                [
                    parts.control("prompt", prompt),
                    parts.control("the sink is", place),
                    html.Span(id="sinks-place", className="question"),
                ],
                className="row",
            ),
            html.P(id="sinks-hidden", className="hidden-mass"),
        ],
        className="title tall",
    )


def heat_box(state: SinksState) -> html.Section:
    """A metric of every head."""
    options = [{"label": name, "value": name} for name in tables.heat_metrics(state.run)]
    chosen = dcc.Dropdown(options, state.metric, id=control_id("metric"), clearable=False)
    return parts.box(
        "By layer and head",
        [
            html.Div(
                [parts.control("colour by", chosen), parts.csv_link("heads")], className="row"
            ),
            html.P(id="sinks-question", className="question"),
            parts.graph("sinks-heat"),
            html.Div(
                [
                    html.Span(id="sinks-selected"),
                    dcc.Link("", href="/", id="sinks-open", className="open"),
                ],
                className="chosen",
            ),
        ],
        note="click a head to choose it",
        className="half",
    )


def curve_box(state: SinksState) -> html.Section:
    """Attention received by position."""
    run = store().run(state.run)
    sites = run.stats.spec.of(run.stats.kind)
    layers = [{"label": "all layers", "value": ALL}]
    layers += [{"label": f"layer {s.layer}", "value": str(s.layer)} for s in sites]
    layer = ALL if state.layer is None else str(state.layer)
    axes = [{"label": a, "value": a} for a in AXES]
    return parts.box(
        "By position",
        [
            html.Div(
                [
                    parts.control(
                        "layer",
                        dcc.Dropdown(layers, layer, id=control_id("layer"), clearable=False),
                    ),
                    parts.control(
                        "axis", dcc.RadioItems(axes, state.axis, inline=True, id=control_id("axis"))
                    ),
                    parts.csv_link("received"),
                ],
                className="row narrow",
            ),
            html.P(
                "Attention a position receives: mean over the queries that see it, then over "
                "heads. Click a position to call it the sink.",
                className="question",
            ),
            parts.graph("sinks-curve"),
        ],
        note="this prompt",
        className="half",
    )


def said(label: str, name: str, field: Any) -> html.Div:
    """A slider with its name before it and its value behind."""
    value = html.Span(id={"value": name}, className="number")
    return html.Div([html.Span(label), field, value], className="control")


def _slider(name: str, low: float, high: float, step: float, value: float) -> Any:
    return dcc.Slider(
        low, high, step, value=value, id=control_id(name), marks=None, updatemode="drag",
        included=False, allow_direct_input=False,
    )  # fmt: skip


def list_box(state: SinksState) -> html.Section:
    """The sink tokens, under thresholds."""
    sliders = (
        ("attention above", "eps", _slider("eps", 0.02, 0.95, 0.01, state.eps)),
        ("|cosine| above", "cos", _slider("cos", 0.5, 0.99, 0.01, state.cos)),
        ("life above", "life", _slider("life", 0.0, 0.75, 0.05, state.life)),
    )
    grid = AgGrid(
        id="sinks-list",
        columnDefs=columns(),
        rowData=[],
        getRowId="params.data.id",
        columnSize="responsiveSizeToFit",
        defaultColDef={"sortable": True, "resizable": False, "suppressMovable": True},
        dashGridOptions={
            "rowSelection": {
                "mode": "singleRow", "checkboxes": False, "enableClickSelection": False,
            },
            "rowHeight": 28,
            "headerHeight": 32,
            "animateRows": False,
        },
        className="ag-theme-house",
        style={"height": "100%", "width": "100%"},
    )  # fmt: skip
    return parts.box(
        "Sink tokens",
        [
            html.Div([said(*slider) for slider in sliders], className="sliders"),
            html.P(id="sinks-count", className="question"),
            html.Div(grid, className="grid"),
            html.Div(parts.csv_link("list"), className="row saves"),
        ],
        note="click a row to call it the sink",
        className="list-of-sinks",
    )


def columns() -> list[dict]:
    """Columns of the list of sinks."""
    names = (
        ("prompt", "prompt", 64), ("position", "position", 70), ("shown", "token", 86),
        ("role", "role", 66), ("received", "received", 72), ("n_heads", "heads", 58),
        ("share", "share", 58), ("null_share", "uniform", 66), ("queries", "seen by", 66),
        ("l_start", "from layer", 78), ("lifetime", "layers", 58), ("label", "level", 84),
    )  # fmt: skip
    about = {
        "received": "attention received, mean over layers and heads (probability)",
        "n_heads": "heads that give it more than the threshold",
        "share": "share of all attention of its prompt",
        "null_share": "share under uniform attention",
        "queries": "queries that can see it",
        "l_start": "first layer after which its state points along the first token's",
        "lifetime": "number of such layers",
        "label": "by share of the primary sink's life",
    }
    shown = {"function": "wbNumber(params.value)"}
    text = ("shown", "role", "label")
    return [
        {"field": field, "headerName": name, "width": width, "minWidth": width,
         "headerTooltip": about.get(field, name),
         **({"cellClass": "label"} if field == "shown" else {}),
         **({} if field in text else {"type": "rightAligned", "valueFormatter": shown})}
        for field, name, width in names
    ]  # fmt: skip


def levels_box() -> html.Section:
    """Secondary sinks by level."""
    return parts.box(
        "Secondary sinks",
        [
            html.P(id="levels-sentence", className="sentence"),
            html.Div(
                [
                    parts.graph("sinks-levels", "low"),
                    html.Div(parts.csv_link("levels"), className="row saves"),
                ],
                id="levels-graph",
                className="gone",
            ),
        ],
        note="first layer and lifetime",
        className="levels",
    )


def norm_box(name: str, title: str, note: str) -> html.Section:
    """A norm at the sink beside the others."""
    return parts.box(
        title,
        [
            parts.graph(f"sinks-{name}", "low"),
            html.Div(parts.csv_link(name), className="row saves"),
        ],
        note=note,
        className="third",
    )


def massive_box(state: SinksState) -> html.Section:
    """The largest activations of the run."""
    try:
        table = tables.massive(state)
    except WorkbenchError as reason:
        return parts.box("Massive activations", [html.P(str(reason), className="note")],
                         className="third")  # fmt: skip
    head = ("layer", "value", "ratio", "null", "dim", "position", "rule")
    rows = [
        html.Tr([html.Td(c) for c in (
            "emb" if row["stream"] == 0 else row["stream"] - 1,
            readings.number(row["value"]), readings.number(row["ratio"]),
            readings.number(row["null_ratio"]), row["dim"],
            f"{row['position']} {readings.show_token(row['token'])}", row["rule"],
        )])
        for row in table.to_dict("records")
    ]  # fmt: skip
    body = html.Table(
        [html.Thead(html.Tr([html.Th(h) for h in head])), html.Tbody(rows)], className="list"
    )
    return parts.box(
        "Massive activations",
        [
            html.Div(body, className="scroll"),
            html.Div(parts.csv_link("massive"), className="row saves"),
        ],
        note="ratio: to the median",
        className="third",
    )  # fmt: skip


def compare_box(state: SinksState) -> html.Section:
    """This run beside another one of the same model."""
    runs = [{"label": "no other run", "value": NONE}]
    runs += [{"label": r, "value": r} for r in store().companions(state.run)]
    other = dcc.Dropdown(runs, state.other or NONE, id=control_id("other"), clearable=False)
    head = ("run", "begin token", "tokens", "position 0", "uniform", "strongest", "its share",
            "heads")  # fmt: skip
    table = html.Table(
        [html.Thead(html.Tr([html.Th(h) for h in head])), html.Tbody(id="compare-body")],
        className="list compare-list",
    )
    return parts.box(
        "Beside another run",
        [
            html.Div(
                [parts.control("compare with", other), parts.csv_link("shares")], className="row"
            ),
            dcc.Store(id="compare-rows"),
            html.Div(table, className="scroll"),
            html.H3("share of a layer's attention on position 0"),
            parts.graph("sinks-compare", "low"),
        ],
        note="the same model on other texts: with and without a begin token, longer, shorter",
        className="compare",
    )
