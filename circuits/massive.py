"""Are massive activations a constant, and do sinks add a constant to every query?

Sun et al. 2024 (arXiv 2402.17762): a few activations are huge at a sink token, nearly the same for
every text, and the model needs them as a bias: setting them to zero ruins it, setting them to their
mean does not (section 3).  Attention turns them into a bias of its own (section 4, equation 2): the
part of a head's output that comes from sink keys, u_k = sum_{i in C} p_ki v_i, hardly depends on
the query k.  `massive_means` gives the values for these interventions, `bias_constancy` the number
the paper leaves to the eye.  Neither holds a map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.calls import Call
from workbench.capturing import capture
from workbench.chunks import Chunk
from workbench.errors import WorkbenchError
from workbench.guards import evaluating
from workbench.heads import KINDS, Head
from workbench.intervene_stream import stream_states
from workbench.kernels.attention_stats import attention_stats
from workbench.measuring import Asked, place
from workbench.models import Model
from workbench.probes.visual import find_sink_dims
from workbench.prompts import as_prompts

# What `find_sink_dims` needs.
_TOPS = ("resid_median", "resid_top_value", "resid_top_dim", "resid_top_position")


def massive_means(
    model: Model,
    prompts: object,
    layer: int,
    *,
    dims: Sequence[int] | None = None,
    at: int | None = None,
) -> pd.DataFrame:
    """The value of every massive dimension at the sink token after a layer, over prompts.

    One row per dimension: `dim, mean, sd` (over prompts, ddof 1), `n` prompts, `spread` = sd /
    |mean|, `null_spread`, the same for all other dimensions of these tokens (norm of the sd over
    norm of the mean), and `elsewhere`, the mean at the other tokens.  A constant that is no
    finding: a begin token that every prompt shares sees only itself in a causal tower, so that both
    spreads are 0 in any model; give prompts that begin differently.

    `dims`: default those `find_sink_dims` chooses on these prompts, none in a model without massive
    activations.  `at`: the position of the sink; default, in each prompt, the token with the
    largest |h| in these dimensions (the first token and a delimiter may both be sinks, with values
    of their own).  `attrs`: `site`, `positions` of the sink by prompt, `dims`.  For interventions:

        found = massive_means(model, prompts, 5, at=0)
        StreamEdit.set(found.attrs["site"], found["mean"], dims=found["dim"], at=0)

    Sun et al. 2024, arXiv 2402.17762, section 3.  Raises `WorkbenchError` for a layer or dimension
    that does not exist.
    """
    many = as_prompts(prompts)
    if dims is None:
        dims = find_sink_dims(capture(model, many, want=_TOPS)).attrs["sink_dims"]
    chosen = [int(dim) for dim in dims or ()]
    site = f"{KINDS[model.spec.main]}{layer} resid_post"
    here, others, positions = [], [], []
    for prompt in many if chosen else ():
        states = stream_states(model, site, prompt).astype("float64")
        n, width = states.shape
        if max(chosen) >= width or (at is not None and not -n <= at < n):
            raise WorkbenchError(
                f"dims={tuple(chosen)}, at={at}: the stream of this prompt has dimensions 0 to "
                f"{width - 1} and positions 0 to {n - 1}; choose among these."
            )
        position = int(abs(states[:, chosen]).max(axis=1).argmax()) if at is None else at % n
        positions.append(position)
        here.append(states[position])
        others.append(np.delete(states, position, axis=0))
    table = _constants(np.array(here), np.concatenate(others), chosen) if here else _nothing()
    table.attrs.update(site=site, positions=tuple(positions), dims=tuple(chosen))
    return table


def _constants(here: np.ndarray, others: np.ndarray, dims: list[int]) -> pd.DataFrame:
    """Rows of the table from states [prompt, d_model] at the sinks and [token, d_model] at the
    others."""
    mean, sd = _mean_sd(here)
    rest = np.delete(np.arange(here.shape[1]), dims)
    table = pd.DataFrame({"dim": dims, "mean": mean[dims], "sd": sd[dims], "n": len(here)})
    table["spread"] = table["sd"] / table["mean"].abs()
    table["null_spread"] = np.linalg.norm(sd[rest]) / np.linalg.norm(mean[rest])
    table["elsewhere"] = others[:, dims].mean(axis=0)
    return table


def _nothing() -> pd.DataFrame:
    names = ["dim", "mean", "sd", "n", "spread", "null_spread", "elsewhere"]
    return pd.DataFrame(columns=names).astype({"dim": "int64", "n": "int64"})


def _mean_sd(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd (ddof 1; NaN for a single row) of every column."""
    frame = pd.DataFrame(values)
    return frame.mean().to_numpy(), frame.std().to_numpy()


