"""Pages without a browser: what they say, what they send, how large that is."""

import json

import numpy as np
import pytest
from app_made import HOSTILE, LENGTHS, MISSING, N_HEADS, head_stats, pattern, write_run

from workbench.app import readings, sink_readings
from workbench.app.pages import atlas, head, runs
from workbench.app.store import Store
from workbench.app.urls import AtlasState, HeadState
from workbench.errors import WorkbenchError
from workbench.probes import find


@pytest.fixture
def inside(app):
    with app.server.test_request_context("/"):
        yield


def words(component) -> str:
    return json.dumps(component.to_plotly_json(), default=lambda c: c.to_plotly_json())


def call(client, output, inputs, state=()):
    """One callback as the browser would ask for it."""
    outputs = output.strip(".").split("...")
    specs = [dict(zip(("id", "property"), o.rsplit(".", 1), strict=True)) for o in outputs]
    body = {
        "output": output,
        "outputs": specs if output.startswith("..") else specs[0],
        "inputs": inputs,
        "changedPropIds": [f"{_text(i['id'])}.{i['property']}" for i in inputs],
        "state": list(state),
    }
    return client.post("/_dash-update-component", json=body)


def _text(name) -> str:
    return name if isinstance(name, str) else json.dumps(name, separators=(",", ":"))


def test_home_shows_whole_runs_as_links_and_broken_ones_with_the_reason(inside):
    page = words(runs.layout())
    assert '"/r/planted/atlas"' in page
    assert "4 layers \\u00d7 6 heads, 2 KV groups, 1 layers without attention" in page
    assert "broken" in page and "tokens.parquet" in page
    assert '"/r/broken/atlas"' not in page


def test_an_empty_folder_says_what_to_type(tmp_path):
    from workbench.app.server import build

    with build(tmp_path, token=None).server.test_request_context("/"):
        assert "workbench demo" in words(runs.layout())


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="no directory"):
        Store(tmp_path / "absent")


def test_one_run_can_be_served_alone(runs_root):
    alone = Store(runs_root / "planted")
    assert [s.id for s in alone.list()] == ["planted"]
    alone.run("planted")
    with pytest.raises(WorkbenchError):
        alone.run("no-qk")


