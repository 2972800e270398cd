"""With and without the null mass: planted rows, and a network with learned sink logits."""

import numpy as np
import pytest
import torch
from scipy.special import expit

import workbench as wb
from tests import synthetic as syn
from workbench.errors import WorkbenchError
from workbench.families import FAMILIES
from workbench.intervene import head_outputs
from workbench.probes import (
    attention_share,
    dormant_score_mass,
    dormant_score_output,
    entropy_detector,
    find,
    first_token_alpha,
    first_token_sink_rate,
    null_sink_mass,
    pattern_entropy,
    sink_mass,
    sink_positions,
    token_activity,
    value_drain,
)

LENGTH = 20


def plain_and_sunk(seed=0):
    """Two random heads as a plain softmax, and with 30 to 90 % of every row at a sink logit."""
    rng = np.random.default_rng(seed)
    mask = syn.causal_mask(LENGTH)
    maps = np.stack([syn.random_map(mask, rng, 2.0), syn.first(LENGTH)])
    kept = rng.uniform(0.1, 0.7, size=(2, LENGTH, 1))
    return syn.head_stats([[maps]]), syn.head_stats([[maps * kept]]), 1 - kept[..., 0]


def test_mean_null_mass_and_its_null():
    plain, sunk, null = plain_and_sunk()
    table = null_sink_mass(sunk)
    assert table["value"].to_numpy() == pytest.approx(null.mean(1))
    even = np.mean([1 / (q + 2) for q in range(LENGTH)])
    assert table["null"].to_numpy() == pytest.approx(even)
    # The control: without a learned sink nothing goes there.
    assert null_sink_mass(plain)["value"].to_numpy() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("probe", "options"),
    [
        (first_token_sink_rate, {"T": LENGTH, "epsilon": 0.6}),
        (sink_mass, {}),
        (pattern_entropy, {}),
    ],
)
def test_renormalised_rows_are_those_of_the_plain_softmax(probe, options):
    plain, sunk, _ = plain_and_sunk()
    expected = probe(plain, **options)
    found = probe(sunk, renormalised=True, **options)
    assert found["value"].to_numpy() == pytest.approx(expected["value"].to_numpy(), rel=1e-9)
    assert (found.attrs["null_mass"], expected.attrs["null_mass"]) == ("without", "with")
    # The control: left as they are the numbers are others.
    assert not np.allclose(probe(sunk, **options)["value"], expected["value"], rtol=0.05)


def test_renormalised_alpha_and_token_activity():
    plain, sunk, _ = plain_and_sunk()
    alpha = first_token_alpha(plain, LENGTH)[0].to_numpy()
    assert first_token_alpha(sunk, LENGTH, renormalised=True)[0].to_numpy() == pytest.approx(alpha)
    mass = token_activity(plain)["first_mass"].to_numpy()
    found = token_activity(sunk, renormalised=True)
    assert found["first_mass"].to_numpy() == pytest.approx(mass)
    assert found.attrs["null_mass"] == "without"
    assert (token_activity(sunk)["first_mass"] < mass).all()


REFUSING = {
    "sink_positions": lambda stats, yes: sink_positions(stats, renormalised=yes),
    "sink_mass at position 3": lambda stats, yes: sink_mass(stats, position=3, renormalised=yes),
    "dormant_score_mass": lambda stats, yes: dormant_score_mass(stats, renormalised=yes),
    "entropy_detector": lambda stats, yes: entropy_detector(
        stats, row=0.5, column=0.5, renormalised=yes
    ),
}


@pytest.mark.parametrize("name", REFUSING)
def test_column_sums_are_refused_where_there_is_a_null_mass(name):
    plain, sunk, _ = plain_and_sunk()
    with pytest.raises(WorkbenchError, match=f"{name} sums columns .* cannot be renormalised"):
        REFUSING[name](sunk, True)
    assert REFUSING[name](sunk, False).attrs["null_mass"] == "with"
    # Where no row has one, renormalising changes nothing.
    found, expected = REFUSING[name](plain, True), REFUSING[name](plain, False)
    assert found.equals(expected) and found.attrs["null_mass"] == "without"


def test_every_number_says_which_convention_it_follows():
    plain, _, _ = plain_and_sunk()
    assert attention_share(plain).null_mass == "without"
    assert dormant_score_output(plain).attrs["null_mass"] == "with"
    assert value_drain(plain).attrs["null_mass"] == "no attention in it"


def test_rows_that_give_everything_to_the_sink_logit_are_left_out():
    maps = syn.first(LENGTH)[None].copy()
    maps[:, 5] = 0
    stats = syn.head_stats([[maps]])
    assert null_sink_mass(stats)["value"].iloc[0] == pytest.approx(1 / LENGTH)
    rows = token_activity(stats, renormalised=True)
    assert rows["first_mass"].to_numpy() == pytest.approx(1) and 5 not in set(rows["id"])


@pytest.fixture(scope="module")
def with_and_without():
    """Statistics and z of layer 0 of a random GPT-OSS, and of the same without its sink logits."""
    model = wb.load(FAMILIES["GPT-OSS"].build())
    sinks = model.net.model.layers[0].self_attn.sinks
    learned = sinks.detach().clone()
    prompts = [list(range(12, 12 + n)) for n in (30, 21)]
    want = ["lse", "null_mass", "first_mass", "max_prob", "entropy", "n_visible"]

    def measured():
        stats = wb.capture(model, prompts, want=want)
        data = {name: stats[name].sel(layer=0).to_numpy() for name in want}
        return data, head_outputs(model, "L0H*", prompts[0]), stats

    found = measured()
    with torch.no_grad():
        # So low that nothing is left for it: the plain softmax.
        sinks.fill_(-1e4)
    plain = measured()
    return learned.numpy()[None, :, None], found, plain


def test_a_learned_sink_scales_rows_and_outputs_by_a_sigmoid(with_and_without):
    s, (sunk, z, _), (plain, z_plain, _) = with_and_without
    known = np.isfinite(plain["lse"])
    lse = np.where(known, plain["lse"], 0)
    kept, null = expit(lse - s), expit(s - lse)
    assert np.abs(s).max() > 0.3 and null[known].max() > 0.02
    for name, expected in (
        ("null_mass", null),
        ("first_mass", plain["first_mass"] * kept),
        ("max_prob", plain["max_prob"] * kept),
        ("lse", np.logaddexp(lse, s)),
    ):
        error = np.abs(sunk[name] - expected)[known].max() / np.abs(expected[known]).max()
        assert error < 1e-5, f"{name}: error {error:.1e}"
    error = np.abs(z - z_plain * kept[0, :, : z.shape[1], None]).max() / np.abs(z).max()
    assert error < 1e-5, f"z: error {error:.1e}"
    # The control: without the factor rows and outputs are not the same.
    assert np.abs(z - z_plain).max() > 0.01 * np.abs(z).max()
    assert plain["null_mass"][known].max() == 0


def test_renormalising_a_capture_gives_the_plain_softmax(with_and_without):
    _, (_, _, sunk), (_, _, plain) = with_and_without
    for name, options in (("first_token_sink_rate", {"T": 20}), ("pattern_entropy", {})):
        probe = find(name)
        found = probe(sunk, renormalised=True, **options).query("layer == 0")["value"]
        expected = probe(plain, **options).query("layer == 0")["value"]
        assert found.to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-5)
    assert (null_sink_mass(sunk)["value"] > 0).all()
