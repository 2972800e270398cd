"""Cases of the row side of the Triton path in the interpreter, run by `triton_worker.py`; see
`test_triton.py`. `test_contract.py` runs every statistic under every term there when
TRITON_INTERPRET=1; here is what is particular to these kernels.

Sized in tile iterations, 4 to 5 ms each there: at most 200 a case, with blocks of 32 x 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tests.kernels.cases import (
    errors,
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
from workbench.kernels.attention_stats import (
    LowRankBias,
    Neighbourhood,
    attention_stats,
    available_backends,
    triton,
    triton_rows,
    triton_topk,
)

# What the row pass has.
ROWS = (
    "lse", "entropy", "max_prob", "argmax", "null_mass", "distance", "distance_sq", "participation",
    "duplicate_mass", "induction_mass", "n_visible", "role_mass", "feature_mass", "value_mass",
    "output", "segment_mean",
)  # fmt: skip
TOP = ("top_keys", "top_probs")
CASES: dict[str, Callable[[], Any]] = {}


def case(run: Callable[[], Any]) -> Callable[[], Any]:
    CASES[run.__name__] = run
    return run


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory from torch.empty holds NaN, integers the lowest value."""
    real = torch.empty

    def filled(*size: Any, **options: Any) -> Any:
        x = real(*size, **options)
        return x.fill_(math.nan if x.is_floating_point() else torch.iinfo(x.dtype).min)

    torch.empty = filled
    try:
        yield
    finally:
        torch.empty = real


def agree(q: Any, k: Any, want: Any = ROWS, **terms: Any) -> dict[str, float]:
    """Relative error of every statistic against float64, with every argument a statistic reads."""
    more = extras(q.shape[0], k.shape[1], q.shape[2], k.shape[2])
    with poisoned():
        return errors("triton", q, k, want, more | terms)


def worst_of(*found: dict[str, float]) -> dict[str, float]:
    return {name: max(x[name] for x in found) for name in found[0]}


def parity(name: str, *shape: int, want: Any = ROWS, **terms: Any) -> None:
    """A case that is nothing but a comparison."""
    CASES[name] = lambda: agree(*make(*shape), want, **terms)


