"""The random-features study: quick end to end, and its figures."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench import cli
from workbench.studies import random_features as study
from workbench.studies import study as frame
from workbench.zoo.claims import findings
from workbench.zoo.features import laws, measure, task
from workbench.zoo.features.claims import CLAIMS

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick study by the command: (folder, output)."""
    folder = tmp_path_factory.mktemp("studies") / "quick"
    result = CliRunner().invoke(
        cli.app, ["study", "random-features", "--quick", "--out", str(folder)]
    )
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return folder, result


@pytest.fixture(scope="module")
def evidence(quick):
    return {
        name: pd.read_parquet(quick[0] / "tables" / f"{name}.parquet")
        for name in ("errors", "moved")
    }


@pytest.mark.slow
def test_quick_says_so_and_its_laws_hold(quick):
    folder, result = quick
    assert result.stdout.splitlines()[-1] == "laws: 3 held, 0 not held, 8 not applicable"
    about = json.loads((folder / "study.json").read_text())
    assert about["finished"] and about["seeds"] == [0, 1] and about["config"]["size"] == "quick"
    table = pd.read_parquet(folder / "laws.parquet")
    assert set(table.loc[table["required"], "source"]) == {laws.FU}
    kept = sorted(path.name for path in (folder / study.TABLES).iterdir())
    assert kept == ["small-s0", "small-s1", "wide-s0", "wide-s1"]
    assert "no softmax" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_laws_fail_where_the_bias_is_given_to_the_wrong_heads(evidence):
    names = {measure.ATTENTION: measure.BIASED, measure.BIASED: measure.ATTENTION}
    errors = evidence["errors"].assign(model=evidence["errors"]["model"].replace(names))
    name = "a biased query-key matrix helps"
    found = {
        which: {f.law.name: f.law.verdict for f in findings(tables, CLAIMS, [name])}[name]
        for which, tables in (("as is", evidence), ("swapped", {**evidence, "errors": errors}))
    }
    assert found == {"as is": "held", "swapped": "not held"}


@pytest.mark.slow
def test_means_over_keys_are_sooner_learned_and_one_key_is_not(evidence):
    for seed in (0, 1):
        for target, sooner in ((task.SQUARE, True), (task.FOURTH, True), (task.ONE_KEY, False)):
            ratio = laws.ratio(evidence, seed, (measure.ATTENTION, measure.MLP), target)
            print(f"seed {seed}, {target.name}: {ratio:.3f}")
            assert (ratio < 0.6) == sooner
            assert sooner or ratio > 0.9


@pytest.mark.slow
def test_axes_are_named_and_hover_says_what(evidence):
    drawn = frame.pictures(study.PLATES, evidence, ())
    assert [picture.name for picture in drawn] == ["errors-wide", "errors-small", "bias", "moved"]
    for picture in drawn:
        assert any(axis.title.text for axis in picture.figure.select_xaxes())
        assert any(axis.title.text for axis in picture.figure.select_yaxes())
        assert all(trace.hovertemplate for trace in picture.figure.data), picture.name
    wide = drawn[0].figure
    assert len(wide.data) == len(measure.MODELS) * len(task.TARGETS)
    first = wide.data[0]
    rows = evidence["errors"].query("setting == 'wide' and n == 64")
    rows = rows[(rows["model"] == first.name) & (rows["target"] == task.SQUARE.name)]
    assert first.x[0] == 64 and np.isclose(first.y[0], rows["error"].mean())


def test_one_study_among_the_others():
    from workbench.studies import registry

    assert registry.find("random-features") is study.STUDY
    assert json.dumps(study.Config().to_json())
    whole = {claim.name for claim in CLAIMS if claim.whole}
    assert set(study.Config().laws()) - set(study.Config("quick").laws()) == whole
