"""Texts of the induction laboratory: the oracle against enumeration and counts."""

import itertools

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.zoo.induction.task import Language, repeated

TINY = Language(states=3, length=16, favour=0.6)


def likelihood(language, text, favourites):
    """p(text | favourites): a product over tokens, written down from the definition."""
    chain = language.chain
    p = chain.frequencies[text[1]]
    for now, then in itertools.pairwise(text[1:]):
        p *= (
            language.favour * (favourites[now] == then)
            + (1 - language.favour) * chain.matrix[now, then]
        )
    return p


def test_the_oracle_is_a_sum_over_all_favourites():
    """Three words have 27 tables of favourites: p(next) = sum p(text + next) / sum p(text)."""
    tables = list(itertools.product(range(3), repeat=3))
    for text in TINY.texts(4, 5):
        found = TINY.oracle(text[None, :-1])[0]
        np.testing.assert_allclose(found.sum(axis=-1), 1)
        for t in range(16):
            seen = list(text[: t + 1])
            joint = [
                sum(likelihood(TINY, [*seen, word], table) for table in tables) for word in range(3)
            ]
            np.testing.assert_allclose(found[t, :3], np.array(joint) / sum(joint), rtol=1e-9)


def test_texts_have_the_oracles_frequencies():
    """Of 20 000 texts: how often each word follows is what the oracle says on average."""
    language = Language(states=4, length=16, favour=0.7)
    ids = language.texts(20_000, 1)
    assert (ids[:, 0] == language.begin).all() and ids[:, 1:].max() == 3
    told = language.oracle(ids[:, :-1])[:, 6, :4]
    came = np.eye(4)[ids[:, 7]]
    error = np.abs((came - told).mean(axis=0)).max()
    print(f"largest difference {error:.4f}")
    assert error < 4 * 0.5 / np.sqrt(20_000)
    # And it knows: among texts where it is sure of a word, that word comes so often.
    sure = told[:, 1] > 0.7
    assert sure.sum() > 300
    assert came[sure, 1].mean() == pytest.approx(told[sure, 1].mean(), abs=0.04)


@pytest.mark.parametrize("favour", [0.9, 0.5, 0.0])
def test_a_successor_comes_again_as_often_as_it_must(favour):
    """Two draws at one word agree with sum_s (favour 1[s = o] + (1 - favour) P_s)^2, o uniform."""
    language = Language(states=12, length=48, favour=favour)
    ids = language.texts(400, 3)
    same = []
    for text in ids:
        first = {}
        for now, then in itertools.pairwise(text[1:]):
            if now in first:
                same.append(first[now] == then)
            first.setdefault(now, then)
    squares = (language.chain.matrix**2).sum(axis=1) @ language.chain.frequencies
    expected = favour**2 + 2 * favour * (1 - favour) / 12 + (1 - favour) ** 2 * squares
    print(f"favour {favour}: the same again {np.mean(same):.3f}, expected {expected:.3f}")
    # Words are not met with the chain's frequencies where favourites lead elsewhere.
    assert np.mean(same) == pytest.approx(expected, abs=0.03)


def test_without_favourites_the_oracle_is_the_chain():
    chain = Language(states=12, length=48, favour=0.0)
    ids = chain.texts(3, 0)[:, :-1]
    np.testing.assert_allclose(
        chain.oracle(ids)[:, 1:, :-1], chain.chain.matrix[ids[:, 1:]], atol=1e-12
    )


def test_without_context_is_the_oracle_of_an_unseen_word():
    language = Language()
    ids = np.array([[language.begin, *range(20)]])
    np.testing.assert_allclose(language.without_context(ids), language.oracle(ids), atol=1e-12)
    # No best guess from the word alone: one that is its own favourite stays, and is met more often.
    many = language.texts(4000, 8)
    now, then = many[:, 20], many[:, 21]
    row = language.without_context(many[:, :-1])[:, 20]
    assert (now == then).mean() > 1.5 * row[np.arange(4000), now].mean()
    again = np.array([[language.begin, 3, 5, 3, 5, 3]])
    gap = language.oracle(again)[0, -1] - language.without_context(again)[0, -1]
    assert gap[5] > 0.3, "what followed before is likely to follow"


def test_texts_depend_on_their_seed_alone():
    language = Language()
    np.testing.assert_array_equal(language.texts(3, [1, 2]), language.texts(3, [1, 2]))
    assert (language.texts(3, [1, 2]) != language.texts(3, [1, 3])).any()


def test_repeated_words_are_distinct_and_come_twice():
    ids, n = repeated(Language(), 5, 0)
    assert n == 15 and ids.shape == (5, 31) and (ids[:, 0] == 24).all()
    np.testing.assert_array_equal(ids[:, 1:16], ids[:, 16:])
    assert all(len(set(row)) == 15 for row in ids[:, 1:16])


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"favour": 1.0}, "no probability below 1"), ({"favour": -0.1}, "no probability"),
     ({"states": 1}, "at least 2 words"), ({"length": 8}, "16 tokens")],
)  # fmt: skip
def test_languages_that_cannot_be_are_refused(fields, says):
    with pytest.raises(WorkbenchError, match=says):
        Language(**fields)
