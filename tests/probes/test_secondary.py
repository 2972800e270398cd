"""Secondary sinks planted in hand-made residual streams: found exactly, and nothing else."""

import numpy as np
import pytest

from tests import synthetic as syn
from workbench.errors import SchemaError, WorkbenchError
from workbench.probes import (
    primary_sink,
    primary_weakening,
    same_token_control,
    secondary_sinks,
    sink_levels,
)

D = 256
STRONG = 400.0


def direction(seed=9, massive=0):
    """A unit vector, dense; with `massive` most of its length in that many dimensions."""
    u = np.random.default_rng(seed).normal(size=D)
    u /= np.linalg.norm(u)
    if massive:
        u *= 0.3
        u[:massive] = np.sqrt((1 - 0.3**2) / massive)
        u /= np.linalg.norm(u)
    return u


def noise(n_layers, length, seed=0):
    """Random states [stream, position, d] of norm about 16: a stream without sinks."""
    return np.random.default_rng(seed).normal(size=(n_layers + 1, length, D))


def plant(h, position, layers, vector):
    """Add a vector behind the given layers; changes `h`."""
    h[np.asarray(layers) + 1, position] += vector


def stats_of(resid, maps=None, ids=None):
    n_layers = len(resid[0]) - 1
    if maps is None:
        maps = [[syn.uniform(syn.causal_mask(h.shape[1]))[None]] * n_layers for h in resid]
    return syn.head_stats(maps, ids, resid=resid)


def levels(table):
    return {
        (r.prompt, r.position): (r.l_start, r.lifetime, r.contiguous) for r in table.itertuples()
    }


def test_planted_sinks_come_back_exactly_and_decoys_do_not():
    u, orthogonal = direction(massive=1), direction(10)
    u_dense = u.copy()
    u_dense[0] = 0
    orthogonal -= (orthogonal @ u) * u
    orthogonal /= np.linalg.norm(orthogonal)
    h, plain = noise(12, 11, seed=1), noise(12, 7, seed=2)
    for resid in (h, plain):
        plant(resid, 0, range(2, 11), STRONG * u)
    # Behind its window the primary sink still points along u, with half the norm.
    plant(h, 0, [11], STRONG / 2 * u)
    plant(h, 3, range(4, 9), 300 * u)
    plant(h, 4, range(1, 12), -200 * u)
    plant(h, 5, range(4, 9), 300 * (0.85 * u + np.sqrt(1 - 0.85**2) * orthogonal))
    plant(h, 6, [4, 5, 7], 300 * u)
    plant(h, 7, range(5, 9), 300 * np.eye(D)[0])
    table = secondary_sinks(stats_of([h, plain]))
    # The token at 4 points along u before and after the primary sink does: only its layers count.
    assert levels(table) == {
        (0, 3): (4, 5, True),
        (0, 4): (2, 9, True),
        (0, 6): (4, 3, False),
        (0, 7): (5, 4, True),
    }
    table = table.set_index("position")
    assert list(table["label_relative"]) == ["secondary", "primary", "secondary", "massive only"]
    assert list(table["l_end"]) == [9, 11, 8, 9]
    np.testing.assert_allclose(table["relative_lifetime"], np.array([5, 9, 3, 4]) / 9)
    assert list(table["token"]) == ["t3", "t4", "t6", "t7"] and (table["primary"] == 0).all()
    # What remains without the massive dimensions tells a sink from a shared dimension.
    assert (table.loc[[3, 4, 6], "cos_trimmed"] > 0.8).all() and (table["cos"] > 0.9).all()
    assert abs(table.loc[7, "cos_trimmed"]) < 0.3
    np.testing.assert_allclose(
        table["norm_start"],
        [np.linalg.norm(h[s + 1, p]) for p, s in table["l_start"].items()],
        rtol=1e-6,
    )
    life = [5, 6, 8]
    assert table.loc[6, "norm_max"] == pytest.approx(np.linalg.norm(h[life, 6], axis=1).max())
    # The decoy of cosine .85 is found as soon as that suffices, the massive one by choice.
    assert (0, 5) in levels(secondary_sinks(stats_of([h, plain]), cosine=0.8))
    willing = secondary_sinks(stats_of([h, plain]), trimmed=0.0).set_index("position")
    assert willing.loc[7, "label_relative"] == "secondary"


def test_a_stream_without_sinks_gives_none_and_says_why():
    common = 60 * direction(3)
    alike = noise(12, 20, seed=4)
    alike[1:] += common
    for resid in (noise(12, 20, seed=3), alike):
        stats = stats_of([resid])
        table = secondary_sinks(stats)
        assert table.empty and "is no primary sink" in table.attrs["left_out"][0]
        assert primary_sink(stats)["start"].isna().all()
        assert sink_levels(table).empty and same_token_control(stats, table).empty
        assert (primary_weakening(stats, table)["n_sinks"] == 0).all()
    # The second one is no trivial case: all its states point the same way.
    assert float(abs(stats["resid_cos"].isel(stream=5, candidate=0)).min()) > 0.9


