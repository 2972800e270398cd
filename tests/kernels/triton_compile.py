"""Compilations of the Triton kernels for GPUs that are not here, run by `triton_worker.py`; see
`test_triton.py`.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

CASES: dict[str, Callable[[], Any]] = {}

TARGETS: dict[str, tuple[str, Any]] = {
    "sm_80": ("cuda", 80),
    "sm_90": ("cuda", 90),
    "sm_100": ("cuda", 100),
}
TARGETS["gfx942"] = ("hip", "gfx942")
POINTERS = {
    "p_q": "*bf16", "p_k": "*bf16", "p_valid": "*i8", "p_query_ids": "*i32", "p_key_ids": "*i32",
    "p_features": "*fp16", "p_at": "*i32", "p_mask": "*i8", "p_query_seq": "*i32",
    "p_key_seq": "*i32", "p_bounds": "*i32", "p_block": "*i32", "p_key": "*i32", "p_g": "*fp16",
}  # fmt: skip
FLOATS = ("factor", "inner", "power", "per_factor")
# What a capture asks for by default, on a causal map without padding.
TERMS = {"VALID": False, "SOFTCAP": False, "MASK": False, "BIAS": False, "ALIBI": False}
TERMS |= {"SEQUENCE": False, "CAUSAL": True, "WINDOW": False}
FLAGS: dict[str, dict[str, Any]] = {
    "row_kernel": TERMS | {
        "FEATURES": 16, "SHARP": True, "ARGMAX": True, "DISTANCE": True, "POWER": 0,
        "REPEATS": False,
    },
    "peak_kernel": TERMS,
    "chosen_kernel": TERMS,
}  # fmt: skip


def build(kernel: str, target: str, width: int, dtype: str = "bf16", **flags: Any) -> Any:
    """Compile for a target that is not here. Returns (compiled kernel, block sizes)."""
    import torch

    from workbench.kernels.attention_stats.triton_call import Tiles
    from workbench.kernels.attention_stats.triton_rows import crowded

    kind, _ = TARGETS[target]
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    flags = FLAGS[kernel] | flags
    crowd = kernel == "row_kernel" and crowded(flags)
    tiles = Tiles.of(kind, kinds[dtype], width, columns=False, crowded=crowd)
    where = "row" if kernel == "row_kernel" else "topk"
    function = getattr(
        import_module(f"workbench.kernels.attention_stats.triton_{where}_kernels"), kernel
    )
    # The strides are those of tensors made here: 1 along the last dim.
    constants: dict[str, Any] = {
        "PRECISION": "ieee", "BLOCK_Q": tiles.queries, "BLOCK_K": tiles.keys,
        "BLOCK_D": tiles.width, "WIDTH": width, "stride_qd": 1, "stride_kd": 1, "mask_k": 1,
        "bias_k": 1, **flags,
    }  # fmt: skip
    return compiled(function, constants, tiles, target, dtype), tiles


def compiled(function: Any, constants: dict[str, Any], tiles: Any, target: str, dtype: str) -> Any:
    """A kernel with those of the compile-time arguments that it has."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kind, arch = TARGETS[target]
    constants = {name: x for name, x in constants.items() if name in function.arg_names}
    signature, attributes = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.startswith("p_"):
            signature[name] = POINTERS.get(name, "*fp32").replace("bf16", dtype)
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
        if name.startswith(("p_", "stride", "feature", "mask", "bias")) and name not in constants:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constants, attributes)
    options = {
        "num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": True,
    }  # fmt: skip
    warp = 64 if kind == "hip" else 32
    return triton.compile(source, target=GPUTarget(kind, arch, warp), options=options)


def inspect(kernel: str, target: str, width: int, **flags: Any) -> dict[str, Any]:
    """`measure` of a kernel of the rows."""
    made, tiles = build(kernel, target, width, **flags)
    return measure(made, tiles, target)


