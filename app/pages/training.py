"""Training: what did the heads of a laboratory do while they learned?  Drag the step and look.

The server sends a run once, all steps of it; the step itself moves in the script alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.exceptions import PreventUpdate

from workbench.app import figures, laboratories, parts, training_routes
from workbench.app.laboratories import MOST_PANELS, Entry
from workbench.app.training_facts import (
    CONTROLS,
    NOTHING,
    facts_of,
    pictures,
    sweep_pictures,
)
from workbench.app.training_shapes import MOST_SWEEPS
from workbench.app.urls import AXES, LabState, decode, encode, lab_state
from workbench.errors import WorkbenchError
from workbench.zoo.trajectory import Results

PAGE = {"path_template": "/lab/<lab>", "title": "Training · Attention Workbench"}


def layout(lab: str = "", **query: str) -> html.Div:
    """The page of one laboratory in the state of the address."""
    try:
        state = lab_state(lab, query)
        facts_of(state)
        return _page(state, laboratories.open_laboratory(state.lab))
    except WorkbenchError as error:
        return parts.problem(str(error))


def _page(state: LabState, results: Results) -> html.Div:
    return parts.page(
        "lab",
        [
            dcc.Store(id="lab-url", data=encode(state)),
            dcc.Store(id="lab-data"),
            dcc.Store(id="lab-drawn"),
            _bar(state, results),
            html.Main(
                [
                    _title(results),
                    html.P(id="lab-problem", role="alert", className="lab-problem"),
                    _controls(results),
                    _scrubber(),
                    _map_box(),
                    _matrix_box(),
                    *(_figure_box("sweep", i) for i in range(MOST_SWEEPS)),
                    *(_figure_box("figure", i) for i in range(MOST_PANELS)),
                    _runs_box(),
                    _numbers_box(),
                ],
                className="lab",
            ),
        ],
        run=state.lab,
    )


def _bar(state: LabState, results: Results) -> html.Header:
    about = results.about
    others = [
        dcc.Link(
            [html.Strong(entry.title), html.Span(entry.about["name"])],
            href=encode(LabState(entry.id)), className="on" if entry.id == state.lab else "",
        )
        for entry in laboratories.entries()
        if not entry.problem
    ]  # fmt: skip
    counts = {"stack": len(results.stacks), "run": len(laboratories.runs_of(results))}
    chips = [f"{n} {word}{'s' * (n != 1)}" for word, n in counts.items()]
    settings = [
        (f"recipe of {stack}", ", ".join(f"{k} {_brief(v)}" for k, v in recipe.items()))
        for stack, recipe in about["settings"].items()
    ]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    seconds = ", ".join(f"{stack} {s:.0f}" for stack, s in about["cpu_seconds"].items())
    facts = [("created", about["created"]), ("CPU seconds", seconds), *settings]
    return html.Header(
        [
            dcc.Link("Attention Workbench", href="/", className="brand"),
            html.Details(
                [html.Summary(Entry(state.lab, about).title, title="choose a laboratory"),
                 html.Div([*others, dcc.Link("all runs", href="/")])],
                className="picker", id="lab-picker",
            ),
            html.Nav(html.Span("Training", className="tab on")),
            html.Div([html.Strong(about["name"])]
                     + [html.Span(chip, className="chip") for chip in chips],
                     className="card-line"),
            html.Details(
                [html.Summary("Provenance"),
                 html.Div(parts.facts([*facts, ("versions", versions)]), className="provenance")],
                className="picker", id="provenance",
            ),
        ],
        className="bar",
    )  # fmt: skip


def _brief(value: Any) -> str:
    """A setting in a few words: runs and steps stand elsewhere on the page."""
    return f"({len(value)})" if isinstance(value, list | tuple | dict) else str(value)


def _title(results: Results) -> html.Div:
    return html.Div(
        [
            html.H1("Training"),
            html.P(
                f"{results.about['name']}: drag the step, or press play, and see the circuits and "
                "the numbers move. ← and → go one logged step; a click into a figure goes there.",
                className="lead",
            ),
        ],
        className="title",
    )


def _control(name: str) -> dict[str, str]:
    return {"control": "lab", "name": name}


def _controls(results: Results) -> html.Div:
    runs = _run_options(results)
    axes = [{"label": name, "value": name} for name in AXES]
    beside = [*runs, {"label": "nothing", "value": NOTHING}]

    def dropdown(name: str, options: list) -> html.Div:
        return parts.control(
            name, dcc.Dropdown(options, id=_control(name), clearable=False, maxHeight=420)
        )

    return html.Div(
        [
            dropdown("run", runs),
            dropdown("beside", beside),
            dropdown("head", []),
            dropdown("text", []),
            parts.control("step axis", dcc.RadioItems(axes, inline=True, id=_control("axis"))),
            html.A("CSV", id="lab-csv", href="#", className="quiet", title="the curves as a file"),
        ],
        className="row lab-controls",
    )


def _run_options(results: Results) -> list[dict[str, str]]:
    """Label `run (stack)`: in a list of one stack its name would only be noise."""
    several = len(results.stacks) > 1
    options = []
    for run in laboratories.runs_of(results):
        stack, _, label = run.partition("/")
        options.append({"label": f"{label} · {stack}" if several else label, "value": run})
    return options


def _scrubber() -> html.Div:
    return html.Div(
        [
            html.Button("▶ Play", id="lab-play", title="play or pause (space)"),
            html.Div(
                [html.Div(id="lab-slider"), html.Div(id="lab-phases", className="phases")],
                className="slider",
            ),
            html.Output(id="lab-step", className="step-now"),
        ],
        className="scrubber box",
    )


def _map_box() -> html.Div:
    """Wrapped, so that the script can take it away where no patterns were stored."""
    drawn = [
        html.Div(parts.canvas("lab-canvas", "attention pattern"), className="canvas"),
        html.Div(id="lab-legend", className="legend"),
    ]
    box = parts.box("Attention on one text", drawn, note="orange: triggers")
    return html.Div(box, id="lab-map-box", className="lab-map")


def _matrix_box() -> html.Div:
    """Wrapped as the map is, for laboratories without circuits."""
    drawn = [
        html.Div(parts.canvas("lab-matrices", "circuits as matrices"), className="canvas"),
        html.Div(id="lab-matrix-legends", className="legends"),
    ]
    box = parts.box("Circuits", drawn, note="one scale per matrix, the same at every step")
    return html.Div(box, id="lab-matrix-box", className="lab-map")


def _runs_box() -> html.Section:
    return parts.box(
        "Every run of this stack",
        [
            html.Div(
                [
                    parts.control("curve", dcc.Dropdown([], id=_control("curve"), clearable=False)),
                    html.Div(id="lab-fates", className="fates"),
                ],
                className="row",
            ),
            html.Div(id="lab-multiples", className="multiples"),
            html.P(id="lab-multiples-scale", className="note"),
        ],
        note="the same step axis and the same scale in every panel; a click opens the run",
        className="lab-runs",
    )


def _figure_box(kind: str, i: int) -> html.Section:
    name = f"lab-{kind}"
    top = [html.H2(id=f"{name}-title-{i}"), html.P(id=f"{name}-note-{i}", className="note")]
    return html.Section(
        [html.Div(top, className="box-top"), parts.graph(f"{name}-{i}", "low")],
        id=f"{name}-box-{i}", className="box lab-figure gone",
    )  # fmt: skip


def _numbers_box() -> html.Section:
    head = html.Thead(html.Tr(id="lab-numbers-head"))
    table = html.Table([head, html.Tbody(id="lab-numbers")], className="list")
    scroll: Any = {"aria-label": "numbers at this step"}
    return parts.box(
        "Numbers at this step",
        [
            html.Div(table, className="scroll", tabIndex=0, role="region", **scroll),
            html.P(id="lab-where", className="note"),
        ],
        className="lab-numbers",
    )  # fmt: skip


def register(app: Dash) -> None:
    """Callbacks: the address decides what is shown; the step is the script's own."""
    app.server.register_blueprint(training_routes.data)
    controls = [Output(_control(name), "value") for name in CONTROLS]

    @app.callback(
        Output("lab-data", "data"),
        *controls,
        Output(_control("head"), "options"),
        Output(_control("text"), "options"),
        Output(_control("curve"), "options"),
        Output("lab-problem", "children"),
        Input("lab-url", "data"),
        State("lab-data", "data"),
    )
    def facts(url: str, now: dict | None) -> tuple:
        state = _here(url)
        try:
            data = facts_of(state)
        except WorkbenchError as error:
            return *[no_update] * (len(CONTROLS) + 4), str(error)
        values = data["state"].values()
        if now and now["key"] == data["key"]:
            return no_update, *values, *[no_update] * 3, ""
        texts = [{"label": f"text {i}", "value": i} for i in range(data["texts"])]
        return data, *values, data["heads"], texts, data["curves"], ""

    _register_figures(app, "figure", MOST_PANELS, pictures, "panels")
    _register_figures(app, "sweep", MOST_SWEEPS, sweep_pictures, "sweeps")
    _register_scripts(app)