@pytest.mark.parametrize(
    ("page", "arguments", "said"),
    [
        (atlas, {"run": "absent"}, "does not exist"),
        (atlas, {"run": "planted", "metric": "nope"}, "nope"),
        (head, {"run": "planted", "head": "L1H99"}, "no head L1H99"),
        (head, {"run": "planted", "head": f"L{MISSING}H0"}, "no head"),
        (head, {"run": "planted", "head": "L1H0", "prompt": "99"}, "prompt 99"),
        (head, {"run": "planted", "head": "9.6"}, "write it like L9H6"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(inside, page, arguments, said):
    assert said in words(page.layout(**arguments))


def test_metrics_equal_the_probes(runs_root):
    kept = Store(runs_root)
    direct = find("prev_token_score")(head_stats()).set_index("label")
    for run in ("planted", "no-qk"):
        found = kept.metric(run, "prev_token_score")
        np.testing.assert_allclose(found.table["value"], direct["value"], rtol=1e-5)
        np.testing.assert_allclose(found.table["null"], direct["null"], rtol=1e-5)
        assert found.question == "How much does a token look at the token before it?"


def test_the_grid_has_every_head_once_and_hatches_the_missing_layer(runs_root):
    kept = Store(runs_root)
    run, first = kept.run("planted"), kept.metric("planted", "prev_token_score")
    data = atlas.cells(first, kept.metric("planted", "sink_mass"), run.stats.spec, "text")
    assert [row["heads"] for row in data["layers"]] == [6, 6, 0, 6]
    assert {row["group"] for row in data["layers"] if row["heads"]} == {3}
    assert [c["label"] for c in data["cells"]] == list(first.table.index)
    assert data["high"] == pytest.approx(first.table["value"].max())


def test_the_ranking_is_by_value_and_cut(runs_root):
    kept = Store(runs_root)
    metric = kept.metric("planted", "prev_token_score")
    columns, rows = atlas.ranking(metric, kept.metric("planted", "sink_mass"), 5)
    assert [r["rank"] for r in rows] == [1, 2, 3, 4, 5]
    assert {r["label"] for r in rows[:3]} == {"L1H0", "L1H1", "L1H2"}
    assert [c["field"] for c in columns][:2] == ["rank", "label"]
    assert len(atlas.ranking(metric, metric, 0)[1]) == 3 * N_HEADS


def test_sinks_are_named_by_token_and_place(runs_root):
    kept = Store(runs_root)
    table, sentence = kept.sinks_or_reason("planted")
    named = sink_readings.name_sinks(table, kept.run("planted").tokens)
    assert (named.loc[0, "token"], named.loc[0, "place"]) == ("<s>", "first")
    assert named.loc[0, "prompts"] == len(LENGTHS)
    assert "% of all attention" in sentence


def test_the_pattern_sent_is_the_exact_one(client, runs_root):
    stats = head_stats()
    for label, prompt in (("L1H0", 0), ("L3H4", 1)):
        reply = client.get(f"/data/planted/pattern/{label}/{prompt}")
        shape = int(reply.headers["X-Rows"]), int(reply.headers["X-Columns"])
        sent = readings.from_codes(np.frombuffer(reply.data, np.uint8).reshape(shape))
        exact = pattern(stats.arrays, prompt, int(label[1]), int(label[3]))
        assert np.abs(sent - exact).max() < 0.006
        assert reply.headers["X-Pooled"] == "1"


def test_a_click_sends_less_than_300_kb_for_512_tokens(tmp_path):
    from workbench.app.server import build

    write_run(tmp_path / "long", (512,))
    client = build(tmp_path, token=None).server.test_client()
    url = "/r/long/head/L1H0?query=9"
    sent = [client.get(f"/data/long/{path}") for path in ("pattern/L1H0/0", "tokens/0")]
    sent += [
        call(client, "..head-cross.data...cross-sentence.children..",
             [{"id": "head-url", "property": "data", "value": url}]),
        call(client, "..head-data.data...head-title.children...head-verdict.children..."
             "head-evidence.children..",
             [{"id": "head-url", "property": "data", "value": url}],
             [{"id": "head-data", "property": "data", "value": None}]),
    ]  # fmt: skip
    part = {"of": "prompt mask", "part": "profiles"}
    sent.append(
        call(client, "..head-distance.figure...head-received.figure..",
             [{"id": part, "property": "data", "value": url},
              {"id": "theme", "property": "data", "value": "light"}])
    )  # fmt: skip
    assert [r.status_code for r in sent] == [200] * 5
    plain, packed = (
        sum(len(r.data) for r in sent),
        client.get("/data/long/pattern/L1H0/0", headers={"Accept-Encoding": "gzip"}),
    )
    assert len(packed.data) < 200_000
    assert plain - len(sent[0].data) + len(packed.data) < 300_000


def test_long_patterns_are_pooled_and_single_rows_are_not(tmp_path):
    from workbench.app.server import build

    write_run(tmp_path / "longer", (1100,), probes=False)
    client = build(tmp_path, token=None).server.test_client()
    reply = client.get("/data/longer/pattern/L1H0/0")
    assert (reply.headers["X-Pooled"], reply.headers["X-Rows"]) == ("2", "550")
    both = np.frombuffer(client.get("/data/longer/cross/L1H0/0/700").data, np.uint8)
    assert len(both) == 2200 and both[:1100].argmax() == 699
    assert client.get("/data/longer/cross/L1H0/0/1100").status_code == 404


def test_a_run_without_q_and_k_says_so_and_keeps_its_numbers(client, inside):
    assert client.get("/data/no-qk/pattern/L1H0/0").status_code == 404
    facts = head.facts_of(HeadState("no-qk", "L1H0"))
    assert "were not kept" in facts["problem"]
    assert any(name == "prev_token_score" for name, *_ in facts["metrics"])
    assert "were not kept" in head.crossing(HeadState("no-qk", "L1H0", query=3))["sentence"]


def test_the_verdict_of_planted_heads(runs_root):
    metrics = Store(runs_root).metrics("planted")
    assert readings.verdict(metrics, "L1H0")[0] == "previous-token head"
    assert readings.verdict(metrics, "L3H4")[0] == "sink head"


def test_locked_token_numbers_are_exact(inside):
    found = head.crossing(HeadState("planted", "L1H0", prompt=0, query=12))
    row = pattern(head_stats().arrays, 0, 1, 0)[12]
    position, _, weight = found["out"][0]
    assert int(position) == row.argmax() == 11
    assert weight == readings.number(row.max())


def test_masking_says_how_much_is_hidden(inside):
    facts = head.facts_of(HeadState("planted", "L3H4"))
    p = pattern(head_stats().arrays, 0, 3, 4)
    assert facts["sinks"] == [0]
    assert f"hidden: {100 * p[:, 0].sum() / len(p):.1f} %" in facts["hidden_text"]


def test_files_to_keep(client):
    csv = client.get("/data/planted/pattern/L1H0/0.csv?mask=1")
    assert "attachment" in csv.headers["Content-Disposition"]
    assert csv.text.splitlines()[13].split(",")[1] == ""
    assert "hide" in client.get("/data/planted/pattern/L1H0/0.svg?mask=1&ramp=log").text
    assert client.get("/data/planted/pattern/L1H0/0.svg?ramp=cube").status_code == 404
    assert client.get("/data/planted/pattern/L1H0/0.pkl").status_code == 404
    assert "prev_token_score" in client.get("/data/planted/heads.csv").text


def test_hostile_tokens_travel_as_text(client):
    assert readings.show_token(HOSTILE) in client.get("/data/planted/tokens/0").json["text"]
    svg = client.get("/data/planted/pattern/L1H0/1.svg").text
    assert "<img" not in svg


def test_state_of_pages_is_their_address(inside):
    page = words(atlas.layout("planted", metric="sink_mass", sel="L1H0", top="50"))
    assert '"/r/planted/atlas?metric=sink_mass&sel=L1H0&top=50"' in page
    assert AtlasState("planted").top == 20
