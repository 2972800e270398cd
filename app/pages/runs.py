"""Home: every run under the folder served, as a card with where its numbers came from."""

from __future__ import annotations

from dash import Dash, dcc, html

from workbench.app import parts
from workbench.app.pages import training
from workbench.app.store import Store, store
from workbench.app.urls import AtlasState, encode
from workbench.errors import WorkbenchError
from workbench.runs import RunSummary
from workbench.spec import Spec

PAGE = {"path": "/", "title": "Runs · Attention Workbench"}


def layout(**_: str) -> html.Div:
    """Cards of the runs, newest first; an empty folder says what to type."""
    runs = store()
    found = runs.list()
    cards = [_card(runs, s) for s in found] or [_empty()]
    return parts.page(
        "runs",
        [
            parts.plain_bar(),
            html.Main(
                [
                    html.H1("Runs"),
                    html.P(
                        f"{len(found)} under {runs.root.name}/, newest first. "
                        "Open one to see what its attention heads do.",
                        className="lead",
                    ),
                    html.Div(cards, className="cards"),
                    html.H1("Laboratories"),
                    html.P("Training runs to scrub through, step by step.", className="lead"),
                    html.Div(training.cards(), className="cards"),
                ],
                className="home",
            ),
        ],
    )


def register(app: Dash) -> None:
    """Nothing on this page calls back."""


def _card(runs: Store, summary: RunSummary) -> html.Div | dcc.Link:
    try:
        # Found by its name like any other: what the list says must also open.
        run = runs.run(summary.id)
        about = run.manifest
        shape = parts.shape_of(Spec.from_json(about["spec"]), about["kind"])
    except WorkbenchError as reason:
        sentence = summary.problem or str(reason)
        return html.Div([html.H2(summary.id), html.P(sentence)], className="card broken")
    rows = [
        ("model", parts.model_name(summary.model)),
        ("shape", shape),
        ("input", f"{summary.n_prompts:,} prompts, {summary.n_tokens:,} tokens"),
        ("computed", " · ".join(filter(None, [about.get("dtype"), about.get("attention")]))),
        ("kernel", about.get("kernel", "")),
        ("made", summary.created.replace("T", " ")[:16]),
    ]
    return dcc.Link(
        [html.H2(summary.id), parts.facts([r for r in rows if r[1]])],
        href=encode(AtlasState(summary.id)),
        className="card",
    )


def _empty() -> html.Div:
    return html.Div(
        [
            html.H2("No run here yet"),
            html.P("Make one with the real MiniLM encoder, in about a minute:"),
            html.Pre("workbench demo"),
            html.P("or capture a model of your own:"),
            html.Pre("workbench capture MODEL --text 'some text' --out runs/first"),
        ],
        className="card",
    )
