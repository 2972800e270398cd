"""The training page without a browser, on a planted laboratory that is not the shipped one."""

import io
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from app_trained import STEPS, TOKENS, trajectory, write_laboratory

from workbench import zoo
from workbench.app import laboratories, readings, training_facts, training_figures
from workbench.app.pages import runs, training
from workbench.app.server import build
from workbench.app.store import Store
from workbench.app.urls import LabState, decode, encode
from workbench.errors import WorkbenchError

PLANTED = "~studies~planted~laboratory"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    write_laboratory(folder / "studies" / "planted" / "laboratory")
    write_laboratory(folder / "unfinished", finished=False)
    return folder


@pytest.fixture(scope="module")
def server(root):
    return build(root, token=None).server


@pytest.fixture
def client(server):
    return server.test_client()


@pytest.fixture
def inside(server):
    with server.test_request_context("/"):
        yield


@pytest.fixture
def planted(inside):
    return laboratories.open_laboratory(PLANTED)


def words(component) -> str:
    return json.dumps(component.to_plotly_json(), default=lambda c: c.to_plotly_json())


def facts(lab: str = PLANTED, **state) -> dict:
    return training_facts.facts_of(LabState(lab, **state))


def row(data: dict, name: str) -> dict:
    return next(r for r in data["rows"] if r["name"] == name)


# --- which laboratories there are -------------------------------------------------------------


def test_shipped_and_found_laboratories_are_listed_and_broken_ones_say_why(inside):
    found = {entry.id: entry for entry in laboratories.entries()}
    assert set(found) == {*zoo.laboratories(), PLANTED, "~unfinished"}
    assert found[PLANTED].title == "studies/planted/laboratory"
    assert "unfinished laboratory" in found["~unfinished"].problem
    home = words(runs.layout())
    assert f'"/lab/{PLANTED}"' in home and '"/lab/bigram-backcopy"' in home
    assert '"/lab/~unfinished"' not in home


def test_only_folders_below_the_served_one_are_found(tmp_path):
    served, outside = tmp_path / "served", tmp_path / "outside"
    write_laboratory(outside)
    write_laboratory(served / "run" / "laboratory")
    (served / "run" / "manifest.json").write_text("{}")
    write_laboratory(served / "a" / "b" / "c" / "d" / "too-deep")
    (served / "link").symlink_to(outside)
    with build(served, token=None).server.test_request_context("/"):
        assert {e.id for e in laboratories.entries()} == set(zoo.laboratories())
        for name in ("~link", "~..~outside", "~run~laboratory", "~"):
            with pytest.raises(WorkbenchError):
                laboratories.open_laboratory(name)


def test_a_laboratory_made_again_is_read_again(tmp_path):
    folder = write_laboratory(tmp_path / "served" / "lab")
    with build(tmp_path / "served", token=None).server.test_request_context("/"):
        before = laboratories.open_laboratory("~lab")
        assert laboratories.open_laboratory("~lab") is before
        shutil.rmtree(folder)
        write_laboratory(folder)
        assert laboratories.open_laboratory("~lab") is not before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"runs": 3}, "has no 'runs' that can be read"),
        ({"versions": None}, "has no 'versions' that can be read"),
        ({"runs": {}}, "lists no runs of deep"),
    ],
)
def test_a_damaged_laboratory_says_so_and_leaves_the_others_alone(tmp_path, changed, said):
    write_laboratory(tmp_path / "damaged", **changed)
    write_laboratory(tmp_path / "whole")
    with build(tmp_path, token=None).server.test_request_context("/"):
        assert said in words(training.layout("~damaged"))
        assert said in json.dumps([words(card) for card in training.cards()])
        assert "lab-numbers" in words(training.layout("~whole"))


def test_a_run_that_is_only_listed_says_so(tmp_path):
    write_laboratory(tmp_path / "lab", runs={"deep": ["sinks-s0", "control-s0", "ghost"]})
    with build(tmp_path, token=None).server.test_request_context("/"):
        assert "lists run deep/ghost, but its trajectory has" in words(training.layout("~lab"))


