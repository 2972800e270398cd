"""The staircase study: its quick setting end to end, laws that fail without their effect."""

import json
import time

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench import cli
from workbench.studies import registry
from workbench.studies import staircase as study
from workbench.studies import staircase_figures as figures
from workbench.studies import study as frame
from workbench.zoo.claims import findings
from workbench.zoo.staircase import laws, recipe, training
from workbench.zoo.staircase.claims import CLAIMS
from workbench.zoo.trajectory import Results

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
BY_NAME = {claim.name: claim for claim in CLAIMS}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick study by the command: (folder, output, CPU seconds)."""
    folder = tmp_path_factory.mktemp("studies") / "quick"
    began = time.process_time()
    result = CliRunner().invoke(cli.app, ["study", "staircase", "--quick", "--out", str(folder)])
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return folder, result, time.process_time() - began


@pytest.fixture(scope="module")
def runs(quick):
    return training.runs(Results(quick[0] / study.LABORATORY))


def verdicts(runs, only):
    return {f.law.name: f.law.verdict for f in findings(runs, CLAIMS, only)}


def test_laws_and_settings_fit_together():
    assert len(BY_NAME) == len(CLAIMS)
    made = {setting.name for stack in recipe.small() for setting in stack.settings}
    assert {setting for claim in CLAIMS for setting in claim.needs} <= made
    assert {setting for plate in study.PLATES for setting in plate.needs} <= made
    assert study.Config().laws() == list(BY_NAME)
    whole = {claim.name for claim in CLAIMS if claim.whole}
    left_out = set(BY_NAME) - set(study.Config("quick").laws())
    assert left_out == whole | {"full rank: one drop again"}
    assert json.dumps(study.Config().to_json()) and registry.find("staircase") is study.STUDY


@pytest.mark.slow
def test_quick_is_quick_and_its_laws_hold(quick):
    folder, result, seconds = quick
    print(f"{seconds:.1f} CPU seconds")
    assert seconds < 40
    lines = result.stdout.splitlines()
    assert lines[-1] == "laws: 6 held, 0 not held, 6 not applicable"
    assert any(line.startswith("setting  Quick look") for line in lines)
    table = pd.read_parquet(folder / "laws.parquet").set_index("law")
    assert set(table.loc[table["required"], "source"]) == {laws.ZHANG}
    plateaus = pd.read_parquet(folder / "tables" / "plateaus.parquet")
    apart = (plateaus["loss"] / plateaus["closed_form"] - 1).abs()
    assert apart[plateaus["setting"] == "separate"].max() < 0.02
    times = pd.read_parquet(folder / "tables" / "times.parquet").set_index("setting")
    merged = times.loc["merged-aligned"]
    assert (merged["step"] / merged["closed_form"] - 1).abs().max() < 0.05


@pytest.mark.slow
def test_laws_fail_where_their_effect_is_taken_away(runs):
    only = study.Config("quick").laws()
    assert set(verdicts(runs, only).values()) == {"held", "not applicable"}
    swapped = {**runs, "merged": runs["separate"], "separate": runs["merged"]}
    assert verdicts(swapped, only)["merged: one abrupt drop"] == "not held"
    found = verdicts({**runs, "separate": runs["equal"], "equal": runs["separate"]}, only)
    assert found["directions come in order"] == "not held"
    assert found["each plateau is regression on m components"] == "not held"
    # Untrained runs are on no plateau and have learned no entry.
    untrained = {s: [r.isel(step=slice(0, 20)) for r in some] for s, some in runs.items()}
    assert "held" not in {
        verdict for name, verdict in verdicts(untrained, only).items()
        if name != "merged: one abrupt drop"
    }  # fmt: skip


@pytest.mark.slow
def test_figures_show_the_runs_they_name(runs):
    drawn = frame.pictures(study.PLATES, runs, runs)
    assert [picture.name for picture in drawn] == [
        "stairs", "directions", "matrices", "heights", "times", "controls"
    ]  # fmt: skip
    for picture in drawn:
        assert any(axis.title.text for axis in picture.figure.select_xaxes())
        assert any(axis.title.text for axis in picture.figure.select_yaxes())
        assert all(trace.hovertemplate for trace in picture.figure.data), picture.name
    maps = figures.matrices(runs).data
    shown = laws.plateaus(figures.shown(runs))
    assert len(maps) == len(shown) + 1
    for plateau, found in zip(shown, maps, strict=False):
        diagonal = np.diag(np.array(found.z, float))
        assert (diagonal > 1).sum() == plateau.components
