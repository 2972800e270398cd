"""The training page in a real browser, on the shipped laboratory; any console error fails."""

import re

import pytest
from app_driving import address, drawn, go, until, wait_address

from workbench import zoo
from workbench.app import readings

# Playwright keeps an event loop whose sockets Python reports when it collects them.
pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]

FIGURES = "document.querySelectorAll('.lab-figure .cursor').length === 5"


def logged(run: str, name: str, step: int) -> str:
    """A number of a one-layer run as the table shows it."""
    data = zoo.laboratory("bigram-backcopy").trajectories["one-layer"]
    value = float(data[name].sel(run=run, step=step).squeeze())
    return readings.number(float(f"{value:.4g}"))


def cells(page, name: str) -> list[str]:
    """Numbers of one row: the run, the one beside it, published."""
    row = page.locator("#lab-numbers tr").filter(has_text=re.compile(rf"^{name}\b")).first
    return row.locator("td").all_inner_texts()[1:4]


def at(page, step: int):
    until(page, "s => document.getElementById('lab-step').textContent === s", f"step {step:,}")


def cursor(page, figure: int) -> float:
    """Where the cursor of a figure stands, as a share of the axis."""
    return page.evaluate(
        """i => { const host = document.getElementById(`lab-figure-${i}`),
        line = host.closest('.graph').querySelector('.cursor').getBoundingClientRect(),
        plot = host.querySelector('.js-plotly-plot'), x = plot._fullLayout.xaxis;
        const left = plot.getBoundingClientRect().left + x._offset;
        return (line.left - left) / x._length; }""",
        figure,
    )


def opened(page, link, path="/lab/bigram-backcopy"):
    go(page, link, path)
    page.wait_for_selector("#lab-range")
    until(page, FIGURES)


def test_dragging_the_step_moves_pattern_numbers_and_cursors(page, link):
    page.get_by_role("link", name=re.compile("^bigram-backcopy")).click()
    page.wait_for_selector("#lab-range")
    until(page, FIGURES)
    at(page, 500)
    assert cells(page, "sink_off") == [
        logged("main-s0", "sink_off", 500), logged("no-copy-s0", "sink_off", 500), ".65",
    ]  # fmt: skip
    before, place = page.locator("#lab-canvas").screenshot(), cursor(page, 1)
    assert drawn(page, "lab-canvas") > 20 and place > 0.95
    requests = []
    page.on("request", lambda r: requests.append(r.url))
    box = page.locator("#lab-range").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] - 8, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, middle, steps=8)
    page.mouse.move(box["x"] + 4, middle, steps=8)
    page.mouse.up()
    at(page, 0)
    assert cells(page, "sink_off") == [
        logged("main-s0", "sink_off", 0), logged("no-copy-s0", "sink_off", 0), ".02",
    ]  # fmt: skip
    assert page.locator("#lab-canvas").screenshot() != before
    assert cursor(page, 1) < 0.05 < place
    wait_address(page, "/lab/bigram-backcopy?step=0")
    assert not [u for u in requests if "favicon" not in u], "the step needs no server"
    assert page.evaluate("document.querySelectorAll('*').length") < 5000


def test_keys_and_the_film_step_through_what_was_logged(page, link):
    opened(page, link, "/lab/bigram-backcopy?step=60")
    at(page, 60)
    page.focus("#lab-range")
    page.keyboard.press("ArrowRight")
    at(page, 70)
    page.keyboard.press("Home")
    at(page, 0)
    page.mouse.click(300, 70)
    page.keyboard.press("ArrowRight")
    at(page, 10)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    at(page, 0)
    page.click("#lab-play")
    until(page, "document.getElementById('lab-play').textContent.includes('Pause')")
    at(page, 40)
    page.click("#lab-play")
    until(page, "document.getElementById('lab-play').textContent.includes('Play')")
    stopped = page.inner_text("#lab-step")
    page.wait_for_timeout(700)
    assert page.inner_text("#lab-step") == stopped


