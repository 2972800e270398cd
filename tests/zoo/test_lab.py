"""The engine of laboratories, on a problem whose training has a closed form."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from workbench.errors import SchemaError, WorkbenchError
from workbench.schema import Variable
from workbench.zoo import lab
from workbench.zoo.trajectory import Law, Mark, Results, declare, read_dataset, write_dataset

RATE, TARGETS = 0.1, (1.0, -2.0, 3.0)
VARIABLES = (
    Variable("place", ("run", "step"), "m", -10.0, 10.0, "laboratory", "where the run is"),
    Variable("curve", ("run", "step", "point"), "1", 0.0, 1.0, "laboratory", "a longer one"),
)


def quadratic(targets=TARGETS, steps=60, name="plain", adam=False, **changed):
    """Runs that roll down 1/2 (x - target)^2: under SGD x_t = target (1 - (1 - rate)^t)."""
    goal = torch.tensor(targets)

    def measure(parameters):
        x = parameters["x"].numpy()
        return xr.Dataset(
            {
                "place": ("run", x.copy()),
                "curve": (("run", "point"), np.full((len(x), 4), 0.5, "float16")),
            },
            coords={"run": [f"t{t}" for t in targets], "kind": ("run", ["q"] * len(x))},
        )

    fields = {
        "name": name,
        "settings": {"targets": targets, "steps": steps},
        "runs": tuple(f"t{t}" for t in targets),
        "steps": steps,
        "logged": tuple(range(0, steps + 1, 10)),
        "start": lambda: {"x": torch.zeros(len(targets))},
        "batch": lambda step: torch.tensor(float(step)),
        "loss": lambda parameters, batch: 0.5 * (parameters["x"] - goal) ** 2,
        "optimiser": lambda parameters: (
            torch.optim.AdamW(parameters, RATE)
            if adam
            else torch.optim.SGD(parameters, RATE, momentum=0.0)
        ),
        "measure": measure,
        "variables": VARIABLES,
    }
    return lab.Stack(**{**fields, **changed})


def test_stacked_runs_follow_their_own_closed_form(tmp_path):
    done = []
    found = lab.run("toy", (quadratic(),), tmp_path / "a", lambda *args: done.append(args))
    data = found.trajectories["plain"]
    assert data["place"].dims == ("run", "step") and data["kind"].to_numpy().tolist() == ["q"] * 3
    goal = xr.DataArray(list(TARGETS), dims="run", coords={"run": data["run"]})
    expected = goal * (1 - (1 - RATE) ** data["step"])
    np.testing.assert_allclose(data["place"], expected, rtol=1e-5)
    about = {"units": "m", "long_name": "where the run is", "group": "laboratory"}
    assert data["place"].attrs == about
    assert data["curve"].dtype == np.float16
    np.testing.assert_array_equal(found.weights("plain")["x"], data["place"].isel(step=-1))
    assert done[-1][:2] == (60, 60) and "steps/s" in done[-1][2]
    assert found.about["cpu_seconds"].keys() == {"plain"}


@pytest.mark.parametrize("adam", [False, True])
def test_a_run_in_a_stack_is_the_run_alone(tmp_path, adam):
    together = lab.run("toy", (quadratic(adam=adam),), tmp_path / "all").trajectories["plain"]
    for i, target in enumerate(TARGETS):
        stack = quadratic((target,), adam=adam)
        alone = lab.run("toy", (stack,), tmp_path / f"{i}").trajectories["plain"]
        np.testing.assert_array_equal(together["place"][i], alone["place"][0])


def test_a_coordinate_with_dims_of_its_own_is_kept(tmp_path):
    """The baselines of a sweep: no variable has their dim, and they must not be lost."""

    def measure(parameters):
        found = quadratic().measure(parameters)
        baseline = (("predictor", "point"), [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 5.0]])
        labels = {"predictor": ["one", "two"], "point": [1, 2, 4, 8], "curve_baseline": baseline}
        return found.assign_coords(labels)

    found = lab.run("toy", (quadratic(measure=measure),), tmp_path / "a").trajectories["plain"]
    assert found["curve_baseline"].dims == ("predictor", "point")
    assert found["curve_baseline"].sel(predictor="two", point=8) == 5
    assert found["curve_baseline"].sel(predictor="one").to_numpy().tolist() == [1, 2, 3, 4]


def test_a_schedule_is_a_factor_on_every_rate(tmp_path):
    """Under SGD target - x shrinks by 1 - rate * factor at every step."""

    def halved(parameters):
        groups = [{"params": parameters, "lr": RATE / 2}]
        return torch.optim.SGD(groups, RATE, momentum=0.0)

    def falling(step):
        return lab.cosine(step, 60, 0.1)

    for i, (optimiser, rate) in enumerate(((quadratic().optimiser, RATE), (halved, RATE / 2))):
        stack = quadratic(schedule=falling, optimiser=optimiser)
        place = lab.run("toy", (stack,), tmp_path / f"{i}").trajectories["plain"]["place"]
        left = np.cumprod([1.0, *(1 - rate * falling(step) for step in range(60))])[::10]
        np.testing.assert_allclose(place, np.outer(TARGETS, 1 - left), rtol=1e-5)
        constant = np.outer(TARGETS, 1 - (1 - rate) ** np.arange(0, 61, 10))
        assert np.abs(place - constant).max() > 0.05, "the factor matters"
    assert (falling(0), falling(30), falling(60)) == pytest.approx((1, 0.55, 0.1))


def test_a_stopped_schedule_goes_on_where_it_was(tmp_path):
    def stop(done, total, message):
        if done >= 35:
            raise KeyboardInterrupt

    def stack(**changed):
        return quadratic(adam=True, schedule=lambda step: lab.cosine(step, 60, 0.0), **changed)

    with pytest.raises(KeyboardInterrupt):
        lab.run("toy", (stack(),), tmp_path / "a", stop, checkpoint_every=10)
    steps = []
    resumed = stack(batch=steps.append)
    found = lab.run("toy", (resumed,), tmp_path / "a", checkpoint_every=10)
    assert steps == list(range(30, 60))
    whole = lab.run("toy", (stack(),), tmp_path / "b").trajectories["plain"]
    xr.testing.assert_identical(found.trajectories["plain"], whole)
    constant = lab.run("toy", (quadratic(adam=True),), tmp_path / "c").trajectories["plain"]
    assert np.abs(whole["place"] - constant["place"]).max() > 0.1


SCRIPT = """
    import os, signal, sys
    sys.path.insert(0, sys.argv[1])
    from dataclasses import replace
    from test_lab import quadratic
    from workbench.zoo import lab

    def batch(step):
        if step == 37:
            os.kill(os.getpid(), signal.SIGKILL)
    stacks = (quadratic(name="first", steps=20), replace(quadratic(adam=True), batch=batch))
    lab.run("toy", stacks, sys.argv[2], checkpoint_every=10)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
