"""What a capture will do and cost, before it starts: a pure function of the model's shape and the
lengths.

Memory is counted from the arrays that are made; time from measured rates of the CPU path (stated in
the plan as an estimate).  A plan that does not fit names the largest setting that does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.schema import EXTENTS, SCHEMA, extent
from workbench.spec import AttentionSite, Spec

# One CPU core: nanoseconds per (query, key) pair and head, beside those per dimension of a head:
# of the forward's own attention, of a sweep over all visible pairs (of a band: over those few), and
# more where the largest are kept.
_NS_FORWARD, _NS_PER_DIM = 1.5, 0.05
_NS_SWEEP = {"rows": 3.0, "columns": 1.5, "band": 10.0}
_NS_TOP = 3.0
# One core's sustained matmul rate on an ordinary laptop.
_FLOPS = 3e10
_STRIP_ROWS = 128
# Thread pools, allocator slack, first-pass imports (docs/benchmarks/capture-cpu.json).
_OVERHEAD = 24 << 20
# Live d_model-wide float32 vectors per token in a forward pass, embeddings to MLP.
_ACTIVATIONS_PER_TOKEN = 24


@dataclass(frozen=True)
class Shape:
    """The few numbers of a model a plan needs."""

    spec: Spec
    kind: str
    d_model: int
    parameters: int
    bytes_per_weight: int
    dense_mask: bool
    workers: int


@dataclass(frozen=True)
class Request:
    """What is asked for, as far as it costs something.

    `sweeps`: those over the map that the kernels need (`kernels.attention_stats.passes`);
    `parameters` those that `want` is defined with; `n_patterns` heads whose maps are stored.
    """

    want: tuple[str, ...]
    sweeps: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    n_roles: int = 0
    n_patterns: int = 0
    keep_qk: bool = False
    generate: int = 0

    @property
    def band(self) -> int:
        """Keys per query that the statistics of a band look at, about."""
        fixed = {"self_mass": 1, "prev_mass": 1, "first_mass": 1}
        fixed |= {"duplicate_mass": 4, "induction_mass": 4}
        low, high = self.parameters.get("horizon", (0, None))
        fixed["fai"] = 0 if high is None else high - low + 1
        lengths = [self.parameters.get(n, 0) for n in ("waad_window", "local_window")]
        widest = max(lengths)
        return widest + sum(keys for name, keys in fixed.items() if name in self.want)


@dataclass(frozen=True)
class Plan:
    """Cost of one capture: `peak_bytes` on top of the model, `disk_bytes` of the result, `seconds`
    estimated."""

    n_prompts: int
    n_tokens: int
    longest: int
    batches: tuple[tuple[int, ...], ...]
    passes: tuple[str, ...]
    peak_bytes: int
    disk_bytes: int
    seconds: float
    available_bytes: int
    advice: str = ""

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.available_bytes

    def __str__(self) -> str:
        lines = [
            f"{self.n_prompts} prompts, {self.n_tokens:,} tokens (longest {self.longest:,}), "
            f"{len(self.batches)} batches",
            "passes   " + "; ".join(self.passes),
            f"memory   {human(self.peak_bytes)} beside the model, of {human(self.available_bytes)} "
            "available",
            f"result   {human(self.disk_bytes)}",
            f"time     about {_duration(self.seconds)} (estimate for one CPU)",
        ]
        return "\n".join(lines if self.fits else [*lines, f"does not fit: {self.advice}"])


def human(n: float) -> str:
    """Bytes for people.

    >>> human(1536)
    '1.5 KB'
    """
    for unit in ("B", "KB", "MB", "GB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TB"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def make_batches(
    lengths: Sequence[int], batch_size: int, alone: Sequence[bool]
) -> tuple[tuple[int, ...], ...]:
    """Prompts in order, `batch_size` at a time; those marked `alone` by themselves.

    >>> make_batches([3, 3, 3], 2, [False, False, True])
    ((0, 1), (2,))
    """
    batches: list[tuple[int, ...]] = []
    current: list[int] = []
    for i in range(len(lengths)):
        if alone[i]:
            batches += [tuple(current)] if current else []
            batches.append((i,))
            current = []
            continue
        current.append(i)
        if len(current) == batch_size:
            batches.append(tuple(current))
            current = []
    return tuple(batches + ([tuple(current)] if current else []))


def result_bytes(spec: Spec, kind: str, request: Request, length: int) -> int:
    """Bytes of the stored statistics of one prompt of `length` tokens."""
    pool = request.parameters.get("pool", 1)
    sizes = {
        "prompt": 1,
        "layer": spec.n_layers(kind),
        "head": spec.n_heads(kind),
        "query": length,
        "key": length,
        "role": request.n_roles,
        "stream": spec.n_layers(kind) + 1,
        "rank": 3,
        "candidate": 3,
        "top": request.parameters.get("topk", 0),
        **{dim: extent(dim, length, pool) for dim in EXTENTS},
        "pattern_head": request.n_patterns,
    }
    total = 0
    for name in request.want:
        count = 4
        for dim in SCHEMA[name].dims:
            count *= sizes[dim]
        total += count
    if request.keep_qk:
        total += sum(4 * length * (s.n_heads + s.n_kv_heads) * s.d_head for s in spec.of(kind))
        # A position bias cannot be rebuilt from q and k and is kept as it is.
        total += sum(4 * length * length * s.n_heads for s in spec.of(kind) if s.position_bias)
    return total


def plan_capture(
    shape: Shape,
    request: Request,
    lengths: Sequence[int],
    batches: tuple[tuple[int, ...], ...],
    available_bytes: int,
) -> Plan:
    """The plan of a capture; `lengths` are prompt lengths with the generated tokens included."""
    result = sum(result_bytes(shape.spec, shape.kind, request, n) for n in lengths)
    peaks = [_peak(shape, request, [lengths[i] for i in batch]) for batch in batches]
    peak = result * 2 + max(peaks, default=0)
    advice = ""
    if peak > available_bytes:
        advice = _advice(shape, request, lengths, batches, available_bytes)
    return Plan(
        len(lengths),
        sum(lengths),
        max(lengths, default=0),
        batches,
        _passes(request),
        int(peak),
        int(result),
        _seconds(shape, request, lengths),
        available_bytes,
        advice,
    )


def _seconds(shape: Shape, request: Request, lengths: Sequence[int]) -> float:
    """The forward pass, its attention, and what is taken from every site."""
    found = 2.0 * shape.parameters * sum(lengths) / _FLOPS
    ranked = {"top_probs", "top_keys"} & set(request.want)
    for site in shape.spec.of(shape.kind):
        dims = _NS_PER_DIM * site.d_head
        # A fused kernel that is given a mask computes what is hidden as well.
        masked = _mask_bytes(shape, lengths) > 0
        for n in lengths:
            visible = _pairs(site, n) * site.n_heads
            ns = (n * n * site.n_heads if masked else visible) * (_NS_FORWARD + dims)
            for sweep in request.sweeps:
                looked_at = request.band * n * site.n_heads if sweep == "band" else visible
                ns += looked_at * (_NS_SWEEP[sweep] + dims)
            found += (ns + (visible * _NS_TOP if ranked else 0)) * 1e-9
    return found


def _pairs(site: AttentionSite, n: int) -> float:
    """(query, key) pairs that a site sees in a text of n tokens."""
    if not site.causal:
        return n * n
    width = min(site.window or n, n)
    return n * width - width * width / 2


def _passes(request: Request) -> tuple[str, ...]:
    groups = {SCHEMA[name].group for name in request.want}
    passes = ["the model's own forward"]
    if request.generate:
        passes.append(f"{request.generate} decoding steps")
    both = {"rows", "columns"} & set(request.sweeps)
    if both:
        what = "rows and columns together" if len(both) == 2 else both.pop()
        passes.append(f"one blockwise pass over q and k ({what})")
    elif "band" in request.sweeps:
        passes.append(f"about {request.band} keys per query")
    for group, text in (
        ("norms", "norms of q, k, v, z and under W_O"),
        ("residual", "hooks on every block"),
        ("pattern", "full maps of the named heads"),
    ):
        if group in groups:
            passes.append(text)
    return tuple(passes)


def _peak(shape: Shape, request: Request, lengths: Sequence[int]) -> int:
    longest = max(lengths)
    sites = shape.spec.of(shape.kind)
    tokens = longest * len(lengths)
    activations = tokens * shape.d_model * 4 * _ACTIVATIONS_PER_TOKEN
    strips = shape.workers * 3 * _STRIP_ROWS * longest * 4
    if any(site.tap == "returned" for site in shape.spec.sites):
        # Every layer's map is held at once, and copied while statistics are taken from it.
        return _OVERHEAD + activations + 3 * longest**2 * 4 * sum(site.n_heads for site in sites)
    masks = longest**2 * len(lengths) * _mask_bytes(shape, lengths)
    patterns = request.n_patterns * longest * longest * 4 * len(lengths) * 2
    return _OVERHEAD + activations + strips + masks + patterns


def _mask_bytes(shape: Shape, lengths: Sequence[int]) -> int:
    """Bytes per (query, key) pair that transformers itself makes of masks and eager maps."""
    sites = shape.spec.of(shape.kind)
    if shape.dense_mask:
        # A float mask, its visibility, and the scores and weights of all heads of a layer.
        return 4 + 1 + 4 + 8 * max(site.n_heads for site in sites)
    padded = len(set(lengths)) > 1
    windows = any(site.window and site.window < max(lengths) for site in sites)
    # A bool mask, and the float one that the fused kernel makes of it.
    return 6 if padded or windows else 0


def _advice(
    shape: Shape,
    request: Request,
    lengths: Sequence[int],
    batches: tuple[tuple[int, ...], ...],
    available: int,
) -> str:
    """The largest setting that fits: a smaller batch, then no patterns, then a shorter text."""
    result = 2 * sum(result_bytes(shape.spec, shape.kind, request, n) for n in lengths)
    now = max(len(batch) for batch in batches)
    longest = max(lengths)
    for size in range(now - 1, 0, -1):
        if result + _peak(shape, request, [longest] * size) <= available:
            return f"the largest batch_size that fits is {size}."
    if request.n_patterns:
        return (
            "full patterns are what does not fit; ask for fewer heads in patterns=, "
            "or shorter prompts."
        )
    fits = 0
    step = 1 << (longest.bit_length() - 1)
    while step:
        one = 2 * result_bytes(shape.spec, shape.kind, request, fits + step)
        if one + _peak(shape, request, [fits + step]) <= available:
            fits += step
        step //= 2
    if fits >= longest:
        return (
            f"all {len(lengths)} prompts together do not fit; capture them in parts, "
            f"or ask for fewer statistics."
        )
    return (
        f"the longest prompt that fits alone has {fits:,} tokens; shorten it "
        f"or ask for fewer statistics."
    )
