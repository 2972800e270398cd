"""The active-dormant study: its quick setting from end to end, and its report in a real browser."""

import json
import re
import time

import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench import cli
from workbench.errors import WorkbenchError
from workbench.studies import active_dormant as study
from workbench.studies import study as frame
from workbench.zoo.backcopy import laws

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking"]  # fmt: skip
# Where the screen shows a point in the middle of the first curve.
POINT = """() => {
  const figure = document.getElementById('figure-sink'), box = figure.getBoundingClientRect();
  const {xaxis, yaxis} = figure._fullLayout, {x, y} = figure._fullData[0], i = x.length >> 1;
  return [box.x + xaxis._offset + xaxis.d2p(x[i]), box.y + yaxis._offset + yaxis.d2p(y[i])];
}"""


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick study by the command: (folder, result, CPU seconds)."""
    folder = tmp_path_factory.mktemp("studies") / "quick"
    began = time.process_time()
    result = CliRunner().invoke(
        cli.app, ["study", "active-dormant", "--quick", "--out", str(folder)]
    )
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return folder, result, time.process_time() - began


# Laws and settings


def test_every_law_has_its_words():
    assert laws.SAYS.keys() == {claim.name for claim in laws.CLAIMS}


def test_laws_without_their_runs_are_not_applicable_in_the_quick_setting():
    wanted = set(study.Config("quick").laws())
    missing = {claim.name for claim in laws.CLAIMS} - wanted
    assert missing == {
        "value of the sink drains", "ReLU attention has no sink", "a null sink from +4 takes over",
        "a null sink from 0 does not", "AdamW: the residual grows", "SGD: the residual shrinks",
    }  # fmt: skip
    assert study.Config().laws() == [claim.name for claim in laws.CLAIMS]


def test_the_full_setting_is_the_papers_and_wants_its_text(tmp_path):
    with pytest.raises(WorkbenchError, match="give --text-file"):
        study.STUDY.config("full").to_json()
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 3 + "t")
    config = study.STUDY.config("full", text_file=str(text))
    assert len(config.laws()) == len(laws.CLAIMS)
    shallow = config.to_json()["recipes"][0]
    assert (shallow["d_model"], shallow["length"], shallow["texts"]) == (256, 256, 512)
    assert shallow["steps"] == 10_000 and str(tmp_path) not in json.dumps(config.to_json())


# The quick study


@pytest.mark.slow
def test_quick_is_quick_says_so_and_its_laws_hold(quick):
    _, result, seconds = quick
    lines = result.stdout.splitlines()
    print(f"{seconds:.1f} CPU seconds")
    assert seconds < 30
    assert lines[-1] == "laws: 14 held, 0 not held, 6 not applicable"
    assert any(line.startswith("setting  Quick look") for line in lines)
    assert len([line for line in lines if line.startswith("not applicable")]) == 6
    progress = re.findall(r"([\d,]+) of 200 steps", result.stderr)
    assert progress and progress[-1] == "200"


@pytest.mark.slow
def test_quick_leaves_tables_and_provenance(quick):
    folder, _, _ = quick
    about = json.loads((folder / "study.json").read_text())
    assert about["finished"] and about["seeds"] == [0] and about["config"]["size"] == "quick"
    assert about["versions"]["torch"] and about["facts"]["training"].endswith("s)")
    table = pd.read_parquet(folder / "laws.parquet").set_index("law")
    assert (table["verdict"] == "held").sum() == 14
    required = table.index[table["required"]]
    assert set(table.loc[required, "source"]) == {laws.GUO}
    applied = table[table["verdict"] != "not applicable"]
    assert (applied["n"] == 1).all() and (table.drop(applied.index)["n"] == 0).all()
    curves = pd.read_parquet(folder / "tables" / "curves.parquet")
    assert set(curves["run"]) == {"main-s0", "no-copy-s0", "no-attention-s0"}
    assert curves["step"].max() == 200


@pytest.mark.slow
def test_a_stopped_study_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "QUICK_STEPS", 60)
    config = study.STUDY.config("quick")
    seen = []

    def stop(done, total, message):
        if done == 55:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        frame.perform(study.STUDY, config, tmp_path / "a", stop)
    assert not (tmp_path / "a" / "report.html").exists()
    content = frame.perform(study.STUDY, config, tmp_path / "a", lambda *a: seen.append(a[0]))
    assert seen == [55, 60], "the checkpoint of step 50 was not used"
    assert len(content.findings) == len(laws.CLAIMS)
    # So few steps teach the bigrams only: laws that ask for more are seen not to hold.
    verdicts = {f.law.name: f.law.verdict for f in content.findings}
    assert verdicts["backcopy needs attention"] == "not held"
    assert verdicts["bigram before backcopy"] == "not applicable"
    assert "backcopy needs attention" in frame.failures(content.findings)


# The report, looked at


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_report_opens_offline(quick, browser_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    folder, _, _ = quick
    wrong, asked = [], []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=ARGUMENTS)
        context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
        page = context.new_page()
        page.on("request", lambda r: asked.append(r.url))
        page.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.goto((folder / "report.html").as_uri())
        page.wait_for_function(
            "() => [...document.querySelectorAll('.figure')].every(f => f.querySelector('.xy'))"
        )
        figures = page.query_selector_all(".figure")
        text = page.inner_text("main")
        shown = [len(figure.query_selector_all("path, image")) for figure in figures]
        verdicts = page.locator(".verdict").all_inner_texts()
        # Hovering shows numbers with the name of the run.
        page.locator("#figure-sink").scroll_into_view_if_needed()
        page.mouse.move(*page.evaluate(POINT))
        hover = page.locator("#figure-sink .hovertext").first.text_content()
        page.set_viewport_size({"width": 480, "height": 900})
        # Figures follow the window; a page that stays wider than it times out here.
        page.wait_for_function("() => document.documentElement.scrollWidth <= 480", timeout=10_000)
        browser.close()
    assert not wrong, wrong
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len(figures) == 8 and min(shown) > 3
    assert "main-s0" in hover and "step" in hover
    assert verdicts.count("held") == 14 and verdicts.count("not applicable") == 6
    for words in ("Quick look", "laws: 14 held", "published, not run here", "found by trying"):
        assert words in text, words