def test_a_killed_laboratory_goes_on_and_ends_with_the_same_bytes(tmp_path, root):
    code = textwrap.dedent(SCRIPT)
    here = str(root / "tests" / "zoo")
    died = subprocess.run(
        [sys.executable, "-c", code, here, str(tmp_path / "killed")],
        cwd=root, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL, died.stderr
    left = {p.name for p in (tmp_path / "killed").iterdir()}
    assert "plain.checkpoint.safetensors" in left and "first.trajectory.safetensors" in left
    with pytest.raises(SchemaError, match="unfinished"):
        Results(tmp_path / "killed")
    steps = []

    def once(step):
        steps.append(step)

    stacks = (quadratic(name="first", steps=20), quadratic(adam=True))
    resumed = (
        replace(stacks[0], start=lambda: pytest.fail("a finished stack is trained again")),
        replace(stacks[1], batch=once),
    )
    lab.run("toy", resumed, tmp_path / "killed", checkpoint_every=10)
    assert steps == list(range(30, 60)), "it went on at its last checkpoint"
    lab.run("toy", stacks, tmp_path / "whole", checkpoint_every=10)
    files = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == files
    for file in files:
        same = (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        assert same or file == "laboratory.json"


def test_ctrl_c_leaves_a_folder_that_goes_on(tmp_path):
    def stop(done, total, message):
        if done >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.run("toy", (quadratic(),), tmp_path / "a", stop, checkpoint_every=10)
    assert not [p for p in (tmp_path / "a").iterdir() if p.name.startswith(".")]
    found = lab.run("toy", (quadratic(),), tmp_path / "a")
    expected = lab.run("toy", (quadratic(),), tmp_path / "b")
    xr.testing.assert_identical(found.trajectories["plain"], expected.trajectories["plain"])
    again = replace(quadratic(), start=lambda: pytest.fail("trained again"))
    assert lab.run("toy", (again,), tmp_path / "a").path == found.path


def test_weights_are_kept_at_some_steps(tmp_path):
    """Under SGD x after t steps is target (1 - (1 - rate)^t), kept where it was asked for."""
    kept = (0, 7, 40)
    found = lab.run("toy", (quadratic(kept=kept), quadratic(name="bare")), tmp_path / "a")
    assert found.steps("plain") == (*kept, 60) and found.steps("bare") == (60,)
    for step in (*kept, 60):
        expected = np.array(TARGETS) * (1 - (1 - RATE) ** step)
        np.testing.assert_allclose(found.weights("plain", step)["x"], expected, rtol=1e-5)
    np.testing.assert_array_equal(found.weights("plain", 60)["x"], found.weights("plain")["x"])
    with pytest.raises(SchemaError, match=r"no weights of plain after step 8; .*0, 7, 40, 60"):
        found.weights("plain", 8)
    with pytest.raises(SchemaError, match=r"no weights of bare after step 7; .* after 60"):
        found.weights("bare", 7)
    assert found.stack_of("t1.0") == "plain"
    with pytest.raises(SchemaError, match=r"no run 't9' in a; it has t1.0, t-2.0"):
        found.stack_of("t9")
    for wrong in ((7, 0), (60,), (-1,), (7, 7)):
        with pytest.raises(WorkbenchError, match="ascending steps below its last, 60"):
            quadratic(kept=wrong)
    with pytest.raises(WorkbenchError, match="other settings"):
        lab.run("toy", (quadratic(), quadratic(name="bare")), tmp_path / "a")


def test_kept_weights_are_checked_and_survive_a_stop(tmp_path):
    def stop(done, total, message):
        if done >= 35:
            raise KeyboardInterrupt

    stack = quadratic(adam=True, kept=(20, 33, 50))
    with pytest.raises(KeyboardInterrupt):
        lab.run("toy", (stack,), tmp_path / "a", stop, checkpoint_every=10)
    lab.run("toy", (stack,), tmp_path / "a", checkpoint_every=10)
    lab.run("toy", (stack,), tmp_path / "b", checkpoint_every=10)
    for step in stack.kept:
        name = f"plain.step{step}.safetensors"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    place = tmp_path / "a" / "plain.step33.safetensors"
    content = bytearray(place.read_bytes())
    content[-2] ^= 1
    place.write_bytes(content)
    with pytest.raises(SchemaError, match=r"plain\.step33\.safetensors .* corrupt"):
        Results(tmp_path / "a").weights("plain", 33)
    place.unlink()
    with pytest.raises(SchemaError, match=r"plain\.step33\.safetensors"):
        Results(tmp_path / "a")


def test_other_settings_and_other_contents_are_refused(tmp_path):
    lab.run("toy", (quadratic(),), tmp_path / "a")
    for name, stack in (("toy", quadratic((1.0,))), ("other", quadratic())):
        with pytest.raises(WorkbenchError, match="other settings"):
            lab.run(name, (stack,), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("years of work")
    with pytest.raises(WorkbenchError, match="not empty"):
        lab.run("toy", (quadratic(),), tmp_path / "b")
    assert (tmp_path / "b" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(WorkbenchError, match="different names"):
        lab.run("toy", (quadratic(), quadratic()), tmp_path / "c")
    with pytest.raises(WorkbenchError, match="different names"):
        quadratic(runs=("a", "a"))
    with pytest.raises(WorkbenchError, match="ascending"):
        quadratic(logged=(0, 10))


def test_broken_files_are_named(tmp_path):
    found = lab.run("toy", (quadratic(),), tmp_path / "a")
    place = tmp_path / "a" / "plain.trajectory.safetensors"
    whole = place.read_bytes()
    place.write_bytes(whole[:-1] + b"?")
    with pytest.raises(SchemaError, match=r"plain\.trajectory\.safetensors .* corrupt"):
        Results(tmp_path / "a").trajectories  # noqa: B018 - the access is the test
    place.write_bytes(whole[:-10])
    with pytest.raises(SchemaError, match=r"plain\.trajectory\.safetensors .* truncated"):
        Results(tmp_path / "a")
    place.write_bytes(whole)
    with pytest.raises(SchemaError, match="no stack 'plane'"):
        found.weights("plane")
    with pytest.raises(SchemaError, match="no laboratory"):
        Results(tmp_path)
    with pytest.raises(SchemaError, match="holds no trajectory"):
        read_dataset(tmp_path / "a" / "plain.weights.safetensors")


def test_a_foreign_checkpoint_and_a_list_with_gaps_are_named(tmp_path):
    def stop(done, total, message):
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.run("toy", (quadratic(),), tmp_path / "a", stop, checkpoint_every=10)
    now = quadratic(start=lambda: {"x": torch.zeros(3), "y": torch.zeros(3)})
    with pytest.raises(WorkbenchError, match=r"no checkpoint of stack plain .* delete it"):
        lab.run("toy", (now,), tmp_path / "a")
    lab.run("toy", (quadratic(kept=(20,)),), tmp_path / "b")
    place = tmp_path / "b" / "laboratory.json"
    whole = json.loads(place.read_text())
    files = {name: value for name, value in whole["files"].items() if "step20" not in name}
    for broken, says in (
        (whole | {"files": files}, r"does not list plain\.step20\.safetensors"),
        ({name: value for name, value in whole.items() if name != "stacks"}, "no 'stacks'"),
    ):
        place.write_text(json.dumps(broken))
        with pytest.raises(SchemaError, match=says):
            Results(tmp_path / "b")


def test_a_run_that_diverges_is_named(tmp_path):
    def loss(parameters, batch):
        return torch.where(batch > 5, torch.tensor([1.0, torch.nan, 1.0]), 1.0) * parameters["x"]

    with pytest.raises(WorkbenchError, match=r"run t-2.0 of stack plain diverged at step 6"):
        lab.run("toy", (quadratic(loss=loss),), tmp_path)


def test_threads_are_put_back(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = []
    stack = quadratic(batch=lambda step: seen.append(torch.get_num_threads()))
    lab.run("toy", (stack,), tmp_path)
    assert set(seen) == {1} and torch.get_num_threads() == 2
    torch.set_num_threads(before)


# --- what is stored -------------------------------------------------------------------------


def test_a_dataset_comes_back_as_it_went(tmp_path):
    rng = np.random.default_rng(0)
    data = xr.Dataset(
        {
            "a": (("run", "step"), rng.normal(size=(2, 3)).astype("float32"), {"units": "nats"}),
            "b": (("run", "token"), np.array([[1, 2], [3, 4]], "int64"), {}),
            "c": ("step", np.array([1.5, np.nan, 3], "float16"), {"long_name": "x"}),
        },
        coords={
            "run": ["r0", "r1"],
            "step": [0, 5, 9],
            "token": ["é", "<s>"],
            "seed": ("run", [3, 4]),
            "grid": (("run", "step"), [[1, 2, 3], [4, 5, 6]]),
            "once": 7,
        },
    )
    write_dataset(tmp_path / "x.safetensors", data)
    back = read_dataset(tmp_path / "x.safetensors")
    xr.testing.assert_identical(back, data)
    assert [back[name].dtype for name in "abc"] == [np.float32, np.int64, np.float16]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.assign(more=d["place"]), "'more' is either"),
        (lambda d: d.drop_vars("curve"), "'curve' is either"),
        (lambda d: d.assign(place=d["place"].T), "place has dims"),
        (lambda d: d.assign(place=d["place"] + 11), r"place leaves its bounds \[-10.0, 10.0\] m"),
    ],
)
def test_what_is_not_as_declared_is_refused(change, says):
    zeros = xr.Dataset(
        {
            "place": (("run", "step"), np.zeros((2, 3))),
            "curve": (("run", "step", "point"), np.full((2, 3, 4), np.nan)),
        }
    )
    assert declare(zeros, VARIABLES)["place"].attrs["units"] == "m"
    with pytest.raises(SchemaError, match=says):
        declare(change(zeros), VARIABLES)


@pytest.mark.parametrize(
    ("sign", "value", "null", "verdict"),
    [
        ("<", 0.4, 0.6, "held"),
        ("<", 0.6, 0.7, "not held"),
        ("<", 0.4, 0.3, "not held"),
        (">", 0.6, 0.1, "held"),
        (">", 0.5, 0.1, "not held"),
        (">", 0.6, 0.7, "not held"),
        (">", 0.6, float("nan"), "not held"),
        ("<", float("nan"), 0.7, "not applicable"),
    ],
)
def test_a_law_holds_when_its_value_meets_the_mark_and_its_control_does_not(
    sign, value, null, verdict
):
    law = Law("n", "s", "t", Mark(sign, 0.5), value, "c", null)
    assert law.verdict == verdict and law.held == (verdict == "held")


def test_a_mark_is_above_or_below():
    with pytest.raises(SchemaError, match="'='"):
        Mark("=", 0.5)
