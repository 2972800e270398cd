"""Mass moved between keys, against the published rule written on whole maps in numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import workbench as wb
from tests.tiny import IDS, tiny
from workbench.interventions import Intervention

HEADS = "L1H1, L1H3, L2H0"
N = len(IDS)
SINKS, OTHERS, SEEN = [0, 2], [1, 4, 5], [0, 1, 2, 4, 5]
move = Intervention.redistribute


def rule(p, sinks, others, fraction, queries=None, within=None, least_mass=0.0, least_ratio=0.0):
    """Kang et al. 2025: of every row that is chosen, sinks keep 1 - fraction of their weight, and
    what they give goes to the others in proportion to their weights.  p [..., query, key]."""
    p = p.astype(np.float64)
    inside = p.sum(-1) if within is None else p[..., within].sum(-1)
    taking = p[..., others].sum(-1)
    ratio = np.divide(taking, inside, out=np.zeros_like(taking), where=inside > 0)
    chosen = (taking > 0) & (inside >= least_mass) & (ratio >= least_ratio)
    if queries is not None:
        chosen &= np.isin(np.arange(p.shape[-2]), queries)
    budget = fraction * p[..., sinks].sum(-1, keepdims=True)
    new = p.copy()
    new[..., sinks] *= 1 - fraction
    share = np.divide(p[..., others], taking[..., None], out=np.zeros_like(p[..., others]),
                      where=taking[..., None] > 0)  # fmt: skip
    new[..., others] += budget * share
    return np.where(chosen[..., None], new, p), chosen


def maps(model, edits=(), heads="L1H*", ids=IDS):
    with wb.intervening(model, edits):
        return wb.capture(model, [ids], patterns=heads)


@pytest.mark.parametrize("fraction", [0.6, 1.0])
@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"queries": [5, 6, 8]},
        {"within": SEEN, "least_mass": 0.3},
        {"within": SEEN, "least_ratio": 0.5},
        {"within": SEEN, "least_mass": 0.2, "least_ratio": 0.4, "queries": [4, 6, 7, 8]},
    ],
    ids=lambda t: "+".join(t) or "all",
)
def test_maps_follow_the_rule_and_the_rest_keeps_every_bit(fraction: float, terms: dict) -> None:
    model = tiny("llama")
    plain = maps(model)["pattern"].to_numpy()[0]
    edit = move("L1H1, L1H3", SINKS, OTHERS, fraction, terms.get("queries"),
                **{k: v for k, v in terms.items() if k != "queries"})  # fmt: skip
    stats = maps(model, edit)
    got = stats["pattern"].to_numpy()[0]
    expected, chosen = rule(plain, SINKS, OTHERS, fraction, **terms)
    assert chosen[[1, 3]].any() and not chosen[[1, 3]].all()  # both outcomes occur
    np.testing.assert_allclose(got[[1, 3]], expected[[1, 3]], rtol=1e-5, atol=1e-6)
    assert np.abs(got[[1, 3]] - plain[[1, 3]]).max() > 0.01
    assert np.array_equal(got[[0, 2]], plain[[0, 2]])
    np.testing.assert_allclose(got.sum(-1), 1, atol=1e-6)
    expected[[0, 2]] = plain[[0, 2]]
    for name, exact in (
        ("first_mass", expected[..., 0]),
        ("entropy", -(expected * np.log(np.where(expected > 0, expected, 1))).sum(-1)),
        ("key_mass", expected.sum(-2)),
    ):
        measured = stats[name].sel(layer=1).to_numpy()[0]
        np.testing.assert_allclose(measured, exact, rtol=1e-4, atol=1e-5, err_msg=name)


def test_z_is_the_changed_map_times_v_and_other_rows_keep_every_bit() -> None:
    model = tiny("llama")
    calls = {}

    def seen(edits) -> dict:
        found = {}
        with wb.intervening(model, edits), model.open_tap(
            lambda call: found.setdefault(call.site.layer, call)
        ):  # fmt: skip
            model.logits(IDS)
        return found

    plain, calls = seen([]), seen(move("L1H1", SINKS, OTHERS, 0.5, [4, 5, 8]))
    p = maps(model)["pattern"].to_numpy()[0, 1]
    expected, chosen = rule(p, SINKS, OTHERS, 0.5, [4, 5, 8])
    z, before = calls[1].z[0].numpy(), plain[1].z[0].numpy()
    v = plain[1].v[0, 0].numpy()  # heads 0 and 1 share a kv head
    np.testing.assert_allclose(z[:, 1], expected @ v, rtol=1e-4, atol=1e-5)
    assert np.array_equal(z[:, [0, 2, 3]], before[:, [0, 2, 3]])
    assert np.array_equal(z[~chosen, 1], before[~chosen, 1])
    assert not np.allclose(z[chosen, 1], before[chosen, 1], atol=1e-3)


def test_the_more_moves_the_less_is_left_and_shares_stay() -> None:
    model = tiny("llama")
    got = np.stack(
        [
            maps(model, move(HEADS, SINKS, OTHERS, f))["pattern"].to_numpy()[0, 1]
            for f in (0.0, 0.2, 0.5, 0.8, 1.0)
        ]
    )
    rows = slice(5, N)  # these see every key that is named
    left = got[:, rows][..., SINKS].sum(-1)
    assert (np.diff(left, axis=0) < 0).all() and np.allclose(left[-1], 0)
    shares = got[:, rows][..., OTHERS]
    np.testing.assert_allclose(
        shares / shares.sum(-1, keepdims=True),
        np.broadcast_to((shares / shares.sum(-1, keepdims=True))[0], shares.shape), rtol=1e-4,
    )  # fmt: skip
    plain = maps(model)["pattern"].to_numpy()[0, 1]
    assert np.array_equal(got[0], plain)


def test_neutral_is_bit_identical() -> None:
    model = tiny("llama")
    plain = model.logits(IDS)
    for edit in (
        move("L*H*", SINKS, OTHERS, 0.0),
        move("L*H*", SINKS, [], 0.7),
        move("L*H*", [], OTHERS, 0.7),
        move("L*H*", SINKS, OTHERS, 0.7, queries=[]),
    ):
        assert edit.neutral
        with wb.intervening(model, edit):
            assert torch.equal(model.logits(IDS), plain)
    # Keys that no row sees yet have no mass to give or take.
    late = move("L*H*", [0], [N - 1], 0.7, queries=list(range(N - 1)))
    with wb.intervening(model, late):
        assert torch.equal(model.logits(IDS), plain)
    for keys, to in (([0], [N - 1]), ([N - 1], [0])):
        with wb.intervening(model, move("L*H*", keys, to, 0.7)):
            changed = model.logits(IDS)
        assert torch.equal(changed[:-1], plain[:-1]) and not torch.equal(changed[-1], plain[-1])


def test_parameters_of_the_published_code_are_one_minus_ours() -> None:
    """It multiplies sinks by p and takes heads whose visual sinks hold at most rho of the visual
    mass, of rows with at least summ on the image (the sinks here all visual)."""
    p_code, rho_code, summ = 0.6, 0.5, 0.2
    model = tiny("llama")
    plain = maps(model)["pattern"].to_numpy()[0].astype(np.float64)
    image = plain[..., SEEN].sum(-1)
    portion = plain[..., SINKS].sum(-1) / np.maximum(image, 1e-12)
    chosen = (portion <= rho_code) & (image >= summ) & (plain[..., OTHERS].sum(-1) > 0)
    kept = plain.copy()
    kept[..., SINKS] *= p_code
    budget = (1 - p_code) * plain[..., SINKS].sum(-1, keepdims=True)
    kept[..., OTHERS] += (
        budget * plain[..., OTHERS] / np.maximum(plain[..., OTHERS].sum(-1, keepdims=True), 1e-12)
    )
    expected = np.where(chosen[..., None], kept, plain)
    edit = move("L1H*", SINKS, OTHERS, 1 - p_code, within=SEEN, least_mass=summ,
                least_ratio=1 - rho_code)  # fmt: skip
    got = maps(model, edit)["pattern"].to_numpy()[0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert 0 < chosen.sum() < chosen.size and not np.allclose(got, plain, atol=0.05)
    swapped = move("L1H*", SINKS, OTHERS, p_code, within=SEEN, least_mass=summ,
                   least_ratio=rho_code / 4)  # fmt: skip
    assert not np.allclose(maps(model, swapped)["pattern"].to_numpy()[0], expected, atol=1e-3)


@pytest.mark.parametrize("padding", ["right", "left", "packed"])
def test_positions_and_segments_belong_to_each_prompt(padding: str) -> None:
    model = tiny("llama")
    prompts = [
        wb.Prompt(token_ids=tuple(IDS), segments={"picture": (1, 6)}),
        wb.Prompt(token_ids=tuple(IDS[::-1]), segments={"picture": (3, 5)}),
    ]
    edit = move("L1H*", [0], "picture", 0.5, within="picture", least_mass=0.1)
    with wb.intervening(model, edit):
        alone = [wb.capture(model, [prompt]) for prompt in prompts]
        both = wb.capture(model, prompts, padding=padding)
    for i, one in enumerate(alone):
        for name in ("entropy", "first_mass"):
            got = both.prompt(i)[name].to_numpy()
            np.testing.assert_allclose(got, one[name], rtol=1e-4, atol=1e-5)
    plain = wb.capture(model, [prompts[1]])
    assert np.abs(plain["first_mass"] - alone[1]["first_mass"]).max() > 0.01


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_cached_generation_equals_generation_without_cache(name: str) -> None:
    model = tiny(name)
    with wb.intervening(model, move("L*H*", [6, 8], [5, 7], 1.0)):
        cached = model.generate(IDS, 5)
        ids = list(IDS)
        for _ in range(5):
            ids.append(int(model.logits(ids)[-1].argmax()))
    assert cached == ids[N:] and cached != model.generate(IDS, 5)


def test_after_other_edits_of_the_pattern_and_of_scores() -> None:
    """Score edits act first, wherever they stand; pattern edits one on the other."""
    model = tiny("llama")
    block = Intervention.block("L1H1", keys=[1])
    edit = move("L1H1", SINKS, [1, 4], 1.0)
    want, _ = rule(maps(model, block)["pattern"].to_numpy()[0, 1], SINKS, [1, 4], 1.0)
    for both in ([block, edit], [edit, block]):
        got = maps(model, both)["pattern"].to_numpy()[0, 1]
        np.testing.assert_allclose(got, want, atol=1e-6)
    back = move("L1H1", [4], [0], 1.0)
    want, _ = rule(maps(model, edit)["pattern"].to_numpy()[0, 1], [4], [0], 1.0)
    got = maps(model, [edit, back])["pattern"].to_numpy()[0, 1]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_json_round_trip() -> None:
    edit = move("L1H1, L2H*", "special", [3, -1], 0.6, "last", within="image", least_mass=0.2,
                least_ratio=0.5)  # fmt: skip
    again = Intervention.from_json(json.loads(json.dumps(edit.to_json())))
    assert again == edit and again.to == (3, -1) and again.within == "image"
    assert again != move("L1H1, L2H*", "special", [3, -1], 0.6, "last")
    with pytest.raises(wb.WorkbenchError, match="'least_mass'"):
        Intervention.from_json({"how": "zero", "heads": ["L0H0"], "least_mass": 0.1})


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: move("L0H0", [0], [1], 1.5), "move_fraction=1.5"),
        (lambda: move("L0H0", [0], [1], float("nan")), "not finite"),
        (lambda: move("L0H0", None, [1], 0.5), "must name positions"),
        (lambda: move("L0H0", [0], None, 0.5), "must name positions"),
        (lambda: move("L0H0", [0, 1], [1, 2], 0.5), "share positions"),
        (lambda: move("L0H0", "image", "image", 0.5), "share positions"),
        (lambda: move("L0H0", [0], [1], 0.5, least_mass=-1), "least_mass=-1"),
        (lambda: move("L0H0", [0], [1], 0.5, least_ratio=2), "least_ratio=2"),
    ],
)
def test_impossible_moves_are_refused_when_made(build, says: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=says):
        build()


def test_positions_that_meet_in_the_prompt_are_refused() -> None:
    model = tiny("llama")
    prompt = wb.Prompt(token_ids=tuple(IDS), segments={"picture": (0, 3)})
    with (
        wb.intervening(model, move("L1H1", "picture", [2, 5], 0.5)),
        pytest.raises(wb.WorkbenchError, match=r"L1H1.*share positions"),
    ):
        wb.capture(model, [prompt])
