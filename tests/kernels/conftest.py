"""Shared by the kernel tests: the comparison with the float64 specification, the refusals, and
poisoned memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.cases import errors, relative_error
from workbench.kernels.attention_stats import attention_stats
from workbench.kernels.attention_stats.checks import check_qk, check_terms
from workbench.kernels.attention_stats.dispatch import choose
from workbench.kernels.attention_stats.terms import TERMS

# Scripts and cases of `triton_worker.py`, which runs them in processes of their own.
collect_ignore_glob = ["triton_*.py"]
REFUSED = r"^the backend '\w+' does not support .+; expected it to be left out\.$"


@pytest.fixture
def close() -> Callable[..., float]:
    """relative_error as a fixture."""
    return relative_error


@pytest.fixture
def agree() -> Callable[..., dict[str, float]]:
    """Compares a backend with `naive` on the same values, prints the achieved errors, returns
    them."""

    def run(
        q: torch.Tensor,
        k: torch.Tensor,
        tolerance: float,
        want: Any,
        backend: str,
        **terms: Any,
    ) -> dict[str, float]:
        found = errors(backend, q, k, want, terms)
        worst = max(found, key=lambda name: found[name])
        print(f"largest relative error {found[worst]:.1e} ({worst}), allowed {tolerance:.0e}")
        wrong = {name: f"{error:.1e}" for name, error in found.items() if not error <= tolerance}
        assert not wrong, f"allowed {tolerance:.0e}, reached {wrong}"
        return found

    return run


@pytest.fixture
def supported() -> Callable[..., list[str]]:
    """Which statistics of `want` a backend computes; the others it must refuse by the documented
    sentence, never by another error and never by a number."""

    def run(backend: str, q: torch.Tensor, k: torch.Tensor, want: Any, **terms: Any) -> list[str]:
        given = dict.fromkeys(TERMS) | {"causal": False} | terms
        checked = check_terms(check_qk(q, k), given, q.device, k.shape[1])
        usable = []
        for name in want:
            try:
                choose(backend, q, (name,), checked)
            except ValueError:
                with pytest.raises(ValueError, match=REFUSED) as caught:
                    attention_stats(q, k, [name], backend=backend, **terms)
                assert f"backend {backend!r}" in str(caught.value)
            else:
                usable.append(name)
        return usable

    return run


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uninitialised float memory holds NaN, integers the lowest value: whatever is read unwritten
    shows."""

    def fill(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            x = make(*args, **kwargs)
            if x.dtype == torch.bool:
                return x.fill_(True)
            return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).min)

        return made

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, fill(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", fill(torch.Tensor.new_empty))
    yield


@pytest.fixture(scope="session")
def run_worker(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Runs the cases of `triton_<mode>.py` in a process of their own and returns what it prints;
    modes that begin with "interpret" get triton's interpreter."""

    def run(mode: str) -> dict[str, Any]:
        cache = tmp_path_factory.mktemp(mode)
        environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
        environment.pop("TRITON_INTERPRET", None)
        if mode.startswith("interpret"):
            environment["TRITON_INTERPRET"] = "1"
        worker = Path(__file__).with_name("triton_worker.py")
        done = subprocess.run(
            [sys.executable, str(worker), mode],
            env=environment, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
