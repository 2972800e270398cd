"""Directions of the residual stream and sink-logit margins, against hidden states and eager maps
that no code of ours computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from tests.core.test_capture import eager_maps
from tests.tiny import IDS, tiny
from workbench.capturing import capture_inputs
from workbench.errors import SchemaError, WorkbenchError
from workbench.families import FAMILIES
from workbench.parameters import parse_parameters

PROMPTS = [IDS, IDS[:2], IDS[2:] + IDS[::-1]]
DIMS = (3, 17)
TOLERANCE = 1e-5


def blocks(model, ids) -> np.ndarray:
    """[stream, position, d_model] in float64, by forward hooks of the test's own."""
    net = model.net
    found: list = []
    stack = (
        net.transformer.h
        if hasattr(net, "transformer")
        else net.encoder.layer
        if hasattr(net, "encoder")
        else net.model.layers
    )
    hooks = [stack[0].register_forward_pre_hook(lambda _, args: found.append(args[0]))]
    hooks += [
        block.register_forward_hook(
            lambda _, __, out: found.append(out[0] if isinstance(out, tuple) else out)
        )
        for block in stack
    ]
    with torch.no_grad():
        net(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return np.stack([h[0].double().numpy() for h in found])


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b)


@pytest.mark.parametrize(
    ("name", "padding"),
    (
        ("llama", "right"),
        ("llama", "left"),
        ("llama", "packed"),
        ("gpt2", "left"),
        ("bert", "right"),
    ),
)
def test_directions_are_cosines_of_hidden_states(name: str, padding: str) -> None:
    model = tiny(name)
    parameters = wb.Parameters(sink_dims=DIMS)
    stats = wb.capture(
        model, PROMPTS, want=["residual", "phi"], parameters=parameters, padding=padding
    )
    for i, ids in enumerate(PROMPTS):
        one, hidden = stats.prompt(i), blocks(model, ids)
        assert one["resid_cos"].shape == (1, len(hidden), 3, len(ids))
        for level, h in enumerate(hidden):
            rms = np.sqrt((h**2).mean(-1))
            phi = np.abs(h[:, list(DIMS)]).max(-1) / rms
            found = one["resid_phi"][0, level]
            np.testing.assert_allclose(found, phi, atol=TOLERANCE * phi.max(), rtol=0)
            for candidate in range(3):
                both = [one[n][0, level, candidate] for n in ("resid_cos", "resid_cos_trimmed")]
                if candidate >= len(ids):
                    assert all(np.isnan(values).all() for values in both)
                    continue
                kept = np.ones(h.shape[1], dtype=bool)
                kept[np.argsort(-np.abs(h[candidate]))[:3]] = False
                expected = cosine(h, h[candidate]), cosine(h[:, kept], h[candidate, kept])
                for values, truth in zip(both, expected, strict=True):
                    np.testing.assert_allclose(values, truth, atol=TOLERANCE)


def test_a_generation_measures_directions_against_the_first_tokens_of_its_prompt() -> None:
    model = tiny("llama")
    stats = wb.capture(model, [IDS], want=["resid_cos"], generate=4)
    ids = stats.tokens["id"].tolist()
    hidden = blocks(model, ids)
    n = stats["resid_cos"].sizes["query"]
    assert n > len(IDS)
    for level, h in enumerate(hidden):
        for candidate in range(3):
            expected = cosine(h, h[candidate])[: n - 1]
            found = stats["resid_cos"][0, level, candidate, : n - 1]
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_trimmed_cosine_tells_a_shared_dimension_from_a_shared_direction() -> None:
    from workbench.residual import _cosines

    generator = torch.Generator().manual_seed(0)
    first, other = torch.randn(2, 256, generator=generator)
    massive, same = first.clone(), first * 3
    massive[7] = other[7] = 1e6
    states = torch.stack([massive, other, same])
    whole, trimmed = _cosines(states, massive[None])
    assert whole[0, 1] > 0.999999
    assert abs(trimmed[0, 1]) < 0.2  # independent in 253 dimensions: sd 1/16
    assert trimmed[0, 2] > 0.999


