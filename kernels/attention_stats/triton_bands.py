"""The band side of the Triton path: statistics that look at few keys per query and cost no sweep
over the map once the lse is known.

    self, prev, first, offset, keys: one dot product per query and key
    waad = W (1 - null - mass nearer than W) + sum of p |d| over the keys nearer than W
    fai: the column pass over the distances of its horizon

Masses are relative to themselves. waad is not: float32 weights leave an error of about 1e-7 in the
mass beyond W, thus 1e-7 W tokens; none where the row sees no key that far.

Dims: B batch, H query heads, Q queries, K keys, N keys looked at.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from workbench.kernels.attention_stats.torch_geometry import HIDING_BIAS
from workbench.kernels.attention_stats.triton_call import LOG2E, Call
from workbench.kernels.attention_stats.triton_columns import hide, influence
from workbench.kernels.attention_stats.triton_reach import NO_ROW, Reach, of_rows

_GATHERED = ("self_mass", "prev_mass", "first_mass", "offset_mass", "keys_mass")
_WIDE = ("offset_mass", "keys_mass")


def band_statistics(
    call: Call, names: tuple[str, ...], lse: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Those of self_mass, prev_mass, first_mass, offset_mass, keys_mass, waad, local_mass and fai
    among `names`.

    `lse` float64 [B, H, Q], natural log; -inf, or the sink logit, where nothing is seen.
    """
    wanted = [name for name in _GATHERED if name in names]
    found = _gathered(call, wanted, lse) if wanted else {}
    lse2 = torch.where(lse > -torch.inf, lse * LOG2E, NO_ROW)
    if call.terms["query_valid"] is not None:
        lse2 = lse2.masked_fill(~call.terms["query_valid"][:, None], NO_ROW)
    if {"waad", "local_mass"} & set(names):
        found |= _near(call, names, lse, lse2)
    if "fai" in names:
        found["fai"] = hide(call, "fai", influence(call, lse2))
    return found


def _gathered(call: Call, names: list[str], lse: torch.Tensor) -> dict[str, torch.Tensor]:
    """p [B, H, Q], or [B, H, Q, N], at the keys of each name."""
    keys = [_keys_of(call, name) for name in names]
    p = _weights_at(call, torch.cat(keys, 1), lse).split([x.shape[1] for x in keys], 2)
    return {
        name: x.transpose(2, 3) if name in _WIDE else x[:, :, 0]
        for name, x in zip(names, p, strict=True)
    }


def _keys_of(call: Call, name: str) -> torch.Tensor:
    """The keys [B, N, Q] a mass looks at, inside the map or not."""
    t, (b, _, n_q) = call.terms, call.shape
    position = torch.arange(n_q, device=call.q.device) + call.geometry.offset
    if name == "keys_mass":
        return t["keys"].long()[:, :, None].expand(b, -1, n_q)
    if name == "first_mass":
        first = position[None] * 0 if t["first_key"] is None else t["first_key"].long()
        return first.reshape(first.shape[0], 1, -1).expand(b, 1, n_q)
    back = {"self_mass": (0,), "prev_mass": (1,)}.get(name, t["offsets"])
    back = torch.tensor(back, dtype=torch.long, device=position.device)
    return (position - back[:, None]).expand(b, -1, n_q)


