"""The log-sum-exp of the rows, from the model's own attention: its fused kernel returns it anyway.

    with lse_of_forward() as seen:
        out = attention(...)
    stats = attention_stats(q, k, ["key_mass", "waad"], lse=seen.lse, ...)

With it the statistics that look at few keys per query cost no sweep over the map, and column
statistics one instead of two. The output of the block keeps its bits: the operations that run are
those that would have run. Cost: some microseconds of Python for every operation inside the block,
so put it around the attention call and not around the model.

What the kernels return (FlashAttention, Dao et al. 2022, arXiv:2205.14135): lse of the logits they
saw, scale and additive mask included, natural log, a learned sink or a softcap only if it went in
as a part of q, k or the mask. A row that sees no key has no lse, and they do not say so: torch on a
CPU gives 0.0 where the mask is bool or -inf, and about -3.4e38 where it is the most negative
float32. Treat rows with n_visible = 0 apart; attention_stats does.

None where there is nothing to take: attention written out in matrix products, torch's math backend
(dropout, values of another width than q, a mask that needs a gradient), a kernel that was told not
to store it (the memory-efficient and cuDNN ones on a GPU, when no gradient is recorded). Seen on a
CPU only; the CUDA operations are matched by their schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
# All take the query first and return (output, lse, ...).
_FUSED = (
    _ATEN._scaled_dot_product_flash_attention_for_cpu,
    _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_efficient_attention,
    _ATEN._scaled_dot_product_cudnn_attention,
)


@dataclass
class Seen:
    """What ran inside `lse_of_forward`: one (query, lse) shape and tensor per fused attention."""

    calls: list[tuple[torch.Size, torch.Tensor]] = field(default_factory=list)

    @property
    def lse(self) -> torch.Tensor | None:
        """A copy, float32 [B, H, Q], natural log; None unless exactly one fused attention ran."""
        if len(self.calls) != 1:
            return None
        (b, h, n_q, _), lse = self.calls[0]
        # Kernels on a GPU may round Q up, cuDNN adds a dim of one.
        rows = lse.detach().reshape(b, h, -1)[..., :n_q] if lse.numel() else lse
        if rows.shape != (b, h, n_q):
            return None
        return rows.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


@contextmanager
def lse_of_forward() -> Iterator[Seen]:
    """Records the lse of the fused attention that runs inside; yields a `Seen`, filled on the way.

    Works with gradients, under torch.no_grad and under torch.inference_mode.
    """
    seen = Seen()
    with _Recorder(seen):
        yield seen


class _Recorder(TorchDispatchMode):
    """Sees every operation below autograd, runs it, keeps the lse of fused attention."""

    # Without these two torch refuses flex_attention, and compiles nothing, inside a mode.
    supports_higher_order_operators = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _ATEN.scaled_dot_product_attention.default:
            # Under inference mode the choice of a kernel arrives here undecided.
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if _packet(func) in _FUSED:
            self.seen.calls.append((args[0].shape, out[1]))
        return out


def _packet(func: Any) -> Callable | None:
    return func.overloadpacket if isinstance(func, torch._ops.OpOverload) else None
