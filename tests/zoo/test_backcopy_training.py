"""The laboratory itself: trained networks have the mechanism, their controls have not."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.zoo.backcopy import export, laws, measure
from workbench.zoo.backcopy.recipe import Setting, small, steps_to
from workbench.zoo.backcopy.training import EVALUATION, PROBE_LENGTH, PROBES, Bench, train
from workbench.zoo.claims import by_setting

pytestmark = pytest.mark.slow  # two short trainings, about ten seconds alone

SHALLOW, RELU, _, _ = small()
RECIPES = (
    replace(
        SHALLOW,
        settings=(Setting("main", 0), Setting("no-copy", 0, copies=False)),
        steps=300,
        logged=steps_to(300, 20, 300, 20),
    ),
    replace(RELU, settings=(Setting("relu", 0),)),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return train(tmp_path_factory.mktemp("lab") / "run", RECIPES)


@pytest.fixture(scope="module")
def runs(results):
    return {name: found[0] for name, found in by_setting(results.trajectories).items()}


def last(run, name):
    return float(run[name].isel(step=-1).squeeze())


def test_a_sink_grows_off_triggers_and_not_in_the_controls(runs):
    assert last(runs["main"], "sink_off") > 0.5 > 0.3 > last(runs["no-copy"], "sink_off")
    assert last(runs["main"], "sink_on") < 0.05
    assert last(runs["relu"], "sink_off") < 0.02
    assert float(runs["main"]["sink_off"].isel(step=0).squeeze()) < 0.1
    assert last(runs["main"], "delta_logit_off") > 3 > 1 > last(runs["no-copy"], "delta_logit_off")


def test_its_value_drains(runs):
    assert laws.value_ratio(runs["main"]) < 0.6 < 0.8 < laws.value_ratio(runs["no-copy"])
    assert laws.value_drop(runs["main"]) < 0.6 < 0.8 < laws.value_drop(runs["relu"])


def test_bigram_is_learned_before_backcopy(runs):
    assert laws.copy_delay(runs["main"]) > 0
    assert last(runs["main"], "risk_on") < 0.4 < 1 < last(runs["no-copy"], "risk_on")


def test_the_head_works_on_triggers_and_leans_on_the_sink_elsewhere(runs):
    run = runs["main"]
    assert laws.edited("L0H0", "on")(run) > 3 > 0.2 > laws.edited("L0H0", "off")(run)
    assert laws.edited("L0 mlp", "off")(run) > 0.5
    assert laws.edited("key 0", "off")(run) > 0.01 > abs(laws.edited("key 0", "on")(run))
    assert abs(laws.edited("key 1", "off")(run)) < 0.003


def test_the_trajectory_is_labelled_and_small(results):
    data = results.trajectories["one-layer"]
    assert data["run"].to_numpy().tolist() == ["main-s0", "no-copy-s0"]
    assert data["seed"].to_numpy().tolist() == [0, 0]
    assert set(data.data_vars) == {v.name for v in measure.VARIABLES}
    assert all(data[name].attrs["units"] for name in data.data_vars)
    assert data["pattern"].shape[-3:] == (PROBES, PROBE_LENGTH, PROBE_LENGTH)
    assert data["pattern"].dtype == np.float16
    assert int(data["trigger"].sum()) == 3 and str(data["token"][-1].item()) == "<s>"
    assert (data["probe_id"][..., 0] == 64).all()
    size = sum(f.stat().st_size for f in results.path.iterdir())
    print(f"{size / 1e6:.2f} MB")
    assert size < 2e6
    assert results.trajectories["one-layer-relu"]["null_off"].isnull().all()


def test_an_exported_run_is_a_model_of_the_workbench(results, tmp_path):
    recipe, weights = RECIPES[0], results.weights("one-layer")
    model = wb.load(str(export.save(recipe, weights, "main-s0", tmp_path / "model")))
    model.verify()
    bench = Bench(recipe)
    texts = bench.evaluation.isel(run=0)
    ids = texts["ids"].to_numpy()
    words = [" ".join(bench.task.tokens[i] for i in row[1:]) for row in ids]
    assert model.tokenizer(words[0])["input_ids"] == ids[0].tolist()
    stats = wb.capture(model, words, want=["first_mass", "vo_norm", "resid_norm"])
    data = results.trajectories["one-layer"].isel(run=0, step=-1, layer=0, head=0)
    # The workbench's own tap and kernels, on the same texts, give what the laboratory logged.
    rows = ~texts["on"].to_numpy()
    late = np.arange(ids.shape[1]) >= measure.FIRST_ROW
    found = {
        "sink_off": stats["first_mass"].to_numpy()[:, 0, 0][rows & late].mean(),
        "value_norm": stats["vo_norm"].to_numpy()[:, 0, 0, 0].mean(),
        "resid_norm": stats["resid_norm"].sel(stream=1).to_numpy()[:, 0].mean(),
    }
    logged = data.sel(role="begin", stream=1)
    for name, value in found.items():
        print(f"{name}: captured {value:.6f}, logged {float(logged[name]):.6f}")
        assert value == pytest.approx(float(logged[name]), rel=1e-5)
    # And silencing the head through the workbench costs what the laboratory says it costs.
    with wb.intervening(model, [wb.Intervention.zero("L0H0")]):
        log_p = np.stack([model.logits(text).log_softmax(-1).numpy() for text in words])
    on = texts["on"].to_numpy() & (np.arange(ids.shape[1]) >= measure.FIRST_EDITED)
    # After a trigger comes the symbol before it, for sure.
    before = np.roll(ids, 1, axis=1)
    surprise = -np.take_along_axis(log_p, before[..., None], -1)[..., 0][on].mean()
    assert surprise == pytest.approx(float(data["edit_excess_on"].sel(edit="L0H0")), rel=1e-4)
    assert len(words) == EVALUATION and surprise > 3


def test_what_gpt2_cannot_be_is_refused(results, tmp_path):
    weights = results.weights("one-layer")
    with pytest.raises(WorkbenchError, match="no run 'main-s9'"):
        export.gpt2(RECIPES[0], weights, "main-s9")
    with pytest.raises(WorkbenchError, match="ReLU attention, which GPT-2 has not"):
        export.gpt2(RECIPES[1], results.weights("one-layer-relu"), "relu-s0")
    null = replace(RECIPES[0], settings=(Setting("n", 0, null_start=0.0), Setting("m", 0)))
    with pytest.raises(WorkbenchError, match="a null sink, which GPT-2 has not"):
        export.gpt2(null, weights, "n-s0")
    with pytest.raises(WorkbenchError, match="exists; name a new directory"):
        export.save(RECIPES[0], weights, "main-s0", tmp_path)


def test_characters_of_a_file_make_a_laboratory(tmp_path):
    text = "it was not he who said so, but she; and she did not say it to him.\n" * 20
    (tmp_path / "t.txt").write_text(text)
    (tmp_path / "copy.txt").write_text(text)
    settings = (Setting("main", 0),)
    one, two = (
        replace(SHALLOW, settings=settings, steps=2, logged=(0, 2), text_file=str(tmp_path / name))
        for name in ("t.txt", "copy.txt")
    )
    assert one.to_json() == two.to_json(), "what is in the file counts, not where it lies"
    results = train(tmp_path / "run", [one])
    data = results.trajectories["one-layer"]
    often = {symbol for symbol, _ in Counter(text).most_common(3)}
    assert set(data["token"].to_numpy()[data["trigger"].to_numpy()].tolist()) == often
    task = one.task()
    ids = export.tokenizer(task)("she said\nso")["input_ids"]
    assert "".join(task.tokens[i] for i in ids[1:]) == "she said\nso" and ids[0] == task.begin
    net = export.gpt2(one, results.weights("one-layer"), "main-s0")
    with torch.no_grad():
        assert net(torch.tensor([ids])).logits.shape[-1] == len(task.tokens)
