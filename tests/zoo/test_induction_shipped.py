"""The laboratory as it is shipped: what its files say, its runs and their checkpoints as models."""

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import workbench as wb
from workbench import zoo
from workbench.cli import app
from workbench.errors import SchemaError, WorkbenchError
from workbench.probes import induction_head_score
from workbench.zoo.claims import by_setting
from workbench.zoo.induction import card, laws, measure, recipe, shipped
from workbench.zoo.induction.training import Bench
from workbench.zoo.trajectory import TRAJECTORY, WEIGHTS, kept_file

NAME = "induction"
STACKS = recipe.shipped()


@pytest.fixture(scope="module")
def results():
    return zoo.laboratory(NAME)


def test_the_folder_is_whole_and_small(results):
    wanted = {f"{s.name}{kind}" for s in STACKS for kind in (TRAJECTORY, WEIGHTS)}
    wanted |= {kept_file(s.name, step) for s in STACKS for step in recipe.KEPT}
    sizes = {p.name: p.stat().st_size for p in results.path.iterdir()}
    assert set(sizes) == wanted | {"laboratory.json", "CARD.md"}
    print(f"{sum(sizes.values()) / 1e6:.2f} MB")
    assert sum(sizes.values()) < 4_000_000 and max(sizes.values()) < 2_000_000


def test_the_recipe_is_the_one_in_the_code(results):
    stored = {r.name: json.loads(json.dumps(r.to_json())) for r in STACKS}
    assert results.about["settings"] == stored and results.about["name"] == NAME
    for stack in STACKS:
        data = results.trajectories[stack.name]
        assert data["run"].to_numpy().tolist() == [s.run for s in stack.settings]
        assert data["step"].to_numpy().tolist() == list(stack.logged)
        assert set(data.data_vars) == {v.name for v in measure.variables(stack.layers)}
        assert results.steps(stack.name) == (*recipe.KEPT, 1000)
        assert data["loss_at_baseline"].dims == ("predictor", "position")


def test_two_layers_change_and_one_does_not(results):
    runs = by_setting(results.trajectories)
    for run in runs["two-layers"]:
        together = laws.apart(run, laws.prefix(run), laws.icl(run))
        half = laws.half_time(run, laws.icl(run))
        print(f"{run['run'].item()}: half-time {half:.0f}, apart by {together:.3f}")
        assert together < 1.2 and laws.icl(run)[-1] < -0.6 and laws.prefix(run)[-1] > 0.5
        # The checkpoints lie around the change.
        assert recipe.KEPT[1] < half < recipe.KEPT[-1]
    for run in runs["one-layer"]:
        assert laws.icl(run)[-1] > -0.4 and laws.prefix(run)[-1] < 0.2


def test_the_card_is_made_of_the_files(results):
    text = zoo.card(NAME)
    assert text == card.write(results)
    assert all(f"| {run} |" in text for runs in results.about["runs"].values() for run in runs)
    assert "<s>" not in text.replace("`<s>`", "")


@pytest.mark.parametrize(
    ("run", "step"), [("two-layers-s0", 0), ("two-layers-s1", 350), ("one-layer-s1", 1000)]
)
def test_a_checkpoint_is_a_model_that_agrees_with_the_trajectory(results, run, step):
    model = wb.load(f"zoo:{NAME}/{run}", revision=f"step{step}", attention="eager")
    assert model.revision == f"step{step}"
    stack = next(s for s in STACKS if s.name == results.stack_of(run))
    logged = results.trajectories[stack.name].sel(step=step)
    logged = logged.isel(run=[s.run for s in stack.settings].index(run))
    bench = Bench(stack)
    ids, oracle = bench.evaluation
    with torch.no_grad():
        log_p = model.net(torch.from_numpy(ids[0, :, :-1])).logits.log_softmax(-1).numpy()
        out = model.net(torch.from_numpy(bench.repeated[0][:1]), output_attentions=True)
    loss = np.where(oracle[0] > 0, -oracle[0] * log_p, 0).sum(-1).mean()
    print(f"{run} step {step}: loss {loss:.6f}, logged {float(logged['loss']):.6f}")
    assert loss == pytest.approx(float(logged["loss"]), rel=1e-5)
    pattern = torch.stack([layer[0] for layer in out.attentions]).numpy()
    np.testing.assert_allclose(pattern, logged["pattern"].isel(probe=0), atol=2**-11)


