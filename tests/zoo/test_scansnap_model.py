"""Texts are drawn as asked; the layer is a plain one in numpy; its gradient is autograd's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from workbench.errors import WorkbenchError
from workbench.zoo.scansnap import measure, model
from workbench.zoo.scansnap.task import Task

TASK = Task(common=4, distinct=3, classes=3, rarest=0.2)


def drawn(runs=2, count=7, outputs=5, seed=0, task=TASK):
    """Random tables and short texts, in which many tokens do not occur."""
    rng = np.random.default_rng(seed)
    parameters = model.start(runs, task.classes, task.tokens, outputs)
    parameters = {n: torch.from_numpy(rng.normal(size=v.shape)) for n, v in parameters.items()}
    texts = [task.texts(count, 9, [seed, run]) for run in range(runs)]
    counts, classes = (torch.from_numpy(np.stack(part)) for part in zip(*texts, strict=True))
    return parameters, model.Texts(counts.double(), classes)


# Texts


def test_weights_are_those_of_syn_small():
    task = Task()
    p = task.frequencies
    # Ten weights of one and .1, .2, ..., 1.
    assert p.shape == (2, 30) and p[0, 0] == pytest.approx(1 / 15.5)
    np.testing.assert_allclose(p[1, task.own[1]] * 15.5, np.arange(1, 11) / 10)
    assert (p[0, task.own[1]] == 0).all() and (p[:, :10] == p[0, 0]).all()
    assert task.names[10] == "d0.0" and task.names[29] == "d1.9" and task.vocabulary == 34
    mixed = replace(task, mixed=True).frequencies
    np.testing.assert_array_equal(mixed[0], mixed[1])
    assert mixed.sum() == pytest.approx(2)
    assert np.ptp(Task(rarest=1.0).frequencies[0, :20]) == 0


def test_texts_have_the_frequencies_of_their_class():
    counts, classes = TASK.texts(4000, 50, [1])
    assert (counts.sum(axis=1) == 50).all()
    for n in range(TASK.classes):
        found = counts[classes == n].mean(axis=0) / 50
        error = np.sqrt(TASK.frequencies[n] / 50 / (classes == n).sum())
        assert (np.abs(found - TASK.frequencies[n]) <= 5 * error).all()
    again, other = TASK.texts(9, 50, [1]), TASK.texts(9, 50, [2])
    np.testing.assert_array_equal(again[0], TASK.texts(9, 50, [1])[0])
    assert (again[0] != other[0]).any()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"common": 0}, "at least 1 common token"),
        ({"distinct": 1}, "2 distinct ones"),
        ({"classes": 1}, "and 2 classes"),
        ({"rarest": 0.0}, "above 0"),
        ({"rarest": 1.5}, "at most 1"),
    ],
)
def test_impossible_tasks_are_refused(fields, says):
    with pytest.raises(WorkbenchError, match=says):
        Task(**fields)


def test_too_few_outputs_are_refused():
    with pytest.raises(WorkbenchError, match="2 outputs are too few for 3 classes"):
        model.start(1, 3, 9, 2)


# The layer


def test_the_layer_is_softmax_attention_position_by_position():
    """One-hot values, one key per position, softmax over positions, in numpy."""
    parameters, texts = drawn()
    seen = model.attention(parameters["z"], texts).numpy()
    loss = model.losses(parameters, texts).numpy()
    for run in range(2):
        y, z = (parameters[name][run].numpy() for name in "yz")
        expected = []
        for row, n in enumerate(texts.classes[run].tolist()):
            tokens = np.repeat(np.arange(TASK.tokens), texts.counts[run, row].long())
            weights = np.exp(z[n, tokens]) / np.exp(z[n, tokens]).sum()
            value = (weights[:, None] * np.eye(TASK.tokens)[tokens]).sum(axis=0)
            np.testing.assert_allclose(seen[run, row], value, rtol=1e-12, atol=1e-15)
            scores = y.T @ (value / np.linalg.norm(value))
            expected.append(np.log(np.exp(scores).sum()) - scores[n])
        assert loss[run] == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.parametrize("long", [False, True])
def test_the_paper_s_gradient_is_autograd_s(long):
    parameters, texts = drawn()
    if long:
        texts = measure.long_texts([TASK, replace(TASK, mixed=True)])
    found = model.descent(parameters, texts)
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    model.losses(leaves, texts).sum().backward()
    for name, value in leaves.items():
        exact = -value.grad.numpy()
        error = np.abs(found[name].numpy() - exact).max() / np.abs(exact).max()
        print(f"{name}: relative error {error:.1e}")
        assert error < 1e-12
    # Attention is normalised twice, so the logits of a row only trade places.
    assert np.abs(found["z"].sum(dim=-1).numpy()).max() < 1e-15


def test_long_texts_are_the_limit_of_sampled_ones():
    z = drawn(runs=1)[0]["z"]
    limit = model.attention(z, measure.long_texts([TASK]))[0].numpy()
    gaps = []
    for length in (100, 10_000, 1_000_000):
        counts, classes = TASK.texts(1, length, [length])
        texts = model.Texts(
            torch.from_numpy(counts)[None].double(), torch.from_numpy(classes)[None]
        )
        gaps.append(np.abs(model.attention(z, texts)[0, 0].numpy() - limit[classes[0]]).max())
    assert gaps[2] < gaps[1] < gaps[0] and gaps[2] < 2e-3


def test_distinct_tokens_gain_by_the_square_of_attention_where_the_decoder_follows():
    """A decoder along today's attention moves z by c^2 (Theorem 3); one that remembers attention
    before training pulls the token back that has gained most."""
    task = Task()
    texts = measure.long_texts([task])
    z = torch.zeros(1, 2, 30, dtype=torch.float64)
    z[:, 0, 10:20] = z[:, 1, 20:] = torch.linspace(0, 1.5, 10).double()
    now = model.attention(z, texts)[0]
    moves = []
    for kept in (now, texts.counts[0]):
        along = kept / kept.norm(dim=-1, keepdim=True)
        y = along.T @ torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double()
        moves.append(model.descent({"y": y[None], "z": z}, texts)["z"][0, 0, 10:20].numpy())
    follows, remembers = (move / now[0, 10:20].numpy() ** 2 for move in moves)
    np.testing.assert_allclose(follows, follows[0], rtol=1e-10)
    assert follows[0] > 0 and remembers[0] > 0 > remembers[-1]


# What is measured


def measured(z, task):
    parameters = model.start(len(z), task.classes, task.tokens, task.classes)
    parameters["z"] = torch.from_numpy(z)
    texts = measure.long_texts([task] * len(z))
    return measure.measured(parameters, texts, np.ones(len(z)), task)


def test_measures_are_what_scipy_and_the_definitions_say():
    task = Task()
    z = np.random.default_rng(3).normal(size=(2, 2, 30))
    found = measured(z, task)
    w = task.frequencies * np.exp(z)
    own = np.stack([w[:, n, task.own[n]] for n in range(2)], axis=1)
    np.testing.assert_allclose(found["entropy"], entropy(own, axis=-1).mean(axis=1))
    np.testing.assert_allclose(found["common_mass"], (w[..., :10].sum(-1) / w.sum(-1)).mean(axis=1))
    np.testing.assert_allclose(found["common_mass"] + found["distinct_mass"], 1)
    r = own[..., -1] ** 2 / own[..., 0] ** 2 - 1
    np.testing.assert_allclose(found["gain"], (r / 99).mean(axis=1), rtol=1e-9)
    growth = np.exp(2 * np.stack([z[:, 0, 19], z[:, 1, 29]], axis=1))
    np.testing.assert_allclose(found["gain_ratio"], (r / 99 / growth).mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(found["z_highest_common"], z[..., :10].max(axis=(1, 2)))


def test_the_invariant_stays_where_theorem_3_keeps_it():
    """Planted growth: 1 / w^2 falls by one amount for all, against equal growth for all."""
    task = Task()
    weight = np.linspace(0.1, 1, 10)
    z = np.zeros((2, 2, 30))
    for n in range(2):
        z[0, n, task.own[n]] = np.log((1 / weight**2 - 0.7) ** -0.5 / weight)
        z[1, n, task.own[n]] = z[0, n, task.own[n][-1]]
    found = measured(z, task)
    np.testing.assert_allclose(found["drift"], [0, 0.7], atol=1e-10)
    np.testing.assert_allclose(found["gain"][0], found["predicted_gain"][0])
    equal = measured(np.zeros((1, 2, 30)), Task(rarest=1.0))
    assert np.isnan(equal["drift"]).all() and np.isnan(equal["gain_ratio"]).all()


def test_the_rate_of_the_entropy_is_its_derivative():
    rng = np.random.default_rng(5)
    share, move = rng.uniform(0.1, 1, 8), rng.normal(size=8)
    value, rate = measure.distinct_entropy(share, move)
    h = 1e-6
    ahead, behind = (entropy(share * np.exp(sign * h * move)) for sign in (1, -1))
    assert value == pytest.approx(entropy(share))
    assert rate == pytest.approx((ahead - behind) / (2 * h), rel=1e-7)