def bias_constancy(
    model: Model, prompt: object, sinks: Iterable[int], *, draws: int = 8, seed: int = 0
) -> pd.DataFrame:
    """How much the contribution of sink keys to a head's output depends on the query.

    mean_k ||u_k - u|| / ||u||, where u_k = sum_{i in C} p_ki v_i is what the keys C = `sinks`
    (positions) give to query k and u its mean over queries; 0 for a constant bias (Sun et al. 2024,
    arXiv 2402.17762, equation 2; the ratio is ours).  One row per head: `layer, head, label,
    value`, `n` queries, `mass` (mean weight on C), `null` and `null_sd`: the same over `draws`
    random sets of as many other keys.  Counted are the queries of the second half of the prompt
    that come after all sinks; random sets lie before them, so that every counted query of a causal
    tower sees all keys compared.  NaN where the keys give nothing.  Raises `WorkbenchError` for
    positions outside the prompt or too few others to draw from.
    """
    (encoded,) = model.encode(prompt)
    chosen = sorted({int(i) for i in sinks})
    start = max(len(encoded) // 2, chosen[-1] + 1) if chosen else len(encoded)
    others = np.setdiff1d(np.arange(start), chosen)
    if not chosen or chosen[0] < 0 or start > len(encoded) - 2 or len(others) < len(chosen):
        raise WorkbenchError(
            f"sinks={tuple(chosen)}: positions of a prompt of {len(encoded)} tokens are needed, "
            "two or more queries behind them, and as many other keys before these to draw from."
        )
    rng = np.random.default_rng(seed)
    sets = [
        chosen,
        *(rng.choice(others, len(chosen), replace=False).tolist() for _ in range(draws)),
    ]
    rows: list[dict[str, Any]] = []

    def listen(call: Call) -> None:
        if call.site.kind == model.spec.main:
            rows.extend(_constancy(call, sets, start))

    ids = torch.as_tensor(encoded.ids, device=model.device)[None]
    extra = {n: v.to(model.device) if torch.is_tensor(v) else v for n, v in encoded.extra.items()}
    with model.open_tap(listen), evaluating(model.net), torch.no_grad():
        model.net(input_ids=ids, **extra)
    table = pd.DataFrame(rows).sort_values(["layer", "head"], ignore_index=True)
    table.attrs.update(sinks=tuple(chosen), draws=draws, seed=seed)
    return table


def _constancy(call: Call, sets: list[list[int]], start: int) -> list[dict[str, Any]]:
    """A row per head of one call."""
    groups = call.site.n_heads // call.site.n_kv_heads
    width = call.v.shape[-1]
    # The values of each set's keys, zero for the others, and an indicator of the sinks themselves.
    features = torch.zeros(*call.v.shape[:3], len(sets) * width + 1, device=call.v.device)
    for s, keys in enumerate(sets):
        features[:, :, keys, s * width : (s + 1) * width] = call.v[:, :, keys].float()
    features[:, :, sets[0], -1] = 1
    terms = place(call, Chunk(0, 0, call.q.shape[2], call.k.shape[2], 1), None,
                  Asked(call.site.kind, (), {"key_features": features}))  # fmt: skip
    found = attention_stats(call.q, call.k, ["feature_mass"], **terms)["feature_mass"][0]
    for head, replaced in call.patterns.items():
        found[head] = replaced[0].to(features) @ features[0, head // groups]
    rows = []
    for head, own in enumerate(found[:, start:].double().cpu().numpy()):
        parts = own[:, :-1].reshape(len(own), len(sets), width)
        value, *null = (_spread(parts[:, s]) for s in range(len(sets)))
        null_mean, null_sd = _mean_sd(np.array(null)[:, None])
        label = Head(call.site.layer, head, call.site.kind)
        rows.append(
            {
                "layer": call.site.layer, "head": head, "label": str(label), "value": value,
                "n": len(own), "null": float(null_mean[0]), "null_sd": float(null_sd[0]),
                "mass": float(own[:, -1].mean()),
            }
        )  # fmt: skip
    return rows


def _spread(u: np.ndarray) -> float:
    """mean_k ||u_k - u|| / ||u|| of vectors [query, d_value]."""
    mean = u.mean(axis=0)
    size = float(np.linalg.norm(mean))
    return float(np.linalg.norm(u - mean, axis=1).mean()) / size if size else float("nan")
