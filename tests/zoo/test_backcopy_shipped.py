"""The laboratory as it is shipped: what its files say, without training, and its runs as models."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import workbench as wb
from workbench import zoo
from workbench.cli import app
from workbench.errors import SchemaError, WorkbenchError
from workbench.zoo.backcopy import card, laws, measure, published, recipe, shipped
from workbench.zoo.backcopy.training import Bench
from workbench.zoo.trajectory import CHECKPOINT, TRAJECTORY, WEIGHTS, Results

NAME = "bigram-backcopy"
SHALLOW = recipe.small()[0]


@pytest.fixture(scope="module")
def results():
    return zoo.laboratory(NAME)


@pytest.fixture
def copy(tmp_path):
    """The folder somewhere else, to be changed."""
    shutil.copytree(zoo.path(NAME), tmp_path / NAME)
    return tmp_path / NAME


def swapped(results, one, other):
    """The same trajectories with the names of two settings exchanged."""
    names = {one: other, other: one}
    found = {}
    for stack, data in results.trajectories.items():
        settings = [names.get(str(s), str(s)) for s in data["setting"].to_numpy()]
        found[stack] = data.assign_coords(setting=("run", settings))
    return type("Swapped", (), {"trajectories": found})


def test_every_law_holds_and_fails_where_the_labels_lie(results):
    found = [finding.law for finding in laws.check(results)]
    for law in found:
        print(f"{law.name}: {law.value:.3g} ({law.mark}), null {law.null:.3g}")
    assert [law.name for law in found if not law.held] == []
    # The statistics tell the runs apart: as soon as main and its control change names, they fail.
    wrong = {f.law.name for f in laws.check(swapped(results, "main", "no-copy")) if not f.law.held}
    assert {"sink where the head is dormant", "no triggers, no sink", "sink logits grow",
            "value of the sink is small", "the head carries backcopy"} <= wrong  # fmt: skip


def test_the_recipe_is_the_one_in_the_code(results):
    stored = {r.name: json.loads(json.dumps(r.to_json())) for r in recipe.small()}
    assert results.about["settings"] == stored
    assert results.about["name"] == NAME and results.about["finished"] is True
    for stack in recipe.small():
        data = results.trajectories[stack.name]
        assert data["run"].to_numpy().tolist() == [s.run for s in stack.settings]
        assert data["step"].to_numpy().tolist() == list(stack.logged)
        assert set(data.data_vars) == {v.name for v in measure.VARIABLES}
        assert data["pattern"].dtype == np.float16
        groups = {v.name: v.group for v in measure.VARIABLES}
        assert {name: data[name].attrs["group"] for name in groups} == groups


def test_the_folder_is_whole_and_small(results):
    stacks = [stack.name for stack in recipe.small()]
    wanted = {f"{s}{kind}" for s in stacks for kind in (TRAJECTORY, WEIGHTS)}
    sizes = {p.name: p.stat().st_size for p in results.path.iterdir()}
    assert set(sizes) == wanted | {"laboratory.json", "CARD.md"}
    assert not [name for name in sizes if name.endswith(CHECKPOINT)]
    logged = sum(size for name, size in sizes.items() if name.endswith(TRAJECTORY))
    print(f"trajectories {logged / 1e6:.2f} MB of {sum(sizes.values()) / 1e6:.2f} MB")
    assert logged < 1_500_000 and sum(sizes.values()) < 4_000_000


@pytest.mark.parametrize("kind", [TRAJECTORY, WEIGHTS])
def test_a_changed_byte_is_noticed(copy, kind):
    place = copy / f"one-layer{kind}"
    content = bytearray(place.read_bytes())
    content[-5] ^= 1
    place.write_bytes(content)
    changed = Results(copy)
    with pytest.raises(SchemaError, match=f"one-layer{kind} .* is corrupt"):
        _ = changed.trajectories if kind == TRAJECTORY else changed.weights("one-layer")


def test_the_card_is_made_of_the_files(results):
    text = zoo.card(NAME)
    assert text == card.write(results)
    assert f"{len(laws.CLAIMS)} of {len(laws.CLAIMS)} are held" in text
    assert all(f"| {run} |" in text for runs in results.about["runs"].values() for run in runs)
    assert "<s>" not in text.replace("`<s>`", ""), "Markdown strikes out what follows <s>"


def test_listing_and_reading_load_no_torch():
    code = (
        "import sys; from workbench import zoo; zoo.laboratories();"
        "assert not {'numpy', 'torch'} & set(sys.modules);"
        f"zoo.laboratory({NAME!r}).trajectories;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_models_and_laboratories_are_two_lists():
    assert NAME in zoo.laboratories() and NAME not in zoo.names()
    assert "mix-3l" in zoo.names() and "mix-3l" not in zoo.laboratories()
    with pytest.raises(WorkbenchError, match=r"no laboratory 'mix-3l'.*bigram-backcopy"):
        zoo.laboratory("mix-3l")


@pytest.mark.parametrize("run", ["", "main-s2", "no-copy-s0"])
def test_a_run_is_a_model_that_agrees_with_its_own_trajectory(results, run):
    model = wb.load(f"zoo:{NAME}/{run}" if run else f"zoo:{NAME}")
    index = [s.run for s in SHALLOW.settings].index(run or shipped.DEFAULT_RUN)
    texts = Bench(SHALLOW).evaluation.isel(run=index)
    ids = torch.from_numpy(texts["ids"].to_numpy())
    model.net.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model.net(ids, output_attentions=True).attentions[0][:, 0].numpy()
    logged = results.trajectories["one-layer"].isel(run=index, step=-1, layer=0, head=0)
    late = np.arange(ids.shape[1]) >= measure.FIRST_ROW
    for name, rows in (("sink_off", ~texts["on"].to_numpy()), ("sink_on", texts["on"].to_numpy())):
        value = weights[..., 0][rows & late].mean()
        print(f"{run or shipped.DEFAULT_RUN} {name}: eager {value:.6f}, {float(logged[name]):.6f}")
        assert value == pytest.approx(float(logged[name]), rel=1e-5)
    stored = logged["pattern"].isel(probe=0).to_numpy().astype(float)
    assert logged["probe_id"].isel(probe=0).to_numpy().tolist() == ids[0].tolist()
    np.testing.assert_allclose(weights[0], stored, atol=2**-11)
    # The control has the same shape and no sink.
    assert (float(logged["sink_off"]) > 0.5) == (run != "no-copy-s0")


def test_the_plain_name_is_the_largest_sink_of_the_main_runs(results):
    sinks = results.trajectories["one-layer"]["sink_off"].isel(step=-1).squeeze()
    main = sinks.where(sinks["setting"] == "main", drop=True)
    assert str(main["run"][int(main.to_numpy().argmax())].item()) == shipped.DEFAULT_RUN


def test_an_opened_run_is_captured_like_any_model():
    model = wb.load(f"zoo:{NAME}", dtype="float32", attention="eager")
    model.verify()
    words = "w05 w00 w07 w01 w09 w11 w13"
    assert model.tokenizer(words)["input_ids"][0] == model.tokenizer.bos_token_id
    stats = wb.capture(model, [words], want=["first_mass"])
    assert stats.provenance.model == f"zoo:{NAME}"
    idle = stats["first_mass"].to_numpy()[0, 0, 0, [5, 6, 7]]
    assert (idle > 0.5).all(), idle


def test_what_cannot_be_opened_is_said():
    with pytest.raises(
        WorkbenchError, match=r"no run 'main-s9' in bigram-backcopy; it has main-s0"
    ):
        wb.load(f"zoo:{NAME}/main-s9")
    with pytest.raises(WorkbenchError, match="ReLU attention, which GPT-2 has not"):
        wb.load(f"zoo:{NAME}/relu-s0")
    with pytest.raises(WorkbenchError, match="a null sink, which GPT-2 has not"):
        wb.load(f"zoo:{NAME}/null-from-4-s0")


def test_a_run_of_another_recipe_is_not_opened_by_this_one(copy):
    about = json.loads((copy / "laboratory.json").read_text())
    about["settings"]["one-layer"]["d_model"] = 64
    (copy / "laboratory.json").write_text(json.dumps(about))
    with pytest.raises(WorkbenchError, match="trained by another recipe"):
        shipped.open_run(Results(copy), "main-s0")


def test_the_command_line_knows_it(copy):
    run = CliRunner().invoke
    listed = run(app, ["zoo", "list"]).output
    assert f"zoo:{NAME}" in listed and "16 runs" in listed
    assert run(app, ["zoo", "card", NAME]).output.startswith(f"# {NAME}")
    # A finished folder of the same recipe is not trained again; its card is made anew.
    (copy / "CARD.md").unlink()
    made = run(app, ["zoo", "train", NAME, "--out", str(copy)])
    assert made.exit_code == 0 and f"wrote {copy}" in made.output
    assert (copy / "CARD.md").read_text() == zoo.card(NAME)


def test_published_numbers_stand_under_the_names_of_our_curves(results):
    table = published.curve().set_index("step")
    found = published.curves("main", 1, 0)
    assert found["sink_off"].to_dict() == table["sink_off"].to_dict()
    assert (
        found["value_norm begin"].loc[140] == 9.15 and found["resid_norm begin"].loc[10_000] == 72.2
    )
    assert published.curves("adamw", 3, 0)["resid_norm begin"].loc[1_000] == 34.4
    assert published.curves("adamw", 3, 1) == published.curves("no-copy", 1, 0) == {}
    known = {f"{v.name} {r}" for v in measure.VARIABLES for r in measure.ROLES if "role" in v.dims}
    assert set(found) <= known | {v.name for v in measure.VARIABLES}