def test_revisions_are_listed_and_the_last_is_the_end(results):
    names = zoo.revisions(f"{NAME}/two-layers-s1")
    assert names == tuple(f"step{step}" for step in (*recipe.KEPT, 1000))
    assert zoo.revisions(NAME) == zoo.revisions(f"{NAME}/{shipped.DEFAULT_RUN}")
    assert zoo.revisions("bigram-backcopy") == ("step500",), "it keeps the end alone"
    end, plain, early = (
        wb.load(f"zoo:{NAME}/two-layers-s1", revision=name)
        for name in ("step1000", None, "step100")
    )
    assert plain.revision == "" and early.name == plain.name == f"zoo:{NAME}/two-layers-s1"
    state, other = plain.net.state_dict(), early.net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in end.net.state_dict().items())
    assert not torch.equal(other["lm_head.weight"], state["lm_head.weight"])


def test_induction_is_seen_by_a_capture_of_a_revision():
    """The same words twice: before the change no head matches prefixes, at the end one does."""
    best = {}
    for name in ("step200", "step1000"):
        model = wb.load(f"zoo:{NAME}", revision=name)
        model.verify()
        prompts = model.repeated_tokens(15, 4)
        stats = wb.capture(model, prompts, want=["induction_mass", "n_visible"])
        assert (stats.provenance.model, stats.provenance.revision) == (f"zoo:{NAME}", name)
        best[name] = induction_head_score(stats)["value"].max()
    print(best)
    assert best["step1000"] > 0.5 and best["step200"] < 0.2


@pytest.mark.parametrize(
    ("model", "revision", "says"),
    [
        (f"zoo:{NAME}", "step3", r"no revision 'step3' of zoo:induction; it has step0, step50"),
        (f"zoo:{NAME}", "main", r"no revision 'main' of zoo:induction"),
        ("zoo:bigram-backcopy", "step3", r"no revision 'step3' of .*; it has step500"),
        ("zoo:mix-3l", "step3", r"zoo:mix-3l has no revisions"),
        (f"zoo:{NAME}/three-layers", "step0", r"no run 'three-layers' in induction"),
        (f"zoo:{NAME}/", None, r"no run '' in induction; it has two-layers-s0"),
        (f"zoo:{NAME}/three-layers", None, r"no run 'three-layers' in induction"),
    ],
)
def test_what_cannot_be_opened_is_said(model, revision, says):
    with pytest.raises(WorkbenchError, match=says):
        wb.load(model, revision=revision)


def test_a_folder_without_its_checkpoint_or_of_another_recipe_is_refused(tmp_path, results):
    shutil.copytree(results.path, tmp_path / NAME)
    about = json.loads((tmp_path / NAME / "laboratory.json").read_text())
    about["settings"]["two-layers"]["d_model"] = 64
    (tmp_path / NAME / "laboratory.json").write_text(json.dumps(about))
    with pytest.raises(WorkbenchError, match="trained by another recipe"):
        shipped.open_run(type(results)(tmp_path / NAME), "two-layers-s0")
    (tmp_path / NAME / kept_file("two-layers", 200)).unlink()
    with pytest.raises(SchemaError, match=r"two-layers\.step200"):
        type(results)(tmp_path / NAME)


def test_what_is_not_shipped_is_listed_as_what_can_be_trained(monkeypatch):
    monkeypatch.setattr(zoo, "laboratories", lambda: ("icl-regression",))
    lines = CliRunner().invoke(app, ["zoo", "list"]).output.splitlines()
    told = {line.split()[0]: "no: zoo train" in line for line in lines if line.startswith("zoo:")}
    assert told == {f"zoo:{name}": name in (NAME, "bigram-backcopy") for name in zoo.recipes()}


def test_the_command_line_knows_it(tmp_path, results):
    run = CliRunner().invoke
    assert "4 runs, zoo:induction/RUN" in run(app, ["zoo", "list"]).output
    assert run(app, ["zoo", "card", NAME]).output.startswith(f"# {NAME}")
    unknown = run(app, ["zoo", "train", "three-layers"])
    assert unknown.exit_code == 2
    said = "bigram-backcopy, icl-regression, induction, mix-3l."
    assert unknown.stderr == (
        f"workbench: there is no recipe 'three-layers'; known recipes: {said}\n"
    )
    # A finished folder of the same recipe is not trained again; its card is made anew.
    copy = shutil.copytree(results.path, tmp_path / NAME)
    (copy / "CARD.md").unlink()
    made = run(app, ["zoo", "train", NAME, "--out", str(copy)])
    assert made.exit_code == 0, made.output
    assert (copy / "CARD.md").read_text() == zoo.card(NAME)
