"""The device of the GPU benchmark: its clock and memory, its rates, its name."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any


class Clock:
    """Events of the device, or the processor's clock where there is no GPU."""

    def __init__(self, device: str) -> None:
        import torch

        self.torch, self.gpu = torch, device == "cuda"

    def wait(self) -> None:
        if self.gpu:
            self.torch.cuda.synchronize()

    def once(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """(seconds until the device is done, result)."""
        self.wait()
        start = time.perf_counter()
        result = call()
        self.wait()
        return time.perf_counter() - start, result

    def times(self, call: Callable[[], Any], n: int) -> list[float]:
        """Seconds of `n` runs, queued one behind the other."""
        if not self.gpu:
            return [self.once(call)[0] for _ in range(n)]
        marks = [self.torch.cuda.Event(enable_timing=True) for _ in range(2 * n)]
        for begin, end in zip(marks[::2], marks[1::2], strict=True):
            begin.record()
            call()
            end.record()
        self.wait()
        pairs = zip(marks[::2], marks[1::2], strict=True)
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]

    def peak_mb(self, call: Callable[[], Any]) -> tuple[float | None, float, Any]:
        """(MB of the device above what is held now, seconds, result)."""
        if not self.gpu:
            return None, *self.once(call)
        self.torch.cuda.reset_peak_memory_stats()
        before = self.torch.cuda.memory_allocated()
        seconds, result = self.once(call)
        return (self.torch.cuda.max_memory_allocated() - before) / 2**20, seconds, result

    def free_mb(self) -> float:
        return self.torch.cuda.mem_get_info()[0] / 2**20 if self.gpu else 1024.0


def roof(what: str, clock: Clock, device: str) -> dict[str, Any]:
    """Rates nothing can exceed: a large bfloat16 matmul on random data, a large copy."""
    import torch

    small = device == "cpu"
    if what == "copy":
        x = torch.randn(2**16 if small else 2**31, device=device, dtype=torch.bfloat16)
        y = torch.empty_like(x)
        clock.once(lambda: y.copy_(x))
        seconds = min(clock.times(lambda: y.copy_(x), 20))
        return {"seconds": seconds, "bytes_per_second": 2 * x.nbytes / seconds}
    found: dict[str, Any] = {"flop_per_second": 0.0}
    for n in (128,) if small else (8192, 16384):
        a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))

        def product(a: torch.Tensor = a, b: torch.Tensor = b) -> torch.Tensor:
            return a @ b

        # The clock rises in the first runs and falls under load.
        clock.times(product, 10)
        seconds = statistics.median(clock.times(product, 30))
        if 2 * n**3 / seconds > found["flop_per_second"]:
            found |= {"seconds": seconds, "flop_per_second": 2 * n**3 / seconds, "n": n}
        if clock.gpu:
            for _ in range(int(0.5 / seconds)):
                product()
            found["under_load"] = graphics_card()
            clock.wait()
    return found


def graphics_card() -> dict[str, str]:
    """What nvidia-smi says of the first card; empty where it is missing."""
    fields = (
        "name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw",
        "power.limit", "temperature.gpu", "memory.total",
    )  # fmt: skip
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = done.stdout.strip().splitlines()[:1]
    return dict(zip(fields, [x.strip() for x in ",".join(values).split(",")], strict=False))


def machine() -> dict[str, Any]:
    """The device and the versions, as this process sees them."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    found: dict[str, Any] = {
        "device": "cuda" if torch.cuda.is_available() else "cpu", "torch": torch.__version__,
        "python": platform.python_version(), "numpy": of("numpy"), "triton": of("triton"),
        "flash_colreduce": of("flash-colreduce"),
    }  # fmt: skip
    if found["device"] == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "name": card.name, "multiprocessors": card.multi_processor_count,
            "capability": f"{card.major}.{card.minor}", "memory_mb": card.total_memory / 2**20,
            "cuda": torch.version.cuda, "hip": torch.version.hip, "card": graphics_card(),
        }  # fmt: skip
    return found
