"""Builds and serves the dashboard: Dash pages over the runs under one folder.

serve("runs")           prints an address with a launch token and serves until stopped
build(Path("runs"), token=None).server      the Flask application, for tests
"""

from __future__ import annotations

import os
import socket
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dash
from dash import ClientsideFunction, Dash, Input, Output, dcc, html

from workbench.app import ablate, routes, security
from workbench.app.pages import atlas, head, runs, sinks, training
from workbench.app.store import EXTENSION, Store
from workbench.errors import WorkbenchError

DEFAULT_PORT = 8050
PAGES = (runs, atlas, sinks, head, training)
# The language of the page, and both colour schemes before the style sheet is there.
_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<meta name="color-scheme" content="light dark">
<title>{%title%}</title>{%favicon%}{%css%}</head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""


def build(root: str | Path, *, token: str | None) -> Dash:
    """The Dash application over the runs under `root` (or the one run `root`), fully protected.

    `token` None leaves out the launch token, nothing else.  Raises `WorkbenchError` if `root` is no
    directory.
    """
    app = Dash(
        "workbench.app",
        use_pages=True,
        pages_folder="",
        assets_folder=str(Path(__file__).resolve().parent / "assets"),
        assets_external_path="",
        serve_locally=True,
        # Components of a page are not there until the router has put them there.
        suppress_callback_exceptions=True,
        # They would repeat the address of the server in every page, for search engines.
        include_pages_meta=False,
        title="Attention Workbench",
        update_title="",
        index_string=_INDEX,
        add_log_handler=False,
        # Said outright: otherwise an environment variable could switch it on.
        enable_mcp=False,
    )
    app.server.extensions[EXTENSION] = Store(root)
    app.server.extensions[ablate.EXTENSION] = ablate.Jobs()
    for page in PAGES:
        dash.register_page(page.__name__, **page.PAGE, layout=page.layout)
        page.register(app)
    app.layout = _frame()
    _register_frame(app)
    routes.register(app.server)
    security.protect(app.server, token=token, inline_hashes=lambda: list(app.csp_hashes()))
    return app


def _frame() -> html.Div:
    actions = html.Div(
        [
            html.Span(id="copied", role="status"),
            html.Button("Copy link", id="copy-link", className="quiet"),
            html.Button("◐ Theme", id="toggle-theme", className="quiet", title="light or dark"),
        ],
        id="actions",
    )
    return html.Div([dcc.Store(id="theme"), actions, dash.page_container], id="frame")


def _register_frame(app: Dash) -> None:
    def script(name: str) -> ClientsideFunction:
        return ClientsideFunction("wb", name)

    app.clientside_callback(
        script("theme"), Output("theme", "data"), Input("toggle-theme", "n_clicks")
    )
    app.clientside_callback(
        script("copy"),
        Output("copied", "children"),
        Input("copy-link", "n_clicks"),
        prevent_initial_call=True,
    )


def serve(
    root: str | Path,
    *,
    port: int | None = None,
    host: str = "127.0.0.1",
    open_browser: bool = False,
    say: Callable[[str], Any] | None = None,
) -> None:
    """Serve the dashboard on this machine until interrupted; prints the address to open.

    `port` None takes 8050 or, when that is taken, any free one.  Raises `WorkbenchError` for a
    `host` that is not the loopback address, for a port in use and for a folder that is not there.
    """
    say = say or _say
    address = security.check_host(host)
    token = security.new_token()
    app = build(root, token=token)
    listener = _listen(address, port)
    number = listener.getsockname()[1]
    link = f"http://{address}:{number}/?{security.TOKEN_PARAMETER}={token}"
    say(f"Attention Workbench: {link}")
    if "SSH_CONNECTION" in os.environ:
        user, name = os.environ.get("USER", "you"), socket.gethostname()
        say(f"On your own machine: ssh -N -L {number}:{address}:{number} {user}@{name}")
    say("Stop with Ctrl-C.")
    if open_browser:
        webbrowser.open(link)
    _run(app, listener)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _listen(address: str, port: int | None) -> socket.socket:
    """A listening socket; bound before anything is printed, so the printed port is served."""
    wanted = [port] if port is not None else [DEFAULT_PORT, 0]
    for number in wanted:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, number))
            listener.listen(128)
        except (OSError, OverflowError):
            listener.close()
            continue
        return listener
    raise WorkbenchError(f"port {port} of {address} cannot be used; name another one, or none.")


def _run(app: Dash, listener: socket.socket) -> None:
    """Serve on the socket: waitress where it is installed, else Werkzeug's threads; never debug."""
    try:
        from waitress import serve as waitress_serve
    except ImportError:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            """One line per request helps nobody, and the first one would hold the token."""

            def log_request(self, *_: object) -> None:
                """Say nothing."""

        address, number = listener.getsockname()
        server = make_server(
            address, number, app.server, threaded=True, request_handler=Quiet, fd=listener.fileno()
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()
    else:
        waitress_serve(app.server, sockets=[listener], threads=8, ident="workbench")
