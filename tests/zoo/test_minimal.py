"""Minimal transformers: collapses are exact where they are said to be, controls are blind."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from torch.nn import functional

from workbench.errors import WorkbenchError
from workbench.zoo.minimal import measure, model, recipe, task, training

D, LAYERS = 8, 2


def network(variant, seeds=(0, 1)):
    parameters = model.start(variant, D, LAYERS, list(seeds))
    return {name: value.double() for name, value in parameters.items()}


def images(count=5, runs=2):
    learned, _ = task.digits()
    some = torch.from_numpy(learned.patches[:count]).double()
    return some.expand(runs, -1, -1, -1)


def logits(parameters):
    return model.forward(parameters, images())[0]


def test_patches_hold_their_pixels():
    image = np.arange(64.0).reshape(1, 8, 8)
    cut = task.patches(image)
    assert cut.shape == (1, 16, 4)
    for row in range(4):
        for column in range(4):
            block = image[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert cut[0, 4 * row + column].tolist() == block.ravel().tolist()


def test_the_split_is_fixed_balanced_and_whole():
    learned, held_out = task.digits()
    assert len(learned.labels) == 1297 and len(held_out.labels) == task.TEST
    counts = np.bincount(held_out.labels)
    assert counts.min() >= 48 and counts.max() <= 52
    seen = {row.tobytes() for row in learned.flat}
    assert sum(row.tobytes() in seen for row in held_out.flat) <= 1  # the set has a double


def test_reversed_images_are_beyond_a_linear_classifier():
    learned, held_out = task.digits()
    found = {}
    for kind in (task.PLAIN, task.REVERSED):
        train = task.seen_with(learned, task.signs(kind, len(learned.labels), [1]))
        test = task.seen_with(held_out, task.signs(kind, task.TEST, [2]))
        linear = LogisticRegression(max_iter=300).fit(train.flat, train.labels)
        curved = SVC(gamma=0.02).fit(train.flat, train.labels)
        found[kind] = linear.score(test.flat, test.labels), curved.score(test.flat, test.labels)
    assert found[task.PLAIN][0] > 0.93 and found[task.REVERSED][0] < 0.45
    assert min(found[task.PLAIN][1], found[task.REVERSED][1]) > 0.93


def test_query_and_key_of_one_head_collapse_without_loss():
    two = network(model.NO_MLP)
    one = {name: two[name] for name in two if name not in ("query", "key")}
    one["similarity"] = two["query"] @ two["key"].mT
    assert torch.allclose(logits(two), logits(one), atol=1e-12)


def test_value_and_output_of_one_head_collapse_but_cannot_go():
    two = network(model.COLLAPSED)
    identity = torch.eye(D, dtype=torch.float64).expand_as(two["out"])
    one = {**two, "value": two["value"] @ two["out"], "out": identity}
    assert torch.allclose(logits(two), logits(one), atol=1e-12)
    without = {name: two[name] for name in two if name not in ("value", "out")}
    assert not torch.allclose(logits(two), logits(without), atol=1e-2)


def test_attention_is_that_of_torch():
    """One run of the whole network, written again with torch's own layers."""
    parameters = {name: value[1] for name, value in network(model.WHOLE).items()}
    x = images()[1] @ parameters["embed"] + parameters["position"]
    for layer in range(LAYERS):
        here = {name: parameters[name][layer] for name in parameters if parameters[name].ndim > 2}
        here |= {name: parameters[name][layer] for name in ("up_bias", "down_bias")}
        h = functional.layer_norm(x, (D,))
        mixed = functional.scaled_dot_product_attention(
            h @ here["query"], h @ here["key"], h @ here["value"]
        )
        x = x + functional.linear(mixed, here["out"].T)
        h = functional.layer_norm(x, (D,))
        inner = functional.gelu(functional.linear(h, here["up"].T, here["up_bias"]))
        x = x + functional.linear(inner, here["down"].T, here["down_bias"])
    pooled = functional.layer_norm(x, (D,)).mean(1)
    expected = functional.linear(pooled, parameters["read"].T, parameters["read_bias"])
    assert torch.allclose(logits(network(model.WHOLE))[1], expected, atol=1e-12)


def test_symmetric_similarity_is_a_scalar_product():
    parameters = network(model.SYMMETRIC)
    table = model.similarity(parameters)
    assert table is not None and torch.equal(table, table.mT)
    assert torch.linalg.eigvalsh(table).min() > -1e-12
    own = model.forward(parameters, images())[1].diagonal(dim1=-2, dim2=-1)
    assert own.min() >= 0
    free = model.forward(network(model.BARE), images())[1].diagonal(dim1=-2, dim2=-1)
    assert 0.2 < (free < 0).double().mean() < 0.8


def test_uniform_attention_sees_no_similarity():
    scores, patterns = model.forward(network(model.UNIFORM), images())[1:]
    assert not scores.any() and torch.allclose(patterns, torch.full_like(patterns, 1 / 16))


def test_every_run_of_a_stack_is_a_network_of_its_own():
    pair, alone = network(model.WHOLE), network(model.WHOLE, seeds=(1,))
    labels = torch.zeros(2, 5, dtype=torch.long)
    both = model.losses(pair, (images(), labels))
    single = model.losses(alone, (images(runs=1), labels[:1]))
    assert torch.allclose(both[1], single[0]) and not torch.allclose(both[0], both[1])


def test_parameters_are_counted_as_by_hand():
    square, d = 32 * 32, 32
    assert model.size(model.WHOLE, d, 2)["layers"] == 2 * (12 * square + 5 * d)
    assert model.size(model.NO_MLP, d, 2)["layers"] == 2 * 4 * square
    assert model.size(model.COLLAPSED, d, 2)["layers"] == 2 * 3 * square
    assert model.size(model.BARE, d, 2)["layers"] == 2 * square
    assert model.size(model.SYMMETRIC, d, 2)["layers"] == d * (d + 1)
    outside = 4 * d + 16 * d + 10 * d + 10
    assert model.size(model.SYMMETRIC, d, 2)["all"] == d * (d + 1) + outside
    with pytest.raises(WorkbenchError, match="no variant 'half'"):
        model.shapes("half", d, 2)


def test_asymmetry_is_the_share_of_the_antisymmetric_part():
    table = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    turned = (table - table.T) / 2
    expected = float((turned**2).sum() / (table**2).sum())
    assert measure.asymmetry(table).item() == pytest.approx(expected)
    assert measure.asymmetry(table + table.T).item() == pytest.approx(0, abs=1e-12)
    assert measure.asymmetry(turned).item() == pytest.approx(1)


@pytest.mark.slow
def test_a_short_training_learns_and_logs(tmp_path):
    stack = recipe.Recipe(
        model.WHOLE,
        (recipe.Setting(model.WHOLE, task.PLAIN, 0),),
        steps=80,
        rate=3e-3,
        layers=2,
        batch=32,
    )
    found = training.train(tmp_path / "lab", (stack,)).trajectories[model.WHOLE].isel(run=0)
    assert found["step"].to_numpy().tolist() == [0, 10, 20, 40, 80]
    accuracy = found["accuracy"].to_numpy()
    assert accuracy[0] < 0.25 and accuracy[-1] > 0.6
    assert np.allclose(found["pattern"].sum("key"), 1, atol=5e-3)
    weight = found["pattern"].to_numpy().diagonal(axis1=-2, axis2=-1)
    assert weight.shape == (5, 2, 1, 2, 16)
