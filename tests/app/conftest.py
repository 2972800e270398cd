"""Runs made once for all tests of the app, and the browser that looks at them."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest


def _helper(name: str):
    """pytest's importlib mode does not make test folders importable; helpers load by their path."""
    spec = importlib.util.spec_from_file_location(
        f"app_{name}", Path(__file__).with_name(f"{name}.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


made, driving = _helper("made"), _helper("driving")
trained = _helper("trained")


@pytest.fixture(scope="session")
def runs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole run, one without q and k, and a broken one."""
    root = tmp_path_factory.mktemp("runs")
    made.write_run(root / "planted")
    made.write_run(root / "no-qk", keep=False, probes=False)
    made.break_run(root / "broken")
    return root


@pytest.fixture(scope="session")
def app(runs_root):
    """The application without the launch token: what is tested elsewhere."""
    from workbench.app.server import build

    return build(runs_root, token=None)


@pytest.fixture
def client(app):
    return app.server.test_client()


@pytest.fixture(scope="module")
def link(runs_root):
    """A viewer in a process of its own; the address it printed."""
    program = f"from workbench.app.server import serve; serve({str(runs_root)!r}, port=0)"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert "http" in line, f"the viewer printed {line!r}"
        yield re.search(r"http\S+", line).group(0)
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stdout.close()


@pytest.fixture(scope="module")
def browser(browser_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=browser_path, args=driving.ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def page(browser, link):
    """A logged-in page; what went wrong on it is asserted when the test is over."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light")
    opened, wrong = context.new_page(), []
    opened.set_default_timeout(driving.PATIENCE)
    home = urlsplit(link)

    def watch(request):
        target = urlsplit(request.url)
        if target.scheme not in ("data", "blob") and target.netloc != home.netloc:
            wrong.append(f"external request {request.url}")

    opened.on("request", watch)
    opened.on("console", lambda m: m.type == "error" and wrong.append(f"console: {m.text}"))
    opened.on("pageerror", lambda e: wrong.append(f"page error: {e}"))
    opened.on("response", lambda r: r.status >= 500 and wrong.append(f"{r.status} {r.url}"))
    opened.goto(link)
    yield opened
    opened.wait_for_timeout(200)
    context.close()
    assert not wrong, "\n".join(wrong)
