"""The maps found as MLP of a block, checked by what they compute."""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from tests.tiny import IDS, tiny
from workbench.families import FAMILIES
from workbench.mlps import find_mlps

EXPERTS = ("Qwen3-MoE", "Mixtral", "GPT-OSS")
DENSE = tuple(
    name
    for name, family in FAMILIES.items()
    if name not in EXPERTS
    and family.build is not None
    and name not in ("GPT-J", "Bloom", "Falcon", "DeBERTa v2")
)


@pytest.mark.parametrize("name", DENSE)
def test_every_block_has_its_pair_of_maps(name: str) -> None:
    net = FAMILIES[name].build()
    model = wb.load(net)
    for kind in model.spec.kinds:
        found = find_mlps(net, model.spec, kind)
        assert set(found) == {site.layer for site in model.spec.of(kind)}
        for mlp in found.values():
            up, down = net.get_submodule(mlp.up), net.get_submodule(mlp.down)
            inner = torch.zeros(1, up.weight.shape[0 if not hasattr(up, "nf") else 1])
            inner = inner[:, : inner.shape[1] // 2] if mlp.fused else inner
            assert down(inner).shape[-1] == up.weight.shape[1 if not hasattr(up, "nf") else 0]


def test_down_reads_the_activated_gate_times_up() -> None:
    model = tiny("llama")
    mlp = find_mlps(model.net, model.spec)[1]
    seen: dict = {}
    hooks = [
        model.net.get_submodule(path).register_forward_hook(
            lambda _, args, out, path=path: seen.update({path: (args[0], out)})
        )
        for path in (mlp.up, mlp.gate, mlp.down)
    ]
    with torch.no_grad():
        model.net(input_ids=torch.tensor([IDS]))
    for hook in hooks:
        hook.remove()
    product = torch.nn.functional.silu(seen[mlp.gate][1]) * seen[mlp.up][1]
    torch.testing.assert_close(seen[mlp.down][0], product)


@pytest.mark.parametrize("name", (*EXPERTS, "Bloom"))
def test_experts_and_untapped_blocks_have_none(name: str) -> None:
    net = FAMILIES[name].build()
    assert find_mlps(net, wb.load(net).spec) == {}