@pytest.mark.parametrize(
    ("norms", "window"),
    [
        # embedding, then the output of every layer
        ([1, 1, 90, 100, 95, 10, 9], (1, 4)),
        ([1, 80, 90, 100, 95, 10, 9], (0, 4)),
        ([1, 1, 90, 100, 99, 101, 100], (1, 6)),
        ([1, 1, 90, 100, 99, 101, 80], (1, 6)),
        ([1, 1, 90, 100, 99, 101, 75], (1, 5)),
        ([1, 1, 1, 1, 1, 1, 90], (5, 6)),
        ([90, 88, 89, 85, 84, 10, 9], (0, 4)),
        ([90, 80, 70, 60, 50, 40, 30], (0, 6)),
    ],
)
def test_window_of_the_primary_sink(norms, window):
    resid = np.zeros((len(norms), 5, 8))
    resid[:, :, 0] = 1.0
    resid[:, 0, 0] = norms
    row = primary_sink(stats_of([resid])).iloc[0]
    assert (row["start"], row["end"]) == window
    assert row["norm"] == pytest.approx(np.mean(norms[window[0] + 1 : window[1] + 1]))
    assert row["null"] == 1 and row["token"] == "t0"


def test_candidates_prompts_shorter_than_them_and_padding():
    u = direction()
    long, short = noise(10, 9, seed=5), noise(10, 2, seed=6)
    for position, size in ((0, 200), (1, 300), (2, 250)):
        plant(long, position, range(2, 9), size * u)
    plant(long, 6, range(4, 8), 200 * u)
    plant(short, 0, range(2, 9), 200 * u)
    stats = stats_of([long, short])
    found = primary_sink(stats, (0, 1, 2))
    assert list(found["position"]) == [1, 0] and list(found["start"]) == [2, 2]
    # Only positions behind the primary sink are told.
    table = secondary_sinks(stats, candidates=(0, 1, 2))
    assert levels(table) == {(0, 2): (2, 7, True), (0, 6): (4, 4, True)}
    assert list(table["label_relative"]) == ["primary", "secondary"]
    one = secondary_sinks(stats, candidates=(2,))
    assert list(one["position"]) == [6] and "positions [2]" in one.attrs["left_out"][1]
    with pytest.raises(WorkbenchError, match="no prompt has a token there"):
        primary_sink(stats, (9,))
    with pytest.raises(WorkbenchError, match="position 3, but directions were captured of"):
        secondary_sinks(stats, candidates=(0, 3))
    with pytest.raises(WorkbenchError, match=r"candidates=\[-1\] are no positions"):
        primary_sink(stats, (-1,))
    alone = primary_sink(stats_of([noise(4, 1)]))
    assert "it is alone" in alone.attrs["left_out"][0]
    for name in ("resid_norm", "resid_cos", "resid_cos_trimmed", "key_mean"):
        with pytest.raises(SchemaError, match=name):
            secondary_sinks(stats.only([n for n in stats.data.data_vars if n != name]))


def test_a_block_that_was_not_run_changes_nothing() -> None:
    h, u = noise(10, 8, seed=11), direction()
    plant(h, 0, range(2, 9), STRONG * u)
    plant(h, 5, range(3, 8), 300 * u)
    whole = stats_of([h])
    for name in ("resid_norm", "resid_cos", "resid_cos_trimmed"):
        whole.data[name][{"stream": [5, 8]}] = np.nan
    row = primary_sink(whole).iloc[0]
    assert (row["start"], row["end"]) == (2, 9)
    assert levels(secondary_sinks(whole)) == {(0, 5): (3, 3, False)}


def with_lives(n_layers, window, lives, seed):
    u, h = direction(), noise(n_layers, 2 + len(lives), seed)
    plant(h, 0, range(*window), STRONG * u)
    for position, (start, lifetime) in enumerate(lives, 2):
        plant(h, position, range(start, start + lifetime), 200 * u)
    return stats_of([h])


def test_both_rules_label_the_lifetimes_reported_for_two_models_alike():
    # Wong et al. 2025: DeepSeek-R1-Distill-Qwen-14B and Qwen3-4B-Base.
    qwen14 = with_lives(48, (4, 47), [(4, 43), (22, 23), (22, 22), (22, 24), (22, 4)], 7)
    qwen4 = with_lives(36, (6, 35), [(6, 29), (16, 18)], 8)
    for stats, n in ((qwen14, 3), (qwen4, 1)):
        table = secondary_sinks(stats)
        expected = ["primary", *["secondary"] * n, *["noise"] * (n == 3)]
        assert list(table["label_absolute"]) == list(table["label_relative"]) == expected
    counts = sink_levels(table).set_index(["l_start", "lifetime"])
    assert counts.loc[(16, 18), "n"] == 1 and counts.loc[(6, 29), "n_prompts"] == 1
    # In a shallow model the absolute rule calls everything primary.
    shallow = secondary_sinks(with_lives(10, (1, 9), [(4, 3), (5, 1)], 9))
    assert list(shallow["label_absolute"]) == ["primary", "primary"]
    assert list(shallow["label_relative"]) == ["secondary", "noise"]
    moved = secondary_sinks(with_lives(10, (1, 9), [(4, 3), (5, 1)], 9), absolute=(1, 4))
    assert list(moved["label_absolute"]) == ["secondary", "noise"]


