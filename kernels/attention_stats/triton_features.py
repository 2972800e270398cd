"""Features of the keys for the tensor cores of the row pass: float16 columns, and the way back.

role_mass, feature_mass, value_mass and output are all P F for some F [K, features]. Memberships are
exact in float16. Other features are divided by a power of two per column, so that the largest lies
between 2^13 and 2^14, and are the sum of a high and a low part, 22 bits; one part is enough for
what came in 16 bits.

Dims: B batch, H query heads, Hkv key/value heads, K keys, F features, C columns, S segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workbench.kernels.attention_stats.triton_call import Call

# Statistics that are sums over features of the keys, and the features behind them.
SOURCES = {
    "role_mass": "role_mass",
    "segment_mean": "role_mass",
    "feature_mass": "feature_mass",
    "value_mass": "value_mass",
    "output": "output",
}


@dataclass(frozen=True)
class Features:
    """One statistic's columns: float16 [B, 1 or Hkv, K, C], C = F or 2 F; `unit` [B, 1 or Hkv, F]
    is what the columns were divided by, None for memberships."""

    name: str
    columns: torch.Tensor
    unit: torch.Tensor | None

    def restore(self, sums: torch.Tensor, n_heads: int) -> torch.Tensor:
        """Sums of the features [B, H, Q, F] from those of the columns [B, H, Q, C]."""
        if self.unit is None:
            return sums
        n = self.unit.shape[-1]
        total = sums[..., :n] if sums.shape[-1] == n else sums[..., :n] + sums[..., n:]
        return total * self.unit.repeat_interleave(n_heads // self.unit.shape[1], 1)[:, :, None]


def features_of(call: Call, want: frozenset[str]) -> list[Features]:
    """The columns behind the statistics in `want`, one entry per source."""
    found = []
    for source in dict.fromkeys(SOURCES[name] for name in SOURCES if name in want):
        if source == "role_mass":
            found.append(Features(source, _members(call, "key_segments")[:, None], None))
            continue
        x = call.terms["key_features" if source == "feature_mass" else "v"]
        x = _cleared(call, x)
        if source == "value_mass":
            x = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
        found.append(Features(source, *_parts(x)))
    return found


def segment_mean(call: Call, mass: torch.Tensor) -> torch.Tensor:
    """segment_mean [B, H, S, S] from role_mass [B, H, Q, S] in float64."""
    rows, keys = _members(call, "query_segments").double(), _members(call, "key_segments").double()
    valid = call.terms["query_valid"]
    if valid is not None:
        mass, rows = torch.where(valid[:, None, :, None], mass, 0.0), rows * valid[..., None]
    total = torch.einsum("bqs,bhqt->bhst", rows, mass)
    # NaN where either is empty: the mean of nothing.
    return total / (rows.sum(1)[:, :, None] * keys.sum(1)[:, None])[:, None]


def _members(call: Call, name: str) -> torch.Tensor:
    """Membership of the queries or keys, float16 [B, tokens, S]."""
    x, n = call.terms[name], call.terms["n_segments"]
    if x.dim() == 2:
        return (x[..., None] == torch.arange(n, device=x.device)).half()
    return x.transpose(1, 2).half()


def _cleared(call: Call, x: torch.Tensor) -> torch.Tensor:
    """Features, 0 at keys that no query sees: those may hold anything."""
    seen = call.counts()["key_count"].amax(1) > 0
    return x.masked_fill(~seen[:, None, :, None], 0.0)


def _parts(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(columns, unit) of features [B, 1 or Hkv, K, F]; unit float32."""
    short = x.dtype in (torch.float16, torch.bfloat16)
    x = x.float() if short else x
    # By its bits: a power that is off by one rounding would cost all of the low part.
    exponent = torch.frexp(x.abs().amax(2)).exponent.int() - 14
    unit = ((exponent + 127).clamp(1, 254) << 23).view(torch.float32)
    scaled = x / unit[:, :, None]
    high = scaled.half()
    return high if short else torch.cat([high, (scaled - high).half()], -1), unit
