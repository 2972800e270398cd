"""Dormant heads and value drain on planted norms."""

import dataclasses

import numpy as np
import pytest

from tests import synthetic as syn
from workbench.commands.probe import _show
from workbench.errors import WorkbenchError
from workbench.probes import (
    all_probes,
    dormant_disagreement,
    dormant_score_mass,
    dormant_score_output,
    value_drain,
)
from workbench.probing import PROBES, probe

LENGTHS = (24, 16)


def planted():
    """Heads 0 sink and silent, 1 sink yet loud, 2 spread yet silent, 3 spread and loud."""
    maps = []
    for n in LENGTHS:
        spread = syn.uniform(syn.causal_mask(n))
        maps.append([np.stack([syn.first(n), syn.first(n), spread, spread])])
    norm = np.full((2, 1, 4, 24), np.nan)
    for p, n in enumerate(LENGTHS):
        norm[p, 0, :, :n] = np.array([0.1, 2.0, 0.1, 1.8])[:, None]
    return syn.head_stats(maps, norms={"result_norm": norm})


def test_disagreement_names_the_two_planted_heads():
    table = dormant_disagreement(planted())
    assert list(table["label"]) == ["L0H1", "L0H2"]
    assert list(table["says"]) == ["dormant by mass only", "dormant by output only"]
    assert list(table["mass"]) == [1, table["mass_null"].iloc[1]]
    cells = {k: table.attrs[k] for k in ("both", "by_mass_only", "by_output_only", "neither")}
    assert cells == {"both": 1, "by_mass_only": 1, "by_output_only": 1, "neither": 1}
    none = dormant_disagreement(planted(), mass=1.5, output=0.0)
    assert none.empty and none.attrs["neither"] == 4


def test_output_score_is_relative_to_the_layer():
    found = dormant_score_output(planted())
    np.testing.assert_allclose(found["value"], np.array([0.1, 2.0, 0.1, 1.8]))
    assert (found["null"] == 1).all() and (found["n"] == 40).all()


def test_output_score_ignores_the_layers_own_scale():
    stats = syn.ragged()
    before = dormant_score_output(stats)
    scale = syn.xr.DataArray([1.0, 50.0], coords={"layer": [0, 2]})
    data = stats.data.assign(
        result_norm=(stats["result_norm"] * scale).transpose(*stats["result_norm"].dims)
    )
    after = dormant_score_output(syn.HeadStats(data, stats.tokens, stats.spec, stats.provenance))
    np.testing.assert_allclose(after["value"], before["value"])
    # A layer's scores average 1 by construction.
    np.testing.assert_allclose(before.groupby("layer")["value"].mean(), 1)


def test_mass_score_finds_a_sink_that_is_not_first():
    n = 20
    onto = syn.identity(n) * 0.2
    onto[:, 13] += 0.8
    maps = [[np.stack([onto, syn.uniform(syn.full_mask(n))])]]
    found = dormant_score_mass(syn.head_stats(maps, causal=False))
    assert found["value"].iloc[0] == pytest.approx(0.8 + 0.2 / n)
    assert found["value"].iloc[1] == pytest.approx(1 / n) == found["null"].iloc[1]


def test_mass_score_does_not_count_prompts_without_enough_queries():
    maps = [[syn.first(20)[None]], [syn.first(5)[None]]]
    row = dormant_score_mass(syn.head_stats(maps)).iloc[0]
    assert (row["value"], row["n"]) == (1, 1)


def test_value_drain_planted():
    norm = np.full((2, 1, 1, 24), np.nan)
    norm[0, 0, 0, :24] = 2.0
    norm[1, 0, 0, :16] = 4.0
    norm[:, :, :, 0] = [[[0.2]], [[1.2]]]
    maps = [[syn.first(n)[None]] for n in LENGTHS]
    stats = syn.head_stats(maps, norms={"vo_norm": norm})
    row = value_drain(stats).iloc[0]
    assert row["value"] == pytest.approx((0.1 + 0.3) / 2)
    assert row["sd"] == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert (row["null"], row["n"]) == (1, 2)
    # Another position is no sink: above 1, since the drained one is among the others.
    other = value_drain(stats, position=5)
    assert other["value"].iloc[0] > 1 and other.attrs["position"] == 5
    with pytest.raises(WorkbenchError, match="position 99"):
        value_drain(stats, position=99)


def test_value_drain_null_equals_exchanging_the_position_by_hand():
    rng = np.random.default_rng(1)
    values = rng.uniform(0.5, 3, size=10)
    stats = syn.head_stats([[syn.first(10)[None]]], norms={"vo_norm": values.reshape(1, 1, 1, 10)})
    others = values[1:]
    by_hand = [others[j] / np.delete(others, j).mean() for j in range(9)]
    row = value_drain(stats).iloc[0]
    assert row["null"] == pytest.approx(np.mean(by_hand))
    assert row["value"] == pytest.approx(values[0] / others.mean())


def test_random_norms_show_no_drain():
    stats = syn.ragged(5, halves=(40, 40, 40, 40))
    found = value_drain(stats)
    assert ((found["value"] - found["null"]).abs() < 3 * found["sd"]).all()


def test_dormant_is_at_the_low_end_of_output_and_of_values():
    low = {p.__name__ for p in all_probes() if p.info.direction == "low"}
    assert {"dormant_score_output", "value_drain"} <= low
    assert not {"dormant_score_mass", "sink_mass", "induction_score"} & low
    found = dormant_score_output(planted()).sort_values("value")
    assert list(found["label"][:2]) == ["L0H0", "L0H2"]
    with pytest.raises(WorkbenchError, match="direction='down'"):
        probe(question="?", needs=(), units="-", bounds=(0, 1), counts="-", null="-", paper="-",
              direction="down")  # fmt: skip


@pytest.mark.parametrize(("name", "first"), [("dormant_score_output", "L0H0"), ("x", "L0H1")])
def test_the_command_shows_the_end_where_the_effect_is(name, first, capsys, monkeypatch):
    table = dormant_score_output(planted())
    monkeypatch.setitem(PROBES, "x", _high)
    _show(name, table, 1)
    printed = capsys.readouterr().out
    shown = [label for label in table["label"] if label in printed]
    assert shown == [first]


def _high(stats):
    raise AssertionError("only its declaration is read")


_high.info = dataclasses.replace(dormant_score_output.info, name="x", direction="high")
