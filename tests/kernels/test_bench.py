"""The CPU benchmarks at tiny sizes: what they print, what they fit, whom they compare.

The numbers themselves are not tested: times belong to a machine. The eager side of the comparison
is the reference of its own kind, so both sides must agree; fits are checked on planted powers.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from workbench.kernels.attention_stats import bench, bench_base, bench_curve, bench_one


def named(output: str, word: str = "ratio") -> dict[str, float]:
    """The values of `ratio NAME VALUE` lines."""
    lines = [line.split() for line in output.splitlines() if line.startswith(word + " ")]
    assert all(len(line) == 3 for line in lines)
    return {line[1]: float(line[2]) for line in lines}


def planted(powers: dict[str, tuple[float, float]], calls: list[Any]) -> Callable[..., Any]:
    """A measurement whose time and memory are powers of the length, per method; below 100 tokens
    something else dominates."""

    def measure(method: str, length: int, **settings: Any) -> dict[str, Any]:
        calls.append((method, length, settings))
        time, memory = powers[method]
        start = 1e3 if length < 100 else 0.0
        return {
            "method": method, "length": length, "seconds": 1e-6 * length**time + start,
            "cpu_seconds": 2e-6 * length**time + start, "extra_mb": 1e-3 * length**memory,
        }  # fmt: skip

    return measure


def test_both_sides_compute_the_same(close: Callable[..., float]) -> None:
    given = bench_one.inputs(128)
    eager, ours = bench_one.eager_stats(**given), bench_one.blockwise_stats(**given)
    assert set(eager) == set(ours) == set(bench_one.WANT)
    errors = {name: close(ours[name], eager[name]) for name in bench_one.WANT}
    worst = max(errors, key=lambda name: errors[name])
    print(f"largest relative error {errors[worst]:.1e} ({worst})")
    # Two float32 paths: twice what one may be off from float64.
    assert errors[worst] <= 4e-5


def test_the_made_up_lse_is_about_right() -> None:
    """Normal logits of deviation 2: its error is that of a mean of few exponentials."""
    given = bench_one.inputs(512)
    exact = bench_one.blockwise_stats(**given, want=("lse",))["lse"]
    off = (bench_one.expected_lse(12, 512) - exact)[..., 100:].mean().abs()
    assert float(off) < 0.3


def here(method: str, length: int, **settings: Any) -> dict[str, Any]:
    """`bench.measure` without its process."""
    usual = {"heads": 12, "threads": None, "repeats": 1, "want": bench_one.WANT}
    return bench_one.measure_here(method, length, **{**usual, **settings})


def test_stats_prints_ratios(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "measure", here)
    report = bench.run([96], repeats=1)
    output = capsys.readouterr().out
    assert output.startswith("machine ")
    ratios = {f"{name}_96" for name in ("stats_time", "stats_cpu", "stats_memory", "map_time")}
    methods = ["map", "eager", "torch"]
    if "stock is not measured" not in output:
        ratios |= {"stock_time_96", "stock_cpu_96"}
        methods += ["stock", "torch_few"]
    assert set(named(output)) == ratios
    assert named(output) == pytest.approx(report["ratios"], abs=0.006)
    assert [row["method"] for row in report["rows"]] == methods
    assert all(row["seconds"] > 0 and row["extra_mb"] >= 0 for row in report["rows"])


def test_a_measurement_in_a_process_of_its_own() -> None:
    row = bench.measure("columns", 300, heads=3, threads=1, repeats=1)
    assert (row["method"], row["length"], row["heads"], row["threads"]) == ("columns", 300, 3, 1)
    assert 0 < row["seconds"] < 5
    assert row["extra_mb"] < 100


def test_a_failed_measurement_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"measuring torch --length 0 .* ended with 1"):
        bench.measure("torch", 0, repeats=1)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponent_of_a_planted_power(power: float) -> None:
    lengths = [512 * 2**i for i in range(7)]
    values = [3.0 * n**power for n in lengths]
    # What the short ones say does not count: the lower half is fixed cost.
    values[:3] = [1e6] * 3
    assert bench_curve.exponent(lengths, values) == pytest.approx(power, abs=1e-9)
    assert bench_curve.exponent(lengths[::-1], values[::-1]) == pytest.approx(power, abs=1e-9)


def test_exponent_needs_two_values_above_zero() -> None:
    assert bench_curve.exponent([512, 1024, 2048, 4096], [1.0, 1.0, 0.0, 5.0]) is None
    assert bench_curve.exponent([512], [1.0]) is None


def test_curve_fits_and_says_what_it_skips(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    powers = {"torch": (2, 1), "columns": (1.9, 1), "band": (1, 1), "eager": (2.1, 2)}
    calls: list[Any] = []
    monkeypatch.setattr(bench_curve, "measure", planted(powers, calls))
    # Eager needs 16 MB at 512 tokens of two heads, 56 MB at 1024.
    report = bench_curve.run([1024, 64, 512, 128, 256], limit_mb=30)
    output = capsys.readouterr().out
    exponents = named(output, "exponent")
    for path, method in bench_curve.PATHS.items():
        for name, power in zip(("time", "memory"), powers[method], strict=True):
            assert exponents[f"{path}_{name}"] == pytest.approx(power, abs=0.006)
    assert exponents == pytest.approx(report["exponents"], abs=0.006)
    assert "skipped eager L=1024: needs about 56 MB, over the limit\n" in output
    assert [(x["path"], x["length"]) for x in report["skipped"]] == [("eager", 1024)]
    assert ("eager", 512) in {call[:2] for call in calls}
    assert ("eager", 1024) not in {call[:2] for call in calls}
    assert "heads 2 of width 64; a measurement may take 30 MB" in output
    with pytest.raises(ValueError, match="at least two lengths, got \\[512\\]"):
        bench_curve.run([512])


def test_every_path_of_the_curve_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_curve, "measure", here)
    rows = bench_curve.run([64, 96], heads=1)["rows"]
    assert [row["path"] for row in rows] == [*bench_curve.PATHS] * 2
    assert all(row["seconds"] > 0 and row["heads"] == 1 for row in rows)
    assert "machine " in capsys.readouterr().out


# Another commit


@pytest.fixture
def checkout() -> Path:
    """The checkout the tests run in."""
    try:
        return bench_base.checkout_root()
    except ValueError as error:
        pytest.skip(str(error))


def trees(root: Path) -> str:
    command = ["git", "-C", str(root), "worktree", "list"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow  # a process per measurement
def test_head_against_this(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_base, "ROUNDS", 1)
    before = trees(checkout)
    report = bench_base.run("HEAD", [64], threads=1, repeats=1)
    assert trees(checkout) == before
    assert [row["side"] for row in report["rows"]] == ["this", "base"]
    ratios = named(capsys.readouterr().out)
    assert set(ratios) == {f"this_over_base_{name}_64" for name in ("time", "cpu", "memory")}
    best = {
        side: min(row["seconds"] for row in report["rows"] if row["side"] == side)
        for side in ("this", "base")
    }
    assert ratios["this_over_base_time_64"] == pytest.approx(best["this"] / best["base"], abs=6e-4)
    assert set(report["want"]) <= set(bench_one.WANT)


def test_rounds_alternate_and_the_fastest_counts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A base that takes twice the time and a third of the memory; every second run is disturbed."""
    order: list[str] = []

    def measure(method: str, length: int, *, tree: Path | None, **settings: Any) -> dict[str, Any]:
        side = "base" if tree else "this"
        slow = 5.0 * (order.count(side) % 2)
        order.append(side)
        seconds, extra = {"this": (1.0, 9.0), "base": (2.0, 3.0)}[side]
        return {
            "method": method, "length": length, "seconds": seconds + slow,
            "cpu_seconds": seconds + slow, "extra_mb": extra + slow,
        }  # fmt: skip

    monkeypatch.setattr(bench_base, "measure", measure)
    monkeypatch.setattr(bench_base, "checkout_root", lambda: tmp_path)
    monkeypatch.setattr(bench_base, "resolve", lambda root, base: "0" * 40)
    monkeypatch.setattr(bench_base, "worktree", lambda root, commit: nullcontext(tmp_path))
    monkeypatch.setattr(bench_base, "common", lambda tree, base: ("lse",))
    report = bench_base.run("old", [64])
    assert order == ["this", "base", "base", "this", "this", "base"]
    assert report["ratios"]["this_over_base_time_64"] == 0.5
    assert named(capsys.readouterr().out)["this_over_base_memory_64"] == 3.0


