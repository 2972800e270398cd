"""Circuits, sweeps, runs side by side and phases in a real browser, on the shipped laboratory."""

import re

import numpy as np
import pytest
from app_driving import drawn, go, until

from workbench import zoo
from workbench.app import readings
from workbench.zoo.regression import fates, phases

# Playwright keeps an event loop whose sockets Python reports when it collects them.
pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]

LAB = "/lab/icl-regression"
READY = "document.querySelectorAll('.lab-figure .cursor').length === 5"
MOVED = """() => { const plot = document.querySelector('#lab-sweep-0 .js-plotly-plot');
  return plot && plot.data ? plot.data.map((t) => [t.name, Array.from(t.y)]) : []; }"""


@pytest.fixture(scope="module")
def stack():
    return zoo.laboratory("icl-regression").trajectories["two-heads"]


def opened(page, link, query=""):
    go(page, link, LAB + query)
    page.wait_for_selector("#lab-range")
    until(page, READY)


def at(page, step: int):
    until(page, "s => document.getElementById('lab-step').textContent === s", f"step {step:,}")


def line(page, name: str) -> list[float]:
    return dict(page.evaluate(MOVED))[name]


def follows(page, run, step: int):
    """Wait until the line of a run is what was logged at this step; it needs the figure first."""
    wanted = [float(f"{v:.4g}") for v in run["risk_by_length"].sel(step=step).to_numpy()]
    until(page, f"wanted => {{ const found = ({MOVED})(); return found.length && JSON.stringify("
          f"found.find(([n]) => n === '{run['run'].item()}')[1]) === JSON.stringify(wanted); }}",
          wanted)  # fmt: skip


def test_circuits_and_the_sweep_move_with_the_step_and_need_no_server(page, link, stack):
    opened(page, link)
    at(page, 4000)
    run = stack.sel(run="h2-s0")
    follows(page, run, 4000)
    assert drawn(page, "lab-matrices") > 12
    last, fixed = page.locator("#lab-matrices").screenshot(), line(page, "ridge")
    requests = []
    page.on("request", lambda r: requests.append(r.url))
    page.focus("#lab-range")
    page.keyboard.press("Home")
    at(page, 0)
    follows(page, run, 0)
    assert page.locator("#lab-matrices").screenshot() != last
    assert line(page, "ridge") == fixed
    assert not [u for u in requests if "favicon" not in u], "the step needs no server"
    assert not page.locator("#lab-map-box").is_visible(), "there are no patterns here"


def test_the_mouse_names_what_is_in_a_matrix(page, link, stack):
    opened(page, link, "?beside=none")
    at(page, 4000)
    until(page, "document.getElementById('lab-matrices').height > 50")
    # The first matrix: KQ of head 0, its rows below a heading and names of columns.
    page.hover("#lab-matrices", position={"x": 34 + 12 + 24, "y": 24 + 34 + 12 + 24})
    said = page.inner_text("#tip")
    value = float(stack["kq"].sel(run="h2-s0", step=4000)[0, 1, 1])
    assert abs(value) > 0.1 and "kq head 0" in said
    assert f"coordinate x1, query coordinate x1: {readings.number(value)} logits" in said


def test_every_run_has_a_panel_and_a_click_opens_it(page, link, stack):
    opened(page, link)
    runs = [stack.isel(run=i) for i in range(stack.sizes["run"])]
    stuck = [str(run["run"].item()) for run in runs if fates.fate(run) == "stuck"]
    assert page.locator(".multiple").count() == len(runs) == 30
    red = page.locator(".multiple.fate-2 strong").all_inner_texts()
    assert red == stuck and 5 < len(stuck) < 25
    assert f"stuck {len(stuck)}" in page.inner_text("#lab-fates")
    first = stuck[0]
    page.get_by_role("button", name=f"open {first}, stuck", exact=True).click()
    until(page, "wanted => location.search.includes(wanted)", f"run=two-heads%2F{first}")
    until(page, "wanted => document.querySelector('.multiple.here strong').textContent === wanted",
          first)  # fmt: skip
    until(page, "document.querySelectorAll('.phase').length === 1")
    page.locator('[id*="\\"curve\\""]').first.click()
    page.get_by_role("option", name="zero_sum").click()
    until(page, "location.search.includes('curve=zero_sum')")
    until(page, "document.getElementById('lab-multiples-scale').textContent.startsWith('zero_sum')")
    # Stuck heads have one sign: the sum of their weights never cancels.
    value = page.locator(".multiple.here span")
    assert value.inner_text() == "1"


def test_a_phase_is_a_place_on_the_step_axis(page, link, stack):
    opened(page, link)
    begun = phases.begin(stack.sel(run="h2-s0"))
    marks = page.locator(".phase")
    until(page, "document.querySelectorAll('.phase').length === 4")
    assert [re.sub(r"^\d ", "", text) for text in marks.all_inner_texts()] == [
        f"{word}, step {step:,}" for word, step in begun.items()
    ]
    marks.nth(1).click()
    at(page, begun["symmetry breaking"])
    assert page.locator(".phase.on").inner_text().startswith("2 symmetry breaking")
    lines = page.evaluate(
        "document.querySelector('#lab-figure-0 .js-plotly-plot')._fullLayout.shapes.map(s => s.x0)"
    )
    steps = sorted({*begun.values()})
    assert lines == pytest.approx(np.log10(1 + np.array(steps) / 10).tolist())


def test_both_themes_and_a_narrow_window(page, link):
    opened(page, link, "?step=400")
    light = page.locator("#lab-matrices").screenshot()
    panel = page.locator(".multiple canvas").first.screenshot()
    page.click("#toggle-theme")
    until(page, "document.documentElement.dataset.theme === 'dark'")
    page.wait_for_timeout(400)
    assert page.locator("#lab-matrices").screenshot() != light
    assert page.locator(".multiple canvas").first.screenshot() != panel
    page.set_viewport_size({"width": 800, "height": 900})
    page.wait_for_timeout(400)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    at(page, 400)
