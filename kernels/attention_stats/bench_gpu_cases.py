"""What the GPU benchmark measures, in the order of importance, and what each costs at least. Plain
data: no torch.

Dims: H query heads, Hkv key/value heads, Q queries, K keys, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

# Sweeps of q k^T a measurement cannot do without; a forward pass has two products as well.
SWEEPS = {
    "lse": 1, "columns": 1, "two_pass": 2, "full": 2, "everything": 2, "given": 0, "stock": 2,
    "peer": 2, "sdpa": 2, "cudnn": 2, "eager": 1, "eager_sum": 1, "torch": 1,
}  # fmt: skip
# What a fraction of the bound of so many sweeps is said of; a forward pass has another bound.
BOUNDED = ("lse", "columns", "two_pass", "full", "everything", "stock", "peer")
# Whose time is divided by whose: other -> ours.
RATIOS = {
    "sdpa": "two_pass", "cudnn": "two_pass", "stock": "two_pass", "peer": "two_pass",
    "eager_sum": "two_pass", "eager": "full", "torch": "full",
}  # fmt: skip
PARITY = (
    "timed", "narrow", "not_causal", "ragged", "half", "single", "window", "padded", "sharp",
    "wide", "lse_given", "packed", "alibi",
)  # fmt: skip
# A sustained rate any of the paths should reach, flop/s: what a guess of time is made from.
_SLOW, _SLOW_EAGER = 1e14, 1e13
# Exponentials one multiprocessor makes per clock (compute capability 8.0 to 10.0).
_EXP_PER_CLOCK = 16


@dataclass(frozen=True)
class Size:
    """Heads H over Hkv, Q queries by K keys, width D."""

    heads: int
    kv_heads: int
    width: int
    causal: bool
    keys: int
    queries: int

    @property
    def pairs(self) -> int:
        """Visible (query, key) pairs of all heads."""
        seen = self.keys * (self.keys + 1) // 2 if self.causal else self.queries * self.keys
        return seen * self.heads

    @property
    def tag(self) -> str:
        """For names of ratios: causal_h32x8_d128_8192."""
        kind = "causal" if self.causal else "full"
        few = "" if self.queries == self.keys else f"_q{self.queries}"
        return f"{kind}_h{self.heads}x{self.kv_heads}_d{self.width}_{self.keys}{few}"


@dataclass(frozen=True)
class Case:
    """One measurement: a timing of `what` at a size, a roof (no size) or a parity variant."""

    what: str
    size: Size | None = None
    variant: str = ""

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.what, self.variant, self.size.tag if self.size else "")))

    @property
    def flop(self) -> float:
        """Of the products it cannot do without; 0 for a roof or a parity."""
        if self.size is None:
            return 0.0
        return 2.0 * self.size.width * self.size.pairs * SWEEPS[self.what]

    @property
    def guess(self) -> float:
        """Seconds it may take, compiling included: what has to be left of the budget."""
        if self.size is None:
            return 20.0
        slow = _SLOW_EAGER if self.what.startswith(("eager", "torch")) else _SLOW
        return 5.0 + 5 * self.flop / slow

    def bound(self, rate: float, multiprocessors: int, clock_hz: float) -> float | None:
        """Least seconds of its sweeps: products at the measured rate of a large matmul, or
        exponentials at 16 a clock and multiprocessor, whichever is longer."""
        if self.size is None or self.what not in BOUNDED:
            return None
        products = self.flop / rate
        exps = self.size.pairs * SWEEPS[self.what] / (_EXP_PER_CLOCK * multiprocessors * clock_hz)
        return max(products, exps)


def cases(smoke: bool) -> list[Case]:
    """Every measurement, the most important first. `smoke`: the same at tiny sizes."""
    short, lengths, long = (32, (48, 64), 80) if smoke else (1024, (8192, 32768, 131072), 2**20)
    heads, kv, wide, narrow = (2, 1, 32, 16) if smoke else (32, 8, 128, 64)

    def at(n: int, *, width: int = wide, causal: bool = True, kv_heads: int = kv) -> Size:
        return Size(heads, kv_heads, width, causal, n, n)

    def each(whats: str, *sizes: Size) -> list[Case]:
        return [Case(what, size) for size in sizes for what in whats.split()]

    found = [Case("matmul"), Case("copy")]
    # The shortest come first: what is compiled for them is what the longer ones run.
    found += each("lse columns two_pass full given everything", at(short))
    found += [Case("parity", variant=name) for name in PARITY[:3]]
    main = "two_pass lse columns full given sdpa stock"
    found += each(f"{main} eager_sum eager cudnn", at(lengths[0]))
    found += each(main, *map(at, lengths[1:]))
    found += each("two_pass peer sdpa", *(at(n, kv_heads=heads) for n in lengths))
    one_group = Size(heads // kv, 1, wide, True, long, long)
    found += each("two_pass full sdpa", one_group)
    found += [Case("parity", variant=name) for name in PARITY[3:8]]
    found += each("two_pass lse columns full sdpa", *(at(n, width=narrow) for n in lengths))
    found += each("two_pass lse columns sdpa", *(at(n, causal=False) for n in lengths))
    # An observation window: few queries over many keys.
    few, many = (16, (48, 64)) if smoke else (64, (16384, 262144))
    windows = [Size(heads, heads, wide, False, n, few) for n in many]
    found += each("two_pass peer eager_sum", *windows)
    found += each("everything cudnn eager eager_sum torch", *map(at, lengths[:2]))
    found += each("cudnn eager_sum", at(lengths[2]) if len(lengths) > 2 else at(lengths[1]))
    found += each("everything", at(lengths[-1]))
    found += [Case("parity", variant=name) for name in PARITY[8:]]
    # The lengths of `smoke` coincide.
    return list(dict.fromkeys(found))
