"""The stacked network against torch's own modules, GPT-2, literal loops, and itself alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.zoo.backcopy import export, model
from workbench.zoo.backcopy.recipe import Recipe, Setting, small
from workbench.zoo.backcopy.training import Bench, train

RECIPE = Recipe(
    name="tiny",
    settings=(Setting("a", 3), Setting("b", 4, copies=False), Setting("c", 3)),
    layers=2,
    heads=2,
    d_model=12,
    length=20,
    texts=4,
    steps=12,
    logged=(0, 6, 12),
    rate=3e-3,
    states=16,
)


@pytest.fixture(scope="module")
def bench():
    return Bench(RECIPE)


def disturbed(bench, seed=0):
    """Parameters in which nothing is at its initial value: gains, biases, null logits too."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.2 * torch.randn(value.shape, generator=generator)
        for name, value in bench.start().items()
    }


def relative(a, b):
    """Largest difference over the largest reference value."""
    return float((a - b).abs().max() / b.abs().max())


# --- initial values -------------------------------------------------------------------------


def test_initial_values_are_those_of_torch_modules():
    shape = model.Shape(vocabulary=65, length=64, layers=3, heads=1, d_model=96)
    ours = model.start(shape, [0, 1])
    torch.manual_seed(0)
    theirs = {
        "token": torch.nn.Embedding(65, 96),
        "position": torch.nn.Embedding(64, 96),
        "q": torch.nn.Linear(96, 96, bias=False),
        "up": torch.nn.Linear(96, 384, bias=False),
        "down": torch.nn.Linear(384, 96, bias=False),
        "unembed": torch.nn.Linear(96, 65, bias=False),
        "attn_gain": torch.nn.LayerNorm(96),
    }
    for name, module in theirs.items():
        mine, weight = ours[name], module.weight.detach()
        assert mine.shape[-weight.ndim :] == weight.shape, name
        assert float(mine.std()) == pytest.approx(float(weight.std()), rel=0.03), name
        if isinstance(module, torch.nn.Linear):
            assert float(mine.abs().max()) == pytest.approx(float(weight.abs().max()), rel=1e-3)


def test_initial_values_of_a_run_depend_on_its_seed_alone(bench):
    both, one = model.start(bench.shape, [7, 3]), model.start(bench.shape, [3])
    for name, value in one.items():
        assert torch.equal(both[name][1], value[0])
    assert not torch.equal(both["q"][0], both["q"][1])


# --- the pass -------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [0, 1])
def test_logits_and_patterns_are_those_of_gpt2(bench, run):
    parameters = disturbed(bench)
    ids = bench.batch(0)[..., :-1]
    trace = model.forward(parameters, ids, bench.shape, bench.parts)
    arrays = {name: value.numpy() for name, value in parameters.items()}
    net = export.gpt2(RECIPE, arrays, RECIPE.settings[run].run)
    net.set_attn_implementation("eager")
    with torch.no_grad():
        out = net(ids[run], output_attentions=True, output_hidden_states=True)
    error = relative(trace.logits[run], out.logits)
    print(f"logits differ by {error:.1e} of the largest")
    assert error < 1e-5
    for layer in range(2):
        assert relative(trace.pattern[layer][run], out.attentions[layer]) < 1e-5
        assert relative(trace.stream[layer][run], out.hidden_states[layer]) < 1e-5
    other = model.forward(disturbed(bench, seed=1), ids, bench.shape, bench.parts)
    assert relative(other.logits[run], out.logits) > 0.1


def test_later_symbols_change_nothing_before_them(bench):
    ids = bench.batch(0)[..., :-1]
    changed = ids.clone()
    changed[..., 11] = (changed[..., 11] + 1) % 16
    one, two = (
        model.forward(disturbed(bench), x, bench.shape, bench.parts).logits for x in (ids, changed)
    )
    assert torch.equal(one[:, :, :11], two[:, :, :11])
    assert not torch.allclose(one[:, :, 11:], two[:, :, 11:])


def test_runs_do_not_mix(bench):
    parameters = {n: v.requires_grad_() for n, v in disturbed(bench).items()}
    bench.loss(parameters, bench.batch(0))[1].backward()
    gradients = {n: v.grad for n, v in parameters.items() if n != "null"}
    for name, gradient in gradients.items():
        assert gradient is not None and gradient[1].any(), name
        assert not gradient[[0, 2]].any(), name
    assert parameters["null"].grad is None, "no run has a null sink"


