"""All studies on one page: what is counted, what is left out, what is linked."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from study_made import HOSTILE, Coin, study
from typer.testing import CliRunner

from workbench import cli
from workbench.errors import WorkbenchError
from workbench.studies import registry, together
from workbench.studies.study import perform

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


@pytest.fixture
def root(tmp_path):
    """Two finished studies in one folder, one of them with a law that is not held."""
    perform(study(), Coin(), tmp_path / "coin")
    values = Coin((0.9, 0.2), (True, False))
    perform(study(), values, tmp_path / "other")
    return tmp_path


def test_laws_of_all_studies_are_counted_together(root):
    studies = together.write(root)
    assert together.closing_line(studies) == "laws: 3 held, 1 not held, 1 not applicable"
    found = pd.read_csv(root / "all.csv")
    assert found["folder"].tolist() == ["coin"] * 3 + ["other"] * 2
    assert found["verdict"].tolist() == ["held", "held", "not applicable", "held", "not held"]
    assert found["value"].tolist()[:2] == [0.9, 0.9] and found["mark"].tolist()[0] == "> 0.5"


def test_the_page_links_every_report_and_escapes_what_others_wrote(root):
    together.write(root)
    page = (root / "all.html").read_text()
    for name in ("coin", "other"):
        assert f'href="{name}/report.html"' in page and (root / name / "report.html").exists()
    assert page.count("Which side?") == 4 and "Only a coin." in page
    assert HOSTILE not in page and "&lt;script&gt;alert(1)" in page
    assert page.count('verdict not-held">') == 1 and page.count('verdict held">') == 3
    assert "<script" not in page and not list(root.glob(".*.tmp"))


def test_what_is_unfinished_or_changed_is_named_and_left_out(root):
    about = json.loads((root / "coin" / "study.json").read_text())
    (root / "coin" / "study.json").write_text(json.dumps({**about, "finished": False}))
    laws = pd.read_parquet(root / "other" / "laws.parquet")
    laws.assign(verdict="held").to_parquet(root / "other" / "laws.parquet")
    (root / "third").mkdir()
    (root / "third" / "study.json").write_text("{}")
    problems = {done.folder: done.problem for done in together.write(root)}
    assert "unfinished" in problems["coin"] and "not the one it wrote" in problems["other"]
    assert "this version reads" in problems["third"]
    page = (root / "all.html").read_text()
    assert "laws: 0 held, 0 not held, 0 not applicable" in page
    assert all(problem in page for problem in problems.values())
    assert not len(pd.read_csv(root / "all.csv"))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="there is no study under"):
        together.write(tmp_path)


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs `workbench study` in an empty directory with two fake studies registered."""
    monkeypatch.chdir(tmp_path)
    quick = Coin((0.9,), (True,))
    fine = study(default=Coin(), quick=quick)
    bad = replace(study(default=Coin((0.2,), (True,)), quick=quick), name="bad")
    monkeypatch.setattr(registry, "STUDIES", {"coin": fine, "bad": bad})

    def run(*arguments, code=0):
        result = CliRunner().invoke(cli.app, ["study", *arguments])
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    return run


def test_all_repeats_every_study_and_fails_with_any(call, tmp_path):
    lines = call("all", code=1).stdout.splitlines()
    assert lines[-1] == "laws: 2 held, 1 not held, 1 not applicable"
    assert lines[-2] == "report   runs/studies/all.html"
    assert sum(line.startswith("failed") for line in lines) == 1
    about = json.loads((tmp_path / "runs/studies/bad/study.json").read_text())
    assert about["command"] == "workbench study bad --out runs/studies/bad"
    assert call("report").stdout.splitlines()[-1] == lines[-1], "nothing is run again"


def test_all_of_the_quick_ones(call, tmp_path):
    lines = call("all", "--quick", "--out", "there").stdout.splitlines()
    assert lines[-1] == "laws: 2 held, 0 not held, 0 not applicable"
    assert {path.name for path in (tmp_path / "there").iterdir()} == {
        "coin-quick", "bad-quick", "all.html", "all.csv"
    }  # fmt: skip


@pytest.mark.parametrize("arguments", [("all", "--full"), ("report", "--quick"),
                                       ("all", "--model", "zoo:mix-3l")])  # fmt: skip
def test_all_and_report_take_no_other_option(call, arguments):
    result = call(*arguments, code=2)
    assert "leave them out" in result.stderr and len(result.stderr.splitlines()) == 1
