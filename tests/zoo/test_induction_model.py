"""The stacked network against GPT-2, itself alone, and planted circuits; what is logged of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.probes import induction_head_score, previous_token_score
from workbench.prompts import Prompt
from workbench.zoo.induction import export, measure, model
from workbench.zoo.induction.recipe import Recipe, Setting
from workbench.zoo.induction.task import Language
from workbench.zoo.induction.training import Bench

RECIPE = Recipe(
    name="tiny",
    settings=(Setting("a", 3), Setting("b", 4, favourites=False), Setting("c", 3, smeared=True)),
    layers=2,
    steps=4,
    logged=(0, 4),
    d_model=12,
    texts=5,
    language=Language(states=14, length=24),
)


@pytest.fixture(scope="module")
def bench():
    return Bench(RECIPE)


def disturbed(bench, seed=0):
    """Parameters in which nothing is at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in bench.start().items()
    }


def arrays(parameters):
    return {name: value.numpy() for name, value in parameters.items()}


def relative(a, b):
    """Largest difference over the largest reference value."""
    return float((a - b).abs().max() / b.abs().max())


# --- the pass -------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [0, 1])
def test_logits_and_patterns_are_those_of_gpt2(bench, run):
    parameters = disturbed(bench)
    ids = bench.batch(0)[..., :-1]
    logits, patterns = bench.forward(parameters, ids)
    net = export.gpt2(RECIPE, arrays(parameters), RECIPE.settings[run].run)
    net.set_attn_implementation("eager")
    with torch.no_grad():
        out = net(ids[run], output_attentions=True)
    error = relative(logits[run], out.logits)
    print(f"logits differ by {error:.1e} of the largest")
    assert error < 1e-5
    for layer in range(2):
        assert relative(patterns[run, layer], out.attentions[layer]) < 1e-5
    other, _ = bench.forward(disturbed(bench, seed=1), ids)
    assert relative(other[run], out.logits) > 0.1


def test_smeared_keys_by_a_loop(bench):
    """In the first layer, by hand: score of query q and key t, the key mixed with that before."""
    parameters = disturbed(bench)
    ids = bench.batch(1)[..., :-1]
    _, patterns = bench.forward(parameters, ids)
    one = {name: value[2] for name, value in parameters.items()}
    text = ids[2, 0]
    x = one["token"][text] + one["position"][: len(text)]
    h = torch.nn.functional.layer_norm(x, (12,), one["gain"][0], one["bias"][0])
    q, k = h @ one["q"][0].T, h @ one["k"][0].T
    for head in range(2):
        part = slice(6 * head, 6 * head + 6)
        share = float(torch.sigmoid(one["smear"][0, head]))
        for query in (0, 1, 7, 23):
            scores = []
            for key in range(query + 1):
                own, before = k[key, part], k[max(key - 1, 0), part]
                mixed = own if key == 0 else share * own + (1 - share) * before
                scores.append(float(q[query, part] @ mixed) / 6**0.5)
            expected = torch.tensor(scores).softmax(0)
            found = patterns[2, 0, 0, head, query, : query + 1]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    plain = model.forward(parameters, ids, bench.shape, torch.zeros(3, dtype=torch.bool))[1]
    assert relative(plain[2], patterns[2]) > 0.05
    assert torch.equal(plain[:2], patterns[:2]), "other runs keep their own keys"


def test_later_tokens_change_nothing_before_them(bench):
    ids = bench.batch(0)[..., :-1]
    changed = ids.clone()
    changed[..., 11] = (changed[..., 11] + 1) % 14
    one, two = (bench.forward(disturbed(bench), x)[0] for x in (ids, changed))
    assert torch.equal(one[:, :, :11], two[:, :, :11])
    assert not torch.allclose(one[:, :, 11:], two[:, :, 11:])


def test_a_run_in_a_stack_is_the_run_alone(bench):
    parameters = {n: v.requires_grad_() for n, v in disturbed(bench).items()}
    losses = bench.loss(parameters, bench.batch(0))
    losses[1].backward()
    for name, value in parameters.items():
        if name != "smear":
            assert value.grad is not None and value.grad[1].any(), name
            assert not value.grad[[0, 2]].any(), name
    alone = Bench(replace(RECIPE, settings=RECIPE.settings[1:2]))
    one = {name: value[1:2].detach() for name, value in parameters.items()}
    assert float(alone.loss(one, alone.batch(0))) == pytest.approx(float(losses[1].detach()))
    both, single = bench.start(), alone.start()
    assert all(torch.equal(both[name][1:2], single[name]) for name in single)


