"""Statistics that are captured only when asked for: against the eager maps, in every layout and
over the calls of a generation; their parameters."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import workbench as wb
from tests.core.test_capture import eager_maps
from tests.tiny import tiny
from workbench.capturing import capture_inputs
from workbench.kernels.attention_stats import NEEDS
from workbench.parameters import parse_parameters
from workbench.schema import DEFAULT_WANT, SCHEMA, expand_want

GROUPS = ["spread", "values", "rhythm", "top", "blocks"]
# Parameters of statistics that do not come from the kernels' weights.
OTHERS = {"sink_dims": "resid_phi"}
SET = wb.Parameters(waad_window=3, local_window=2, horizon=(1, 4), topk=3, pool=4)
TEXT = [int(i) for i in np.random.default_rng(0).integers(1, 99, 23)]
PROMPTS = [TEXT, TEXT[:9], TEXT[3:]]


def values_of(model, ids: list[int]) -> np.ndarray:
    """|v| per layer, query head and key, from the projections themselves: [layer, head, key]."""
    found: list[np.ndarray] = []
    with model.open_tap(lambda call: found.append(call.v[0].double().norm(dim=-1).numpy())):
        model.logits(ids)
    return np.stack([np.repeat(v, 4 // len(v), 0) for v in found])


def by_hand(maps: np.ndarray, seen: np.ndarray, v_norm: np.ndarray) -> dict[str, np.ndarray]:
    """Every optional statistic of maps [layer, head, query, key] by plain loops over positions."""
    n = maps.shape[-1]
    back = np.arange(n)[:, None] - np.arange(n)
    found: dict[str, np.ndarray] = {
        "participation": (maps**2).sum(-1),
        "value_mass": np.einsum("lhqk,lhk->lhq", maps, v_norm),
        "waad": (maps * np.minimum(np.abs(back), 3)).sum(-1),
        "local_mass": (maps * (np.abs(back) < 2)).sum(-1),
    }
    column = {name: np.full(maps.shape[:3], np.nan) for name in ("key_var", "key_entropy", "fai")}
    for key in range(n):
        watching = np.flatnonzero(seen[:, key])
        received = maps[:, :, watching, key]
        column["key_var"][:, :, key] = received.var(-1)
        share = received / received.sum(-1, keepdims=True)
        column["key_entropy"][:, :, key] = -(share * np.log(share)).sum(-1)
        later = [q for q in watching if 1 <= q - key <= 4]
        if later:
            column["fai"][:, :, key] = maps[:, :, later, key].mean(-1)
    found |= column
    order = np.argsort(-maps, -1, kind="stable")[..., :3]
    probs = np.take_along_axis(maps, order, -1)
    found["top_keys"] = np.where(probs > 0, order, np.nan)
    found["top_probs"] = probs
    lows = [0, 1, 2, 4, 8, 16][: 1 + (n - 1).bit_length()]
    bins = [(np.abs(back) >= a) & (np.abs(back) < max(1, 2 * a)) for a in lows]
    found["distance_histogram"] = np.stack([(maps * b).sum((-2, -1)) for b in bins], -1)
    blocks = [[maps[..., i : i + 4, j : j + 4] for j in range(0, n, 4)] for i in range(0, n, 4)]
    found["block_mass"] = np.stack(
        [np.stack([b.sum((-2, -1)) for b in row], -1) for row in blocks], -2
    )
    found["block_max"] = np.stack(
        [np.stack([b.max((-2, -1)) for b in row], -1) for row in blocks], -2
    )
    return found


def check(stats: wb.HeadStats, model, ids: list[int]) -> None:
    maps = eager_maps(model, ids)
    seen = maps[0, 0] > 0
    expected = by_hand(maps, seen, values_of(model, ids))
    assert set(expected) == set(expand_want(GROUPS))
    for name, reference in expected.items():
        got = stats[name].to_numpy()[0]
        assert got.shape == reference.shape, (name, got.shape, reference.shape)
        assert (np.isnan(got) == np.isnan(reference)).all(), name
        scale = np.abs(reference) + (1e-2 if name == "key_entropy" else 1e-6)
        if name == "key_var":
            # The variance of nearly equal weights is a difference of nearly equal numbers.
            scale = scale + 1e-2 * (maps.sum(-2) / seen.sum(-2)) ** 2
        error = np.nanmax(np.abs(got - reference) / scale)
        assert error < 2e-4, (name, error)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "bert"])
def test_optional_statistics_equal_those_of_the_eager_maps(name: str) -> None:
    model = tiny(name)
    stats = wb.capture(model, PROMPTS, want=GROUPS, parameters=SET)
    for i, ids in enumerate(PROMPTS):
        if name == "bert":
            maps = eager_maps(model, ids)
            got = stats.prompt(i)["waad"].to_numpy()[0]
            back = np.abs(np.arange(len(ids))[:, None] - np.arange(len(ids)))
            assert np.allclose(got, (maps * np.minimum(back, 3)).sum(-1), rtol=1e-4)
            continue
        check(stats.prompt(i), model, ids)
    assert stats["block_max"]["query_block"].to_numpy().tolist() == [0, 4, 8, 12, 16, 20]
    assert stats["distance_histogram"]["distance_bin"].to_numpy().tolist() == [0, 1, 2, 4, 8, 16]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_calls_of_a_generation_join_exactly(name: str) -> None:
    model = tiny(name)
    grown = wb.capture(model, [TEXT[:9]], want=GROUPS, parameters=SET, generate=11)
    check(grown, model, grown.tokens["id"].tolist())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_left_padded_and_packed_rows_change_nothing(name: str) -> None:
    model = tiny(name)
    want = [w for w in expand_want(GROUPS) if SCHEMA[w].group != "blocks"]
    for padding in ("left", "packed"):
        together = wb.capture(
            model, PROMPTS, want=want, parameters=wb.Parameters(topk=3), padding=padding
        )
        for i, ids in enumerate(PROMPTS):
            alone = wb.capture(model, [ids], want=want, parameters=wb.Parameters(topk=3))
            one = together.prompt(i)
            for variable in want:
                got, expected = one[variable].to_numpy(), alone[variable].to_numpy()
                assert (np.isnan(got) == np.isnan(expected)).all(), variable
                assert np.allclose(got, expected, rtol=1e-3, atol=1e-6, equal_nan=True), variable
        with pytest.raises(wb.WorkbenchError, match="use padding='right'"):
            wb.capture(model, PROMPTS, want="blocks", padding=padding)


def test_blocks_of_ready_made_inputs_start_at_the_row() -> None:
    ids = torch.tensor([TEXT[:6], TEXT[:6]])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    inputs = {"input_ids": ids, "attention_mask": mask}
    with pytest.raises(wb.WorkbenchError, match="prompt 1 starts at position 2"):
        capture_inputs(tiny("llama"), inputs, want="blocks")
    stats = capture_inputs(tiny("llama"), inputs, want="rhythm")
    assert stats.provenance.settings["parameters"]["horizon"] == (10, 50)


def test_a_replaced_pattern_has_the_statistics_of_the_map_given() -> None:
    model, n = tiny("llama"), 9
    given = np.tril(np.ones((n, n)))
    given /= given.sum(-1, keepdims=True)
    with wb.intervening(model, wb.Intervention.pattern("L1H1", given)):
        stats = wb.capture(model, [TEXT[:n]], want=GROUPS, parameters=SET)
    expected = by_hand(given[None, None], given > 0, np.ones((1, 1, n)))
    for name, reference in expected.items():
        if name in ("value_mass", "top_keys"):
            # Norms of the values are the model's; ties are broken in favour of the first key.
            continue
        got = stats[name].sel(layer=1, head=1).to_numpy()[0]
        assert np.allclose(got, reference[0, 0], rtol=1e-4, atol=1e-6, equal_nan=True), name


def test_towers_whose_rows_are_no_text() -> None:
    model = tiny("t5")
    cross = wb.capture(model, [TEXT], generate=7, kind="cross", want=GROUPS, parameters=SET)
    assert {"waad", "fai", "local_mass", "distance_histogram"} == set(cross.provenance.missing)
    assert "missing waad, local_mass, fai, distance_histogram: queries and keys" in cross.summary()
    mass = cross["block_mass"].sum(("query_block", "key_block"))
    assert np.allclose(mass, cross["top_probs"].sizes["query"], rtol=1e-5)
    with pytest.raises(wb.SchemaError, match="positions of different texts"):
        cross["waad"]


def test_default_is_as_before_and_every_parameter_is_one_the_kernels_need() -> None:
    optional = expand_want([*GROUPS, "margins", "phi", "pattern"])
    assert set(DEFAULT_WANT) == set(SCHEMA) - set(optional)
    for name, variable in SCHEMA.items():
        needed = set(NEEDS.get(name, ())) & set(vars(wb.Parameters()))
        needed |= {parameter for parameter, user in OTHERS.items() if user == name}
        assert needed == ({variable.parameter} if variable.parameter else set()), name


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"waad_window": 0}, "waad_window=0 is not a number of tokens"),
        ({"topk": True}, "topk=True"),
        ({"pool": 2.5}, "pool=2.5"),
        ({"horizon": (5, 2)}, r"horizon=\(5, 2\) is no pair"),
        ({"horizon": 10}, "horizon=10 is no pair"),
        ({"horizon": (-1, None)}, "no pair"),
    ],
)
def test_bad_parameters_are_one_sentence(fields: dict, says: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=says) as caught:
        wb.Parameters(**fields)
    assert "\n" not in str(caught.value)


def test_parameters_nobody_uses_and_foreign_ones_are_refused() -> None:
    with pytest.raises(wb.WorkbenchError, match=r"pool=8 is given.*block_mass or block_max"):
        wb.capture(tiny("llama"), [TEXT], parameters=wb.Parameters(pool=8))
    with pytest.raises(wb.WorkbenchError, match=r"is no wb\.Parameters"):
        wb.capture(tiny("llama"), [TEXT], parameters={"pool": 8})
    assert parse_parameters(["horizon=3:", "pool=9"]) == wb.Parameters(horizon=(3, None), pool=9)
    for text in ("pool", "pool=", "colour=3", "horizon=4", "topk=x"):
        with pytest.raises(wb.WorkbenchError, match="parameter"):
            parse_parameters([text])


def test_parameters_are_stored_and_belong_to_the_run(tmp_path) -> None:
    model = tiny("llama")

    def stop(*_):
        raise KeyboardInterrupt

    def run(parameters, **more):
        return wb.capture(
            model,
            PROMPTS,
            want=GROUPS,
            batch_size=1,
            out=tmp_path / "run",
            parameters=parameters,
            **more,
        )

    with pytest.raises(KeyboardInterrupt):
        run(SET, progress=stop)
    with pytest.raises(wb.WorkbenchError, match="another run"):
        run(wb.Parameters(pool=5))
    stats = run(SET)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    used = {name: value for name, value in vars(SET).items() if name not in OTHERS}
    assert manifest["settings"]["parameters"] == {**used, "horizon": [1, 4]}
    fresh = wb.capture(model, PROMPTS, want=GROUPS, parameters=SET)
    opened = wb.open_run(tmp_path / "run").stats
    for name in expand_want(GROUPS):
        for one in (stats, opened):
            assert one[name].shape == fresh[name].shape
            assert np.allclose(one[name], fresh[name], rtol=1e-4, atol=1e-6, equal_nan=True), name


def test_the_plan_knows_what_is_cheap_and_what_is_wide() -> None:
    model = tiny("llama")
    text = [[5] * 1000]
    cheap, swept = (wb.plan(model, text, want=want) for want in ("rhythm", ["rhythm", "entropy"]))
    assert "keys per query" in str(cheap) and "blockwise" in str(swept)
    assert cheap.seconds < swept.seconds
    for want, set_ in (("blocks", {"pool": 8}), ("top", {"topk": 20}), ("rhythm", {})):
        parameters = wb.Parameters(**set_)
        plan = wb.plan(model, [TEXT, TEXT], want=want, parameters=parameters)
        stats = wb.capture(model, [TEXT, TEXT], want=want, parameters=parameters)
        assert plan.disk_bytes == sum(v.nbytes for v in stats.data.data_vars.values()), want


def test_images_packed_by_calls_are_joined_at_their_place() -> None:
    """Qwen2-VL's vision tower is called once per image; blocks of 5 begin inside an image."""
    from tests.families.shared import built

    _, _, inputs, model = built("Qwen2-VL")
    calls = []
    parameters = wb.Parameters(pool=5, horizon=(0, 2))
    with model.open_tap(lambda c: calls.append(c) if c.site.kind == "vision" else None):
        stats = capture_inputs(
            model, inputs, want=["blocks", "spread", "fai"], kind="vision", parameters=parameters
        )
    own = [c for c in calls if c.site.layer == 0]
    assert len(own) > 1
    maps = [(c.q @ c.k.transpose(-1, -2) * c.terms["scale"]).softmax(-1)[0].numpy() for c in own]
    n = sum(m.shape[-1] for m in maps)
    whole, start = np.zeros((len(maps[0]), n, n)), 0
    for part in maps:
        stop = start + part.shape[-1]
        whole[:, start:stop, start:stop] = part
        start = stop
    at = np.arange(0, n, 5)
    mass = np.add.reduceat(np.add.reduceat(whole, at, 1), at, 2)
    largest = np.maximum.reduceat(np.maximum.reduceat(whole, at, 1), at, 2)
    one = {name: stats[name].sel(layer=0).to_numpy()[0] for name in stats.data.data_vars}
    assert np.allclose(one["block_mass"], mass, rtol=1e-4, atol=1e-6)
    assert np.allclose(one["block_max"], largest, rtol=1e-4)
    together = np.concatenate([m.var(-2) for m in maps], -1)
    assert np.allclose(one["key_var"], together, rtol=1e-3)
