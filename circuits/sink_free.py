"""Texts without a natural sink: does the model still park its attention on the first token?

Gu et al. 2024 (arXiv 2410.10781, section 3 and its propositions) compare Sink_1 on natural text, on
random tokens and on one token repeated.  Repetition is the case with a proof.  Where positions
enter only through scores, equal tokens have equal states in every layer (all values of a layer are
equal, and any mixture of them is that value), so that nothing but position tells keys apart:

    no position in the scores    A[t, i] = 1 / n exactly, n the keys that t sees
    position bias b (ALiBi)      A[t, 1] = p = exp(b[t, 1]) / sum_i exp(b[t, i]) exactly
    rotary                       A[t, 1] <= e^(2 xi) / (e^(2 xi) + n - 1)
    both                         A[t, 1] <= p e^(2 xi) / (p e^(2 xi) + 1 - p)

The last holds all: xi = 0 without rotation, p = 1 / n without bias.  xi of a head is the largest
|score| that its norms allow, scale * max_t ||q_t|| * max_j ||k_j|| after rotation, which leaves
norms alone.  Proof: by Cauchy and Schwarz every score lies in -xi .. xi, so the weight of the first
key is largest with xi on it and -xi on all others.  A softcap shrinks scores, a learned sink logit
adds to the denominator: both only lower A.

Exempt is what makes equal tokens differ: learned and absolute positions, and behind a first layer
with a learned sink logit all others, since what it takes of a row depends on the row's number of
keys.  Which case a layer is in is measured on its q, k and v, not read from a name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.calls import Call
from workbench.capturing import capture
from workbench.errors import WorkbenchError
from workbench.guards import evaluating
from workbench.heads import Head
from workbench.kernels.attention_stats import attention_stats
from workbench.models import Model
from workbench.probes.sinks import first_token_above, first_token_alpha
from workbench.prompts import Prompt
from workbench.verify import returned_maps

LENGTH = 64
NATURAL, RANDOM, REPEATED = "natural", "random tokens", "one token repeated"
HOLDS, VIOLATED = "holds", "violated"
STATES_DIFFER = "not applicable: equal tokens have states that differ by position"
NO_SCORES = "not applicable: the scores of this model cannot be read"
NO_STATEMENT = "no statement about this text"
# By dtype: the relative difference below which vectors count as equal, and how far rounding may
# carry a weight from its bound.
_SAME = {"float64": 1e-9, "float32": 1e-3}
_SAME_HALF = 5e-2
_ROUNDING = {"float64": 1e-9, "float32": 1e-4}
_ROUNDING_HALF = 5e-2
# Families that keep their own attention and take a slope times the distance off the scores.
_ALIBI = ("bloom", "mpt")


def sink_free_checks(
    model: Model,
    prompts: object,
    *,
    T: int = LENGTH,
    epsilon: float = 0.3,
    n: int = 16,
    seed: int = 0,
) -> pd.DataFrame:
    """Gu's Sink_1 on natural text, on random tokens and on one token repeated, one row each.

    `prompts` are cut to T tokens; the other two texts are `n` prompts of T plain tokens drawn by
    `seed`, without a begin token.  Columns: `text, attention`; `value`, Sink_1, the percentage of
    (prompt, layer, head) with alpha_1 > `epsilon`; `alpha`, mean alpha_1, and `null`, that of even
    attention (probability); `bound`, of repeated tokens the percentage whose bound on alpha_1 is
    above epsilon, NaN elsewhere; `verdict` on it, see `repeated_token`; `T`, `epsilon`, `n`
    prompts.  With the null mass.  Raises `WorkbenchError` for prompts shorter than T, a vocabulary
    smaller than T and sequence-to-sequence models.
    """
    cut = [Prompt(token_ids=tuple(one.ids[:T].tolist())) for one in model.encode(prompts)]
    texts = {NATURAL: cut, RANDOM: [Prompt(token_ids=ids) for ids in _random(model, T, n, seed)]}
    rows = []
    for text, given in texts.items():
        stats = capture(model, given, want=["first_mass", "n_visible"])
        above, _, used = first_token_above(stats, epsilon, T, False)
        alpha, even, _ = first_token_alpha(stats, T)
        numbers = (100 * float(above.mean()), float(alpha.mean()), float(even.mean()), np.nan)
        rows.append((text, *numbers, NO_STATEMENT, used, len(given)))
    each = _repeated(model, T, n, seed)
    alpha, even, bound = (each[name].to_numpy() for name in ("alpha", "null", "bound"))
    share = 100 * np.mean(bound > epsilon) if np.isfinite(bound).all() else np.nan
    numbers = (100 * np.mean(alpha > epsilon), alpha.mean(), even.mean(), share)
    rows.append((REPEATED, *numbers, _joint(set(each["verdict"])), T, n))
    columns = ["text", "value", "alpha", "null", "bound", "verdict", "T", "n"]
    table = pd.DataFrame(rows, columns=columns).assign(epsilon=epsilon)
    table.insert(1, "attention", "softmax")
    table.attrs.update(seed=seed, null_mass="with")
    return table


def _joint(found: set[str]) -> str:
    """One verdict for all heads: a violation anywhere, else an exemption anywhere, else holds."""
    return next((v for v in (VIOLATED, STATES_DIFFER, NO_SCORES) if v in found), HOLDS)


def repeated_token(
    model: Model, *, T: int = LENGTH, epsilon: float = 0.3, n: int = 4, seed: int = 0
) -> pd.DataFrame:
    """Each head's attention to the first of T equal tokens, beside the bound that is proved.

    `n` prompts, each one plain token T times.  Columns: `layer, head, label`; `encoding`, how
    positions enter the layer ("none", "rotary", "bias", "rotary + bias", "states", "unknown");
    `value`, alpha_1 over all queries, mean over prompts, and `null`, that of even attention (H_T/T
    when causal; both 0..1); `xi`, nats, the largest over prompts; `bound`, mean of the bound over
    the same rows (NaN where none applies, as xi); `excess`, the largest A - bound of any row, for
    "none" and "bias" |A - bound|, as the bound is reached there unless a learned sink takes its
    part; `excludes_sink`, whether the bound keeps alpha_1 at `epsilon` or below: one near 1 holds
    and says nothing; `verdict`: holds, violated, or not applicable and why.  Errors as in
    `sink_free_checks`.
    """
    each = _repeated(model, T, n, seed)
    groups = each.groupby(["layer", "head", "label", "encoding", "verdict"], sort=False)
    table = groups.agg(
        value=("alpha", "mean"),
        null=("null", "mean"),
        xi=("xi", "max"),
        bound=("bound", "mean"),
        largest=("bound", "max"),
        excess=("excess", "max"),
    ).reset_index()
    table["excludes_sink"] = table.pop("largest") <= epsilon
    table["verdict"] = table.pop("verdict")
    table.attrs.update(T=T, epsilon=epsilon, n=n, seed=seed, null_mass="with")
    return table


def _random(model: Model, T: int, n: int, seed: int) -> list[tuple[int, ...]]:
    """`n` times T different plain tokens, without a begin token."""
    if model.is_seq2seq:
        raise WorkbenchError(
            f"{model.name} is a sequence-to-sequence model; texts without a sink are given to one "
            "tower that reads them whole."
        )
    config = getattr(model.net.config, "text_config", model.net.config)
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(longest, int) and longest < T:
        raise WorkbenchError(
            f"T={T} is more than the {longest} positions {model.name} has; give a smaller T."
        )
    drawn = [prompt.token_ids or () for prompt in model.repeated_tokens(T, n, seed=seed)]
    return [ids[len(ids) % 2 :][:T] for ids in drawn]


def _repeated(model: Model, T: int, n: int, seed: int) -> pd.DataFrame:
    """One row per layer, head and repeated token: `layer, head, label, encoding, alpha, null, xi,
    bound, excess, verdict`."""
    ids = torch.tensor([[one[0]] * T for one in _random(model, T, n, seed)], device=model.device)
    returned = any(site.tap == "returned" for site in model.spec.sites)
    found = _from_maps(model, ids) if returned else _from_calls(model, ids)
    rounding = _ROUNDING.get(model.dtype, _ROUNDING_HALF)
    parts = []
    for layer, read in sorted(found.items()):
        first, even = read["first"], read["even"]
        bound = read.get("bound", torch.full_like(first, torch.nan))
        gap = first - bound
        if read["reached"]:
            gap = gap.abs()
        excess = gap.amax(-1)
        holds = torch.where(excess <= rounding, 1.0, 0.0).numpy().astype(bool)
        verdict = np.where(holds, HOLDS, VIOLATED)
        if "bound" not in read:
            verdict = np.full(excess.shape, NO_SCORES if returned else STATES_DIFFER)
        rows, heads = (i.ravel() for i in np.indices(excess.shape))
        part = {
            "layer": layer,
            "head": heads,
            "label": [str(Head(layer, int(h), model.spec.main)) for h in heads],
            "encoding": read["encoding"],
            "alpha": first.mean(-1).numpy()[rows, heads],
            "null": even.mean(-1).expand_as(excess).numpy()[rows, heads],
            "xi": read["xi"].numpy()[rows, heads],
            "bound": bound.mean(-1).numpy()[rows, heads],
            "excess": excess.numpy()[rows, heads],
            "verdict": verdict[rows, heads],
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def _from_calls(model: Model, ids: torch.Tensor) -> dict[int, dict[str, Any]]:
    """What every layer did with repeated tokens, from its q, k, v; see `_read`."""
    found: dict[int, dict[str, Any]] = {}
    same = _SAME.get(model.dtype, _SAME_HALF)

    def listen(call: Call) -> None:
        if call.site.kind == model.spec.main:
            found[call.site.layer] = _read(call, same)

    cache = {"use_cache": False} if model.accepts("use_cache") else {}
    with model.open_tap(listen), torch.no_grad(), evaluating(model.net):
        model.net(input_ids=ids, **cache)
    return found


def _read(call: Call, same: float) -> dict[str, Any]:
    """`encoding` of a layer; `first`, `even` and, where it applies, `bound` [prompt, head, query],
    `xi` [prompt, head], and whether the bound is `reached`.  Float64, on the CPU."""
    q, k = call.q.double(), call.k.double()
    terms = dict(call.terms)
    sink = terms.pop("sink_logit", None)
    first = _first(q, k, terms if sink is None else terms | {"sink_logit": sink})
    nothing = torch.zeros_like(q)
    read: dict[str, Any] = {
        "reached": False,
        "first": first,
        "even": _first(nothing, k, {name: t for name, t in terms.items() if name != "bias"}),
        "xi": torch.full(first.shape[:2], torch.nan, dtype=torch.float64),
    }
    norms = [x.norm(dim=-1, keepdim=True) for x in (q, k)]
    if max(_spread(x) for x in (call.v.double(), *norms)) > same:
        return read | {"encoding": "states"}
    rotary = max(_spread(q), _spread(k)) > same
    groups = q.shape[1] // k.shape[1]
    longest = [x.amax((2, 3)) for x in norms]
    xi = terms.get("scale", q.shape[-1] ** -0.5) * longest[0]
    xi = (xi * longest[1].repeat_interleave(groups, dim=1)).cpu() * rotary
    # The share of the first key if only the position bias spoke; 1/n without one.
    share = _first(nothing, k, terms)
    parts = [name for name, is_in in (("rotary", rotary), ("bias", "bias" in terms)) if is_in]
    # p e^(2 xi) / (p e^(2 xi) + 1 - p), without the powers.
    bound = torch.sigmoid(2 * xi[..., None] + torch.logit(share))
    read |= {"encoding": " + ".join(parts) or "none", "xi": xi, "bound": bound}
    return read | {"reached": sink is None and not rotary}


def _first(q: torch.Tensor, k: torch.Tensor, terms: dict[str, Any]) -> torch.Tensor:
    """Weight on key 0, [prompt, head, query]."""
    return attention_stats(q, k, ["first_mass"], **terms)["first_mass"].double().cpu()


def _spread(x: torch.Tensor) -> float:
    """Largest difference between positions, relative to the largest value; x [.., position, d]."""
    return float((x - x[:, :, :1]).abs().max() / x.abs().max().clamp(min=1e-30))


def _from_maps(model: Model, ids: torch.Tensor) -> dict[int, dict[str, Any]]:
    """The same for families that keep their own attention: only ALiBi, which they declare, says
    something about a map alone.  There p <= 1/n, since the first key is the farthest."""
    with evaluating(model.net):
        maps = returned_maps(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    config = model.net.config
    alibi = model.spec.family in _ALIBI or bool(getattr(config, "alibi", False))
    found = {}
    for layer, p in enumerate(maps):
        first = p[..., 0].double().cpu()
        even = torch.ones(p.shape[-1], dtype=torch.float64)
        even = even.cumsum(0) if model.spec.of()[layer].causal else even * p.shape[-1]
        read = {
            "reached": False,
            "first": first,
            "even": (1 / even).expand_as(first),
            "xi": torch.full(first.shape[:2], torch.nan, dtype=torch.float64),
            "encoding": "bias" if alibi else "unknown",
        }
        found[layer] = read | ({"bound": read["even"]} if alibi else {})
    return found


def proxy_pattern(weights: np.ndarray) -> np.ndarray:
    """|w| / sum |w| per row of maps that are no softmax, [.., query, key]; rows without any weight
    stay 0.

    What Gu et al. (arXiv 2410.10781) measure ReLU, sigmoid and linear attention by; a factor on a
    row (1/n, a missing normalisation) does not change it.
    """
    size = np.abs(np.asarray(weights, dtype=np.float64))
    total = size.sum(-1, keepdims=True)
    return size / np.where(total > 0, total, 1.0)


def proxy_sink_rate(
    weights: np.ndarray, activation: str, *, T: int = LENGTH, epsilon: float = 0.3
) -> pd.DataFrame:
    """Sink_1 of maps that are no softmax, as a row of `sink_free_checks`: natural text, by proxy.

    `weights` [prompt, layer, head, query, key], whose first T queries count; `activation` names
    what made them ("relu", "sigmoid", "linear") and stands in the column `attention` with the
    word proxy, since its numbers compare with a softmax's in kind only.  Raises `WorkbenchError`
    for fewer than T queries.
    """
    if weights.ndim != 5 or weights.shape[-2] < T:
        raise WorkbenchError(
            f"weights of shape {weights.shape}: [prompt, layer, head, query, key] with {T} queries "
            "or more was expected."
        )
    alpha = proxy_pattern(weights)[..., :T, 0].mean(-1)
    row = {
        "text": NATURAL,
        "attention": f"{activation}, proxy |w| / sum |w|",
        "value": 100 * (alpha > epsilon).mean(),
        "alpha": alpha.mean(),
        "null": (1 / np.arange(1, T + 1)).mean(),
        "bound": np.nan,
        "verdict": NO_STATEMENT,
        "T": T,
        "n": len(weights),
        "epsilon": epsilon,
    }
    return pd.DataFrame([row])