def _register_figures(
    app: Dash, kind: str, most: int, draw: Callable[[LabState, str], list], about: str
) -> None:
    """Figures of one kind in their boxes; the boxes that are left over are taken away."""
    name, boxes = f"lab-{kind}", range(most)

    @app.callback(
        *(Output(f"{name}-{i}", "figure") for i in boxes),
        *(Output(f"{name}-title-{i}", "children") for i in boxes),
        *(Output(f"{name}-note-{i}", "children") for i in boxes),
        *(Output(f"{name}-box-{i}", "className") for i in boxes),
        Input("lab-data", "data"),
        Input("theme", "data"),
        State("lab-url", "data"),
    )
    def graphs(data: dict | None, theme: str | None, url: str) -> tuple:
        if not data or theme is None:
            raise PreventUpdate
        state = replace(LabState(_here(url).lab), **data["state"])
        try:
            drawn = draw(state, theme)
        except WorkbenchError:
            # The laboratory is gone since; `facts` says so at the next change of the address.
            raise PreventUpdate from None
        spare = most - len(drawn)
        titles = [one["title"] for one in data[about]] + [""] * spare
        notes = [one["note"] for one in data[about]] + [""] * spare
        shape = f"box lab-figure of-{kind}"
        shapes = [shape] * len(drawn) + [f"{shape} gone"] * spare
        return (*drawn, *[figures.base(theme)] * spare, *titles, *notes, *shapes)


