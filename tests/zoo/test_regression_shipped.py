"""The regression laboratory as it is shipped: what its files say, without training."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench import zoo
from workbench.cli import app
from workbench.errors import WorkbenchError
from workbench.zoo.regression import card, closed, fates, measure, phases, recipe, shipped
from workbench.zoo.regression.claims import CLAIMS
from workbench.zoo.trajectory import TRAJECTORY, WEIGHTS

NAME = "icl-regression"


@pytest.fixture(scope="module")
def results():
    return zoo.laboratory(NAME)


def test_the_recipe_is_the_one_in_the_code(results):
    stored = {r.name: json.loads(json.dumps(r.to_json())) for r in recipe.small()}
    assert results.about["settings"] == stored
    assert results.about["name"] == NAME and results.about["finished"] is True
    for stack in recipe.small():
        data = results.trajectories[stack.name]
        assert data["run"].to_numpy().tolist() == [s.run for s in stack.settings]
        assert data["step"].to_numpy().tolist() == list(stack.logged)
        assert list(data.data_vars) == [v.name for v in measure.VARIABLES]
        assert {n: data[n].attrs["group"] for n in data} == {
            v.name: v.group for v in measure.VARIABLES
        }
        assert [data[v.name].attrs["long_name"] for v in measure.VARIABLES] == [
            v.about for v in measure.VARIABLES
        ]
        assert results.weights(stack.name)["q"].shape[:2] == (len(stack.settings), stack.heads)


def test_the_folder_is_whole_and_small(results):
    stacks = [stack.name for stack in recipe.small()]
    wanted = {f"{s}{kind}" for s in stacks for kind in (TRAJECTORY, WEIGHTS)}
    sizes = {p.name: p.stat().st_size for p in results.path.iterdir()}
    assert set(sizes) == wanted | {"laboratory.json", "CARD.md"}
    print(f"{sum(sizes.values()) / 1e6:.2f} MB")
    assert sum(sizes.values()) < 4_000_000


def test_the_card_is_made_of_the_files_and_lists_every_law(results):
    text = zoo.card(NAME)
    for part in (card._stacks(results.about), card._runs(results)):
        assert "\n".join(part) in text
    rows = re.findall(r"^\| (.+?) \|", text.split("## Laws")[1].split("## Runs")[0], re.MULTILINE)
    assert [row.replace("\\|", "|") for row in rows[1:]] == [claim.name for claim in CLAIMS]
    assert f"{len(CLAIMS)} of {len(CLAIMS)} are held" in text
    assert text.count("| held |") == len(CLAIMS)


def test_the_logged_scalars_say_what_the_paper_says(results):
    """Marks of the specification on the solved runs; the stuck ones are the control."""
    two = results.trajectories["two-heads"].isel(step=-1)
    words = np.array(
        [fates.fate(results.trajectories["two-heads"].isel(run=i)) for i in range(two.sizes["run"])]
    )
    solved, stuck = two.isel(run=words == "solved"), two.isel(run=words == "stuck")
    for name, bound in (("off_kq", 0.01), ("zero_sum", 0.02), ("ov_x", 0.01), ("to_dgd", 0.003)):
        print(f"{name}: solved up to {float(solved[name].max()):.2g}")
        assert float(solved[name].max()) < bound
    assert float(stuck["zero_sum"].min()) > 0.99 and float(stuck["to_dgd"].min()) > 0.03
    assert np.abs(solved["eta"] - 0.885).max() < 0.025
    over = solved["risk_over"]
    assert np.abs(over.sel(predictor="debiased GD") - 1).max() < 0.02
    assert float(stuck["risk_over"].sel(predictor="debiased GD").min()) > 1.4


def test_longer_prompts_help_as_the_length_sweep_of_the_paper(results):
    """Specification, two heads at 10, 40, 80, 160: .579, .239, .180, .149 on other prompts."""
    run = results.trajectories["two-heads"].sel(run="opposite-s0").isel(step=-1)
    found, known = run["risk_by_length"], run["risk_by_length_baseline"]
    ridge = known.sel(predictor="ridge")
    for length, ours, theirs in ((40, 0.239, 0.115), (80, 0.180, 0.108), (160, 0.149, 0.105)):
        ratio = float(found.sel(length=length)) / float(ridge.sel(length=length))
        print(f"{length}: risk / ridge {ratio:.2f}, specification {ours / theirs:.2f}")
        assert ratio == pytest.approx(ours / theirs, rel=0.12)
    unscaled = known.sel(predictor="linear, 1/L")
    assert float(unscaled.sel(length=160)) > 3 > 0.2 > float(found.sel(length=160))
    # The stored numbers are those of the closed forms on the prompts of the recipe.
    longest = recipe.PLAIN.prompts(512, 42, 160)
    again = closed.references(longest.first(10), recipe.PLAIN)
    assert float(ridge.sel(length=10)) == pytest.approx(again["ridge"])


def test_phases_tell_solved_runs_from_stuck_ones(results):
    two = results.trajectories["two-heads"]
    for i in range(two.sizes["run"]):
        run = two.isel(run=i)
        begun, word = phases.begin(run), fates.fate(run)
        assert ("zero sum" in begun) == (word != "stuck"), str(run["run"].item())
        steps = list(begun.values())
        assert steps == sorted(steps)
        if word == "stuck":
            assert list(begun) == ["one-head plateau"]
    assert list(phases.begin(two.sel(run=shipped.DEFAULT_RUN))) == list(phases.WORDS)


@pytest.mark.parametrize("run", ["", "/h4-s0"])
def test_runs_are_no_language_models_and_say_so(run):
    named = run or f"/{shipped.DEFAULT_RUN}"
    with pytest.raises(WorkbenchError, match=f"zoo:{NAME}{named} is no language model"):
        wb.load(f"zoo:{NAME}{run}")


def test_reading_loads_no_torch():
    code = (
        "import sys; from workbench import zoo;"
        f"data = zoo.laboratory({NAME!r}).trajectories['two-heads'].isel(run=0);"
        "[zoo.code_of('icl-regression', n) for n in ('fates', 'phases')];"
        "zoo.code_of('icl-regression', 'phases').begin(data);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_knows_it():
    listed = CliRunner().invoke(app, ["zoo", "list"]).output
    assert f"zoo:{NAME}" in listed and "83 runs" in listed
    shown = CliRunner().invoke(app, ["zoo", "card", NAME]).output
    assert shown.startswith(f"# {NAME}") and "no language model" not in shown
