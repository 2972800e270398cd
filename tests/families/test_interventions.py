"""Interventions in every family: neutral ones change no bit, the others do what they say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.families import eager as oracle
from tests.families.shared import TAPPED, built, error, left_behind
from workbench import Intervention, StreamEdit, WorkbenchError, capture, intervening
from workbench.families import FAMILIES
from workbench.heads import KINDS
from workbench.mlps import find_mlps
from workbench.rotary import find_rotations

BOUND = 1e-5
N_NEW = 8
# A key of the prompt that a sliding window loses in the middle of the generation.
KEY = 9
# Towers whose queries are positions of something else than their keys.
APART = ("cross", "resampler")
# A few tokens, so that the smallest window of a family sees all of them.
TEXT, FIRST, RECENT = [20, 31, 42, 53, 64], 1, 2
DECODERS = [n for n in TAPPED if FAMILIES[n].kinds == ("text",) and FAMILIES[n].task == "causal"]


def places(model, kind: str) -> list[str]:
    """Every place of a tower's stream in its first layer with attention."""
    prefix, site = KINDS[kind], model.spec.of(kind)[0]
    found = [f"{prefix} embed", *(f"{prefix}{site.layer} {p}" for p in ("resid_post", "attn_out"))]
    if site.layer in find_mlps(model.net, model.spec, kind):
        found.append(f"{prefix}{site.layer} mlp_out")
    return found


@pytest.mark.parametrize("name", TAPPED)
def test_neutral_changes_no_bit(name: str) -> None:
    """On every head of every tower, whatever the backend turns masks into."""
    _, net, inputs, model = built(name)
    plain = oracle.output_of(net, inputs)
    for kind in model.spec.kinds:
        heads = f"{KINDS[kind]}*H*"
        width = model.spec.of(kind)[0].d_value
        neutral = [
            Intervention.scale(heads, 1.0),
            Intervention.add(heads, np.zeros(width)),
            Intervention.add_logits(heads, 0.0),
            Intervention.redistribute(heads, [0], [1], 0.0),
            *([] if kind in APART else [Intervention.streaming(heads, 1, 999, "absolute")]),
            *(StreamEdit.scale(site, 1.0) for site in places(model, kind)),
            *(StreamEdit.set(site, 7.0, at=[]) for site in places(model, kind)),
        ]
        with intervening(model, neutral):
            assert torch.equal(plain, oracle.output_of(net, inputs)), kind
    assert left_behind(net) == []


@pytest.mark.parametrize("backend", ["own", "eager"])
@pytest.mark.parametrize("name", TAPPED)
def test_dropped_key(name: str, backend: str) -> None:
    """A key taken from a head: the eager map without it, renormalised, gives that output."""
    _, net, inputs, model = built(name)
    before = oracle.implementations(net)
    for kind in model.spec.kinds:
        if kind == "vision" and model.spec.main != "vision":
            continue  # a packed tower has no one key of that index
        site = model.spec.of(kind)[0]
        head, key = 1, 1
        with oracle.observed(net, {site.name: oracle.without_key(head, key)}):
            expected = oracle.output_of(net, inputs)
        drop = Intervention.drop_keys(f"{KINDS[kind]}{site.layer}H{head}", key)
        if backend == "eager":
            oracle.restore([(config, "eager") for config, _ in before])
        plain = oracle.output_of(net, inputs)
        with intervening(model, drop):
            dropped = oracle.output_of(net, inputs)
        oracle.restore(before)
        assert error(dropped, plain) > 1e-6, kind
        achieved = error(dropped, expected)
        print(f"{name} {kind} {backend}: dropped key {achieved:.1e}")
        assert achieved <= BOUND, kind
    assert left_behind(net) == []


@pytest.mark.parametrize("name", DECODERS)
def test_dropped_key_while_generating(name: str) -> None:
    """With a cache, the key stays the absolute position it names: greedy tokens as recomputed."""
    _, net, inputs, model = built(name)
    prompt = inputs["input_ids"][0].tolist()
    site = model.spec.of()[0]
    ids = list(prompt)
    for _ in range(N_NEW):
        with oracle.observed(net, {site.name: oracle.without_key(1, KEY)}):
            logits = oracle.output_of(net, {"input_ids": torch.tensor([ids])})
        ids.append(int(logits[0, -1].argmax()))
    with intervening(model, Intervention.drop_keys(f"L{site.layer}H1", KEY)):
        generated = model.generate(prompt, N_NEW)
    expected = ids[len(prompt) :]
    # `Model.generate` stops at the end token; the recomputation here does not know it.
    assert generated == expected[: len(generated)]
    assert len(generated) == N_NEW or generated[-1] == net.config.eos_token_id
    assert left_behind(net) == []


