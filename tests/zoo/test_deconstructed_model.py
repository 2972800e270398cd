"""Every mixer is the attention it says: causal, of equal size, equal to its linear form."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from workbench.errors import WorkbenchError
from workbench.zoo.deconstructed import mixing, model
from workbench.zoo.deconstructed.recipe import HYBRID, LAYERS, ODD, UNIFORM, mixers_of, small
from workbench.zoo.deconstructed.shape import MIXERS, Shape
from workbench.zoo.deconstructed.task import Task

TASK = Task()
SHAPE = Shape(len(TASK.tokens), 24, 2, ("standard",) * 2)
SETTINGS = [("standard",) * LAYERS] + [
    mixers_of(c, v) for v in MIXERS[1:] for c in (UNIFORM, HYBRID)
]


def outside(shape, seeds=(0, 1)):
    if "rnd-emb-qk" in shape.mixers:
        return model.random_stream(shape, TASK.length, seeds)
    if "fixed-seq-qk" in shape.mixers:
        return torch.from_numpy(TASK.texts(1, 9)[0, :-1])
    return None


def drawn(mixers, seeds=(0, 1), d_model=24):
    shape = replace(SHAPE, mixers=tuple(mixers), d_model=d_model)
    return shape, model.start(shape, seeds), outside(shape, seeds)


def heads(seed=0, length=11, d_head=6):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = 2 * torch.randn(3, 2, 5, 3, length, d_head, generator=generator, dtype=torch.float64)
    return q, k, v


@pytest.mark.parametrize("mixers", SETTINGS, ids="-".join)
def test_what_comes_later_changes_nothing_before(mixers):
    """Bit by bit: the other half of every text replaced, also in what the maps look at."""
    shape, parameters, given = drawn(mixers)
    ids = torch.from_numpy(TASK.texts(6, 0)[:, :-1])
    other = torch.from_numpy(TASK.texts(6, 1)[:, :-1])
    cut = 13
    changed = torch.cat([ids[:, :cut], other[:, cut:]], dim=1)
    moved = given
    if given is not None and given.ndim == 1:
        moved = torch.cat([given[:cut], given[cut:].flip(0)])
    elif given is not None:
        moved = torch.cat([given[:, :cut], -given[:, cut:]], dim=1)
    before = model.forward(parameters, ids, shape, given).logits
    after = model.forward(parameters, changed, shape, moved).logits
    torch.testing.assert_close(before[:, :, :cut], after[:, :, :cut], rtol=1e-5, atol=1e-6)
    assert (before[:, :, cut:] - after[:, :, cut:]).abs().max() > 0.1


def test_only_mixers_that_mix_see_the_past():
    ids = torch.from_numpy(TASK.texts(6, 0)[:, :-1])
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 1) % TASK.words
    for mixers in SETTINGS:
        shape, parameters, given = drawn(mixers)
        moved = (
            (
                model.forward(parameters, changed, shape, given).logits
                - model.forward(parameters, ids, shape, given).logits
            )[:, :, 4:]
            .abs()
            .max()
        )
        assert (moved == 0) if set(mixers) == {"mlp"} else (moved > 1e-4), mixers


def test_all_settings_have_as_many_parameters():
    sizes = {recipe.name: model.count(recipe.shape) for recipe in small()}
    print(sizes)
    assert len(sizes) == 13 and len(set(sizes.values())) == 1
    d, tokens = 48, len(TASK.tokens)
    expected = 2 * tokens * d + d + LAYERS * (4 * d * d + 3 * d * 64 + 2 * d)
    assert set(sizes.values()) == {expected}


def test_standard_maps_are_pytorchs_attention():
    q, k, v = heads()
    found = mixing.softmax_rows(mixing.scores_of(q, k)) @ v
    expected = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(found, expected)


def test_the_polynomial_is_positive_and_near_the_softmax_where_scores_are_small():
    q, k, _ = heads()
    rows = mixing.taylor_rows(mixing.scores_of(4 * q, k))
    torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows.sum(-1)))
    assert (rows >= 0).all() and rows[..., 3, 4:].abs().max() == 0
    # The error of the second order falls as the cube of the scores.
    errors = []
    for scale in (0.01, 0.005):
        scores = mixing.scores_of(scale * q, k)
        errors.append((mixing.taylor_rows(scores) - mixing.softmax_rows(scores)).abs().max())
    print(f"errors {errors[0]:.1e} and {errors[1]:.1e}")
    assert 7 < errors[0] / errors[1] < 9
    far = mixing.scores_of(q, k)
    assert (mixing.taylor_rows(far) - mixing.softmax_rows(far)).abs().max() > 0.2


@pytest.mark.parametrize("name", ["polynomial", "gate"])
def test_linear_time_forms_give_the_same_and_softmax_another(name):
    q, k, v = heads()
    if name == "polynomial":
        quadratic = mixing.taylor_rows(mixing.scores_of(q, k)) @ v
        linear = mixing.taylor_recurrent(q, k, v)
    else:
        quadratic = mixing.softmax_rows(mixing.gate_scores(q, k)) @ v
        linear = mixing.gate_recurrent(q, k, v)
    error = ((linear - quadratic).abs().max() / quadratic.abs().max()).item()
    other = mixing.softmax_rows(mixing.scores_of(q, k)) @ v
    print(f"off by {error:.1e}")
    assert error < 1e-12 < 0.05 < (other - quadratic).abs().max() / quadratic.abs().max()


def test_one_score_per_key_written_out():
    q, k, v = (x[0, 0, 0].numpy() for x in heads(3))
    out = (mixing.softmax_rows(mixing.gate_scores(*map(torch.from_numpy, (q, k)))).numpy()) @ v
    for i in range(len(q)):
        gate = (q[: i + 1] / (1 + np.exp(-q[: i + 1])) * k[: i + 1]).sum(1) / np.sqrt(q.shape[1])
        weight = np.exp(gate) / np.exp(gate).sum()
        np.testing.assert_allclose(out[i], weight @ v[: i + 1], rtol=1e-10)


def test_rotary_scores_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 12, generator=generator, dtype=torch.float64).expand(9, 12)
            for _ in range(2))  # fmt: skip
    scores = mixing.scores_of(mixing.rotate(q), mixing.rotate(k))
    for distance in range(-8, 9):
        values = scores.diagonal(distance)
        torch.testing.assert_close(values, values[:1].expand_as(values), rtol=1e-6, atol=1e-6)
    assert scores[8].std() > 1e-2
    torch.testing.assert_close(scores.diagonal(), (q[0] @ k[0] / 12**0.5).expand(9))


def test_maps_depend_on_the_text_where_they_should():
    ids = torch.from_numpy(TASK.texts(4, 0)[:, :-1])
    for variant, alike in (
        ("rnd-emb-qk", True), ("fixed-seq-qk", True), ("static-emb-qk", False), ("standard", False),
    ):  # fmt: skip
        shape, parameters, given = drawn((variant,) * 2)
        for layer in model.forward(parameters, ids, shape, given).layers:
            spread = (layer.pattern - layer.pattern[:, :1]).abs().max()
            assert (spread == 0) == alike, variant
    # Runs have random streams of their own, and one fixed text but embeddings of their own.
    shape, parameters, given = drawn(("rnd-emb-qk",) * 2)
    first = model.forward(parameters, ids, shape, given).layers[0].pattern
    assert (first[0] - first[1]).abs().max() > 1e-3


def test_static_maps_read_embeddings_and_not_the_stream():
    """Layer 1 of a static network has the same map whatever layer 0 writes."""
    ids = torch.from_numpy(TASK.texts(4, 0)[:, :-1])
    for variant, moved in (("static-emb-qk", False), ("standard", True)):
        shape, parameters, _ = drawn((variant,) * 2)
        before = model.forward(parameters, ids, shape).layers[1].pattern
        parameters["0.o"] = -3 * parameters["0.o"]
        after = model.forward(parameters, ids, shape).layers[1].pattern
        assert ((before - after).abs().max() > 1e-3) == moved


def test_the_fixed_text_gives_the_maps_of_standard_attention_on_it():
    fixed = torch.from_numpy(TASK.texts(1, 9)[0, :-1])
    shape, parameters, _ = drawn(("fixed-seq-qk",) * 3)
    ids = torch.from_numpy(TASK.texts(2, 0)[:, :-1])
    found = model.forward(parameters, ids, shape, fixed).layers
    plain = replace(shape, mixers=("standard",) * 3)
    expected = model.forward(parameters, fixed[None], plain).layers
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.pattern[:, :1], b.pattern, rtol=1e-4, atol=1e-6)


def test_skipped_layers_are_left_out():
    shape, parameters, _ = drawn(("standard",) * 4)
    ids = torch.from_numpy(TASK.texts(3, 0)[:, :-1])
    skipped = model.forward(parameters, ids, shape, skipped=ODD)
    kept = {name: value for name, value in parameters.items() if name[:2] not in ("0.", "2.")}
    renamed = {name.replace("1.", "0.", 1).replace("3.", "1.", 1): v for name, v in kept.items()}
    short = model.forward(renamed, ids, replace(shape, mixers=("standard",) * 2))
    torch.testing.assert_close(skipped.logits, short.logits)
    assert [layer is None for layer in skipped.layers] == [True, False, True, False]


def test_a_run_in_a_stack_is_the_run_alone():
    ids = torch.from_numpy(TASK.texts(5, 0))
    for mixers in (("standard", "mlp"), ("rnd-emb-qk", "standard")):
        shape, together, given = drawn(mixers, (0, 5))
        _, alone, own = drawn(mixers, (5,))
        losses = []
        for parameters, stream in ((together, given), (alone, own)):
            for value in parameters.values():
                value.requires_grad_()
            logits = model.forward(parameters, ids[:, :-1], shape, stream).logits
            losses.append(model.next_symbol_loss(logits, ids[:, 1:]))
            losses[-1].sum().backward()
        torch.testing.assert_close(losses[0][1:], losses[1])
        for name, value in alone.items():
            torch.testing.assert_close(together[name].grad[1], value.grad[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixers": ("linear",)}, "'linear' is none of"),
        ({"mixers": ("rnd-emb-qk", "fixed-seq-qk")}, "one of the two"),
        ({"d_model": 32}, "multiple of 6"),
    ],
)
def test_networks_that_cannot_be_are_refused(settings, message):
    with pytest.raises(WorkbenchError, match=message):
        replace(SHAPE, **settings)


def test_an_outside_stream_is_wanted_where_it_is_used():
    ids = torch.from_numpy(TASK.texts(2, 0)[:, :-1])
    shape, parameters, given = drawn(("rnd-emb-qk",) * 2)
    with pytest.raises(WorkbenchError, match="want an outside"):
        model.forward(parameters, ids, shape)
    with pytest.raises(WorkbenchError, match="no use for"):
        model.forward(parameters, ids, SHAPE, given)
