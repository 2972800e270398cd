"""Sink measures against closed forms, planted sinks and hand-made counts."""

import numpy as np
import pytest

from tests import synthetic as syn
from workbench.errors import WorkbenchError
from workbench.probes import (
    attention_share,
    entropy_detector,
    find,
    first_token_alpha,
    first_token_sink_rate,
    sink_mass,
    sink_positions,
)


def towards_first(length, weight):
    """`weight` on key 0 in every row but the first; the rest on the query itself."""
    found = syn.identity(length) * (1 - weight)
    found[:, 0] += weight
    return found


def test_uniform_causal_attention_is_no_sink():
    stats = syn.head_stats([[syn.uniform(syn.causal_mask(64))[None]]])
    alpha, control, used = first_token_alpha(stats)
    harmonic = sum(1 / k for k in range(1, 65)) / 64
    assert alpha.item() == pytest.approx(harmonic) == control.item()
    assert round(alpha.item(), 4) == 0.0741
    table = first_token_sink_rate(stats)
    assert table["value"].iloc[0] == 0 == table["null"].iloc[0]
    assert used == 64 and table.attrs == {"epsilon": 0.3, "T": 64, "null_mass": "with"}


def test_all_mass_on_the_first_key_is_a_sink_and_identity_is_none():
    stats = syn.head_stats([[np.stack([syn.first(70), syn.identity(70)])]])
    assert list(first_token_sink_rate(stats)["value"]) == [1, 0]
    assert list(sink_mass(stats)["value"]) == [1, pytest.approx(1 / 70)]


def test_the_indicator_comes_before_the_average():
    # One text in four has the sink: the mean alpha is above epsilon, the rate is a quarter.
    maps = [[towards_first(64, w)[None]] for w in (0.99, 0.2, 0.2, 0.2)]
    stats = syn.head_stats(maps)
    alpha, _, _ = first_token_alpha(stats)
    assert float(alpha.mean()) > 0.3
    row = first_token_sink_rate(stats).iloc[0]
    assert (row["value"], row["n"]) == (0.25, 4)
    assert row["sd"] == pytest.approx(np.std([1, 0, 0, 0], ddof=1))
    # And the other way round: three of four just above, the mean below.
    maps = [[towards_first(64, w)[None]] for w in (0.0, 0.31, 0.31, 0.31)]
    stats = syn.head_stats(maps)
    assert float(first_token_alpha(stats)[0].mean()) < 0.3
    assert first_token_sink_rate(stats)["value"].iloc[0] == 0.75


def test_first_T_rows_of_a_long_causal_prompt_equal_the_cut_prompt():
    rng = np.random.default_rng(1)
    whole = syn.random_map(syn.causal_mask(90), rng, 3)
    long = first_token_alpha(syn.head_stats([[whole[None]]]), 40)[0]
    cut = first_token_alpha(syn.head_stats([[whole[:40, :40][None]]]), 40)[0]
    assert long.item() == pytest.approx(whole[:40, 0].mean()) == cut.item()


def test_short_prompts_are_refused_and_encoders_use_the_whole_prompt():
    short = [[syn.first(64)[None]], [syn.first(20)[None]]]
    with pytest.raises(WorkbenchError, match="prompt 1 has 20 tokens, fewer than T=64"):
        first_token_sink_rate(syn.head_stats(short))
    assert first_token_sink_rate(syn.head_stats(short), T=20).attrs["T"] == 20
    table = first_token_sink_rate(syn.head_stats(short, causal=False))
    assert table.attrs["T"] == "whole prompt" and table["value"].iloc[0] == 1
    with pytest.raises(WorkbenchError, match="epsilon"):
        first_token_sink_rate(syn.head_stats(short), epsilon=30.0)


def test_column_mass_pools_over_the_queries_that_see_the_first_position():
    rng = np.random.default_rng(7)
    mask = [[syn.window_mask(n, 6)] for n in (20, 9)]
    maps = [[syn.random_map(m[0], rng, 2)[None]] for m in mask]
    row = sink_mass(syn.head_stats(maps, masks=mask)).iloc[0]
    seen = [m[0][0][q, 0] for m in maps for q in range(6)]
    assert row["value"] == pytest.approx(np.mean(seen))
    assert row["n"] == 12
    assert row["null"] == pytest.approx(np.mean([1 / k for k in range(1, 7)]))


def two_sinks():
    """Encoder of 2 layers: three heads on position 0, one on position 7; 20 and 16 tokens."""
    rng = np.random.default_rng(3)

    def onto(length, position, weight=0.8):
        found = syn.random_map(syn.full_mask(length), rng) * (1 - weight)
        found[:, position] += weight
        return found

    return [
        [np.stack([onto(n, 0), onto(n, 0)]), np.stack([onto(n, 0), onto(n, 7)])] for n in (20, 16)
    ]


def test_sink_positions_lists_planted_sinks_with_their_tokens():
    maps = two_sinks()
    ids = [list(range(100, 120)), list(range(200, 216))]
    table = sink_positions(syn.head_stats(maps, ids, causal=False))
    assert set(zip(table["prompt"], table["position"], strict=True)) == {
        (0, 0),
        (0, 7),
        (1, 0),
        (1, 7),
    }
    row = table[(table["prompt"] == 1) & (table["position"] == 0)].iloc[0]
    assert (row["token"], row["n_heads"]) == ("t200", 3)
    maps_1 = np.concatenate(maps[1])
    assert row["received"] == pytest.approx(maps_1[:, :, 0].mean())
    assert row["share"] == pytest.approx(maps_1[:, :, 0].sum() / maps_1.sum())
    assert row["null_share"] == pytest.approx(1 / 16)
    assert table["share"].is_monotonic_decreasing
    assert table.attrs["threshold"] == 0.3