parity("full", 1, 4, 2, 50, 75, 32)
parity("causal", 2, 2, 1, 70, 70, 32, causal=True)
parity("causal_window", 1, 4, 2, 110, 110, 32, causal=True, window=40)
parity("window_of_one", 1, 2, 1, 70, 70, 32, causal=True, window=1)
# Wider than a block, so that every program has an edge, a middle and an edge.
parity("wide_window", 1, 1, 1, 230, 230, 16, causal=True, window=110)
parity("two_sided_window", 1, 2, 1, 80, 140, 32, window=70, query_offset=25)
parity("offset_before_the_keys", 1, 2, 2, 90, 60, 32, causal=True, query_offset=-45)
parity("offset_beyond_the_keys", 1, 2, 2, 40, 60, 32, causal=True, query_offset=400)
parity("window_that_left_the_keys", 1, 2, 2, 70, 60, 32, causal=True, query_offset=50, window=30)
# Aligned at the end: the first rows see nothing.
parity("more_rows_than_keys", 1, 2, 1, 90, 33, 32, causal=True)
parity("softcap", 1, 2, 1, 70, 70, 32, causal=True, softcap=3.0)
parity("sink_logit", 1, 4, 2, 40, 70, 32, sink_logit=torch.tensor([-math.inf, 0.0, 30.0, -3.0]))
parity(
    "sink_and_rows_that_see_nothing", 1, 2, 1, 90, 33, 32, causal=True,
    sink_logit=torch.tensor([1.5, -math.inf]),
)  # fmt: skip
parity("scale_below_zero", 1, 2, 1, 40, 70, 32, causal=True, scale=-0.3)
parity("scale_of_zero", 1, 2, 1, 40, 70, 32, causal=True, scale=0.0, softcap=2.0)
parity("mask", 1, 2, 1, 20, 70, 32, want=ROWS + TOP, mask=some_mask(1, 2, 20, 70), topk=2)
parity("mask_of_keys", 2, 2, 1, 40, 70, 32, causal=True, mask=some_mask(70))
parity("bias", 1, 4, 2, 40, 70, 32, bias=some_bias(1, 4, 40, 70))
parity(
    "bias_that_hides", 2, 2, 1, 40, 70, 32,
    bias=some_bias(2, 1, 40, 70).masked_fill(~some_mask(2, 1, 40, 70), -math.inf),
)  # fmt: skip
parity("alibi", 1, 2, 1, 70, 70, 32, causal=True, alibi=torch.tensor([0.5, 0.02]))
parity("two_sided_alibi", 1, 2, 1, 40, 70, 32, alibi=torch.tensor([0.5, 0.02]))
parity("packed_sequences", 2, 2, 1, 70, 150, 32, **sequences(2, 70, 150))
parity("causal_sequences", 1, 2, 1, 150, 150, 32, causal=True, **sequences(1, 150, 150))
parity("a_power_that_is_no_integer", 1, 2, 1, 40, 70, 32, want=("participation",), power=1.5)
parity("participation_ratio", 1, 2, 1, 40, 70, 32, want=("participation", "entropy"), power=2)
# One query against a cache: the keys of a row go to several programs.
parity("decode_step", 1, 2, 1, 1, 600, 64, want=ROWS + TOP, causal=True, query_offset=599)
parity("split_window", 1, 1, 1, 20, 700, 16, causal=True, query_offset=650, window=400)
parity(
    "split_sequences", 1, 1, 1, 20, 700, 16, sink_logit=torch.tensor([0.5]), **sequences(1, 20, 700)
)


@case
def splits_that_see_nothing() -> Any:
    """Of the runs of keys of a row some are all hidden, or all are."""
    mask = torch.zeros(1, 1, 3, 600, dtype=torch.bool)
    mask[..., 0, 500:], mask[..., 1, 5] = True, True
    q, k = make(1, 1, 1, 3, 600, 16)
    found = [agree(q, k, ROWS + TOP, mask=x) for x in (mask, mask[:, :, 2:])]
    return worst_of(*found)


@case
def splits_are_used() -> Any:
    """Few rows and many keys are split, many rows are not; the result is that of one run up to
    rounding."""
    from workbench.kernels.attention_stats.triton_call import Call

    q, k = make(1, 2, 1, 1, 600, 16)
    seen = []
    real = Call.splits

    def counted(self: Any, programs: int, tiles: int) -> int:
        seen.append(real(self, programs, tiles))
        return seen[-1]

    def one(self: Any, programs: int, tiles: int) -> int:
        return 1

    found = []
    for rule in (counted, one):
        Call.splits = rule
        try:
            found.append(attention_stats(q, k, ["lse", "entropy", "distance"], backend="triton"))
        finally:
            Call.splits = real
    assert seen == [4]
    assert Call.of(q, k, {"query_offset": 0}).splits(100, 1000) == 1
    return {name: relative_error(x, found[1][name], 1e-6) for name, x in found[0].items()}


@case
def padding_that_holds_nan() -> Any:
    """Values and features of padding are NaN as well."""
    q, k, terms = padded_with_nan(2)
    padding = ~terms["key_valid"][:, None, :, None]
    more = extras(3, 1, 50, 50)
    more = {x: more[x].masked_fill(padding, math.nan) for x in ("v", "key_features")}
    return agree(q, k, **terms, **more)


@case
def logits_of_eighty() -> Any:
    return agree(*of_eighty(1, 2, 2, 90, 130))


@case
def one_key_a_thousand_times_heavier() -> Any:
    return agree(*with_a_heavy_key(1, 2, 1, 130), causal=True)