def test_the_loss_is_that_of_scikit_learn(bench):
    from sklearn.metrics import log_loss

    parameters, batch = disturbed(bench), bench.batch(2)
    found = bench.loss(parameters, batch)
    logits, _ = bench.forward(parameters, batch[..., :-1])
    for run in range(3):
        p = logits[run].double().softmax(-1).flatten(0, 1).numpy()
        target = batch[run, :, 1:].flatten().numpy()
        expected = log_loss(target, p / p.sum(-1, keepdims=True), labels=range(15))
        assert float(found[run]) == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_exported_is_said(bench):
    weights = arrays(bench.start())
    with pytest.raises(WorkbenchError, match="run c-s3 has smeared keys, which GPT-2 has not"):
        export.gpt2(RECIPE, weights, "c-s3")
    with pytest.raises(WorkbenchError, match="no run 'd' in tiny"):
        export.gpt2(RECIPE, weights, "d")
    with pytest.raises(WorkbenchError, match="3 heads do not divide the width 8"):
        model.Shape(5, 16, 1, 3, 8)


# --- what is logged -------------------------------------------------------------------------


@pytest.mark.parametrize("run", [0, 1])
def test_head_scores_are_the_probes_of_the_exported_model(bench, run):
    parameters = disturbed(bench)
    texts, _ = bench.repeated
    logged = bench.measure(parameters).isel(run=run)
    net = export.gpt2(RECIPE, arrays(parameters), RECIPE.settings[run].run)
    captured = wb.capture(
        wb.load(net), [Prompt(token_ids=tuple(map(int, row))) for row in texts],
        want=["induction_mass", "prev_mass", "n_visible"],
    )  # fmt: skip
    for name, probe in (("prefix", induction_head_score), ("previous", previous_token_score)):
        table = probe(captured).sort_values(["layer", "head"])
        found = logged[name].to_numpy().ravel()
        np.testing.assert_allclose(found, table["value"], rtol=1e-4)
        assert np.ptp(found) > 0.003, "heads differ, so that their order is tested"


def test_scores_of_planted_patterns():
    """All on the right key gives 1, uniform attention 1 / (t + 1)."""
    n, length = 5, 11
    planted = np.zeros((2, 1, 3, 2, length, length))
    for t in range(length):
        planted[0, 0, :, 0, t, max(t - n + 1, 0)] = 1
        planted[0, 0, :, 1, t, max(t - 1, 0)] = 1
        planted[1, 0, :, :, t, : t + 1] = 1 / (t + 1)
    found = measure.head_scores(planted, n)
    uniform = float(np.mean([1 / (t + 1) for t in range(n + 1, 2 * n + 1)]))
    np.testing.assert_allclose(found["prefix"][:, 0], [[1.0, 0.0], [uniform, uniform]])
    np.testing.assert_allclose(found["previous"][:, 0], [[0.0, 1.0], [uniform, uniform]])


def test_losses_by_literal_loops(bench):
    parameters = disturbed(bench)
    data = bench.measure(parameters)
    ids, oracle = bench.evaluation
    logits, _ = bench.forward(parameters, torch.from_numpy(ids[..., :-1]))
    p = logits.double().softmax(-1).numpy()
    terms = np.where(oracle > 0, -oracle * np.log(p), 0).sum(-1)
    np.testing.assert_allclose(data["loss"], terms.mean((1, 2)), rtol=1e-5)
    by_position = terms.mean(1)
    np.testing.assert_allclose(data["loss_at"], by_position, rtol=1e-5)
    icl = by_position[:, 16:].mean(1) - by_position[:, 2:6].mean(1)
    np.testing.assert_allclose(data["icl"], icl, rtol=1e-4)
    for run in range(3):
        slope = np.polyfit(np.log(np.arange(3, 25)), by_position[run, 2:], 1)[0]
        assert float(data["slope"][run]) == pytest.approx(slope, rel=1e-4)
    entropy = np.where(oracle > 0, -oracle * np.log(np.where(oracle > 0, oracle, 1)), 0).sum(-1)
    np.testing.assert_allclose(data["excess"], (terms - entropy).mean((1, 2)), rtol=1e-4)
    came = -np.log(np.take_along_axis(p, ids[..., 1:, None], -1))[:, :8].reshape(3, -1)
    np.testing.assert_allclose(data["token_loss"], came, rtol=2e-3)
    np.testing.assert_allclose(
        data["loss_at_baseline"].sel(predictor="Bayes"), entropy[0].mean(0), rtol=1e-5
    )
    told = data["loss_at_baseline"].sel(predictor="without context").to_numpy()
    assert (told[1:] > entropy[0].mean(0)[1:] - 1e-9).all() and told[-1] > entropy[0, :, -1].mean()


