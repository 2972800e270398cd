"""The numpy specification behind the torch interface: converts, calls `naive`, converts back. Any
device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from workbench.kernels.attention_stats import naive
from workbench.kernels.attention_stats.terms import INT_STATS
from workbench.kernels.attention_stats.variants import LowRankBias


def refuses(q: torch.Tensor, want: Sequence[str], terms: dict[str, Any]) -> str | None:  # noqa: ARG001
    """Nothing."""
    return None


def available(device_type: str) -> bool:  # noqa: ARG001 - every device can hand its values to numpy
    """Everywhere: the values are copied to the host."""
    return True


def attention_stats(
    q: torch.Tensor, k: torch.Tensor, want: tuple[str, ...], **terms: Any
) -> dict[str, torch.Tensor]:
    """`naive.attention_stats` on tensors."""
    found = naive.attention_stats(_numpy(q), _numpy(k), want, **_all_numpy(terms))
    return _tensors(found, q)


def pattern(q: torch.Tensor, k: torch.Tensor, rows: slice, **terms: Any) -> torch.Tensor:
    """Rows of `naive.pattern` as a tensor [B, H, R, K]."""
    p = naive.pattern(_numpy(q), _numpy(k), **_all_numpy(terms))
    return torch.from_numpy(p[:, :, rows].copy()).to(q.device, _dtype(q))


def stats_from_pattern(
    p: torch.Tensor, want: tuple[str, ...], **terms: Any
) -> dict[str, torch.Tensor]:
    """`naive.stats_from_pattern` on tensors."""
    return _tensors(naive.stats_from_pattern(_numpy(p), want, **_all_numpy(terms)), p)


def _numpy(x: torch.Tensor) -> Any:
    x = x.detach().cpu()
    return (x.double() if x.is_floating_point() else x).numpy()


def _all_numpy(terms: dict[str, Any]) -> dict[str, Any]:
    found = {name: _numpy(x) if isinstance(x, torch.Tensor) else x for name, x in terms.items()}
    bias = found.get("bias")
    if isinstance(bias, LowRankBias):
        found["bias"] = replace(bias, left=_numpy(bias.left), right=_numpy(bias.right))
    return found


def _dtype(like: torch.Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _tensors(found: dict[str, Any], like: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(x.copy()).to(
            like.device, torch.int64 if name in INT_STATS else _dtype(like)
        )
        for name, x in found.items()
    }
