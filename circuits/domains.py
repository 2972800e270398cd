"""Does a head matter where it looks elsewhere, and not where it is parked on the first token?

Guo et al. 2024 (arXiv 2410.13835, section 4) remove a head of Llama-2-7B and plot the change of the
loss over its mean weight on the first token, one point per text: on Wikipedia the head is parked
and costs nothing, on GitHub it works.  `loss_by_domain` gives that scatter's columns for any heads
and kinds of text, each beside another head of the same layer; the same call on
`controls.untrained(model)` is the other control.  Cost: one pass over the prompts per head and
control, and one for the whole model, in padded batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import bootstrap
from torch.nn.functional import cross_entropy

from workbench.capturing import capture
from workbench.circuits.effects import Progress, predicts
from workbench.encode import Encoded
from workbench.errors import WorkbenchError
from workbench.guards import evaluating
from workbench.heads import Head, parse_heads
from workbench.intervene import intervening, mean_z
from workbench.interventions import Intervention
from workbench.models import Model
from workbench.probes.domains import Domains, domain_names, domain_sink_rate
from workbench.prompts import Prompt, as_prompts
from workbench.stats import HeadStats

REMOVALS = ("zero", "mean")
_MEASURED = (
    "label", "domain", "change", "low", "high", "loss", "n", "tokens", "control", "control_change"
)  # fmt: skip
LENGTH = 64


@dataclass(frozen=True)
class Losses:
    """Next-token losses of some prompts: `total` [prompt], nats, the sum over the `n` [prompt]
    predictions of each."""

    total: np.ndarray
    n: np.ndarray


def prompt_losses(model: Model, prompts: object, *, batch_size: int = 8) -> Losses:
    """Next-token loss of every prompt under whatever interventions are open, in padded batches.

    Prompts of like length share a batch, padded on the right, so that a causal model never sees
    the padding; predictions of padding are no predictions.  Raises `WorkbenchError` for a model
    that predicts no next token, a prompt with images, and a prompt of one token.
    """
    if not predicts(model):
        raise WorkbenchError(
            f"{model.name} predicts no next token, so removing a head has no loss to change; use a "
            "decoder with an output vocabulary."
        )
    if batch_size < 1:
        raise WorkbenchError(f"batch_size={batch_size}: a batch holds 1 prompt or more.")
    encoded = model.encode(prompts)
    for number, one in enumerate(encoded):
        if one.extra or len(one) < 2:
            what = "holds images" if one.extra else "has one token"
            raise WorkbenchError(
                f"prompt {number} {what}; a loss needs text of two tokens or more."
            )
    total = np.zeros(len(encoded))
    order = np.argsort([len(one) for one in encoded], kind="stable")
    with torch.no_grad(), evaluating(model.net):
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            total[members] = _batch_losses(model, [encoded[i] for i in members])
    return Losses(total, np.array([len(one) - 1 for one in encoded]))


def _batch_losses(model: Model, encoded: Sequence[Encoded]) -> list[float]:
    longest = max(len(one) for one in encoded)
    # Which id pads does not matter: the mask hides it, and no loss is taken of it.
    ids = torch.zeros(len(encoded), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(encoded):
        ids[row, : len(one)] = torch.as_tensor(one.ids)
        mask[row, : len(one)] = 1
    cache = {"use_cache": False} if model.accepts("use_cache") else {}
    device = model.device
    out = model.net(input_ids=ids.to(device), attention_mask=mask.to(device), **cache)
    # Row by row: the logits of a whole batch in float32 are as large as the model's own.
    return [
        float(cross_entropy(logits[: len(one) - 1].float(), own[1 : len(one)], reduction="sum"))
        for logits, own, one in zip(out.logits, ids.to(device), encoded, strict=True)
    ]


def loss_by_domain(
    model: Model,
    prompts: object,
    domains: Domains,
    heads: Any,
    *,
    how: str = "zero",
    batch_size: int = 8,
    epsilon: float = 0.3,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """What removing each of `heads` costs on every domain, beside where the head looks there.

    `domains`: a name per prompt; `heads`: labels, selectors or a table's `label` column; `how`:
    "zero", or "mean" (z replaced by its mean over all tokens of all prompts).  One row per head and
    domain: `layer, head, label, domain`; `attention`, mean weight on the first key of all later
    queries (0..1), and `sink_rate` (as in `first_token_sink_rate`, T the shortest prompt or 64):
    the scatter's x; `change`, edited minus whole next-token loss, nats per token: its y; `low,
    high`, 95 % percentile bootstrap over prompts of the paired change (NaN for one prompt); `loss`
    of the whole model; `n` prompts, `tokens` predictions; `control`, another head of the layer that
    is not in `heads`, drawn by `seed` (empty where there is none), and `control_change`.
    `progress(done, total, label)` counts passes.  Raises `WorkbenchError` as `prompt_losses` does,
    for heads that do not exist, and for domains that do not fit the prompts.
    """
    if how not in REMOVALS:
        raise WorkbenchError(f"how={how!r} removes no head; give one of {', '.join(REMOVALS)}.")
    many = as_prompts(prompts)
    names = domain_names(range(len(many)), domains)
    spec = model.spec
    chosen = parse_heads(heads, spec.n_layers(), spec.n_heads(), spec.main)
    control = _controls(model, chosen, seed)
    whole = prompt_losses(model, many, batch_size=batch_size)
    removed: dict[Head, Losses] = {}
    wanted = dict.fromkeys([*chosen, *control.values()])
    for done, head in enumerate(wanted, 1):
        with intervening(model, _removal(model, head, how, many)):
            removed[head] = prompt_losses(model, many, batch_size=batch_size)
        if progress:
            progress(done, len(wanted), str(head))
    stats = capture(model, many, want=["first_mass", "n_visible"])
    looks, settings = _looks(stats, names, epsilon)
    rows = []
    for head, name in product(chosen, sorted(set(names))):
        here = np.array(names) == name
        other = control.get(head)
        beside = _mean_change(whole, removed[other], here) if other else np.nan
        measured = (*_change(whole, removed[head], here, seed), *_of_whole(whole, here))
        rows.append((str(head), name, *measured, str(other or ""), beside))
    table = looks.merge(pd.DataFrame(rows, columns=list(_MEASURED)), on=["label", "domain"])
    table.attrs.update(settings, how=how, seed=seed, units="nats per token")
    return table


def _removal(model: Model, head: Head, how: str, prompts: list[Prompt]) -> Intervention:
    if how == "zero":
        return Intervention.zero(head)
    return Intervention.mean(head, mean_z(model, head, prompts))


def _controls(model: Model, chosen: Sequence[Head], seed: int) -> dict[Head, Head]:
    """For every head another one of its layer that is not asked about, drawn by `seed`."""
    rng = np.random.default_rng(seed)
    found = {}
    for head in chosen:
        site = next((s for s in model.spec.of(head.kind) if s.layer == head.layer), None)
        others = [Head(head.layer, h, head.kind) for h in range(site.n_heads if site else 0)]
        others = [other for other in others if other not in chosen]
        if others:
            found[head] = others[rng.integers(len(others))]
    return found


def _looks(stats: HeadStats, names: Sequence[str], epsilon: float) -> tuple[pd.DataFrame, dict]:
    """`layer, head, label, domain, attention, sink_rate`, and the settings of the rate."""
    length = min(LENGTH, int(stats.lengths.min()))
    rates = domain_sink_rate(stats, names, epsilon=epsilon, T=length)
    later = stats["first_mass"].astype("float64").where(stats["first_mass"]["query"] > 0)
    domain = xr.DataArray(list(names), dims="prompt", name="domain")
    attention = later.groupby(domain).mean(("prompt", "query")).rename("attention")
    long = attention.to_dataframe().reset_index()
    table = rates.merge(long, on=["layer", "head", "domain"])
    table = table.loc[:, ["layer", "head", "label", "domain", "attention", "rate"]]
    return table.set_axis([*table.columns[:-1], "sink_rate"], axis=1), rates.attrs


def _mean_change(whole: Losses, removed: Losses, here: np.ndarray) -> float:
    """Change of the mean loss per token over the prompts marked by `here`."""
    return float((removed.total - whole.total)[here].sum() / whole.n[here].sum())


def _of_whole(whole: Losses, here: np.ndarray) -> tuple[float, int, int]:
    """Loss of the whole model, prompts and predictions of a domain."""
    tokens = int(whole.n[here].sum())
    return float(whole.total[here].sum() / tokens), int(here.sum()), tokens


def _change(
    whole: Losses, removed: Losses, here: np.ndarray, seed: int
) -> tuple[float, float, float]:
    """The same with its interval: prompts are drawn again, each with both of its losses."""
    change = _mean_change(whole, removed, here)
    if here.sum() < 2:
        return change, np.nan, np.nan
    interval = bootstrap(
        ((removed.total - whole.total)[here], whole.n[here]),
        lambda differences, n, axis=-1: differences.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return change, float(interval.low), float(interval.high)
