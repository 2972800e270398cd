"""The Sinks page in a real browser, and the switch that all pages of a run carry."""

import re

import numpy as np
import pytest
from app_driving import address, go, until, wait_address
from app_made import head_stats, pattern

from workbench.app import readings
from workbench.probes import sink_positions

# Playwright keeps an event loop whose sockets Python reports when it collects them.
pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]
# A model is opened in it, beside other tests.
LONG = 120_000


@pytest.fixture(scope="module")
def zoo_run(runs_root):
    """A run of a model that lies on this machine."""
    from workbench.capturing import capture
    from workbench.models import load
    from workbench.prompts import Prompt
    from workbench.zoo import tasks

    rows = tasks.markov(np.random.default_rng(0), 2, 40).ids
    prompts = [Prompt(token_ids=tuple(map(int, row))) for row in rows]
    capture(load("zoo:mix-3l"), prompts, out=runs_root / "zoo")
    return "zoo"


def text_has(page, where, wanted, patience=20_000):
    until(
        page,
        "([id, text]) => document.getElementById(id).textContent.includes(text)",
        [where, wanted],
        patience,
    )


def rows_of_the_list(page) -> int:
    return page.locator("#sinks-list .ag-center-cols-container .ag-row").count()


def ready(page):
    page.wait_for_selector("#sinks-list .ag-row[row-id]")
    until(page, "document.querySelectorAll('#sinks-heat .hm image').length === 1")
    until(page, "document.querySelectorAll('#sinks-curve .trace').length >= 3")


def test_thresholds_filter_the_list_live_and_stand_in_the_address(page, link):
    go(page, link, "/r/planted/sinks")
    ready(page)
    until(page, "document.querySelectorAll('#sinks-list .ag-row[row-id]').length >= 2")
    before = rows_of_the_list(page)
    assert before == len(sink_positions(head_stats())) == 2
    thumb = page.locator('[id*="eps"] [role=slider]').first
    thumb.focus()
    for _ in range(18):
        page.keyboard.press("ArrowLeft")
    until(page, "location.search === '?eps=0.12'")
    expected = sink_positions(head_stats(), threshold=0.12)
    text_has(page, "sinks-count", f"{len(expected)} tokens get more than 0.12")
    assert len(expected) > before
    until(page, f"document.querySelectorAll('#sinks-list .ag-row[row-id]').length > {before}")
    # A slider replaces the address: one step back leaves the page.
    page.reload()
    text_has(page, "sinks-count", f"{len(expected)} tokens get more than 0.12")
    assert page.evaluate("document.querySelectorAll('*').length") < 5000


def test_a_row_a_position_and_a_cell_are_chosen_by_a_click(page, link):
    go(page, link, "/r/planted/sinks")
    ready(page)
    page.locator('#sinks-list .ag-row[row-id="1.0"] [col-id="shown"]').first.click()
    wait_address(page, "/r/planted/sinks?prompt=1&at=0")
    text_has(page, "sinks-place", "position 0 “<s>” of prompt 1")
    page.wait_for_selector('#sinks-list .ag-row-selected[row-id="1.0"]')
    p = pattern(head_stats().arrays, 1, 3, 4)[:, 0].mean()
    page.evaluate("window.scrollTo(0, 0)")
    box = page.locator("#sinks-heat .hm image").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 4.5 / 6, box["y"] + box["height"] * 3.5 / 4)
    until(page, "document.querySelector('#sinks-heat .hoverlayer').textContent.includes('L3H4')")
    page.mouse.click(box["x"] + box["width"] * 4.5 / 6, box["y"] + box["height"] * 3.5 / 4)
    wait_address(page, "/r/planted/sinks?prompt=1&at=0&sel=L3H4")
    text_has(page, "sinks-selected", f"L3H4: {readings.number(p)}")
    assert page.inner_text("#sinks-open") == "Open L3H4 →"

    # Another prompt has other positions.
    page.locator('[id*=prompt\\"]').first.click()
    page.get_by_role("option", name=re.compile("^0:")).click()
    wait_address(page, "/r/planted/sinks?sel=L3H4")
    page.get_by_text("strongest of the prompt").click()
    wait_address(page, "/r/planted/sinks?sel=L3H4&at=strongest")
    text_has(page, "sinks-place", "position 0 “<s>” of prompt 0")
    with page.expect_download() as file:
        page.locator('a[data-table="list"]').click()
    assert file.value.suggested_filename == "planted-sinks-list.csv"
    page.go_back()
    wait_address(page, "/r/planted/sinks?sel=L3H4")