def truth(p: np.ndarray) -> np.ndarray:
    """Margin [head, query] of maps in float64: log weights are scores but for a constant."""
    with np.errstate(divide="ignore"):
        score = np.log(p)
    out = np.full(p.shape[:2], np.nan)
    for h, q in np.ndindex(out.shape):
        others = [j for j in range(1, p.shape[2]) if j != q and p[h, q, j] > 0]
        if q and others and p[h, q, 0] > 0:
            out[h, q] = score[h, q, 0] - score[h, q, others].mean()
    return out


@pytest.mark.parametrize("name", ("llama", "gpt2", "mistral", "bert"))
def test_the_margin_is_that_of_the_eager_scores(name: str) -> None:
    model = tiny(name)
    stats = wb.capture(model, PROMPTS, want="margins")
    for i, ids in enumerate(PROMPTS):
        found, maps = stats.prompt(i)["sink_margin"][0], eager_maps(model, ids)
        for layer, p in enumerate(maps):
            np.testing.assert_allclose(found[layer], truth(p), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ("Gemma 2", "GPT-OSS", "Qwen2", "DeepSeek-V3"))
def test_softcaps_sinks_and_windows_take_part_as_in_the_model(name: str) -> None:
    from tests.families.eager import observed

    net = FAMILIES[name].build()
    inputs = FAMILIES[name].inputs(net, 2)
    model = wb.load(net)
    stats = capture_inputs(model, inputs, want="margins")
    with observed(net) as maps, torch.no_grad():
        net(**inputs)
    for site in model.spec.of():
        (p,) = maps[site.name]
        for row in range(len(p)):
            found = stats["sink_margin"].sel(layer=site.layer)[row]
            np.testing.assert_allclose(found, truth(p[row]), rtol=1e-3, atol=2e-3)


def test_margins_of_decoding_steps_are_those_of_the_whole_text() -> None:
    model = tiny("mistral")  # a window of 4: the first key leaves the cache
    generated = wb.capture(model, [IDS[:3]], want="margins", generate=4)
    ids = generated.tokens["id"].tolist()
    whole = wb.capture(model, [ids], want="margins")
    n = generated["sink_margin"].sizes["query"] - 1
    np.testing.assert_allclose(
        generated["sink_margin"][..., :n], whole["sink_margin"][..., :n], rtol=1e-3, atol=1e-3
    )


def test_a_replaced_map_has_no_margin() -> None:
    model = tiny("llama")
    uniform = np.tril(np.ones((9, 9))) / np.arange(1, 10)[:, None]
    with wb.intervening(model, wb.Intervention.pattern("L1H2", uniform)):
        stats = wb.capture(model, [IDS], want="margins")
    margin = stats["sink_margin"][0, 1]
    assert np.isnan(margin[2]).all()
    assert np.isfinite(margin[1, 2:]).all()


def test_dimensions_are_asked_for_by_name() -> None:
    model = tiny("llama")
    with pytest.raises(WorkbenchError, match="resid_phi needs the dimensions"):
        wb.capture(model, [IDS], want="phi")
    with pytest.raises(WorkbenchError, match="dimension 99, but the residual stream has 32"):
        wb.capture(model, [IDS], want="phi", parameters=wb.Parameters(sink_dims=(1, 99)))
    with pytest.raises(WorkbenchError, match="sink_dims='1' is no list"):
        wb.Parameters(sink_dims="1")  # type: ignore[arg-type]
    assert parse_parameters(["sink_dims=1415,2533"]).sink_dims == (1415, 2533)
    with pytest.raises(SchemaError, match="capture again"):
        wb.capture(model, [IDS], want="rows")["resid_phi"]
