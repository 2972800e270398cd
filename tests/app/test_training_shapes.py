"""Matrices, sweeps, runs side by side and phases of a planted laboratory, without a browser."""

import json

import numpy as np
import pytest
import xarray as xr

from workbench.app import (
    laboratories,
    training_facts,
    training_figures,
    training_runs,
    training_shapes,
)
from workbench.app.pages import training
from workbench.app.server import build
from workbench.app.urls import LabState
from workbench.errors import WorkbenchError
from workbench.runfiles import fingerprint
from workbench.zoo.trajectory import ABOUT, FORMAT, TRAJECTORY, VERSION, WEIGHTS, write_dataset
from workbench.zoo.trajectory import write as write_file

STEPS, ROWS, COLUMNS, LENGTHS = [0, 10, 100, 400], ["x0", "x1", "y0"], ["x0", "x1"], [5, 20, 80]
PLAIN, KNOWN = "~planted~lab", "~known~lab"
KQ = np.random.default_rng(0).normal(size=(3, 4, 2, 3, 2)).astype("float32")
RISKS = np.array([[1.1, 0.4, 0.25, 0.24], [1.1, 0.4, 0.4, 0.4], [1.1, 0.4, 0.4, 0.25]])


def trajectory() -> xr.Dataset:
    """Three runs of two heads: one that solves its task, one that sticks, one that is late."""
    over = RISKS[:, :, None] * np.array([2.0, 1.0, 0.5])
    zero_sum = np.array([[0.3, 1, 0.02, 0.01], [1, 1, 1, 1], [1, 1, 1, 0.01]])
    omega = np.array([0.1, 0.5, 0.4, 0.2])[None, :, None] * np.array([1, -1]) * np.ones((3, 1, 1))
    circuits = {"units": "logits", "group": "circuits", "long_name": "a circuit"}
    sweep = {"units": "squared label", "group": "sweep", "long_name": "risk elsewhere"}
    named = ("run", "step", "head", "coordinate", "query_coordinate")
    return xr.Dataset(
        {
            "risk": (("run", "step"), RISKS, {"units": "squared label", "group": "risk"}),
            "zero_sum": (("run", "step"), zero_sum, {"units": "share", "group": "pattern"}),
            "omega": (("run", "step", "head"), omega, {"units": "logits", "group": "heads"}),
            "mu": (("run", "step", "head", "task"), np.ones((3, 4, 2, 1)), {"group": "heads"}),
            "kq": (named, KQ, circuits),
            "risk_by_length": (("run", "step", "length"), over, sweep),
        },
        coords={
            "run": ["h2-s0", "h2-s1", "same-s0"], "setting": ("run", ["h2", "h2", "same"]),
            "step": STEPS, "head": [0, 1], "task": [0], "coordinate": ROWS,
            "query_coordinate": COLUMNS, "length": LENGTHS, "predictor": ["zero", "best"],
            "risk_by_length_baseline": (("predictor", "length"), [[1.1] * 3, [0.5, 0.2, 0.1]]),
        },
    )  # fmt: skip


def write(folder, name, data=None):
    """A folder as `zoo.lab` leaves it; the name decides whose package speaks about it."""
    folder.mkdir(parents=True)
    file = f"two{TRAJECTORY}"
    write_dataset(folder / file, trajectory() if data is None else data)
    weights = f"two{WEIGHTS}"
    write_file(folder / weights, {"w": np.zeros(1)}, {})
    about = {
        "format": FORMAT, "schema": VERSION, "name": name, "finished": True, "stacks": ["two"],
        "runs": {"two": ["h2-s0", "h2-s1", "same-s0"]}, "settings": {"two": {}}, "versions": {},
        "cpu_seconds": {"two": 1}, "created": "2026-01-02T03:04:05",
        "files": {name: fingerprint(folder / name) for name in (file, weights)},
    }  # fmt: skip
    (folder / ABOUT).write_text(json.dumps(about))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    write(root / "planted" / "lab", "planted")
    write(root / "known" / "lab", "icl-regression")
    return build(root, token=None).server


@pytest.fixture
def inside(server):
    with server.test_request_context("/"):
        yield


def facts(lab=KNOWN, **state):
    return training_facts.facts_of(LabState(lab, **state))


# Matrices


