"""Which patterns tell queries apart, and how near they look: planted cases and controls."""

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.zoo.testtime import injectivity as inj
from workbench.zoo.testtime import local


def test_features_and_their_inverse():
    x = np.linspace(-5, 5, 101)
    np.testing.assert_allclose(inj.from_elu(inj.elu(x)), x, rtol=1e-9, atol=1e-12)
    assert (inj.elu(x) > 0).all() and (np.diff(inj.elu(x)) > 0).all()
    assert (inj.relu(x)[x < 0] == 0).all()
    np.testing.assert_allclose(inj.elu(inj.twin(x[None])), 2 * inj.elu(x[None]), rtol=1e-9)


def test_weights_by_hand():
    keys, query = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), np.array([[2.0, 1.0]])
    # phi(q)'phi(k) = 2, 2, 3.
    np.testing.assert_allclose(inj.linear(keys, query, inj.relu), [[2 / 7, 2 / 7, 3 / 7]])
    np.testing.assert_allclose(inj.inline(keys, query, inj.relu), [[0.0, 0.0, 1.0]], atol=1e-12)
    scores = np.array([2.0, 2.0, 3.0]) / np.sqrt(2)
    np.testing.assert_allclose(inj.softmax(keys, query)[0], np.exp(scores) / np.exp(scores).sum())


def test_softmax_is_injective_only_where_keys_span_their_space():
    keys, queries = inj.draw(0, 16, 8, 8)
    flat = keys.copy()
    flat[:, -1] = 0.7
    moved = queries.copy()
    moved[:, -1] += 3.0
    same = np.abs(inj.softmax(flat, queries) - inj.softmax(flat, moved)).max()
    assert same < 1e-12 < 0.05 < np.abs(inj.softmax(keys, queries) - inj.softmax(keys, moved)).max()


@pytest.mark.parametrize("pattern", inj.PATTERNS)
def test_distances_are_zero_where_they_must_be_and_nowhere_else(pattern):
    table = inj.distances(3)
    row = table[table["pattern"] == pattern].set_index("pair")["distance"]
    zero = {
        "linear, ReLU": {inj.PAIRS[0], inj.PAIRS[2]},
        "linear, ELU + 1": {inj.PAIRS[1]},
        "InLine, ReLU": {inj.PAIRS[2]},
    }.get(pattern, set())
    assert set(row.index[row < 1e-9]) == zero and (row.drop(list(zero)) > 0.01).all()
    assert table["off_one"].max() < 1e-9
    assert table[table["pattern"].str.startswith("InLine")]["least"].min() < -1
    assert table[~table["pattern"].str.startswith("InLine")]["least"].min() >= 0


def test_softmax_distance_is_the_measured_one():
    """The specification measured .479 for 16 Gaussian keys; another draw, so roughly."""
    found = [inj.distances(seed).set_index(["pattern", "pair"])["distance"] for seed in range(3)]
    assert np.mean([f["softmax", inj.PAIRS[0]] for f in found]) == pytest.approx(0.479, rel=0.15)


def test_impossible_patterns_are_refused():
    with pytest.raises(WorkbenchError, match="query 0 has no feature in common"):
        inj.linear(np.ones((3, 2)), -np.ones((1, 2)), inj.relu)
    with pytest.raises(WorkbenchError, match="pattern 'cosine' is not known"):
        inj.pattern("cosine", np.ones((3, 2)), np.ones((1, 2)))


# Locality


def test_local_mass_of_known_patterns():
    near, tokens = local.neighbours(), local.SIDE**2
    assert local.local_mass(np.eye(tokens), near) == 1
    assert local.local_mass(np.full((tokens, tokens), 1 / tokens), near) == pytest.approx(9 / 196)
    far = np.roll(np.eye(tokens), 3 * local.SIDE, axis=1)
    assert local.local_mass(far, near) == 0
    np.testing.assert_array_equal(near, near.T)


def test_hidden_tokens_are_as_many_and_fields_are_smooth():
    hidden = local.others(0)
    assert (hidden.sum(axis=1) == local.HIDDEN).all() and np.diag(hidden).all()
    assert (hidden & local.neighbours()).sum(axis=1).mean() < 2
    clean, noisy = local.field(1)
    square = clean.reshape(local.SIDE, local.SIDE, -1)
    beside = (square * np.roll(square, 1, axis=0)).mean()
    # Gaussian smoothing with deviation s correlates neighbours by exp(-1 / 4 s^2).
    assert beside == pytest.approx(np.exp(-1 / (4 * local.SMOOTH**2)), abs=0.03)
    assert (noisy - clean).std() == pytest.approx(local.NOISE, rel=0.05)
