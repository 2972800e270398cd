"""Does a head write the token it looks at, judged from its weights alone?

The OV circuit of a head through embedding and unembedding is a map from the attended token to
logits.  Its copying score is the sum of its eigenvalues by the sum of their absolute values
(Elhage et al. 2021; Olsson et al. 2022, arXiv 2209.11895): 1 if every direction comes back with
its own sign, -1 if with the opposite one, about 0 for random weights.

The circuit is read where the model computes it: token embeddings enter every block in the place of
its hidden states, so that its norm and its value projection are its own, in any family.  A norm
behind the attention and that before the unembedding are left out.  Cost: a few forward passes over
the tokens of the vocabulary.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from workbench.calls import Call
from workbench.circuits.effects import predicts
from workbench.circuits.icl_curves import positions
from workbench.errors import WorkbenchError
from workbench.guards import evaluating
from workbench.models import Model
from workbench.sites import output_weight

_ROWS, _LENGTH = 16, 32  # texts and positions that carry embeddings in one pass


def copying_scores(model: Model, *, tokens: int = 2048, seed: int = 0) -> xr.DataArray:
    """Copying score of every head, dims (layer, head), in -1..1; NaN where a head writes nothing.

    `tokens` of the vocabulary are used, all of them where it is not larger, else a draw by `seed`.
    Raises `WorkbenchError` for a model that predicts no next token, and for one whose blocks,
    output projections or embeddings cannot be used this way.
    """
    embedding, unembedding = _vocabulary(model)
    _refuse_unreadable(model, embedding.shape[1])
    every = np.arange(min(len(embedding), len(unembedding)))
    if len(every) > tokens:
        every = np.sort(np.random.default_rng(seed).choice(every, tokens, replace=False))
    found = np.full((model.spec.n_layers(), model.spec.n_heads()), np.nan)
    products = _products(model, embedding, unembedding, torch.as_tensor(every))
    for site in model.spec.of():
        weight = output_weight(model.net, site)
        assert weight is not None, "checked by _refuse_unreadable"
        groups = site.n_heads // site.n_kv_heads
        product = products[site.name].repeat_interleave(groups, dim=0)
        # The circuit over the vocabulary has the eigenvalues of this small matrix, and zeros.
        small = product @ weight.cpu().double().transpose(-1, -2)
        values = torch.linalg.eigvals(small)
        size = values.abs().sum(-1)
        found[site.layer, : site.n_heads] = (values.real.sum(-1) / size).numpy()
    return xr.DataArray(
        found,
        dims=("layer", "head"),
        coords={"layer": np.arange(len(found)), "head": np.arange(found.shape[1])},
    )


def _refuse_unreadable(model: Model, width: int) -> None:
    """Raise where a block has no output projection, or another width than the embeddings."""
    for site in model.spec.of():
        weight = output_weight(model.net, site)
        if site.block is None or weight is None:
            raise WorkbenchError(
                f"{model.name} has attention without a block or an output projection of its own, "
                "so its OV circuits cannot be read; use a model of another family."
            )
        if weight.shape[-1] != width:
            raise WorkbenchError(
                f"{model.name} has embeddings of width {width} and blocks of width "
                f"{weight.shape[-1]}, so its OV circuits cannot be read; use another model."
            )


def _vocabulary(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedding and unembedding, both [token, d_model]."""
    if not predicts(model):
        raise WorkbenchError(
            f"{model.name} predicts no next token, so no head of it can copy one; use a decoder "
            "with an output vocabulary."
        )
    sides = (model.net.get_input_embeddings(), model.net.get_output_embeddings())
    return sides[0].weight.detach(), sides[1].weight.detach()


def _products(
    model: Model, embedding: torch.Tensor, unembedding: torch.Tensor, ids: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Sum over tokens of (value) x (unembedding), [kv_head, d_value, d_model] per site, float64.

    Values are those of an embedding minus that of a zero vector, which is the bias alone.
    """
    length = min(_LENGTH, positions(model) or _LENGTH)
    each = _ROWS * length - 1
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad(), evaluating(model.net):
        for chunk in ids.split(each):
            vectors = embedding.new_zeros(_ROWS * length, embedding.shape[1])
            vectors[1 : len(chunk) + 1] = embedding[chunk]
            targets = unembedding[chunk].cpu().double()
            for name, values in _values(model, vectors).items():
                own = values[1 : len(chunk) + 1] - values[0]
                part = torch.einsum("skd,sm->kdm", own, targets)
                found[name] = found[name] + part if name in found else part
    return found


def _values(model: Model, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    """Values of these vectors at every site, [vector, kv_head, d_value], float64."""
    hidden = vectors.reshape(_ROWS, len(vectors) // _ROWS, -1)
    seen: dict[str, torch.Tensor] = {}

    def listen(call: Call) -> None:
        # [row, kv_head, key, d_value]
        seen[call.site.name] = call.v.transpose(1, 2).flatten(0, 1).cpu().double()

    def swap(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden}

    cache = {"use_cache": False} if model.accepts("use_cache") else {}
    ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=model.device)
    with ExitStack() as stack:
        for path in {str(site.block) for site in model.spec.of()}:
            block = model.net.get_submodule(path)
            hook = block.register_forward_pre_hook(swap, with_kwargs=True, prepend=True)
            stack.callback(hook.remove)
        stack.enter_context(model.open_tap(listen))
        model.net(input_ids=ids, **cache)
    return seen