def test_a_matrix_is_one_block_per_label_with_the_scale_of_all_steps(inside, server):
    (found,) = facts()["matrices"]
    assert (found["name"], found["units"], found["signed"]) == ("kq", "logits", True)
    own, beside = found["runs"]
    assert (own["label"], beside["label"]) == ("h2-s0", "same-s0")
    assert own["blocks"] == ["head 0", "head 1"]
    assert (own["rows"], own["columns"]) == (ROWS, COLUMNS)
    assert (own["row_dim"], own["column_dim"]) == ("coordinate", "query coordinate")
    # One scale for both runs shown; the third run is not one of them.
    assert found["limit"] == pytest.approx(np.abs(KQ[[0, 2]]).max())
    reply = server.test_client().get(own["url"])
    sent = np.frombuffer(reply.data, "<f4").reshape(4, 2, 3, 2)
    np.testing.assert_array_equal(sent, KQ[0])
    other = server.test_client().get(beside["url"])
    np.testing.assert_array_equal(np.frombuffer(other.data, "<f4").reshape(4, 2, 3, 2), KQ[2])


def test_matrices_and_sweeps_are_no_curves(inside):
    data = facts()
    names = [row["name"] for row in data["rows"]]
    # One task is not named, two heads are.
    assert names == ["risk", "zero_sum", "omega head 0", "omega head 1", "mu head 0", "mu head 1"]
    assert data["curves"] == names and data["heads"] == []


def test_only_labelled_variables_of_the_group_are_matrices():
    data = trajectory().isel(run=0)
    assert [m.name for m in training_shapes.matrices(data)] == ["kq"]
    plain = data.assign(kq=data["kq"].assign_attrs(group="heads"))
    assert training_shapes.matrices(plain) == []
    assert training_shapes.matrices(data.drop_vars("coordinate")) == []
    wide = xr.DataArray(
        np.zeros((1, 129, 2)), dims=("step", "a", "b"), attrs={"group": "circuits"},
        coords={"a": range(129), "b": range(2)},
    )  # fmt: skip
    with pytest.raises(WorkbenchError, match=r"w has 129 rows and 2 columns; .* up to 128"):
        training_shapes.matrices(xr.Dataset({"w": wide}))


def test_of_layers_the_matrices_of_one_are_seen():
    data = trajectory().isel(run=0)
    deep = xr.concat([data, 2 * data], "layer").assign_coords(layer=[0, 1])
    deep = deep.assign({name: deep[name].assign_attrs(data[name].attrs) for name in data})
    (found,) = training_shapes.matrices(laboratories.at_layer(deep, "L1H0"))
    np.testing.assert_allclose(found.values, 2 * KQ[0], rtol=1e-6)
    assert found.blocks == ["head 0", "head 1"]


def test_a_wrong_name_of_a_matrix_says_which_there_are(server):
    reply = server.test_client().get(f"/lab-data/{PLAIN}/matrices?name=nothing")
    assert reply.status_code == 404 and "it has kq" in reply.text


# Sweeps


def test_a_sweep_has_its_line_at_every_step_and_what_does_not_move(inside):
    (found,) = facts()["sweeps"]
    assert found["title"] == "Risk by length" and "dotted: same-s0" in found["note"]
    beside, own = found["lines"]
    assert (beside["of"], own["of"]) == (1, 0)
    np.testing.assert_allclose(own["values"], RISKS[0][:, None] * [2, 1, 0.5], rtol=1e-3)
    np.testing.assert_allclose(beside["values"], RISKS[2][:, None] * [2, 1, 0.5], rtol=1e-3)
    (figure,) = training_facts.sweep_pictures(LabState(KNOWN), "light")
    assert [trace.name for trace in figure.data] == ["zero", "best", "same-s0", "h2-s0"]
    assert [own["trace"], beside["trace"]] == [3, 2]
    np.testing.assert_allclose(figure.data[3].y, own["values"][-1])
    assert list(figure.data[1].y) == [0.5, 0.2, 0.1]
    assert figure.layout.xaxis.title.text == "length, log scale"
    low, high = 10 ** np.array(figure.layout.yaxis.range)
    # Every step has room, not only the one that is drawn first.
    assert low < 0.1 and high > 2.2
    (alone,) = training_facts.sweep_pictures(LabState(KNOWN, beside="none"), "dark")
    assert [trace.name for trace in alone.data] == ["zero", "best", "h2-s0"]


@pytest.mark.parametrize("places", [np.arange(32.0), np.log(np.arange(1.0, 33.0))])
def test_names_under_an_axis_have_room(places):
    chosen = training_figures._apart(places)
    gaps = np.diff(places[chosen])
    assert chosen[0] == 0 and 5 <= len(chosen) <= training_figures.MOST_NAMES + 1
    assert gaps.min() >= np.ptp(places) / training_figures.MOST_NAMES - 1e-12


