"""Pieces that pages share: the bar with run picker and model card, provenance, boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, dcc, html

from workbench.app import figures
from workbench.app.store import store
from workbench.app.urls import AtlasState, HeadState, SinksState, encode
from workbench.runs import Run
from workbench.spec import Spec

# Pages that know the switch `mask`; the bar's links carry it from one to the other.
MASKED = ("atlas", "sinks", "head")


def model_name(model: str) -> str:
    """A short name: hub ids stay, a path becomes its last telling folder.

    >>> model_name("org/model"), model_name("/data/minilm/model")
    ('org/model', 'minilm')
    """
    path = PurePath(model)
    if not path.is_absolute():
        return model
    telling = [p for p in path.parts[1:] if p not in ("model", "models", "snapshot", "weights")]
    return telling[-1] if telling else model


def shape_of(spec: Spec, kind: str) -> str:
    """`6 layers × 12 heads`, with the number of KV groups where heads share keys."""
    sites = spec.of(kind)
    text = f"{spec.n_layers(kind)} layers × {spec.n_heads(kind)} heads"
    shared = {s.n_kv_heads for s in sites if s.n_kv_heads < s.n_heads}
    if shared:
        text += f", {'/'.join(map(str, sorted(shared)))} KV groups"
    missing = spec.n_layers(kind) - len(sites)
    return text + (f", {missing} layers without attention" if missing else "")


def bar(run: Run, active: str) -> html.Header:
    """Top bar of a page on one run: run picker, pages, mask switch, model card, provenance."""
    about = run.manifest
    spec = Spec.from_json(about["spec"])
    sites = spec.of(about["kind"])
    direction = "causal" if all(s.causal for s in sites) else "bidirectional"
    chips = [
        shape_of(spec, about["kind"]),
        direction,
        about.get("dtype") or "",
        about.get("attention") or "",
    ]
    tabs: list[Any] = [
        dcc.Link(
            name.capitalize(), href=href, id=f"{active}-tab-{name}", className=_active(active, name)
        )
        for name, href in tabs_of(run).items()
    ]
    if active in MASKED:
        tabs.append(
            html.Button(
                "Mask sinks", id=f"{active}-mask", className="quiet",
                title="hide the attention on sinks, on every page of this run (key m)",
            )
        )  # fmt: skip
    return html.Header(
        [
            dcc.Link("Attention Workbench", href="/", className="brand"),
            html.Details(
                [html.Summary(run.id, title="choose a run"), html.Div(_other_runs(run.id))],
                className="picker",
                id="run-picker",
            ),
            html.Nav(tabs),
            html.Div(
                [html.Strong(model_name(about["model"]))]
                + [html.Span(c, className="chip") for c in chips if c],
                className="card-line",
                id="model-card",
            ),
            html.Details(
                [html.Summary("Provenance"), provenance(run)], className="picker", id="provenance"
            ),
        ],
        className="bar",
    )


def tabs_of(run: Run) -> dict[str, str]:
    """Name and address of the pages on one run, before anything is chosen there."""
    return {
        "atlas": encode(AtlasState(run.id)),
        "sinks": encode(SinksState(run.id)),
        "head": encode(HeadState(run.id, store().lead(run.id))),
    }


def register_bar(app: Dash, active: str, *more: str) -> None:
    """Scripts of the bar: its links and its switch follow the address of the page.

    `more` are links elsewhere on the page that lead to a tab: `sinks-ablate` to that of the sinks.
    """
    url = Input(f"{active}-url", "data")
    tabs = [Output(f"{active}-tab-{name}", "href") for name in (*MASKED, *more)]
    app.clientside_callback(ClientsideFunction("wb", "tabs"), *tabs, url)
    switch = f"{active}-mask"
    app.clientside_callback(
        ClientsideFunction("wb", "mask"),
        Output(switch, "className"),
        Input(switch, "n_clicks"),
        url,
    )


def _active(active: str, name: str) -> str:
    return "tab on" if active == name else "tab"


def _other_runs(here: str) -> list:
    good = [s for s in store().list() if not s.problem]
    links = [
        dcc.Link(
            [html.Strong(s.id), html.Span(model_name(s.model))],
            href=encode(AtlasState(s.id)),
            className="on" if s.id == here else "",
        )
        for s in good
    ]
    return [*links, dcc.Link("all runs", href="/")]


def provenance(run: Run) -> html.Div:
    """Everything the manifest says about where the numbers came from, as a table."""
    about = run.manifest
    names = (
        "model", "family", "revision", "kind", "dtype", "device", "attention", "kernel",
        "tokenizer", "prompts", "n_prompts", "n_tokens", "bos", "created", "seconds", "command",
    )  # fmt: skip
    rows = [(n.replace("_", " "), _say(about[n])) for n in names if about.get(n) not in (None, "")]
    rows += [
        (f"setting {k}", _say(v)) for k, v in about.get("settings", {}).items() if v is not None
    ]
    rows += [("note", n) for n in about.get("notes", ())]
    rows += [("intervention", str(i)) for i in about.get("interventions", ())]
    versions = ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())
    return html.Div(facts([*rows, ("versions", versions)]), className="provenance")


def _say(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def facts(rows: Sequence[tuple[str, str]]) -> html.Table:
    """Two columns: name and value."""
    return html.Table(
        html.Tbody([html.Tr([html.Th(name), html.Td(value)]) for name, value in rows]),
        className="facts",
    )


def box(title: str, children: list, *, note: str = "", className: str = "") -> html.Section:
    """A panel with a heading and, beside it, a sentence in small type."""
    top = [html.H2(title)] + ([html.P(note, className="note")] if note else [])
    return html.Section(
        [html.Div(top, className="box-top"), *children], className=f"box {className}"
    )


def graph(name: str, size: str = "") -> html.Div:
    """A Plotly graph that fills a frame of fixed height: `""`, `low` or `tiny`."""
    filled = {"height": "100%", "width": "100%"}
    config: Any = figures.CONFIG
    figure = dcc.Graph(id=name, config=config, responsive=True, style=filled)
    return html.Div(figure, className=f"graph {size}")


def prompt_name(run: str, prompt: int) -> str:
    """A prompt by its first words."""
    table = store().tokens(run, prompt)
    words = table.loc[table["role"] != "special", "text"].astype(str).head(9)
    text = " ".join(w.strip() for w in words if w.strip())
    return f"{prompt}: {text[:56]}… ({len(table):,} tokens)"


def csv_link(table: str) -> html.A:
    """A link to a table of the Sinks page; the script gives it the address of the moment."""
    where: dict[str, Any] = {"data-table": table}
    return html.A("CSV", href="#", className="quiet csv", title="the numbers behind this", **where)


def control(label: str, field: Any) -> html.Div:
    """A control with its name before it."""
    # No label element: radio items bring their own, and nested labels take each other's clicks.
    return html.Div([html.Span(label), field], className="control")


def canvas(name: str, about: str) -> html.Canvas:
    """A canvas the script draws on; `about` is read aloud in place of the picture."""
    spoken: dict[str, Any] = {"aria-label": about}
    return html.Canvas(id=name, role="img", **spoken)


def plain_bar() -> html.Header:
    """The top bar of a page that is not about one run."""
    return html.Header(
        [dcc.Link("Attention Workbench", href="/", className="brand")], className="bar"
    )


def page(kind: str, children: list, **marks: str) -> html.Div:
    """The element a page lives in; `marks` become data attributes, read by the script."""
    data: dict[str, Any] = {
        f"data-{name}": value for name, value in {"kind": kind, **marks}.items()
    }
    return html.Div(children, id="page", **data)


def problem(sentence: str) -> html.Div:
    """A page that says what is wrong and where to go."""
    return html.Div(
        [
            plain_bar(),
            html.Main(
                [html.H1("This address shows nothing"), html.P(sentence, id="problem"),
                 html.P(dcc.Link("See all runs", href="/"))],
                className="prose",
            ),
        ]
    )  # fmt: skip