def test_relu_attention_by_a_literal_loop():
    bench = Bench(replace(RECIPE, attention="relu"))
    trace = model.forward(disturbed(bench), bench.batch(0)[..., :-1], bench.shape, bench.parts)
    scores, pattern = trace.scores[0][0, 0, 1], trace.pattern[0][0, 0, 1]
    for q in range(20):
        for k in range(20):
            expected = max(0.0, float(scores[q, k])) / (q + 1) if k <= q else 0.0
            assert float(pattern[q, k]) == pytest.approx(expected, rel=1e-6)
    assert (pattern.sum(-1) - 1).abs().max() > 0.1


def test_null_sink_takes_what_the_log_sum_exp_says():
    """A row with a null logit s is the plain row times sigmoid(lse - s)."""
    settings = (Setting("plain", 3), Setting("null", 3, null_start=0.7))
    bench = Bench(replace(RECIPE, settings=settings))
    parameters = {n: v[[0, 0]] for n, v in disturbed(bench).items()}
    ids = bench.batch(0)[..., :-1]
    trace = model.forward(parameters, ids, bench.shape, bench.parts)
    hidden = torch.ones(20, 20, dtype=torch.bool).triu(1)
    # The second layer's input differs between the two; the first layer's does not.
    scores = trace.scores[0][0].masked_fill(hidden, -math.inf)
    sink = 0.7 + parameters["null"][0, 0][None, :, None, None]
    share = torch.sigmoid(scores.logsumexp(-1, keepdim=True) - sink)
    plain, null = trace.pattern[0]
    assert relative(null, plain * share) < 1e-6
    assert relative(plain, scores.softmax(-1)) < 1e-6
    assert float((1 - null.sum(-1)).min()) > 0.01
    with pytest.raises(WorkbenchError, match="ReLU attention has no denominator"):
        wrong = Bench(replace(RECIPE, settings=settings, attention="relu"))
        wrong.loss(wrong.start(), wrong.batch(0))


def test_null_rate_multiplies_the_step_of_the_null_logit(tmp_path):
    settings = tuple(Setting(f"n{r}", 3, null_start=0.0, null_rate=r) for r in (1.0, 50.0))
    recipe = replace(RECIPE, settings=settings, steps=1, logged=(0, 1), layers=1)
    results = train(tmp_path / "a", [recipe])
    bench, after = Bench(recipe), results.weights("tiny")["null"]
    logits = bench.parts.null_rate[:, None] * torch.from_numpy(after)[:, 0]
    # Adam's first step is the rate in the direction of the sign, whatever the gradient.
    assert float(logits[0].abs().max()) == pytest.approx(recipe.rate, rel=1e-2)
    np.testing.assert_allclose(logits[1].abs(), 50 * logits[0].abs(), rtol=1e-2)


@pytest.mark.parametrize("attention", ["softmax", "relu"])
def test_an_evicted_key_is_seen_by_itself_alone(attention):
    bench = Bench(replace(RECIPE, attention=attention))
    ids = bench.batch(0)[..., :-1]
    parameters = disturbed(bench)
    whole = model.forward(parameters, ids, bench.shape, bench.parts).pattern[0]
    cut = model.forward(parameters, ids, bench.shape, bench.parts.without_key(4)).pattern[0]
    assert not cut[..., 5:, 4].any() and torch.equal(cut[..., :5, :], whole[..., :5, :])
    expected = whole.clone()
    expected[..., 5:, 4] = 0
    if attention == "softmax":
        expected = expected / expected.sum(-1, keepdim=True)
    assert relative(cut, expected) < 1e-5


def test_removed_parts_are_zero_maps(bench):
    """A head or MLP switched off equals the network whose output map is zero there."""
    parameters, ids = disturbed(bench), bench.batch(0)[..., :-1]
    head, mlp = dict(parameters), dict(parameters)
    head["o"], mlp["down"] = parameters["o"].clone(), parameters["down"].clone()
    head["o"][:, 1, :, 6:] = 0  # d_head is 6: the columns of head 1
    mlp["down"][:, 0] = 0
    for edited, parts in (
        (head, bench.parts.without_head(1, 1)),
        (mlp, bench.parts.without_mlp(0)),
    ):
        expected = model.forward(edited, ids, bench.shape, bench.parts).logits
        found = model.forward(parameters, ids, bench.shape, parts).logits
        whole = model.forward(parameters, ids, bench.shape, bench.parts).logits
        assert relative(found, expected) < 1e-6 < 1e-2 < relative(whole, expected)
    assert (bench.parts.heads == 1).all() and (bench.parts.mlps == 1).all(), "edits are copies"


