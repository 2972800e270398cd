"""Ablations: what they change beside their controls, what is refused, one job at a time."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from app_made import write_run

from workbench.app import ablate, ablate_panel
from workbench.app.ablate import LOSS, Bench, Change, Jobs, Outcome
from workbench.errors import WorkbenchError
from workbench.interventions import Intervention
from workbench.runs import open_run

DROP = Change("zoo", 0, "drop", "all", "", 0, 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two short texts of the small model trained here, in a run."""
    from workbench.capturing import capture
    from workbench.models import load
    from workbench.prompts import Prompt
    from workbench.zoo import tasks

    rows = tasks.markov(np.random.default_rng(0), 2, 48).ids
    path = tmp_path_factory.mktemp("ablate") / "zoo"
    capture(load("zoo:mix-3l"), [Prompt(token_ids=tuple(map(int, r))) for r in rows], out=path)
    return open_run(path)


@pytest.fixture(scope="module")
def bench():
    return Bench()


def test_hiding_the_sink_costs_loss_and_hiding_another_key_does_not(run, bench):
    """The number is that of the model itself under the same intervention; the sink is gone."""
    import torch

    from workbench.intervene import intervening
    from workbench.models import load

    said = []
    outcome = bench.run(run, DROP, said.append)
    assert outcome.unit == LOSS and outcome.what == "key 0 hidden from all heads"
    own, *controls = outcome.effects
    assert own.change > 0.05 and len(controls) == ablate.CONTROLS
    assert max(abs(c.change) for c in controls) < own.change / 5

    model = load("zoo:mix-3l")
    ids = torch.tensor(run.tokens.query("prompt == 0").sort_values("position")["id"].to_numpy())
    for edits, found in (([], own.base), ([Intervention.drop_keys("L0-2H*", 0)], own.edited)):
        with intervening(model, edits), torch.no_grad():
            logits = model.net(input_ids=ids[None]).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:])
        assert found == pytest.approx(float(loss), rel=1e-4)

    assert (outcome.share_before["share"] > 0.05).all()
    assert (outcome.share_after["share"] == 0).all()
    assert outcome.before["received"][0] > 0.1 and not outcome.after["received"][0] > 0
    assert outcome.repeats < 1e-5
    assert said[0] == "opening the model" and any("controls" in words for words in said)


def test_silencing_a_layer_is_compared_with_other_layers(run, bench):
    change = replace(DROP, op="zero", scope="layer", label="L2H1")
    outcome = bench.run(run, change, lambda words: None)
    assert outcome.what == "all heads of layer 2 silenced"
    assert {e.name for e in outcome.effects[1:]} == {"layer 0", "layer 1"}
    # What a head writes is zero, where it looks is not changed in its own layer.
    np.testing.assert_allclose(
        outcome.share_after["share"], outcome.share_before["share"], rtol=1e-5
    )
    words, beside = ablate_panel.verdict(outcome)
    assert "next-token loss" in words and "layer 0" in beside and "repeats" in beside


def test_a_null_logit_takes_attention_from_the_sink(run, bench):
    """At a very low logit nothing changes; a high one leaves the first key little."""
    low, high = (
        bench.run(run, replace(DROP, op="null", logit=x), lambda words: None) for x in (-100.0, 8.0)
    )
    assert low.effects[0].change == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(low.share_after["share"], low.share_before["share"], rtol=1e-5)
    # Layer 0 reads the same states as before; later ones may answer with higher scores.
    assert high.share_after["share"][0] < high.share_before["share"][0] / 10
    assert len(high.effects) == 1 and "No control" in ablate_panel.verdict(high)[1]


def test_without_a_head_nothing_runs(run, bench):
    with pytest.raises(WorkbenchError, match="No head is chosen"):
        bench.run(run, replace(DROP, scope="head"), lambda words: None)
    with pytest.raises(WorkbenchError, match="no position 48"):
        bench.run(run, replace(DROP, key=48), lambda words: None)


def test_another_model_of_that_name_is_refused(run, bench, monkeypatch):
    """A run made by a changed model is not repeated by the one on this machine."""
    changed = open_run(run.path)
    stats = changed.stats
    stats.data["key_mean"] = stats.data["key_mean"] * 0.5
    with pytest.raises(WorkbenchError, match="does not repeat this run"):
        bench.run(changed, DROP, lambda words: None)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"model": "someone/large"}, "someone/large"),
        ({"model": "zoo:nothing"}, "zoo:nothing"),
        ({"model": "/no/such/place"}, "not on this machine"),
        ({"interventions": [{"how": "zero"}]}, "under an intervention"),
        ({"spec": {"sites": [{"kind": "vision"}]}}, "vision"),
    ],
)
def test_what_cannot_be_run_is_said(run, manifest, said):
    other = open_run(run.path)
    other.manifest = {**other.manifest, **manifest}
    assert said in ablate.why_not(other, 0)
    assert ablate.why_not(run, 0) == ""


def test_long_prompts_are_refused_with_the_bound(tmp_path):
    long = write_run(tmp_path / "long", (ablate.MOST_TOKENS + 1,), keep=False, probes=False)
    assert "at most 1,024" in ablate.why_not(long, 0)


class Held:
    """In place of the bench: a job that goes on until it is let go."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def run(self, run, change, report):
        report("first step")
        self.begun.set()
        assert self.go.wait(20)
        report("second step")
        if change.key == 3:
            raise RuntimeError("out of memory\nand more")
        return Outcome("x", *[None] * 4, (), LOSS, 0.0, 0.0)


def finished(jobs: Jobs, change: Change) -> ablate.Status:
    for _ in range(400):
        if jobs.status(change).state != "running":
            break
        threading.Event().wait(0.05)
    return jobs.status(change)


def test_one_job_at_a_time_and_its_outcome_is_kept():
    jobs, held = Jobs(), Held()
    jobs._bench = held
    other = replace(DROP, key=1)
    assert jobs.status(DROP).state == "idle"
    assert jobs.start(None, DROP) == ""
    assert held.begun.wait(20)
    assert "Another ablation is running" in jobs.start(None, other)
    assert jobs.status(DROP).words == "first step"
    assert jobs.status(other).words.startswith("another ablation is running")
    held.go.set()
    assert finished(jobs, DROP).state == "done" and jobs.status(DROP).outcome is not None
    assert jobs.status(other).state == "idle"


def test_a_stopped_job_leaves_nothing_and_the_next_one_runs():
    jobs, held = Jobs(), Held()
    jobs._bench = held
    jobs.start(None, DROP)
    assert held.begun.wait(20)
    jobs.stop()
    assert jobs.status(DROP).words.startswith("stopping")
    held.go.set()
    status = finished(jobs, DROP)
    assert (status.state, status.words, status.outcome) == ("idle", "Stopped.", None)
    assert jobs.start(None, DROP) == ""
    assert finished(jobs, DROP).state == "done"


def test_an_error_is_one_sentence():
    jobs, held = Jobs(), Held()
    jobs._bench = held
    held.go.set()
    failing = replace(DROP, key=3)
    jobs.start(None, failing)
    status = finished(jobs, failing)
    assert status.state == "failed"
    assert status.words == "The model could not be run: out of memory."
