"""What is logged of every run: where attention goes on long texts, and what the theory conserves.

Attention to token l of class n is c_l ∝ w_l = P(l | n) exp(z_nl).  Unless a group of tokens says
otherwise every number is the mean over classes.  Of the distinct tokens of a class, `top` is the
most frequent one and `rare` the rarest (Tian et al. 2023, arXiv 2305.16380, section 4):

    gain            r / r(0), r = w_top^2 / w_rare^2 - 1
    predicted_gain  exp(2 z_top), what Theorem 3 says it is; z starts at zero
    gain_ratio      the one over the other
    drift           |I / I(0) - 1|, I = 1 / w_l^2 - 1 / w_top^2, of the worst distinct token l
    entropy         of attention on the distinct tokens alone, divided by its sum
    entropy_rate    its change per step under plain gradient descent of the expected loss, from
                    the closed form of the gradient; momentum and Adam are not counted

gain_ratio is I / I(0) of the rarest token: identity and invariant are one law, read of one pair and
of all.  Of that pair it says little more than that z_rare stays near zero, for 1 / w_rare^2 is most
of I.  Tokens that are equally frequent have no gain (NaN).
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from scipy.special import entr

from workbench.schema import INF, Variable
from workbench.zoo.scansnap import model
from workbench.zoo.scansnap.task import Task

_RUN = ("run", "step")
_TOKENS = (*_RUN, "target", "token")
_ANY, _POSITIVE, _SHARE = (-INF, INF), (0.0, INF), (0.0, 1.0)
_GROUPS = {
    "attention": (
        ("common_mass", _RUN, "share", _SHARE, "attention on common tokens"),
        ("distinct_mass", _RUN, "share", _SHARE, "attention on the distinct tokens of the class"),
        ("top_share", _RUN, "share", _SHARE, "attention on the most frequent distinct token"),
        ("rare_share", _RUN, "share", _SHARE, "attention on the rarest distinct token"),
    ),
    "snap": (
        ("entropy", _RUN, "nats", _POSITIVE, "entropy of attention on distinct tokens"),
        ("entropy_rate", _RUN, "nats per step", _ANY, "its change, momentum not counted"),
    ),
    "gain": (
        ("top_over_rare", _RUN, "1", _POSITIVE, "attention, most frequent over rarest"),
        ("gain", _RUN, "1", _ANY, "r / r(0)"),
        ("predicted_gain", _RUN, "1", _POSITIVE, "exp(2 z_top)"),
        ("gain_ratio", _RUN, "1", _ANY, "r / (r(0) exp(2 z_top))"),
        ("drift", _RUN, "1", _POSITIVE, "largest change of an invariant, relative"),
    ),
    "attention logits": (
        ("z_highest_common", _RUN, "logits", _ANY, "highest of a common token"),
        ("z_lowest_distinct", _RUN, "logits", _ANY, "lowest of a distinct token"),
        ("z_common", _RUN, "logits", _ANY, "mean of common tokens"),
        ("z_top", _RUN, "logits", _ANY, "the most frequent distinct token"),
        ("z_rare", _RUN, "logits", _ANY, "the rarest distinct token"),
    ),
    "loss": (("loss", _RUN, "nats", _POSITIVE, "expected loss of long texts"),),
    "energy": (("top_energy", _RUN, "share", _SHARE, "c_top^2 / ||c||^2"),),
    "circuits": (
        ("attention", _TOKENS, "share", _SHARE, "attention to every token of long texts"),
        ("z", _TOKENS, "logits", _ANY, "attention logits Z"),
    ),
}  # fmt: skip
VARIABLES = tuple(
    Variable(name, dims, units, low, high, group, about)
    for group, rows in _GROUPS.items()
    for name, dims, units, (low, high), about in rows
)


def long_texts(tasks: list[Task]) -> model.Texts:
    """One row per class with its frequencies: the expected loss of every run's task."""
    counts = torch.from_numpy(np.stack([task.frequencies for task in tasks]))
    classes = torch.arange(counts.shape[1]).expand(len(tasks), -1)
    return model.Texts(counts, classes)


def distinct_entropy(share: np.ndarray, toward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropy of [..., token] after division by its sum, nats, and its change along a move of z.

    With q the divided shares dH/dz_l = -q_l (log q_l + H).
    """
    q = share / share.sum(axis=-1, keepdims=True)
    entropy = entr(q).sum(axis=-1)
    return entropy, ((entr(q) - q * entropy[..., None]) * toward).sum(axis=-1)


def of_logits(z: np.ndarray, attention: np.ndarray, step: np.ndarray, task: Task) -> xr.Dataset:
    """Everything that Z says without the decoder.

    `z`, `attention` and `step`, the move of Z per step, are [run, class, token]; every run has the
    common and distinct tokens of `task`, whatever its frequencies.
    """
    own = np.broadcast_to(task.own, (len(z), *task.own.shape))
    share, own_z = (np.take_along_axis(part, own, axis=-1) for part in (attention, z))
    common = slice(0, task.common)
    entropy, rate = distinct_entropy(share, np.take_along_axis(step, own, axis=-1))
    # w is attention up to a factor per class, which cancels in every ratio of I.
    weight_0 = share * np.exp(-own_z)
    weight_0 = weight_0 / weight_0[..., -1:]
    weight = weight_0 * np.exp(own_z)
    kept = _kept(weight, weight_0)
    growth = np.exp(2 * own_z[..., -1])
    energy = share[..., -1] ** 2 / (attention**2).sum(axis=-1)
    means = {
        "common_mass": attention[..., common].sum(axis=-1),
        "distinct_mass": share.sum(axis=-1),
        "top_share": share[..., -1],
        "rare_share": share[..., 0],
        "entropy": entropy,
        "entropy_rate": rate,
        "top_over_rare": share[..., -1] / share[..., 0],
        "gain": kept[..., 0] * growth,
        "predicted_gain": growth,
        "gain_ratio": kept[..., 0],
        "z_common": z[..., common].mean(axis=-1),
        "z_top": own_z[..., -1],
        "z_rare": own_z[..., 0],
        "top_energy": energy,
    }
    found = {name: ("run", values.mean(axis=1)) for name, values in means.items()}
    found["drift"] = ("run", np.abs(kept - 1).max(axis=(1, 2)))
    found["z_highest_common"] = ("run", z[..., common].max(axis=(1, 2)))
    found["z_lowest_distinct"] = ("run", own_z.min(axis=(1, 2)))
    tokens = ("run", "target", "token")
    return xr.Dataset({**found, "attention": (tokens, attention), "z": (tokens, z)})


def _kept(weight: np.ndarray, weight_0: np.ndarray) -> np.ndarray:
    """1 / w_l^2 - 1 / w_top^2 by its value at the start, [..., all but the top token].

    NaN where the tokens are equally frequent.
    """
    now, start = (w[..., :-1] ** -2 - w[..., -1:] ** -2 for w in (weight, weight_0))
    return np.divide(now, start, out=np.full(now.shape, np.nan), where=np.abs(start) > 1e-9)


def measured(
    parameters: model.Parameters, texts: model.Texts, rates: np.ndarray, task: Task
) -> xr.Dataset:
    """Everything of `VARIABLES` now; `texts` are `long_texts`, `rates` those of Z, [run]."""
    z = parameters["z"].numpy()
    step = rates[:, None, None] * model.descent(parameters, texts)["z"].numpy()
    seen = model.attention(parameters["z"], texts).numpy()
    found = of_logits(z, seen, step, task)
    return found.assign(loss=("run", model.losses(parameters, texts).numpy()))