def _weights_at(call: Call, keys: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """p float64 [B, H, N, Q] of every query at its `keys` [B, N, Q], 0 where they are hidden."""
    g, n = call.geometry, keys.shape[1]
    back = torch.arange(g.n_q, device=keys.device) + g.offset - keys
    seen, reach = (keys >= 0) & (keys < g.n_k), Reach.of(call)
    seen = seen if reach.low is None else seen & (back >= reach.low)
    seen = seen if reach.high is None else seen & (back <= reach.high)
    keys = keys.clamp(0, g.n_k - 1)
    for name in ("key_valid", "key_sequence"):
        if call.terms[name] is not None:
            there = call.terms[name][:, None].expand(-1, n, -1).gather(2, keys)
            own = call.terms["query_sequence"]
            seen = seen & (there if name == "key_valid" else there == own[:, None])
    score = _products(call, torch.where(seen, keys, -1))
    if call.terms["softcap"] is not None:
        score = torch.tanh(score * call.inner)
    score, shown = score * call.factor, seen[:, None]
    if call.terms["bias"] is not None:
        bias = _at(call, "bias", keys)
        shown = shown & ~(bias <= HIDING_BIAS)
        score = score + torch.where(shown, bias.double(), 0.0) * LOG2E
    if call.terms["alibi"] is not None:
        slope = call.terms["alibi"].double()[:, None, None] * LOG2E
        score = score - slope * back.abs()[:, None]
    if call.terms["mask"] is not None:
        shown = shown & _at(call, "mask", keys)
    return torch.where(shown, torch.exp2(score - lse[:, :, None] * LOG2E), 0.0)


def _at(call: Call, name: str, keys: torch.Tensor) -> torch.Tensor:
    """A dense term at `keys` [B, N, Q]: [B, H, N, Q]."""
    b, h, n_q = call.shape
    dense = call.terms[name].expand(b, h, n_q, call.geometry.n_k)
    return dense.gather(3, keys.transpose(1, 2)[:, None].expand(b, h, n_q, -1)).transpose(2, 3)


def _products(call: Call, keys: torch.Tensor) -> torch.Tensor:
    """q.k float64 [B, H, N, Q] of every query with its `keys` [B, N, Q]; 0 for key -1."""
    b, h, n_q = call.shape
    out = torch.zeros(b, h, keys.shape[1], n_q, dtype=torch.float32, device=keys.device)
    if out.numel():
        from workbench.kernels.attention_stats.triton_band_kernels import gather_kernel

        shared = call.constants(replace(call.tiles(), queries=32, warps=4))
        block = {name: shared[name] for name in ("BLOCK_Q", "BLOCK_D", "WIDTH", "num_warps")}
        strides: tuple[Any, ...] = (*call.q.stride(), *call.k.stride())
        gather_kernel[(-(-n_q // 32), h, b)](
            call.q, call.k, keys.int().contiguous(), out, keys.shape[1], h,
            h // call.k.shape[1], n_q, *strides, **block,
        )  # fmt: skip
    return out.double()


def _near(
    call: Call, names: tuple[str, ...], lse: torch.Tensor, lse2: torch.Tensor
) -> dict[str, torch.Tensor]:
    """waad and local_mass [B, H, Q], from the keys nearer than the wider of their windows."""
    b, h, n_q = call.shape
    widths = [int(call.terms[x] or 0) for x in ("waad_window", "local_window")]
    wanted = ("waad" in names, "local_mass" in names)
    waad, local = (min(w, 2**30) * on for w, on in zip(widths, wanted, strict=True))
    far = max(waad, local) - 1
    reach = Reach.of(call, -far, far)
    out = torch.zeros(4, b, h, n_q, dtype=torch.float32, device=call.q.device)
    rounded = of_rows(lse2, n_q, n_q)
    if out.numel():
        from workbench.kernels.attention_stats.triton_band_kernels import near_kernel

        tiles = call.tiles()
        near_kernel[(-(-n_q // tiles.queries), h, b)](
            call.q, call.k, rounded, call.valid_keys(), out, waad, local, *reach.arguments(call),
            **reach.constants(call, tiles, VALID=call.terms["key_valid"] is not None),
        )  # fmt: skip
    # The lse was rounded to float32 on the way; the same for all keys of a row, so undone here.
    moment, mass, close = out[:3] * torch.exp2(torch.where(lse2 < NO_ROW, rounded - lse2, 0.0))
    found = {"local_mass": close}
    if "waad" in names:
        found["waad"] = moment + waad * _beyond(call, mass, out[3], lse)
    return {name: x for name, x in found.items() if name in names}


def _beyond(call: Call, mass: torch.Tensor, seen: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """Mass of the keys further away: what `mass` of the near ones leaves of the row, 0 where all
    keys that the row sees are among the `seen` near ones."""
    sink = call.terms["sink_logit"]
    whole = torch.ones_like(lse)
    if sink is not None:
        whole = -torch.expm1((sink.double()[:, None] - lse).clamp(max=0.0))
    return torch.where(seen == call.counts()["n_visible"], 0.0, (whole - mass).clamp(min=0.0))