def drawn(length, columns):
    """A causal map: given weights on some keys (where visible), the rest on the query itself."""
    found = np.zeros((length, length))
    for q in range(length):
        for key, weight in columns.items():
            if key < q:
                found[q, key] = weight
        found[q, q] += 1 - found[q].sum()
    return found


def test_scores_are_those_of_the_layers_that_read_the_state():
    length, n_layers, u = 9, 8, direction()
    h = noise(n_layers, length, seed=10)
    plant(h, 0, range(1, 7), STRONG * u)
    plant(h, 4, range(3, 5), 300 * u)
    # Written by layers 3 and 4, read by 4 and 5: there key 4 has the weight that key 0 loses.
    maps = [
        np.stack(
            [
                drawn(length, {0: 0.3, 4: 0.5} if layer in (4, 5) else {0: 0.8}),
                syn.uniform(syn.causal_mask(length)),
            ]
        )
        for layer in range(n_layers)
    ]
    stats = stats_of([h], [maps])
    table = secondary_sinks(stats)
    assert levels(table) == {(0, 4): (3, 2, True)}
    own = [1 / (q + 1) for q in range(4, length)]
    null, null_primary = np.mean(own), np.mean([1 / (q + 1) for q in range(length)])
    # Key 4: its own row keeps 0.7, the four behind it give 0.5.
    planted = (0.7 + 4 * 0.5) / 5
    row = table.iloc[0]
    assert row["score"] == pytest.approx((planted + null) / 2, rel=1e-6)
    assert row["score_null"] == pytest.approx(null, rel=1e-6)
    assert row["primary_score"] == pytest.approx(((1 + 8 * 0.3) / 9 + null_primary) / 2, rel=1e-6)
    assert row["primary_null"] == pytest.approx(null_primary, rel=1e-6)
    weak = primary_weakening(stats, table)
    high, low = ((1 + 8 * w) / 9 for w in (0.8, 0.3))
    expected = [((low if x in (4, 5) else high) + null_primary) / 2 for x in range(n_layers)]
    np.testing.assert_allclose(weak["score"], expected, rtol=1e-6)
    np.testing.assert_allclose(weak["null"], null_primary, rtol=1e-6)
    assert list(weak["n_sinks"]) == [0, 0, 0, 0, 1, 1, 0, 0]
    np.testing.assert_allclose(weak["sinks"][4:6], row["score"], rtol=1e-6)
    assert weak["sinks"].drop([4, 5]).isna().all()
    # Without the planted columns a sink of the stream receives what chance gives it.
    chance = secondary_sinks(stats_of([h])).iloc[0]
    assert chance["score"] == pytest.approx(chance["score_null"], rel=1e-6)


def test_same_token_elsewhere_is_the_control():
    u = direction()
    ids = [[1, 7, 8, 7, 9, 7], [1, 9, 7, 8], [7, 5, 6, 4]]
    resid = [noise(8, len(i), seed=20 + n) for n, i in enumerate(ids)]
    for h in resid:
        plant(h, 0, range(1, 7), STRONG * u)
    plant(resid[0], 3, range(3, 6), 300 * u)
    plant(resid[1], 2, range(3, 6), 300 * u)
    plant(resid[1], 3, range(4, 6), 300 * u)
    stats = stats_of(resid, ids=ids)
    sinks = secondary_sinks(stats)
    table = same_token_control(stats, sinks).set_index(["prompt", "position"])
    assert list(table.index) == [(0, 3), (1, 2), (1, 3)]
    # Token 7: two sinks; two others in prompt 0; in prompt 2 it is the primary sink itself.
    assert list(table["n_sinks"]) == [2, 2, 1] and list(table["n_others"]) == [2, 2, 1]
    assert (table["cos"] > 0.98).all() and (table["cos_others_max"] < 0.4).all()

    def cos(a, b):
        return abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)

    others = [cos(resid[0][4, p], resid[0][4, 0]) for p in (1, 5)]
    assert table.loc[(0, 3), "cos_others"] == pytest.approx(np.mean(others), rel=1e-5)
    assert table.loc[(1, 2), "cos_others_max"] == pytest.approx(max(others), rel=1e-5)
    norms = [np.linalg.norm(resid[0][4, p]) for p in (1, 5)]
    assert table.loc[(0, 3), "norm_others"] == pytest.approx(np.mean(norms), rel=1e-5)
    # A token whose every occurrence is a sink has no control, which is then missing, not zero.
    only = same_token_control(stats.prompt(1), sinks[sinks["prompt"] == 1])
    assert list(only["n_others"]) == [0, 0] and only["cos_others"].isna().all()
