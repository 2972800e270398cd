"""Stacks: rates of their own, runs independent; numbers and laws, and laws without effect."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.zoo import claims
from workbench.zoo.scansnap import laws, measure, model, recipe, training
from workbench.zoo.scansnap.claims import CLAIMS, REPORTED
from workbench.zoo.scansnap.recipe import Recipe, Setting
from workbench.zoo.scansnap.task import Task

BY_NAME = {claim.name: claim for claim in CLAIMS}
TINY = Recipe(
    "tiny",
    (Setting("a", 0.5, 3.0, 0, 40), Setting("b", 2.0, 1.0, 0, 40), Setting("b", 2.0, 1.0, 1, 40)),
    steps=30, logged=(0, 10, 30), outputs=5, momentum=0.9, batch=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return training.train(tmp_path_factory.mktemp("tiny") / "a", (TINY,))


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """The expected loss for an eighth of the steps, Adam, and one sampled setting with controls."""
    stacks = {stack.name: stack for stack in recipe.small()}
    one = [s for s in stacks["sampled"].settings if s.name == "sampled-z1-r1"]
    parts = (
        recipe.flow(600),
        replace(stacks["wide"], steps=600, logged=recipe.logged_to(600)),
        recipe.adam(),
        stacks["fine"],
        replace(stacks["sampled"], settings=tuple(one[:2])),
        replace(stacks["long"], settings=stacks["long"].settings[:2]),
        replace(stacks["plain"], settings=stacks["plain"].settings[:2]),
    )
    return laws.look(training.train(tmp_path_factory.mktemp("evidence") / "a", parts))


def verdict(name, evidence):
    return BY_NAME[name].law(evidence)[0].verdict


# Stacks


def test_a_run_of_a_stack_is_torch_s_own_sgd_with_its_rates(tiny):
    """The second run alone, each table a parameter group with its rate."""
    for place, setting in enumerate(TINY.settings):
        tables = model.start(1, 2, 30, TINY.outputs)
        for value in tables.values():
            value.requires_grad_()
        optimiser = torch.optim.SGD(
            [
                {"params": [tables["y"]], "lr": setting.rate_y},
                {"params": [tables["z"]], "lr": setting.rate_z},
            ],
            momentum=0.9,
        )
        for step in range(TINY.steps):
            both = training.Bench(TINY).batch(step)
            texts = model.Texts(both.counts[[place]], both.classes[[place]])
            optimiser.zero_grad()
            model.losses(tables, texts).sum().backward()
            optimiser.step()
        for name, value in tables.items():
            found = np.array(tiny.weights("tiny")[name])[place]
            np.testing.assert_allclose(found, value[0].detach().numpy(), rtol=1e-9, atol=1e-12)
    z = np.array(tiny.weights("tiny")["z"])
    assert np.abs(z[1] - z[2]).max() > 0.01 and np.abs(z[0] - z[1]).max() > 0.01


def test_a_stack_logs_every_variable_with_its_labels(tiny):
    data = tiny.trajectories["tiny"]
    assert list(data.data_vars) == [variable.name for variable in measure.VARIABLES]
    assert dict(data.sizes) == {"run": 3, "step": 3, "target": 2, "token": 30}
    assert data["run"].to_numpy().tolist() == ["a-s0", "b-s0", "b-s1"]
    assert data["rate_y"].to_numpy().tolist() == [1.5, 2.0, 2.0]
    np.testing.assert_allclose(data["loss"].isel(step=0), np.log(5))
    np.testing.assert_allclose(data["attention"].sum("token"), 1, rtol=1e-6)
    assert float(data["loss"].isel(step=-1).max()) < 0.2


def test_a_stopped_training_goes_on_with_its_rates(tiny, tmp_path):
    from workbench.zoo import lab

    def stop(done, total, message):
        if done >= 25:
            raise KeyboardInterrupt

    stack = training.Bench(TINY).stack()
    with pytest.raises(KeyboardInterrupt):
        lab.run(training.NAME, (stack,), tmp_path / "a", stop, checkpoint_every=10)
    found = lab.run(training.NAME, (stack,), tmp_path / "a")
    for name in "yz":
        np.testing.assert_array_equal(found.weights("tiny")[name], tiny.weights("tiny")[name])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"optimiser": "lion"}, "choose 'sgd' or 'adam'"),
        ({"optimiser": "adam"}, "gives Adam several rates"),
        ({"settings": (Setting("a"), Setting("b", length=9))}, "make two stacks"),
        ({"batch": 0}, "give 1 text or more"),
    ],
)
def test_impossible_recipes_are_refused(fields, says):
    with pytest.raises(WorkbenchError, match=says):
        replace(TINY, **fields)


def test_recipes_hold_what_the_laws_need():
    made = {setting.name for stack in recipe.small() for setting in stack.settings}
    assert len(BY_NAME) == len(CLAIMS)
    assert {setting for claim in CLAIMS for setting in claim.needs} <= made
    assert {*laws.FLOW, *laws.WIDE, *laws.stable(0, 99)} <= made
    assert not set(laws.stable()) & set(laws.stable(laws.BROKEN, 99))


# Numbers and laws


def test_the_flow_gives_the_numbers_measured_before(tmp_path):
    """Two outputs, rates 1: r and r(0) exp(2 z) of an earlier program of another hand."""
    logged = (0, 20, 50, 200, 2000)
    one = replace(recipe.flow(2000), settings=(Setting("ratio-1"),), logged=logged)
    run = training.train(tmp_path / "a", (one,)).trajectories["flow"].isel(run=0)
    expected = {20: (213.26, 213.54), 50: (395.7, 397.2), 200: (706.6, 712.0), 2000: (1131, 1147)}
    for step, (r, predicted) in expected.items():
        now = run.sel(step=step)
        assert 99 * float(now["gain"]) == pytest.approx(r, rel=5e-4)
        assert 99 * float(now["predicted_gain"]) == pytest.approx(predicted, rel=5e-4)
    assert float(run["z_rare"].isel(step=-1)) == pytest.approx(0.0115, abs=5e-5)
    assert float(run["z_common"].isel(step=-1)) == pytest.approx(-0.50, abs=0.005)
    assert float(run["entropy"].isel(step=0)) == pytest.approx(2.151, abs=5e-4)


def test_sampled_attention_takes_the_course_measured_before(evidence):
    """Common mass of Syn-Small by an earlier program, with another seed and vocabulary."""
    for run in evidence.of("sampled-z1-r1"):
        for step, mass in ((0, 0.645), (10, 0.571), (20, 0.456), (50, 0.392), (100, 0.389)):
            assert float(run["common_mass"].sel(step=step)) == pytest.approx(mass, abs=0.025)
    for run in evidence.of("plain"):
        assert float(run["common_mass"].sel(step=100)) > 0.45


def test_laws_hold_that_these_runs_decide(evidence):
    names = [n for n in claims.readable(CLAIMS, evidence.runs) if n != "every pair, to the end"]
    found = {
        f.law.name: f.law.verdict
        for f in claims.findings(evidence, CLAIMS, names, REPORTED)
        if f.law.name in names
    }
    assert found.pop("growth ends as log log t") == "not held"
    assert len(found) == 12 and set(found.values()) == {"held"}, found
    assert verdict("every pair, to the end", evidence) == "not held"


def test_laws_fail_where_their_effect_is_taken_away(evidence):
    def swapped(by):
        return replace(evidence, runs={**evidence.runs, **{n: evidence.of(by) for n in laws.FLOW}})

    for by, names in {
        "mixed": ("distinct tokens gain", "common tokens lose", "the frequent ones first",
                  "attention leaves what tells nothing", "a faster decoder, less sparse"),
        "equal": ("the frequent ones first", "r(t) = r(0) exp(2 z)", "every pair, near the start",
                  "a faster decoder, less sparse"),
        "adam": ("r(t) = r(0) exp(2 z)", "the frequent ones first"),
    }.items():  # fmt: skip
        for name in names:
            assert verdict(name, swapped(by)) != "held", (by, name)
    runs = evidence.runs
    # A control that keeps the order too leaves nothing to say.
    both = replace(evidence, runs={**runs, **{n: runs[m] for n, m in zip(laws.WIDE, laws.FLOW,
                                                                        strict=True)}})  # fmt: skip
    assert verdict("a faster decoder, less sparse", both) == "not held"
    short = replace(evidence, runs={**runs, "long": runs["sampled-z1-r1"]})
    assert verdict("the rarest gain on long texts", short) == "not held"
    slow = replace(evidence, runs={**runs, "sampled-z1-r1": runs["plain"]})
    assert verdict("sampled attention freezes", slow) == "not held"
    # Steps 25 to 100 at rate 1 in place of .01: a hundred times later.
    late = replace(evidence, runs={**runs, "fine": [runs["ratio-1"][0].assign_coords(rate_y=0.01)]})
    assert BY_NAME["growth begins as t^2"].law(late)[0].value > 0.5


def test_statistics_of_planted_runs():
    import xarray as xr

    steps = np.arange(0, 101)
    run = xr.Dataset(
        {
            "common_mass": ("step", 0.6 - 0.002 * steps),
            "entropy_rate": ("step", -np.exp(-steps / 10)),
            "z_top": ("step", 3e-4 * steps**2.0),
            "top_energy": ("step", np.full(101, 0.1)),
            "drift": ("step", steps / 100),
        },
        coords={"step": steps, "rate_y": 0.25},
    )
    # At constant energy B is z / f^2: 3e-3 t^2.
    np.testing.assert_allclose(laws.growth(run), 3e-3 * steps**2.0)
    assert laws.exponent(run, 1, 100) == pytest.approx(2)
    assert laws.still_moving(run) == pytest.approx(0.5)
    assert laws.slowing(run) == pytest.approx(np.exp(-10)) and laws.peak_step(run) == 0
    assert laws.slowing(run, 20) == pytest.approx(np.exp(-2))
    # z passes .2 between steps 25 and 26.
    assert laws.early_drift(run) == pytest.approx(0.25)
    log_log = run.assign(z_top=("step", 0.1 * np.log(np.log(15 * 0.25 * steps + 2))))
    found = laws.log_log_slope(log_log.sel(step=slice(90, None)), 90)
    assert found == pytest.approx(1, rel=0.01)


def test_relative_gains_are_those_of_attention():
    task = Task()
    z = np.zeros((1, 2, 30))
    z[0, :, 19] = 0.4
    texts = measure.long_texts([task])
    seen = [model.attention(torch.from_numpy(part), texts).numpy()[0] for part in (0 * z, z)]
    import xarray as xr

    run = xr.Dataset(
        {"attention": (("step", "target", "token"), np.stack(seen))},
        coords={"step": [0, 1], "token": task.names},
    )
    for rank, weight in ((0, 0.1), (8, 0.9)):
        r = [np.exp(2 * grown) / weight**2 - 1 for grown in (0.0, 0.4)]
        assert float(laws.log_gain(run, rank)[1]) == pytest.approx(np.log(r[1] / r[0]))