def _register_scripts(app: Dash) -> None:
    def script(name: str, *wires: Any, wait: bool = False) -> None:
        app.clientside_callback(ClientsideFunction("lab", name), *wires, prevent_initial_call=wait)

    script("show", Output("lab-drawn", "data"), Input("lab-data", "data"),
           Input("lab-url", "data"), Input("theme", "data"))  # fmt: skip
    script("play", Output("lab-play", "className"), Input("lab-play", "n_clicks"), wait=True)
    for name in CONTROLS:
        this = _control(name)
        script("control", Input(this, "value"), State(this, "id"), State("lab-data", "data"),
               wait=True)  # fmt: skip


def _here(url: str) -> LabState:
    state = decode(url)
    if not isinstance(state, LabState):
        raise PreventUpdate
    return state


def cards() -> list[Any]:
    """One card per laboratory, for the home page."""
    found = []
    for entry in laboratories.entries():
        if entry.problem:
            broken = [html.H2(entry.title), html.P(entry.problem)]
            found.append(html.Div(broken, className="card broken"))
            continue
        runs = entry.about["runs"]
        rows = [
            ("laboratory", entry.about["name"]),
            ("runs", f"{sum(map(len, runs.values()))} in {len(runs)} stacks: {', '.join(runs)}"),
            ("trained", f"{sum(entry.about['cpu_seconds'].values()):.0f} CPU seconds"),
            ("made", entry.about["created"].replace("T", " ")[:16]),
        ]
        href = encode(LabState(entry.id))
        found.append(
            dcc.Link([html.H2(entry.title), parts.facts(rows)], href=href, className="card")
        )
    return found
