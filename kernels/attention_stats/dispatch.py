"""Which implementation computes a call: by name, or the first that can.

A backend is a module with `attention_stats(q, k, want, **terms)`, `pattern(q, k, rows, **terms)`,
`available(device_type)` and `refuses(q, want, terms)`: the name of the first thing it does not
support, or None. Nothing is imported before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_HERE = "workbench.kernels.attention_stats."
BACKENDS: dict[str, Callable[[], ModuleType]] = {
    "naive": lambda: import_module(_HERE + "reference"),
    "torch": lambda: import_module(_HERE + "torch_blockwise"),
    "stock": lambda: import_module(_HERE + "stock"),
    "triton": lambda: import_module(_HERE + "triton"),
}
# What "auto" tries, best first. Triton is left out until tests/kernels/test_triton.py has run on a
# GPU, stock because it is slower than the strips on a CPU: both are asked for by name.
AUTO_ORDER = ("torch",)


def choose(backend: str, q: torch.Tensor, want: Sequence[str], terms: dict[str, Any]) -> ModuleType:
    """The backend's module; ValueError naming what it is not, or does not support."""
    kind = q.device.type
    if backend == "auto":
        for name in AUTO_ORDER:
            module = BACKENDS[name]()
            if module.available(kind) and not module.refuses(q, want, terms):
                return module
        backend = "torch"
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; expected auto, {', '.join(BACKENDS)}.")
    module = BACKENDS[backend]()
    if not module.available(kind):
        usable = ", ".join(available_backends(kind)) or "another device"
        raise ValueError(f"the backend {backend!r} does not run on {kind}; expected {usable}.")
    refused = module.refuses(q, want, terms)
    if refused:
        raise ValueError(
            f"the backend {backend!r} does not support {refused}; expected it to be left out."
        )
    return module


def available_backends(device: Any = "cpu") -> tuple[str, ...]:
    """Names of the backends that run on `device`, the one "auto" takes first."""
    kind = str(device).split(":")[0]
    usable = [name for name, load in BACKENDS.items() if load().available(kind)]
    return tuple(
        sorted(usable, key=lambda name: AUTO_ORDER.index(name) if name in AUTO_ORDER else 99)
    )
