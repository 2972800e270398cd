"""All studies on one page: what is counted, what is left out, what is linked."""

import json

import pandas as pd
import pytest
from study_made import HOSTILE, Coin, study

from workbench.errors import WorkbenchError
from workbench.studies import together
from workbench.studies.study import perform

NAN = float("nan")


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
