"""The associative-memory study: quick end to end, laws that fail without their effect, figures."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench import cli
from workbench.studies import associative_memory as study
from workbench.studies import kept
from workbench.studies import study as frame
from workbench.zoo.claims import findings
from workbench.zoo.memory import laws, measure
from workbench.zoo.memory.claims import CLAIMS

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick study by the command: (folder, output)."""
    folder = tmp_path_factory.mktemp("studies") / "quick"
    result = CliRunner().invoke(
        cli.app, ["study", "associative-memory", "--quick", "--out", str(folder)]
    )
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return folder, result


@pytest.fixture(scope="module")
def evidence(quick):
    names = json.loads((quick[0] / study.TABLES / "0" / "tables.json").read_text())["tables"]
    return {name: pd.read_parquet(quick[0] / "tables" / f"{name}.parquet") for name in names}


def verdicts(evidence):
    return {f.law.name: f.law.verdict for f in findings(evidence, CLAIMS)}


def test_quick_says_so_and_its_laws_hold(quick):
    folder, result = quick
    assert result.stdout.splitlines()[-1] == "laws: 17 held, 0 not held, 0 not applicable"
    about = json.loads((folder / "study.json").read_text())
    assert about["finished"] and about["seeds"] == [0] and about["config"]["size"] == "quick"
    table = pd.read_parquet(folder / "laws.parquet")
    assert set(table.loc[table["required"], "source"]) == {laws.QIAO}
    assert "Capacity is nothing without its criterion" in (folder / "report.html").read_text()


def test_a_second_call_measures_nothing_again(quick, monkeypatch):
    def refuse(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(measure, "everything", refuse)
    folder, _ = quick
    content = study.STUDY.run(study.Config("quick"), folder, lambda *a: None)
    assert all(finding.law.held for finding in content.findings)
    # A part that was broken off has no list of its tables and is made anew.
    (folder / study.TABLES / "0" / "tables.json").rename(folder / study.TABLES / "0" / "away")
    with pytest.raises(AssertionError, match="measured again"):
        study.STUDY.run(study.Config("quick"), folder, lambda *a: None)
    (folder / study.TABLES / "0" / "away").rename(folder / study.TABLES / "0" / "tables.json")


def test_laws_fail_where_their_effect_is_taken_away(evidence):
    def swapped(name, column, one, other):
        names = {one: other, other: one}
        table = evidence[name]
        return {**evidence, name: table.assign(**{column: table[column].replace(names)})}

    found = verdicts(swapped("capacity", "criterion", "mean", "guaranteed"))
    assert found["average capacity grows as d_k"] == "not held"
    assert found["guaranteed capacity grows as sqrt(d_k)"] == "not held"
    assert verdicts(swapped("interference", "keys", "random", "orthogonal"))[
        "random keys err by (N - 1) / d_k"
    ] == "not held"  # fmt: skip
    for other in ("Hebb", "delta, wrong keys"):
        assert verdicts(swapped("rules", "rule", "delta", other))["the delta rule errs less"] == (
            "not held"
        )
    found = verdicts(swapped("depth", "keys", "fresh", "same"))
    assert found["layers multiply 1 + error^2"] == "not held"
    found = verdicts(swapped("heads", "items", "random", "copies"))
    assert found["redundant heads err less"] == "not held"
    found = verdicts(swapped("heads", "items", "random", "orthogonal"))
    assert found["the floor is that of the stream"] == "not held"


def test_slopes_are_read_from_capacities_less_one():
    d = np.array([16, 64, 256])
    table = pd.DataFrame({"criterion": "mean", "d": d, "items": 1 + 3 * d**2, "seed": 0})
    assert laws.slope({"capacity": table}, 0, "mean") == pytest.approx(2)


def test_parts_are_made_once_and_stacked(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"a": pd.DataFrame({"x": [len(made)]})}

    one, again = (kept.kept(tmp_path, "p", make) for _ in range(2))
    other = kept.kept(tmp_path, "q", make)
    assert len(made) == 2 and one["a"].equals(again["a"])
    assert kept.stacked([one, other])["a"]["x"].tolist() == [1, 2]


def test_axes_are_named_and_hover_says_what(evidence):
    drawn = frame.pictures(study.PLATES, evidence, ())
    assert [picture.name for picture in drawn] == [
        "interference", "capacity", "rules", "ages", "depth", "heads"
    ]  # fmt: skip
    for picture in drawn:
        assert any(axis.title.text for axis in picture.figure.select_xaxes())
        assert any(axis.title.text for axis in picture.figure.select_yaxes())
        assert all(trace.hovertemplate for trace in picture.figure.data), picture.name
    capacity = {trace.name: trace for trace in drawn[1].figure.data}
    worst = capacity["largest error, worst keys"]
    assert list(worst.x) == [16, 64, 256] and list(worst.y) == [3, 5, 9]
    assert "largest error, random keys: law" not in capacity


def test_one_study_among_the_others():
    from workbench.studies import registry

    assert registry.find("associative-memory") is study.STUDY
    assert json.dumps(study.Config().to_json())