def shallow(setting: str) -> xr.Dataset:
    """The planted runs cut to one layer, both of one setting, under the same labels."""
    data = trajectory().isel(layer=[0], stream=[0, 1])
    return data.assign_coords(setting=("run", [setting] * 2)) if setting else data


@pytest.mark.parametrize(
    ("stacks", "beside"),
    [
        ({"deep": trajectory(), "flat": shallow("flat")}, "deep/control-s0"),
        ({"deep": trajectory().isel(run=[0]), "flat": shallow("flat"), "wide": trajectory()},
         "wide/control-s0"),
        ({"deep": trajectory().isel(run=[0]), "flat": shallow("flat")}, "flat/sinks-s0"),
        ({"deep": trajectory().drop_vars("setting"), "seed": trajectory().drop_vars("setting"),
          "flat": shallow("").drop_vars("setting")}, "flat/sinks-s0"),
        ({"deep": trajectory().isel(run=[0])}, "none"),
    ],
)  # fmt: skip
def test_beside_a_run_is_one_of_another_setting_as_like_it_as_there_is(tmp_path, stacks, beside):
    write_laboratory(tmp_path / "lab", stacks=stacks)
    with build(tmp_path, token=None).server.test_request_context("/"):
        results = laboratories.open_laboratory("~lab")
        assert laboratories.companion(results, "deep/sinks-s0") == beside


def test_runs_of_one_label_are_told_apart_and_other_heads_are_named(tmp_path):
    stacks = {"deep": trajectory().isel(run=[0]), "flat": shallow("flat")}
    write_laboratory(tmp_path / "lab", stacks=stacks)
    with build(tmp_path, token=None).server.test_request_context("/"):
        data = facts("~lab")
    assert [m["title"] for m in data["maps"]] == ["sinks-s0 · deep, L1H0", "sinks-s0 · flat, L0H0"]
    assert data["columns"][1:3] == ["sinks-s0 · deep L1H0", "sinks-s0 · flat L0H0"]
    assert data["panels"][0]["note"].startswith("full: sinks-s0 · deep L1H0, dotted: sinks-s0 · f")


# --- a run as curves --------------------------------------------------------------------------


def test_the_head_shown_first_is_the_one_that_learned(planted):
    data = laboratories.data_of(planted, "deep/sinks-s0")
    assert laboratories.head_in(data, "") == "L1H0"
    # In the control no pattern moves: the first head, as there is nothing to choose by.
    assert laboratories.head_in(laboratories.data_of(planted, "deep/control-s0"), "") == "L0H0"
    assert laboratories.companion(planted, "deep/sinks-s0") == "deep/control-s0"
    assert laboratories.companion(planted, "deep/control-s0") == "deep/sinks-s0"


def test_curves_are_the_planted_lines(planted):
    one = laboratories.trained(planted, "deep/sinks-s0", "L1H1")
    line = np.linspace(0, 1, len(STEPS))
    weight = one.curves["weight"]
    np.testing.assert_allclose(weight.values, 0.3 * line)
    assert weight.band is not None
    np.testing.assert_allclose(weight.band, [0.15 * line, 0.6 * line])
    np.testing.assert_allclose(one.curves["norm begin"].values, 5 * line)
    # Of the streams, that behind the block of the head's layer.
    np.testing.assert_allclose(one.curves["stream_norm"].values, line + 2)
    in_layer_0 = laboratories.trained(planted, "deep/sinks-s0", "L0H1")
    np.testing.assert_allclose(in_layer_0.curves["stream_norm"].values, line + 1)
    assert not {"weight_low", "weight_high", "by_token", "pattern"} & set(one.curves)
    control = laboratories.trained(planted, "deep/control-s0", "L1H1")
    np.testing.assert_allclose(control.curves["weight"].values, 0.03 * line)


def test_a_name_that_ends_like_a_band_is_a_curve_without_its_other_end():
    data = trajectory().isel(run=0, layer=0, head=0)[["loss", "weight_low", "norm"]]
    assert [c.name for c in laboratories.curves(data)] == [
        "loss", "weight_low", "norm begin", "norm other",
    ]  # fmt: skip


