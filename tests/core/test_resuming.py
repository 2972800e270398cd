"""Interrupted captures go on with what is whole, and finished ones answer the probes."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from tests.core.test_capture import PROMPTS
from tests.test_runs import make, same
from tests.tiny import tiny
from workbench.probes import tables
from workbench.runfiles import MANIFEST, PARTS, QK, STATS, TOKENS
from workbench.runs import RunWriter
from workbench.stats import concat


@pytest.mark.parametrize("name", [STATS, QK, TOKENS, MANIFEST])
@pytest.mark.parametrize("harm", ["cut", "remove"])
def test_a_part_that_was_cut_off_is_made_again(tmp_path, name, harm):
    parts = [make({i: 3 + i}) for i in range(2)]
    first = RunWriter(tmp_path / "run", key="k", manifest={})
    for i, part in enumerate(parts):
        first.add(i, part)
    path = tmp_path / "run" / PARTS / "000000" / name
    path.write_bytes(path.read_bytes()[:-9]) if harm == "cut" else path.unlink()
    again = RunWriter(tmp_path / "run", key="k", manifest={})
    if (name, harm) == (QK, "remove"):
        # Not every run keeps q and k, so this one looks whole.
        assert again.damaged == ()
        return
    assert again.damaged == (0,)
    assert [again.has(i) for i in range(2)] == [False, True]
    again.add(0, parts[0])
    same(again.finish().stats, concat(parts))


def test_a_damaged_part_is_captured_again_and_said_so(tmp_path) -> None:
    model, said = tiny("llama"), []

    def stop(done, total, message):
        said.append(message)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wb.capture(model, PROMPTS, batch_size=1, out=tmp_path / "run", progress=stop)
    file = tmp_path / "run" / PARTS / "000001" / STATS
    file.write_bytes(file.read_bytes()[:100])
    resumed = wb.capture(model, PROMPTS, batch_size=1, out=tmp_path / "run", progress=stop)
    again = ["made again" in message for message in said[2:]]
    assert again == [False, True, False]
    fresh = wb.capture(model, PROMPTS, batch_size=1)
    for variable in fresh.data.data_vars:
        assert np.array_equal(resumed[variable], fresh[variable], equal_nan=True), variable


def test_a_run_from_python_holds_what_the_probes_say(tmp_path) -> None:
    stats = wb.capture(tiny("llama"), PROMPTS, out=tmp_path / "run")
    heads = wb.open_run(tmp_path / "run").heads
    found, left_out = tables(stats)
    assert found and not set(found) & set(left_out)
    for name, table in found.items():
        for column, stored in (("value", name), ("null", f"{name}_null")):
            assert np.allclose(heads[stored], table[column], equal_nan=True), stored
