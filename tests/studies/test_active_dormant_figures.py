"""Figures of the study as pure functions of trajectories whose numbers are planted."""

import numpy as np
import pytest
from study_made import EDITS, STEPS, TOKENS, planted

from workbench.studies import active_dormant as study
from workbench.studies import active_dormant_figures as figures
from workbench.studies import active_dormant_panels as panels
from workbench.studies import study as frame
from workbench.zoo.backcopy import laws, published


def learning(seed, bigram_at, copy_at):
    """A run whose risks fall below their thresholds at the given steps."""
    run = planted("main", seed)
    at = np.array(STEPS)
    run["excess_off"][:] = np.where(at < bigram_at, 2.0, 0.1)
    run["risk_on"][:] = np.where(at < copy_at, 4.0, 0.2)
    return run


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def texts(figure):
    """Everything a reader can see or hover over."""
    return figure.to_json()


EVERY = {
    setting: [planted(setting, seed) for seed in range(2)]
    for setting in ("main", "no-copy", "relu", "null-from-4", "no-attention", "adamw", "sgd")
}


@pytest.mark.parametrize(
    "draw",
    [
        figures.risks, figures.sink, figures.sink_by_run, figures.margin, figures.values,
        figures.residual, figures.interventions, lambda runs: panels.patterns(runs["main"][0]),
        panels.published_curve,
    ],
)  # fmt: skip
def test_axes_are_named_hover_says_what_and_the_begin_token_is_not_struck_through(draw):
    figure = draw(EVERY)
    panels_named = len(figure.layout.annotations) > 4  # small panels carry their quantity on top
    assert figure.layout.yaxis.title.text or panels_named
    assert any(axis.title.text for axis in figure.select_xaxes())
    for trace in figure.data:
        assert trace.hovertemplate or trace.hoverinfo == "skip"
    # Plotly knows <b>, <br>, <sub>, <extra>; `<s>` would strike out what follows.
    assert "<s>" not in texts(figure)


def test_risks_mark_the_order_of_the_two_falls():
    figure = figures.risks({"main": [learning(0, 10, 50), learning(1, 20, 50)]})
    diamonds = [trace for trace in figure.data if trace.mode == "markers"]
    assert [list(trace.x) for trace in diamonds] == [[10, 20], [50, 50]]
    assert [set(trace.y) for trace in diamonds] == [{laws.LEARNED_BIGRAM}, {laws.LEARNED_COPY}]
    notes = {note.text: note.y for note in figure.layout.annotations}
    assert notes == {
        "bigram learned at step 10 to 20 (below 0.5)": pytest.approx(np.log10(0.5)),
        "backcopy learned at step 50 (below 1)": pytest.approx(0),
    }


def test_risks_say_when_something_is_never_learned():
    figure = figures.risks({"main": [learning(0, 10, 1000)]})
    assert "backcopy not learned (below 1)" in [n.text for n in figure.layout.annotations]


def test_sink_shows_every_run_off_and_on_trigger():
    runs = {
        "main": [planted("main", s, sink_off=0.9 - 0.1 * s, sink_on=0.02) for s in range(3)],
        "no-copy": [planted("no-copy", sink_off=0.2)],
    }
    figure = figures.sink(runs)
    off = named(figure, "no trigger at the query")
    assert [trace.y[-1] for trace in off] == pytest.approx([0.9, 0.8, 0.7])
    assert [trace.showlegend for trace in off] == [True, False, False]
    assert len({trace.line.dash for trace in off}) == 3
    assert list(off[0].x) == STEPS[1:], "step 0 has no place on a log axis"
    assert named(figure, "trigger at the query")[0].y[-1] == pytest.approx(0.02)
    assert not named(figure, "ReLU attention")


def test_runs_end_where_they_end_and_only_null_runs_have_a_null_sink():
    runs = {
        "main": [planted("main", sink_off=0.9, sink_on=0.02)],
        "null-from-4": [planted("null-from-4", sink_off=0.3, null_off=0.6)],
        "no-attention": [planted("no-attention")],
    }
    off, on, null = figures.sink_by_run(runs).data
    found = dict(zip(off.y, off.x, strict=True))
    assert found == pytest.approx({"main-s0": 0.9, "null-from-4-s0": 0.3})
    assert dict(zip(on.y, on.x, strict=True))["main-s0"] == pytest.approx(0.02)
    assert dict(zip(null.y, null.x, strict=True)) == pytest.approx({"null-from-4-s0": 0.6})


def test_margin_has_its_band():
    run = planted("main", delta_logit_off=10.0, delta_logit_low=6.0, delta_logit_high=15.0)
    band, line = figures.margin({"main": [run]}).data
    assert band.fill == "toself" and line.y[-1] == pytest.approx(10)
    n = len(STEPS)
    assert band.y[n - 1] == pytest.approx(15) and band.y[n] == pytest.approx(6)
    assert list(band.x[:n]) == STEPS and list(band.x[n:]) == STEPS[::-1]
    assert line.customdata[-1].tolist() == pytest.approx([6, 15])