def test_the_mask_is_carried_from_page_to_page(page, link):
    go(page, link, "/r/planted/sinks?sel=L3H4")
    ready(page)
    assert page.inner_text("#sinks-hidden") == ""
    page.click("#sinks-mask")
    wait_address(page, "/r/planted/sinks?sel=L3H4&mask=1")
    text_has(page, "sinks-hidden", "% of all attention is hidden")
    until(page, "document.getElementById('sinks-mask').className === 'quiet on'")
    text_has(page, "sinks-question", "strongest of the other keys")

    page.click("#sinks-tab-atlas")
    wait_address(page, "/r/planted/atlas?sel=L3H4&mask=1")
    page.wait_for_selector(".ag-row[row-id]")
    until(page, "document.getElementById('atlas-mask').className === 'quiet on'")
    text_has(page, "atlas-question", "measures the sink itself")
    page.click("#atlas-tab-head")
    wait_address(page, "/r/planted/head/L3H4?mask=1")
    page.wait_for_selector("#strip span")
    share = 100 * pattern(head_stats().arrays, 0, 3, 4)[:, 0].sum() / 40
    text_has(page, "pattern-hidden", f"hidden: {share:.1f} %")
    page.click("#head-tab-sinks-ablate")
    wait_address(page, "/r/planted/sinks?mask=1&sel=L3H4")
    ready(page)
    page.keyboard.press("m")
    wait_address(page, "/r/planted/sinks?sel=L3H4")
    until(page, "document.getElementById('sinks-tab-head').getAttribute('href') === "
                "'/r/planted/head/L3H4'")  # fmt: skip


def test_a_run_without_residual_statistics_says_so_in_every_box(page, link):
    go(page, link, "/r/no-qk/sinks")
    ready(page)
    text_has(page, "levels-sentence", "resid_cos")
    for name in ("sinks-residual", "sinks-values"):
        text_has(page, name, "capture it")
    assert "'planted' is not on this machine" not in page.inner_text("#ablate-what")
    page.get_by_text("all heads", exact=True).click()
    text_has(page, "ablate-what", "'planted' is not on this machine")
    page.click("#ablate-run")
    text_has(page, "ablate-status", "is not on this machine")


@pytest.mark.slow
def test_ablating_the_sink_shows_the_change_beside_what_was(page, link, zoo_run):
    """Opening the model is what takes the time."""
    go(page, link, f"/r/{zoo_run}/sinks?op=drop&scope=all")
    ready(page)
    text_has(page, "ablate-what", "key 0 hidden from all heads")
    page.click("#ablate-run")
    until(page, "document.getElementById('ablate-status').textContent !== ''")
    text_has(page, "ablate-verdict", "key 0 hidden from all heads: next-token loss", LONG)
    found = re.search(r"loss ([\d.]+) → ([\d.]+) nats", page.inner_text("#ablate-verdict"))
    before, after = map(float, found.groups())
    assert after > before
    assert page.inner_text("#ablate-controls").count("key ") == 3
    until(page, "document.querySelectorAll('#ablate-curve .trace').length === 4")
    until(page, "document.querySelectorAll('#ablate-layers .trace.bars').length === 2")
    assert page.inner_text("#ablate-status") == ""

    # Another operation has not been run: nothing of the old one stays.
    page.get_by_text("silence heads").click()
    wait_address(page, f"/r/{zoo_run}/sinks?scope=all")
    until(page, "document.getElementById('ablate-verdict').textContent === ''")
    page.go_back()
    assert address(page).endswith("op=drop&scope=all")
    text_has(page, "ablate-verdict", "key 0 hidden")
