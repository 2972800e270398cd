"""The study of sinks: a model with a known sink, its untrained twin as subject, its files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.circuits.controls import untrained
from workbench.errors import WorkbenchError
from workbench.studies import sinks, sinks_laws, sinks_measure, sinks_published, sinks_subjects
from workbench.studies.sinks_subjects import Subject, cut, domain_of, without
from workbench.studies.study import perform

ZOO = "zoo:mix-3l"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path_factory.mktemp("study")
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def content(folder):
    return perform(sinks.STUDY, sinks.Config(model=ZOO), folder / "zoo")


def verdicts(content) -> dict[str, str]:
    return {f.law.name.partition(": ")[2]: f.law.verdict for f in content.findings}


def test_the_zoo_model_parks_on_its_begin_token(content) -> None:
    found = verdicts(content)
    held = {name for name, verdict in found.items() if verdict == "held"}
    assert {
        "the first position is a sink", "heads park there", "its score stands out",
        "its value is small", "the model needs the sink key", "a window needs the first keys",
        "parked heads can go",
    } <= held  # fmt: skip
    # Its card says how it was trained: always behind the begin token, so the token is the sink.
    assert found["it is the position, not the token"] == "not held"
    assert found["later tokens become sinks"] == "not held"
    assert not any(f.required for f in content.findings)


def test_the_share_is_that_of_the_eager_maps(content) -> None:
    model, prompts = sinks_subjects.subjects(ZOO, "", 12)[0].open()
    model.net.set_attn_implementation("eager")
    shares = []
    for prompt in prompts:
        with torch.no_grad():
            maps = model.net(torch.tensor([prompt.token_ids]), output_attentions=True).attentions
        maps = torch.stack(maps)
        shares.append(float(maps[..., 0].sum() / maps.sum()))
    given = content.tables["changed-texts"].set_index("texts").loc["as given"]
    assert np.isclose(given["share"], np.mean(shares), rtol=1e-5)
    assert np.isclose(given["sd"], np.std(shares, ddof=1), rtol=1e-4)


def test_what_is_left_can_be_read_and_is_not_made_again(content, folder, monkeypatch) -> None:
    run = wb.open_run(folder / "zoo" / "runs" / "mix-3l-trained")
    assert run.stats["sink_margin"].notnull().any()
    assert {"heads", "effects", "lengths", "published"} <= set(content.tables)
    report = (folder / "zoo" / "report.html").read_text()
    for picture in content.pictures:
        assert f'id="figure-{picture.name}"' in report

    def stop(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(sinks_measure, "capture", stop)
    monkeypatch.setattr(sinks_measure, "effects", stop)
    again = perform(sinks.STUDY, sinks.Config(model=ZOO), folder / "zoo")
    assert [f.law for f in again.findings] == [f.law for f in content.findings]
    about = json.loads((folder / "zoo" / "study.json").read_text())
    assert about["finished"] and about["continued"]


def test_an_untrained_model_holds_no_law(folder) -> None:
    def opened():
        model, prompts = sinks_subjects.subjects(ZOO, "", 12)[0].open()
        return untrained(model, seed=7), prompts

    measured = sinks_measure.measure(Subject("fresh", opened), folder, lambda _: None)
    found = {claim.name: claim.law(measured)[0].verdict for claim in sinks_laws.CLAIMS}
    assert "held" not in found.values(), found
    # Without a head above the threshold there is nothing to say of such heads.
    assert found["its value is small"] == found["its score stands out"] == "not applicable"


def test_texts_are_cut_by_their_ends() -> None:
    prompt = wb.Prompt(token_ids=(1, 5, 6, 7, 2))
    assert without(prompt, first=True).token_ids == (5, 6, 7, 2)
    assert without(prompt, last=True).token_ids == (1, 5, 6, 7)
    assert without(prompt, first=True, last=True).token_ids == (5, 6, 7)
    assert cut(prompt, 3, keep_last=True).token_ids == (1, 5, 2)
    assert cut(prompt, 3, keep_last=False).token_ids == (1, 5, 6)
    assert [domain_of(wb.Prompt("x", name=n)) for n in ("wiki-12", "a-b", "")] == [
        "wiki", "a-b", "all",
    ]  # fmt: skip


def test_published_values_are_marked_and_found_by_model() -> None:
    every = sinks_published.expected()
    assert every["here"].eq("not run here").all()
    assert every["repeat"].str.startswith("workbench study sinks --model ").all()
    own = sinks_published.expected("meta-llama/Llama-2-7b-hf")
    assert set(own["model"]) == {"meta-llama/Llama-2-7b-hf"}
    assert sinks_published.expected("zoo:mix-3l").empty


def test_bad_input_is_one_sentence(folder, tmp_path) -> None:
    with pytest.raises(WorkbenchError, match="--prompts belongs to a model"):
        sinks_subjects.subjects("", "texts.txt", 4)
    with pytest.raises(WorkbenchError, match="cannot be read"):
        sinks.Config(model=ZOO, prompts=str(tmp_path / "none.txt")).to_json()
    (tmp_path / "short.jsonl").write_text('{"token_ids": [1, 5, 6]}\n')
    config = sinks.Config(model=ZOO, prompts=str(tmp_path / "short.jsonl"))
    with pytest.raises(WorkbenchError, match=r"prompt 0 has 3 tokens; .* 16 or more"):
        perform(sinks.STUDY, config, tmp_path / "out")


def test_figures_show_what_the_tables_say(content) -> None:
    by_name = {picture.name: picture.figure for picture in content.pictures}
    heads = content.tables["heads"].query("model == 'trained'")
    grid = np.asarray(by_name["mass-mix-3l"].data[0].z, dtype=float)
    assert np.allclose(grid, heads["mass"].to_numpy().reshape(3, 8))
    lengths = content.tables["lengths"]
    assert np.allclose(by_name["by-length"].data[0].y, lengths["share"])
    for figure in by_name.values():
        if figure.data[0].type != "table":
            assert figure.layout.xaxis.title.text
            assert figure.layout.yaxis.title.text or figure.data[0].y.dtype == object