def test_late_keys_seen_by_few_queries_are_no_sinks():
    # Under identity the last causal keys have column mean 1 by arithmetic alone.
    stats = syn.head_stats([[syn.identity(30)[None]]])
    assert stats["key_mean"].max() == 1
    assert sink_positions(stats).empty


def test_attention_share_is_the_columns_part_of_everything():
    maps = two_sinks()
    stats = syn.head_stats(maps, causal=False)
    everything = sum(layer.sum() for prompt in maps for layer in prompt)
    for position in (0, 7):
        found = attention_share(stats, position)
        onto = sum(layer[:, :, position].sum() for prompt in maps for layer in prompt)
        assert found.value == pytest.approx(onto / everything)
        assert found.n == 2
        # 8 heads' rows of 20 and 16 tokens, each row giving 1/length to the position.
        assert found.null == pytest.approx(2 / 36)
    last = attention_share(stats, -1)
    onto = sum(layer[:, :, -1].sum() for prompt in maps for layer in prompt)
    assert last.value == pytest.approx(onto / everything)
    with pytest.raises(WorkbenchError, match="position 50"):
        attention_share(stats, 50)


def test_a_learned_sink_logit_takes_from_mass_but_not_from_share():
    whole, half = (
        syn.head_stats([[(m * f)[None]]]) for m, f in ((syn.first(10), 1), (syn.first(10), 0.5))
    )
    assert sink_mass(half)["value"].iloc[0] == 0.5 * sink_mass(whole)["value"].iloc[0]
    assert attention_share(half).value == attention_share(whole).value == 1


def test_random_attention_has_no_sinks():
    rng = np.random.default_rng(0)
    maps = [
        [np.stack([syn.random_map(syn.causal_mask(64), rng) for _ in range(6)])] for _ in range(5)
    ]
    stats = syn.head_stats(maps)
    assert (find("first_token_sink_rate")(stats)["value"] == 0).all()
    assert sink_positions(stats).empty
    mass = sink_mass(stats)
    assert (mass["value"] - mass["null"]).abs().max() < 0.02
    share = attention_share(stats)
    assert share.value == pytest.approx(share.null, abs=0.01)


def test_alpha_is_refused_when_some_of_its_rows_were_not_captured():
    stats = syn.head_stats([[syn.first(70)[None]]])
    data = stats.data.copy(deep=True)
    data["first_mass"][..., 10] = np.nan
    with pytest.raises(WorkbenchError, match="queries 0 to 63"):
        first_token_sink_rate(syn.HeadStats(data, stats.tokens, stats.spec, stats.provenance))


def mixed_heads(length=40):
    """Heads on the first key, on themselves, on all keys alike, and at random."""
    rng = np.random.default_rng(2)
    mask = syn.causal_mask(length)
    return np.stack(
        [syn.first(length), syn.identity(length), syn.uniform(mask), syn.random_map(mask, rng)]
    )


def test_entropies_tell_sinks_from_certain_and_from_spread_heads():
    maps = [[mixed_heads(n)] for n in (40, 24)]
    table = entropy_detector(syn.head_stats(maps), row=0.5, column=0.9).set_index("label")
    assert table["row_entropy"].to_numpy()[:3] == pytest.approx([0, 0, 1])
    # All queries give the first key the same: its profile is even. The diagonal has one giver each.
    assert table["column_entropy"].to_numpy()[:2] == pytest.approx([1, 0])
    assert table["sink_like"].to_list() == [True, False, False, False]
    assert (table["n"] == 2).all() and (table["row_null"] == 1).all()
    none = entropy_detector(syn.head_stats(maps), row=0.0, column=0.9)
    assert not none["sink_like"].any()
    assert none.attrs == {"row": 0.0, "column": 0.9, "min_queries": 8, "null_mass": "with"}


def test_entropies_of_any_head_by_hand_and_their_null():
    length = 30
    maps = mixed_heads(length)
    table = entropy_detector(syn.head_stats([[maps]]), row=0.5, column=0.5)
    for h, pattern in enumerate(maps):
        rows = [
            -sum(a * np.log(a) for a in pattern[q] if a > 0) / np.log(q + 1)
            for q in range(1, length)
        ]
        assert table["row_entropy"].iloc[h] == pytest.approx(np.mean(rows))
        columns = []
        for k in range(length - 7):
            share = pattern[k:, k] / max(pattern[k:, k].sum(), 1e-300)
            columns.append(-sum(a * np.log(a) for a in share if a > 0) / np.log(length - k))
        assert table["column_entropy"].iloc[h] == pytest.approx(max(columns))
    # The uniform head is its own control, and alone near 1 in its columns too.
    even = table.iloc[2]
    assert even["column_entropy"] == pytest.approx(even["column_null"])
    assert even["column_null"] > 0.98


@pytest.mark.parametrize("wrong", [{"row": 1.2, "column": 0.5}, {"row": 0.5, "column": -0.1}])
def test_entropy_thresholds_are_the_callers(wrong):
    with pytest.raises(WorkbenchError, match=r"must lie in 0\.\.1"):
        entropy_detector(syn.head_stats([[mixed_heads()]]), **wrong)
    with pytest.raises(TypeError, match="row"):
        entropy_detector(syn.head_stats([[mixed_heads()]]))
