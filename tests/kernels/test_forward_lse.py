"""The lse taken from a model's own fused attention, against logsumexp of the same logits in
float64; the output keeps its bits.

Allowed: 1e-6 of max(1, |lse|) in float32, 1e-4 in half precision (torch's half kernels on a CPU use
a fast exponential; achieved: 5e-5).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tests.kernels.cases import relative_error
from workbench.kernels.attention_stats import attention_stats
from workbench.kernels.attention_stats.forward_lse import lse_of_forward

MODES = {
    "gradients": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


def make(b: int, h: int, h_kv: int, n_q: int, n_k: int, d: int) -> tuple:
    g = torch.Generator().manual_seed(4)
    q, k = torch.randn(b, h, n_q, d, generator=g), torch.randn(b, h_kv, n_k, d, generator=g)
    return q * 2, k, torch.randn(b, h_kv, n_k, d, generator=g)


def log_sum_exp(
    q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None = None, scale: float | None = None
) -> torch.Tensor:
    """float64 [B, H, Q], written out."""
    k = k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    s = q.double() @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.logsumexp(s if bias is None else s + bias.double(), -1)


def causal_bias(n_q: int, n_k: int) -> torch.Tensor:
    """0 where visible, -inf elsewhere; query 0 sees key 0 only, as in torch."""
    return torch.zeros(n_q, n_k).masked_fill(~torch.ones(n_q, n_k).tril().bool(), -torch.inf)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_lse_of_sdpa(mode: Any, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in make(2, 4, 2, 37, 53, 32))
    half = dtype in (torch.bfloat16, torch.float16)
    bias = torch.randn(2, 1, 37, 53).masked_fill(torch.rand(2, 1, 37, 53) > 0.7, -torch.inf)
    mask = torch.rand(1, 1, 37, 53) > 0.3
    hidden = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    cases: list[tuple[dict[str, Any], Any]] = [
        ({}, None),
        ({"is_causal": True}, causal_bias(37, 53)),
        ({"attn_mask": bias.to(dtype)}, bias.to(dtype)),
        ({"attn_mask": mask}, hidden),
        ({"scale": 0.3}, None),
    ]
    for terms, added in cases:
        with mode():
            plain = sdpa(q, k, v, enable_gqa=True, **terms)
            with lse_of_forward() as seen:
                out = sdpa(q, k, v, enable_gqa=True, **terms)
            assert torch.equal(out, plain)
        expected = log_sum_exp(q, k, added, terms.get("scale"))
        assert seen.lse is not None
        assert seen.lse.dtype == torch.float32
        error = relative_error(seen.lse, expected, 1.0)
        assert error < (1e-4 if half else 1e-6), f"{terms}: {error:.1e}"


def test_gradients_keep_their_bits() -> None:
    """The recorded tensor is a copy: writing into it does not reach what backward reads."""
    grads = []
    for record in (False, True):
        q, k, v = (x.requires_grad_() for x in make(1, 2, 2, 20, 20, 16))
        with lse_of_forward() if record else nullcontext() as seen:
            out = sdpa(q, k, v, is_causal=True)
        if seen is not None:
            lse = seen.lse
            assert lse is not None
            assert not lse.requires_grad
            lse.fill_(7.0)
        out.square().sum().backward()
        grads.append([x.grad for x in (q, k, v)])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_nothing_or_too_much_is_none() -> None:
    q, k, v = make(1, 2, 2, 20, 20, 16)
    with lse_of_forward() as seen:
        torch.softmax(q @ k.transpose(2, 3), -1).matmul(v)
    assert seen.lse is None
    for refused in ({"value": v[..., :4]}, {"value": v, "dropout_p": 0.5}):
        with lse_of_forward() as seen:
            sdpa(q, k, **refused)
        assert seen.lse is None
    with lse_of_forward() as seen, sdpa_kernel(SDPBackend.MATH):
        sdpa(q, k, v)
    assert seen.lse is None
    with lse_of_forward() as seen:
        sdpa(q, k, v)
        assert seen.lse is not None
        sdpa(q, k, v)
    assert seen.lse is None
    assert len(seen.calls) == 2


def test_what_torch_says_of_rows_that_see_nothing() -> None:
    """0.0 or about -3.4e38: neither is -inf, which is why n_visible decides."""
    q, k, v = make(1, 2, 2, 20, 20, 16)
    mask = torch.ones(20, 20, dtype=torch.bool)
    mask[4] = False
    added = torch.zeros(20, 20).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected = attention_stats(q, k, ["lse"], mask=mask)["lse"]
    others = torch.arange(20) != 4
    for given, odd in ((mask, 0.0), (added, torch.finfo(torch.float32).min)):
        with lse_of_forward() as seen:
            sdpa(q, k, v, attn_mask=given)
        assert seen.lse is not None
        assert torch.allclose(seen.lse[..., 4], torch.tensor(odd))
        assert torch.allclose(seen.lse[..., others], expected[..., others], atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_other_attention_runs_as_before() -> None:
    q, k, v = make(1, 2, 2, 20, 20, 16)
    # Also the first warning of flex attention, which torch gives once per process.
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        plain = flex_attention(q, k, v)
        with lse_of_forward() as seen:
            out = flex_attention(q, k, v)
    assert torch.equal(out, plain)  # pyright: ignore[reportArgumentType]
    assert seen.lse is None
    compiled = torch.compile(sdpa, backend="eager")
    with torch.no_grad(), lse_of_forward() as seen:
        assert torch.equal(compiled(q, k, v), sdpa(q, k, v))


def test_the_cuda_operations_by_their_schema() -> None:
    """On meta tensors: rows that a kernel adds are cut off, an lse that was not stored is None."""
    aten = torch.ops.aten
    half = torch.empty(2, 4, 37, 64, dtype=torch.bfloat16, device="meta")
    full = half.float()
    for call, stored in (
        (lambda: aten._scaled_dot_product_flash_attention(half, half, half), True),
        (lambda: aten._scaled_dot_product_efficient_attention(full, full, full, None, True), True),
        (
            lambda: aten._scaled_dot_product_efficient_attention(full, full, full, None, False),
            False,
        ),
        (lambda: aten._scaled_dot_product_cudnn_attention(half, half, half, None, True), True),
    ):
        with lse_of_forward() as seen:
            call()
        assert len(seen.calls) == 1
        assert (seen.lse is not None) == stored
        if seen.lse is not None:
            assert seen.lse.shape == (2, 4, 37)
            assert seen.lse.dtype == torch.float32


@pytest.fixture
def recording() -> Iterator[list]:
    """transformers' own sdpa attention, but that every call appends (query, key, mask or None,
    causal, scale, lse) to the list."""
    registry = pytest.importorskip("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
    plain = registry["sdpa"]
    calls: list = []

    def forward(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        with lse_of_forward() as seen:
            out = plain(module, query, key, value, mask, **kwargs)
        causal = mask is None and query.shape[2] > 1 and module.is_causal
        calls.append((query, key, mask, causal, kwargs.get("scaling"), seen.lse))
        return out

    registry["sdpa"] = forward
    yield calls
    del registry["sdpa"]


def tiny_llama() -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "sdpa",
    }  # fmt: skip
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()


def tiny_gpt2() -> Any:
    sizes: dict[str, Any] = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4}
    sizes["attn_implementation"] = "sdpa"
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("padded", [False, True])
def test_models(
    build: Any,
    mode: Any,
    padded: bool,
    recording: list,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logits of a real model keep their bits; the lse of every layer is that of its q and k."""
    torch.manual_seed(0)
    model = build()
    ids = torch.randint(50, (2, 17), generator=torch.Generator().manual_seed(1))
    valid = torch.ones_like(ids)
    if padded:
        valid[0, :5] = 0
    with mode():
        found = model(ids, attention_mask=valid).logits
        registry = pytest.importorskip("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
        forward = pytest.importorskip("transformers.integrations.sdpa_attention")
        monkeypatch.setitem(registry, "sdpa", forward.sdpa_attention_forward)
        plain = model(ids, attention_mask=valid).logits
    seen_rows = valid.bool()[:, None].expand(2, 4, 17)
    assert len(recording) == 2
    for q, k, mask, causal, scale, lse in recording:
        assert lse is not None
        added = causal_bias(17, 17) if causal else None
        if mask is not None:
            added = mask if mask.is_floating_point() else (~mask).double() * -1e300
        expected = log_sum_exp(q.detach(), k.detach(), added, scale)
        assert relative_error(lse[seen_rows], expected[seen_rows], 1.0) < 1e-6
    assert torch.equal(found, plain)
