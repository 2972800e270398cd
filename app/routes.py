"""Routes beside Dash: patterns as bytes for the canvas, tokens for the strip, files to keep.

/data/<run>/tokens/<prompt>                      JSON: shown text and role of every token
/data/<run>/pattern/<head>/<prompt>              bytes, one per cell, codes of `readings.to_codes`
/data/<run>/pattern/<head>/<prompt>.csv | .svg   what is seen (?ramp=..&mask=1)
/data/<run>/cross/<head>/<prompt>/<query>        bytes: the row, then the column of one position
/data/<run>/heads.csv                            the run's table of heads
/data/<run>/sinks/<table>.csv                    tables of the Sinks page, in the state of its query
"""

from __future__ import annotations

import gzip

import numpy as np
from flask import Blueprint, Flask, Response, abort, jsonify, request

from workbench.app import export, readings, sink_tables
from workbench.app.store import store
from workbench.app.urls import RAMPS, sinks_state
from workbench.errors import WorkbenchError

data = Blueprint("data", __name__, url_prefix="/data/<run>")


def register(server: Flask) -> None:
    """Add the routes to the server; errors of ours answer 404 with their sentence."""
    server.register_blueprint(data)


@data.errorhandler(WorkbenchError)
def _explain(error: WorkbenchError) -> tuple[Response, int]:
    return Response(str(error), mimetype="text/plain"), 404


@data.get("/tokens/<int:prompt>")
def tokens(run: str, prompt: int) -> Response:
    """Shown text and role of every token of a prompt."""
    table = store().tokens(run, prompt)
    return jsonify(text=table["shown"].tolist(), role=table["role"].astype(str).tolist())


@data.get("/pattern/<head>/<int:prompt>")
def pattern(run: str, head: str, prompt: int) -> Response:
    """The pattern as bytes, pooled by maximum beyond 1024 tokens; sizes stand in the headers."""
    found = store().pattern(run, head, prompt)
    small, factor = readings.pool_max(found)
    response = as_bytes(readings.to_codes(small))
    response.headers["X-Rows"], response.headers["X-Columns"] = map(str, small.shape)
    response.headers["X-Pooled"] = str(factor)
    return response


@data.get("/cross/<head>/<int:prompt>/<int:query>")
def cross(run: str, head: str, prompt: int, query: int) -> Response:
    """Row and column of one position, unpooled: where it looks, and who looks at it."""
    found = store().pattern(run, head, prompt)
    if query >= min(found.shape):
        abort(404, "no such position")
    return as_bytes(readings.to_codes(np.concatenate([found[query], found[:, query]])))


@data.get("/pattern/<head>/<int:prompt>.<kind>")
def pattern_file(run: str, head: str, prompt: int, kind: str) -> Response:
    """The pattern as CSV or SVG, with the sinks hidden when `mask=1`."""
    if kind not in ("csv", "svg"):
        abort(404, "patterns are saved as csv or svg")
    ramp = request.args.get("ramp", "sqrt")
    if ramp not in RAMPS:
        abort(404, "unknown ramp")
    found, names = store().pattern(run, head, prompt), store().tokens(run, prompt)["shown"].tolist()
    note = ""
    if request.args.get("mask") == "1":
        hidden = store().sink_columns(run, prompt)
        share = readings.hidden_mass(found, hidden)
        note = f"hatched sink columns hide {100 * share:.1f} % of the attention"
        found = export.masked(found, hidden)
    if kind == "csv":
        return as_file(export.pattern_csv(found, names), "text/csv", f"{run}-{head}-p{prompt}.csv")
    title = f"{head} · {run} · prompt {prompt}"
    small = found if max(found.shape) <= 2048 else readings.pool_max(found, 2048)[0]
    text = export.pattern_svg(small, names, title=title, ramp=ramp, note=note)
    return as_file(text, "image/svg+xml", f"{run}-{head}-p{prompt}.svg")


@data.get("/heads.csv")
def heads_file(run: str) -> Response:
    """Every head with every metric."""
    return as_file(export.table_csv(store().run(run).heads), "text/csv", f"{run}-heads.csv")


@data.get("/sinks/<table>.csv")
def sinks_file(run: str, table: str) -> Response:
    """One table of the Sinks page, under the thresholds of the query."""
    if table not in sink_tables.TABLES:
        abort(404, f"tables of sinks are {', '.join(sink_tables.TABLES)}")
    found = sink_tables.TABLES[table](sinks_state(run, request.args))
    return as_file(export.table_csv(found), "text/csv", f"{run}-sinks-{table}.csv")


def as_bytes(codes: np.ndarray) -> Response:
    """Codes of patterns as the body of an answer, packed where the browser takes that."""
    body = codes.tobytes()
    response = Response(mimetype="application/octet-stream")
    # Causal patterns are half zeros; the fastest level already takes those away.
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        body = gzip.compress(body, 1)
        response.headers["Content-Encoding"] = "gzip"
    response.data = body
    response.headers["Vary"] = "Accept-Encoding"
    # A run may be made again under the same name: never show the old one.
    response.headers["Cache-Control"] = "no-store"
    return response


def as_file(text: str, mimetype: str, name: str) -> Response:
    """A text as an answer that the browser saves under a name."""
    response = Response(text, mimetype=mimetype)
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response
