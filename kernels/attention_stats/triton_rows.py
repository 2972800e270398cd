"""The row pass of the Triton path: launches it, adds up its splits, and turns unnormalised float32
sums into statistics, in float64 over [B, H, Q].

Dims: B batch, H query heads, G = H // Hkv, Q queries, K keys, D width, S segments, F features, P
splits of the keys.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from workbench.kernels.attention_stats.triton_call import LN2, LOG2E, Call
from workbench.kernels.attention_stats.triton_features import SOURCES, features_of, segment_mean

# The planes of the row pass's float output, in the kernel's order.
SUMS = (
    "top", "others", "tied", "spread", "distance", "distance_sq", "participation",
    "duplicate_mass", "induction_mass",
)  # fmt: skip
# What each flag of the kernel pays for.
_SHARP = {"entropy"}
_DISTANCE = {"distance", "distance_sq"}
REPEATS = {"duplicate_mass", "induction_mass"}
# Columns of features that the registers hold: beside other statistics, and alone.
_BESIDE, _ALONE = 32, 64

Sums = dict[str, torch.Tensor]


def row_pass(call: Call, want: frozenset[str]) -> Sums:
    """Running sums over all keys: SUMS and "argmax" [B, H, Q], and those of SOURCES that are wanted
    [B, H, Q, F], all relative to 2^(factor * top)."""
    features = features_of(call, want)
    if not features:
        return _rows_once(call, want, None)
    h_f = max(x.columns.shape[1] for x in features)
    columns = torch.cat([x.columns.expand(-1, h_f, -1, -1) for x in features], -1)
    beside = want & (_SHARP | _DISTANCE | REPEATS | {"argmax", "participation"})
    width = _BESIDE if beside else _ALONE
    first = _rows_once(call, want, columns[..., :width])
    rest = [
        _rows_once(call, frozenset(), columns[..., at : at + _ALONE])["share"]
        for at in range(width, columns.shape[-1], _ALONE)
    ]
    each = torch.cat([first["share"], *rest], -1).split([x.columns.shape[-1] for x in features], -1)
    for x, part in zip(features, each, strict=True):
        first[x.name] = x.restore(part, call.shape[1])
    return first


def crowded(flags: dict[str, Any]) -> bool:
    """Whether a row pass with these flags of the kernel has room for half as many keys only."""
    heavy = flags["SHARP"] or flags["DISTANCE"] or flags["FEATURES"]
    return bool(heavy and any(flags[x] for x in ("MASK", "BIAS", "SEQUENCE", "REPEATS")))


def _flags(call: Call, want: frozenset[str], columns: int) -> dict[str, Any]:
    """The compile-time arguments of the row kernel that follow from what is wanted."""
    return call.flags() | {
        "FEATURES": columns and max(16, 1 << (columns - 1).bit_length()),
        "VALID": call.terms["key_valid"] is not None,
        "SHARP": bool(want & _SHARP),
        "ARGMAX": "argmax" in want,
        "DISTANCE": bool(want & _DISTANCE),
        "POWER": (2 if call.terms["power"] == 2 else 1) if "participation" in want else 0,
        "REPEATS": bool(want & REPEATS),
    }


def _rows_once(call: Call, want: frozenset[str], features: torch.Tensor | None) -> Sums:
    """One launch; `features` float16 [B, 1 or Hkv, K, C] become "share" [B, H, Q, C]."""
    b, h, n_q = call.shape
    n, device = 0 if features is None else features.shape[-1], call.q.device
    flags = _flags(call, want, n)
    tiles = call.tiles(crowded=crowded(flags))
    blocks = -(-n_q // tiles.queries)
    splits = call.splits(blocks * h * b, -(-call.geometry.n_k // tiles.keys))
    sums = torch.empty(len(SUMS), splits, b, h, n_q, dtype=torch.float32, device=device)
    at = torch.empty(splits, b, h, n_q, dtype=torch.int32, device=device)
    wide = (splits, b, h, n_q, flags["FEATURES"])
    share = torch.empty(wide, dtype=torch.float32, device=device)
    # A pointer that is not used still has to be one.
    strides, query_ids, key_ids = (0, 0), at, at
    if features is not None:
        features = torch.nn.functional.pad(features, (0, wide[-1] - n)).contiguous()
        strides = (features.stride(0), features.stride(1) if features.shape[1] > 1 else 0)
    if flags["REPEATS"]:
        query_ids, key_ids = _ranks(call)
    power = float(call.terms["power"])
    if sums.numel():
        from workbench.kernels.attention_stats.triton_row_kernels import row_kernel

        row_kernel[(blocks * splits, h, b)](
            call.q, call.k, call.valid_keys(), query_ids, key_ids,
            at if features is None else features, *strides, call.row_bounds(tiles.queries), sums,
            at, share, splits, power, *call.sizes(), *call.extras(), **flags,
            **call.constants(tiles),
        )  # fmt: skip
    found = dict(zip(SUMS, sums, strict=True)) | {"argmax": at, "share": share[..., :n]}
    return _merged(found, want, call.factor, power)


def _merged(sums: Sums, want: frozenset[str], factor: float, power: float) -> Sums:
    """The sums of all keys from those of each split, [P, B, H, Q] to [B, H, Q]: brought to the
    largest of the maxima. Planes that were not asked for hold nothing."""
    if sums["top"].shape[0] == 1:
        return {name: x[0] for name, x in sums.items()}
    top = sums["top"].double()
    most = top.amax(0)
    down = (top - most) * factor
    weight = torch.exp2(down)
    # The first run of keys that has the largest holds the first key that has it.
    best = (down == 0).int().argmax(0, keepdim=True)
    found = {"top": most, "argmax": sums["argmax"].gather(0, best)[0]}
    for name in (*_DISTANCE, *REPEATS):
        found[name] = (sums[name].double() * weight).sum(0)
    found["participation"] = (sums["participation"].double() * torch.exp2(down * power)).sum(0)
    found["share"] = (sums["share"].double() * weight[..., None]).sum(0)
    others, tied, spread = (sums[name].double() for name in ("others", "tied", "spread"))
    if not want & _SHARP:
        return found | {"others": (others * weight).sum(0), "tied": sums["tied"][0]}
    below = torch.where(down < 0, tied, 0.0)
    found["others"] = ((others + below) * weight).sum(0)
    found["tied"] = (tied - below).sum(0)
    found["spread"] = ((spread + down * (tied + others)) * weight).sum(0)
    return found


def _ranks(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids as small numbers, others in every packed sequence: int32 [B, Q], and [B, 1 + K]
    with -1 before the first key and for padding."""
    ids = torch.cat([call.terms["query_ids"].long(), call.terms["key_ids"].long()], 1)
    rank = ids.unique(return_inverse=True)[1]
    if call.sequences is not None:
        apart = rank + ids.numel() * torch.cat(call.sequences, 1)
        rank = apart.unique(return_inverse=True)[1]
    queries, keys = rank.int().split([call.geometry.n_q, call.geometry.n_k], 1)
    if call.terms["key_valid"] is not None:
        keys = keys.masked_fill(~call.terms["key_valid"], -1)
    return queries.contiguous(), torch.nn.functional.pad(keys, (1, 0), value=-1).contiguous()