@pytest.mark.parametrize("name", TAPPED)
def test_moved_mass(name: str) -> None:
    """Half of what a key has goes to two others, in proportion: as on the eager map."""
    _, net, inputs, model = built(name)
    plain = oracle.output_of(net, inputs)
    for kind in model.spec.kinds:
        site = model.spec.of(kind)[0]

        def moved(weights: torch.Tensor) -> torch.Tensor:
            weights = weights.clone()
            given, taking = 0.5 * weights[:, 1, :, 0], weights[:, 1, :, 1:3].clone()
            total = taking.sum(-1)
            share = taking / torch.where(total > 0, total, 1)[..., None]
            weights[:, 1, :, 0] -= torch.where(total > 0, given, 0)
            weights[:, 1, :, 1:3] += given[..., None] * share
            return weights

        with oracle.observed(net, {site.name: moved}):
            expected = oracle.output_of(net, inputs)
        edit = Intervention.redistribute(f"{KINDS[kind]}{site.layer}H1", [0], [1, 2], 0.5)
        with intervening(model, edit):
            got = oracle.output_of(net, inputs)
        achieved = error(got, expected)
        print(f"{name} {kind}: moved mass {achieved:.1e}")
        assert error(got, plain) > 1e-4 and achieved <= BOUND, kind
    assert left_behind(net) == []


