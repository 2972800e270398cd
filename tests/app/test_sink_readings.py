"""Numbers of the Sinks page against the planted patterns and against hand-made values."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from app_made import LENGTHS, N_HEADS, head_stats, layers, pattern

from workbench.app import sink_readings
from workbench.app.masking import MASKABLE, masked_table, without_first
from workbench.app.sink_readings import Place
from workbench.probes import find
from workbench.stats import HeadStats


@pytest.fixture(scope="module")
def stats():
    return head_stats()


def maps(prompt: int) -> np.ndarray:
    """Every planted pattern of a prompt, [head of any layer, query, key]."""
    arrays = head_stats().arrays
    return np.stack([pattern(arrays, prompt, ly, h) for ly in layers() for h in range(N_HEADS)])


def with_data(stats: HeadStats, **variables) -> HeadStats:
    """The same run with other statistics: name=(dims, values)."""
    sizes = {d: len(v) for dims, values in variables.values() for d, v in [(dims[0], values)]}
    coords = {"prompt": np.arange(sizes.get("prompt", 1))}
    for dims, values in variables.values():
        shape = np.shape(values)
        coords |= {d: np.arange(n) for d, n in zip(dims, shape, strict=True)}
    return HeadStats(xr.Dataset(variables, coords=coords), stats.tokens, stats.spec,
                     stats.provenance)  # fmt: skip


def test_received_is_the_mean_column_beside_uniform_attention(stats):
    table = sink_readings.received(stats, 1)
    length = LENGTHS[1]
    seen = length - np.arange(length)
    np.testing.assert_allclose(table["received"], maps(1).sum(1).mean(0) / seen, rtol=1e-4)
    # Uniform causal attention gives key k the mean of 1/(q + 1) over the queries q >= k.
    uniform = [np.mean(1 / (np.arange(k, length) + 1)) for k in range(length)]
    np.testing.assert_allclose(table["uniform"], uniform, rtol=1e-6)
    assert table["queries"].tolist() == seen.tolist()
    assert table.loc[table["few"], "position"].tolist() == list(range(length - 7, length))
    # The heads of layer 3 are sinks, those of layer 1 look one back: no mean of both.
    assert sink_readings.received(stats, 1, 3)["received"][0] > 0.5
    assert sink_readings.received(stats, 1, 1)["received"][0] < 0.1


def test_hidden_columns_are_nan_and_their_share_is_that_of_the_patterns(stats):
    hidden = {0: [0, 7], 1: [3]}
    masked = sink_readings.without_columns(stats, hidden)
    for name in ("key_mass", "key_mean", "key_max", "key_count"):
        gone = np.isnan(masked[name].sel(layer=1, head=0)).to_numpy()
        was = np.isnan(stats[name].sel(layer=1, head=0)).to_numpy()
        new = gone & ~was
        assert [np.flatnonzero(row).tolist() for row in new] == [[0, 7], [3]]
    np.testing.assert_array_equal(masked["entropy"], stats["entropy"])
    mine = maps(0)[..., [0, 7]].sum() + maps(1)[..., [3]].sum()
    whole = maps(0).sum() + maps(1).sum()
    assert sink_readings.hidden_share(stats, hidden) == pytest.approx(mine / whole, rel=1e-4)
    assert sink_readings.hidden_share(stats, {}) == 0


def test_what_the_mask_leaves_is_no_sink(stats):
    seen = find("dormant_score_mass")(stats).set_index("label")["value"]
    masked = sink_readings.without_columns(stats, {0: [0], 1: [0]})
    left = find("dormant_score_mass")(masked).set_index("label")["value"]
    assert seen["L3H4"] > 0.9 and left["L3H4"] < 0.01
    # A head without a sink keeps its best column.
    p = [pattern(stats.arrays, prompt, 1, 0) for prompt in (0, 1)]
    best = [(m.sum(0) / (len(m) - np.arange(len(m))))[1 : len(m) - 7].max() for m in p]
    assert left["L1H0"] == pytest.approx(np.mean(best), rel=1e-4)


def test_norms_at_the_sink_and_at_the_others(stats):
    norm = np.array(
        [[[9.0, 1.0, 3.0], [90.0, 2.0, 4.0]], [[7.0, 5.0, np.nan], [70.0, 6.0, np.nan]]]
    )
    own = with_data(stats, resid_norm=(("prompt", "stream", "query"), norm))
    table = sink_readings.norms(own, Place())
    assert table["sink"].tolist() == [8, 80]
    # Means over prompts of the means of 1, 3 and of 5; of 2, 4 and of 6.
    assert table["others"].tolist() == [3.5, 4.5]
    assert (table["low"] < table["others"]).all() and (table["high"] <= [5, 6]).all()
    one = sink_readings.norms(own, Place(2, 0))
    assert one["sink"].tolist() == [3, 4] and one["others"].tolist() == [5, 46]


def test_values_at_the_sink_and_at_the_others(stats):
    vo = np.full((1, 2, 2, 3), np.nan)
    vo[0, 0] = [[1, 4, 6], [3, 6, 8]]
    table = sink_readings.values(
        with_data(stats, vo_norm=(("prompt", "layer", "head", "key"), vo)), Place()
    )
    # The layer without numbers is left out.
    assert table.to_dict("list") == {"layer": [0], "sink": [2.0], "others": [6.0]}


def test_shares_by_layer_and_on_one_key(stats):
    shares = sink_readings.share_by_layer(stats).set_index("layer")
    mass = [sum(pattern(stats.arrays, p, 3, h)[:, 0].sum() for h in range(N_HEADS)) for p in (0, 1)]
    assert shares.loc[3, "share"] == pytest.approx(sum(mass) / (N_HEADS * sum(LENGTHS)), rel=1e-4)
    even = sum(np.sum(1 / (np.arange(n) + 1)) for n in LENGTHS) / sum(LENGTHS)
    assert shares["uniform"].tolist() == pytest.approx([even] * 3)
    assert shares.index.tolist() == layers()
    one = sink_readings.on_key(stats.prompt(0), 5).set_index("layer")
    p = np.stack([pattern(stats.arrays, 0, 1, h) for h in range(N_HEADS)])
    assert one.loc[1, "share"] == pytest.approx(p[:, :, 5].sum(1).mean() / 35, rel=1e-4)


def test_the_largest_cosine_leaves_out_the_embedding_and_the_first_token(stats):
    cos = np.zeros((1, 3, 1, 4))
    cos[0, :, 0, 0] = 1
    cos[0, 0, 0, 2] = 0.99
    cos[0, 2, 0, 3] = -0.7
    own = with_data(stats, resid_cos=(("prompt", "stream", "candidate", "query"), cos))
    assert sink_readings.largest_cosine(own) == (pytest.approx(0.7), 0, 3, 2)
    cos[..., 1:] = np.nan
    own = with_data(stats, resid_cos=(("prompt", "stream", "candidate", "query"), cos))
    assert np.isnan(sink_readings.largest_cosine(own)[0])


def test_the_list_carries_the_level_of_each_sink():
    sinks = pd.DataFrame({"prompt": [0, 0], "position": [0, 9], "token": ["<s>", " ."]})
    secondary = pd.DataFrame(
        {"prompt": [0, 1], "position": [9, 9], "l_start": [4, 5], "lifetime": [6, 7],
         "label_relative": ["secondary", "noise"]}
    )  # fmt: skip
    table = sink_readings.listed(sinks, secondary)
    assert table["shown"].tolist() == ["<s>", "·."]
    assert table["label"].tolist() == ["", "secondary"]
    assert np.isnan(table["l_start"][0]) and table["lifetime"][1] == 6
    assert sink_readings.listed(sinks, None)["label"].tolist() == ["", ""]


@pytest.mark.parametrize("causal", [True, False])
def test_row_statistics_without_the_first_key_are_exact(stats, causal):
    """Against the pattern itself, with its first column taken away and every row renormalised."""
    rng = np.random.default_rng(3)
    n = 12
    p = rng.dirichlet(np.full(n, 0.5), size=n)
    if causal:
        p = np.tril(p) / np.tril(p).sum(1, keepdims=True)
    gap = np.abs(np.arange(n)[:, None] - np.arange(n))
    own = rowwise(stats, p, gap, causal)
    found = without_first(own)
    rest = p[:, 1:] / p[:, 1:].sum(1, keepdims=True) if not causal else None
    if causal:
        rest = np.full((n, n - 1), np.nan)
        rest[1:] = p[1:, 1:] / p[1:, 1:].sum(1, keepdims=True)
    terms = np.where(rest > 0, rest * np.log(np.where(rest > 0, rest, 1)), 0)
    entropy = np.where(np.isnan(rest).any(1), np.nan, -terms.sum(1))
    one = {"prompt": 0, "layer": 0, "head": 0}
    np.testing.assert_allclose(found["entropy"].sel(one), entropy, atol=2e-5)
    for name, power in (("distance", 1), ("distance_sq", 2)):
        np.testing.assert_allclose(
            found[name].sel(one), (rest * gap[:, 1:] ** power).sum(1), rtol=2e-4
        )
    itself = np.array([rest[q, q - 1] for q in range(1, n)])
    np.testing.assert_allclose(found["self_mass"].sel(one)[1:], itself, rtol=2e-4)
    before = np.array([rest[q, q - 2] for q in range(2, n)])
    np.testing.assert_allclose(found["prev_mass"].sel(one)[2:], before, rtol=2e-4)
    seen = np.arange(n) if causal else np.full(n, n - 1)
    np.testing.assert_array_equal(found["n_visible"].sel(one)[1:], seen[1:])
    # Neither is what was there before: the mask changes the numbers.
    assert np.nanmax(np.abs(found["entropy"].sel(one) - own["entropy"].sel(one))) > 0.05


def rowwise(stats: HeadStats, p: np.ndarray, gap: np.ndarray, causal: bool) -> HeadStats:
    """Row statistics of one map, float32 as stored."""
    from workbench.spec import AttentionSite, Spec

    n = len(p)
    terms = np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)
    rows = {
        "entropy": -terms.sum(1),
        "distance": (p * gap).sum(1),
        "distance_sq": (p * gap**2).sum(1),
        "self_mass": np.diag(p),
        "prev_mass": np.concatenate([[0], np.diag(p, -1)]),
        "first_mass": p[:, 0],
        "n_visible": (np.arange(n) + 1 if causal else np.full(n, n)),
    }
    dims = ("prompt", "layer", "head", "query")
    own = with_data(stats, **{k: (dims, v[None, None, None].astype("f4")) for k, v in rows.items()})
    site = AttentionSite("a", "text", 0, 1, 1, 8, 8, causal)
    tokens = stats.tokens[(stats.tokens["prompt"] == 0) & (stats.tokens["position"] < n)]
    return HeadStats(own.data, tokens, Spec("planted", (site,)), own.provenance)


def test_masked_metrics_are_those_of_heads_that_cannot_see_the_first_key(stats):
    """The planted sink heads have a first column near 1, and what is left of them is rounding."""
    for name in MASKABLE:
        table = masked_table(stats, name).set_index("label")
        assert np.isfinite(table.loc["L1H0", "value"])
        # Rows that see nothing else do not count.
        assert table.loc["L3H4", "n"] < table.loc["L1H0", "n"] / 10
    entropy = masked_table(stats, "pattern_entropy").set_index("label")
    # Of L0H0 every row but the first keeps something: the null is the mean of log q.
    null = np.mean(np.concatenate([np.log(np.arange(1, n)) for n in LENGTHS]))
    assert entropy.loc["L0H0", "n"] == sum(LENGTHS) - len(LENGTHS)
    assert entropy.loc["L0H0", "null"] == pytest.approx(null, rel=1e-6)
    for name in ("sink_mass", "induction_score", "dormant_score_mass"):
        assert masked_table(stats, name) is None
