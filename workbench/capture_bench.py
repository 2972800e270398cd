"""A whole model's capture: against its own `output_attentions=True`, and against its own plan.

    workbench bench capture --model zoo:mix-3l --lengths 2048,8192
    workbench bench long --lengths 32768

`capture`: the same text in one run of each side. The eager side only holds the maps it returns and
computes nothing from them; ours takes every default statistic. `long`: a text for which maps are
out of the question, through a decoder with random weights (2 layers of 4 heads of 32): what the
plan announced beside what was measured, and what the maps would have taken.

Each measurement runs in a process of its own, so that its peak memory is its own. Memory is the
peak resident size above that after loading.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from workbench.kernels.attention_stats.bench import describe_machine, say
from workbench.kernels.attention_stats.bench_one import peak_mb
from workbench.planning import human

METHODS = ("capture", "maps", "long")
LENGTHS, LONG_LENGTHS = (1024, 2048, 4096), (32768,)
# The decoder of `long`.
LAYERS, HEADS, WIDTH, VOCABULARY = 2, 4, 32, 512


def run(lengths: Sequence[int] = LENGTHS, model: str = "zoo:mix-3l") -> dict[str, Any]:
    """Measure and print; ends with `ratio NAME VALUE` lines (how many times less ours needs).

    Returns {"machine", "model", "rows", "ratios"}. Raises RuntimeError when a measurement's process
    failed.
    """
    machine = describe_machine(None)
    say(f"machine {machine}")
    rows, ratios = [], {}
    for length in lengths:
        found = {method: _measure(model, length, method) for method in ("capture", "maps")}
        for method, row in found.items():
            rows.append({"method": method, "length": length, **row})
            say(
                f"{method:8s} L={length:6d} {row['seconds']:9.2f} s {row['extra_mb']:9.1f} MB extra"
            )
        ratios[f"capture_time_{length}"] = found["maps"]["seconds"] / found["capture"]["seconds"]
        ratios[f"capture_memory_{length}"] = found["maps"]["extra_mb"] / max(
            found["capture"]["extra_mb"], 0.1
        )
    for name, value in ratios.items():
        say(f"ratio {name} {value:.2f}")
    return {"machine": machine, "model": model, "rows": rows, "ratios": ratios}


def run_long(lengths: Sequence[int] = LONG_LENGTHS) -> dict[str, Any]:
    """Measure and print; ends with `ratio NAME VALUE` lines: announced over measured.

    Returns {"machine", "model", "rows", "ratios"}. Raises RuntimeError when a measurement's process
    failed.
    """
    machine, model = describe_machine(None), f"{LAYERS} layers of {HEADS} heads of {WIDTH}, random"
    say(f"machine {machine}")
    say(f"model {model}")
    rows, ratios = [], {}
    for length in lengths:
        row = {"length": length, **_measure("", length, "long")}
        rows.append(row)
        plan, done = f"plan     L={length:6d}", f"capture  L={length:6d}"
        say(f"{plan} {row['plan_seconds']:9.2f} s {row['plan_mb']:9.1f} MB extra")
        cpu = f"{row['cpu_seconds']:9.2f} cpu s"
        say(f"{done} {row['seconds']:9.2f} s {row['extra_mb']:9.1f} MB extra {cpu}")
        say(f"maps     L={length:6d} {human(row['maps_mb'] * 2**20)}, not made")
        ratios[f"plan_over_time_{length}"] = row["plan_seconds"] / row["seconds"]
        # The plan speaks of one processor.
        ratios[f"plan_over_cpu_{length}"] = row["plan_seconds"] / row["cpu_seconds"]
        ratios[f"plan_over_memory_{length}"] = row["plan_mb"] / max(row["extra_mb"], 0.1)
        ratios[f"maps_over_memory_{length}"] = row["maps_mb"] / max(row["extra_mb"], 0.1)
    for name, value in ratios.items():
        say(f"ratio {name} {value:.2f}")
    return {"machine": machine, "model": model, "rows": rows, "ratios": ratios}


def _measure(model: str, length: int, method: str) -> dict[str, float]:
    command = [sys.executable, "-m", "workbench.capture_bench", model, str(length), method]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"measuring {method} at {length} tokens failed: {done.stderr.strip()[-300:]}"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def _one(name: str, length: int, method: str) -> dict[str, float]:
    import torch

    import workbench as wb

    if method == "long":
        model = wb.load(_decoder(length))
    else:
        model = wb.load(name, attention="eager" if method == "maps" else None)
    config: Any = getattr(model.net.config, "text_config", model.net.config)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (length,), generator=generator).tolist()
    announced = _announced(wb.plan(model, [ids]), length) if method == "long" else {}
    take = _maps if method == "maps" else wb.capture
    # The first pass through a network pays for lazy imports and allocations on either side.
    _ = take(model, [ids[:64]])
    before, start, start_cpu = peak_mb(), time.perf_counter(), time.process_time()
    held = take(model, [ids])
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    del held
    return {"seconds": seconds, "cpu_seconds": cpu, "extra_mb": peak_mb() - before} | announced


def _announced(plan: Any, length: int) -> dict[str, float]:
    """What the plan says, and the float32 maps `output_attentions` would hold."""
    return {
        "plan_seconds": plan.seconds,
        "plan_mb": plan.peak_bytes / 2**20,
        "maps_mb": LAYERS * HEADS * length**2 * 4 / 2**20,
    }


def _decoder(length: int) -> Any:
    """A small network with random weights and room for `length` tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=LAYERS, hidden_size=HEADS * WIDTH, num_attention_heads=HEADS,
        intermediate_size=4 * HEADS * WIDTH, vocab_size=VOCABULARY, bos_token_id=1,
        eos_token_id=2, max_position_embeddings=length,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _maps(model: Any, prompts: list[list[int]]) -> Any:
    import torch

    with torch.no_grad():
        return model.net(input_ids=torch.tensor(prompts), output_attentions=True).attentions


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("length", type=int)
    parser.add_argument("method", choices=METHODS)
    a = parser.parse_args()
    print(json.dumps(_one(a.model, a.length, a.method)))  # noqa: T201
