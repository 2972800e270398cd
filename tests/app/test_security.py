"""Each point of the security list, with Flask's test client."""

import pickle
import re
import socket
import subprocess
import sys

import pytest

from workbench.app import security, server
from workbench.app.store import Store
from workbench.errors import WorkbenchError

TOKEN = "t" * 32
ROUTES = [
    "/",
    "/r/planted/atlas",
    "/r/planted/head/L1H0",
    "/_dash-layout",
    "/_dash-dependencies",
    "/assets/workbench.js",
    "/data/planted/tokens/0",
    "/data/planted/pattern/L1H0/0",
    "/data/planted/cross/L1H0/0/3",
    "/data/planted/pattern/L1H0/0.svg",
    "/data/planted/pattern/L1H0/0.csv",
    "/data/planted/heads.csv",
    "/r/planted/sinks?mask=1",
    "/data/planted/sinks/list.csv?eps=0.2",
    "/data/planted/sinks/received.csv?mask=1",
]


def status(client, route: str) -> int:
    """Status alone; assets are open files and have to be closed."""
    with client.get(route) as reply:
        return reply.status_code


@pytest.fixture(scope="module")
def locked(runs_root):
    return server.build(runs_root, token=TOKEN).server


@pytest.mark.parametrize("route", ROUTES)
def test_own_requests_are_answered_with_every_header(client, route):
    with client.get(route) as reply:
        assert reply.status_code == 200
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["X-Frame-Options"] == "DENY"
    assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in reply.headers


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.nip.io", "10.0.0.5:8050", "[::1]:8050"]
)
def test_foreign_host_names_are_refused(client, route, host):
    assert client.get(route, headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1:8050", "localhost:8050", "localhost"])
def test_loopback_names_are_answered(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_requests_from_other_sites_are_refused(client, route, headers):
    assert client.get(route, headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://localhost"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}],
)
def test_requests_of_our_own_pages_are_answered(client, headers):
    assert client.get("/data/planted/tokens/0", headers=headers).status_code == 200


def test_callbacks_from_other_sites_are_refused(client):
    for body in ({"json": {}}, {"data": "{}", "content_type": "text/plain"}):
        reply = client.post(
            "/_dash-update-component", headers={"Origin": "https://evil.example"}, **body
        )
        assert reply.status_code == 403


@pytest.mark.parametrize("route", ROUTES)
def test_without_the_token_nothing_is_answered(locked, route):
    assert locked.test_client().get(route).status_code == 401
    wrong = route + ("&" if "?" in route else "?") + "token=" + "x" * 32
    assert locked.test_client().get(wrong).status_code == 401


def test_the_link_sets_a_strict_cookie_and_leaves_the_address(locked):
    client = locked.test_client()
    reply = client.get(f"/r/planted/atlas?sel=L1H0&token={TOKEN}")
    assert reply.status_code == 302
    assert reply.headers["Location"] == "/r/planted/atlas?sel=L1H0"
    cookie = reply.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Domain" not in cookie
    assert all(status(client, route) == 200 for route in ROUTES)


def test_the_token_redirect_stays_on_this_server(locked):
    reply = locked.test_client().get(f"//evil.example/?token={TOKEN}")
    assert reply.headers.get("Location", "/").startswith("/")
    assert not reply.headers.get("Location", "/").startswith("//")


def test_the_token_is_not_taken_from_a_post(locked):
    assert locked.test_client().post(f"/_dash-update-component?token={TOKEN}").status_code == 401


def test_tokens_are_long_and_differ():
    assert len({security.new_token() for _ in range(50)}) == 50
    assert len(security.new_token()) >= 32


def test_two_viewers_have_two_cookies():
    assert security.cookie_name("a") != security.cookie_name("b")


def test_the_policy_allows_this_server_only(client):
    policy = client.get("/").headers["Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["frame-ancestors"] == "'none'" and rules["base-uri"] == "'none'"
    assert "unsafe" not in rules["script-src"]
    assert "http" not in policy and "*" not in policy


def test_every_inline_script_is_in_the_policy(client):
    import base64
    import hashlib

    reply = client.get("/")
    inline = re.findall(
        r"<script(?![^>]*\bsrc=)(?![^>]*application/json)[^>]*>(.*?)</script>", reply.text, re.S
    )
    assert inline
    policy = reply.headers["Content-Security-Policy"]
    for script in inline:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy, script[:120]


def test_the_page_names_no_other_host(client):
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//[^\"'> ]+", client.get("/").text)


def test_other_addresses_are_not_bound():
    for host in ("0.0.0.0", "192.168.1.2", "::", "example.org"):
        with pytest.raises(WorkbenchError, match="loopback"):
            security.check_host(host)
    assert security.check_host("localhost") == "127.0.0.1"


def test_the_socket_is_on_the_loopback_and_a_taken_port_is_named():
    listener = server._listen("127.0.0.1", 0)
    try:
        address, port = listener.getsockname()
        assert address == "127.0.0.1"
        with pytest.raises(WorkbenchError, match=str(port)):
            server._listen("127.0.0.1", port)
    finally:
        listener.close()


def test_switches_stay_off(runs_root, monkeypatch):
    monkeypatch.setenv("DASH_MCP_ENABLED", "true")
    monkeypatch.setenv("DASH_DEBUG", "true")
    monkeypatch.setenv("HOST", "0.0.0.0")
    app = server.build(runs_root, token=None)
    assert app._enable_mcp is False
    assert not app.server.debug
    rules = [str(rule) for rule in app.server.url_map.iter_rules()]
    assert not [r for r in rules if "mcp" in r]
    assert app.server.test_client().get("/_mcp").status_code in (200, 404)
    assert app.config.serve_locally and not app.config.external_scripts


@pytest.mark.parametrize(
    "run", ["..", "%2e%2e", "..%2f..%2fetc", ".hidden", "a b", "missing", "a" * 200]
)
def test_runs_are_only_those_under_the_root(client, run):
    for path in ("tokens/0", "pattern/L1H0/0", "heads.csv"):
        reply = client.get(f"/data/{run}/{path}")
        # With a slash in it the address is no data route: the empty shell of the pages answers.
        shell = reply.status_code == 200 and reply.mimetype == "text/html"
        assert reply.status_code == 404 or shell


def test_a_link_out_of_the_root_is_refused(runs_root, tmp_path):
    inside = tmp_path / "root"
    inside.mkdir()
    (inside / "sly").symlink_to(runs_root / "planted", target_is_directory=True)
    with pytest.raises(WorkbenchError, match="not among the runs"):
        Store(inside).run("sly")


def test_nothing_is_unpickled(client, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    assert all(status(client, route) == 200 for route in ROUTES)


def test_no_source_of_the_app_evaluates_or_unpickles(root):
    for path in (root / "app").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(pickle|allow_pickle)\b|\b(eval|exec)\(|dangerously", text), path
    scripts = list((root / "app/assets").glob("*.js"))
    assert scripts
    for path in scripts:
        script = path.read_text(encoding="utf-8")
        forbidden = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|https?://"
        assert not re.search(forbidden, script), path


def test_serving_prints_the_link_and_the_tunnel(runs_root, monkeypatch):
    said = []
    monkeypatch.setenv("SSH_CONNECTION", "a b c d")
    monkeypatch.setattr(server, "_run", lambda app, listener: listener.close())
    server.serve(runs_root, port=0, say=said.append)
    assert re.search(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", said[0])
    assert "ssh -N -L" in said[1] and socket.gethostname() in said[1]


def test_the_viewer_never_imports_torch(runs_root):
    program = f"""
import sys
from workbench.app.server import build
client = build({str(runs_root)!r}, token=None).server.test_client()
for route in {ROUTES!r}:
    with client.get(route) as reply:
        assert reply.status_code == 200, route
from workbench.app.pages import atlas, head, sinks
heavy = [m for m in ("torch", "transformers", "transformer_lens", "sae_lens") if m in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
