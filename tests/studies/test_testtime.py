"""The test-time-regression study: its quick setting end to end, laws that fail without effect."""

import json
import time

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench import cli
from workbench.studies import registry
from workbench.studies import study as frame
from workbench.studies import testtime as study
from workbench.zoo.claims import findings
from workbench.zoo.testtime import laws
from workbench.zoo.testtime.claims import CLAIMS

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
QUICK = study.Config("quick")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick study by the command: (folder, output, CPU seconds)."""
    folder = tmp_path_factory.mktemp("studies") / "quick"
    began = time.process_time()
    result = CliRunner().invoke(
        cli.app, ["study", "test-time-regression", "--quick", "--out", str(folder)]
    )
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return folder, result, time.process_time() - began


@pytest.fixture(scope="module")
def evidence():
    return laws.look((0,), 8, QUICK.lengths, 64)


def verdicts(evidence):
    return {f.law.name: f.law.verdict for f in findings(evidence, CLAIMS, QUICK.laws())}


def test_laws_and_sizes_fit_together():
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names) and study.Config().laws() == names
    assert set(names) - set(QUICK.laws()) == {"its error falls faster"}
    assert registry.find("test-time-regression") is study.STUDY
    assert json.dumps(study.Config().to_json())


@pytest.mark.slow
def test_quick_is_quick_says_so_and_its_laws_hold(quick):
    folder, result, seconds = quick
    print(f"{seconds:.1f} CPU seconds")
    assert seconds < 20
    lines = result.stdout.splitlines()
    assert lines[-1] == "laws: 17 held, 0 not held, 1 not applicable"
    assert any(line.startswith("setting  Quick look") for line in lines)
    table = pd.read_parquet(folder / "laws.parquet").set_index("law")
    assert set(table.loc[table.index[table["required"]], "source"]) == {laws.ZUO, laws.HAN}
    errors = pd.read_parquet(folder / "tables" / "errors.parquet")
    assert set(errors["length"]) == set(QUICK.lengths) and set(errors["seed"]) == {0, 1}


def test_laws_fail_where_local_linear_is_softmax(evidence):
    def swapped(data):
        taken = data.sel(estimator="softmax", drop=True)
        return data.where(data["estimator"] != "local linear", taken)

    without = laws.Evidence(
        {task: swapped(data) for task, data in evidence.errors.items()},
        evidence.streams, evidence.limits, evidence.pairs, evidence.local,
    )  # fmt: skip
    found = verdicts(without)
    for name in ("affine maps are exact", "curved maps: better than both",
                 "broken lines: better than both"):  # fmt: skip
        assert found[name] == "not held", name
    assert found["softmax tells q from 2q"] == "held"


def test_laws_fail_where_patterns_are_exchanged(evidence):
    other = {"softmax": "linear, ReLU", "linear, ReLU": "softmax",
             "InLine, ReLU": "linear, ReLU"}  # fmt: skip
    pairs = evidence.pairs.assign(pattern=evidence.pairs["pattern"].replace(other))
    local = evidence.local.assign(
        pattern=evidence.local["pattern"].replace(
            {"softmax": "linear, ELU + 1", "linear, ELU + 1": "softmax"}
        )
    )
    found = verdicts(
        laws.Evidence(evidence.errors, evidence.streams, evidence.limits, pairs, local)
    )
    for name in ("softmax tells q from 2q", "softmax looks near", "and needs what is near"):
        assert found[name] == "not held", name


def test_figures_show_what_they_name(evidence):
    drawn = frame.pictures(study.PLATES, evidence, ())
    assert [picture.name for picture in drawn] == ["fits", "errors", "stream", "pairs", "local"]
    for picture in drawn:
        assert any(axis.title.text for axis in picture.figure.select_xaxes()), picture.name
        assert any(axis.title.text for axis in picture.figure.select_yaxes()), picture.name
        assert all(trace.hovertemplate for trace in picture.figure.data), picture.name
    pairs = drawn[3].figure.data[0]
    texts = dict(zip(pairs.y, pairs.text, strict=True))
    assert texts["linear, ReLU"][0] == "0" != texts["softmax"][0]
    fits = {trace.name: np.array(trace.y) for trace in drawn[0].figure.data}
    assert np.abs(np.diff(fits["mesa"], 2)).max() < 1e-9 < np.abs(np.diff(fits["softmax"], 2)).max()
