"""Recipes to stacks: what a stack logs, that it goes on, what is read from trained heads."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.zoo import lab
from workbench.zoo.deconstructed import measure, recipe, training
from workbench.zoo.deconstructed.recipe import HYBRID, STANDARD, UNIFORM, mixers_of, setting_of

PAIRS = ((HYBRID, "mlp"), (UNIFORM, "approximate"), (HYBRID, "rnd-emb-qk"))
TINY = tuple(
    replace(
        recipe.small()[0], name=setting_of(c, v), mixers=mixers_of(c, v), seeds=(0, 3), steps=12,
        logged=(0, 6, 12), d_model=24, heads=2, texts=6, warmup=3,
    )
    for c, v in PAIRS
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return training.train(tmp_path_factory.mktemp("tiny") / "a", TINY)


def test_a_stack_logs_every_variable_with_its_labels(trained):
    data = trained.trajectories["hybrid-mlp"]
    assert list(data.data_vars) == [variable.name for variable in measure.VARIABLES]
    assert dict(data.sizes) | {"token": 21} == {
        "run": 2, "step": 3, "layer": 4, "head": 2, "probe": training.PROBES, "query": 32,
        "key": 32, "token": 21,
    }  # fmt: skip
    assert data["run"].to_numpy().tolist() == ["hybrid-mlp-s0", "hybrid-mlp-s3"]
    assert data["mixer"].to_numpy().tolist() == ["mlp", STANDARD, "mlp", STANDARD]
    assert np.isnan(data["entropy"].isel(layer=[0, 2])).all()
    assert not np.isnan(data["entropy"].isel(layer=[1, 3])).any()
    rows = data["pattern"].isel(layer=[1, 3]).sum("key")
    np.testing.assert_allclose(rows, 1, atol=5e-3)
    ids = training.Bench(TINY[0]).evaluation[0]
    assert (data["probe_id"].to_numpy()[:, 0] == ids[0]).all()
    marked = data["token"].to_numpy()[data["trigger"].to_numpy()]
    assert marked.tolist() == ["~", "n0", "n1", "n2"]
    # Texts begin with <s>: every head's first row is on it.
    assert (data["sink"].isel(layer=1) >= 1 / 32 - 1e-6).all()
    learned = data["excess_chain"].isel(step=0) - data["excess_chain"].isel(step=-1)
    assert (learned > 0.1).all()


def test_a_stopped_training_goes_on_and_gives_the_same(trained, tmp_path):
    def stop(done, total, message):
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.run(training.NAME, tuple(training.Bench(r).stack() for r in TINY), tmp_path / "a", stop,
                checkpoint_every=5)  # fmt: skip
    found = training.train(tmp_path / "a", TINY)
    for stack in ("uniform-approximate", "hybrid-rnd-emb-qk"):
        for name in ("token", "0.q", "3.mlp_down"):
            np.testing.assert_array_equal(found.weights(stack)[name], trained.weights(stack)[name])


def test_all_stacks_learn_from_the_same_texts():
    batches = [training.Bench(r).batch(3) for r in recipe.small()]
    assert all((batch == batches[0]).all() for batch in batches)
    assert (batches[0] != training.Bench(recipe.small()[0]).batch(4)).any()
    # Not the texts that are measured.
    measured = {bytes(row) for row in training.Bench(TINY[0]).evaluation[0]}
    assert not any(bytes(row[:-1]) in measured for row in batches[0])


def test_the_linear_form_of_trained_heads(trained):
    values, nulls = training.recurrent_errors(trained, TINY[1])
    print(f"off by {max(values):.1e}, softmax by {min(nulls):.1e}")
    assert len(values) == len(nulls) == 2 and max(values) < 1e-4 < 1e-3 < min(nulls)
    evidence = training.look(trained, TINY)
    assert (
        set(evidence.linear) == {"approximate"}
        and len(evidence.of("hybrid-mlp", "hybrid-rnd-emb-qk")) == 4
    )
    assert len(set(evidence.sizes.values())) == 1


def test_rates_rise_stay_and_fall():
    one = recipe.small()[0]
    factors = [one.rate_at(step) for step in range(one.steps)]
    assert factors[0] == pytest.approx(1 / one.warmup) and max(factors) == 1.0
    assert factors[one.warmup : int(0.8 * one.steps)] == [1.0] * (int(0.8 * one.steps) - one.warmup)
    assert factors[-1] == pytest.approx(1 / (0.2 * one.steps))
    for wrong in ({"texts": 0}, {"fall": 0.0}):
        with pytest.raises(WorkbenchError, match="give 1 or more"):
            replace(one, **wrong)


def test_recipes_hold_every_variant_twice_and_stay_small():
    recipes = recipe.small()
    names = [r.name for r in recipes]
    assert names[0] == STANDARD and len(set(names)) == 1 + 2 * len(recipe.VARIANTS)
    for r in recipes[1:]:
        variant = r.name.partition("-")[2]
        assert [layer for layer, m in enumerate(r.mixers) if m == variant] == (
            list(recipe.ODD) if r.name.startswith(HYBRID) else list(range(recipe.LAYERS))
        )
        assert r.logged[-1] == r.steps and len(r.seeds) == 3
    one = recipes[0]
    maps = len(one.seeds) * len(one.logged) * 4 * one.heads * training.PROBES * one.task.length**2
    print(f"{2 * maps / 1e6:.1f} MB of maps per stack")
    assert 2 * maps < 1.5e6


def test_random_streams_are_apart_from_starts():
    bench = training.Bench(TINY[2])
    token = bench.start()["token"]
    assert bench.outside.shape == (2, 32, 24)
    assert (
        torch.corrcoef(torch.stack([token[0].flatten()[:500], bench.outside[0].flatten()[:500]]))[
            0, 1
        ].abs()
        < 0.2
    )