def test_sweeps_need_a_number_and_baselines_their_dims():
    data = trajectory().isel(run=0)
    assert len(training_shapes.sweeps(data)) == 1
    named = data.assign_coords(length=["a", "b", "c"])
    assert training_shapes.sweeps(named) == []
    known = data["risk_by_length_baseline"]
    turned = data.assign_coords(risk_by_length_baseline=known.transpose())
    with pytest.raises(WorkbenchError, match="risk_by_length_baseline has dims"):
        training_shapes.sweeps(turned)
    without = data.drop_vars("risk_by_length_baseline")
    assert training_shapes.sweeps(without)[0].baseline == {}


# Runs side by side, phases


def test_every_run_of_the_stack_has_its_curve_and_its_fate(inside):
    found = facts()["multiples"]
    assert [run["fate"] for run in found["runs"]] == ["solved", "stuck", "late"]
    assert [word["word"] for word in found["words"]] == ["solved", "late", "stuck"]
    np.testing.assert_allclose([run["values"] for run in found["runs"]], RISKS)
    assert (found["curve"], found["units"]) == ("risk", "squared label")
    other = facts(curve="omega head 1")["multiples"]
    np.testing.assert_allclose(other["runs"][2]["values"], [-0.1, -0.5, -0.4, -0.2])
    # The same trajectories under a name without a package: nothing is claimed about them.
    plain = facts(PLAIN)
    assert {run["fate"] for run in plain["multiples"]["runs"]} == {""}
    assert plain["multiples"]["words"] == [] == plain["phases"]


def test_phases_stand_at_their_steps_in_every_figure(inside):
    data = facts(run="two/same-s0")
    assert [(p["word"], p["step"], p["at"]) for p in data["phases"]] == [
        ("one-head plateau", 10, 1), ("symmetry breaking", 400, 3), ("zero sum", 400, 3),
    ]  # fmt: skip
    state = LabState(KNOWN, run="two/same-s0", axis="linear")
    for figure in training_facts.pictures(state, "light"):
        assert [shape.x0 for shape in figure.layout.shapes] == [10, 400]
        assert [note.text for note in figure.layout.annotations] == ["1", "2·3"]
    plain = training_facts.pictures(LabState(PLAIN), "light")
    assert not [shape for figure in plain for shape in figure.layout.shapes]


def test_a_package_is_not_asked_about_runs_without_its_variables(inside):
    results = laboratories.open_laboratory(KNOWN)
    data = laboratories.data_of(results, "two/h2-s0")
    assert laboratories.code_about(results, "phases", data)
    assert laboratories.code_about(results, "phases", data.drop_vars("zero_sum")) is None
    assert laboratories.code_about(results, "absent", data) is None


def test_small_panels_name_the_head_only_of_curves_that_have_one(inside):
    assert facts()["multiples"]["head"] == ""
    data = laboratories.open_laboratory("bigram-backcopy").trajectories["one-layer"].isel(run=0)
    assert training_runs._head_of(data, "L0H0", "sink_off") == "L0H0"
    assert training_runs._head_of(data, "L0H0", "excess_off") == ""


def test_a_matrix_too_large_to_draw_says_so_on_the_page(tmp_path):
    write(tmp_path / "lab", "planted", trajectory().isel(coordinate=[0] * 200))
    with build(tmp_path, token=None).server.test_request_context("/"):
        said = json.dumps(
            training.layout("~lab").to_plotly_json(), default=lambda c: c.to_plotly_json()
        )
    assert "kq has 200 rows" in said


def test_a_wrong_curve_says_which_there_are(inside):
    with pytest.raises(WorkbenchError, match="curve 'loss' is not in run h2-s0; it has risk, zero"):
        facts(curve="loss")


def test_numbers_of_phases_close_together_stand_in_two_rows(inside):
    one = laboratories.trained(laboratories.open_laboratory(KNOWN), "two/h2-s0", "")
    axis = training_figures.Axis("linear", 1, 400)
    figure = training_figures.base("light")
    object.__setattr__(one, "phases", {"a": 100, "b": 105, "c": 300})
    training_figures._phases(figure, one, axis, "#000000")
    heights = [note.y for note in figure.layout.annotations]
    assert heights[0] == heights[2] == 1 and heights[1] < 1
