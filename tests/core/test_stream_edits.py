"""Edits of the stream against surgery on the weights and plain hooks."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

import workbench as wb
from tests.tiny import IDS, tiny
from workbench.intervene_stream import stream_states
from workbench.interventions import Intervention
from workbench.stream_edits import StreamEdit

WIDTH = 32
RNG = np.random.default_rng(0)
VECTOR = RNG.normal(size=WIDTH).astype(np.float32)
SITES = ("L1 resid_post", "L1 mlp_out", "L1 attn_out", "embed")


def changed(model, edits, ids=IDS):
    with wb.intervening(model, edits):
        return model.logits(ids)


def hooked(model, path, edit, ids=IDS):
    """Logits when a plain hook puts `edit(output [row, position, d_model])` in place of it."""

    def hook(_module, _args, out):
        return (edit(out[0].clone()), *out[1:]) if isinstance(out, tuple) else edit(out.clone())

    handle = model.net.get_submodule(path).register_forward_hook(hook)
    try:
        return model.logits(ids)
    finally:
        handle.remove()


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def test_scaling_a_writer_equals_scaling_its_weights() -> None:
    """A bias-free MLP or W_O times a factor is its output times the factor."""
    model = tiny("llama")
    layer = model.net.model.layers[1]
    for site, module in (("mlp_out", layer.mlp.down_proj), ("attn_out", layer.self_attn.o_proj)):
        kept = module.weight.data.clone()
        module.weight.data *= 2.5
        try:
            expected = model.logits(IDS)
        finally:
            module.weight.data.copy_(kept)
        got = changed(model, StreamEdit.scale(f"L1 {site}", 2.5))
        assert error(got, expected) <= 1e-6
        assert error(model.logits(IDS), expected) > 1e-2


def test_what_enters_block_0_is_the_embedding() -> None:
    """A vector added at a position is another row of the embedding."""
    model = tiny("llama")
    rows = model.net.model.embed_tokens.weight
    kept = rows.data.clone()
    rows.data[IDS[3]] += torch.tensor(VECTOR)  # 8 stands at position 3 only
    try:
        expected = model.logits(IDS)
    finally:
        rows.data.copy_(kept)
    got = changed(model, StreamEdit.add("embed", VECTOR, at=3))
    assert error(got, expected) <= 1e-6 and error(got, model.logits(IDS)) > 1e-2


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_operation_equals_a_hook(name: str) -> None:
    model = tiny(name)
    block = model.spec.of()[1].block

    def at(positions, change):
        def edit(h):
            h[:, positions] = change(h[:, positions])
            return h

        return edit

    def put(value, dims):
        def change(h):
            h[..., dims] = torch.as_tensor(value)
            return h

        return change

    two, vector, site = np.array([3.0, -4.0], np.float32), torch.tensor(VECTOR), "L1 resid_post"
    cases = [
        (StreamEdit.set(site, 0, dims=7, at=0), at([0], put(0.0, [7]))),
        (StreamEdit.set(site, two, dims=[7, 2], at=[0, -1]), at([0, 8], put(two, [7, 2]))),
        (StreamEdit.set(site, VECTOR, at=2), at([2], vector.expand_as)),
        (StreamEdit.scale(site, -2.0), at(slice(None), lambda h: -2 * h)),
        (StreamEdit.scale(site, 0.0, dims=[1], at="last"), at([8], put(0.0, [1]))),
        (StreamEdit.add(site, VECTOR, at=[4]), at([4], lambda h: h + vector)),
    ]
    for edit, change in cases:
        got, expected = changed(model, edit), hooked(model, block, change)
        assert torch.equal(got, expected), edit
        assert error(got, model.logits(IDS)) > 1e-4, edit


def test_rescale_touches_what_points_along_a_direction_and_nothing_else() -> None:
    model = tiny("llama")
    plain = stream_states(model, "L1 mlp_out", IDS)
    along = plain[2]
    cosine = plain @ along / np.linalg.norm(plain, axis=1) / np.linalg.norm(along)
    limit = float(np.sort(np.abs(cosine))[-4])  # position 2 and the two next
    with wb.intervening(model, StreamEdit.rescale("L1 mlp_out", 5.0, 3 * along, limit)):
        got = stream_states(model, "L1 mlp_out", IDS)
        capped = wb.capture(model, [IDS], want="resid_norm")
    hit = np.abs(cosine) > limit
    assert hit.sum() == 3 and hit[2]
    expected = np.where(hit[:, None], plain * 5 / np.linalg.norm(plain, axis=1)[:, None], plain)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(got[~hit], plain[~hit])
    before = wb.capture(model, [IDS], want="resid_norm")["resid_norm"][0, 2]
    moved = np.abs(capped["resid_norm"][0, 2] - before).to_numpy() > 1e-4
    assert np.array_equal(moved, hit)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("site", SITES)
def test_neutral_is_bit_identical(name: str, site: str) -> None:
    model = tiny(name)
    ids = torch.tensor([IDS])
    plain = model.net(input_ids=ids)[0]
    neutral = [
        StreamEdit.scale(site, 1.0), StreamEdit.add(site, np.zeros(WIDTH)),
        StreamEdit.set(site, 9.0, at=[]), StreamEdit.set(site, 9.0, dims=[]),
        StreamEdit.rescale(site, 3.0, VECTOR, at=()),
    ]  # fmt: skip
    assert all(edit.neutral for edit in neutral)
    with wb.intervening(model, neutral):
        assert torch.equal(model.net(input_ids=ids)[0], plain)
    # Not neutral, but of no effect on the other positions before it.
    with wb.intervening(model, StreamEdit.set(site, 9.0, dims=[0], at=-1)):
        last = model.net(input_ids=ids)[0]
    assert not torch.equal(last[:, -1], plain[:, -1])
    assert name == "bert" or torch.equal(last[:, :-1], plain[:, :-1])


def test_a_massive_activation_is_planted_and_taken_away() -> None:
    """The extremes of a capture inside the block are those of the changed stream."""
    model = tiny("llama")
    planted = np.zeros(WIDTH)
    planted[5] = 1000.0
    plant = StreamEdit.add("L0 resid_post", planted, at=4)
    want = ["resid_top_value", "resid_top_dim", "resid_top_position"]

    def top(edits) -> list[float]:
        with wb.intervening(model, edits):
            stats = wb.capture(model, [IDS], want=want)
        return [float(stats[name][0, 1, 0]) for name in want]

    with_it, without = top([plant]), top([])
    assert abs(with_it[0] - 1000) < 10 and with_it[1:] == [5, 4] and abs(without[0]) < 100
    assert top([plant, StreamEdit.set("L0 resid_post", 0.0, dims=5, at=4)])[0] == without[0]
    # In order: what is set first is added to.
    assert abs(top([StreamEdit.set("L0 resid_post", 0.0, dims=5, at=4), plant])[0]) == 1000


@pytest.mark.parametrize("padding", ["right", "left", "packed"])
def test_positions_count_from_each_prompts_first_token(padding: str) -> None:
    model = tiny("llama")
    edit = StreamEdit.add("L0 mlp_out", VECTOR, at=[1, -1])
    with wb.intervening(model, edit):
        alone = [wb.capture(model, [ids]) for ids in (IDS, IDS[:4])]
        both = wb.capture(model, [IDS, IDS[:4]], padding=padding)
    plain = wb.capture(model, [IDS[:4]])
    for i, one in enumerate(alone):
        for name in ("entropy", "resid_norm", "z_norm"):
            got = both.prompt(i)[name].to_numpy()
            np.testing.assert_allclose(got, one[name], rtol=1e-4, atol=1e-4)
    moved = np.abs(alone[1]["resid_norm"] - plain["resid_norm"])[0, 1].to_numpy() > 1e-4
    assert moved.tolist() == [False, True, False, True]


def test_positions_by_role_segment_and_in_a_cached_generation() -> None:
    model = tiny("llama")
    prompt = wb.Prompt(token_ids=(1, *IDS), segments={"middle": (3, 5)})
    for name, hit in (("special", [0]), ("middle", [3, 4])):
        with wb.intervening(model, StreamEdit.add("embed", VECTOR, at=name)):
            stats = wb.capture(model, [prompt], want="resid_norm")
        plain = wb.capture(model, [prompt], want="resid_norm")
        moved = np.abs(stats["resid_norm"] - plain["resid_norm"])[0, 0].to_numpy() > 1e-4
        assert np.flatnonzero(moved).tolist() == hit
    late = len(IDS) + 1
    for edit in (
        StreamEdit.scale("L1 mlp_out", 3.0),
        StreamEdit.add("L0 resid_post", 9 * VECTOR, at=late),
    ):
        ids = list(IDS)
        for _ in range(5):
            # Recomputed, the position may not have been reached yet.
            if edit.at is None or len(ids) > late:
                logits = changed(model, edit, ids)
            else:
                logits = model.logits(ids)
            ids.append(int(logits[-1].argmax()))
        with wb.intervening(model, edit):
            assert model.generate(IDS, 5) == ids[len(IDS) :]
        assert model.generate(IDS, 5) != ids[len(IDS) :]


def test_a_stream_without_rows_is_placed_too() -> None:
    """OPT flattens rows and positions before its MLP."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=100, hidden_size=WIDTH, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4,
        word_embed_proj_dim=WIDTH, max_position_embeddings=64,
    )  # fmt: skip
    model = wb.load(OPTForCausalLM(config).eval())
    edit = StreamEdit.add("L0 mlp_out", VECTOR, at=[1])
    with wb.intervening(model, edit):
        both = wb.capture(model, [IDS, IDS[:4]], want="resid_norm")
    plain = wb.capture(model, [IDS, IDS[:4]], want="resid_norm")
    moved = np.abs(both["resid_norm"] - plain["resid_norm"])[:, 1].to_numpy() > 1e-4
    assert np.argwhere(moved).tolist() == [[0, 1], [1, 1]]


