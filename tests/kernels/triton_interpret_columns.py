"""Cases of the column, map and band side of the Triton path in the interpreter, run by
`triton_worker.py`; see `test_triton_columns.py`. `test_contract.py` runs every statistic under
every term there when TRITON_INTERPRET=1; here is what is particular to these kernels.

Sized in tile iterations, 4 to 5 ms each there: at most 200 a case, with blocks of 32 x 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from triton_interpret import agree, poisoned, worst_of

from tests.kernels.cases import (
    extras,
    make,
    of_eighty,
    padded_with_nan,
    relative_error,
    sequences,
    some_bias,
    some_mask,
    with_a_heavy_key,
)
from workbench.kernels.attention_stats import attention_stats
from workbench.kernels.attention_stats.triton_call import Call

COLUMNS = (
    "key_mass", "key_mean", "key_max", "key_var", "key_entropy", "query_feature_mass", "fai",
    "block_mass", "block_max", "diagonal_mass", "distance_histogram",
)  # fmt: skip
BANDS = (
    "self_mass", "prev_mass", "first_mass", "offset_mass", "keys_mass", "waad", "local_mass",
)  # fmt: skip
BOTH = COLUMNS + BANDS
CASES: dict[str, Callable[[], Any]] = {}


def case(run: Callable[[], Any]) -> Callable[[], Any]:
    CASES[run.__name__] = run
    return run


def parity(name: str, *shape: int, want: Any = BOTH, **terms: Any) -> None:
    """A case that is nothing but a comparison."""
    CASES[name] = lambda: agree(*make(*shape), want, **terms)


parity("full", 1, 2, 1, 50, 75, 32)
parity("causal", 1, 4, 2, 60, 60, 16, causal=True, horizon=(3, None))
parity("causal_window", 1, 1, 1, 110, 110, 32, causal=True, window=40)
parity("window_of_one", 1, 1, 1, 70, 70, 32, causal=True, window=1)
parity("two_sided_window", 1, 1, 1, 80, 120, 32, window=50, query_offset=25)
parity("offset_before_the_keys", 1, 1, 1, 90, 60, 32, causal=True, query_offset=-45)
parity("window_that_left_the_keys", 1, 1, 1, 70, 60, 32, causal=True, query_offset=50, window=30)
parity(
    "sink_and_rows_that_see_nothing", 1, 2, 1, 90, 33, 32, causal=True,
    sink_logit=torch.tensor([1.5, -math.inf]),
)  # fmt: skip
parity("softcap", 1, 1, 1, 60, 60, 32, causal=True, softcap=3.0)
parity("mask", 1, 2, 1, 40, 75, 32, mask=some_mask(1, 2, 40, 75), horizon=(0, None))
parity(
    "bias_that_hides_and_alibi", 1, 2, 1, 40, 75, 32, causal=True, alibi=torch.tensor([0.3, 0.02]),
    bias=some_bias(40, 75).masked_fill(~some_mask(40, 75), -math.inf),
)  # fmt: skip
parity("packed_sequences", 2, 1, 1, 70, 110, 32, **sequences(2, 70, 110))
parity("causal_sequences", 1, 1, 1, 110, 110, 32, causal=True, **sequences(1, 110, 110))
parity("decode_step", 1, 4, 2, 1, 65, 64, causal=True, query_offset=64)
parity("length_one", 1, 1, 1, 1, 1, 1, causal=True)
parity("scale_below_zero", 1, 1, 1, 40, 70, 32, causal=True, scale=-0.3)


@case
def padding_that_holds_nan() -> Any:
    """Features of padding are NaN as well."""
    q, k, terms = padded_with_nan(1)
    features = extras(3, 1, 50, 50)["query_features"]
    features = features.masked_fill(~terms["query_valid"][..., None], math.nan)
    return agree(q, k, BOTH, query_features=features, **terms)


@case
def logits_of_eighty() -> Any:
    return agree(*of_eighty(1, 2, 2, 60, 90), BOTH)


@case
def one_key_a_thousand_times_heavier() -> Any:
    return agree(*with_a_heavy_key(1, 1, 1, 100), BOTH, causal=True)


@case
def other_widths_and_float16() -> Any:
    found = [agree(*make(1, 1, 1, 40, 50, d, dtype=torch.float16), BOTH) for d in (80, 256)]
    return worst_of(*found, agree(*make(1, 1, 1, 40, 50, 192), BOTH, causal=True))


@case
def views_of_models() -> Any:
    """[batch, tokens, heads, width] seen as [batch, heads, tokens, width]; expanded keys."""
    q, k = make(2, 2, 1, 40, 40, 32)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    return agree(q, k.expand(2, 2, 40, 32), BOTH, causal=True)


@case
def no_queries() -> Any:
    q, k = make(1, 2, 1, 1, 5, 8)
    q, terms = q[:, :, :0], extras(1, 1, 0, 5)
    found = attention_stats(q, k, BOTH, backend="triton", **terms)
    expected = attention_stats(q.double(), k.double(), BOTH, backend="naive", **terms)
    for name in BOTH:
        assert found[name].shape == expected[name].shape, name
        assert torch.equal(found[name].nan_to_num(-1.0), expected[name].float().nan_to_num(-1.0))
    return {}


@case
def few_keys_and_many_queries() -> Any:
    """The queries go in parts; what these hold is put together again."""
    q, k = make(1, 1, 1, 600, 40, 16)
    assert Call.of(q, k, {"query_offset": 0}).splits(2, 600 // 32) == 4
    plain = COLUMNS[:4]
    first = agree(q, k, (*plain, "key_entropy", "query_feature_mass"))
    return first | {f"{name} alone": x for name, x in agree(q, k, plain, causal=True).items()}


@case
def blocks_of_any_size() -> Any:
    """Single entries, several blocks per tile, ragged parts, one block for everything."""
    q, k = make(1, 1, 1, 75, 70, 16)
    found = {}
    for pool in (1, 5, 16, 64, (3, 200), (50, 33)):
        errors = agree(q, k, ("block_mass", "block_max"), pool=pool, causal=True)
        found |= {f"{name}, {pool}": error for name, error in errors.items()}
    return found


@case
def horizons() -> Any:
    """From the key on, one distance, wider than an integer, beyond the end, beyond the window."""
    q, k = make(1, 1, 1, 70, 60, 16)
    found = {}
    for horizon in ((0, None), (0, 0), (5, 2**40), (80, 90), (25, None)):
        errors = agree(q, k, ("fai",), horizon=horizon, causal=True, query_offset=5, window=30)
        found[f"fai, {horizon}"] = errors["fai"]
    return found


@case
def windows_wider_than_the_map() -> Any:
    """Nothing is beyond them: waad is the distance and local_mass the row, exactly."""
    q, k = make(1, 1, 1, 40, 50, 16)
    wide = {"waad_window": 2**40, "local_window": 2**40}
    found = attention_stats(q, k, ["waad", "local_mass", "distance"], backend="triton", **wide)
    return {
        "waad": relative_error(found["waad"], found["distance"]),
        "local_mass": relative_error(found["local_mass"], torch.ones(1, 1, 40)),
    }


@case
def features_of_unlike_size() -> Any:
    """More than one pass holds: sizes from 1e-12 to 1e12, and a column of zeros."""
    q, k = make(1, 1, 1, 50, 40, 16)
    features = torch.randn(1, 50, 65, generator=torch.Generator().manual_seed(4)).double()
    features *= torch.logspace(-12, 12, 65, dtype=torch.float64)
    features[..., 7] = 0.0
    with poisoned():
        mass = attention_stats(q, k, ["query_feature_mass"], backend="triton",
                               query_features=features)["query_feature_mass"]  # fmt: skip
    p = torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double()).div(4.0).softmax(-1)
    expected, size = (torch.einsum("bhqk,bqg->bhkg", p, x) for x in (features, features.abs()))
    return {"query_feature_mass": relative_error(mass, expected, 1e-30, size)}


@case
def keys_that_receive_next_to_nothing() -> Any:
    """A key of weight 1e-28 has a profile: taking a constant from its logits leaves it as it is."""
    q, k = make(1, 1, 1, 40, 40, 16)
    bias = torch.zeros(1, 40)
    bias[0, 3] = -64.0
    found = attention_stats(q, k, ["key_entropy", "key_mass"], backend="triton", bias=bias)
    assert 0 < found["key_mass"][0, 0, 3] < 1e-25
    assert found["key_entropy"][0, 0, 3] > 0.5
    p = torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double()).div(4.0).add(bias).softmax(-1)
    share = p / p.sum(2, keepdim=True)
    return {"key_entropy": relative_error(found["key_entropy"], -(share * share.log()).sum(2))}


@case
def variance_of_nearly_equal_weights() -> Any:
    """A standard deviation of 2e-3 of the mean: a difference of mean squares in float32 would know
    four per cent of it. The weights themselves are known to 1e-7, their deviations to 5e-5."""
    q, k = make(1, 1, 1, 300, 50, 16, spread=2e-3)
    found = attention_stats(q, k, ["key_var"], backend="triton")["key_var"].double()
    p = torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double()).div(4.0).softmax(-1)
    expected = p.var(2, correction=0)
    assert 1e-3 < (expected.sqrt() / p.mean(2)).mean() < 3e-3
    return {"std over mean": float(((found.sqrt() - expected.sqrt()) / p.mean(2)).abs().max())}


@case
def same_bits_twice() -> Any:
    """Also when other statistics are asked for beside it, where the sums are the same."""
    q, k = make(1, 2, 1, 50, 50, 32)
    terms = {"causal": True, "backend": "triton", **extras(1, 1, 50, 50)}
    alone = [(name,) for name in ("block_mass", "fai", "waad", "diagonal_mass", "key_entropy")]
    once = attention_stats(q, k, BOTH, **terms)
    for want in (BOTH, *alone):
        for name, x in attention_stats(q, k, want, **terms).items():
            assert torch.equal(x.nan_to_num(-1.0), once[name].nan_to_num(-1.0)), name
    return {}


@case
def sums_hold() -> Any:
    """Columns, blocks, diagonals and distances hold the same mass, the number of rows; features of
    one are the masses."""
    q, k = make(1, 2, 1, 60, 70, 32)
    terms = extras(1, 1, 60, 70) | {"query_features": torch.ones(1, 60, 1)}
    want = ("key_mass", "query_feature_mass", "block_mass", "diagonal_mass", "distance_histogram")
    found = attention_stats(q, k, want, backend="triton", **terms)
    sums = {name: found[name].double().flatten(2).sum(-1) for name in want}
    return {name: float((x / 60 - 1).abs().max()) for name, x in sums.items()}