def test_result_norms_by_a_literal_loop(bench):
    parameters = disturbed(bench)
    trace = model.forward(parameters, bench.batch(0)[..., :-1], bench.shape, bench.parts)
    norms = model.result_norms(trace, parameters, 1)
    assert norms.shape == (3, 4, 2, 20)
    for run, text, head, key in ((0, 0, 0, 0), (2, 3, 1, 19), (1, 2, 1, 7)):
        out = parameters["o"][run, 1][:, 6 * head : 6 * head + 6]
        expected = (out @ trace.values[1][run, text, head, key]).norm()
        assert float(norms[run, text, head, key]) == pytest.approx(float(expected), rel=1e-5)


def test_loss_is_the_surprise_at_what_came(bench):
    parameters, batch = disturbed(bench), bench.batch(0)
    trace = model.forward(parameters, batch[..., :-1], bench.shape, bench.parts)
    found = bench.loss(parameters, batch)
    log_p = trace.logits.double().log_softmax(-1)
    for run in range(3):
        terms = [
            -float(log_p[run, text, q, batch[run, text, q + 1]])
            for text in range(4)
            for q in range(20)
        ]
        assert float(found[run]) == pytest.approx(float(np.mean(terms)), rel=1e-5)


def test_shapes_that_cannot_be_are_refused():
    with pytest.raises(WorkbenchError, match="attention 'hard' is none of softmax, relu"):
        model.Shape(65, 32, 1, 1, 48, "hard")
    with pytest.raises(WorkbenchError, match="5 heads do not divide"):
        model.Shape(65, 32, 1, 5, 48)
    with pytest.raises(WorkbenchError, match="optimiser 'lion'"):
        replace(RECIPE, optimiser="lion")
    with pytest.raises(WorkbenchError, match="layer 2 of 2 layers"):
        replace(RECIPE, settings=(Setting("x", 0, no_mlp=(2,)),))


# --- data, stacks ---------------------------------------------------------------------------


def test_runs_of_one_seed_see_the_same_numbers_and_steps_differ(bench):
    batch = bench.batch(5)
    assert batch.shape == (3, 4, 21)
    assert torch.equal(batch[0], batch[2]) and not torch.equal(batch[0], batch[1])
    assert not torch.equal(batch, bench.batch(6))
    assert torch.equal(batch, Bench(RECIPE).batch(5))
    on = bench.task.is_trigger[batch[..., 1:-1].numpy()]
    copied = (batch[..., 2:] == batch[..., :-2]).numpy()
    assert copied[0][on[0]].all() and not copied[1][on[1]].all()


@pytest.mark.parametrize(
    "change",
    [{}, {"attention": "relu"}, {"optimiser": "sgd", "rate": 0.1}],
    ids=["adamw", "relu", "sgd"],
)
def test_a_stacked_run_equals_the_run_alone(tmp_path, change):
    recipe = replace(RECIPE, **change)
    together = train(tmp_path / "all", [recipe])
    for i, setting in enumerate(recipe.settings):
        alone = train(tmp_path / setting.name, [replace(recipe, settings=(setting,))])
        worst = 0.0
        for name, value in alone.weights("tiny").items():
            mine = together.weights("tiny")[name][i]
            worst = max(worst, np.abs(mine - value[0]).max() / max(np.abs(value).max(), 1e-3))
        risks = [x.trajectories["tiny"]["risk_off"] for x in (together, alone)]
        np.testing.assert_allclose(risks[0][i], risks[1][0], rtol=1e-5)
        assert float(risks[1][0, 0]) - float(risks[1][0, -1]) > 1e-3, "it learns something"
        print(f"run {setting.run}: parameters differ by {worst:.1e} of the largest")
        assert worst < 1e-5


def test_parts_that_a_run_lacks_do_not_learn(tmp_path):
    settings = (Setting("whole", 0), Setting("none", 0, no_attention=(0,), no_mlp=(1,)))
    recipe = replace(RECIPE, settings=settings)
    weights = train(tmp_path / "a", [recipe]).weights("tiny")
    begin = Bench(recipe).start()
    decay = (1 - recipe.rate * 1e-4) ** recipe.steps
    for name, layer in (("o", 0), ("q", 0), ("up", 1), ("down", 1)):
        first = begin[name][:, layer].numpy()
        np.testing.assert_allclose(weights[name][1, layer], decay * first[1], rtol=1e-5)
        assert np.abs(weights[name][0, layer] - first[0]).max() > 1e-3


def test_recipes_are_whole():
    for recipe in small():
        assert recipe.logged[-1] == recipe.steps and recipe.logged[0] == 0
        assert recipe.to_json()["settings"][0]["seed"] == 0
    assert len({recipe.name for recipe in small()}) == 4
