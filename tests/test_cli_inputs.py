"""What people get wrong on the command line, and what they type into it: one sentence each."""

import re
from pathlib import Path

import pytest

from tests.test_cli import model_dir, one_line, run  # noqa: F401 - fixtures
from workbench.runs import open_run

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--repeated", 4, "--seed", -1), "seed=-1 is negative"),
        (("--prompts", "key.jsonl"), "key.jsonl line 2 has the unknown key 'txt'; known: text"),
        (("--prompts", "latin.txt"), r"latin.txt is not UTF-8 \(byte 3\)"),
        (("--text", "w01", "--out", "a.txt/run"), "cannot be written"),
        (("--text", "w01", "--out", "x" * 300), "cannot be written"),
        (("--text", "w01", "--parameter", "colour=3"), "parameter 'colour=3' is not understood"),
        (("--text", "w01", "--parameter", "horizon=9"), "write it as horizon=10:50"),
        (("--text", "w01", "--parameter", "topk=3"), "nothing in want is defined with it"),
    ],
)
def test_bad_input_of_capture_is_one_sentence(run, model_dir, arguments, sentence):  # noqa: F811
    Path("key.jsonl").write_text('{"text": "w01"}\n{"txt": "w02"}\n')
    Path("latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    Path("a.txt").write_text("a file")
    result = run("capture", model_dir, *arguments, code=2)
    assert re.search(sentence, one_line(result.stderr))


def test_probe_writes_only_where_there_is_a_directory(run):  # noqa: F811
    result = run("probe", "absent", "--out", "no/such/t.csv", code=2)
    assert "there is no directory no/such" in one_line(result.stderr)


def test_parameters_reach_the_run_and_the_printed_python(run, model_dir):  # noqa: F811
    import workbench as wb

    arguments = ("--want", "rhythm,top", "--parameter", "horizon=0:4", "--parameter", "topk=2")
    result = run("capture", model_dir, "--text", "w01 w02 w03 w04 w05", *arguments, "--out", "a")
    stats = open_run("a").stats
    assert stats.data.sizes["top"] == 2
    assert stats.provenance.settings["parameters"]["horizon"] == [0, 4]
    code = re.search(r"^python +(.*)$", result.output, re.MULTILINE)[1]
    again = eval(code.replace("out='a'", "out='b'"), {"wb": wb})
    assert again["fai"].equals(stats["fai"])


def test_what_is_missing_is_said(run, model_dir, monkeypatch):  # noqa: F811
    from workbench import norms

    monkeypatch.setattr(norms, "output_weight", lambda *_: None)
    result = run("capture", model_dir, "--text", "w01 w02 w03", "--want", "norms", "--out", "a")
    assert "missing vo_norm, result_norm: no output projection was found" in result.stderr
    assert set(open_run("a").stats.provenance.missing) == {"vo_norm", "result_norm"}
