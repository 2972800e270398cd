"""Sink rates by kind of text and by kind of token: planted heads, hand-made intervals, shuffles."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control, hypergeom

import workbench as wb
from tests import synthetic as syn
from workbench.circuits.controls import untrained
from workbench.errors import WorkbenchError
from workbench.probes import (
    activity_contrast,
    domain_contrast,
    domain_sink_rate,
    first_token_sink_rate,
    token_activity,
)
from workbench.probes.domains import domain_names
from workbench.zoo import tasks

T = 12
NAMES = ["prose", "code"] * 6


def by_domain():
    """12 texts. Head 0 is a sink on prose only, head 1 on every third text, head 2 always."""
    maps = []
    for p, name in enumerate(NAMES):
        sink, none = syn.first(T), syn.identity(T)
        heads = [sink if name == "prose" else none, sink if p % 3 == 0 else none, sink]
        maps.append([np.stack(heads)])
    return syn.head_stats(maps)


def wilson(k, n, z=1.959963984540054):
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(k * (n - k) / n + z * z / 4)
    return centre - half, centre + half


def test_rates_and_wilson_intervals_by_domain():
    table = domain_sink_rate(by_domain(), NAMES, T=T).set_index(["label", "domain"])
    assert table.loc[("L0H0", "prose"), "rate"] == 1 and table.loc[("L0H0", "code"), "rate"] == 0
    third = table.loc[("L0H1", "code")]
    assert third["rate"] == pytest.approx(2 / 6) and third["n"] == 6
    assert (third["low"], third["high"]) == pytest.approx(wilson(2, 6))
    assert table.loc[("L0H0", "code"), "null"] == pytest.approx(0.5)
    assert table.attrs == {"epsilon": 0.3, "T": T, "null_mass": "with"}
    # Prompts of all domains together give the probe's own rate.
    whole = first_token_sink_rate(by_domain(), T=T)["value"].to_numpy()
    assert table.groupby("label")["rate"].mean().to_numpy() == pytest.approx(whole)


def test_names_may_be_a_mapping_and_must_fit():
    listed = domain_sink_rate(by_domain(), NAMES, T=T)
    assert listed.equals(domain_sink_rate(by_domain(), dict(enumerate(NAMES)), T=T))
    for wrong, message in (
        (NAMES[:-1], "not one name for each of 12 prompts"),
        ("prose", "not one name for each"),
        (dict(enumerate(NAMES[:5])), "prompt 5 has no domain"),
        (["prose"] * 12, "all prompts are of the domain 'prose'"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            domain_names(range(12), wrong)


def test_contrast_finds_the_planted_head_and_its_p_value():
    table = domain_contrast(by_domain(), NAMES, T=T).set_index("label")
    row = table.loc["L0H0"]
    assert (row["dormant_on"], row["active_on"], row["difference"]) == ("prose", "code", 1)
    # Fisher's exact test on a 6-0 against 0-6 table: both extremes of the hypergeometric.
    assert row["p"] == pytest.approx(2 * hypergeom.pmf(6, 12, 6, 6))
    assert table["q"].to_numpy() == pytest.approx(false_discovery_control(table["p"]))
    assert table.index[0] == "L0H0" and row["difference"] > 2 * row["null"] > 0
    # The controls: a head that does not care about the domain, and one that never changes.
    assert table.loc["L0H1", "p"] == 1 and table.loc["L0H1", "difference"] < 0.01
    assert table.loc["L0H2", "difference"] == 0 == table.loc["L0H2", "null"]


def test_three_domains_pay_for_the_choice_of_a_pair():
    names = ["prose", "code", "prose", "code", *["verse"] * 8]
    stats = by_domain()
    row = domain_contrast(stats, names, T=T).set_index("label").loc["L0H0"]
    assert (row["dormant_on"], row["active_on"]) == ("prose", "code")
    assert row["p"] == pytest.approx(min(1, 3 * 2 * hypergeom.pmf(2, 4, 2, 2)))


def test_random_heads_show_no_contrast():
    rng = np.random.default_rng(5)
    sinks = rng.random((24, 8)) < 0.5
    maps = [[np.stack([syn.first(T) if s else syn.identity(T) for s in row])] for row in sinks]
    names = ["prose", "code"] * 12
    table = domain_contrast(syn.head_stats(maps), names, T=T)
    assert (table["q"] > 0.05).all()
    assert abs(table["difference"].mean() - table["null"].mean()) < 0.1
    again = domain_contrast(syn.head_stats(maps), names, T=T)
    assert table.equals(again)
    assert not table["null"].equals(
        domain_contrast(syn.head_stats(maps), names, T=T, seed=1)["null"]
    )


def parked_but_on(token, ids):
    """All mass on the first key, but on the query itself where it holds `token`."""
    found = syn.first(len(ids))
    for q, own in enumerate(ids):
        if own == token and q:
            found[q] = np.eye(len(ids))[q]
    return found


def by_token():
    """Head 0 is dormant on every token but 7, head 1 never (uniform); 20 and 14 tokens."""
    rng = np.random.default_rng(3)
    ids = [[1, *rng.integers(5, 9, size=n - 1)] for n in (20, 14)]
    maps = [
        [np.stack([parked_but_on(7, tokens), syn.uniform(syn.causal_mask(len(tokens)))])]
        for tokens in ids
    ]
    return syn.head_stats(maps, ids), ids


def test_tokens_on_which_a_head_is_dormant():
    stats, ids = by_token()
    table = token_activity(stats).set_index(["label", "id"])
    head = table.loc["L0H0"]
    assert head["first_mass"].to_dict() == {5: 1, 6: 1, 7: 0, 8: 1}
    assert head["dormant"].to_dict() == {5: True, 6: True, 7: False, 8: True}
    # Query 0 is left out: the begin token would be dormant by arithmetic alone.
    assert head["n"].to_dict() == {t: sum(x.count(t) for x in ids) for t in (5, 6, 7, 8)}
    assert head.loc[7, "token"] == "t7"
    even = table.loc["L0H1"]
    by_hand = [1 / (q + 1) for tokens in ids for q, t in enumerate(tokens) if t == 7]
    assert even.loc[7, "first_mass"] == pytest.approx(np.mean(by_hand))
    assert even.loc[7, "null"] == pytest.approx(np.mean(by_hand)) and not even["dormant"].any()
    assert table.attrs == {"threshold": 0.89, "null_mass": "with"}


def test_classes_and_roles_of_tokens():
    stats, ids = by_token()
    classes = {5: "letter", 6: "letter", 7: "trigger"}
    table = token_activity(stats, by=classes).set_index(["label", "token"])
    n = {t: sum(x.count(t) for x in ids) for t in (5, 6, 7)}
    assert table.loc["L0H0"]["n"].to_dict() == {"letter": n[5] + n[6], "trigger": n[7]}
    assert table.loc["L0H0"]["first_mass"].to_dict() == {"letter": 1, "trigger": 0}
    roles = token_activity(stats, by="role")
    assert list(roles["token"]) == ["text", "text"] and not roles["dormant"].any()
    with pytest.raises(WorkbenchError, match="names no types"):
        token_activity(stats, by="segment")
    with pytest.raises(WorkbenchError, match="no token after the first"):
        token_activity(stats, by={999: "absent"})


def test_contrast_of_classes_and_its_shuffle():
    stats, _ = by_token()
    classes = {5: "letter", 6: "letter", 7: "trigger", 8: "letter"}
    table = activity_contrast(stats, by=classes).set_index("label")
    row = table.loc["L0H0"]
    assert (row["dormant_on"], row["active_on"], row["difference"]) == ("letter", "trigger", 1)
    assert 0 < row["null"] < 0.4
    # The control: uniform attention differs between classes no more than shuffled ones do.
    even = table.loc["L0H1"]
    assert even["difference"] < 3 * even["null"] < 0.4


def test_layers_that_were_not_captured_count_nothing():
    stats = syn.head_stats([[syn.first(T)[None], syn.first(T)[None]]] * 2, layers=[0, 3])
    lean = syn.HeadStats(stats.data.sel(layer=[3]), stats.tokens, stats.spec, stats.provenance)
    table = domain_sink_rate(lean, ["a", "b"], T=T).set_index(["label", "domain"])
    assert table.loc[("L3H0", "a"), "rate"] == 1 and table.loc[("L0H0", "a"), "n"] == 0
    assert np.isnan(table.loc[("L0H0", "a"), "rate"])
    assert np.isnan(domain_contrast(lean, ["a", "b"], T=T).set_index("label").loc["L0H0", "p"])
    assert set(token_activity(lean)["label"]) == {"L3H0"}


def test_a_zoo_head_wakes_at_its_trigger():
    """In echo texts only "~" gives a head something to look up: the word before it comes back."""
    model = wb.load("zoo:mix-3l")
    texts = [row.tolist() for row in tasks.echo(np.random.default_rng(0), 8, 64).ids]
    classes = dict.fromkeys(tasks.kind_ids("filler").tolist(), "word") | {tasks.index()["~"]: "~"}
    stats, none = (
        wb.capture(one, texts, want=["first_mass", "n_visible"])
        for one in (model, untrained(model))
    )
    head = token_activity(stats, by=classes).query("label == 'L2H1'").set_index("token")
    assert head["dormant"].to_dict() == {"word": True, "~": False}
    assert head.loc["~", "first_mass"] < 0.01
    row = activity_contrast(stats, by=classes).iloc[0]
    assert (row["dormant_on"], row["active_on"]) == ("word", "~")
    assert row["difference"] > 0.9 > 0.1 > row["null"]
    # The control: no head of the untrained model tells the two apart.
    assert (activity_contrast(none, by=classes)["difference"] < 0.1).all()
