"""The gradient-descent study: its quick setting end to end, laws that fail without effect."""

import json
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from workbench import cli
from workbench.studies import gradient_descent as study
from workbench.studies import gradient_descent_figures as figures
from workbench.studies import registry
from workbench.studies import study as frame
from workbench.zoo.claims import by_setting, findings
from workbench.zoo.descent import laws, recipe
from workbench.zoo.descent.claims import CLAIMS, REPORTED
from workbench.zoo.trajectory import Results

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
QUICK = study.Config("quick")
BY_NAME = {claim.name: claim for claim in CLAIMS}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick study by the command: (folder, output, CPU seconds)."""
    folder = tmp_path_factory.mktemp("studies") / "quick"
    began = time.process_time()
    result = CliRunner().invoke(
        cli.app, ["study", "gradient-descent", "--quick", "--out", str(folder)]
    )
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return folder, result, time.process_time() - began


@pytest.fixture(scope="module")
def evidence(quick):
    runs = by_setting(Results(quick[0] / study.LABORATORY).trajectories)
    return laws.look(runs, count=500, lasso=20)


def verdicts(evidence):
    only = QUICK.laws()
    return {f.law.name: f.law.verdict for f in findings(evidence, CLAIMS, only, REPORTED)}


def test_laws_and_settings_fit_together():
    assert len(BY_NAME) == len(CLAIMS)
    stacks = (*recipe.layers(), *recipe.transformers())
    made = {setting.name for stack in stacks for setting in stack.settings}
    assert {setting for claim in CLAIMS for setting in claim.needs} <= made
    assert study.Config().laws() == list(BY_NAME)
    left_out = set(BY_NAME) - set(QUICK.laws())
    assert all(BY_NAME[n].whole or recipe.CAUSAL in BY_NAME[n].needs for n in left_out)
    assert registry.find("gradient-descent") is study.STUDY
    assert json.dumps(study.Config().to_json())


@pytest.mark.slow
def test_quick_is_quick_says_so_and_its_laws_hold(quick):
    folder, result, seconds = quick
    print(f"{seconds:.1f} CPU seconds")
    assert seconds < 30
    lines = result.stdout.splitlines()
    assert lines[-1] == "laws: 16 held, 0 not held, 4 not applicable"
    assert any(line.startswith("setting  Quick look") for line in lines)
    table = pd.read_parquet(folder / "laws.parquet").set_index("law")
    assert set(table.loc[table.index[table["required"]], "source"]) == {laws.OSWALD, laws.GARG}
    curves = pd.read_parquet(folder / "tables" / "curves.parquet")
    assert {"run", "step", "loss", "to_gd", "cosine"} <= set(curves)


@pytest.mark.slow
def test_no_law_of_training_holds_before_training(evidence):
    untrained = {s: [run.isel(step=[0]) for run in runs] for s, runs in evidence.runs.items()}
    found = verdicts(replace(evidence, runs=untrained))
    assert "held" not in {found[claim.name] for claim in CLAIMS if claim.needs}


@pytest.mark.slow
def test_laws_fail_where_linear_attention_has_a_softmax(evidence):
    swapped = {**evidence.runs, recipe.LINEAR: evidence.runs[recipe.ONE]}
    # Every run counts as solved, so that the laws are read at all.
    found = {c.name: c.law(replace(evidence, runs=_all_solved(swapped)))[0].verdict for c in CLAIMS}
    for name in ("training finds its loss", "and its predictions", "and its step",
                 "sensitivities point the same way", "and are as long"):  # fmt: skip
        assert found[name] == "not held", name


def _all_solved(runs):
    return {s: [run.assign(loss=0.0 * run["loss"]) for run in group] for s, group in runs.items()}


def test_statistics_of_transformers_are_read_at_their_examples():
    run = xr.Dataset(
        {"by_examples": (("step", "examples"), [[1.0, 1.0, 1.0], [1.0, 0.5, 0.2]])},
        coords={
            "step": [0, 9], "examples": [0, 1, 2], "predictor": ["least squares", "3-NN"],
            "by_examples_baseline": (("predictor", "examples"), [[1, 0.3, 0.1], [1, 0.8, 0.4]]),
        },
    )  # fmt: skip
    assert laws.beside(run, "3-NN") == pytest.approx(0.5)
    assert laws.beside(run, "3-NN", 1) == pytest.approx(0.625)
    assert laws.above_least_squares(run) == pytest.approx(0.2)


@pytest.mark.slow
def test_axes_are_named_and_figures_show_the_runs(evidence):
    drawn = frame.pictures(study.PLATES, evidence, evidence.runs)
    assert [picture.name for picture in drawn] == [
        "training", "circuits", "steps", "ranges", "learners", "lasso"
    ]  # fmt: skip
    for picture in drawn:
        assert any(axis.title.text for axis in picture.figure.select_xaxes()), picture.name
        assert any(axis.title.text for axis in picture.figure.select_yaxes()), picture.name
        assert all(trace.hovertemplate for trace in picture.figure.data), picture.name
    runs = sum(len(group) for group in evidence.runs.values())
    assert len(figures.training(evidence).data) == 3 * runs
    kq = np.array(figures.circuits(evidence).data[0].z)
    diagonal = np.abs(np.diag(kq[:10]))
    assert diagonal.min() > 5 * np.abs(kq[:10] - np.diag(np.diag(kq[:10]))).max()