def test_a_figure_holds_one_group_and_one_unit(planted):
    drawn = laboratories.panels([laboratories.trained(planted, "deep/sinks-s0", "L1H1")])
    assert [(p.title, p.units, p.names) for p in drawn] == [
        ("Losses", "nats", ("loss",)),
        ("Weights", "probability", ("weight",)),
        ("L2 norm", "L2 norm", ("norm begin", "norm other", "stream_norm")),
    ]


def test_what_the_script_gets_is_what_was_logged(inside):
    data = facts()
    assert data["state"] == {
        "run": "deep/sinks-s0", "beside": "deep/control-s0", "head": "L1H0", "text": 0,
        "axis": "log", "curve": "loss",
    }  # fmt: skip
    assert data["steps"] == STEPS and data["heads"] == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert row(data, "weight")["values"] == pytest.approx([0, 0.2 / 3, 0.4 / 3, 0.2], abs=1e-4)
    assert row(data, "weight")["beside"][-1] == pytest.approx(0.02)
    assert row(data, "absent")["values"] == [None] * 4
    assert data["maps"][0]["tokens"] == TOKENS and data["maps"][0]["marked"] == [False, True, False,
                                                                                 False]  # fmt: skip
    assert data["beside_at"] == [0, 1, 2, 3]
    assert "published" not in data["columns"]
    alone = facts(beside="none")
    assert len(alone["maps"]) == 1 and "beside" not in row(alone, "weight")


def test_steps_of_two_runs_are_matched_by_the_last_one_logged():
    found = training_facts._latest(np.array([0, 10, 25, 90]), np.array([5, 20, 80]))
    assert found == [-1, 0, 1, 2]


def test_the_axis_has_room_for_step_0():
    log, linear = (
        training_figures.Axis.of(np.array([0, 10, 90, 500]), s) for s in ("log", "linear")
    )
    np.testing.assert_allclose(log.at(np.array([0, 90])), [0, 1])
    assert log.ticks() == [0, 10, 20, 50, 100, 200, 500]
    assert linear.ticks() == [0, 100, 200, 300, 400, 500]
    assert training_figures.Axis.of(np.array([0]), "log").ticks() == [0, 1]


def test_figures_show_both_runs_their_band_and_what_was_published(inside):
    shipped = LabState("bigram-backcopy", beside="one-layer/no-copy-s0", axis="linear")
    drawn = training_facts.pictures(shipped, "dark")
    assert 1 < len(drawn) <= laboratories.MOST_PANELS
    results = zoo.laboratory("bigram-backcopy")
    sink = drawn[1].data
    dashes = [t.line.dash for t in sink if t.name == "sink_off" and t.mode == "lines"]
    assert dashes == ["dot", "solid"]
    line = next(t for t in sink if t.name == "sink_off" and t.line.dash == "solid")
    run = results.trajectories["one-layer"].sel(run="main-s0")
    np.testing.assert_allclose(line.y, run["sink_off"].to_numpy().ravel(), rtol=1e-6)
    rings = next(t for t in sink if t.mode == "markers")
    # Published: .648 at step 500, the last of ours; later ones have no place on the axis.
    assert (rings.x[-1], rings.y[-1]) == (500, 0.648)
    margin = drawn[2].data
    assert [t for t in margin if t.fill == "toself"]
    assert drawn[0].layout.yaxis.type == "log" and drawn[1].layout.yaxis.type is None
    for figure in drawn:
        assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text


def test_hostile_names_travel_as_text(inside):
    # What Plotly is given it reads as HTML; a parser finds our own marks in it and no others.
    seen = set()

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.add(tag)

    for figure in training_facts.pictures(LabState(PLANTED), "light"):
        for trace in figure.data:
            Tags().feed(f"{trace.name} {trace.hovertemplate}")
    assert "extra" in seen and "img" not in seen


# --- what is sent -----------------------------------------------------------------------------


