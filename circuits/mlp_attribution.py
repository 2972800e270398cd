"""Which MLP makes a token a secondary sink, and which of its neurons?

At the layer where a sink begins, its MLP writes a vector along the residual direction of the
primary sink, and the norm of that vector goes with the sink's lifetime and score (Wong et al. 2025,
arXiv 2512.22213).  Four looks at it: the cosine of every state of the MLP with the primary sink's,
the share of each neuron, the part of the input space that is mapped onto the direction, and a
larger or smaller vector.  Each stands beside other positions, random inputs or the unchanged run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.decomposition import PCA

from workbench.capturing import capture
from workbench.circuits.mlp_states import (
    STATES,
    down_columns,
    feed,
    mlp_of,
    states_around,
)
from workbench.errors import WorkbenchError
from workbench.intervene import intervening
from workbench.models import Model
from workbench.probes.secondary import primary_sink, secondary_sinks
from workbench.prompts import as_prompts
from workbench.stats import HeadStats
from workbench.stream_edits import StreamEdit

# What `secondary_sinks` needs.
_WANT = ("resid_norm", "resid_cos", "resid_cos_trimmed", "key_mean", "key_count", "n_visible")


def residual_direction(model: Model, prompt: object, layer: int, position: int = 0) -> np.ndarray:
    """Unit vector [d_model] of one position's residual state behind a layer, float64.

    With the primary sink's position: the direction that secondary sinks take.
    """
    states = states_around(model, prompt, layer)["resid_post"]
    return _unit(_row(states, position, "position"))


def creating_layer_cosines(
    model: Model, prompt: object, layer: int, position: int, primary: int = 0
) -> pd.DataFrame:
    """Where in a layer a position turns towards the primary sink, state by state.

    Rows: `resid_pre`, the states of the MLP (`workbench.circuits.mlp_states.STATES`),
    `resid_post`.  Columns: `state`; `cosine` with the primary sink's same state; `direction`,
    cosine with the primary sink's `resid_post`, for states of the residual width (else NaN);
    `norm`, L2; `control_mean, control_max` and `control_direction_mean, control_direction_max`,
    the |cosines| of the control positions: those with the same token id, or all others where there
    are none (which: `table.attrs["control"]`, their number `n_control`).  Wong et al. 2025 (arXiv
    2512.22213): at l_start the cosine is unremarkable up to `up` and close to 1 at `down`.
    """
    states = states_around(model, prompt, layer)
    controls, which = _controls(states["ids"], position, primary)
    unit = _unit(_row(states["resid_post"], primary, "primary"))
    rows = []
    for name in ("resid_pre", *(n for n in STATES if n in states), "resid_post"):
        state = states[name].astype("float64")
        own = _row(state, position, "position")
        same = _cosines(state, state[primary])
        wide = name in ("resid_pre", "input", "down", "resid_post")
        along = _cosines(state, unit) if wide else np.full(len(state), np.nan)
        rows.append(
            {
                "state": name,
                "cosine": same[position],
                "direction": along[position],
                "norm": np.linalg.norm(own),
                **_spread("control", same[controls]),
                **_spread("control_direction", along[controls]),
            }
        )
    table = pd.DataFrame(rows)
    table.attrs.update(layer=layer, position=position, primary=primary, control=which)
    table.attrs["n_control"] = len(controls)
    return table


def attribute(
    model: Model,
    prompt: object,
    layer: int,
    position: int,
    direction: object,
    *,
    top: int | None = 20,
    primary: int = 0,
) -> pd.DataFrame:
    """Which neurons of an MLP write a direction [d_model] at one position.

    contribution of neuron n = product_n * <column n of down, unit direction>; all of them and the
    bias of down sum to <down, unit direction> (before a norm that some families put behind it).
    Columns, the `top` largest in size first (None: all): `neuron, contribution`, `share` of the sum
    over neurons, `product`, `cosine` of the neuron's column with the direction, `control`, the mean
    contribution at the control positions (as in `creating_layer_cosines`).  `table.attrs`: `total`
    over all neurons, `bias`, `output` (<down, unit direction>), `control_total`, `control`,
    `n_control`.  Raises `WorkbenchError` for a direction of another width.
    """
    states, columns = states_around(model, prompt, layer), down_columns(model, layer)
    unit = _unit(_direction(direction, columns.shape[1]))
    controls, which = _controls(states["ids"], position, primary)
    product = _row(states["product"].astype("float64"), position, "position")
    along = columns @ unit
    contribution = product * along
    with_mean = states["product"][controls].astype("float64")
    control = with_mean.mean(axis=0) * along if len(controls) else np.full(len(along), np.nan)
    total, output = contribution.sum(), states["down"][position].astype("float64") @ unit
    table = pd.DataFrame(
        {
            "neuron": np.arange(len(along)),
            "contribution": contribution,
            "share": contribution / total if total else np.nan,
            "product": product,
            "cosine": _cosines(columns, unit),
            "control": control,
        }
    )
    order = np.argsort(-np.abs(contribution), kind="stable")[:top]
    table = table.iloc[order].reset_index(drop=True)
    module = model.net.get_submodule(mlp_of(model, layer).down)
    bias = getattr(module, "bias", None)
    table.attrs.update(
        layer=layer,
        position=position,
        total=float(total),
        bias=0.0 if bias is None else float(bias.detach().double().cpu().numpy() @ unit),
        output=float(output),
        control=which,
        control_total=float(control.sum()),
        n_control=len(controls),
    )
    return table


def sink_inputs(
    model: Model, prompts: object, sinks: pd.DataFrame, layer: int, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """MLP inputs of the sinks that begin at a layer and of as many same-token others.

    `sinks` is the table of `workbench.probes.secondary_sinks` on the same prompts.  Returns
    (inputs [n, d_model], is_sink [n]); fewer others where the tokens do not occur often enough.
    Raises `WorkbenchError` where no sink begins there.
    """
    begins = sinks["l_start"].to_numpy() == layer
    if not begins.any():
        raise WorkbenchError(f"no sink of the table begins at layer {layer}; see its l_start.")
    of, at, ids, primary = (
        sinks[name].to_numpy()[begins] for name in ("prompt", "position", "id", "primary")
    )
    found, others = [], []
    for number, prompt in enumerate(as_prompts(prompts)):
        mine = of == number
        states = states_around(model, prompt, layer)
        same = np.isin(states["ids"], ids)
        # Sinks that begin elsewhere are no control, nor is the primary sink.
        same[sinks["position"].to_numpy()[sinks["prompt"].to_numpy() == number]] = False
        same[: 1 + primary[mine].max(initial=0)] = False
        found.append(states["input"][at[mine]])
        others.append(states["input"][same])
    inputs, pool = np.concatenate(found), np.concatenate(others)
    chosen = np.random.default_rng(seed).permutation(len(pool))[: len(inputs)]
    is_sink = np.arange(len(inputs) + len(chosen)) < len(inputs)
    return np.concatenate([inputs, pool[chosen]]), is_sink


def pca_through_mlp(
    model: Model,
    layer: int,
    inputs: object,
    direction: object,
    n_components: int = 10,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """What the MLP makes of the principal directions of its inputs: the direction, or another one?

    Unit principal components of the centred `inputs` [n, d_model] (of `sink_inputs`), with either
    sign, go through the MLP; Wong et al. 2025 (arXiv 2512.22213) find |cos| > .98 with the primary
    sink's for the first six.  Columns: `component` (1 is the first), `sign, explained` (share of
    the variance), `cosine` with the direction, `norm` of the output (cosine NaN at norm 0), `null`
    the mean |cosine| of as many random unit inputs (`table.attrs["null_max"]` the largest).
    Raises `WorkbenchError` for too few inputs.
    """
    x = np.asarray(inputs, dtype="float64")
    unit = _unit(_direction(direction, down_columns(model, layer).shape[1]))
    most = min(x.shape) if x.ndim == 2 else 0
    if x.ndim != 2 or x.shape[1] != len(unit) or not 1 <= n_components <= most:
        raise WorkbenchError(
            f"inputs of shape {x.shape} have no {n_components} principal components; give "
            f"[n, {len(unit)}] inputs of the MLP and at most n components."
        )
    pca = PCA(n_components, svd_solver="full").fit(x)
    signs = np.tile([1, -1], n_components)
    fed = np.repeat(np.asarray(pca.components_), 2, axis=0) * signs[:, None]
    random = np.random.default_rng(seed).normal(size=fed.shape)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    out = feed(model, layer, np.concatenate([fed, random])).astype("float64")
    cosine = _cosines(out, unit)
    null = _spread("null", cosine[len(fed) :])
    table = pd.DataFrame(
        {
            "component": np.repeat(np.arange(1, n_components + 1), 2),
            "sign": signs,
            "explained": np.repeat(pca.explained_variance_ratio_, 2),
            "cosine": cosine[: len(fed)],
            "norm": np.linalg.norm(out[: len(fed)], axis=1),
            "null": null["null_mean"],
        }
    )
    table.attrs.update(layer=layer, null_max=null["null_max"], n=len(x))
    return table


def norm_against_lifetime(sinks: pd.DataFrame) -> pd.DataFrame:
    """Do sinks of larger norm live longer and receive more: Spearman's rho over the rows.

    Of `norm_start` with `lifetime` and with `score`.  Columns: `against, rho, p` (two-sided,
    against no relation), `n`; rho and p are NaN for fewer than three sinks or where all are equal.
    Give the rows of `secondary_sinks` that are meant.  Claim 2 of Wong et al. 2025 (arXiv
    2512.22213).
    """
    rows = []
    for name in ("lifetime", "score"):
        norm, other = (sinks[c].to_numpy(dtype="float64") for c in ("norm_start", name))
        known = np.isfinite(norm) & np.isfinite(other)
        norm, other = norm[known], other[known]
        rho = p = np.nan
        if len(norm) >= 3 and np.ptp(norm) > 0 and np.ptp(other) > 0:
            rho, p = np.asarray(spearmanr(norm, other), dtype="float64")
        rows.append({"against": name, "rho": rho, "p": p, "n": len(norm)})
    return pd.DataFrame(rows)


def steer_creating_mlp(
    model: Model,
    prompts: object,
    layer: int,
    factors: Iterable[float],
    *,
    at: int | Sequence[int],
    candidates: Sequence[int] = (0,),
    cosine: float = 0.9,
) -> pd.DataFrame:
    """What becomes of a sink when the vector its MLP writes is scaled, at positions `at`.

    The output of the MLP of `layer` is scaled at these positions of every prompt and the run
    captured again.  Columns: `factor, prompt, position`; `lifetime`, layers with |cos| > `cosine`
    (0: no sink any more); `norm`, L2 norm of the residual state behind `layer`; `score`, mean over
    heads and queries of the attention the position receives in the layers that read its states in
    the unchanged run, its first to its last (NaN where it is no sink there); `cos`, |cos| with the
    primary sink behind `layer`.  Factor 1 is the unchanged run.  A norm between `down` and the
    stream (Gemma 2 and its kin) undoes every factor but 0.
    """
    positions = [at] if isinstance(at, int) else list(at)
    if not positions or min(positions) < 0:
        raise WorkbenchError(f"at={at!r} names no positions to steer; give indices from 0 on.")
    unchanged = capture(model, prompts, want=_WANT)
    baseline = secondary_sinks(unchanged, candidates=candidates, cosine=cosine)
    parts = []
    for factor in factors:
        edit = StreamEdit.scale(f"L{layer} mlp_out", factor, at=positions)
        with intervening(model, [edit]):
            stats = capture(model, prompts, want=_WANT)
        sinks = secondary_sinks(stats, candidates=candidates, cosine=cosine)
        rows = _steered(stats, sinks, baseline, primary_sink(stats, candidates), layer, positions)
        rows.insert(0, "factor", float(factor))
        parts.append(rows)
    if not parts:
        raise WorkbenchError("factors is empty; give at least one number, 1 for the unchanged run.")
    return pd.concat(parts, ignore_index=True)


def _steered(
    stats: HeadStats,
    sinks: pd.DataFrame,
    baseline: pd.DataFrame,
    primaries: pd.DataFrame,
    layer: int,
    positions: Sequence[int],
) -> pd.DataFrame:
    lives, before = (t.set_index(["prompt", "position"]) for t in (sinks, baseline))
    received = stats["key_mean"].mean("head")
    rows = []
    for prompt, primary in zip(primaries["prompt"], primaries["position"], strict=True):
        for position in positions:
            here = {"prompt": prompt, "stream": layer + 1, "query": position}
            score = np.nan
            if (prompt, position) in before.index:
                life = before.loc[(prompt, position)]
                reading = received.sel(prompt=prompt, key=position)
                score = float(reading.sel(layer=slice(life["l_start"] + 1, life["l_end"])).mean())
            alive = (prompt, position) in lives.index
            rows.append(
                {
                    "prompt": prompt,
                    "position": position,
                    "lifetime": int(lives.loc[(prompt, position), "lifetime"]) if alive else 0,
                    "score": score,
                    "norm": float(stats["resid_norm"].sel(here)),
                    "cos": abs(float(stats["resid_cos"].sel(here | {"candidate": primary}))),
                }
            )
    return pd.DataFrame(rows)


def _controls(ids: np.ndarray, position: int, primary: int) -> tuple[np.ndarray, str]:
    """Positions to compare with, and which they are: "same token" or "other positions"."""
    others = np.ones(len(ids), dtype=bool)
    for name, at in (("position", position), ("primary", primary)):
        _row(ids, at, name)
        others[at] = False
    same = others & (ids == ids[position])
    return (np.flatnonzero(same), "same token") if same.any() else (
        np.flatnonzero(others), "other positions"
    )  # fmt: skip


def _row(values: np.ndarray, position: int, name: str) -> np.ndarray:
    if not 0 <= position < len(values):
        raise WorkbenchError(
            f"{name}={position} lies outside the prompt of {len(values)} tokens; give 0 to "
            f"{len(values) - 1}."
        )
    return values[position]


def _direction(direction: object, width: int) -> np.ndarray:
    found = np.asarray(direction, dtype="float64")
    if found.shape != (width,) or not np.isfinite(found).all():
        raise WorkbenchError(
            f"the direction has shape {found.shape}; {width} finite numbers were expected, such as "
            "residual_direction gives."
        )
    return found


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vector.astype("float64"))
    if not norm > 0:
        raise WorkbenchError("a vector of norm 0 has no direction; give another one.")
    return vector.astype("float64") / norm


def _cosines(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Cosine of every row [row, width] with a vector; NaN where either is zero."""
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(vector)
    return (rows @ vector) / np.where(norms > 0, norms, np.nan)


def _spread(name: str, cosines: np.ndarray) -> dict[str, float]:
    known = np.abs(cosines[np.isfinite(cosines)])
    mean, most = (known.mean(), known.max()) if len(known) else (np.nan, np.nan)
    return {f"{name}_mean": float(mean), f"{name}_max": float(most)}
