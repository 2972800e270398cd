"""A real browser on both pages; a console error, page error or external request fails."""

import re

import pytest
from app_driving import PATIENCE, address, drawn, go, until, wait_address
from app_made import HOSTILE, head_stats, pattern, write_run

from workbench.app import readings
from workbench.app.store import Store

# Playwright keeps an event loop whose sockets Python reports when it collects them.
pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]


def cell(page, row, column, n_heads=6, gap=4):
    """Middle of a cell of the Atlas in canvas coordinates (as the script lays it out)."""
    width = page.evaluate("document.getElementById('atlas-canvas').clientWidth")
    w = (width - 46 - gap - 2) / n_heads
    h = min(max(w * 0.72, 7), 42)
    return {"x": 46 + column * w + (column // 3) * gap + w / 2, "y": 40 + row * h + h / 2}


def test_from_home_to_a_head_and_back(page, link, runs_root):
    page.get_by_role("link", name=re.compile("planted")).first.click()
    page.wait_for_selector("#atlas-canvas")
    page.wait_for_selector(".ag-row[row-id]")
    page.wait_for_selector("#atlas-scatter .point")
    assert drawn(page, "atlas-canvas") > 10
    assert "planted" in page.inner_text("#model-card")

    # The metric is chosen from the list; the table then shows that probe's numbers.
    page.locator('[id*=metric\\"]').first.click()
    page.get_by_role("option", name="prev_token_score").click()
    wait_address(page, "/r/planted/atlas?metric=prev_token_score")
    until(page, "document.querySelector('.ag-row[row-index=\"0\"]').innerText.includes('L1H')")
    metric = Store(runs_root).metric("planted", "prev_token_score")
    best = metric.table["value"].idxmax()
    first = page.locator('.ag-center-cols-container .ag-row[row-index="0"]')
    assert first.locator('[col-id="label"]').inner_text() == best
    assert first.locator('[col-id="value"]').inner_text() == readings.number(
        metric.table.loc[best, "value"]
    )
    assert metric.question in page.inner_text("#atlas-question")

    # Hover says the numbers, click selects in all three.
    page.hover("#atlas-canvas", position=cell(page, 1, 2))
    assert readings.number(metric.table.loc["L1H2", "value"]) in page.inner_text("#tip")
    assert page.inner_text("#tip").startswith("L1H2")
    page.click("#atlas-canvas", position=cell(page, 1, 2))
    wait_address(page, "/r/planted/atlas?metric=prev_token_score&sel=L1H2")
    page.wait_for_selector('.ag-row-selected[row-id="L1H2"]')
    until(page, "document.querySelector('#atlas-scatter').textContent.includes('L1H2')")
    until(
        page,
        "text => document.getElementById('atlas-selected').textContent.includes(text)",
        readings.evidence(metric, "L1H2"),
    )
    assert page.evaluate("document.querySelectorAll('*').length") < 5000

    page.click("#atlas-open")
    wait_address(page, "/r/planted/head/L1H2")
    page.wait_for_selector("#strip span")
    assert page.inner_text("#head-title") == "L1H2"
    assert page.inner_text("#head-verdict") == "previous-token head"
    page.go_back()
    wait_address(page, "/r/planted/atlas?metric=prev_token_score&sel=L1H2")
    page.wait_for_selector('.ag-row-selected[row-id="L1H2"]')
    page.go_back()
    until(page, "!document.querySelector('.ag-row-selected')")


def test_row_and_point_select_too(page, link):
    go(page, link, "/r/planted/atlas")
    page.locator('.ag-row[row-index="3"] [col-id="label"]').click()
    until(page, "location.search.startsWith('?sel=L')")
    chosen = re.search(r"sel=(\w+)", page.url).group(1)
    page.wait_for_selector(f'.ag-row-selected[row-id="{chosen}"]')
    page.locator("#atlas-scatter .point").nth(2).click(force=True)
    until(page, "chosen => !location.search.endsWith(chosen)", chosen)
    until(page, "document.getElementById('atlas-open').textContent.startsWith('Open L')")


def test_tokens_pattern_mask_theme_and_history(page, link):
    go(page, link, "/r/planted/head/L1H0")
    page.wait_for_selector("#strip span")
    assert page.locator("#strip span").count() == 40
    assert drawn(page, "pattern-canvas") > 20
    assert page.locator("#strip span").first.get_attribute("class") == "special"
    shown = page.locator("#strip span").nth(4)
    assert shown.inner_text() == readings.show_token(HOSTILE)
    assert page.evaluate("window.pwned") is None
    assert page.locator("#strip span").nth(3).inner_text() == "↵"

    # Hover previews: a previous-token head looks one back, and is looked at from one ahead.
    page.locator("#strip span").nth(12).hover()
    until(page, "document.querySelectorAll('#strip span')[11].style.background !== ''")
    style = """i => { const s = document.querySelectorAll('#strip span')[i].style;
      return [s.background, s.boxShadow]; }"""
    assert "rgba(217, 115, 13" in page.evaluate(style, 11)[0]
    assert "inset" in page.evaluate(style, 13)[1]
    assert page.evaluate(style, 30) == ["", ""]
    assert address(page) == "/r/planted/head/L1H0"

    # Click locks: the address, and exact numbers.
    page.locator("#strip span").nth(12).click()
    wait_address(page, "/r/planted/head/L1H0?query=12")
    page.wait_for_selector("#cross-out tr")
    row = pattern(head_stats().arrays, 0, 1, 0)[12]
    first = page.locator("#cross-out tr").first.locator("td").all_inner_texts()
    assert first == ["11", readings.show_token(" the"), readings.number(row[11])]
    page.mouse.move(5, 600)
    assert "locked on query 12" in page.inner_text("#strip-readout")

    before = page.locator("#pattern-canvas").screenshot()
    page.keyboard.press("m")
    wait_address(page, "/r/planted/head/L1H0?query=12&mask=1")
    until(page, "document.getElementById('pattern-hidden').textContent.includes('%')")
    share = 100 * pattern(head_stats().arrays, 0, 1, 0)[:, 0].sum() / 40
    assert f"hidden: {share:.1f} %" in page.inner_text("#pattern-hidden")
    assert page.locator("#pattern-canvas").screenshot() != before
    page.click("#head-mask")
    wait_address(page, "/r/planted/head/L1H0?query=12")

    page.get_by_text("log", exact=True).click()
    wait_address(page, "/r/planted/head/L1H0?query=12&ramp=log")
    until(page, "document.getElementById('pattern-legend').textContent.includes('log ramp')")

    surface = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(surface)
    page.click("#toggle-theme")
    until(page, f"{surface} !== {light!r}")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    page.wait_for_selector("#strip span")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert address(page) == "/r/planted/head/L1H0?query=12&ramp=log"
    page.go_back()
    wait_address(page, "/r/planted/head/L1H0?query=12")
    until(page, "document.getElementById('pattern-legend').textContent.includes('sqrt ramp')")


def test_keys_and_buttons_walk_through_heads_and_prompts(page, link):
    go(page, link, "/r/planted/head/L1H1?ramp=log")
    page.wait_for_selector("#strip span")
    # Layer 2 has no attention: down from layer 1 is layer 3.
    for key, wanted in (
        ("l", "/r/planted/head/L1H2?ramp=log"),
        ("h", "/r/planted/head/L1H1?ramp=log"),
        ("j", "/r/planted/head/L3H1?ramp=log"),
        ("k", "/r/planted/head/L1H1?ramp=log"),
        ("]", "/r/planted/head/L1H1?ramp=log&prompt=1"),
    ):
        page.keyboard.press(key)
        wait_address(page, wanted)
    until(page, "document.querySelectorAll('#strip span').length === 32")
    page.keyboard.press("[")
    wait_address(page, "/r/planted/head/L1H1?ramp=log")
    page.click("#go-right")
    wait_address(page, "/r/planted/head/L1H2?ramp=log")
    until(page, "document.getElementById('head-title').textContent === 'L1H2'")
    # Keys pressed faster than the page can draw all count.
    page.keyboard.press("h")
    page.keyboard.press("h")
    wait_address(page, "/r/planted/head/L1H0?ramp=log")
    until(page, "document.getElementById('head-title').textContent === 'L1H0'")


def test_the_pattern_tells_cells_and_locks_rows(page, link):
    go(page, link, "/r/planted/head/L3H4")
    page.wait_for_selector("#strip span")
    box = page.evaluate(
        "(() => { const c = document.getElementById('pattern-canvas'); return c.clientWidth; })()"
    )
    size = box - 92 - 10
    at = {"x": 92 + 0.5 * size / 40, "y": 92 + 20.5 * size / 40}
    page.hover("#pattern-canvas", position=at)
    p = pattern(head_stats().arrays, 0, 3, 4)[20, 0]
    said = page.inner_text("#tip")
    assert "query 20" in said and "key 0 “<s>”" in said and readings.number(p) in said
    page.click("#pattern-canvas", position=at)
    wait_address(page, "/r/planted/head/L3H4?query=20")
    assert page.inner_text("#save-svg") == "SVG"
    with page.expect_download() as png:
        page.click("#save-png")
    assert png.value.suggested_filename == "planted-L3H4-p0.png"
    with page.expect_download() as svg:
        page.click("#save-svg")
    assert svg.value.suggested_filename == "planted-L3H4-p0.svg"
    with page.expect_download() as csv:
        go_csv = page.get_by_role("link", name="CSV", exact=True)
        go_csv.click()
    assert csv.value.suggested_filename == "planted-L3H4-p0.csv"


def test_a_run_without_patterns_shows_its_numbers(page, link):
    go(page, link, "/r/no-qk/head/L1H0")
    until(page, "document.getElementById('pattern-hidden').textContent.includes('not kept')")
    assert "prev_token_score" in page.inner_text("#head-metrics")


def test_wrong_addresses_say_so(page, link):
    go(page, link, "/r/planted/head/L77H0")
    assert "no head L77H0" in page.inner_text("#problem")
    go(page, link, "/r/absent/atlas")
    assert "does not exist" in page.inner_text("#problem")


@pytest.mark.slow
def test_thousands_of_tokens_stay_few_nodes(browser, page, link, runs_root):
    write_run(runs_root / "long", (2100,), probes=False)
    go(page, link, "/r/long/head/L1H0")
    page.wait_for_selector("#strip span", timeout=3 * PATIENCE)
    assert page.evaluate("document.querySelectorAll('*').length") < 5000
    assert "pooled by max" in page.inner_text("#pattern-legend")
    page.evaluate(
        "(() => { const s = document.getElementById('strip'); s.scrollTop = s.scrollHeight; })()"
    )
    page.wait_for_selector("#strip span[data-i='2099']")
    page.locator("#strip span[data-i='2090']").hover()
    until(page, "document.querySelector(\"#strip span[data-i='2089']\").style.background !== ''")
    assert page.evaluate("document.querySelectorAll('*').length") < 5000