class Rows:
    """The row pass's sums, normalised. All in float64 over [B, H, Q]."""

    def __init__(self, call: Call, want: frozenset[str]) -> None:
        self.call, self.sums = call, row_pass(call, want)
        sharp = bool(want & _SHARP)
        top, others = self.sums["top"].double(), self.sums["others"].double()
        self.blind = top < -1e29
        # Without the largest terms counted apart, the others hold one of them.
        tied = self.sums["tied"].double() if sharp else torch.ones_like(others)
        others = others if sharp else others - 1.0
        top = torch.where(self.blind, 0.0, top * call.factor)
        self.total = torch.where(self.blind, 1.0, tied + others)
        rest = torch.where(self.blind, 0.0, others + (tied - 1.0))
        sink = call.terms["sink_logit"]
        if sink is None:
            self.sink = self.null = None
            self.shift, self.weight = top, torch.ones_like(top)
            self.log_total = torch.log1p(rest)
        else:
            self.sink = sink.double()[None, :, None].expand_as(top)
            sink2 = self.sink * LOG2E
            self.shift = torch.maximum(top, sink2)
            self.weight = torch.exp2(top - self.shift)
            self.null = torch.exp2(sink2 - self.shift)
            over = sink2 > top
            self.log_total = torch.log1p(
                torch.where(over, self.total * self.weight, rest + self.null)
            )
        self.depth = top - self.shift
        self.inverse = torch.where(self.blind, 0.0, torch.exp(-self.log_total))

    def lse(self) -> torch.Tensor:
        """Natural log [B, H, Q]; of a row that sees nothing the sink logit, or -inf."""
        bare = -math.inf if self.sink is None else self.sink
        return torch.where(self.blind, bare, self.shift * LN2 + self.log_total)

    def statistics(self, want: frozenset[str]) -> dict[str, torch.Tensor]:
        """What the row pass has of the statistics in `want`."""
        share = self.weight * self.inverse
        found: dict[str, torch.Tensor] = {}
        for name in want:
            if name == "lse":
                found[name] = self.lse()
            elif name == "entropy":
                nats = (self.log_total - LN2 * self.depth) * self.total
                found[name] = (nats - LN2 * self.sums["spread"].double()) * share
            elif name == "max_prob":
                found[name] = share
            elif name == "argmax":
                found[name] = torch.where(self.blind, 0, self.sums[name])
            elif name == "null_mass":
                found[name] = self._null_mass()
            elif name == "participation":
                found[name] = self.sums[name].double() * share ** float(self.call.terms["power"])
            elif name == "segment_mean":
                found[name] = segment_mean(self.call, self.sums["role_mass"] * share[..., None])
            elif name == "value_mass":
                found[name] = self.sums[name][..., 0] * share
            elif name in SOURCES:
                # Not in float64: these are the largest of all results.
                found[name] = self.sums[name].float() * share.float()[..., None]
            elif name in self.sums:
                found[name] = self.sums[name].double() * share
        return found

    def _null_mass(self) -> torch.Tensor:
        if self.null is None or self.sink is None:
            return torch.zeros_like(self.inverse)
        bare = (self.sink > -math.inf).double()
        return torch.where(self.blind, bare, self.null * self.inverse)
