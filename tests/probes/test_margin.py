"""Sink-logit margins on planted scores: mean, per token type, and how alike they are."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests import synthetic as syn
from tests.tiny import tiny
from workbench.errors import WorkbenchError
from workbench.probes import margin_by_token, margin_concentration, sink_logit_margin
from workbench.probes.margin import KIND

PARKED, ACTIVE = 4.0, -2.0


def with_margins(margins, mask):
    """Row q has the score margins[q] on key 0 and 0 on every other visible key."""
    scores = np.zeros(mask.shape)
    scores[:, 0] = margins
    weight = np.exp(scores) * mask
    return weight / weight.sum(1, keepdims=True)


def planted(lengths=(20, 13), seed=2):
    """Head 0 is parked but on token 9, head 1 looks evenly, head 2 at random."""
    rng = np.random.default_rng(seed)
    ids = [[1, *rng.integers(5, 12, size=n - 1)] for n in lengths]
    maps = []
    for tokens in ids:
        mask = syn.causal_mask(len(tokens))
        margins = np.where(np.array(tokens) == 9, ACTIVE, PARKED)
        maps.append(
            [np.stack([with_margins(margins, mask), syn.uniform(mask), syn.random_map(mask, rng)])]
        )
    return syn.head_stats(maps, ids), ids


def test_mean_margin_of_planted_scores_and_of_none():
    stats, ids = planted()
    table = sink_logit_margin(stats)
    expected = [ACTIVE if t == 9 else PARKED for tokens in ids for t in tokens[2:]]
    assert table["value"].iloc[0] == pytest.approx(np.mean(expected))
    assert table["value"].iloc[1] == pytest.approx(0, abs=1e-12)
    assert (table["n"] == len(expected)).all() and (table["null"] == 0).all()
    # The control: a random head is within its spread of no preference, the parked one is not.
    noise = np.sqrt(2 / len(expected)) * 1.2
    assert abs(table["value"].iloc[2]) < 3 * noise < table["value"].iloc[0]
    assert table.attrs == {"kind": KIND}


def test_the_first_two_queries_do_not_count_even_where_they_see_more():
    mask = syn.full_mask(12)
    margins = np.full(12, 1.5)
    margins[:2] = 50
    stats = syn.head_stats([[with_margins(margins, mask)[None]]], causal=False)
    assert stats["sink_margin"].sel(query=1).item() > 5
    row = sink_logit_margin(stats).iloc[0]
    assert (row["value"], row["n"]) == (pytest.approx(1.5), 10)


def test_margins_by_token_separate_where_the_head_is_parked():
    stats, ids = planted()
    table = margin_by_token(stats)
    later = [t for tokens in ids for t in tokens[2:]]
    parked = table[table["label"] == "L0H0"].set_index("id")
    assert parked["n"].to_dict() == {t: later.count(t) for t in set(later)}
    assert parked.loc[9, "margin"] == pytest.approx(ACTIVE) and parked.loc[9, "token"] == "t9"
    assert parked.drop(9)["margin"].to_numpy() == pytest.approx(PARKED)
    even = table[table["label"] == "L0H1"]
    assert even["margin"].to_numpy() == pytest.approx(0, abs=1e-12)


def test_concentration_is_the_spread_over_types_beside_their_mean():
    rng = np.random.default_rng(0)
    tokens = [1, *np.repeat(np.arange(20, 40), 2)]
    by_type = dict(zip(range(20, 40), rng.uniform(2, 6, size=20), strict=True)) | {1: 0.0}
    mask = syn.causal_mask(len(tokens))
    wide = np.array([by_type[t] for t in tokens])
    maps = [with_margins(m, mask) for m in (wide, np.where(wide > 0, 4.0, 0.0), -wide)]
    stats = syn.head_stats([[np.stack(maps)]], [tokens])
    table = margin_concentration(margin_by_token(stats)).set_index("label")
    low, high = np.quantile(wide[1::2], [0.1, 0.9])
    row = table.loc["L0H0"]
    assert row["n_types"] == 20
    assert row["q10"] == pytest.approx(low) and row["q90"] == pytest.approx(high)
    assert row["concentration"] == pytest.approx((high - low) / wide[1::2].mean())
    assert table.loc["L0H1", "concentration"] == pytest.approx(0, abs=1e-9)
    # A head that avoids the first token has no preference that could be alike.
    assert np.isnan(table.loc["L0H2", "concentration"]) and table.loc["L0H2", "mean"] < 0


def test_types_that_are_left_out_of_the_table_do_not_count():
    stats, _ = planted()
    table = margin_by_token(stats)
    whole = margin_concentration(table).set_index("label").loc["L0H0"]
    without = margin_concentration(table[table["id"] != 9]).set_index("label").loc["L0H0"]
    assert whole["concentration"] > 0.3
    assert without["concentration"] == pytest.approx(0, abs=1e-9)
    assert without["n_types"] == whole["n_types"] - 1
    with pytest.raises(WorkbenchError, match=r"lacks margin; .* margin_by_token"):
        margin_concentration(table.drop(columns="margin"))


def test_towers_of_two_sequences_are_refused():
    stats = syn.head_stats([[syn.first(10)[None]]], causal=False, kind="cross")
    with pytest.raises(WorkbenchError, match="different sequences"):
        sink_logit_margin(stats)


def test_margins_of_a_model_are_differences_of_its_eager_log_weights():
    model = tiny("gpt2")
    prompts = [[5, 6, 7, 8, 9, 5, 6], [40, 41, 42, 43, 44, 45, 46]]
    stats = wb.capture(model, prompts, want=["margins"])
    table = sink_logit_margin(stats)
    try:
        model.net.set_attn_implementation("eager")
        with torch.no_grad():
            maps = model.net(torch.tensor(prompts), output_attentions=True).attentions
    finally:
        model.net.set_attn_implementation("sdpa")
    logs = torch.stack(maps).double().log().numpy()
    for row in table.itertuples():
        one = logs[row.layer, :, row.head]
        each = [p[q, 0] - p[q, 1:q].mean() for p in one for q in range(2, 7)]
        assert row.value == pytest.approx(np.mean(each), abs=1e-4) and row.n == 10