def test_the_address_holds_runs_head_step_and_axis(page, link):
    opened(page, link, "/lab/bigram-backcopy?step=200")
    page.get_by_text("linear", exact=True).click()
    wait_address(page, "/lab/bigram-backcopy?step=200&axis=linear")
    until(page, "document.getElementById('lab-figure-0').textContent.includes('training step')")
    until(page, "!document.getElementById('lab-figure-0').textContent.includes('log(1')")
    until(page, FIGURES)
    assert cursor(page, 0) == pytest.approx(0.4, abs=0.02), "step 200 of 500 on a linear axis"
    page.locator('[id*="beside"]').first.click()
    page.get_by_role("option", name="nothing").click()
    wait_address(page, "/lab/bigram-backcopy?step=200&axis=linear&beside=none")
    until(page, "!document.getElementById('lab-numbers-head').textContent.includes('no-copy')")
    page.locator('[id*="\\"run\\""]').first.click()
    page.get_by_role("option", name="adamw-s0").click()
    until(page, "document.getElementById('lab-numbers-head').textContent.includes('adamw-s0')")
    # The step stays as near as the other run has one; the head is the one that learned.
    at(page, 200)
    until(page, "location.search.includes('run=three-layer-adamw%2Fadamw-s0')")
    page.reload()
    page.wait_for_selector("#lab-range")
    at(page, 200)
    assert "beside=none" in address(page) and "axis=linear" in address(page)
    page.go_back()
    until(page, "document.getElementById('lab-numbers-head').textContent.includes('main-s0')")


def test_the_map_names_what_is_under_the_mouse(page, link):
    opened(page, link)
    at(page, 500)
    width = page.evaluate("document.getElementById('lab-canvas').clientWidth")
    side = width / 2 - 46 - 18
    cell = side / 32
    page.hover("#lab-canvas", position={"x": 46 + cell / 2, "y": 74 + 3.5 * cell})
    said = page.inner_text("#tip")
    run = zoo.laboratory("bigram-backcopy").trajectories["one-layer"].sel(run="main-s0", step=500)
    weight = float(run["pattern"].squeeze()[3, 0])
    assert weight > 0.9 and "main-s0" in said and "key 0 “<s>”" in said
    assert said.endswith(readings.number(weight))
    page.hover("#lab-canvas", position={"x": 46 + 30.5 * cell, "y": 74 + 3.5 * cell})
    assert "not visible (causal)" in page.inner_text("#tip")


def test_both_themes_and_a_narrow_window(page, link):
    opened(page, link)
    light = page.locator("#lab-canvas").screenshot()
    page.click("#toggle-theme")
    until(page, "document.documentElement.dataset.theme === 'dark'")
    page.wait_for_timeout(300)
    assert page.locator("#lab-canvas").screenshot() != light
    page.set_viewport_size({"width": 800, "height": 900})
    page.wait_for_timeout(400)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    until(page, FIGURES)
    assert cursor(page, 4) > 0.95


def test_the_scalars_are_saved(page, link):
    opened(page, link)
    with page.expect_download() as saved:
        page.click("#lab-csv")
    assert saved.value.suggested_filename == "bigram-backcopy-main-s0-L0H0.csv"


def test_a_click_into_a_figure_goes_to_its_step(page, link):
    opened(page, link)
    at(page, 500)
    area = page.locator("#lab-figure-1 .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    # Step 0 stands at the left end of the axis, where the curve begins at the bottom.
    data = zoo.laboratory("bigram-backcopy").trajectories["one-layer"]["sink_off"]
    start = float(data.sel(run="main-s0", step=0).squeeze())
    y = box["y"] + box["height"] * (1 - (start + 0.02) / 1.04)
    page.mouse.move(box["x"] + 0.012 * box["width"], y)
    page.wait_for_selector("#lab-figure-1 .hovertext")
    page.mouse.click(box["x"] + 0.012 * box["width"], y)
    at(page, 0)
