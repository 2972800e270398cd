"""The minimal-transformers study: quick end to end, laws that fall with their effect."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from workbench import cli
from workbench.studies import minimal_transformers as study
from workbench.studies.study import pictures
from workbench.zoo.claims import by_setting, findings
from workbench.zoo.minimal import model, recipe
from workbench.zoo.minimal.claims import CLAIMS, of
from workbench.zoo.trajectory import Results

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
ACCURACIES = {
    "whole": 0.93, "no-mlp": 0.93, "collapsed": 0.92, "bare": 0.9, "symmetric": 0.89,
    "uniform": 0.8,
}  # fmt: skip


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "quick"
    result = CliRunner().invoke(
        cli.app, ["study", "minimal-transformers", "--quick", "--out", str(folder)]
    )
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return folder, result.stdout.splitlines()[-1]


def planted(**changes):
    """Two runs per variant with these accuracies and a share of patches unlike themselves."""
    found = {}
    for variant, accuracy in {**ACCURACIES, **changes}.items():
        share = 0.0 if variant == "symmetric" else 0.4
        found[of(variant)] = [
            xr.Dataset(
                {
                    "accuracy": ("step", [0.1, accuracy + shift]),
                    "unlike_itself": (("step", "layer", "head"), np.full((2, 4, 1), share)),
                }
            )
            for shift in (0.0, 0.005)
        ]
    return found


def verdicts(runs):
    return {f.law.name: f.law.verdict for f in findings(runs, CLAIMS)}


def test_every_law_holds_where_the_story_is_true():
    assert set(verdicts(planted()).values()) == {"held"}


@pytest.mark.parametrize(
    ("change", "fallen"),
    [
        (
            {"no-mlp": 0.85},
            {"attention is non-linear enough", "the MLP adds little", "query and key collapse"},
        ),
        ({"collapsed": 0.86}, {"query and key collapse"}),
        ({"bare": 0.86}, {"value and output can go"}),
        ({"symmetric": 0.85}, {"similarity can be symmetric"}),
        (
            {"uniform": 0.9},
            {c.name for c in CLAIMS if c.control == "every patch attends to all alike"},
        ),
    ],
)
def test_one_wrong_number_fells_its_laws_alone(change, fallen):
    found = verdicts(planted(**change))
    assert {name for name, verdict in found.items() if verdict != "held"} == fallen


def test_every_law_has_its_runs():
    made = {setting.name for stack in recipe.small() for setting in stack.settings}
    assert {name for claim in CLAIMS for name in claim.needs} <= made
    assert study.Config().laws() == [claim.name for claim in CLAIMS]
    assert json.dumps(study.Config().to_json())


@pytest.mark.slow
def test_quick_reads_reversed_images_and_its_control_does_not(quick):
    folder, last = quick
    assert last == "laws: 3 held, 0 not held, 4 not applicable"
    table = pd.read_parquet(folder / "tables/runs.parquet").set_index("variant")
    assert table.loc[model.NO_MLP, "accuracy"] > 0.875 > table.loc[model.UNIFORM, "accuracy"]
    assert table.loc[model.SYMMETRIC, "asymmetry"] == pytest.approx(0, abs=1e-10)
    linear = pd.read_parquet(folder / "tables/linear.parquet").set_index("images")
    logistic = linear[linear["classifier"] == "logistic regression"]["accuracy"]
    assert logistic["plain"] > 0.93 and logistic["reversed"] < 0.45


@pytest.mark.slow
def test_no_network_reads_them_before_training(quick):
    runs = by_setting(Results(quick[0] / study.LABORATORY).trajectories)
    untrained = {name: [run.isel(step=[0]) for run in group] for name, group in runs.items()}
    wanted = ["attention is non-linear enough", "similarity can be symmetric"]
    found = {f.law.name: f.law.verdict for f in findings(untrained, CLAIMS, wanted)}
    assert [found[name] for name in wanted] == ["not held", "not held"]


@pytest.mark.slow
def test_figures_name_their_axes_and_every_run(quick):
    runs = by_setting(Results(quick[0] / study.LABORATORY).trajectories)
    drawn = pictures(study.PLATES, runs, runs)
    assert [picture.name for picture in drawn] == ["ends", "courses", "unlike"]
    for picture in drawn:
        assert any(axis.title.text for axis in picture.figure.select_xaxes())
        assert all(trace.hovertemplate for trace in picture.figure.data)
    assert len(drawn[1].figure.data) == 3 and len(drawn[2].figure.data) == 2
