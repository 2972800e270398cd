"""The generator of the Bigram-Backcopy task and its oracle."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from workbench.errors import WorkbenchError
from workbench.zoo.backcopy.task import BEGIN, Chain, Task, synthetic_chain, text_chain

TEXTS, LENGTH = 1500, 64


@pytest.fixture(scope="module")
def task():
    return Task(synthetic_chain(16, seed=3), LENGTH)


@pytest.fixture(scope="module", params=[True, False], ids=["copies", "control"])
def drawn(task, request):
    copies = np.full(TEXTS, request.param)
    uniforms = np.random.default_rng(5).random((TEXTS, LENGTH))
    return task.texts(uniforms, copies), copies


def test_invariants_of_the_texts(task, drawn):
    ids, copies = drawn
    assert ids.shape == (TEXTS, LENGTH + 1)
    assert (ids[:, 0] == task.begin).all() and (ids[:, 1:] < task.begin).all()
    trigger = task.is_trigger[ids]
    assert trigger.any()
    adjacent = (trigger[:, 1:] & trigger[:, :-1]).any()
    after = trigger[:, 1:-1]
    copied = ids[:, 2:][after] == ids[:, :-2][after]
    if copies.all():
        assert not trigger[:, 1].any() and not adjacent
        assert copied.all() and not task.is_trigger[ids[:, 2:][after]].any()
    else:
        assert trigger[:, 1].any() and adjacent and copied.mean() < 0.5


def test_triggers_are_the_most_frequent_symbols(task):
    frequencies = task.chain.frequencies
    assert task.is_trigger.sum() == 3 and not task.is_trigger[task.begin]
    chosen = frequencies[task.is_trigger[:-1]]
    assert chosen.min() >= frequencies[~task.is_trigger[:-1]].max()


def chi_square(task, ids, oracle):
    """p value of all symbols that came after a free choice, against the oracle's rows."""
    free = oracle.max(axis=-1) < 1
    free[:, 0] = False
    statistic, freedom = 0.0, 0
    for state in range(task.begin):
        here = free & (ids[:, :-1] == state)
        counts = np.bincount(ids[:, 1:][here], minlength=task.begin + 1)
        expected = oracle[here].sum(axis=0)
        enough = expected >= 5
        pooled = [np.r_[x[enough], x[~enough].sum()] for x in (counts, expected)]
        kept = pooled[1] >= 5
        statistic += ((pooled[0] - pooled[1])[kept] ** 2 / pooled[1][kept]).sum()
        freedom += int(kept.sum()) - 1
    return stats.chi2.sf(statistic, freedom)


def test_frequencies_agree_with_the_oracle_and_with_no_other(task, drawn):
    ids, copies = drawn
    oracle = task.oracle(ids[:, :-1], copies)
    p = chi_square(task, ids, oracle)
    # The control: the oracle of a chain that differs by one per cent of mixing.
    other = Chain(task.chain.symbols, 0.98 * task.chain.matrix + 0.02 / 16, task.chain.frequencies)
    wrong = chi_square(task, ids, Task(other, LENGTH).oracle(ids[:, :-1], copies))
    print(f"p of the oracle {p:.3f}, of the other chain {wrong:.1e}")
    assert p > 1e-3 and wrong < 1e-6


def test_first_symbols_agree_with_the_oracle(task, drawn):
    ids, copies = drawn
    first = task.oracle(ids[:, :-1], copies)[0, 0]
    counts = np.bincount(ids[:, 1], minlength=len(first))
    possible = first > 0
    assert not counts[~possible].any()
    assert stats.chisquare(counts[possible], TEXTS * first[possible]).pvalue > 1e-3


def test_oracle_is_a_distribution_that_is_sure_after_triggers(task, drawn):
    ids, copies = drawn
    oracle = task.oracle(ids[:, :-1], copies)
    np.testing.assert_allclose(oracle.sum(axis=-1), 1)
    assert not oracle[..., task.begin].any()
    came = np.take_along_axis(oracle, ids[:, 1:, None], -1)[..., 0]
    assert (came > 0).all()
    on = task.is_trigger[ids[:, :-1]]
    assert (came[on] == 1).all() == copies.all()
    entropy = -(oracle * np.log(np.where(oracle > 0, oracle, 1))).sum(axis=-1)
    surprise = -np.log(came)
    error = (surprise - entropy).mean() / (surprise - entropy).std() * np.sqrt(surprise.size)
    assert abs(error) < 4, "the surprise averages to the entropy"


def test_texts_equal_a_slow_reading_of_the_rule(task):
    uniforms = np.random.default_rng(1).random((6, LENGTH))
    copies = np.array([True, False] * 3)
    fast = task.texts(uniforms, copies)
    matrix, frequencies = task.chain.matrix, task.chain.frequencies
    triggers = set(np.argsort(-frequencies)[:3].tolist())
    for row in range(6):
        first = [0 if copies[row] and i in triggers else f for i, f in enumerate(frequencies)]
        text = [task.begin]
        for n in range(LENGTH):
            if copies[row] and text[-1] in triggers:
                text.append(text[-2])
                continue
            weights = np.array(first) if n == 0 else matrix[text[-1]]
            below = np.cumsum(weights / weights.sum())
            text.append(next(i for i, c in enumerate(below) if uniforms[row, n] < c))
        assert fast[row].tolist() == text


def test_synthetic_chain_is_seeded_and_stationary():
    chain = synthetic_chain(64)
    assert np.array_equal(chain.matrix, synthetic_chain(64).matrix)
    assert not np.array_equal(chain.matrix, synthetic_chain(64, seed=1).matrix)
    assert (chain.matrix > 0).all() and (chain.frequencies > 0).all()
    np.testing.assert_allclose(chain.matrix.sum(axis=1), 1)
    np.testing.assert_allclose(np.linalg.matrix_power(chain.matrix, 4096)[0], chain.frequencies)
    assert Task(chain, 32).tokens[-1] == BEGIN and Task(chain, 32).tokens[0] == "w00"


def test_chain_of_a_text_counts_adjacent_characters(tmp_path):
    text = "so shall it be, she said;\nand so it is: as it shall be said and done so.\n" * 3
    (tmp_path / "t.txt").write_text(text)
    chain = text_chain(tmp_path / "t.txt")
    assert chain.symbols == tuple(sorted(set(text)))
    pairs, single = Counter(pairwise(text)), Counter(text[:-1])
    for i, u in enumerate(chain.symbols):
        assert chain.frequencies[i] == pytest.approx(text.count(u) / len(text))
        for j, v in enumerate(chain.symbols):
            assert chain.matrix[i, j] == pytest.approx(pairs[u, v] / single[u])


@pytest.mark.parametrize(
    ("text", "says"),
    [("abab", "2 different characters"), ("abcdefgh" * 3 + "!", "occurs nowhere else")],
)
def test_texts_that_make_no_chain_are_refused(tmp_path, text, says):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(WorkbenchError, match=says):
        text_chain(tmp_path / "t.txt")
    with pytest.raises(WorkbenchError, match="cannot be read"):
        text_chain(tmp_path / "none.txt")


def test_tasks_that_cannot_be_are_refused():
    chain = synthetic_chain(16)
    with pytest.raises(WorkbenchError, match="too short"):
        Task(chain, 8)
    for triggers in (0, 9):
        with pytest.raises(WorkbenchError, match=f"{triggers} triggers of 16 symbols"):
            Task(chain, 32, triggers)
