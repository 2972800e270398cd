"""Finding probes by name and running all that apply."""

import numpy as np
import pytest

from tests import synthetic as syn
from workbench.errors import WorkbenchError
from workbench.probes import all_probes, find, heads_table, summary


def test_find_names_the_known_probes_when_it_fails():
    assert find("sink_mass").info.name == "sink_mass"
    with pytest.raises(WorkbenchError, match=r"'sink_mas'; known: .*sink_mass.*induction_score"):
        find("sink_mas")


def test_summary_has_a_row_per_head_and_a_column_per_probe():
    stats = syn.ragged()
    table = summary(stats)
    assert list(table["label"]) == ["L0H0", "L0H1", "L0H2", "L2H0", "L2H1"]
    assert set(table.columns[3:]) == {p.__name__ for p in all_probes()}
    np.testing.assert_array_equal(table["qk_distance"], find("qk_distance")(stats)["value"])
    assert table.attrs["left_out"] == {}
    settings = {"epsilon": 0.3, "T": 64, "null_mass": "with"}
    assert table.attrs["settings"]["first_token_sink_rate"] == settings


def test_what_does_not_apply_is_left_out_with_its_reason():
    ids = [list(range(10))]
    stats = syn.head_stats([[syn.first(10)[None]]], ids).only(
        ["self_mass", "n_visible", "first_mass", "induction_mass"]
    )
    table = summary(stats)
    assert list(table.columns) == [
        "layer",
        "head",
        "label",
        "self_attention_score",
        "induction_score",
    ]
    reasons = table.attrs["left_out"]
    assert "fewer than T=64" in reasons["first_token_sink_rate"]
    assert "repeated_random_tokens" in reasons["induction_head_score"]
    assert reasons["value_drain"] == "needs vo_norm"


def test_long_form_carries_spread_count_and_null():
    stats = syn.ragged()
    table = heads_table(stats)
    assert list(table.columns) == ["probe", "layer", "head", "label", "value", "sd", "n", "null"]
    assert len(table) == 5 * len(all_probes())
    part = table[table["probe"] == "sink_mass"].drop(columns="probe").reset_index(drop=True)
    assert part.equals(find("sink_mass")(stats))
    empty = heads_table(stats.only(["q_norm"]))
    assert empty.empty and set(empty.attrs["left_out"]) == {p.__name__ for p in all_probes()}
    assert list(summary(stats.only(["q_norm"])).columns) == ["layer", "head", "label"]
