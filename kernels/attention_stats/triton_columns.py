"""The column side of the Triton path: launches the column pass and turns its float32 sums into
statistics, in float64 over [B, H, K].

Few keys leave a GPU idle: their queries are then split into parts, a number that follows from the
shape, and the sums of the parts are added here, in their order.

Dims: B batch, H query heads, G = H // Hkv, Q queries, K keys, D width, F features of the queries.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from workbench.kernels.attention_stats.terms import COLUMN_STATS, MEAN_STATS
from workbench.kernels.attention_stats.triton_call import LN2, Call, Tiles
from workbench.kernels.attention_stats.triton_map import block_statistics, diagonal_statistics
from workbench.kernels.attention_stats.triton_reach import Reach, of_rows

# The planes of the column pass's output, in the kernel's order.
SUMS = ("mass", "best", "tied", "spread", "count", "mean", "deviation")
# Features per column pass: 64 columns of running sums are what the registers hold.
_FEATURES = 64


def column_statistics(
    call: Call, names: tuple[str, ...], lse2: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The statistics of columns and of the whole map among `names` that need normalised weights.

    `lse2` [B, H, Q or more]: lse over log 2, 1e30 or more for a row that is none or has no pattern.
    """
    want = set(names)
    found: dict[str, torch.Tensor] = {}
    if want & {"key_mass", "key_mean", "key_max", "key_var", "key_entropy"}:
        found |= _sums(call, want, lse2)
    if "query_feature_mass" in want:
        found["query_feature_mass"] = _feature_mass(call, lse2)
    if "fai" in want:
        found["fai"] = influence(call, lse2)
    if want & {"block_mass", "block_max"}:
        found |= block_statistics(call, lse2)
    if want & {"diagonal_mass", "distance_histogram"}:
        found |= diagonal_statistics(call, want, lse2)
    return {name: hide(call, name, x) for name, x in found.items() if name in want}


def fitting(tiles: Tiles, **flags: int) -> Tiles:
    """Half as many queries beside more running sums than a sum and a maximum, or terms that are
    read per score."""
    more = any(flags[name] for name in ("VAR", "ENTROPY", "FEATURES", "MASK", "BIAS", "SEQUENCE"))
    return replace(tiles, queries=min(tiles.queries, 64)) if more else tiles


def influence(call: Call, lse2: torch.Tensor) -> torch.Tensor:
    """fai [B, H, K]: the column pass over the distances of the horizon."""
    reach = Reach.of(call, *call.terms["horizon"])
    dense = call.terms["mask"] is not None or call.terms["bias"] is not None
    sums = column_pass(call, lse2, reach, COUNT=dense)
    count = sums["count"].double().sum(0) if dense else _queries_in(call, reach)[:, None]
    # A window shorter than the horizon leaves no distance, and then nothing the kernel adds counts.
    mean = sums["mass"].double().sum(0) / count
    return mean.masked_fill(count == 0, torch.nan)


def _queries_in(call: Call, reach: Reach) -> torch.Tensor:
    """Number [B, K] of valid queries at the distances of `reach` from a key, in its sequence."""
    (b, _, n_q), t, device = call.shape, call.terms, call.q.device
    every = torch.ones(b, n_q, dtype=torch.bool, device=device)
    valid = every if t["query_valid"] is None else t["query_valid"]
    own = torch.arange(call.geometry.n_k, device=device).expand(b, -1) - call.geometry.offset
    first = own * 0 if reach.low is None else own + reach.low
    stop = own * 0 + n_q if reach.high is None else own + reach.high + 1
    if t["query_sequence"] is not None:
        rows, keys = (t[name].long() for name in ("query_sequence", "key_sequence"))
        first = torch.maximum(first, torch.searchsorted(rows, keys))
        stop = torch.minimum(stop, torch.searchsorted(rows, keys, right=True))
    before = torch.nn.functional.pad(valid.long().cumsum(1), (1, 0))
    first, stop = (before.gather(1, x.clamp(0, n_q)) for x in (first, stop))
    return (stop - first).clamp(min=0)