def test_values_by_role():
    run = planted("main")
    for role, norm in (("begin", 2.0), ("trigger", 6.0), ("other", 9.0)):
        run["value_norm"].loc[{"role": role}] = norm
    figure = figures.values({"main": [run]})
    found = {trace.name: trace.y[-1] for trace in figure.data}
    assert found == {figures.S: 2.0, "triggers": 6.0, "other symbols": 9.0}


def test_residual_of_both_optimisers_and_where_the_slope_is_fitted():
    runs = {name: [planted(name, resid_norm=top)] for name, top in (("adamw", 20.0), ("sgd", 5.0))}
    figure = figures.residual(runs)
    assert named(figure, f"AdamW: {figures.S}")[0].y[-1] == pytest.approx(20)
    assert named(figure, f"SGD: {figures.S}")[0].y[-1] == pytest.approx(5)
    fitted = figure.layout.shapes[0]
    assert (fitted.x0, fitted.x1) == (50, 100)


def test_interventions_are_factors_of_the_whole_networks_excess():
    runs = [planted("main", seed) for seed in range(2)]
    for run, factor in zip(runs, (100.0, 400.0), strict=True):
        run["edit_excess_on"].loc[{"edit": "none"}] = 0.02
        run["edit_excess_on"].loc[{"edit": EDITS[1:]}] = 0.02
        run["edit_excess_on"].loc[{"edit": "L0H0"}] = 0.02 * factor
        run["edit_excess_off"][:] = 0.1
        run["edit_excess_off"].loc[{"edit": "key 0"}] = 0.15
    on, off = figures.interventions({"main": runs}).data
    assert on.base == 1 and list(on.x) == list(figures.EDITS.values())
    # The geometric mean of 100 and 400.
    assert np.asarray(on.y) + 1 == pytest.approx([200, 1, 1, 1, 1])
    assert np.asarray(off.y) + 1 == pytest.approx([1, 1, 1.5, 1, 1])
    assert "main-s1: 0.02 → 8 nats (× 400)" in on.customdata[0]
    assert on.text[0] == "× 200" and off.text[2] == "× 1.50"


def test_patterns_hide_the_future_and_name_the_triggers():
    run = planted("main", risk_on=4.0)
    run["pattern"].loc[{"step": 100}] = 0.0
    run["pattern"].loc[{"step": 100, "query": 2, "key": 1}] = 0.7
    figure = panels.patterns(run)
    assert len(figure.data) == len(STEPS)
    last = np.asarray(figure.data[-1].z, dtype=float)
    assert np.isnan(last[np.triu_indices(6, 1)]).all() and last[2, 1] == pytest.approx(0.7)
    # The text is <s> w1 w0 w1 w2 w3, and w0 is the trigger: at query 2.
    assert list(figure.layout.yaxis.ticktext) == ["w0 2"]
    assert list(figure.data[-1].customdata[2][1][:2]) == ["2 w0", "1 w1"]
    assert figure.data[-1].customdata[0][0][0] == "0 &lt;s&gt;"
    assert figure.layout.coloraxis.cmin == 0 and figure.layout.coloraxis.cmax == 1
    assert figure.layout.coloraxis.colorbar.title.text.startswith("weight")


def test_snapshots_have_the_ends_and_the_fall():
    run = learning(0, 10, 20)
    long = run.reindex(step=[*STEPS, 200, 500, 1000], method="ffill")
    steps = panels.snapshot_steps(long)
    assert len(steps) == panels.SNAPSHOTS and {0, 20, 1000} <= set(steps)
    assert steps == sorted(steps)


def test_published_numbers_are_shown_as_they_are_and_labelled():
    figure = panels.published_curve(EVERY)
    theirs = [trace for trace in figure.data if trace.name == "published, not run here"]
    ours = [trace for trace in figure.data if trace.name == "ours, this study"]
    curve = published.curve().iloc[1:]  # step 0 has no place on a log axis
    assert len(theirs) == 7 and len(ours) == 7
    assert list(theirs[2].x) == list(curve["step"])
    assert list(theirs[2].y) == pytest.approx(list(curve["sink_off"]))
    assert list(theirs[5].y) == pytest.approx(list(published.residuals()["adamw"]))
    assert {trace.line.color for trace in theirs}.isdisjoint({t.line.color for t in ours})
    assert sum(trace.showlegend for trace in figure.data) == 2


def test_figures_that_lack_their_runs_are_left_out():
    names = [p.name for p in frame.pictures(study.PLATES, EVERY, EVERY)]
    assert len(names) == 9 and len(set(names)) == 9
    few = {name: EVERY[name] for name in ("main", "no-copy")}
    assert set(names) - {p.name for p in frame.pictures(study.PLATES, few, few)} == {"residual"}


def test_the_table_of_curves_has_every_run_and_step():
    table = study.tables(EVERY)["curves"]
    assert len(table) == 14 * len(STEPS) and set(table["setting"]) == set(EVERY)
    last = table[(table["run"] == "main-s1") & (table["step"] == 100)].iloc[0]
    assert last["sink_off"] == pytest.approx(0.1)
    assert last["edit_excess_off: key 0"] == pytest.approx(0.1)
    assert len(TOKENS) == 5 and "delta_logit" not in table
