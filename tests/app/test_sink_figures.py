"""What the figures of the Sinks page say, without a browser."""

import numpy as np
import pandas as pd
import pytest
from app_made import MISSING, N_HEADS, head_stats

from workbench.app import figures, sink_figures
from workbench.app.store import Store


@pytest.fixture(scope="module")
def kept(runs_root):
    return Store(runs_root)


def received(n=40, few=()):
    return pd.DataFrame(
        {
            "position": np.arange(n), "received": np.linspace(0.4, 0.01, n), "uniform": 1 / n,
            "queries": n, "few": np.isin(np.arange(n), few),
        }
    )  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_heat_has_every_head_units_names_and_a_ring(kept, theme):
    metric, stats = kept.metric("planted", "sink_mass"), head_stats()
    figure = sink_figures.heat(metric, stats.spec, "text", "L3H4", theme)
    cells = figure.data[0]
    assert cells.z.shape == (4, N_HEADS)
    assert np.isnan(cells.z[MISSING]).all() and np.isfinite(np.delete(cells.z, MISSING, 0)).all()
    assert cells.z[3, 4] == metric.of("L3H4").value
    label, said = cells.customdata[3, 4]
    assert label == "L3H4" and "null" in said and "n 72" in said and "rank" in said
    assert cells.colorbar.title.text == "sink_mass (probability)"
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("head", "layer")
    ring = figure.layout.shapes[0]
    assert (ring.x0, ring.y0) == (3.5, 2.5)
    assert cells.colorscale[0][1] == figures.THEMES[theme].ramp[0]


def test_the_curve_names_sinks_hides_nan_and_fades_what_few_see():
    table = received(few=range(33, 40))
    table.loc[0, "received"] = np.nan
    figure = sink_figures.curve(table, ["a<b"] * 40, [0, 5], place=5)
    traces = {t.name: t for t in figure.data}
    assert set(traces) == {
        "uniform", "received", "seen by fewer than 8 queries", "sink", "the sink chosen",
    }  # fmt: skip
    assert np.isfinite(traces["received"].y).sum() == 32
    assert np.isfinite(traces["seen by fewer than 8 queries"].y).sum() == 7
    # The hidden one is not marked, the other is, with its token harmless.
    assert list(traces["sink"].x) == [5] and "a&lt;b" in traces["sink"].text[0]
    assert figure.layout.yaxis.type == "log" and "probability" in figure.layout.yaxis.title.text
    assert sink_figures.curve(table, ["x"] * 40, [], axis="linear").layout.yaxis.type is None


def test_long_curves_keep_their_peaks():
    table = received(30_000)
    table.loc[17_011, "received"] = 0.9
    figure = sink_figures.curve(table, ["t"] * 30_000, [])
    drawn = {t.name: t for t in figure.data}["received"]
    assert len(drawn.x) <= 4000
    assert drawn.x[np.argmax(drawn.y)] == 17_011


def test_norms_show_both_lines_and_the_band():
    table = pd.DataFrame(
        {"stream": [0, 1], "sink": [1.0, 90.0], "others": [1.0, 2.0], "low": [0.5, 1.0],
         "high": [2.0, 3.0]}
    )  # fmt: skip
    figure = sink_figures.residual(table, "position 0")
    assert [t.name for t in figure.data][1:] == [
        "90 % of the others", "mean of the others", "position 0",
    ]  # fmt: skip
    assert list(figure.data[-1].x) == ["emb", "0"] and list(figure.data[-1].y) == [1, 90]
    assert "L2" in figure.layout.yaxis.title.text
    few = pd.DataFrame({"layer": [1, 3], "sink": [1.0, 2.0], "others": [3.0, 4.0]})
    assert list(sink_figures.values(few, "x").data[0].x) == ["1", "3"]


def test_levels_count_tokens_where_they_are():
    table = pd.DataFrame({"l_start": [4, 4], "lifetime": [2, 5], "n": [3, 1], "n_prompts": [2, 1]})
    cells = sink_figures.levels(table, 8).data[0]
    z = np.array(cells.z)
    assert z.shape == (8, 8) and np.nansum(z) == 4
    assert z[1, 4] == 3 and z[4, 4] == 1 and np.isfinite(z).sum() == 2


def test_two_runs_stand_side_by_side_and_one_beside_uniformity():
    table = pd.DataFrame({"layer": [0, 1], "share": [0.1, 0.4], "uniform": [0.05, 0.05]})
    assert [t.name for t in sink_figures.by_layer({"a": table, "b": table}).data] == ["a", "b"]
    one = sink_figures.by_layer({"a": table})
    assert [t.name for t in one.data] == ["a", "uniform"] and list(one.data[1].y) == [0.05, 0.05]


def test_before_and_after_share_one_scale():
    after = received()
    after["received"] = after["received"] / 4
    figure = sink_figures.before_after(received(), after, ["t"] * 40, "log", "dark")
    assert [a.text for a in figure.layout.annotations] == ["before", "after"]
    assert figure.layout.yaxis2.matches == "y" and figure.layout.yaxis.type == "log"
    assert figure.data[1].y[0] == 0.4 and figure.data[3].y[0] == 0.1


def test_an_empty_figure_says_why():
    figure = figures.empty("light", "This run holds no <b> " + "very " * 30)
    text = figure.layout.annotations[0].text
    assert "&lt;b&gt;" in text and text.count("<br>") >= 2 and not figure.data
