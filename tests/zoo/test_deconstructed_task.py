"""The language: texts follow their rules, and the oracle is the law they follow."""

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.zoo.deconstructed.task import FIRST, RULES, Task

TASK = Task()
COPY, RECALL = RULES.index("copy"), RULES.index("recall")


def test_texts_follow_the_rules_symbol_by_symbol():
    texts = TASK.texts(200, 0)
    assert texts.shape == (200, TASK.length + 1) and (texts[:, 0] == TASK.begin).all()
    rules = TASK.rules(texts[:, :-1])
    seen = np.zeros(4, int)
    for text, row in zip(texts, rules, strict=True):
        known = {}
        for n, symbol in enumerate(text[:-1]):
            follows = int(text[n + 1])
            if TASK.first_name <= symbol < TASK.begin:
                assert row[n] == (RECALL if symbol in known else FIRST)
                assert known.setdefault(int(symbol), follows) == follows < TASK.words
            elif symbol == TASK.mark:
                assert row[n] == COPY and follows == text[n - 1]
            else:
                assert row[n] == 0 and follows != TASK.begin
            seen[row[n]] += 1
    assert (seen > 200).all()
    # Names mean something else in the next text.
    first = np.array([next(t[n + 1] for n in range(32) if t[n] == TASK.first_name)
                      for t in texts if (t[:-1] == TASK.first_name).any()])  # fmt: skip
    assert len(set(first)) > TASK.words / 2


def test_the_oracle_is_the_law_of_what_comes():
    texts = TASK.texts(6000, 1)
    ids, targets = texts[:, :-1], texts[:, 1:]
    oracle, rules = TASK.oracle(ids), TASK.rules(ids)
    np.testing.assert_allclose(oracle.sum(-1), 1.0, rtol=1e-12)
    given = np.take_along_axis(oracle, targets[..., None], -1)[..., 0]
    assert (given[(rules == COPY) | (rules == RECALL)] == 1.0).all() and (given > 0).all()
    # Frequencies of what follows the most frequent word, beside the oracle: four deviations.
    word = int(np.bincount(ids[ids < TASK.words]).argmax())
    came = np.bincount(targets[ids == word], minlength=len(TASK.tokens))
    expected = oracle[ids == word][0]
    deviation = np.sqrt(came.sum() * expected * (1 - expected))
    assert (np.abs(came - came.sum() * expected) <= 4 * deviation + 1e-9).all()
    fresh = np.bincount(targets[rules == FIRST], minlength=len(TASK.tokens))
    assert fresh[TASK.words :].sum() == 0 and fresh[: TASK.words].min() > 0
    # The surprise of the texts is the oracle's own entropy: Monte Carlo against its mean.
    surprise = -np.log(given)
    entropy = -(oracle * np.log(np.where(oracle > 0, oracle, 1))).sum(-1)
    error = (surprise - entropy).mean() / ((surprise - entropy).std() / np.sqrt(surprise.size))
    print(f"{error:.2f} standard errors")
    assert abs(error) < 4
    # The control: the oracle of other texts is not that of these.
    assert (np.take_along_axis(oracle[::-1], targets[..., None], -1) == 0).mean() > 0.1


def test_the_oracle_never_looks_ahead():
    ids = TASK.texts(20, 2)[:, :-1]
    other = TASK.texts(20, 3)[:, :-1]
    changed = np.concatenate([ids[:, :20], other[:, 20:]], axis=1)
    np.testing.assert_array_equal(TASK.oracle(ids)[:, :20], TASK.oracle(changed)[:, :20])
    assert (TASK.oracle(ids)[:, 20:] != TASK.oracle(changed)[:, 20:]).any()


def test_texts_are_decided_by_their_seed():
    np.testing.assert_array_equal(TASK.texts(5, [1, 2]), TASK.texts(5, [1, 2]))
    assert (TASK.texts(5, [1, 2]) != TASK.texts(5, [1, 3])).any()
    assert len(TASK.tokens) == TASK.begin + 1 == 21


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"names": 0}, "at least 2"), ({"calls": 0.95}, "sum below 1"), ({"copies": 0.0}, "positive")],
)
def test_languages_that_cannot_be_are_refused(settings, message):
    with pytest.raises(WorkbenchError, match=message):
        Task(**settings)