def test_the_other_checkout_is_removed_when_stopped(checkout: Path) -> None:
    before, commit = trees(checkout), bench_base.resolve(checkout, "HEAD")
    with pytest.raises(KeyboardInterrupt), bench_base.worktree(checkout, commit) as tree:
        assert (tree / "kernels/attention_stats/__init__.py").exists()
        assert str(tree) in trees(checkout)
        raise KeyboardInterrupt
    assert not tree.parent.exists()
    assert trees(checkout) == before


def test_what_cannot_be_compared_is_one_sentence(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="there is no revision 'no-such-thing' in "):
        bench_base.run("no-such-thing", [64])
    with pytest.raises(ValueError, match="there is no revision '--all' in "):
        bench_base.run("--all", [64])
    # An empty tree: this commit's package must not answer in its place.
    with pytest.raises(ValueError, match="the revision 'old' has no kernels/attention_stats"):
        bench_base.common(tmp_path, "old")
    monkeypatch.setattr(bench_base, "__file__", str(tmp_path / "bench_base.py"))
    with pytest.raises(ValueError, match="needs a git checkout of the workbench"):
        bench_base.run("HEAD", [64])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="needs git, which is missing"):
        bench_base.run("HEAD", [64])


# A whole model, and the command


@pytest.mark.slow  # loads transformers in a process of its own
def test_long_capture_against_its_plan(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    from workbench import capture_bench

    report = capture_bench.run_long([96])
    output = capsys.readouterr().out
    plan = {f"plan_over_{name}_96" for name in ("time", "cpu", "memory")}
    assert set(named(output)) == {*plan, "maps_over_memory_96"}
    assert named(output) == pytest.approx(report["ratios"], abs=0.006)
    row = report["rows"][0]
    # Two layers of four heads of float32 maps.
    assert row["maps_mb"] == 2 * 4 * 96 * 96 * 4 / 2**20
    assert "maps     L=    96 288.0 KB, not made" in output
    assert row["plan_mb"] > 0 and row["seconds"] > 0


def command(*arguments: str) -> Any:
    testing = pytest.importorskip("typer.testing")
    from workbench import cli

    return testing.CliRunner().invoke(cli.app, ["bench", *arguments])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none"], "there is no benchmark 'none'; known: stats, curve, capture, long, gpu."),
        (["stats", "--lengths", "0"], "--lengths '0' is not a list of numbers"),
        (
            ["gpu", "--base", "x"],
            "--base does not belong to the benchmark 'gpu'; it takes --budget",
        ),
        (["curve", "--model", "m"], "--model does not belong to the benchmark 'curve'"),
        (["stats", "--json", "absent/x.json"], "there is no directory absent"),
        (["stats", "--base", "no-such-thing"], "revision"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str) -> None:
    done = command(*arguments)
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())


def test_json_holds_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    powers = {"torch": (2, 1), "columns": (2, 1), "band": (1, 1), "eager": (2, 2)}
    calls: list[Any] = []
    monkeypatch.setattr(bench_curve, "measure", planted(powers, calls))
    file = tmp_path / "curve.json"
    done = command("curve", "--lengths", "128, 256", "--heads", "3", "--json", str(file))
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert set(found) == {"machine", "heads", "limit_mb", "rows", "skipped", "exponents"}
    assert (found["heads"], len(found["rows"])) == (3, 8)
    assert all(settings == {"heads": 3, "threads": None} for _, _, settings in calls)
    assert [x.name for x in tmp_path.iterdir()] == ["curve.json"]


def test_a_row_for_people() -> None:
    row = {"method": "torch", "length": 512, "seconds": 1.5, "cpu_seconds": 2.0, "extra_mb": 3.0}
    assert (
        bench.line_of(row)
        == "torch         L=   512    1.5000 s    2.0000 cpu s       3.0 MB extra"
    )