@contextmanager
def changed_scores(module: torch.nn.Module, monkeypatch, change) -> Iterator[None]:
    """While a module runs, what enters its softmax is `change(scores)`; columns added are dropped
    again."""
    own, inside = torch.nn.functional.softmax, []

    def softmax(scores: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if not inside:
            return own(scores, *args, **kwargs)
        return own(change(scores), *args, **kwargs)[..., : scores.shape[-1]]

    enter = module.register_forward_pre_hook(lambda *_: inside.append(True))
    leave = module.register_forward_hook(lambda *_: inside.clear())
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", softmax)
        yield
    enter.remove()
    leave.remove()


def one_more(scores: torch.Tensor) -> torch.Tensor:
    """A column for head 1."""
    column = torch.full_like(scores[..., :1], -torch.inf)
    column[:, 1] = 1.5
    return torch.cat([scores, column], dim=-1)


@pytest.mark.parametrize("name", [n for n in TAPPED if n != "GPT-OSS"])
def test_null_logit(name: str, monkeypatch) -> None:
    """As one more logit in the softmax of the model's own eager attention.

    GPT-OSS shifts its scores before the softmax; `tests/core/test_null_logit.py` has it.
    """
    _, net, inputs, model = built(name)
    plain = oracle.output_of(net, inputs)
    for kind in model.spec.kinds:
        site = model.spec.of(kind)[0]
        with oracle.eager(net), changed_scores(net.get_submodule(site.name), monkeypatch, one_more):
            expected = oracle.output_of(net, inputs)
        with intervening(model, Intervention.null_logit(f"{KINDS[kind]}{site.layer}H1", 1.5)):
            got = oracle.output_of(net, inputs)
        achieved = error(got, expected)
        print(f"{name} {kind}: null logit {achieved:.1e}")
        assert error(got, plain) > 1e-4 and achieved <= BOUND, kind
    assert left_behind(net) == []


@pytest.mark.parametrize("name", TAPPED)
def test_stream_edits(name: str) -> None:
    """At every place, as a plain hook of the same module; a place that is not there is refused."""
    _, net, inputs, model = built(name)
    plain = oracle.output_of(net, inputs)
    for kind in model.spec.kinds:
        site = model.spec.of(kind)[0]
        width = net.get_submodule(site.w_o).weight.shape[1 if hasattr(net, "transformer") else 0]
        vector = np.random.default_rng(0).normal(size=width)
        mlps = find_mlps(net, model.spec, kind)
        paths = {"resid_post": site.block, "attn_out": site.w_o}
        if site.layer in mlps:
            paths["mlp_out"] = mlps[site.layer].down
        for part in ("resid_post", "attn_out", "mlp_out"):
            edit = StreamEdit.add(f"{KINDS[kind]}{site.layer} {part}", vector)
            if part not in paths:
                with pytest.raises(WorkbenchError, match="no dense MLP"), intervening(model, edit):
                    pass
                continue
            hook = net.get_submodule(paths[part]).register_forward_hook(added(vector))
            expected = oracle.output_of(net, inputs)
            hook.remove()
            with intervening(model, edit):
                got = oracle.output_of(net, inputs)
            assert torch.equal(got, expected), (kind, part)
            assert error(got, plain) > 1e-4, (kind, part)
        with intervening(model, StreamEdit.set(f"{KINDS[kind]} embed", 3.0, dims=[2], at=[1])):
            assert error(oracle.output_of(net, inputs), plain) > 1e-4, kind
    assert left_behind(net) == []


def added(vector: np.ndarray):
    def hook(_module, _args, out):
        more = torch.tensor(vector, dtype=torch.float32)
        return (out[0] + more, *out[1:]) if isinstance(out, tuple) else out + more

    return hook


@pytest.mark.parametrize("name", TAPPED)
def test_streaming_as_a_mask(name: str, monkeypatch) -> None:
    """As the model's own eager attention with nothing but first keys and a window in its
    softmax."""
    _, net, inputs, model = built(name)
    plain = oracle.output_of(net, inputs)
    for kind in model.spec.kinds:
        site = model.spec.of(kind)[0]
        edit = Intervention.streaming(f"{KINDS[kind]}{site.layer}H*", 1, 3, "absolute")
        if kind in APART:
            with pytest.raises(WorkbenchError, match="not the positions"), intervening(model, edit):
                pass
            continue

        def windowed(scores: torch.Tensor, causal: bool = site.causal) -> torch.Tensor:
            # Behind the keys GPT-OSS has a column for its sink.
            n = scores.shape[2]
            away = torch.arange(n)[:, None] - torch.arange(scores.shape[3])
            near = (away < 3) & (causal | (away > -3))
            near |= (torch.arange(scores.shape[3]) < 1) | (torch.arange(scores.shape[3]) >= n)
            return scores.masked_fill(~near, torch.finfo(scores.dtype).min)

        module = net.get_submodule(site.name)
        with oracle.eager(net), changed_scores(module, monkeypatch, windowed):
            expected = oracle.output_of(net, inputs)
        with intervening(model, edit):
            got = oracle.output_of(net, inputs)
        achieved = error(got, expected)
        print(f"{name} {kind}: window {achieved:.1e}")
        assert error(got, plain) > 1e-4 and achieved <= BOUND, kind
    assert left_behind(net) == []


@pytest.mark.parametrize("name", TAPPED)
def test_streaming_at_positions_of_the_cache(name: str) -> None:
    """Layer 0 sees tokens alone, so its last row must be that of the evicted text, in the model's
    own eager attention; without a rotary embedding or a direction this is refused."""
    _, net, _, model = built(name)
    main = model.spec.of("text")[0] if "text" in model.spec.kinds else model.spec.of()[0]
    edit = Intervention.streaming(f"{KINDS[main.kind]}{main.layer}H*", FIRST, RECENT)
    rotary = any("inv_freq" in n for n, _ in net.get_submodule("").named_buffers())
    if not main.causal or not rotary:
        why = "rotary" if main.causal else "both ways"
        refusal = pytest.raises(WorkbenchError, match=f"{why}.*use positions='absolute'")
        with refusal, intervening(model, edit):
            pass
        return
    evicted = TEXT[:FIRST] + TEXT[-RECENT:]
    with oracle.observed(net) as maps:
        oracle.output_of(net, {"input_ids": torch.tensor([evicted])})
    expected = maps[main.name][0][0, :, -1]
    heads = f"L{main.layer}H*"
    rows = {}
    for positions in ("cache", "absolute"):
        edit = Intervention.streaming(heads, FIRST, RECENT, positions)
        with intervening(model, edit):
            row = capture(model, [TEXT], patterns=heads, kind="text")["pattern"].to_numpy()[0]
        rows[positions] = row[:, -1, [0, -2, -1]]
        assert not row[:, -1, 1:-2].any()
    achieved = error(rows["cache"], expected)
    print(f"{name}: cache {achieved:.1e}, absolute {error(rows['absolute'], expected):.1e}")
    assert achieved <= BOUND and error(rows["absolute"], expected) > 1e-3
    assert left_behind(net) == []


def test_layers_without_positions_do_not_turn() -> None:
    """Cohere 2 turns queries in its sliding layers only."""
    _, _, _, model = built("Cohere 2")
    sites = model.spec.of()
    found = find_rotations(model, sites)
    assert [found[s.name].module is None for s in sites] == [s.window is None for s in sites]
    assert {s.window is None for s in sites} == {True, False}


@pytest.mark.parametrize("name", ["Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL"])
def test_patches_that_share_positions_have_no_cache_positions(name: str) -> None:
    _, net, inputs, model = built(name)
    with intervening(model, Intervention.streaming("L0H*", FIRST, RECENT)):
        with pytest.raises(WorkbenchError, match="use positions='absolute'"):
            oracle.output_of(net, inputs)
        text = oracle.output_of(net, {"input_ids": torch.tensor([TEXT])})
    assert error(text, oracle.output_of(net, {"input_ids": torch.tensor([TEXT])})) > 1e-4