def test_encoder_and_decoder_have_a_stream_each() -> None:
    model = tiny("t5")
    inputs = {"input_ids": torch.tensor([IDS]), "decoder_input_ids": torch.tensor([[0, 5, 6]])}

    def out(edit) -> torch.Tensor:
        with wb.intervening(model, edit), torch.no_grad():
            return model.net(**inputs).logits

    with torch.no_grad():
        plain = model.net(**inputs).logits
    results = [
        out(StreamEdit.add(site, VECTOR, at=0))
        for site in ("L0 resid_post", "E0 resid_post", "X1 attn_out", "E embed", "embed")
    ]
    assert all(error(result, plain) > 1e-3 for result in results)
    assert all(error(a, b) > 1e-3 for a, b in pairwise(results))


def test_both_kinds_in_one_list_are_kept_with_the_run(tmp_path) -> None:
    model = tiny("llama")
    edits = [StreamEdit.add("embed", VECTOR, at=[0]), Intervention.zero("L1H1")]
    with wb.intervening(model, edits):
        stats = wb.capture(model, [IDS], out=tmp_path / "run")
    assert stats.provenance.interventions == tuple(edit.to_json() for edit in edits)
    table = pd.read_parquet(tmp_path / "run" / "interventions.parquet")
    kept = [json.loads(text) for text in table["intervention"]]
    assert [StreamEdit.from_json(kept[0]), Intervention.from_json(kept[1])] == edits
    assert wb.open_run(tmp_path / "run").stats.provenance.interventions[0]["site"] == "embed"


