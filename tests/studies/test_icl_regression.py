"""The icl-regression study: its quick setting end to end, laws that fail without their effect."""

import json
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench import cli
from workbench.studies import icl_regression as study
from workbench.studies import icl_regression_figures as figures
from workbench.studies import icl_regression_panels as panels
from workbench.studies import study as frame
from workbench.zoo.claims import findings
from workbench.zoo.regression import laws, recipe, training
from workbench.zoo.regression.claims import CLAIMS
from workbench.zoo.trajectory import Results

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
BY_NAME = {claim.name: claim for claim in CLAIMS}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick study by the command: (folder, output, CPU seconds)."""
    folder = tmp_path_factory.mktemp("studies") / "quick"
    began = time.process_time()
    result = CliRunner().invoke(
        cli.app, ["study", "icl-regression", "--quick", "--out", str(folder)]
    )
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return folder, result, time.process_time() - began


@pytest.fixture(scope="module")
def evidence(quick):
    results = Results(quick[0] / study.LABORATORY)
    return laws.look(training.runs(results, recipe.quick()))


def verdicts(evidence, only=None):
    return {f.law.name: f.law.verdict for f in findings(evidence, CLAIMS, only)}


def test_laws_and_settings_fit_together():
    assert len(BY_NAME) == len(CLAIMS)
    made = {setting.name for stack in recipe.small() for setting in stack.settings}
    assert {setting for claim in CLAIMS for setting in claim.needs} <= made
    assert study.Config().laws() == list(BY_NAME)
    left_out = set(BY_NAME) - set(study.Config("quick").laws())
    whole = {claim.name for claim in CLAIMS if claim.whole}
    assert whole < left_out
    missing = {"h4", "coloured", "tasks-h3"}
    assert all(missing & set(BY_NAME[name].needs) for name in left_out - whole)
    assert "default" in study.STUDY.configs and json.dumps(study.Config().to_json())


@pytest.mark.slow
def test_quick_is_quick_says_so_and_its_laws_hold(quick):
    _, result, seconds = quick
    print(f"{seconds:.1f} CPU seconds")
    assert seconds < 30
    lines = result.stdout.splitlines()
    assert lines[-1] == "laws: 18 held, 0 not held, 10 not applicable"
    assert any(line.startswith("setting  Quick look") for line in lines)


@pytest.mark.slow
def test_quick_leaves_tables_and_provenance(quick):
    folder, _, _ = quick
    about = json.loads((folder / "study.json").read_text())
    assert about["finished"] and about["seeds"] == [0, 1] and about["config"]["size"] == "quick"
    table = pd.read_parquet(folder / "laws.parquet").set_index("law")
    required = table.index[table["required"]]
    assert set(table.loc[required, "source"]) == {laws.HE, laws.AHN}
    assert (table["n"] > 0).eq(table["verdict"] != "not applicable").all()
    final = pd.read_parquet(folder / "tables" / "final.parquet")
    assert set(final["run"]) == {
        "h1-s0", "opposite-s0", "opposite-s1", "same-s0", "same-s1"
    } and sorted(set(final["length"])) == list(training.LENGTHS)  # fmt: skip
    assert (final["ridge"] < final["risk"]).all()
    curves = pd.read_parquet(folder / "tables" / "curves.parquet")
    assert {"run", "step", "risk", "eta", "zero_sum"} <= set(curves) and curves[
        "step"
    ].max() == 1000
    traps = pd.read_parquet(folder / "tables" / "traps.parquet").set_index("heads")
    assert (traps["flow"] < traps["one_sign"]).all()
    text = (folder / "report.html").read_text()
    for words in ("Debiasing is not an improvement here", "an upper bound of the trap"):
        assert words in text


@pytest.mark.slow
def test_no_law_of_a_network_holds_before_training(evidence):
    untrained = {
        setting: [run.isel(step=[0]).assign(final=run["baseline"].sel(predictor="zero", drop=True))
                  for run in runs]
        for setting, runs in evidence.runs.items()
    }  # fmt: skip
    found = verdicts(replace(evidence, runs=untrained), study.Config("quick").laws())
    # These are about the flow of the reduced loss, or about simple predictors.
    apart = {c.name for c in CLAIMS if not c.needs}
    apart |= {"debiasing costs", "and with linear attention / L"}
    assert "held" not in {verdict for name, verdict in found.items() if name not in apart}


@pytest.mark.slow
def test_laws_fail_where_their_effect_is_taken_away(evidence):
    assert set(verdicts(evidence, study.Config("quick").laws()).values()) == {
        "held", "not applicable"
    }  # fmt: skip
    swapped = {
        **evidence.runs,
        "opposite": evidence.runs["same"],
        "same": evidence.runs["opposite"],
    }
    found = verdicts(replace(evidence, runs=swapped), study.Config("quick").laws())
    assert found["the same sign is a trap"] == "not held"
    flipped = replace(evidence, opposite=evidence.same, same=evidence.opposite)
    flow = ["omega falls as t^(-1/6)", "excess loss falls as t^(-2/3)"]
    found = verdicts(flipped, flow)
    assert [found[name] for name in flow] == ["not held"] * 2


# Statistics


def made(risks, steps=(0, 100, 200, 400), omega=((0.5, -0.5),) * 4, setting="h2", seed=0):
    """A run with a planted risk."""
    import xarray as xr

    return xr.Dataset(
        {
            "risk": ("step", np.array(risks, float)),
            "omega": (("step", "head"), np.array(omega, float)),
            "mu": (("step", "head", "task"), np.ones((4, 2, 1))),
        },
        coords={"step": list(steps), "run": f"{setting}-s{seed}", "setting": setting, "seed": seed},
    )


def test_fates_are_read_from_the_half_and_the_end():
    assert laws.fate(made([1.1, 0.4, 0.25, 0.24])) == "solved"
    assert laws.fate(made([1.1, 0.4, 0.35, 0.25])) == "late"
    assert laws.fate(made([1.1, 0.4, 0.40, 0.40])) == "stuck"


def test_the_shrinking_of_omega_is_from_its_maximum():
    omega = ((0.1, -0.1), (0.6, -0.4), (0.4, -0.4), (0.2, -0.2))
    assert laws.shrunk(made([1.1, 0.4, 0.25, 0.24], omega=omega)) == pytest.approx(0.4)


def test_counts_of_stuck_runs_against_rates(evidence):
    stuck, solved = made([1.1, 0.4, 0.4, 0.4]), made([1.1, 0.4, 0.25, 0.24])
    runs = {"h2": [stuck] * 12 + [solved] * 12, "h4": [solved] * 12, "same": [stuck]}
    planted = replace(evidence, runs=runs)
    counts = laws.stuck_counts(planted)
    assert counts == {2: (12, 24), 4: (0, 12)}
    # 12 of 24 is the likeliest at 1/2; 0 of 12 at 1/8 has (7/8)^12 and what is no likelier.
    p_two, p_four = laws.agreement(counts, lambda heads: 2.0 ** (1 - heads))
    assert p_two == pytest.approx(1) and p_four > (7 / 8) ** 12
    assert min(laws.agreement(counts, lambda _: 0.5)) == pytest.approx(2 * 0.5**12)
    law, n = BY_NAME["how often: 2^(1-H)"].law(planted)
    assert law.held and n == 2
    every = replace(evidence, runs={**runs, "h4": [stuck] * 12})
    assert not BY_NAME["how often: 2^(1-H)"].law(every)[0].held
    table = study._traps(planted).set_index("heads")
    assert table.loc[2, "trained_stuck"] == 12 and np.isnan(table.loc[3, "trained_stuck"])


def test_superposition_wants_both():
    def run(off_e, zero_sum):
        one = made([1.1, 0.4, 0.25, 0.24], setting="tasks-h3")
        return one.assign(off_e=("step", [off_e] * 4), zero_sum=("step", [zero_sum] * 4))

    claim = BY_NAME["by superposition"]

    def law(three, evidence):
        runs = {"tasks-h3": [run(*three)], "tasks-h2": [run(0.3, 0.01), run(0.01, 0.7)]}
        return claim.law(replace(evidence, runs=runs))[0]

    none = laws.Evidence({}, [], [], {})
    assert law((0.002, 0.001), none).held and law((0.002, 0.001), none).null == 0.3
    assert not law((0.3, 0.001), none).held and not law((0.002, 0.7), none).held


# Figures


@pytest.mark.slow
def test_axes_are_named_and_hover_says_what(evidence):
    drawn = frame.pictures(study.PLATES, evidence, evidence.runs)
    assert [picture.name for picture in drawn] == [
        "phases", "circuits", "courses", "fates", "lengths", "flow"
    ]  # fmt: skip
    for picture in drawn:
        assert any(axis.title.text for axis in picture.figure.select_xaxes())
        assert all(trace.hovertemplate for trace in picture.figure.data), picture.name


@pytest.mark.slow
def test_figures_show_the_runs_they_name(evidence):
    fates = figures.fates(evidence)
    names = {trace.name: list(trace.customdata) for trace in fates.data}
    assert names["solved"] == ["opposite-s0", "opposite-s1"] and not names["late"]
    assert set(names["stuck"]) == {"h1-s0", "same-s0", "same-s1"}
    courses = figures.courses(evidence)
    assert len(courses.data) == 5
    swept = {trace.name: trace.y for trace in figures.lengths(evidence).data}
    assert len(swept) == 7
    assert swept["linear attention, divided by 40 throughout"][-1] > 10
    assert swept["two heads of softmax"][-1] < swept["one head of softmax"][-1]
    circuits = panels.circuits(evidence)
    kq = np.array(circuits.data[0].z)
    assert kq.shape == (6, 5) and np.abs(np.diag(kq[:5])).min() > 3 * np.abs(kq[5]).max()


def test_one_study_among_the_others():
    from workbench.studies import registry

    assert registry.find("icl-regression") is study.STUDY
    assert frame.closing_line([]) == "laws: 0 held, 0 not held, 0 not applicable"
