"""The icl-curves study: the zoo model by the command, tasks from a file, and its refusals."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench import cli
from workbench.circuits import icl_curves as curves
from workbench.errors import WorkbenchError
from workbench.studies import icl_curves as study
from workbench.studies import icl_curves_measure as measuring

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
REQUIRED = {
    "later tokens cost less", "training brought it", "examples lower the loss",
    "only those of the task", "training brought that too",
}  # fmt: skip


def call(*args):
    return CliRunner().invoke(cli.app, ["study", "icl-curves", *map(str, args)])


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "quick"
    result = call("--quick", "--out", folder)
    assert result.exit_code == 0, (result.output, result.exception)
    return folder, result.stdout


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A file of two tasks in the words of the zoo model: keys with their values."""
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    lines = []
    for number in range(2):
        pairs = [[f"k{i % 3:02d} ", f"v{(i % 3) * 2 + number:02d} "] for i in range(12)]
        lines.append(json.dumps({"task": f"map {number}", "examples": pairs}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_zoo_model_learns_in_context(quick) -> None:
    folder, text = quick
    assert text.splitlines()[-1] == "laws: 6 held, 0 not held, 0 not applicable"
    table = pd.read_parquet(folder / "laws.parquet").set_index("law")
    assert set(table.index[table["required"]]) == REQUIRED
    page = (folder / "report.html").read_text()
    assert 'id="figure-tokens"' in page and 'id="figure-examples"' in page


def test_no_loss_is_below_the_least_possible_but_by_chance(quick) -> None:
    """The curve of the trained model runs above the closed form, and comes near it."""
    folder, _ = quick
    examples = pd.read_parquet(folder / "tables" / "examples.parquet")
    own = examples.query("model == 'trained' and context == @curves.OWN")
    floor = curves.dictionary_floor(own["examples"].to_numpy(), measuring.KEYS, 32)
    assert (own["loss"] > floor - 3 * own["se"]).all()
    assert own["loss"].iloc[-1] - floor[-1] < 0.5
    wrong = examples.query("model == 'trained' and context != @curves.OWN and examples > 4")
    assert (wrong["loss"] > 2).all()


def test_what_was_measured_is_not_measured_again(quick, monkeypatch) -> None:
    folder, _ = quick

    def stop(*_, **__):
        raise AssertionError("measured again")

    before = pd.read_parquet(folder / "laws.parquet")
    monkeypatch.setattr(measuring.icl_curves, "token_losses", stop)
    monkeypatch.setattr(measuring.icl_curves, "example_losses", stop)
    assert call("--quick", "--out", folder).exit_code == 0
    assert pd.read_parquet(folder / "laws.parquet").equals(before)


def test_tasks_of_a_file_are_put_together_as_written(tasks) -> None:
    model = wb.load("zoo:mix-3l")
    episodes = measuring.read_tasks(model, str(tasks), n=6, most=8)
    assert [one.task for one in episodes] == ["map 0", "map 1"] * 3
    one = episodes[1]
    assert len(one.examples) == 8
    shown = [i for pair in (*one.examples, one.query) for part in pair for i in part]
    words = model.tokenizer.decode(shown).split()
    assert len(words) == 18 and one.begin == (model.tokenizer.bos_token_id,)
    for key, value in zip(words[::2], words[1::2], strict=True):
        assert int(value[1:]) == int(key[1:]) * 2 + 1
    others = curves.contexts(episodes)[curves.OTHER]
    assert [other.examples for other in others] == [
        *(one.examples for one in episodes[1:]), episodes[0].examples
    ]  # fmt: skip


def test_tasks_of_a_file_give_a_curve_without_a_floor(tasks, tmp_path) -> None:
    result = call(
        "--quick", "--model", "zoo:mix-3l", "--prompts", tasks, "--out", tmp_path / "out"
    )  # fmt: skip
    assert result.exit_code == 0, (result.output, result.exception)
    table = pd.read_parquet(tmp_path / "out" / "laws.parquet").set_index("law")
    assert table.loc["near the best predictor", "verdict"] == "not applicable"
    assert table.loc["examples lower the loss", "verdict"] == "held" and not table["required"].any()


def test_a_model_of_few_words_and_positions_is_measured(tmp_path) -> None:
    """24 words and 32 positions: shorter texts, fewer examples, and it says so."""
    result = call("--quick", "--model", "zoo:induction/two-layers-s0", "--out", tmp_path / "out")
    assert result.exit_code == 0, (result.output, result.exception)
    about = json.loads((tmp_path / "out" / "study.json").read_text())
    assert about["facts"]["texts"] == "16 of 31 tokens; 16 queries behind up to 8 examples"
    chosen = measuring.subject("zoo:induction/two-layers-s0", "", 2, 24)
    assert len(chosen.episodes[0].examples) == 14


def test_an_untrained_model_holds_no_law(tmp_path) -> None:
    chosen = measuring.subject("", "", 6, 8)
    fresh = measuring.Subject(
        measuring.untrained(chosen.model, seed=9), chosen.texts, chosen.episodes, chosen.values
    )
    found = measuring.measure(fresh, tmp_path / "losses", lambda _: None)
    held = [c.name for c in study.CLAIMS if c.law(found)[0].verdict == "held"]
    assert held == []
    assert np.isclose(float(found.examples["trained", curves.OWN].mean()), np.log(143), rtol=0.1), (
        "as good as drawing one of the words"
    )


def test_bad_input_is_one_sentence(tasks, tmp_path) -> None:
    model = wb.load("zoo:mix-3l")
    with pytest.raises(WorkbenchError, match="--prompts belongs to a model"):
        measuring.subject("", str(tasks), 2, 2)
    with pytest.raises(WorkbenchError, match=r"prompt file 'absent.jsonl' cannot be read"):
        study.Config(prompts="absent.jsonl").to_json()
    bad = tmp_path / "bad.jsonl"
    for line, message in (
        ('{"task": "a", "examples": [["k00", "v00"]]}', "task 'a' has 1 examples"),
        ('{"examples": [["k00", "v00"]]}', "line 1 is no task"),
        ('{"task": "a", "examples": ["k00"]}', "line 1 is no task"),
        ("\n".join([tasks.read_text().splitlines()[0]] * 2), "line 2: task 'map 0' stands there"),
    ):
        bad.write_text(line)
        with pytest.raises(WorkbenchError, match=message):
            measuring.read_tasks(model, str(bad), 2, 2)