def column_pass(
    call: Call,
    lse2: torch.Tensor,
    reach: Reach,
    features: torch.Tensor | None = None,
    **flags: bool,
) -> dict[str, torch.Tensor]:
    """SUMS [parts, B, H, K], those that `flags` of the kernel ask for, and "share" [parts, B, H, K,
    F] of float16 `features` [2, B, Q, F]."""
    b, h, n_q = call.shape
    n_k, device = call.geometry.n_k, call.q.device
    flags = dict.fromkeys(("BEST", "COUNT", "VAR", "ENTROPY"), False) | flags
    flags["CLEAN"] = call.terms["query_valid"] is not None
    n = 0 if features is None else features.shape[-1]
    tiles = fitting(call.tiles(columns=True), FEATURES=n, **flags, **call.flags())
    blocks, whole = -(-n_k // tiles.keys), -(-n_q // tiles.queries)
    parts = call.splits(blocks * h * b, whole)
    out = torch.empty(len(SUMS), parts, b, h, n_k, dtype=torch.float32, device=device)
    share = torch.empty(parts, b, h, n_k, n, dtype=torch.float32, device=device)
    if not (b and h and n_q):
        out.zero_()
        share.zero_()
    else:
        from workbench.kernels.attention_stats.triton_column_kernels import column_kernel

        lse2 = of_rows(lse2, n_q, whole * tiles.queries)
        # A pointer that is not used still has to be one.
        g = lse2 if features is None else _whole(features, tiles.queries)
        column_kernel[(blocks * parts, h, b)](
            call.q, call.k, lse2, g, out, share,
            call.column_bounds(tiles.keys), -(-whole // parts) * tiles.queries,
            *reach.arguments(call), **reach.constants(call, tiles, FEATURES=n, **flags),
        )  # fmt: skip
    return dict(zip(SUMS, out, strict=True)) | {"share": share}


def _sums(call: Call, want: set[str], lse2: torch.Tensor) -> dict[str, torch.Tensor]:
    """key_mass, key_max, and the mean, variance and entropy if wanted."""
    sums = column_pass(
        call, lse2, Reach.of(call), BEST="key_max" in want, VAR="key_var" in want,
        ENTROPY="key_entropy" in want,
    )  # fmt: skip
    found = _profile(sums) if "key_entropy" in want else _plain(sums, "key_max" in want)
    if "key_mean" in want:
        found["key_mean"] = found["key_mass"] / call.counts()["key_count"]
    if "key_var" in want:
        count, mean = sums["count"].double(), sums["mean"].double()
        total = count.sum(0)
        away = mean - (count * mean).sum(0) / total
        found["key_var"] = (sums["deviation"].double() + count * away * away).sum(0) / total
    return found


def _plain(sums: dict[str, torch.Tensor], best: bool) -> dict[str, torch.Tensor]:
    found = {"key_mass": sums["mass"].double().sum(0)}
    return found | ({"key_max": sums["best"].amax(0)} if best else {})


def _profile(sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """From sums relative to the largest weight of a key, whose log2 is `best`."""
    mass, best, tied, spread = (sums[name].double() for name in SUMS[:4])
    top = best.amax(0)
    down = best - top
    weight = torch.exp2(down)
    others = (weight * torch.where(down < 0, tied + mass, mass)).sum(0)
    spread = (weight * (spread + down * (tied + mass))).sum(0)
    tied = torch.where(down < 0, 0.0, tied).sum(0)
    total = others + tied
    nats = torch.log1p(others + (tied - 1.0)) - LN2 * spread / total
    return {
        "key_mass": torch.exp2(top) * total,
        "key_max": torch.where(total > 0, torch.exp2(top), 0.0),
        "key_entropy": torch.where(total > 0, nats, 0.0),
    }


def _feature_mass(call: Call, lse2: torch.Tensor) -> torch.Tensor:
    """query_feature_mass float32 [B, H, K, F], 64 features per pass."""
    given, valid = call.terms["query_features"].double(), call.terms["query_valid"]
    if valid is not None:
        given = given.masked_fill(~valid[..., None], 0.0)
    found = []
    for features in given.split(_FEATURES, -1):
        halves, unit = _halves(features)
        sums = column_pass(call, lse2, Reach.of(call), halves)
        part = (sums["share"] * torch.exp2(sums["best"])[..., None]).sum(0)
        found.append(part[..., : unit.shape[-1]] * unit[:, None])
    return torch.cat(found, -1)


def _halves(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [B, Q, F] as a high and a low float16 part [2, B, Q, F rounded up] of at most 2^14,
    and the unit [B, 1, F] they were divided by."""
    n_q, n = features.shape[1:]
    most = features.abs().amax(1, keepdim=True) if n_q else features.new_ones(len(features), 1, n)
    unit = torch.exp2(torch.frexp(most).exponent.double() - 14.0)
    scaled = features / unit
    high = scaled.half()
    both = torch.stack([high, (scaled - high).half()])
    return torch.nn.functional.pad(both, (0, max(16, 1 << (n - 1).bit_length()) - n)), unit.float()


def _whole(x: torch.Tensor, block: int) -> torch.Tensor:
    """[2, B, Q, F] with whole blocks of queries."""
    return torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % block)).contiguous()


def hide(call: Call, name: str, x: torch.Tensor) -> torch.Tensor:
    """A key that is none receives nothing, which has no mean."""
    valid = call.terms["key_valid"]
    if valid is None or name not in COLUMN_STATS:
        return x
    hidden = ~valid[:, None, :, None] if name == "query_feature_mass" else ~valid[:, None]
    return x.masked_fill(hidden, float("nan") if name in MEAN_STATS else 0.0)
