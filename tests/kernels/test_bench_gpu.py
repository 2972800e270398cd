"""The GPU benchmark without a GPU: its bounds against the arithmetic of a known card, what a
failure costs, the budget, what counts as wrong, and some of it tiny in triton's interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from workbench.kernels.attention_stats import (
    attention_stats,
    bench_gpu,
    bench_gpu_cases,
    bench_gpu_parity,
    bench_gpu_work,
    pattern,
)
from workbench.kernels.attention_stats.bench_gpu_cases import Case, Size

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
LONG = Size(32, 8, 128, True, 131072, 131072)
MACHINE = {"device": "cuda", "multiprocessors": 132, "card": {"clocks.max.sm": "1755 MHz"}}


def test_bounds_of_an_h200() -> None:
    """790 TFLOP/s and 132 multiprocessors at 1.755 GHz, 32 heads, causal, 131072 tokens: one sweep
    of width 128 is 89 ms of products (75 of exponentials), of width 64 it is 74 of exponentials (45
    of products)."""
    card = {"rate": 790e12, "multiprocessors": 132, "clock_hz": 1.755e9}
    bound = Case("lse", LONG).bound(**card)
    assert bound == pytest.approx(2 * 128 * 32 * 131072**2 / 2 / 790e12, rel=1e-4)
    assert bound == pytest.approx(0.0891, rel=2e-3)
    assert Case("two_pass", LONG).bound(**card) == pytest.approx(2 * 0.0891, rel=2e-3)
    narrow = Size(32, 8, 64, True, 131072, 131072)
    assert Case("columns", narrow).bound(**card) == pytest.approx(0.0742, rel=2e-3)
    full = Size(32, 8, 128, False, 131072, 131072)
    assert Case("lse", full).bound(**card) == pytest.approx(0.1781, rel=2e-3)
    # A forward pass of attention is not bounded by sweeps of ours, nor a matmul.
    assert Case("sdpa", LONG).bound(**card) is None
    assert Case("matmul").bound(**card) is None
    # What the forward pass is counted with: 4 L^2 D H, half of it when causal.
    assert Case("sdpa", LONG).flop == pytest.approx(4 * 131072**2 * 128 * 32 / 2, rel=1e-4)


@pytest.mark.parametrize("smoke", [False, True])
def test_every_case_can_be_made(smoke: bool) -> None:
    found = bench_gpu_cases.cases(smoke)
    assert len({case.name for case in found}) == len(found)
    known = {*bench_gpu_work.METHODS, *bench_gpu_work.EAGER, "matmul", "copy", "parity"}
    assert {case.what for case in found} == known
    assert {case.variant for case in found if case.what == "parity"} == {*bench_gpu_cases.PARITY}
    assert set(bench_gpu_cases.SWEEPS) == {*bench_gpu_work.METHODS, *bench_gpu_work.EAGER}


def test_roofs_and_parity_come_first_and_the_rest_fits() -> None:
    found = bench_gpu_cases.cases(smoke=False)
    whats = [case.what for case in found]
    timed = [i for i, case in enumerate(found) if case.size and case.size.keys >= 8192]
    assert max(whats.index("matmul"), whats.index("copy"), whats.index("parity")) < timed[0]
    # A million tokens of one key head, ten times slower than the products alone: inside the budget.
    longest = max((case for case in found if case.size), key=lambda case: case.flop)
    assert longest.size is not None
    assert (longest.size.keys, longest.size.kv_heads) == (2**20, 1)
    assert longest.guess < bench_gpu.BUDGET / 5


# Failures and the budget


class Pretender:
    """A worker that answers from a table and remembers whom it was asked."""

    rows: ClassVar[dict[str, dict[str, Any]]] = {}
    asked: ClassVar[list[str]] = []
    started: ClassVar[list[Any]] = []
    machine = MACHINE

    def __init__(self, folder: Path, smoke: bool) -> None:
        self.folder, self.smoke = folder, smoke
        self.started.append(self)

    def measure(self, name: str, seconds: float) -> dict[str, Any]:
        assert seconds > 0
        self.asked.append(name)
        usual = {"seconds": 0.5, "first_seconds": 2.5, "peak_mb": 4.0, "runs": 3}
        return dict(self.rows.get(name, usual))

    def end(self) -> None:
        pass


@pytest.fixture
def pretender(monkeypatch: pytest.MonkeyPatch) -> type[Pretender]:
    """The pretender in place of the process, and four cases to ask it for."""
    made = [
        Case("matmul"),
        *(Case(what, LONG) for what in ("two_pass", "sdpa", "eager", "full")),
        Case("parity", variant="timed"),
    ]
    monkeypatch.setattr(bench_gpu, "cases", lambda smoke: made)
    monkeypatch.setattr(bench_gpu, "Worker", Pretender)
    tag = LONG.tag
    rows = {
        "matmul": {"seconds": 0.1, "flop_per_second": 790e12},
        f"two_pass {tag}": {"seconds": 0.3, "first_seconds": 2.5, "peak_mb": 4.0},
        f"sdpa {tag}": {"seconds": 0.6, "first_seconds": 0.7, "peak_mb": 8.0},
        f"eager {tag}": {"skipped": "one head's map needs about 1 MB, and 0 are free"},
        "parity timed": {"refused": {}, "errors": {"lse": 1e-7}, "unequal": [], "bits_differ": []},
    }
    for name, value in (("rows", rows), ("asked", []), ("started", [])):
        monkeypatch.setattr(Pretender, name, value)
    return Pretender


def test_what_is_reported(
    pretender: type[Pretender], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    report = bench_gpu.run(file)
    assert json.loads(file.read_text()) == json.loads(json.dumps(report))
    assert [x.name for x in tmp_path.iterdir()] == ["gpu.json"]
    keys = {
        "machine", "budget", "smoke", "rows", "left_out", "finished", "ratios", "compile",
        "unequal",
    }  # fmt: skip
    assert set(report) == keys
    assert report["finished"] and not report["unequal"] and not report["left_out"]
    assert report["ratios"][f"sdpa_over_two_pass_{LONG.tag}"] == pytest.approx(2.0)
    # Two sweeps are bounded by 0.178 s here, and took 0.3 s.
    assert report["ratios"][f"bound_over_two_pass_{LONG.tag}"] == pytest.approx(0.594, abs=1e-3)
    row = report["rows"][1]
    assert row["tflops"] == pytest.approx(Case("two_pass", LONG).flop / 0.3 / 1e12)
    assert report["compile"][f"two_pass {LONG.tag}"] == pytest.approx(2.2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("machine ")
    assert f"ratio sdpa_over_two_pass_{LONG.tag} 2.000" in lines
    assert f"compile two_pass_{LONG.tag} 2.20" in lines
    assert any("skipped: one head's map needs" in line for line in lines)
    assert lines[-2:] == ["unequal 0", "failed 0"]


def test_one_failure_costs_one_line(
    pretender: type[Pretender], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exception, then a process that dies: the rest is measured, by another process."""
    pretender.rows[f"two_pass {LONG.tag}"] = {"error": "CompilationError: no", "sick": False}
    pretender.rows[f"sdpa {LONG.tag}"] = {"error": "the process ended with -11: ", "sick": True}
    report = bench_gpu.run(tmp_path / "gpu.json")
    assert len(pretender.asked) == len(report["rows"]) == 6
    assert len(pretender.started) == 2
    assert [row["name"].split()[0] for row in report["rows"] if "error" in row] == [
        "two_pass", "sdpa",
    ]  # fmt: skip
    assert "sick" not in report["rows"][2]
    assert report["finished"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"failed 2: two_pass {LONG.tag}, sdpa {LONG.tag}"


def test_a_device_that_does_not_come_back(
    pretender: type[Pretender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretender.rows[f"two_pass {LONG.tag}"] = {"error": "launch failure", "sick": True}
    file = tmp_path / "gpu.json"

    def start(folder: Path, smoke: bool) -> Pretender:
        if pretender.started:
            raise RuntimeError("the measuring process does not start: no device")
        return pretender(folder, smoke)

    monkeypatch.setattr(bench_gpu, "Worker", start)
    report = bench_gpu.run(file)
    assert not report["finished"]
    assert [row["what"] for row in json.loads(file.read_text())["rows"]] == ["matmul", "two_pass"]


def test_what_the_budget_leaves_out_is_named(
    pretender: type[Pretender], capsys: pytest.CaptureFixture[str]
) -> None:
    """With 15 s: a roof and a parity may take 20, two sweeps of this length 12, eager 45."""
    report = bench_gpu.run(None, budget=15)
    left_out = [x["name"].split()[0] for x in report["left_out"]]
    assert left_out == ["matmul", "eager", "parity"]
    assert [row["what"] for row in report["rows"]] == ["two_pass", "sdpa", "full"]
    assert report["finished"]
    output = capsys.readouterr().out
    assert "left out matmul: may take 20 s and 15 s are left\n" in output


def test_a_parity_that_does_not_hold_is_said(
    pretender: type[Pretender], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"refused": {}, "errors": {"lse": 1e-7, "key_mass": 0.5}, "unequal": ["key_mass"]}
    pretender.rows["parity timed"] = wrong | {"bits_differ": []}
    pretender.rows[f"full {LONG.tag}"] = {
        "seconds": 1.0, "first_seconds": 1.0, "peak_mb": 1.0, "mass_error": float("nan"),
    }  # fmt: skip
    report = bench_gpu.run(None)
    assert report["unequal"] == [f"full {LONG.tag}", "parity timed"]
    output = capsys.readouterr().out
    assert "wrong 2 statistics, largest error 0.5; wrong: {'key_mass': 0.5}" in output
    assert "MASSES OFF BY nan" in output


def test_refusals(pretender: type[Pretender], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no measurement has 'colour' in its name"):
        bench_gpu.run(None, only="colour")
    monkeypatch.setattr(pretender, "machine", {"device": "cpu"})
    with pytest.raises(ValueError, match="torch sees no GPU here; --smoke runs the same"):
        bench_gpu.run(None)


# The process itself


def test_a_process_that_dies_is_an_answer(tmp_path: Path) -> None:
    worker = bench_gpu.Worker(tmp_path, smoke=True)
    try:
        assert worker.machine["torch"] == torch.__version__
        assert worker.measure("copy", 60)["bytes_per_second"] > 0
        # A name nobody knows is a fault of ours: the process dies of it.
        unknown = worker.measure("colour", 60)
        assert "KeyError" in unknown["error"] and unknown["sick"]
        assert "ended with" in worker.measure("copy", 60)["error"]
    finally:
        worker.end()
    worker = bench_gpu.Worker(tmp_path, smoke=True)
    try:
        worker.process.kill()
        assert "the process ended with -9" in worker.measure("copy", 60)["error"]
    finally:
        worker.end()


def test_no_answer_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"print({bench_gpu.MARK!r} + '{{}}', flush=True); import time; time.sleep(60)"
    real = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", code], **options)

    monkeypatch.setattr(bench_gpu.subprocess, "Popen", start)
    worker = bench_gpu.Worker(tmp_path, smoke=False)
    try:
        assert worker.measure("copy", 1) == {"error": "no answer after 1 s; stopped", "sick": True}
    finally:
        worker.end()


def test_it_needs_nothing_but_torch_triton_and_numpy(root: Path) -> None:
    code = (
        "import sys\n"
        "from workbench.kernels.attention_stats import bench_gpu, bench_gpu_work\n"
        "from workbench.kernels.attention_stats import bench_gpu_parity, triton\n"
        "from workbench.kernels.attention_stats import bench_gpu_device\n"
        "bench_gpu_device.machine()\n"
        "others = {'xarray', 'pandas', 'scipy', 'typer', 'rich', 'transformers', 'safetensors'}\n"
        "assert not others & set(sys.modules), others & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_a_map_that_does_not_fit_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size(4, 2, 16, True, 256, 256)
    inputs = bench_gpu_work.Inputs.of(size, "cpu")
    clock = bench_gpu_work.Clock("cpu")
    whole = bench_gpu_work.EAGER["eager_sum"](inputs, clock)()
    assert [tuple(x.shape) for x in whole] == [(1, 4, 256)]
    # 256^2 pairs of 10 bytes a head, 4 beside: 2 MB are two heads at a time, 0.5 MB none.
    monkeypatch.setattr(clock, "free_mb", lambda: 2.0)
    parts = bench_gpu_work.EAGER["eager_sum"](inputs, clock)()
    assert [x.shape[1] for x in parts] == [2, 2]
    torch.testing.assert_close(torch.cat(parts, 1), whole[0])
    monkeypatch.setattr(clock, "free_mb", lambda: 0.5)
    with pytest.raises(bench_gpu_work.Skipped, match="one head's map needs about 1 MB"):
        bench_gpu_work.EAGER["eager_sum"](inputs, clock)


# What counts as wrong


def through(spoil: Callable[[dict[str, torch.Tensor]], None]) -> Callable[..., Any]:
    """attention_stats whose Triton backend is the specification, spoilt."""

    def call(q: Any, k: Any, want: Any, backend: str, **terms: Any) -> dict[str, torch.Tensor]:
        if backend == "naive":
            return attention_stats(q, k, want, backend=backend, **terms)
        found = attention_stats(q, k, want, backend="naive", **terms)
        spoil(found)
        return found

    return call


@pytest.mark.parametrize("variant", bench_gpu_cases.PARITY)
def test_parity_holds_for_the_specification_itself(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_gpu_parity, "attention_stats", through(lambda found: None))
    row = bench_gpu_parity.parity(variant, "cpu", smoke=True)
    assert row["unequal"] == []
    assert row["errors"] or row["refused"]


def test_parity_notices_one_wrong_statistic(monkeypatch: pytest.MonkeyPatch) -> None:
    """One column off by 1e-4 of itself; one row that is not NaN; the second call another bit."""
    calls: list[int] = []

    def spoil(found: dict[str, torch.Tensor]) -> None:
        calls.append(1)
        found["key_mass"][0, 0, 3] *= 1.0001
        found["entropy"][0, 1, 5] = float("nan")
        found["self_mass"][0, 0, 0] += 1e-7 * len(calls)

    monkeypatch.setattr(bench_gpu_parity, "attention_stats", through(spoil))
    row = bench_gpu_parity.parity("timed", "cpu", smoke=True)
    assert set(row["unequal"]) == {"key_mass", "entropy"}
    assert row["errors"]["key_mass"] == pytest.approx(1e-4, rel=0.05)
    assert row["bits_differ"] == ["self_mass"]


def test_parity_tries_statistics_alone_when_all_together_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = through(lambda found: None)

    def call(q: Any, k: Any, want: Any, backend: str, **terms: Any) -> Any:
        if backend == "triton" and "key_mass" in want:
            raise RuntimeError("out of registers")
        return honest(q, k, want, backend, **terms)

    monkeypatch.setattr(bench_gpu_parity, "attention_stats", call)
    row = bench_gpu_parity.parity("timed", "cpu", smoke=True)
    assert row["unequal"] == ["key_mass"]
    assert row["errors"]["key_mass"] == "RuntimeError: out of registers"
    assert row["errors"]["lse"] < 1e-5
    assert row["bits_differ"] == []

    def only_alone(q: Any, k: Any, want: Any, backend: str, **terms: Any) -> Any:
        if backend == "triton" and len(want) > 1:
            raise RuntimeError("too many")
        return honest(q, k, want, backend, **terms)

    monkeypatch.setattr(bench_gpu_parity, "attention_stats", only_alone)
    assert bench_gpu_parity.parity("timed", "cpu", smoke=True)["unequal"] == ["all together"]


def test_tied_keys_are_compared_by_weight() -> None:
    q, k = torch.zeros(1, 1, 3, 4).double(), torch.zeros(1, 1, 3, 4).double()
    p = pattern(q, k, backend="naive")
    zero, two = torch.zeros(1, 1, 3, dtype=torch.long), torch.full((1, 1, 3), 2)
    assert bench_gpu_parity.error_of("argmax", two, zero, p) == 0.0
    p[..., 2] = 0.1
    assert bench_gpu_parity.error_of("argmax", two, zero, p) == pytest.approx(0.7)
    assert bench_gpu_parity.error_of("n_visible", two, zero, p) == float("inf")


# All of it


@needs_triton
@pytest.mark.slow  # triton's interpreter
@pytest.mark.parametrize("only", ["causal_h2x1_d32_32", "parity t"])
def test_smoke(only: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    report = bench_gpu.run(file, only=only, smoke=True)
    assert json.loads(file.read_text())["finished"]
    output = capsys.readouterr().out
    failed = {row["name"]: row["error"] for row in report["rows"] if "error" in row}
    assert not failed
    assert report["unequal"] == []
    if only.startswith("parity"):
        assert "equal" in output
        return
    assert [row["what"] for row in report["rows"]] == [
        "lse", "columns", "two_pass", "full", "given", "everything",
    ]  # fmt: skip
    assert all(row["seconds"] > 0 for row in report["rows"])
    assert all(row["mass_error"] < 1e-5 for row in report["rows"] if row["what"] == "full")
    assert output.count("compile ") == 6
