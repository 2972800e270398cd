"""The scan-and-snap study: its quick setting end to end, its figures on short runs."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench import cli
from workbench.studies import registry
from workbench.studies import scan_and_snap as study
from workbench.studies import study as frame
from workbench.zoo.scansnap import laws, recipe, training
from workbench.zoo.scansnap.claims import CLAIMS

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick study by the command: (folder, result)."""
    folder = tmp_path_factory.mktemp("studies") / "quick"
    result = CliRunner().invoke(
        cli.app, ["study", "scan-and-snap", "--quick", "--out", str(folder)]
    )
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return folder, result


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Every figure, from every stack of the default study for a few steps and one seed."""
    stacks = []
    for stack in recipe.small():
        steps = min(stack.steps, 150 if stack.name in ("flow", "fine", "wide") else 8)
        logged = tuple(sorted({*(s for s in stack.logged if s < steps), steps}))
        settings = tuple(s for s in stack.settings if s.seed == 0)
        stacks.append(replace(stack, steps=steps, logged=logged, settings=settings))
    evidence = laws.look(training.train(tmp_path_factory.mktemp("short") / "a", stacks))
    return {p.name: p.figure for p in frame.pictures(study.PLATES, evidence, evidence.runs)}


def test_laws_and_settings_fit_together():
    assert study.Config().laws() == [claim.name for claim in CLAIMS]
    few = study.Config("quick").laws()
    assert {claim.name for claim in CLAIMS if claim.whole}.isdisjoint(few)
    made = {setting.name for stack in recipe.quick() for setting in stack.settings}
    assert all(set(claim.needs) <= made for claim in CLAIMS if claim.name in few)
    assert json.dumps(study.Config().to_json()) != json.dumps(study.Config("quick").to_json())
    assert registry.find("scan-and-snap") is study.STUDY


def test_quick_says_so_and_its_laws_hold(quick):
    folder, result = quick
    lines = result.stdout.splitlines()
    assert lines[-1] == "laws: 7 held, 0 not held, 10 not applicable"
    assert any(line.startswith("setting  Quick look: 8 runs") for line in lines)
    about = json.loads((folder / "study.json").read_text())
    assert about["finished"] and about["config"]["size"] == "quick"
    table = pd.read_parquet(folder / "laws.parquet").set_index("law")
    assert set(table[table["required"]]["source"]) == {laws.TIAN}
    assert (table["n"] > 0).eq(table["verdict"] != "not applicable").all()
    assert "pulls attention back there" in (folder / "report.html").read_text()


def test_tables_hold_every_step_and_every_end(quick):
    folder, _ = quick
    curves, final = (pd.read_parquet(folder / f"tables/{name}.parquet")
                     for name in ("curves", "final"))  # fmt: skip
    assert set(final["run"]) == {*laws.FLOW, "equal", "mixed", "adam"} and len(final) == 8
    ends = curves.groupby("run")["step"].max()
    assert ends["adam"] == 300 and ends["ratio-1"] == 1000
    # Equal frequencies: ten distinct tokens alike. Mixed: nothing to learn from.
    final = final.set_index("run")
    assert final.loc["equal", "entropy"] == pytest.approx(np.log(10))
    assert final.loc["mixed", "loss"] == pytest.approx(np.log(2))
    assert final.loc["ratio-5", "rate_y"] == 5


def test_quick_draws_what_it_has(quick):
    folder, _ = quick
    assert {path.stem for path in (folder / "figures").iterdir()} == {"tokens", "snap", "identity"}


def test_axes_are_named_and_hover_says_what(drawn):
    assert list(drawn) == [plate.name for plate in study.PLATES]
    for name, figure in drawn.items():
        assert all(axis.title.text for axis in figure.select_xaxes()), name
        assert any(axis.title.text for axis in figure.select_yaxes()), name
        assert all(trace.hovertemplate for trace in figure.data), name


def test_figures_show_the_runs_they_name(drawn):
    start = drawn["tokens"].data[0]
    weights = np.array([1.0] * 10 + [0.1 * i for i in range(1, 11)])
    np.testing.assert_allclose(start.y, weights / 15.5, rtol=1e-6)
    theory, rarest = drawn["identity"].data[:2]
    assert theory.y[1] == 2 * theory.x[1]
    np.testing.assert_allclose(rarest.y, 2 * np.array(rarest.x), atol=0.02)
    points = [trace for trace in drawn["ratios"].data if trace.mode == "markers"]
    assert [len(trace.x) for trace in points] == [4] * 4
    symbols = [s for trace in points for s in trace.marker.symbol]
    assert symbols.count("x") == len(laws.stable(laws.BROKEN, 99)) == 3
    assert len(drawn["snap"].data) == 10 and len(drawn["lengths"].data) == 2
