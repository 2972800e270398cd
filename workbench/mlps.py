"""The MLP of every block: which of its linear maps lead in, gate and lead out.

Found by shape, as attention sites are found by their code: in a block, outside its attention, a map
from the residual width to another one and a map from there back.  Blocks without exactly one such
pair (mixtures of experts, blocks with an adapter) have none here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from workbench.spec import Spec

# Which of two maps that lead in goes through the activation; the other is multiplied with it.
_GATE = re.compile(r"gate|wi_0$|(^|\.)w1$")


@dataclass(frozen=True)
class Mlp:
    """Dotted paths of the linear maps of one dense MLP.

    `down` writes into the residual stream from what `up` (and `gate`, where there is one) made;
    `fused`: gate and up are the first and second half of the output of `up`.
    """

    layer: int
    up: str
    down: str
    gate: str | None = None
    fused: bool = False


def find_mlps(net: nn.Module, spec: Spec, kind: str | None = None) -> dict[int, Mlp]:
    """The MLPs of one tower by layer; layers without a dense one are absent.

    Layers without attention are not looked at.
    """
    found = {}
    sites = [site.name for site in spec.sites]
    for site in spec.of(kind):
        if site.block is None or site.tap != "registry":
            continue
        block = net.get_submodule(site.block)
        maps = {}
        for path, module in block.named_modules(prefix=site.block):
            inside = any(path == name or path.startswith(f"{name}.") for name in sites)
            if not inside and path not in {s.w_o for s in spec.sites} and _is_map(module):
                maps[path] = _widths(module)
        mlp = _pair(site.layer, maps)
        if mlp is not None:
            found[site.layer] = mlp
    return found


def _pair(layer: int, maps: dict[str, tuple[int, int]]) -> Mlp | None:
    """The MLP among linear maps path -> (width in, width out); None where it is not one pair."""
    whole = []
    for down, (d_inner, d_model) in maps.items():
        before = [path for path in maps if path != down]
        into = [path for path in before if maps[path] == (d_model, d_inner)]
        fused = [path for path in before if maps[path] == (d_model, 2 * d_inner)]
        if len(fused) == 1 and not into:
            whole.append(Mlp(layer, fused[0], down, fused=True))
        elif len(into) == 1 and _precedes(into[0], down, maps):
            whole.append(Mlp(layer, into[0], down))
        elif len(into) == 2:
            gates = [path for path in into if _GATE.search(path.rpartition(".")[2])]
            if len(gates) == 1:
                (up,) = (path for path in into if path != gates[0])
                whole.append(Mlp(layer, up, down, gates[0]))
    return whole[0] if len(whole) == 1 else None


def _precedes(up: str, down: str, maps: dict[str, tuple[int, int]]) -> bool:
    """Whether a pair of maps stands in the order of use, which both orders of a square one or of
    one that reads the inner width would claim."""
    order = list(maps)
    return order.index(up) < order.index(down)


def _is_map(module: nn.Module) -> bool:
    return getattr(getattr(module, "weight", None), "ndim", 0) == 2 and not isinstance(
        module, nn.Embedding
    )


def _widths(module: nn.Module) -> tuple[int, int]:
    """(in, out); GPT-2's Conv1D keeps its weight as [in, out], nn.Linear as [out, in]."""
    rows, columns = module.weight.shape  # type: ignore[union-attr]
    return (rows, columns) if hasattr(module, "nf") else (columns, rows)  # type: ignore[return-value]
