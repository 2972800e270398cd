"""Columns, bands and maps of the Triton path without a GPU: numbers from triton's interpreter, code
from its compiler, each in a process of its own (`triton_worker.py`), once per module.

Allowed errors: 2e-5 relative to float64 (achieved: at most 4e-6), 1e-4 for logits of +-80
(achieved: 6e-5, that of a variance, which moves twice as far as its weights). No GPU has run any of
this.

The compiler's budgets are per target: registers of a thread, and instructions of the inner loop
per score (for NVIDIA; the listing of the other is not read). Nothing may spill.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

INTERPRETED = (
    "full", "causal", "causal_window", "window_of_one", "two_sided_window",
    "offset_before_the_keys", "window_that_left_the_keys", "sink_and_rows_that_see_nothing",
    "softcap", "mask", "bias_that_hides_and_alibi", "packed_sequences", "causal_sequences",
    "decode_step", "length_one", "scale_below_zero", "padding_that_holds_nan", "logits_of_eighty",
    "one_key_a_thousand_times_heavier", "other_widths_and_float16", "views_of_models", "no_queries",
    "few_keys_and_many_queries", "blocks_of_any_size", "horizons", "windows_wider_than_the_map",
    "features_of_unlike_size", "keys_that_receive_next_to_nothing",
    "variance_of_nearly_equal_weights", "same_bits_twice", "sums_hold",
)  # fmt: skip
ALLOWED = 2e-5
OTHERWISE = {"logits_of_eighty": 1e-4, "variance_of_nearly_equal_weights": 2e-7}
# (registers, instructions per score): what 3.7.1 needs, and a tenth more. A wave of gfx942 has 512
# registers for a thread of a block of four waves.
BUDGET: dict[str, dict[str, tuple[int, float]]] = {
    "sum and maximum, 64": {
        "sm_80": (185, 9.0), "sm_90": (130, 6.1), "sm_100": (183, 5.9), "gfx942": (254, 0),
    },
    "sum and maximum, 128": {
        "sm_80": (255, 11.4), "sm_90": (226, 6.2), "sm_100": (242, 6.5), "gfx942": (340, 0),
    },
    "blocks": {
        "sm_80": (255, 13.5), "sm_90": (224, 10.6), "sm_100": (255, 11.9), "gfx942": (254, 0),
    },
    "diagonals": {
        "sm_80": (185, 10.0), "sm_90": (216, 9.5), "sm_100": (249, 9.1), "gfx942": (233, 0),
    },
    "near keys": {
        "sm_80": (180, 35.3), "sm_90": (141, 31.0), "sm_100": (140, 33.2), "gfx942": (133, 0),
    },
    "sum": {"sm_90": (206, 5.0)},
    "window and padding": {"sm_90": (255, 8.8)},
    "variance": {"sm_90": (255, 14.2)},
    "entropy": {"sm_90": (201, 19.8)},
    "64 features": {"sm_90": (255, 16.5)},
    "every statistic": {"sm_90": (233, 23.7)},
    "mask": {"sm_90": (255, 59.2)},
    "terms without a matrix": {"sm_90": (202, 39.4)},
    "width 256": {"sm_90": (175, 11.0)},
    "float32": {"sm_90": (79, 0)},
    "small blocks": {"sm_90": (235, 12.2)},
    "ragged blocks": {"sm_90": (255, 22.8)},
    "keys of each query": {"sm_90": (120, 0)},
}  # fmt: skip
# Exact products of float32, and single dot products: no tensor core does them.
PLAIN = ("float32", "keys of each query")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
]


@pytest.fixture(scope="module")
def interpreted(run_worker: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return run_worker("interpret_columns")


@pytest.fixture(scope="module")
def compiled(run_worker: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return run_worker("compile_columns")


def result_of(report: dict[str, Any], name: str) -> dict[str, Any]:
    assert "error" not in report[name], report[name]["error"]
    print(f"{name}: {report[name]['seconds']} s")
    return report[name]["result"]


@pytest.mark.parametrize("name", INTERPRETED)
def test_equals_the_specification(name: str, interpreted: dict[str, Any]) -> None:
    errors = result_of(interpreted, name)
    allowed = OTHERWISE.get(name, ALLOWED)
    if errors:
        worst = max(errors, key=lambda statistic: errors[statistic])
        print(f"largest relative error {errors[worst]:.1e} ({worst}), allowed {allowed:.0e}")
    assert all(error <= allowed for error in errors.values()), errors


@pytest.mark.parametrize("name", BUDGET)
def test_compiles_within_budget(name: str, compiled: dict[str, Any]) -> None:
    found = result_of(compiled, name)
    assert set(found) == set(BUDGET[name])
    for target, (registers, per_score) in BUDGET[name].items():
        code = found[target]
        print(target, code)
        assert (code["stack"], code["spilled"]) == (0, 0)
        assert code["registers"] <= registers
        assert code.get("per_score", 0) <= per_score
        assert (code["mma"] > 0) is (name not in PLAIN)


def test_the_worker_and_these_lists_agree(
    interpreted: dict[str, Any], compiled: dict[str, Any]
) -> None:
    assert set(interpreted) == set(INTERPRETED)
    assert set(compiled) == set(BUDGET)
