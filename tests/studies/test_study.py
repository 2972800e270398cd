"""The frame of studies: counting, exit status, files, going on, stopping; on a fake study."""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest
from study_made import HOSTILE, Coin, finding, study, toss
from typer.testing import CliRunner

from workbench import cli
from workbench.errors import WorkbenchError
from workbench.runfiles import fingerprint
from workbench.studies import registry, report
from workbench.studies.study import closing_line, failures, law_table, perform

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
NAN = float("nan")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs `workbench study` in an empty directory with fake studies registered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORKBENCH_DEBUG", raising=False)

    def call(*arguments, found=None, code=0):
        fake = found or study()
        monkeypatch.setattr(registry, "STUDIES", {fake.name: fake})
        result = CliRunner().invoke(cli.app, ["study", *map(str, arguments)])
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    return call


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ((0.9, 0.9, 0.9), "laws: 3 held, 0 not held, 0 not applicable"),
        ((0.9, 0.2, NAN), "laws: 1 held, 1 not held, 1 not applicable"),
        ((), "laws: 0 held, 0 not held, 0 not applicable"),
    ],
)
def test_the_closing_line_counts_verdicts(values, line):
    assert closing_line([finding(value) for value in values]) == line


def test_a_control_that_passes_too_fells_the_law():
    assert failures([finding(0.9, null=0.8)]) and not failures([finding(0.9, null=0.2)])


def test_only_required_laws_that_are_not_held_fail():
    findings = [finding(0.9), finding(0.2, required=False), finding(NAN)]
    assert failures(findings) == []
    assert failures([*findings, finding(0.2)]) == [finding(0.2).law.name]
    assert law_table(findings)["verdict"].tolist() == ["held", "not held", "not applicable"]


@pytest.mark.parametrize(
    ("values", "required", "code"),
    [
        ((0.9, 0.9), (True, True), 0),
        ((0.9, 0.1), (True, False), 0),
        ((0.9, 0.1), (True, True), 1),
        ((0.9, NAN), (True, True), 0),
    ],
)
def test_exit_status_and_last_line(run, values, required, code):
    found = study(default=Coin(values, required))
    result = run("coin", found=found, code=code)
    assert re.fullmatch(r"laws: \d held, \d not held, \d not applicable",
                        result.stdout.splitlines()[-1])  # fmt: skip
    assert ("failed" in result.stdout) == bool(code)
    assert "Only a coin." in result.stdout


def test_the_directory_holds_everything_whole(run, tmp_path):
    run("coin")
    folder = tmp_path / "runs" / "studies" / "coin"
    about = json.loads((folder / "study.json").read_text())
    assert about["finished"] and about["seeds"] == [3] and about["facts"] == {"began": 0}
    assert about["config"] == Coin().to_json() and about["versions"]["python"]
    assert about["laws"] == "laws: 2 held, 0 not held, 1 not applicable"
    assert about["seconds"]["wall"] >= 0 and not about["continued"]
    assert about["command"] == "workbench study coin --out runs/studies/coin"
    for name, expected in about["files"].items():
        assert fingerprint(folder / name) == expected
    on_disk = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert on_disk == {*about["files"], "study.json", "counted.txt"}
    assert pd.read_parquet(folder / "laws.parquet")["value"].tolist()[:2] == [0.9, 0.9]
    assert pd.read_parquet(folder / "tables/numbers.parquet")["x"].tolist() == [1, 2]
    assert json.loads((folder / "figures/line.json").read_text())["data"][0]["y"] == [3, 4]


def test_ctrl_c_leaves_no_report_and_the_next_call_goes_on(run, tmp_path):
    stopped = run("coin", found=study(default=Coin(stop_at=3)), code=130)
    lines = [line for line in stopped.stderr.splitlines() if "workbench:" in line]
    assert len(lines) == 1 and "repeat the command to go on" in lines[0]
    folder = tmp_path / "runs" / "studies" / "coin"
    assert json.loads((folder / "study.json").read_text())["finished"] is False
    assert not (folder / "report.html").exists()
    run("coin")
    about = json.loads((folder / "study.json").read_text())
    assert about["finished"] and about["continued"] and about["facts"] == {"began": 3}
    assert about["command"] in (folder / "report.html").read_text()


def test_a_failure_while_writing_is_seen_and_mended(tmp_path, monkeypatch):
    perform(study(), Coin(), tmp_path / "a")
    whole = (tmp_path / "a" / "report.html").read_bytes()

    def broken(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(report, "page", broken)
        with pytest.raises(OSError, match="disk full"):
            perform(study(), Coin(), tmp_path / "a")
    assert json.loads((tmp_path / "a" / "study.json").read_text())["finished"] is False
    assert (tmp_path / "a" / "report.html").read_bytes() == whole
    perform(study(), Coin(), tmp_path / "a")
    assert json.loads((tmp_path / "a" / "study.json").read_text())["finished"] is True
    assert not list((tmp_path / "a").rglob(".*.tmp"))


def test_other_contents_are_refused(tmp_path):
    perform(study(), Coin(), tmp_path / "a")
    with pytest.raises(WorkbenchError, match="other settings"):
        perform(study(), Coin(model="other"), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    with pytest.raises(WorkbenchError, match="is not empty and holds no study"):
        perform(study(), Coin(), tmp_path / "b")
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["mine.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkbenchError, match="cannot be written"):
        perform(study(), Coin(), tmp_path / "file")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none"], "there is no study 'none'; known: coin"),
        (["coin", "--quick"], "coin has no quick setting; it has default"),
        (["coin", "--text-file", "x"], "study coin takes no --text-file"),
        (["coin", "--quick", "--full"], "exclude one another"),
        (["list", "--quick"], "the list takes no options"),
    ],
)
def test_requests_that_cannot_be_met_are_one_sentence(run, tmp_path, arguments, sentence):
    result = run(*arguments, code=2)
    assert sentence in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_model_goes_into_the_settings(run, tmp_path):
    run("coin", "--model", "zoo:mix-3l", "--out", "there")
    about = json.loads((tmp_path / "there" / "study.json").read_text())
    assert about["config"]["model"] == "zoo:mix-3l"
    assert about["command"] == "workbench study coin --model zoo:mix-3l --out there"


def test_the_list_says_paper_cost_and_needs(run):
    listed = run("list").stdout
    for word in ("coin", "Nobody 2020", "a coin", "a table", "Which side?"):
        assert word in listed


def test_listing_the_real_studies_loads_no_torch(root):
    code = (
        "import sys\nfrom workbench.cli import app\n"
        "app(['study', 'list'], standalone_mode=False)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert "active-dormant" in done.stdout and "2410.13835" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_text_of_others_is_escaped_and_nothing_is_fetched(tmp_path):
    found = study()
    content = toss(Coin(), tmp_path, lambda *_: None)
    about = {
        "seconds": {"wall": 1, "cpu": 1}, "continued": False, "command": HOSTILE, "created": "now",
        "facts": {}, "seeds": [], "versions": {}, "revision": "", "key": "k",
        "config": {"a": HOSTILE},
    }  # fmt: skip
    page = report.page(found, content, about)
    assert HOSTILE not in page and page.count("&lt;script&gt;alert(1)") >= 3
    assert page.count("plotly.js v") == 1
    ours = page.replace(report.get_plotlyjs(), "")
    assert "http" not in ours.replace('http-equiv="Content-Security-Policy"', "")
    assert "default-src 'none'" in page and '"showSendToCloud": false' in page