def full_circuits(weights, run, layer, head, d_head):
    """QK and OV as full matrices, LayerNorm's centring and gain as matrices too."""
    d = weights["q"].shape[-1]
    fold = np.diag(weights["gain"][run, layer]) @ (np.eye(d) - 1 / d)
    part = slice(head * d_head, (head + 1) * d_head)
    q, k, v = (weights[name][run, layer][part] @ fold for name in "qkv")
    return q.T @ k, weights["o"][run, layer][:, part] @ v


def test_circuit_scores_by_full_matrices(bench):
    weights = {name: value.astype(float) for name, value in arrays(disturbed(bench)).items()}
    words, d = 14, 12
    copying = measure.copying(weights, 2, words)
    matching = measure.matching(weights, 2, words)
    composition = measure.composition(weights, 2)
    for run in range(3):
        token = weights["token"][run, :words]
        out = weights["unembed"][run, :words] @ np.diag(weights["final_gain"][run])
        # The last LayerNorm takes off the mean: of what is written.
        out = out @ (np.eye(d) - 1 / d)
        centred = weights["unembed"][run, :words] * weights["final_gain"][run]
        np.testing.assert_allclose(out, centred - centred.mean(-1, keepdims=True), atol=1e-12)
        for head in range(2):
            for layer in range(2):
                _, ov = full_circuits(weights, run, layer, head, 6)
                values = np.linalg.eigvals(out @ ov @ token.T)
                expected = values.sum().real / np.abs(values).sum()
                assert copying[run, layer, head] == pytest.approx(expected, rel=1e-6)
            for earlier in range(2):
                qk, _ = full_circuits(weights, run, 1, head, 6)
                _, ov = full_circuits(weights, run, 0, earlier, 6)
                norm = np.linalg.norm
                expected = norm(qk @ ov) / (norm(qk) * norm(ov))
                assert composition[run, head, earlier] == pytest.approx(expected, rel=1e-6)
                values = np.linalg.eigvals(token @ qk @ ov @ token.T)
                expected = values.sum().real / np.abs(values).sum()
                assert matching[run, head, earlier] == pytest.approx(expected, rel=1e-6)


def test_circuit_scores_of_planted_circuits():
    """OV that writes each word back copies (1), with the sign turned it does the contrary (-1)."""
    d, words = 8, 7
    eye = np.eye(d)
    token = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0][:words]
    token -= token.mean(-1, keepdims=True)
    ones = np.ones((1, 2, d))
    weights = {
        "gain": ones, "final_gain": ones[:, 0], "token": token[None], "unembed": token[None],
        "q": np.stack([eye, eye])[None], "k": np.stack([eye, eye])[None],
        "v": np.stack([eye, eye])[None], "o": np.stack([eye, -eye])[None],
    }  # fmt: skip
    np.testing.assert_allclose(measure.copying(weights, 1, words), [[[1], [-1]]], atol=1e-9)
    np.testing.assert_allclose(measure.matching(weights, 1, words), [[[1]]], atol=1e-9)
    turned = weights | {"o": np.stack([-eye, eye])[None]}
    np.testing.assert_allclose(measure.matching(turned, 1, words), [[[-1]]], atol=1e-9)
    # Maps of rank one: what is read is all of what is written, or nothing of it.
    one, other = (np.outer(u, u) / 2 for u in (eye[0] - eye[1], eye[2] - eye[3]))
    for read, expected in ((one, 1.0), (other, 0.0)):
        planted = weights | {
            "k": np.stack([eye, read])[None], "q": np.stack([eye, read])[None],
            "v": np.stack([one, eye])[None], "o": np.stack([one, eye])[None],
        }  # fmt: skip
        assert measure.composition(planted, 1).item() == pytest.approx(expected, abs=1e-9)
