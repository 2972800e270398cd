"""Series of checkpoints: the planted phase is found where it is, a killed series goes on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import workbench as wb
from tests import planted_induction as planted
from workbench.app import laboratories
from workbench.circuits import checkpoints
from workbench.circuits.checkpoints import Series, Settings
from workbench.circuits.phase import overlap, window
from workbench.errors import SchemaError, WorkbenchError
from workbench.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
SETTINGS = Settings(texts=4)
JUMP = {0: planted.NOTHING, 10: planted.NOTHING, 20: planted.COPIES, 40: planted.COPIES}


def made(name: str, stages, layers: int = 2) -> Series:
    """A series whose models are made when they are opened."""
    by_revision = {f"step{step}": stage for step, stage in stages.items()}
    return Series(
        name,
        lambda revision: wb.load(planted.network(by_revision[revision], layers=layers)),
        tuple(by_revision),
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    apart = {0: planted.NOTHING, 10: planted.LOOKS, 40: planted.COPIES}
    still = dict.fromkeys((0, 10, 20), planted.NOTHING)
    every = [
        made("jump", JUMP), made("apart", apart), made("still", still),
        made("flat", {0: planted.NOTHING, 20: planted.COPIES}, 1),
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("series") / "laboratory"
    return checkpoints.run(every, SETTINGS, folder)


def windows(one):
    return window(one["best_prefix"], 0.2), window(one["icl_score"], -0.2)


def test_the_phase_is_found_where_it_was_planted(results) -> None:
    runs = checkpoints.runs(results)
    prefix, icl = windows(runs["jump"])
    assert prefix == icl == (1, 2) and overlap(prefix, icl) == 1
    prefix, icl = windows(runs["apart"])
    assert (prefix, icl) == ((0, 1), (1, 2)) and overlap(prefix, icl) == 0
    assert windows(runs["still"]) == (None, None)
    assert windows(runs["flat"]) == (None, None), "one layer looks back, and matches nothing"
    assert window(runs["flat"]["best_previous"], 0.2) == (0, 1)


def test_the_head_is_the_planted_one_by_transformers_own_maps(results) -> None:
    one = checkpoints.runs(results)["jump"].isel(step=-1)
    model = wb.load(planted.network(planted.COPIES))
    model.net.set_attn_implementation("eager")
    scores = []
    for prompt in model.repeated_tokens(24, 4):
        with torch.no_grad():
            maps = model.net(torch.tensor([prompt.token_ids]), output_attentions=True).attentions
        queries = np.arange(24, 48)
        scores.append(torch.stack(maps)[:, 0, :, queries, queries - 23].mean(-1).numpy())
    assert np.allclose(one["prefix_score"], np.mean(scores, axis=0), atol=1e-5)
    assert float(one["prefix_score"].sel(layer=1, head=0)) > 0.9
    assert float(one["copying_score"].sel(layer=1, head=0)) > 0.99
    assert float(one["previous_token_score"].sel(layer=0, head=0)) > 0.9


def test_the_dashboard_can_show_it(results) -> None:
    assert laboratories.runs_of(results) == [f"{n}/{n}" for n in ("jump", "apart", "still", "flat")]
    shown = laboratories.trained(results, "jump/jump", "L1H0")
    panels = laboratories.panels([shown])
    assert [panel.title for panel in panels][:2] == ["In-context learning", "Best heads"]
    assert shown.curves["icl_score"].band is not None
    assert shown.curves["prefix_score"].values[-1] > 0.9
    data = laboratories.data_of(results, "jump/jump")
    assert laboratories.head_in(data, "") in ("L1H0", "L0H0"), "the patterns that changed"
    tokens, _ = laboratories.tokens_of(data, 0)
    assert len(tokens) == 16 and tokens[:8] == tokens[8:] and len(set(tokens)) == 8
    maps = laboratories.patterns_of(data, "L1H0", 0)
    assert maps.shape == (4, 16, 16) and np.allclose(maps.sum(-1), 1, atol=1e-2)
    sweep = data["loss_by_index"]
    assert sweep.attrs["group"] == "sweep" and sweep.dims == ("step", "index")
    assert data["loss_by_index_baseline"].dims == ("predictor", "index")
    assert np.allclose(data["loss_by_index_baseline"], np.log(planted.VOCAB))
    with pytest.raises(SchemaError, match="what was measured of jump, not its weights"):
        results.weights("jump")


def test_a_killed_series_goes_on_and_ends_the_same(results, tmp_path) -> None:
    opened: list[str] = []
    source = made("jump", JUMP)

    def dies(revision):
        if revision == "step20" and "step20" not in opened:
            opened.append(revision)
            raise KeyboardInterrupt
        opened.append(revision)
        return source.open(revision)

    series = Series("jump", dies, source.revisions)
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        checkpoints.run([series], SETTINGS, folder)
    with pytest.raises(WorkbenchError, match="unfinished"):
        checkpoints.Results(folder)
    seen = []
    again = checkpoints.run([series], SETTINGS, folder, lambda *message: seen.append(message))
    assert opened == ["step0", "step10", "step20", "step20", "step40"]
    assert [message for *_, message in seen] == ["jump step20", "jump step40", "all revisions"]
    name = "jump.trajectory.safetensors"
    assert (folder / name).read_bytes() == (results.path / name).read_bytes()
    assert not list(folder.glob("*.checkpoint.*")) and again.about["finished"]
    checkpoints.run([series], SETTINGS, folder)
    assert len(opened) == 5, "a finished folder opens nothing"
    with pytest.raises(WorkbenchError, match="holds a laboratory with other settings"):
        checkpoints.run([series], Settings(texts=5), folder)


def test_revisions_of_a_directory_are_its_folders(tmp_path) -> None:
    planted.save(tmp_path, {0: planted.NOTHING, 5: planted.COPIES})
    model = checkpoints.open_revision(str(tmp_path), "step5")
    assert model.tokenizer is None and model.spec.n_layers() == 2
    assert model.net.lm_head.weight[0, planted.OUT][0] > 0.9
    with pytest.raises(WorkbenchError, match=r"no revision 'step7': .* here step0, step5"):
        checkpoints.open_revision(str(tmp_path), "step7")


@pytest.mark.parametrize("name", ["main", "step10k", "step1e5", "v2", "step1-step2", "1.5"])
def test_a_name_without_a_step_is_refused(name: str) -> None:
    with pytest.raises(WorkbenchError, match="does not say its training step"):
        checkpoints.step_of(name)


def test_revisions_are_a_series_or_refused(tmp_path) -> None:
    assert checkpoints.in_order(["step100", "step20", "step3"]) == ("step3", "step20", "step100")
    for revisions in ((), ("step1",), ("step2", "step1"), ("step1", "checkpoint-1")):
        with pytest.raises(WorkbenchError, match="are no series"):
            Series("x", planted.network, revisions)  # type: ignore[arg-type]
    with pytest.raises(WorkbenchError, match="series need different names"):
        checkpoints.run([made("a", JUMP)] * 2, SETTINGS, tmp_path / "two")
    mixed = Series(
        "mixed",
        lambda r: wb.load(planted.network(planted.NOTHING, layers=1 + (r == "step5"))),
        ("step0", "step5"),
    )
    with pytest.raises(WorkbenchError, match="step5 of mixed has other layers"):
        checkpoints.run([mixed], SETTINGS, tmp_path / "mixed")


def test_a_layer_without_attention_of_its_own_has_no_scores() -> None:
    model = wb.load(FAMILIES["Mllama"].build())
    found = checkpoints.measure(model, Settings(texts=2))
    missing = found["prefix_score"].isnull().all("head").to_numpy()
    assert missing.tolist() == [False, True, False], "the layer that attends to the picture"
    assert (found["copying_score"].isnull().all("head").to_numpy() == missing).all()
    assert float(found["best_prefix"]) > 0


def test_the_texts_of_a_user_are_the_ones_of_the_loss(tmp_path) -> None:
    texts = tuple(wb.Prompt(token_ids=tuple(range(i, i + 14))) for i in range(3))
    found = checkpoints.measure(
        wb.load(planted.network(planted.NOTHING)), Settings(texts=4, prompts=texts)
    )
    assert found.sizes["index"] == 13 and np.isclose(found["loss"], np.log(32), atol=0.05)
    assert json.dumps(Settings(prompts=texts).to_json()) != json.dumps(Settings().to_json())
