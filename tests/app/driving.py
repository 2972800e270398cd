"""What the browser tests of all pages share: how to go, to wait, and to look at a canvas."""

import time
from urllib.parse import urlsplit

import pytest

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECOND = 1000
PATIENCE = 20 * SECOND


def go(page, link, path):
    page.goto(f"http://{urlsplit(link).netloc}{path}")


def address(page) -> str:
    parts = urlsplit(page.url)
    return parts.path + (f"?{parts.query}" if parts.query else "")


def drawn(page, canvas) -> int:
    """Number of different colours on a canvas: zero or one means that nothing was drawn."""
    script = """id => { const c = document.getElementById(id);
      const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, seen = new Set();
      for (let i = 0; i < d.length; i += 4) seen.add(`${d[i]} ${d[i + 1]} ${d[i + 2]}`);
      return seen.size; }"""
    return page.evaluate(script, canvas)


def until(page, expression, arg=None, patience=PATIENCE):
    """Wait for a condition; Playwright's own waiting needs eval, which the policy forbids."""
    from playwright.sync_api import Error

    end = time.monotonic() + patience / SECOND
    while time.monotonic() < end:
        try:
            if page.evaluate(expression, arg):
                return
        except Error:
            # The page is changing; its elements are not there yet.
            pass
        page.wait_for_timeout(50)
    pytest.fail(f"not within {patience / SECOND:.0f} s: {expression} {arg!r} at {page.url}")


def wait_address(page, wanted):
    until(page, "wanted => location.pathname + location.search === wanted", wanted)
