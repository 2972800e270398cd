"""The induction study: its quick setting end to end, laws that fail without their effect."""

import json
import time

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from workbench import cli, zoo
from workbench.studies import induction as study
from workbench.studies import induction_figures as figures
from workbench.studies import induction_removal as removal
from workbench.studies import study as frame
from workbench.zoo.claims import by_setting, findings
from workbench.zoo.induction import laws, recipe
from workbench.zoo.induction.claims import CLAIMS, CONTROL, ONE, SMEARED, TWO
from workbench.zoo.trajectory import Results

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
BY_NAME = {claim.name: claim for claim in CLAIMS}
APPLY = {claim.name for claim in CLAIMS if not claim.whole}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick study by the command: (folder, output, CPU seconds)."""
    folder = tmp_path_factory.mktemp("studies") / "quick"
    began = time.process_time()
    result = CliRunner().invoke(cli.app, ["study", "induction", "--quick", "--out", str(folder)])
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return folder, result, time.process_time() - began


@pytest.fixture(scope="module")
def shipped():
    """Evidence from the shipped laboratory: two seeds of two layers and of one."""
    results = zoo.laboratory("induction")
    removed = removal.icl_without(results, recipe.shipped())
    return laws.Evidence(by_setting(results.trajectories), removed)


def verdicts(evidence, only=None):
    return {f.law.name: f.law.verdict for f in findings(evidence, CLAIMS, only)}


def test_laws_and_settings_fit_together():
    assert len(BY_NAME) == len(CLAIMS)
    made = {setting.name for stack in recipe.small() for setting in stack.settings}
    assert made == {TWO, ONE, SMEARED, CONTROL}
    assert study.Config().laws() == list(BY_NAME) and set(study.Config("quick").laws()) == APPLY
    assert json.dumps(study.Config().to_json())
    quick_runs, runs = (
        sum(len(stack.settings) for stack in stacks) for stacks in (recipe.quick(), recipe.small())
    )
    assert f"{quick_runs} runs of 600 steps in place of {runs} of" in study.Config("quick").banner()


def test_laws_need_the_controls_they_name():
    for claim in CLAIMS:
        if "without favourites" in claim.control:
            assert CONTROL in claim.needs, claim.name
    trained = {setting.name for stack in recipe.quick() for setting in stack.settings}
    assert all(set(claim.needs) <= trained for claim in CLAIMS)


@pytest.mark.slow
def test_quick_is_quick_says_so_and_leaves_its_tables(quick):
    folder, result, seconds = quick
    print(f"{seconds:.1f} CPU seconds")
    assert seconds < 40
    assert result.stdout.splitlines()[-1].startswith("laws: ")
    about = json.loads((folder / "study.json").read_text())
    assert about["finished"] and about["seeds"] == [0] and about["config"]["size"] == "quick"
    table = pd.read_parquet(folder / "laws.parquet").set_index("law")
    assert set(table.index[table["verdict"] != "not applicable"]) == APPLY
    assert set(table.loc[table["required"], "source"]) == {laws.OLSSON}
    curves = pd.read_parquet(folder / "tables" / "curves.parquet")
    assert set(curves["run"]) == {f"{setting}-s0" for setting in (TWO, ONE, SMEARED, CONTROL)}
    removed = pd.read_parquet(folder / "tables" / "removal.parquet")
    assert removed["run"].tolist() == ["two-layers-s0"]
    assert "Quick look" in (folder / "report.html").read_text()
    runs = by_setting(Results(folder / study.LABORATORY).trajectories)
    # Smeared keys: one layer matches prefixes, and the one beside it does not.
    assert laws.prefix(runs[SMEARED][0])[-1] > 0.5 > 0.2 > laws.prefix(runs[ONE][0])[-1]


def test_laws_hold_for_the_shipped_runs_and_fail_with_one_layer_for_two(shipped):
    one = {"two layers learn from the context", "the loss falls with ln(position)",
           "induction heads form", "and the window is short", "both in the same window",
           "the first layer looks back", "without induction heads no ICL"}  # fmt: skip
    found = verdicts(shipped)
    assert {found[name] for name in one} == {"held"}, found
    swapped = laws.Evidence({TWO: shipped.runs[ONE], ONE: shipped.runs[TWO]})
    read = one - {"both in the same window", "without induction heads no ICL"}
    assert {name for name, verdict in verdicts(swapped, read).items() if verdict == "held"} == set()


def test_laws_of_the_change_fail_on_the_plateau(shipped):
    """Everything as it is after 100 steps; only copying is there already."""
    early = {
        setting: [run.isel(step=slice(0, 5)) for run in runs]
        for setting, runs in shipped.runs.items()
    }
    found = verdicts(laws.Evidence(early))
    for name in ("two layers learn from the context", "induction heads form",
                 "the first layer looks back", "and the window is short"):  # fmt: skip
        assert found[name] == "not held", name


def test_removal_takes_the_heads_it_names(shipped):
    run = shipped.runs[TWO][0]
    roles = removal.heads_of(run)
    end = run.isel(step=-1)
    assert roles["nothing"] == [] and all(
        head.startswith("L1") for head in roles["induction heads"]
    )
    back = {f"L0H{i}": float(end["previous"][0, i]) for i in range(2)}
    assert roles["previous-token head"] == [max(back, key=lambda head: back[head])]
    assert roles["other head"] == [min(back, key=lambda head: back[head])]
    # Nothing removed: the exported model has the score that was logged, on other texts.
    for one in shipped.runs[TWO]:
        score = shipped.icl[figures.name_of(one)]["nothing"]
        assert score == pytest.approx(float(laws.icl(one)[-1]), abs=0.1)


# Statistics


def made(icl, prefix, steps=(0, 10, 20, 30, 40), early=(3.0, 2.0, 2.0, 2.0, 2.0)):
    """A run with planted numbers."""
    loss = np.repeat(np.array(early)[:, None], 8, axis=1)
    heads = np.stack([np.zeros(5), np.array(prefix)], axis=1)[:, None]
    return xr.Dataset(
        {
            "icl": ("step", np.array(icl, float)),
            "prefix": (("step", "layer", "head"), heads),
            "loss_at": (("step", "position"), loss),
        },
        coords={"step": list(steps), "run": "two-layers-s0", "setting": TWO, "seed": 0},
    )


def test_half_times_lie_between_logged_steps():
    run = made([0, 0, -0.2, -1.0, -1.0], [0, 0, 0.5, 0.8, 0.8])
    assert laws.half_time(run, laws.icl(run)) == pytest.approx(20 + 10 * 0.3 / 0.8)
    assert laws.half_time(run, laws.prefix(run)) == pytest.approx(18)
    assert laws.half_time(run, laws.early_loss(run)) == pytest.approx(5)
    assert laws.apart(run, laws.prefix(run), laws.icl(run)) == pytest.approx(23.75 / 18)
    assert np.isnan(laws.half_time(run, np.ones(5)))
    # A fifth of 40 steps is 8: the fall within the next logged step.
    assert laws.window_gain(run) == pytest.approx(0.8)


def test_a_change_apart_from_the_heads_fells_the_window():
    claim = BY_NAME["both in the same window"]
    together = made([0, 0, -0.2, -1.0, -1.0], [0, 0, 0.2, 0.8, 0.8])
    before = made([0, -1.0, -1.0, -1.0, -1.0], [0, 0, 0, 0.1, 0.8])
    assert claim.law(laws.Evidence({TWO: [together]}))[0].held
    assert not claim.law(laws.Evidence({TWO: [together, before]}))[0].held


def test_shares_left_are_of_the_whole_model():
    icl = {"a": {"nothing": -1.0, "induction heads": -0.1, "other head": -0.9},
           "b": {"nothing": -0.5, "induction heads": 0.05, "other head": -0.45}}  # fmt: skip
    evidence = laws.Evidence({}, icl)
    assert evidence.left("induction heads") == pytest.approx([0.1, -0.1])
    claim = BY_NAME["without induction heads no ICL"]
    assert claim.law(evidence)[0].held
    turned = {run: of | {"induction heads": of["other head"]} for run, of in icl.items()}
    assert not claim.law(laws.Evidence({}, turned))[0].held


# Figures


def test_axes_are_named_and_hover_says_what(shipped):
    drawn = frame.pictures(study.PLATES, shipped, shipped.runs)
    assert [picture.name for picture in drawn] == [plate.name for plate in study.PLATES]
    for picture in drawn:
        assert any(axis.title.text for axis in picture.figure.select_xaxes())
        assert any(axis.title.text for axis in picture.figure.select_yaxes())
        assert all(trace.hovertemplate for trace in picture.figure.data), picture.name


def test_figures_show_the_runs_they_name(shipped):
    times = figures.half_times(shipped)
    assert {name for trace in times.data for name in trace.y} == {"two-layers-s0", "two-layers-s1"}
    windows = figures.windows(shipped)
    assert len(windows.data) == 3 * 4
    positions = {trace.name: np.array(trace.y) for trace in figures.positions(shipped).data}
    assert (positions["Bayes"][4:] < positions["without context"][4:]).all()
    assert positions["two layers, step 1000"][-1] < positions["one layer, at the end"][-1] - 0.3
    patterns = figures.patterns(shipped)
    late = np.array(patterns.data[5].z)
    queries = np.arange(16, 31)
    assert late[queries, queries - 14].mean() > 0.5


def test_one_study_among_the_others():
    from workbench.studies import registry

    assert registry.find("induction") is study.STUDY