def measure(made: Any, tiles: Any, target: str) -> dict[str, Any]:
    """Registers, spills, tensor core instructions, and instructions per score of the inner loop."""
    found: dict[str, Any] = {"shared": made.metadata.shared}
    if target.startswith("gfx"):
        text = made.asm["amdgcn"]
        for name, key in (
            ("registers", "vgpr_count"), ("spilled", "vgpr_spill_count"),
            ("stack", "private_segment_fixed_size"),
        ):  # fmt: skip
            found[name] = int(re.findall(rf"\.{key}:\s+(\d+)", text)[-1])
        found["mma"] = len(re.findall(r"v_mfma", text))
        return found
    ptx = made.asm["ptx"]
    instruction = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}
    found["mma"] = ptx.count(instruction[target])
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [tools / tool, flag, file.name], capture_output=True, text=True, check=True
            ).stdout
            for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    found["registers"] = int(re.findall(r"REG:(\d+)", usage)[-1])
    found["stack"] = int(re.findall(r"STACK:(\d+)", usage)[-1])
    found["spilled"] = len(re.findall(r"\b(?:STL|LDL)\b", code))
    per_thread = tiles.queries * tiles.keys / (32 * tiles.warps)
    found["per_score"] = round(loop_length(code) / per_thread, 2)
    return found


def loop_length(code: str) -> int:
    """Instructions of the shortest loop that holds a tensor core instruction. Jumps back from
    behind the end return from waits that were moved there; they close no loop."""
    labels, jumps, mma, ends = {}, [], [], []
    at = 0
    for line in code.splitlines():
        label = re.match(r"\s*(\.L_\w+):", line)
        if label:
            labels[label[1]] = at
        if not re.match(r"\s*/\*[0-9a-f]{4,}\*/", line):
            continue
        at += 1
        if re.search(r"\b(?:HGMMA|HMMA|UTCHMMA|UTCQMMA|UTCMMA)", line):
            mma.append(at)
        if re.search(r"\*/\s+EXIT", line):
            ends.append(at)
        jump = re.search(r"\bBRA(?:\.\w+)*\s.*?\(?`?\(?(\.L_\w+)", line)
        if jump:
            jumps.append((at, jump[1]))
    loops = [
        (at - labels[to])
        for at, to in jumps
        if labels.get(to, at) < at
        and any(labels[to] < x <= at for x in mma)
        and not any(labels[to] < x <= at for x in ends)
    ]
    return min(loops, default=0)


def _default(kernel: str, width: int, **flags: Any) -> Callable[[], Any]:
    return lambda: {target: inspect(kernel, target, width, **flags) for target in TARGETS}


def _case(kernel: str, width: int, **flags: Any) -> Callable[[], Any]:
    return lambda: {"sm_90": inspect(kernel, "sm_90", width, **flags)}


CASES["row_kernel 64"] = _case("row_kernel", 64)
CASES["row_kernel 128"] = _default("row_kernel", 128)
# What a capture asks for least.
LEAST = {"FEATURES": 0, "SHARP": False, "ARGMAX": False, "DISTANCE": False}
CASES["row_kernel lse"] = _case("row_kernel", 128, **LEAST)
CASES["row_kernel lse, mask"] = _case("row_kernel", 128, **LEAST, MASK=True)
CASES["row_kernel lse, bias"] = _case("row_kernel", 128, **LEAST, BIAS=True)
CASES["row_kernel output"] = _case("row_kernel", 128, **LEAST | {"FEATURES": 64})
# Every statistic, then every branch at once.
CASES["row_kernel statistics"] = _case("row_kernel", 128, REPEATS=True, POWER=2, FEATURES=32)
SOME = {"WINDOW": True, "VALID": True, "SOFTCAP": True, "ALIBI": True, "SEQUENCE": True}
CASES["row_kernel terms"] = _case("row_kernel", 80, **SOME)
CASES["row_kernel everything"] = _case(
    "row_kernel", 80, **SOME, MASK=True, BIAS=True, REPEATS=True, POWER=2
)
CASES["row_kernel float32"] = _case("row_kernel", 64, dtype="fp32")
CASES["peak_kernel"] = _default("peak_kernel", 128)
CASES["peak_kernel everything"] = _case("peak_kernel", 80, **SOME, MASK=True, BIAS=True)
CASES["chosen_kernel"] = _case("chosen_kernel", 128)
