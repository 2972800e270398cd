"""Laws are decided from numbers: planted trajectories that obey them, and ones that do not."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.zoo.backcopy import laws, measure, published, recipe
from workbench.zoo.trajectory import declare

STEPS = [0, 10, 20, 30, 40]
EDITS = ["none", "L0H0", "L0 mlp", "key 0", "key 1", "key 2"]
SIZES = {
    "run": 1, "step": 5, "layer": 1, "head": 1, "token": 4, "role": 3, "stream": 2, "edit": 6,
    "probe": 1, "query": 2, "key": 2,
}  # fmt: skip
DORMANT = {"sink_off": 0.9, "sink_on": 0.01, "drain": 0.2, "margin": (9.0, 6.0, 12.0)}
IDLE = {"sink_off": 0.1, "sink_on": 0.1, "drain": 1.5, "margin": (0.2, -2.0, 2.0)}
# What the paper says of every setting, in the terms of `planted`.
STORY: dict[str, dict[str, Any]] = {
    "main": DORMANT,
    "no-copy": {**IDLE, "head": (0.0, 0.0)},
    "no-attention": {**IDLE, "risk": 3.0},
    "relu": {**IDLE, "sink_off": 0.001, "fall": 1.0},
    "null-from-0": DORMANT,
    "null-from-4": {**IDLE, "null": 0.8},
    "adamw": {"slope": 0.01},
    "sgd": {"slope": -0.01},
}


def planted(
    setting, *, sink_off=0.9, sink_on=0.01, drain=0.2, fall=0.4, margin=(9.0, 6.0, 12.0),
    risk=0.1, head=(5.0, 0.02), null=0.0, slope=0.0, layers=1, bigram_at=10, copy_at=30,
    evicted=0.05,
):  # fmt: skip
    """One run with these numbers at its end, nothing else of interest."""
    sizes = {**SIZES, "layer": layers}
    data = xr.Dataset(
        {v.name: (v.dims, np.zeros([sizes[d] for d in v.dims])) for v in measure.VARIABLES},
        coords={
            "run": [f"{setting}-s0"],
            "setting": ("run", [setting]),
            "step": STEPS,
            "role": list(measure.ROLES),
            "edit": EDITS,
            "stream": [0, 1],
        },
    )
    at = np.array(STEPS)
    data["risk_on"][0] = np.where(at < copy_at, 3.0, risk)
    data["excess_off"][0] = np.where(at < bigram_at, 2.0, 0.1)
    for name, value in (("sink_off", sink_off), ("sink_on", sink_on), ("null_off", null)):
        data[name][0, :, -1, 0] = value
    for name, value in zip(("off", "low", "high"), margin, strict=True):
        data[f"delta_logit_{name}"][0, :, -1, 0] = value
    # The value of <s> begins at 1 and ends at `fall`; the others end where the ratio is `drain`.
    data["value_norm"][0, :, -1, 0] = np.stack(
        [np.linspace(1, fall, 5), np.ones(5), np.linspace(1, fall / drain, 5)], axis=1
    )
    data["resid_norm"][0, :, 1, 0] = 20 + slope * at
    for edit, on, off in (("L0H0", *head), ("L0 mlp", 0.1, 1.5), ("key 0", 0.0, evicted)):
        data["edit_excess_on"].loc[{"edit": edit}] = on
        data["edit_excess_off"].loc[{"edit": edit}] = off
    data["edit_excess_off"] += 0.1
    return declare(data, measure.VARIABLES)


def checked(story):
    runs = {name: planted(name, **values) for name, values in story.items()}
    return {f.law.name: f.law for f in laws.check(SimpleNamespace(trajectories=runs))}  # type: ignore[arg-type]


def test_every_law_holds_where_the_story_is_true():
    found = checked(STORY)
    assert len(found) == len(laws.CLAIMS) > 15
    assert {law.verdict for law in found.values()} == {"held"}
    assert found["sink where the head is dormant"].value == pytest.approx(0.9)
    assert found["sink where the head is dormant"].null == pytest.approx(0.1)
    assert found["AdamW: the residual grows"].value == pytest.approx(10)
    assert found["bigram before backcopy"].value == 20
    assert found["the head carries backcopy"].value == pytest.approx(5)
    assert found["value of the sink is small"].value == pytest.approx(0.2)
    assert found["value of the sink drains"].value == pytest.approx(0.4)
    assert found["more than that of other keys"].value == pytest.approx(0.5)
    assert found["more than that of other keys"].null == pytest.approx(0.0)
    assert found["sink logits concentrate"].value == pytest.approx(6 / 9)


@pytest.mark.parametrize(
    ("setting", "change", "fallen"),
    [
        ("main", {"sink_off": 0.4}, {"sink where the head is dormant"}),
        ("main", {"sink_on": 0.06}, {"no sink where it is active"}),
        ("main", {"copy_at": 10}, {"bigram before backcopy"}),
        ("main", {"head": (5.0, 0.2)}, {"the head carries nothing else"}),
        ("main", {"head": (2.0, 0.02)}, {"the head carries backcopy"}),
        ("main", {"risk": 0.5}, {"backcopy needs attention"}),
        (
            "main",
            {"evicted": 0.008},
            {"eviction of <s> hurts the dormant", "more than that of other keys"},
        ),
        ("main", {"fall": 0.7}, {"value of the sink drains"}),
        ("main", {"margin": (9.0, 0.0, 20.0)}, {"sink logits concentrate"}),
        ("relu", {"sink_off": 0.03}, {"ReLU attention has no sink"}),
        ("null-from-4", {"null": 0.4}, {"a null sink from +4 takes over"}),
        ("null-from-0", {"sink_off": 0.4}, {"a null sink from 0 does not"}),
        ("no-copy", {"sink_off": 0.35}, {"no triggers, no sink"}),
        (
            "sgd",
            {"slope": 0.01},
            {"SGD: the residual shrinks", "AdamW: the residual grows"},
        ),
    ],
)
def test_one_wrong_number_fells_its_law_alone(setting, change, fallen):
    found = checked({**STORY, setting: {**STORY[setting], **change}})
    assert {name for name, law in found.items() if not law.held} == fallen


def test_a_network_that_never_learns_the_copy_has_no_order():
    story = {**STORY, "main": {**DORMANT, "copy_at": 100}}
    assert checked(story)["bigram before backcopy"].verdict == "not applicable"


def test_values_are_the_worst_seed_and_nulls_the_nearest():
    runs = {name: planted(name, **values) for name, values in STORY.items()}
    runs["second"] = planted("main", **{**DORMANT, "sink_off": 0.7, "sink_on": 0.02})
    runs["third"] = planted("no-copy", **{**IDLE, "sink_off": 0.2})
    results: Any = SimpleNamespace(trajectories=runs)
    found = {f.law.name: f.law for f in laws.check(results)}
    assert found["sink where the head is dormant"].value == pytest.approx(0.7)
    assert found["sink where the head is dormant"].null == pytest.approx(0.2)
    assert found["no sink where it is active"].value == pytest.approx(0.02)
    assert found["no triggers, no sink"].value == pytest.approx(0.2)
    assert found["no triggers, no sink"].null == pytest.approx(0.7)


def test_a_missing_run_is_named():
    story = {name: values for name, values in STORY.items() if name != "sgd"}
    with pytest.raises(WorkbenchError, match="no run 'sgd' here"):
        checked(story)


def test_deep_runs_are_read_at_the_head_with_the_largest_sink():
    data = planted("main", layers=3).isel(run=0)
    data["sink_off"][-1, :, 0] = [0.2, 0.8, 0.4]
    data["value_norm"][-1, 1, 0] = [6.0, 1.0, 3.0]
    assert int(laws.head_of(data)["sink_off"].isel(step=-1) * 10) == 8
    assert laws.value_ratio(data) == pytest.approx(2)


def test_the_published_curve_lies_beside_ours():
    full = recipe.full("shakespeare.txt")
    assert set(published.STEPS) <= set(full[0].logged)
    assert full[0].name == "one-layer" and full[0].d_model == 256
    table = published.beside(planted("main").isel(run=0))
    assert table["step"].tolist() == [0]
    assert table["risk_on_published"].tolist() == [4.296]
    assert table["risk_on"].tolist() == [3.0] and table["resid"].tolist() == [20.0]
    curve = published.curve()
    learned = [curve["step"][curve[c] < b].min() for c, b in (("risk_off", 2.8), ("risk_on", 1.2))]
    assert learned[0] < learned[1], "their own curve has the order"
    assert published.residuals()["adamw"].is_monotonic_increasing
