"""What is trained: layers that learn, a transformer that is causal, stacks that log and go on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.zoo.descent import measure, recipe, training, transformer
from workbench.zoo.descent.recipe import LayerRecipe, Setting, TransformerRecipe
from workbench.zoo.descent.shape import Shape
from workbench.zoo.descent.task import Uniform
from workbench.zoo.regression.task import Prompts

SMALL = Uniform(d=3, length=5)
LAYER = LayerRecipe("linear", 1, (Setting("linear", 0), Setting("linear", 1)), 60, 1e-2, 64, SMALL)
SHAPE = Shape(d=2, examples=3, width=8)
CAUSAL = TransformerRecipe((Setting("transformer", 0), Setting("transformer", 1)), 40, batch=16,
                           warmup=10, shape=SHAPE)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return training.train(tmp_path_factory.mktemp("descent") / "a", (LAYER, CAUSAL))


def test_stacks_log_what_is_declared(trained):
    layer, causal = (trained.trajectories[name] for name in ("linear-h1", "transformer"))
    assert list(layer.data_vars) == [v.name for v in measure.LAYER]
    assert list(causal.data_vars) == [v.name for v in measure.TRANSFORMER]
    assert layer["by_range_baseline"].dims == ("predictor", "half")
    assert causal["by_examples_baseline"].dims == ("predictor", "examples")
    assert layer["kq"].shape == (2, 5, 1, 4, 3) and layer["step"].to_numpy()[-1] == 60
    np.testing.assert_allclose(layer["loss_over"].sel(predictor="zero"),
                               layer["by_range"].sel(half=0.5), rtol=1e-5)  # fmt: skip
    assert causal["by_examples"].sizes["examples"] == 4
    np.testing.assert_allclose(causal["error"], causal["by_examples"].mean("examples"), rtol=1e-5)
    lines = layer["by_range_baseline"]
    assert (lines.sel(predictor="GD, best step") <= 1).all()
    np.testing.assert_allclose(lines.sel(predictor="zero"), 1.0, rtol=1e-6)


def test_a_stopped_training_goes_on(trained, tmp_path):
    def stop(done, total, message):
        if done >= 55:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(tmp_path / "a", (LAYER,), stop)
    found = training.train(tmp_path / "a", (LAYER,))
    for name in ("q", "o"):
        np.testing.assert_array_equal(
            found.weights("linear-h1")[name], trained.weights("linear-h1")[name]
        )


@pytest.mark.slow
def test_linear_attention_learns_one_step_and_softmax_with_one_head_does_not(tmp_path):
    layers = (
        replace(LAYER, steps=400, batch=256),
        replace(LAYER, kind="softmax", steps=400, batch=256, settings=(Setting("softmax-h1", 0),)),
    )
    found = training.train(tmp_path / "a", layers).trajectories
    linear, softmax = (found[name].isel(step=-1) for name in ("linear-h1", "softmax-h1"))
    best = linear["loss_over"].sel(predictor="GD, best step").to_numpy()
    print(best, linear["to_gd"].to_numpy(), softmax["to_gd"].to_numpy())
    assert best.min() < 1.02 < softmax["loss_over"].sel(predictor="GD, best step").min()
    solved = best < 1.1
    assert (linear["cosine"].to_numpy()[solved] > 0.98).all() and softmax["cosine"].max() < 0.95
    assert (found["linear-h1"]["loss_over"].sel(predictor="GD, best step").isel(step=0) > 1.2).all()


def test_the_transformer_is_causal_and_its_runs_are_their_own():
    parameters = transformer.start(SHAPE, [0, 1])
    prompts = CAUSAL.task.prompts(4, 0)
    found, patterns = transformer.forward(parameters, prompts, SHAPE)
    assert found.shape == (2, 4, 4) and patterns.shape == (2, 2, 4, 2, 7, 7)
    torch.testing.assert_close(patterns.sum(-1), torch.ones(patterns.shape[:-1]))
    assert patterns.triu(1).abs().max() == 0
    changed = Prompts(prompts.x, prompts.y.copy(), prompts.x_q, prompts.y_q)
    changed.y[:, 1] += 3.0
    after, _ = transformer.forward(parameters, changed, SHAPE)
    torch.testing.assert_close(after[..., :2], found[..., :2], rtol=0, atol=0)
    assert (after[..., 2:] - found[..., 2:]).abs().max() > 1e-3
    alone, _ = transformer.forward(transformer.start(SHAPE, [1]), prompts, SHAPE)
    torch.testing.assert_close(alone[0], found[1])
    assert (found[0] - found[1]).abs().max() > 0.1


def test_tokens_are_examples_in_turn():
    prompts = CAUSAL.task.prompts(2, 0)
    tokens = transformer.tokens_of(prompts)
    assert SHAPE.names() == ["x1", "y1", "x2", "y2", "x3", "y3", "x4"]
    np.testing.assert_array_equal(tokens[:, 2, :2], prompts.x[:, 1])
    np.testing.assert_array_equal(tokens[:, 3], np.c_[np.zeros((2, 2)), prompts.y[:, 1]])
    np.testing.assert_array_equal(tokens[:, -1, :2], prompts.x_q)
    assert (tokens[:, 0::2, 2] == 0).all()
    np.testing.assert_array_equal(transformer.labels_of(prompts)[:, -1], prompts.y_q[:, 0])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: replace(LAYER, kind="cosine"), "give linear or softmax"),
        (lambda: replace(LAYER, heads=0), "1 or more of each"),
        (lambda: Shape(width=9, heads=2), "a width that the heads divide"),
        (lambda: transformer.forward(transformer.start(SHAPE, [0]),
                                     CAUSAL.task.prompts(1, 0, 5), SHAPE), "takes 3 of 2"),
    ],
)  # fmt: skip
def test_impossible_recipes_are_refused(call, says):
    with pytest.raises(WorkbenchError, match=says):
        call()


def test_recipes_are_the_ones_of_the_laws():
    names = {setting.name for r in (*recipe.layers(), *recipe.transformers())
             for setting in r.settings}  # fmt: skip
    assert names == {recipe.LINEAR, recipe.ONE, recipe.TWO, recipe.CAUSAL}
    assert recipe.transformers(quick=True) == ()
    assert recipe.layers()[0].to_json()["task"]["half"] == 0.5
