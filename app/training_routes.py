"""Routes of the training page: patterns and matrices of all steps as bytes, scalars as a file.

/lab-data/<lab>/pattern?run=STACK/RUN&head=L0H0&text=0      bytes [step, query, key], codes of
                                                            `readings.to_codes`
/lab-data/<lab>/matrices?run=STACK/RUN&head=L0H0&name=kq    bytes [step, block, row, column],
                                                            float32 little-endian
/lab-data/<lab>/scalars.csv?run=..&beside=..&head=..        the curves of both runs
"""

from __future__ import annotations

import pandas as pd
from flask import Blueprint, Response, request

from workbench.app import export, laboratories, readings, routes, training_shapes
from workbench.app.urls import lab_state
from workbench.errors import WorkbenchError

data = Blueprint("lab-data", __name__, url_prefix="/lab-data/<lab>")


@data.errorhandler(WorkbenchError)
def _explain(error: WorkbenchError) -> tuple[Response, int]:
    return Response(str(error), mimetype="text/plain"), 404


@data.get("/pattern")
def pattern(lab: str) -> Response:
    """Patterns of every logged step of one head on one text; sizes stand in the headers."""
    state = lab_state(lab, request.args)
    results = laboratories.open_laboratory(state.lab)
    one = laboratories.data_of(results, laboratories.choose(results, state.run))
    found = laboratories.patterns_of(one, laboratories.head_in(one, state.head), state.text)
    response = routes.as_bytes(readings.to_codes(found))
    names = ("X-Steps", "X-Rows", "X-Columns")
    response.headers.update(dict(zip(names, map(str, found.shape), strict=True)))
    return response


@data.get("/matrices")
def matrices(lab: str) -> Response:
    """One variable of group "circuits" at every logged step; its shape stands in the facts."""
    state = lab_state(lab, request.args)
    results = laboratories.open_laboratory(state.lab)
    one = laboratories.data_of(results, laboratories.choose(results, state.run))
    seen = laboratories.at_layer(one, laboratories.head_in(one, state.head))
    known = {found.name: found for found in training_shapes.matrices(seen)}
    name = request.args.get("name", "")
    if name not in known:
        raise WorkbenchError(
            f"{name[:40]!r} is no matrix of this run; it has {', '.join(known) or 'none'}."
        )
    return routes.as_bytes(known[name].values.astype("<f4"))


@data.get("/scalars.csv")
def scalars(lab: str) -> Response:
    """Every curve of a run in one head, and of the run beside it if one is named."""
    state = lab_state(lab, request.args)
    results = laboratories.open_laboratory(state.lab)
    first = laboratories.trained(results, laboratories.choose(results, state.run), state.head)
    tables = [laboratories.scalars(first)]
    if state.beside not in ("", "none"):
        beside = laboratories.choose(results, state.beside)
        head = laboratories.same_head(results, beside, first.head)
        tables.append(laboratories.scalars(laboratories.trained(results, beside, head)))
    table = pd.concat(tables, ignore_index=True)
    name = f"{state.lab.strip('~')}-{first.label}-{first.head}.csv".replace("~", "-")
    return routes.as_file(export.table_csv(table), "text/csv", name)
