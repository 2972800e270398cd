"""Indicators of heads against planted maps and closed forms; risks against closed forms."""

import numpy as np
import pytest

from workbench.zoo import measure as zoo_measure
from workbench.zoo.deconstructed import measure, published
from workbench.zoo.deconstructed.recipe import HYBRID, STANDARD, UNIFORM, VARIANTS
from workbench.zoo.deconstructed.task import RULES, Task

TASK = Task()
T = TASK.length


def indicators(pattern, scores=None, ids=None, recalls=None):
    """`measure.of_maps` of one map [head, query, key]: values by name."""
    pattern = np.asarray(pattern, float)[None, None, None]
    ids = np.zeros((1, pattern.shape[-1]), int) if ids is None else ids
    recalls = np.ones(ids.shape, bool) if recalls is None else recalls
    scores = pattern if scores is None else np.asarray(scores, float)[None, None, None]
    found = measure.of_maps(pattern, scores, ids, recalls)
    return {name: value[0, 0] for name, (_, value) in found.items()}


def shifted(length, distance):
    """A head that looks `distance` back, and at key 0 where there is nothing."""
    keys = np.maximum(np.arange(length) - distance, 0)
    return np.eye(length)[keys]


def test_uniform_maps_have_closed_forms():
    seen = np.arange(1, T + 1)
    found = indicators([np.tri(T) / seen[:, None]] * 2)
    assert found["entropy"] == pytest.approx(np.log(seen).mean())
    assert found["concentration"] == pytest.approx(np.sqrt((1 / seen).sum()))
    assert found["sink"] == pytest.approx((1 / seen).mean())
    for n in measure.OFFSETS:
        assert found[f"locfoc_{n}"] == pytest.approx((1 / seen[n:]).mean())
    assert found["diversity"] == pytest.approx(0)


def test_planted_heads_are_told_apart():
    found = indicators([shifted(T, 0), shifted(T, 1), np.eye(T)[np.zeros(T, int)]])
    np.testing.assert_allclose(found["locfoc_0"], [1, 1 / T, 1 / T])
    np.testing.assert_allclose(found["locfoc_1"], [0, 1, 1 / (T - 1)])
    np.testing.assert_allclose(found["sink"], [1 / T, 2 / T, 1])
    np.testing.assert_allclose(found["concentration"], np.sqrt(T))
    np.testing.assert_allclose(found["entropy"], 0, atol=1e-12)
    # Two heads with all weight at different keys of every row: deviation 1/2 at two entries.
    two = indicators([shifted(T, 0), shifted(T, 1)])
    assert two["diversity"] == pytest.approx(2 / (T * (T + 1)) * (T - 1) * 2 * 0.5)
    scores = np.zeros((2, T, T))
    scores[0, 5, 3], scores[1, 3, 5] = -7.0, 99.0
    assert indicators([shifted(T, 0)] * 2, scores)["largest_score"].tolist() == [7.0, 0.0]


def test_recall_mass_is_the_weight_on_the_answer():
    ids = TASK.texts(40, 0)[:, :-1]
    rules = TASK.rules(ids)
    recalls = rules == RULES.index("recall")
    text = int(np.argmax(recalls.sum(1)))
    oracle = TASK.oracle(ids)
    looking = np.zeros((2, T, T))
    for query in range(T):
        earlier = np.nonzero(ids[text, :query] == ids[text, query])[0]
        key = earlier[-1] + 1 if len(earlier) else 0
        looking[0, query, key] = 1.0
        looking[1, query, query] = 1.0
        if recalls[text, query]:
            assert oracle[text, query, ids[text, key]] == 1.0
    found = indicators(looking, ids=ids[text : text + 1], recalls=recalls[text : text + 1])
    assert found["recall_mass"].tolist() == [1.0, 0.0]


def test_indicators_agree_with_the_zoos_and_layers_without_attention_have_none():
    rng = np.random.default_rng(0)
    raw = rng.random((2, 2, 3, 4, T, T)) * np.tri(T)
    maps = raw / raw.sum(-1, keepdims=True)
    maps[:, 1] = np.nan
    ids = TASK.texts(3, 0)[:, :-1]
    found = measure.of_maps(maps, maps, ids, np.ones((3, T), bool))
    for run in range(2):
        # The zoo's maps are [text, layer, head, query, key].
        other = maps[run, :1].swapaxes(0, 1)
        np.testing.assert_allclose(
            found["sink"][1][run, 0], zoo_measure.sink_mass(other, first_query=0)[0]
        )
        late = maps[run, 0][..., zoo_measure.FIRST_QUERY - 1 :, zoo_measure.FIRST_QUERY - 1 :]
        expected = zoo_measure.previous_scores(other)[0]
        np.testing.assert_allclose(late.diagonal(-1, -2, -1).mean((0, -1)), expected)
    whole = maps[:, 0].diagonal(-1, -2, -1).mean((1, -1))
    np.testing.assert_allclose(found["locfoc_1"][1][:, 0], whole)
    norms = np.linalg.norm(maps[:, 0], axis=(-2, -1)).mean(axis=1)
    np.testing.assert_allclose(found["concentration"][1][:, 0], norms)
    assert all(np.isnan(value[:, 1]).all() for _, value in found.values())
    assert not any(np.isnan(value[:, 0]).any() for _, value in found.values())


def test_risks_are_kullback_leibler_rule_by_rule():
    ids = TASK.texts(60, 0)[:, :-1]
    oracle, rules = TASK.oracle(ids), TASK.rules(ids)
    tokens = len(TASK.tokens)
    flat = np.full((1, *oracle.shape), -np.log(tokens))
    exact = np.log(np.where(oracle > 0, oracle, 1e-300))[None]
    guess = measure.by_rule(flat, oracle, rules, "excess")
    perfect = measure.by_rule(exact, oracle, rules, "excess")
    for rule in ("copy", "recall"):
        assert float(guess[f"excess_{rule}"][0]) == pytest.approx(np.log(tokens))
    entropy = -(oracle * np.log(np.where(oracle > 0, oracle, 1))).sum(-1)[rules == 0].mean()
    assert float(guess["excess_chain"][0]) == pytest.approx(np.log(tokens) - entropy)
    assert all(abs(float(value[0])) < 1e-9 for value in perfect.values())
    # A network that knows copying alone is at the oracle there and nowhere else.
    only = np.where((rules == RULES.index("copy"))[..., None], exact, flat)
    some = measure.by_rule(only, oracle, rules, "skip")
    assert [float(some[f"skip_{rule}"][0]) < 1e-9 for rule in RULES] == [False, True, False]


def test_published_numbers_are_those_of_the_specification():
    table = published.table().set_index(["configuration", "variant"])
    assert len(table) == 1 + 3 * len(VARIANTS)
    assert table.loc[(STANDARD, STANDARD)].tolist() == [51.9, 38.1, 22.9]
    wanted = {
        (UNIFORM, "mlp"): (40.0, 993.5), (UNIFORM, "non-approximate"): (39.3, 9e4),
        (UNIFORM, "static-emb-qk"): (49.4, 79.9), (HYBRID, "rnd-emb-qk"): (49.8, 39.3),
        (HYBRID, "fixed-seq-qk"): (52.6, 38.5), (HYBRID, "approximate"): (51.6, 39.4),
    }  # fmt: skip
    for key, values in wanted.items():
        assert tuple(table.loc[key, ["nlu_accuracy", "wikitext_perplexity"]]) == values
    # Every hybrid is near standard, every skip at no last word at all.
    lambada = table["lambada_accuracy"]
    assert lambada[HYBRID].min() > 20 and lambada[published.SKIP].max() == 0