@case
def length_one() -> Any:
    first = agree(*make(1, 1, 1, 1, 1, 1), ROWS + TOP, causal=True)
    return worst_of(first, agree(*make(2, 2, 1, 1, 1, 8), ROWS + TOP, sink_logit=torch.zeros(2)))


@case
def other_widths_and_float16() -> Any:
    found = [agree(*make(1, 2, 1, 40, 70, d, dtype=torch.float16)) for d in (80, 256)]
    return worst_of(*found, agree(*make(1, 2, 1, 40, 70, 192), causal=True))


@case
def ties_go_to_the_first_key() -> Any:
    """In argmax and in top_keys, where every key is a tie: the first ones, in order."""
    q, k = (0.0 * x for x in make(1, 1, 1, 20, 50, 16))
    found = attention_stats(q, k, ["argmax", *TOP], backend="triton", topk=40, causal=True)
    position = torch.arange(20) + 30
    first = torch.arange(40).expand(1, 1, 20, 40)
    assert torch.equal(found["top_keys"], torch.where(first <= position[:, None], first, -1))
    assert not found["argmax"].any()
    return {"top_probs": relative_error(found["top_probs"][0, 0, :, 3], 1.0 / (position + 1.0))}


@case
def more_keys_than_there_are() -> Any:
    """topk beyond the keys, in chunks of 32 rows of a head."""
    q, k = make(1, 2, 1, 40, 50, 16)
    real = triton_topk._BYTES
    triton_topk._BYTES = 1
    try:
        assert len(list(triton_topk._chunks(triton.Call.of(q, k, {"topk": 60})))) == 4
        return agree(q, k, TOP, causal=True, topk=60)
    finally:
        triton_topk._BYTES = real


@case
def many_features() -> Any:
    """More than one launch holds: overlapping segments, features of both signs beside them, values
    in 16 bits."""
    member = torch.rand(1, 70, 75, generator=torch.Generator().manual_seed(5)) > 0.7
    q, k = make(1, 2, 1, 40, 75, 32)
    terms = {"key_segments": member, "query_segments": member[..., :40], "n_segments": 70}
    v = torch.randn(1, 1, 75, 70, generator=torch.Generator().manual_seed(6))
    want = ("role_mass", "entropy", "segment_mean", "output", "value_mass", "feature_mass")
    return worst_of(agree(q, k, want, v=v, **terms), agree(q, k, want, v=v.half(), **terms))


@case
def features_of_unlike_size() -> Any:
    """Columns that differ by 1e8, and within a column keys that do."""
    q, k = make(1, 2, 1, 40, 75, 32)
    size = 10.0 ** torch.linspace(-6, 2, 75)
    features = torch.stack([size, size.flip(0) * 1e8, torch.zeros(75)], -1)[None]
    return agree(q, k, ("feature_mass",), key_features=features)


@case
def views_of_models() -> Any:
    """[batch, tokens, heads, width] seen as [batch, heads, tokens, width]; expanded keys."""
    q, k = make(2, 4, 1, 40, 40, 32)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    return agree(q, k.expand(2, 4, 40, 32), causal=True)


@case
def no_queries() -> Any:
    q, k = make(1, 2, 1, 1, 5, 8)
    want = ["lse", "self_mass", "key_mass", "top_keys", "output"]
    found = attention_stats(q[:, :, :0], k, want, backend="triton", topk=3, v=k)
    assert found["lse"].shape == (1, 2, 0)
    assert found["output"].shape == (1, 2, 0, 8)
    assert found["top_keys"].shape == (1, 2, 0, 3)
    assert torch.equal(found["key_mass"], torch.zeros(1, 2, 5))
    return {}


