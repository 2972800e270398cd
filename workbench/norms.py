"""Norms of the vectors of a call: q, k, v, z, and v and z as W_O writes them into the stream."""

from __future__ import annotations

import torch

from workbench.calls import Call
from workbench.sites import output_weight
from workbench.spec import AttentionSite

ROW_NORMS = ("q_norm", "z_norm", "result_norm")
KEY_NORMS = ("k_norm", "v_norm", "vo_norm")


class Norms:
    """Norms of the calls of one network; W_O W_O^T of a site is formed once."""

    def __init__(self, net: torch.nn.Module, want: tuple[str, ...]) -> None:
        self.net = net
        self.want = tuple(w for w in want if w in (*ROW_NORMS, *KEY_NORMS))
        self._grams: dict[str, torch.Tensor | None] = {}

    def of(self, call: Call) -> dict[str, torch.Tensor]:
        """Those of `want` that the site has, [row, head, query] or [row, head, key]."""
        groups = call.site.n_heads // call.site.n_kv_heads
        found = {}
        for name in self.want:
            if name == "q_norm":
                found[name] = call.q.float().norm(dim=-1)
            elif name == "z_norm":
                found[name] = call.z.float().norm(dim=-1).transpose(1, 2)
            elif name in ("k_norm", "v_norm"):
                source = call.k if name == "k_norm" else call.v
                found[name] = source.float().norm(dim=-1).repeat_interleave(groups, dim=1)
            else:
                gram = self._gram(call.site)
                if gram is None:
                    continue
                own = name == "result_norm"
                source = call.z.transpose(1, 2) if own else call.v.repeat_interleave(groups, dim=1)
                found[name] = _norm_under(source.float(), gram)
        return found

    def _gram(self, site: AttentionSite) -> torch.Tensor | None:
        if site.name not in self._grams:
            weight = output_weight(self.net, site)
            self._grams[site.name] = None if weight is None else _gram(weight.float())
        return self._grams[site.name]


def _gram(weight: torch.Tensor) -> torch.Tensor:
    """W W^T per head, [head, d, d], so that |x W|^2 = x (W W^T) x^T without forming x W."""
    return weight @ weight.transpose(-1, -2)


def _norm_under(x: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    # Rounding can push a tiny square below zero.
    return ((x @ gram) * x).sum(-1).clamp(min=0).sqrt()