@pytest.mark.parametrize(
    "edit",
    [
        StreamEdit.set("L3 resid_post", 0, dims=(1, 5), at="last"),
        StreamEdit.set("embed", VECTOR, at=[0, -1]),
        StreamEdit.scale("V2 mlp_out", 0.5, dims=3),
        StreamEdit.add("E0 attn_out", VECTOR),
        StreamEdit.rescale("L3 mlp_out", 100, VECTOR, cosine=0.9),
    ],
    ids=lambda e: e.how,
)
def test_json_round_trip(edit: StreamEdit) -> None:
    again = StreamEdit.from_json(json.loads(json.dumps(edit.to_json())))
    assert again == edit and hash(again) == hash(edit) and again.neutral == edit.neutral
    assert again != StreamEdit.scale(edit.site, 0.25)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (StreamEdit.scale("L9 resid_post", 2), "blocks 0 to 2"),
        (StreamEdit.scale("V1 resid_post", 2), "vision"),
        (StreamEdit.add("L1 mlp_out", np.ones(5)), r"\[32\] was expected"),
        (StreamEdit.set("L1 resid_post", [1, 2, 3], dims=[0, 1]), r"\[2\] was expected"),
        (StreamEdit.set("L1 resid_post", 1, dims=[32]), "dimensions 0 to 31"),
        (StreamEdit.rescale("L1 mlp_out", 1, np.ones(31)), r"\[32\] was expected"),
        (StreamEdit.scale("L1 resid_post", 2, at="nowhere"), "known: special"),
        (StreamEdit.scale("L1 resid_post", 2, at=[40]), "beyond the prompt"),
    ],
)
def test_what_does_not_fit_the_model_is_one_clear_sentence(edit: StreamEdit, says: str) -> None:
    model = tiny("llama")

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.net.modules())

    # transformers keeps hooks of its own on a model that was asked for its maps.
    before = hooks()
    with pytest.raises(wb.WorkbenchError, match=says) as caught:
        changed(model, edit)
    assert "\n" not in str(caught.value)
    assert hooks() == before


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: StreamEdit.scale("L5H1", 2), "'L5 resid_post'"),
        (lambda: StreamEdit.scale("L5 resid_mid", 2), "not understood"),
        (lambda: StreamEdit.scale("embed", float("nan")), "not finite"),
        (lambda: StreamEdit.add("embed", [np.inf] * 4), "NaN or infinity"),
        (lambda: StreamEdit.add("embed", np.ones((2, 2))), "vector"),
        (lambda: StreamEdit.set("embed", 0, dims=[-1]), "indices from 0"),
        (lambda: StreamEdit.set("embed", 0, dims=[1, 1]), "each once"),
        (lambda: StreamEdit.set("embed", 0, dims="all"), "indices from 0"),
        (lambda: StreamEdit.rescale("embed", -1, [1.0]), "norm=-1"),
        (lambda: StreamEdit.rescale("embed", 1, [0.0, 0.0]), "not zero"),
        (lambda: StreamEdit.rescale("embed", 1, [1.0], cosine=2), "cosine=2"),
        (lambda: StreamEdit("erase", "embed"), "known: set"),
        (lambda: StreamEdit("add", "embed"), "needs value"),
        (lambda: StreamEdit("scale", "embed", value=np.ones(3)), "takes no value"),
        (lambda: StreamEdit.from_json({"how": "set", "site": "embed", "heads": 3}), "'heads'"),
        (lambda: StreamEdit.from_json({"how": "set"}), "'site'"),
    ],
)
def test_impossible_edits_are_refused_when_made(build, says: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=says):
        build()


def test_an_edit_that_never_acts_is_refused() -> None:
    """A module whose weights are used without calling it."""
    model = tiny("llama")
    down = model.net.model.layers[1].mlp.down_proj
    layer = model.net.model.layers[1].mlp
    own = layer.forward
    layer.forward = lambda x: torch.nn.functional.linear(
        layer.act_fn(layer.gate_proj(x)) * layer.up_proj(x), down.weight
    )
    try:
        with pytest.raises(wb.CaptureError, match=r"L1 mlp_out.*not called"):
            changed(model, StreamEdit.scale("L1 mlp_out", 2.0))
    finally:
        layer.forward = own
    assert changed(model, StreamEdit.scale("L1 mlp_out", 2.0)).isfinite().all()