@case
def same_bits_twice() -> Any:
    """Also when other statistics are asked for beside it, where the sums are the same."""
    q, k = make(1, 4, 2, 70, 70, 32)
    terms: dict[str, Any] = {"causal": True, "backend": "triton", **extras(1, 2, 70, 70)}
    want = (*ROWS, "key_mass", "waad")
    once, twice = (attention_stats(q, k, want, **terms) for _ in range(2))
    assert all(torch.equal(once[name], twice[name]) for name in once)
    alone = attention_stats(q, k, ["entropy"], **terms)
    assert torch.equal(alone["entropy"], once["entropy"])
    return {}


@case
def sums_hold() -> Any:
    """Rows sum to one less the null mass, columns to the number of rows; heads that share keys are
    the heads of expanded keys."""
    q, k = make(1, 4, 2, 60, 80, 32)
    sink = torch.randn(4, generator=torch.Generator().manual_seed(3))
    terms: dict[str, Any] = {
        "sink_logit": sink,
        "key_segments": torch.zeros(1, 80, dtype=torch.long),
    }
    want = ["role_mass", "null_mass", "key_mass", "lse"]
    found = attention_stats(q, k, want, backend="triton", n_segments=1, **terms)
    rows = found["role_mass"][..., 0] + found["null_mass"]
    columns = found["key_mass"].double().sum(-1) + found["null_mass"].double().sum(-1)
    wide = k.repeat_interleave(2, 1)
    other = attention_stats(q, wide, want, backend="triton", n_segments=1, **terms)
    assert all(torch.equal(found[name], other[name]) for name in want)
    return {"rows": float((rows - 1).abs().max()), "columns": float((columns / 60 - 1).abs().max())}


@case
def a_given_lse_saves_the_row_pass() -> Any:
    """Columns and bands are then computed without it, repeats and what streams are not; rows that
    see nothing are off whatever lse they come with."""
    q, k = make(1, 2, 1, 70, 40, 32)
    sink = torch.tensor([0.5, -math.inf])
    terms: dict[str, Any] = {"causal": True, "sink_logit": sink}
    lse = attention_stats(q.double(), k.double(), ["lse"], backend="naive", **terms)["lse"].float()
    lse[:, :, :30] = 0.0
    free = ("lse", "null_mass", "first_mass", "waad", "fai", "key_mass", "key_mean", "top_keys",
            "top_probs", "n_visible")  # fmt: skip
    real, launched = triton_rows._rows_once, []

    def seen(*arguments: Any) -> Any:
        launched.append(arguments)
        return real(*arguments)

    triton_rows._rows_once = seen
    try:
        found = agree(q, k, free, lse=lse, **terms)
        assert not launched
        attention_stats(q, k, ["top_keys"], backend="triton", topk=1)
        assert not launched
        repeats = agree(q, k, ("duplicate_mass", "induction_mass"), lse=lse, **terms)
        assert len(launched) == 1
    finally:
        triton_rows._rows_once = real
    return found | repeats


@case
def refused_by_name() -> Any:
    assert available_backends("cpu")[0] == "torch"  # by name only until it has run on a GPU
    assert "triton" in available_backends("cpu")
    q, k = make(1, 2, 1, 5, 6, 8)
    low = LowRankBias(torch.ones(1, 1, 5, 2), torch.ones(1, 1, 6, 2))
    bad: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "a mask by description (Neighbourhood)": (q, k, {"mask": Neighbourhood((6,), (3,))}),
        "a bias by description (LowRankBias)": (q, k, {"bias": low}),
        "the activation 'relu'": (q, k, {"activation": "relu"}),
        "float64": (q.double(), k.double(), {}),
        "bfloat16": (q.bfloat16(), k.bfloat16(), {}),
        "head widths over 256": (*make(1, 1, 1, 2, 2, 257), {}),
    }
    for name, (x, y, terms) in bad.items():
        try:
            attention_stats(x, y, ["key_mass"], backend="triton", **terms)
        except ValueError as refusal:
            assert f"the backend 'triton' does not support {name};" in str(refusal), refusal
        else:
            raise AssertionError(f"{name} was not refused")
        assert "key_mass" in attention_stats(x, y, ["key_mass"], **terms)
    return {}
