"""Loss against context: closed forms, transformers' own loss, planted copying, and its controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from tests import planted_induction as planted
from workbench.circuits import icl_curves
from workbench.circuits.icl_curves import ANSWERS, OTHER, OWN, Episode
from workbench.errors import WorkbenchError

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


@pytest.fixture(scope="module")
def copier():
    return wb.load(planted.network(planted.COPIES))


@pytest.fixture(scope="module")
def idle():
    return wb.load(planted.network(planted.NOTHING))


def test_losses_are_those_of_transformers(copier) -> None:
    texts = icl_curves.as_ids(copier, copier.repeated_tokens(10, 3))
    losses = icl_curves.token_losses(copier, [*texts, (*texts[0], 5, 6)])
    assert losses.dims == ("text", "index") and losses["index"].to_numpy().tolist() == [
        *range(1, 20)
    ]
    for row, text in zip(losses.to_numpy(), texts, strict=False):
        ids = torch.tensor([text])
        with torch.no_grad():
            own = copier.net(input_ids=ids, labels=ids).loss
        assert np.isclose(row.mean(), float(own), rtol=1e-5)


def test_planted_copying_gives_the_score_and_shuffling_takes_it(copier, idle) -> None:
    texts = icl_curves.as_ids(copier, copier.repeated_tokens(24, 8))
    given = icl_curves.icl_score(icl_curves.token_losses(copier, texts))
    assert given.value < -3 and given.low <= given.value <= given.high and given.n == 8
    mixed = icl_curves.shuffled(texts)
    assert [sorted(a) for a in mixed] == [sorted(b) for b in texts] and mixed != texts
    assert icl_curves.icl_score(icl_curves.token_losses(copier, mixed)).value > 0
    nothing = icl_curves.icl_score(icl_curves.token_losses(idle, texts))
    assert abs(nothing.value) < 0.1


def test_spans_are_the_papers_tokens_and_scale() -> None:
    early, late = icl_curves.spans(2000)
    assert (np.mean(early), np.mean(late)) == (49.5, 499.5)
    for last in (11, 48, 200, 523):
        early, late = icl_curves.spans(last)
        assert 1 <= early.start < early.stop <= late.start < late.stop == last + 1
        assert len(early) == len(late)


def test_the_interval_is_that_of_the_normal_law() -> None:
    differences = np.random.default_rng(3).normal(-0.5, 1.0, 400)
    found = icl_curves.mean_change(differences)
    half = 1.96 * differences.std(ddof=1) / 20
    assert np.isclose(found.low, differences.mean() - half, atol=0.15 * half)
    assert np.isclose(found.high, differences.mean() + half, atol=0.15 * half)
    assert np.isnan(icl_curves.mean_change(differences[:1]).low)


def test_curve_has_means_and_standard_errors(idle) -> None:
    texts = icl_curves.as_ids(idle, idle.repeated_tokens(8, 5))
    losses = icl_curves.token_losses(idle, texts)
    table = icl_curves.curve(losses)
    assert np.allclose(table["loss"], losses.to_numpy().mean(0))
    assert np.allclose(table["se"], losses.to_numpy().std(0, ddof=1) / np.sqrt(5))


def test_the_floor_of_a_dictionary_is_that_of_a_look_up() -> None:
    """A predictor that looks the key up, on drawn episodes, against the closed form."""
    size, values = 3, range(10, 18)
    many = icl_curves.dictionary(
        range(5), values, size=size, examples=6, episodes=4000, seed=1
    )  # fmt: skip
    counts = icl_curves.counts_to(6)
    assert counts == [0, 1, 2, 4, 6]
    for count, floor in zip(
        counts, icl_curves.dictionary_floor(np.array(counts), size, len(values)), strict=True
    ):
        losses = []
        for one in many:
            known = dict(one.examples[:count])
            assert known.get(one.query[0], one.query[1]) == one.query[1]
            losses.append(0.0 if one.query[0] in known else np.log(len(values)))
        error = 4 * np.log(8) * 0.5 / np.sqrt(4000)
        assert abs(np.mean(losses) - floor) < error, (count, np.mean(losses), floor)


def test_planted_look_up_needs_examples_of_its_task_with_their_answers(copier, idle) -> None:
    many = icl_curves.dictionary(range(16), range(16, 32), size=3, examples=12, episodes=16)
    found = icl_curves.contexts(many)
    assert [one.query for one in found[ANSWERS]] == [one.query for one in many]
    assert [one.examples for one in found[OTHER]] == [one.examples for one in (*many[1:], many[0])]
    behind = {
        context: float(icl_curves.example_losses(copier, episodes, [12]).mean())
        for context, episodes in found.items()
    }
    # Knowing nothing costs ln 32; the copier is sure of itself, so that being wrong costs more.
    assert behind[OWN] < 0.5, behind
    assert min(behind[ANSWERS], behind[OTHER]) > np.log(planted.VOCAB), behind
    still = icl_curves.example_losses(idle, many, [0, 12]).mean("episode").to_numpy()
    assert np.allclose(still, np.log(planted.VOCAB), atol=0.05)


def test_the_loss_is_that_of_the_answer_alone(copier) -> None:
    one = Episode("t", (((1, 2), (3, 4)),), ((5,), (6, 7)), begin=(0,))
    (found,) = icl_curves.example_losses(copier, [one], [1]).to_numpy()
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]])
    with torch.no_grad():
        log_p = copier.net(ids).logits[0].log_softmax(-1)
    assert np.isclose(found[0], -float(log_p[5, 6] + log_p[6, 7]) / 2, rtol=1e-5)


def test_without_another_task_that_control_is_left_out() -> None:
    same = [Episode("t", (((1,), (2,)),), ((3,), (4,))) for _ in range(2)]
    assert OTHER not in icl_curves.contexts(same)


def test_texts_are_cut_to_the_positions_of_the_model(idle) -> None:
    long = (*range(planted.VOCAB),) * 3
    losses = icl_curves.token_losses(idle, [long])
    assert losses.sizes["index"] == planted.PLACES - 1
    whole = icl_curves.token_losses(idle, [long[: planted.PLACES]])
    assert (losses.to_numpy() == whole.to_numpy()).all()
    assert icl_curves.fitting_period(idle, 100) == (planted.PLACES - 1) // 2
    assert icl_curves.fitting_period(idle, 7) == 7


@pytest.mark.parametrize(
    ("episode", "count", "message"),
    [
        (Episode("t", (), ((3,), ())), 0, "1 tokens before its answer and 0 in it"),
        (Episode("t", (), ((), (3, 4))), 0, "0 tokens before its answer and 2 in it"),
        (Episode("t", (((1,), (2,)),) * 32, ((3,), (4,))), 32, "has 66 tokens, more than the 64"),
    ],
)
def test_a_query_without_a_loss_of_its_own_is_refused(idle, episode, count, message) -> None:
    with pytest.raises(WorkbenchError, match=message):
        icl_curves.example_losses(idle, [episode], [count])


def test_bad_input_is_one_sentence(idle) -> None:
    with pytest.raises(WorkbenchError, match="the shortest of 1 texts has 5 tokens"):
        icl_curves.token_losses(idle, [(1, 2, 3, 4, 5)])
    with pytest.raises(WorkbenchError, match="a dictionary of 4 keys was asked for"):
        icl_curves.dictionary([1, 2], [3], size=4, examples=2, episodes=1)
    episode = Episode("t", (((1,), (2,)),), ((3,), (4,)))
    with pytest.raises(WorkbenchError, match="5 examples are asked for, but one of 1 episodes"):
        icl_curves.example_losses(idle, [episode], [0, 5])
