"""The Sinks page without a browser: what it says, what the mask does to every page, its files."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from app_made import N_HEADS, head_stats, pattern, with_secondary

from workbench.app import ablate_panel, sink_tables
from workbench.app.pages import atlas, head, sinks
from workbench.app.urls import AtlasState, HeadState, SinksState
from workbench.errors import WorkbenchError
from workbench.probes import find, sink_positions
from workbench.runs import save


@pytest.fixture
def inside(app):
    with app.server.test_request_context("/"):
        yield


def words(component) -> str:
    return json.dumps(component.to_plotly_json(), default=lambda c: c.to_plotly_json())


def test_the_page_has_every_box_and_the_state_of_its_address(inside):
    page = words(sinks.layout("planted", eps="0.2", at="3", mask="1"))
    for title in ("By layer and head", "By position", "Sink tokens", "Secondary sinks",
                  "Residual stream", "Values", "Massive activations", "Beside another run",
                  "Ablate"):  # fmt: skip
        assert f'"{title}"' in page
    assert '"/r/planted/sinks?at=3&eps=0.2&mask=1"' in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"run": "absent"}, "does not exist"),
        ({"run": "planted", "prompt": "7"}, "prompt 7"),
        ({"run": "planted", "at": "40"}, "position 40"),
        ({"run": "planted", "other": "absent"}, "does not exist"),
        ({"run": "planted", "eps": "2"}, "eps"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(inside, arguments, said):
    assert said in words(sinks.layout(**arguments))


def test_the_list_is_the_probe_under_the_threshold_of_the_address(inside):
    for eps in (0.3, 0.15, 0.99):
        rows = sinks.rows_of(SinksState("planted", eps=eps))
        table = sink_positions(head_stats(), threshold=eps)
        found = [(r["prompt"], r["position"], r["n_heads"]) for r in rows]
        wanted = table[["prompt", "position", "n_heads"]].to_numpy().tolist()
        assert found == [tuple(row) for row in wanted]
    loose, strict = (sinks.rows_of(SinksState("planted", eps=e)) for e in (0.12, 0.3))
    assert len(loose) > len(strict) == 2
    said = sinks.count_words(SinksState("planted"))
    assert said.startswith("2 tokens get more than 0.3 of a head's attention, in 2 of 2 prompts")
    assert {r["queries"] for r in strict} == {40, 32}


def test_the_heat_map_asks_about_the_key_of_the_address(inside):
    whole = sink_tables.heat_metric(SinksState("planted"))
    one = sink_tables.heat_metric(SinksState("planted", prompt=1, at="6"))
    p = pattern(head_stats().arrays, 1, 1, 0)
    assert one.of("L1H0").value == pytest.approx(p[6:, 6].mean(), rel=1e-4)
    assert whole.of("L3H4").value > 0.9 > 0.1 > one.of("L3H4").value
    strongest = sink_tables.heat_metric(SinksState("planted", prompt=1, at="strongest"))
    assert strongest.of("L3H4").value > 0.9
    said = sinks.question_of(SinksState("planted", prompt=1, at="6"))
    assert "position 6 “⇥” of prompt 1" in said and "Unit: probability" in said
    assert "position 0 “<s>” of every prompt" in sinks.question_of(SinksState("planted"))
    with pytest.raises(WorkbenchError, match="no value_drain"):
        sink_tables.heat_metric(SinksState("planted", metric="value_drain"))


def test_the_mask_hides_the_sinks_and_says_how_much(inside):
    plain, masked = (SinksState("planted", mask=m) for m in (False, True))
    assert sinks.place_sentences(plain)[1] == ""
    said = sinks.place_sentences(masked)[1]
    arrays = head_stats().arrays
    share = [
        np.mean(
            [pattern(arrays, p, ly, h)[:, 0].mean() for ly in (0, 1, 3) for h in range(N_HEADS)]
        )
        for p in (0, 1)
    ]
    every = (40 * share[0] + 32 * share[1]) / 72
    assert f"{100 * every:.1f} % of all attention is hidden" in said
    assert f"in this prompt {100 * share[0]:.1f} %" in said and "key 0 “<s>”" in said
    assert np.isnan(sink_tables.received(masked)["received"][0])
    assert sink_tables.received(plain)["received"][0] > 0.1
    assert sink_tables.heat_metric(masked).of("L3H4").value < 0.01
    assert "strongest of the other keys" in sinks.question_of(masked)


def test_the_atlas_masks_what_can_be_had_exactly_and_says_what_cannot(inside):
    def shown(name, mask):
        state = AtlasState("planted", name, mask=mask)
        return atlas._two(state)[0], atlas._question(state, atlas._two(state)[0])

    entropy, said = shown("pattern_entropy", True)
    assert "without position 0" in said and "exact" in said
    assert entropy.of("L0H0").value != shown("pattern_entropy", False)[0].of("L0H0").value
    mass, said = shown("sink_mass", True)
    assert "measures the sink itself" in said
    direct = find("sink_mass")(head_stats()).set_index("label")["value"]
    assert mass.of("L3H4").value == pytest.approx(direct["L3H4"], rel=1e-5)
    assert "masked" not in shown("pattern_entropy", False)[1]
    assert "cannot be recomputed" in shown("entropy", True)[1]


def test_low_values_stand_first_where_they_tell(inside):
    metric = atlas._two(AtlasState("planted", "sink_mass"))[0]
    low = replace(metric, low_tells=True)
    first = atlas.ranking(low, metric, 3)[1]
    assert [r["rank"] for r in first] == [1, 2, 3]
    assert first[0]["label"] == metric.table["value"].idxmin()
    assert low.rank(first[0]["label"])[0] == 1
    assert "lowest stand first" in atlas._question(AtlasState("planted"), low)


def test_the_head_page_leaves_masked_sinks_out_of_what_is_looked_at(inside):
    for mask, here in ((False, True), (True, False)):
        figure = head.profiles(HeadState("planted", "L3H4", mask=mask), "light")[1]
        assert np.isfinite(figure.data[-1].y[0]) == here


def test_a_head_without_q_and_k_still_shows_what_it_receives(inside):
    distance, received = head.profiles(HeadState("no-qk", "L3H4", prompt=1), "light")
    assert "not kept" in distance.layout.annotations[0].text.replace("<br>", " ")
    p = pattern(head_stats().arrays, 1, 3, 4)
    np.testing.assert_allclose(received.data[-1].y[0], p[:, 0].mean(), rtol=1e-4)


def test_missing_statistics_are_a_sentence_each(inside, client):
    for table, group in (("residual", "residual"), ("values", "norms"), ("massive", "residual")):
        reply = client.get(f"/data/planted/sinks/{table}.csv")
        assert reply.status_code == 404 and f"'{group}' in want" in reply.text
    assert "resid_cos" in sink_tables.no_levels(SinksState("planted"))
    assert "Their levels are not known" in sinks.count_words(SinksState("planted"))


def test_files_hold_what_the_figures_draw(inside, client):
    def read(name, query=""):
        reply = client.get(f"/data/planted/sinks/{name}.csv?{query}")
        assert reply.status_code == 200 and "attachment" in reply.headers["Content-Disposition"]
        return pd.read_csv(io.StringIO(reply.text))

    assert read("heads")["label"].tolist()[:2] == ["L0H0", "L0H1"]
    curve = read("received", "prompt=1&mask=1")
    assert len(curve) == 32 and np.isnan(curve["received"][0])
    assert len(read("list", "eps=0.12")) > len(read("list"))
    assert read("shares", "other=no-qk")["run"].unique().tolist() == ["planted", "no-qk"]
    assert client.get("/data/planted/sinks/nothing.csv").status_code == 404
    assert "press Run" in client.get("/data/planted/sinks/ablated.csv").text
    assert client.get("/data/planted/sinks/list.csv?eps=9").status_code == 404


def test_secondary_sinks_are_found_named_and_counted(runs_root, inside):
    """The planted token is one under the usual thresholds, and none under stricter ones."""
    save(with_secondary(head_stats(), 4, range(1, 3)), runs_root / "levels")
    state = SinksState("levels", eps=0.05)
    rows = {(r["prompt"], r["position"]): r for r in sinks.rows_of(state)}
    found = rows[0, 4]
    assert (found["l_start"], found["lifetime"], found["label"]) == (1, 2, "secondary")
    # The same position of the other prompt and the first sink itself are none.
    assert {k for k, r in rows.items() if r["label"]} == {(0, 4)}
    assert "1 secondary" in sinks.count_words(state)
    counts = sink_tables.levels(state)
    assert counts.to_dict("list") == {"l_start": [1], "lifetime": [2], "n": [1], "n_prompts": [1]}
    for strict in (SinksState("levels", cos=0.98), SinksState("levels", life=0.55)):
        assert sink_tables.levels(strict).empty
        said = sink_tables.no_levels(strict)
        assert "no secondary sinks under these thresholds" in said and ".97" in said
    table = sink_tables.residual(state)
    assert table["sink"].tolist() == [1, 100, 100, 100, 100] and (table["others"] == 1).all()


def test_two_runs_are_compared_by_their_first_position(inside):
    rows = sinks.compare_rows(SinksState("planted", other="no-qk"))
    assert [r[0] for r in rows] == ["planted", "no-qk"]
    assert rows[0][1:] == rows[1][1:] and rows[0][5] == "<s> (first)"
    assert len(sinks.compare_rows(SinksState("planted"))) == 1


def test_companions_are_runs_of_the_same_model(runs_root, tmp_path):
    from workbench.app.store import Store

    for name in ("planted", "no-qk", "broken"):
        shutil.copytree(runs_root / name, tmp_path / name)
    about = tmp_path / "no-qk" / "manifest.json"
    assert Store(tmp_path).companions("planted") == ["no-qk"]
    about.write_text(json.dumps({**json.loads(about.read_text()), "model": "another"}))
    assert Store(tmp_path).companions("planted") == []


def test_the_panel_says_what_it_would_do_or_why_not(inside):
    state = SinksState("planted")
    assert "No head is chosen" in ablate_panel.what_words(state)
    said = ablate_panel.what_words(SinksState("planted", scope="all", op="drop"))
    assert "'planted' is not on this machine" in said
    words_, data = ablate_panel.progress(SinksState("planted", scope="all"), "")
    assert words_ == "" and data == {"running": False, "done": False}


def test_the_pages_of_a_run_are_linked(inside):
    for page in (sinks.layout("planted"), atlas.layout("planted"), head.layout("planted", "L1H0")):
        text = words(page)
        for name in ("atlas", "sinks", "head"):
            assert f"-tab-{name}" in text
        assert "-mask" in text
