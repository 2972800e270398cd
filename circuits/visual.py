"""Do heads that look at the image look at its sinks, and does it matter if they do not?

Visual sinks of a layer (`workbench.probes.visual_sinks`) receive attention and carry nothing.  Kang
et al. 2025 (arXiv 2503.03321, section 5) call a row of a head image-centric if its mass on the
image is at least .2 and the part of it on image tokens that are no sinks at least rho; in such rows
they move a share p of the mass on sinks to these tokens.  The masses are measured from q and k, no
map is held.  All functions take one prompt: keyword arguments of the network's forward
(`pixel_values` and the rest) or whatever `model.encode` takes.

Two conventions exist.  Ours are the paper's, by name: `rho`, the least share of the image's mass
that is not on sinks, and `move_fraction`.  The authors' code tests the share that is on sinks and
multiplies sinks by what they keep, so that its numbers are one minus ours: its configuration, rho
.5 and p .6, moves .4 of the mass (`from_code`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch.nn.functional import cross_entropy, kl_div

from workbench.calls import Call
from workbench.chunks import Chunk
from workbench.encode import roles_of
from workbench.errors import WorkbenchError
from workbench.guards import evaluating
from workbench.heads import KINDS, Head
from workbench.intervene import intervening
from workbench.interventions import Intervention
from workbench.measuring import Asked, measure
from workbench.models import Model

_AFTER = "after the image"


class ImageCentric(NamedTuple):
    """`heads`: one row per head; `rows`: every query, dims (layer, head, query)."""

    heads: pd.DataFrame
    rows: xr.Dataset


@dataclass(frozen=True)
class _Prompt:
    """One prompt ready to run; positions count from its first token, which padding put at
    `begin`."""

    inputs: dict[str, Any]
    ids: np.ndarray
    begin: int
    image: np.ndarray

    @property
    def after(self) -> int:
        """The first position behind the last image token."""
        return int(self.image[-1]) + 1


@dataclass(frozen=True)
class _Sinks:
    """The sinks of one layer: visual ones, those of text and image, and the other image tokens."""

    visual: tuple[int, ...]
    every: tuple[int, ...]
    others: tuple[int, ...]


def from_paper(rho: float, p: float) -> tuple[float, float]:
    """(rho, move_fraction) of the numbers as the paper gives them, which are ours.

    >>> from_paper(0.5, 0.6)
    (0.5, 0.6)
    """
    return _share("rho", rho), _share("move_fraction", p)


def from_code(rho: float, p: float) -> tuple[float, float]:
    """(rho, move_fraction) of the numbers of the authors' code, where both are one minus ours.

    >>> from_code(0.5, 0.6)
    (0.5, 0.4)
    """
    return 1 - _share("rho", rho), 1 - _share("p", p)


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise WorkbenchError(f"{name}={value} is no share; give 0 to 1.")
    return float(value)


def image_centric_heads(
    model: Model,
    prompt: object,
    sinks: pd.DataFrame,
    *,
    rho: float = 0.5,
    least_mass: float = 0.2,
) -> ImageCentric:
    """Which heads look at the image and not at its sinks, in the layers that have visual sinks.

    `rows`, dims (layer, head, query), probabilities: `image_mass` on image tokens, `sink_mass` on
    the visual sinks of that layer, `ratio` = 1 - sink_mass / image_mass (NaN without image mass),
    and `image_centric`: image_mass >= `least_mass` and ratio >= `rho`, the rows that
    `redistribution` changes.  `heads`, over the queries behind the image: `layer, head, label`,
    `value` (share of image-centric queries), `n` queries, `null` (the same for uniform attention
    over the visible keys), `ratio` and `ratio_null` (means over queries of enough image mass, NaN
    without), `image_mass, sink_mass` (means).  `sinks` is a table of `visual_sinks` for this
    prompt; a layer without visual sinks has nothing to tell and is left out.  Raises
    `WorkbenchError` for a prompt without image, without text behind it, or of another table.
    """
    _share("rho", rho)
    _share("least_mass", least_mass)
    given = _prompt(model, prompt)
    sets = _sets(sinks, given)
    found: dict[int, np.ndarray] = {}

    def listen(call: Call) -> None:
        layer = call.site.layer
        if call.site.kind == model.spec.main and layer in sets:
            own = [_masses(call, given, sets[layer]), _masses(_uniform(call), given, sets[layer])]
            found[layer] = np.stack(own)

    with model.open_tap(listen), evaluating(model.net), torch.no_grad():
        model.net(**given.inputs)
    n_heads, n_query = model.spec.n_heads(), len(given.ids)
    # Own rows and uniform ones, image and sinks: [2, layer, head, query, 2], NaN where no head is.
    whole = np.full((2, len(sets), n_heads, n_query, 2), np.nan)
    for at, layer in enumerate(sets):
        whole[:, at, : found[layer].shape[1]] = found[layer]
    own, uniform = (_rows(masses, list(sets), rho, least_mass) for masses in whole)
    heads = _heads_table(model, own, uniform, given.after, least_mass)
    heads.attrs.update(rho=rho, least_mass=least_mass)
    return ImageCentric(heads, own)


def _masses(call: Call, prompt: _Prompt, sinks: _Sinks) -> np.ndarray:
    """Mass [head, query, 2] on the image tokens and on the visual sinks."""
    segments = torch.zeros(1, 2, call.k.shape[2], dtype=torch.bool)
    segments[0, 0, prompt.begin + prompt.image] = True
    segments[0, 1, prompt.begin + np.array(sinks.visual)] = True
    parameters = {"key_segments": segments, "n_segments": 2}
    chunk = Chunk(0, 0, call.q.shape[2], call.k.shape[2], call.q.shape[0])
    mass = measure(call, chunk, None, Asked(call.site.kind, ("role_mass",), parameters))
    own = mass["role_mass"][0, :, prompt.begin : prompt.begin + len(prompt.ids)]
    return own.double().cpu().numpy()


def _uniform(call: Call) -> Call:
    """The call with no preference among the keys it sees."""
    terms = {name: term for name, term in call.terms.items() if name != "sink_logit"}
    return replace(call, q=torch.zeros_like(call.q), terms=terms, patterns={}, lse=None)


def _rows(masses: np.ndarray, layers: list[int], rho: float, least_mass: float) -> xr.Dataset:
    image, sink = masses[..., 0], masses[..., 1]
    ratio = 1 - sink / np.where(image > 0, image, np.nan)
    dims = ("layer", "head", "query")
    centric = (image >= least_mass) & (ratio >= rho)
    arrays = {"image_mass": image, "sink_mass": sink, "ratio": ratio, "image_centric": centric}
    coords = {"layer": layers, "head": range(image.shape[1]), "query": range(image.shape[2])}
    return xr.Dataset({name: (dims, a) for name, a in arrays.items()}, coords=coords)


def _heads_table(
    model: Model, own: xr.Dataset, uniform: xr.Dataset, after: int, least_mass: float
) -> pd.DataFrame:
    own, uniform = (rows.isel(query=slice(after, None)) for rows in (own, uniform))
    looking, seeing = (
        rows["ratio"].where(rows["image_mass"] >= least_mass) for rows in (own, uniform)
    )
    columns = xr.Dataset(
        {
            "value": own["image_centric"].mean("query"),
            "null": uniform["image_centric"].mean("query"),
            "ratio": looking.sum("query") / looking.count("query").where(lambda n: n > 0),
            "ratio_null": seeing.sum("query") / seeing.count("query").where(lambda n: n > 0),
            "image_mass": own["image_mass"].mean("query"),
            "sink_mass": own["sink_mass"].mean("query"),
        }
    )
    table = columns.to_dataframe().reset_index().dropna(subset="image_mass")
    table.insert(2, "label", [str(Head(int(a), int(b), model.spec.main)) for a, b in
                              zip(table["layer"], table["head"], strict=True)])  # fmt: skip
    table.insert(4, "n", own.sizes["query"])
    return table.reset_index(drop=True)


def redistribution(
    model: Model,
    prompt: object,
    sinks: pd.DataFrame,
    *,
    move_fraction: float,
    rho: float = 0.5,
    least_mass: float = 0.2,
    queries: object = _AFTER,
    skip_last: bool = True,
) -> list[Intervention]:
    """Visual attention redistribution as interventions for `wb.intervening`, layer by layer.

    In image-centric rows (see `image_centric_heads`) of every head, `move_fraction` of the mass on
    all sinks of the layer, of text and image, goes to the image tokens that are no sinks, in
    proportion to the attention these receive; rows keep their sum.  `sinks` is a table of
    `visual_sinks` for this prompt.  `queries`: rows that may change; by default those behind the
    image and those generated later, which takes two interventions per layer.  The last layer is
    left as it is (`skip_last`), as are layers without visual sinks and those where every image
    token is one.  Kang et al. 2025, arXiv 2503.03321, section 5; numbers of their code go through
    `from_code`.  Raises like `image_centric_heads`.
    """
    _share("rho", rho)
    _share("least_mass", least_mass)
    _share("move_fraction", move_fraction)
    given = _prompt(model, prompt)
    last = model.spec.n_layers() - 1
    behind = tuple(range(given.after, len(given.ids)))
    rows = (behind, "generated") if queries == _AFTER else (queries,)
    return [
        Intervention.redistribute(
            _all_heads(model, layer), own.every, own.others, move_fraction, at,
            within="image", least_mass=least_mass, least_ratio=rho,
        )
        for layer, own in _sets(sinks, given).items()
        for at in rows
        if own.others and not (skip_last and layer == last)
    ]  # fmt: skip


def masking_effect(
    model: Model, prompt: object, sinks: pd.DataFrame, *, draws: int = 5, seed: int = 0
) -> pd.DataFrame:
    """What hiding the visual sinks costs, against hiding as many other image tokens.

    In every layer no head may look at the layer's visual sinks; then, `draws` times, at image
    tokens drawn in their place: one token stands for one sink in all layers, and none is a sink of
    any.  One row per run: `masked` ("visual sinks" or "random image tokens"), `draw`, `n_masked`
    tokens, `loss` (next token, mean over the text behind the image, nats), `loss_change` against
    the model as it is, and `kl`, nats, of its next-token distribution from the masked one, mean
    over the same positions.  `attrs`: `loss`, `seed`, `random_larger` (share of draws whose kl is
    above that of the sinks).  The paper finds no change for sinks and a loss for random tokens
    (Kang et al. 2025, arXiv 2503.03321, section 4).  Raises `WorkbenchError` without visual sinks
    or with fewer other image tokens than sinks.
    """
    given = _prompt(model, prompt)
    sets = _sets(sinks, given)
    union = np.unique([at for own in sets.values() for at in own.visual])
    others = np.setdiff1d(given.image, union)
    if not len(union) or len(others) < len(union) or draws < 1:
        raise WorkbenchError(
            f"masking {len(union)} visual sinks needs at least one, as many of the {len(others)} "
            f"other image tokens to compare with, and draws (now {draws}) of 1 or more."
        )
    rng = np.random.default_rng(seed)
    stand_ins = [union, *(rng.permutation(others)[: len(union)] for _ in range(draws))]
    intact = _next_token(model, given, [])
    ids = torch.as_tensor(given.ids[given.after :], device=intact.device).long()
    loss = float(cross_entropy(intact, ids))
    rows = []
    for draw, tokens in enumerate(stand_ins):
        place = dict(zip(union.tolist(), tokens.tolist(), strict=True))
        masks = [
            Intervention.drop_keys(_all_heads(model, layer), [place[at] for at in own.visual])
            for layer, own in sets.items()
        ]
        masked = _next_token(model, given, masks)
        rows.append(
            {
                "masked": "random image tokens" if draw else "visual sinks",
                "draw": draw,
                "n_masked": len(union),
                "loss": float(cross_entropy(masked, ids)),
                "kl": float(
                    kl_div(masked, intact, log_target=True, reduction="none").sum(-1).mean()
                ),
            }
        )
    table = pd.DataFrame(rows)
    table.insert(4, "loss_change", table["loss"] - loss)
    larger = float((table["kl"].iloc[1:] > table["kl"].iloc[0]).mean())
    table.attrs.update(loss=loss, seed=seed, random_larger=larger)
    return table


def _next_token(model: Model, prompt: _Prompt, interventions: list[Intervention]) -> torch.Tensor:
    """Log-probabilities [position, vocab] for every token behind the image."""
    with intervening(model, interventions), evaluating(model.net), torch.no_grad():
        logits = model.net(**prompt.inputs).logits[0]
    stop = prompt.begin + len(prompt.ids) - 1
    return logits[prompt.begin + prompt.after - 1 : stop].float().log_softmax(-1)


def _all_heads(model: Model, layer: int) -> str:
    return f"{KINDS[model.spec.main]}{layer}H*"


def _prompt(model: Model, prompt: object) -> _Prompt:
    if isinstance(prompt, Mapping):
        inputs = dict(prompt)
    else:
        (encoded,) = model.encode(prompt)
        inputs = {"input_ids": torch.as_tensor(encoded.ids)[None], **encoded.extra}
    inputs = {n: v.to(model.device) if torch.is_tensor(v) else v for n, v in inputs.items()}
    ids = inputs.get("input_ids")
    if ids is None or ids.shape[0] != 1:
        raise WorkbenchError(
            "one prompt with its input_ids is expected, since sinks differ from prompt to prompt; "
            f"got {'no input_ids' if ids is None else f'{ids.shape[0]} rows'}."
        )
    mask = inputs.get("attention_mask")
    whole = np.ones(ids.shape[1], dtype=bool)
    seen = whole if mask is None or mask.dim() != 2 else mask[0].bool().cpu().numpy()
    places = np.flatnonzero(seen)
    own = ids[0, places[0] : places[-1] + 1].cpu().numpy()
    roles = roles_of(own, model.special_ids, model.image_token_id, len(own))
    image = np.flatnonzero(roles == "image")
    if not len(image) or image[-1] == len(own) - 1:
        what = "has no text behind its image" if len(image) else "has no image tokens"
        raise WorkbenchError(
            f"the prompt {what} (the image token of {model.name} is {model.image_token_id}); give "
            "one with a picture and words behind it."
        )
    return _Prompt(inputs, own, int(places[0]), image)


def _sets(sinks: pd.DataFrame, prompt: _Prompt) -> dict[int, _Sinks]:
    """The sinks of every layer that has visual ones."""
    n_prompts = len(sinks["prompt"].unique())
    if n_prompts > 1:
        raise WorkbenchError(f"the table of sinks holds {n_prompts} prompts; give the rows of one.")
    visual = sinks[sinks["sink"] == "visual"]
    strange = [int(at) for at in visual["position"] if at not in prompt.image]
    if strange:
        raise WorkbenchError(
            f"position {strange[0]} is a visual sink in the table, but no image token of this "
            "prompt; give the sinks of the same prompt."
        )
    found = {}
    for layer, own in visual.groupby("layer"):
        at = tuple(int(p) for p in own["position"])
        every = sinks.loc[sinks["layer"] == layer, "position"]
        others = tuple(int(p) for p in np.setdiff1d(prompt.image, at))
        found[int(layer)] = _Sinks(at, tuple(int(p) for p in every), others)  # type: ignore[arg-type]
    return found