def test_patterns_are_sent_once_for_all_steps(client):
    reply = client.get(f"/lab-data/{PLANTED}/pattern?run=deep/sinks-s0&head=L1H0")
    shape = tuple(int(reply.headers[name]) for name in ("X-Steps", "X-Rows", "X-Columns"))
    sent = readings.from_codes(np.frombuffer(reply.data, np.uint8).reshape(shape))
    exact = trajectory()["pattern"].to_numpy()[0, :, 1, 0, 0].astype(float)
    assert np.abs(sent - exact).max() < 0.006
    assert np.abs(exact[0] - exact[-1]).max() > 0.5, "the plant moves"


def test_the_shipped_laboratory_is_sent_in_less_than_300_kb(client, inside):
    data = facts("bigram-backcopy")
    size = len(json.dumps(data)) + sum(len(client.get(m["url"]).data) for m in data["maps"])
    size += sum(
        len(f.to_json()) for f in training_facts.pictures(LabState("bigram-backcopy"), "light")
    )
    print(f"{size / 1e3:.0f} kB")
    assert size < 300_000


def test_the_scalars_are_a_file(client):
    reply = client.get(f"/lab-data/{PLANTED}/scalars.csv?run=deep/sinks-s0&head=L1H1"
                       "&beside=deep/control-s0")  # fmt: skip
    assert "attachment" in reply.headers["Content-Disposition"]
    table = pd.read_csv(io.StringIO(reply.text))
    assert table["step"].tolist() == STEPS * 2
    assert table["run"].unique().tolist() == ["sinks-s0", "control-s0"]
    np.testing.assert_allclose(table["weight"], [0, 0.1, 0.2, 0.3, 0, 0.01, 0.02, 0.03], atol=1e-12)
    assert table["weight high"].iloc[3] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/lab-data/absent/pattern", "neither shipped nor under the folder"),
        ("/lab-data/~..~../pattern", "is no name"),
        (f"/lab-data/{PLANTED}/pattern?run=deep/nobody", "it has deep/sinks-s0, deep/control-s0"),
        (f"/lab-data/{PLANTED}/pattern?head=L7H0", "no head L7H0"),
        (f"/lab-data/{PLANTED}/pattern?text=1", "text 1 has no patterns"),
        ("/lab-data/~unfinished/scalars.csv", "unfinished laboratory"),
    ],
)
def test_wrong_addresses_of_data_say_so(client, path, said):
    reply = client.get(path)
    assert reply.status_code == 404 and said in reply.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"lab": "absent"}, "neither shipped nor under the folder"),
        ({"lab": PLANTED, "run": "deep/nobody"}, "it has deep/sinks-s0"),
        ({"lab": PLANTED, "run": "deep"}, "write STACK/RUN"),
        ({"lab": PLANTED, "head": "L0H5"}, "no head L0H5"),
        ({"lab": PLANTED, "axis": "cubic"}, "choose log, linear"),
        ({"lab": PLANTED, "curve": "nothing"}, "it has loss, weight, norm begin"),
        ({"lab": PLANTED, "text": "1"}, "there are 1, from 0 on"),
        ({"lab": "~unfinished"}, "unfinished laboratory"),
    ],
)
def test_wrong_addresses_of_the_page_say_so(inside, arguments, said):
    assert said in words(training.layout(**arguments))


def test_foreign_hosts_get_no_laboratory(client):
    for path in (f"/lab/{PLANTED}", f"/lab-data/{PLANTED}/pattern"):
        assert client.get(path).status_code == 200
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 400
        assert client.get(path, headers={"Origin": "https://evil.example"}).status_code == 403


def test_the_state_is_the_address():
    state = LabState(PLANTED, "deep/sinks-s0", "none", "L1H0", 0, 20, "linear", "norm begin")
    assert encode(state) == (
        f"/lab/{PLANTED}?run=deep%2Fsinks-s0&beside=none&head=L1H0&step=20&axis=linear"
        "&curve=norm+begin"
    )
    assert decode(encode(state)) == state
    assert encode(LabState("bigram-backcopy")) == "/lab/bigram-backcopy"


def test_a_run_served_alone_has_the_shipped_laboratories(runs_root):
    with build(runs_root / "planted", token=None).server.test_request_context("/"):
        assert {e.id for e in laboratories.entries()} == set(zoo.laboratories())
    assert Store(runs_root / "planted").only == "planted"
