"""The checkpoints study: planted series by the command, its refusals, and the shipped runs."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from tests import planted_induction as planted
from workbench import cli, zoo
from workbench.errors import WorkbenchError
from workbench.studies import checkpoints as study
from workbench.studies import registry
from workbench.zoo.trajectory import Results

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
JUMP = {0: planted.NOTHING, 10: planted.NOTHING, 20: planted.COPIES}


def call(*args):
    return CliRunner().invoke(cli.app, ["study", *map(str, args)])


def verdicts(folder) -> dict[str, str]:
    table = pd.read_parquet(folder / "laws.parquet")
    return dict(zip(table["law"], table["verdict"], strict=True))


@pytest.fixture(scope="module")
def jump(tmp_path_factory):
    """The study of a planted series: (folder of checkpoints, folder of the study, output)."""
    root = tmp_path_factory.mktemp("planted")
    model, out = planted.save(root / "jump", JUMP), root / "study"
    result = call("checkpoints", "--model", model, "--out", out)
    assert result.exit_code == 0, (result.output, result.exception)
    return model, out, result.stdout


def test_the_planted_phase_is_claimed(jump) -> None:
    _, out, text = jump
    assert text.splitlines()[-1] == "laws: 4 held, 0 not held, 2 not applicable"
    table = pd.read_parquet(out / "laws.parquet").set_index("law")
    assert table.loc["both in one window", "value"] == 1 and not table["required"].any()
    about = json.loads((out / "study.json").read_text())
    assert about["facts"]["jump"] == (
        "prefix matching: steps 10 to 20; ICL score: steps 10 to 20; windows of these lengths "
        "overlap by chance in 50% of their places"
    )
    scalars = pd.read_parquet(out / "tables" / "scalars.parquet")
    assert scalars["step"].tolist() == [0, 10, 20] and set(scalars["series"]) == {"jump"}
    heads = pd.read_parquet(out / "tables" / "heads.parquet").set_index(["step", "layer", "head"])
    assert heads["prefix_score"].idxmax() == (20, 1, 0)
    page = (out / "report.html").read_text()
    assert all(f'id="figure-{name}-jump"' in page for name in ("course", "heads", "losses"))
    assert Results(out / study.LABORATORY).about["name"] == "checkpoints"


def test_it_is_not_claimed_of_a_series_that_stands_still(tmp_path) -> None:
    model = planted.save(tmp_path / "still", dict.fromkeys((0, 10), planted.NOTHING))
    result = call("checkpoints", "--model", model, "--out", tmp_path / "out")
    assert result.exit_code == 0, "a law that is not required fails nothing"
    assert "held" not in verdicts(tmp_path / "out").values()
    about = json.loads((tmp_path / "out" / "study.json").read_text())
    assert about["facts"]["still"] == "prefix matching: no move; ICL score: no move"


def test_nor_of_two_checkpoints(jump, tmp_path) -> None:
    """Both windows are the whole series: they cannot but be one."""
    model, *_ = jump
    result = call(
        "checkpoints", "--model", model, "--revisions", "step0,step20", "--out", tmp_path / "out"
    )
    assert result.exit_code == 0, (result.output, result.exception)
    table = pd.read_parquet(tmp_path / "out" / "laws.parquet").set_index("law")
    law = table.loc["both in one window"]
    assert (law["value"], law["null"], law["verdict"]) == (1, 1, "not held")


def test_a_wrong_revision_leaves_nothing_behind(jump, tmp_path, monkeypatch) -> None:
    """The same folder can be used with the right one; a model is called by its folder's name."""
    model, *_ = jump
    monkeypatch.chdir(model)
    options = ("checkpoints", "--model", ".", "--out", tmp_path / "out", "--revisions")
    assert call(*options, "step0,step7").exit_code and not (tmp_path / "out").exists()
    assert call(*options, "step0,step20").exit_code == 0
    assert (tmp_path / "out" / "figures" / f"course-{model.name}.json").is_file()


def test_nor_where_heads_look_before_they_copy(tmp_path) -> None:
    stages = {0: planted.NOTHING, 10: planted.LOOKS, 20: planted.COPIES}
    model = planted.save(tmp_path / "apart", stages)
    texts = tmp_path / "texts.jsonl"
    # Two copies of a sequence, in another order of tokens each time.
    rows = [[(7 * i + k) % 32 for i in range(20)] * 2 for k in range(4)]
    texts.write_text("\n".join(json.dumps({"token_ids": row}) for row in rows))
    result = call(
        "checkpoints", "--model", model, "--revisions", "step20,step0,step10", "--prompts", texts,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, (result.output, result.exception)
    found = verdicts(tmp_path / "out")
    assert found["both in one window"] == "not held"
    assert found["a head comes to match prefixes"] == found["context comes to help"] == "held"
    losses = pd.read_parquet(tmp_path / "out" / "tables" / "losses.parquet")
    assert losses["index"].max() == 39, "the texts of the file"


def test_bad_input_is_one_sentence(jump, tmp_path) -> None:
    model, *_ = jump
    (tmp_path / "empty").mkdir()
    cases = {
        ("--revisions", "step0"): "--revisions belongs to a model",
        ("--model", model, "--revisions", "step0,step7"): "has no revision 'step7'",
        ("--model", model, "--revisions", "step0,main"): "'main' does not say its training step",
        ("--model", model, "--revisions", "step0"): "are no series",
        ("--model", "someone/model"): "the revisions of someone/model are not known here",
        ("--model", tmp_path / "empty"): "has 0 checkpoints that its name or folders tell",
        ("--model", "zoo:mix-3l"): "zoo:mix-3l has no revisions; runs of a laboratory have",
        ("--model", "zoo:induction", "--revisions", "step0,step7"): "has no revision 'step7'",
    }
    for number, (options, message) in enumerate(cases.items()):
        result = call("checkpoints", *options, "--out", tmp_path / str(number))
        said = " ".join(f"{result.output} {result.exception}".split())
        assert result.exit_code and message in said, (options, said)
    with pytest.raises(WorkbenchError, match="study sinks takes no --revisions; leave it out"):
        registry.find("sinks").config(revisions="step0")


@pytest.mark.slow
def test_the_shipped_runs_change_with_two_layers_and_not_with_one(tmp_path) -> None:
    """Needs the laboratory `induction`, which comes with the workbench."""
    assert study.INDUCTION in zoo.laboratories()
    result = call("checkpoints", "--quick", "--out", tmp_path / "out")
    assert result.exit_code == 0, (result.output, result.exception)
    table = pd.read_parquet(tmp_path / "out" / "laws.parquet").set_index("law")
    assert (table["verdict"] == "held").all() and table["required"].all()
    assert table.loc["not with one layer", "null"] == 0
