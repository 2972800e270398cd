"""What is logged of every run: what the context gives it, what its heads do, how they connect.

Losses are in nats per token and exact in the next token: -sum p log p', p of the oracle, so that no
draw of the next token adds noise.  With patterns A of repeated random words `<s> r_1..r_n r_1..r_n`
and t the queries of the second copy (Olsson et al. 2022, arXiv 2209.11895):

    icl          loss predicting from positions `LATE` minus that from positions `EARLY`
    slope        slope of the loss by position over ln(position + 1), from `EARLY` on
    prefix       mean A[t, t - n + 1]: weight on what followed the earlier copy
    previous     mean A[t, t - 1]
    copying      sum of eigenvalues over sum of |eigenvalues| of W_U W_O W_V W_E on the words
    composition  ||QK OV|| / (||QK|| ||OV||) (Frobenius): how much of what the keys of a later head
                 read is written by an earlier head (Elhage et al. 2021); about .2 for random ones
    matching     the copying score of W_E' W_Q' W_K W_O W_V W_E with Q, K of a later and O, V of an
                 earlier head: near 1 where a word asks for keys to which that word was written

Gains of LayerNorm are folded into the maps behind them, and its mean is taken off.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.heads import Head
from workbench.schema import INF, Variable
from workbench.zoo.measure import induction_scores

EARLY, LATE = slice(2, 6), slice(-8, None)
_RUN = ("run", "step")
_HEAD = (*_RUN, "layer", "head")
_ANY, _POSITIVE, _SHARE, _SIGNED = (-INF, INF), (0.0, INF), (0.0, 1.0), (-1.0, 1.0)
# In the order of the viewer: a figure per group and unit, the first five of them.
_GROUPS = {
    "learning in context": (
        ("icl", _RUN, "nats", _ANY, "loss late in the text minus loss early"),
        ("slope", _RUN, "nats", _ANY, "d loss / d ln(position)"),
    ),
    "heads": (
        ("prefix", _HEAD, "probability", _SHARE, "prefix matching: weight on what followed"),
        ("previous", _HEAD, "probability", _SHARE, "weight on the token before"),
    ),
    "loss": (
        ("loss", _RUN, "nats per token", _POSITIVE, "loss, fixed texts"),
        ("excess", _RUN, "nats per token", _POSITIVE, "loss above that of the oracle"),
    ),
    "copying": (
        ("copying", _HEAD, "share", _SIGNED, "eigenvalues of the OV circuit: sum/sum | |"),
    ),
    "circuits": (
        (
            "matching",
            (*_RUN, "later_head", "earlier_head"),
            "share",
            _SIGNED,
            "eigenvalues of QK through the earlier head's OV: sum over sum of sizes",
        ),
        ("composition", (*_RUN, "later_head", "earlier_head"), "1", _SHARE, "K-composition"),
    ),
    "sweep": (
        ("loss_at", (*_RUN, "position"), "nats", _POSITIVE, "loss of the prediction made there"),
    ),
    "pattern": (
        ("pattern", (*_HEAD, "probe", "query", "key"), "probability", _SHARE, "repeated words"),
    ),
    "tokens": (("token_loss", (*_RUN, "item"), "nats", _POSITIVE, "loss of single tokens"),),
}


def variables(layers: int) -> tuple[Variable, ...]:
    """What is logged of a network: composition needs two layers."""
    return tuple(
        Variable(name, dims, units, low, high, group, about)
        for group, rows in _GROUPS.items()
        for name, dims, units, (low, high), about in rows
        if layers > 1 or name not in ("matching", "composition")
    )


def cross_entropy(log_p: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """Expected loss -sum p log p' of log-probabilities [..., text, query, token], nats.

    [..., text, query]; where the oracle has 0 the model's -inf counts nothing.
    """
    return -np.where(oracle > 0, oracle * np.where(oracle > 0, log_p, 0.0), 0.0).sum(axis=-1)


def icl_score(loss: np.ndarray) -> np.ndarray:
    """Late minus early loss, of losses [..., position]; nats, negative where the context helps."""
    return loss[..., LATE].mean(axis=-1) - loss[..., EARLY].mean(axis=-1)


def log_slope(loss: np.ndarray) -> np.ndarray:
    """Least-squares slope of losses [..., position] over ln(position + 1), from `EARLY` on."""
    x = np.log(np.arange(loss.shape[-1])[EARLY.start :] + 1)
    x = x - x.mean()
    return loss[..., EARLY.start :] @ x / (x @ x)


def head_scores(patterns: np.ndarray, period: int) -> dict[str, np.ndarray]:
    """Prefix-matching and previous-token scores [run, layer, head].

    `patterns` [run, layer, text, head, query, key] of repeated words, `period` of them.
    """
    maps = patterns.swapaxes(2, 3).swapaxes(1, 3).swapaxes(2, 3)
    queries = np.arange(period + 1, 2 * period + 1)
    return {
        "prefix": np.stack([induction_scores(one, period) for one in maps]),
        "previous": maps[..., queries, queries - 1].mean(axis=(1, -1)),
    }


def circuits(weights: dict[str, np.ndarray], heads: int) -> tuple[np.ndarray, ...]:
    """W_Q, W_K, W_V [run, layer, head, d_head, d_model], W_O [run, layer, head, d_model, d_head].

    `weights` as `workbench.zoo.induction.model` has them; the gains of the block's LayerNorm are
    folded into the first three.
    """
    gain = weights["gain"][:, :, None]
    q, k, v = (_centred(weights[name] * gain) for name in "qkv")
    runs, layers, d, _ = q.shape
    split = (runs, layers, heads, d // heads, d)
    o = weights["o"].reshape(runs, layers, d, heads, d // heads).swapaxes(2, 3)
    return q.reshape(split), k.reshape(split), v.reshape(split), o


def copying(weights: dict[str, np.ndarray], heads: int, words: int) -> np.ndarray:
    """Copying score [run, layer, head] in -1..1 of the OV circuits, from words to words.

    1 where every word raises itself (all eigenvalues positive), -1 where it lowers itself.
    """
    _, _, v, o = circuits(weights, heads)
    out = _centred(weights["unembed"] * weights["final_gain"][:, None])[:, :words]
    seen = np.einsum("rlhdm,rwm->rlhdw", v, weights["token"][:, :words])
    written = np.einsum("rwm,rlhmd->rlhwd", out, o)
    return _positive_share(seen @ written)


def matching(weights: dict[str, np.ndarray], heads: int, words: int) -> np.ndarray:
    """Matching score [run, head of layer 1, head of layer 0] in -1..1, from words to words."""
    q, k, v, o = circuits(weights, heads)
    token = weights["token"][:, :words]
    written = np.einsum("rgdm,rwm->rgdw", v[:, 0], token)
    asked = np.einsum("rwi,rhdi,rhdj,rgje->rhgwe", token, q[:, 1], k[:, 1], o[:, 0], optimize=True)
    return _positive_share(written[:, None] @ asked)


def _positive_share(small: np.ndarray) -> np.ndarray:
    """Sum of the eigenvalues over the sum of their sizes.

    Of A B in place of B A, which has the same ones and zeros: d_head instead of one per word.
    """
    values = np.linalg.eigvals(small)
    return values.sum(axis=-1).real / np.abs(values).sum(axis=-1)


def composition(weights: dict[str, np.ndarray], heads: int) -> np.ndarray:
    """K-composition [run, head of layer 1, head of layer 0] in 0..1."""
    q, k, v, o = circuits(weights, heads)
    qk = np.einsum("rhdi,rhdj->rhij", q[:, 1], k[:, 1])
    ov = o[:, 0] @ v[:, 0]
    both = np.linalg.norm(np.einsum("rhij,rgjm->rhgim", qk, ov), axis=(-2, -1))
    sizes = [np.linalg.norm(part, axis=(-2, -1)) for part in (qk, ov)]
    return both / (sizes[0][:, :, None] * sizes[1][:, None])


def _centred(rows: np.ndarray) -> np.ndarray:
    """Maps [..., out, in] that ignore the mean of what they read."""
    return rows - rows.mean(axis=-1, keepdims=True)


def of_weights(weights: dict[str, np.ndarray], heads: int, words: int) -> xr.Dataset:
    """What the weights say without texts."""
    found = {"copying": (("run", "layer", "head"), copying(weights, heads, words))}
    if weights["q"].shape[1] > 1:
        pair = ("run", "later_head", "earlier_head")
        found["matching"] = (pair, matching(weights, heads, words))
        found["composition"] = (pair, composition(weights, heads))
    return xr.Dataset(found)


def head_labels(layers: int, heads: int) -> dict[str, list[str]]:
    """Labels of the two sides of `matching` and `composition`."""
    if layers < 2:
        return {}
    names = {"later_head": 1, "earlier_head": 0}
    return {dim: [str(Head(layer, i)) for i in range(heads)] for dim, layer in names.items()}
