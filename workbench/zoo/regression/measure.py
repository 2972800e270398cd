"""What is logged of every run: its circuits, the emergent pattern in numbers, its predictions.

Of KQ only the columns of x are read, `KQ[:, :d]`: the others meet zeros.  With omega_h the mean of
the first d diagonal entries of KQ_h, mu_ht the entry of OV_h at label t, and weights |mu_h| / sum
|mu|, averaged over tasks (He et al. 2025, arXiv 2503.12734):

    E_t           sum_h (mu_ht KQ_h[:d, :d] + OV_ht[:d] KQ_h[y_t, :d]): the matrix of the step of
                  gradient descent, to first order in the scores (see below)
    eta           mean diagonal of E_t on the task's coordinates; sum mu omega for a clean pattern
    off_kq        1 - d omega_h^2 / ||KQ_h[:, :d]||^2: energy that is no multiple of the identity
    off_e         1 - cos^2(E_t, Gamma_t), Gamma_t the best matrix (`closed.best_matrix`)
    cos_e         cos(E_t, Gamma_t), the worst task; cos_inverse the same to Sigma^-1
    zero_sum      |sum mu| / sum |mu|
    ov_x          share of OV that does not read the task's own label
    moment_2      |sum mu omega^2| / sum |mu| omega^2
    spread        deviation of |omega| over heads, by its mean, both weighted
    to_gd, to_dgd ||prediction - eta (debiased) GD||^2 / ||prediction||^2
    risk_over     risk over that of each predictor on the same prompts (`closed.references`)
    risk_by_length risk where a prompt has fewer or more points than in training

To first order softmax(s) averages as 1/L + (s - mean s)/L, so a head adds OV Cov(z, z) KQ x_q, and
what of it is linear in the labels passes by the labels' covariance with x: read by OV at the label
and scored by x, or read by OV at x and scored by the label.  The second term is ours; without it
the step of four heads seems up to 8 % too short and that of eight up to 14 %, while their
predictions are right.  Only E is identified: omega and mu drift along a constant product, and
single heads may be loose where others make up for it.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.schema import INF, Variable
from workbench.zoo.regression import closed
from workbench.zoo.regression.task import Prompts, Task

_RUN = ("run", "step")
_HEAD = (*_RUN, "head")
_ANY, _POSITIVE, _SHARE, _COS = (-INF, INF), (0.0, INF), (0.0, 1.0), (-1.0, 1.0)
# In the order of the viewer: a figure per group and unit, the first five of them.
_GROUPS = {
    "risk": (("risk", _RUN, "squared label", _POSITIVE, "mean squared error, fixed prompts"),),
    "pattern": (
        ("zero_sum", _RUN, "share", _SHARE, "|sum mu| / sum |mu|"),
        ("off_kq", _RUN, "share", _SHARE, "energy of KQ off the identity"),
        ("off_e", _RUN, "share", _SHARE, "energy of E off the best matrix"),
        ("ov_x", _RUN, "share", _SHARE, "energy of OV off the label"),
        ("moment_2", _RUN, "share", _SHARE, "|sum mu omega^2| / sum |mu| omega^2"),
    ),
    "heads": (
        ("omega", _HEAD, "logits", _ANY, "mean diagonal of KQ"),
        ("mu", (*_HEAD, "task"), "1", _ANY, "entry of OV at the label"),
    ),
    "step of gradient descent": (
        ("eta", _RUN, "1", _ANY, "mean diagonal of E, mean of tasks"),
        ("to_gd", _RUN, "share", _POSITIVE, "distance to GD of the same step"),
        ("to_dgd", _RUN, "share", _POSITIVE, "distance to debiased GD of the same step"),
    ),
    "risk over that of predictors": (
        ("risk_over", (*_RUN, "predictor"), "ratio", _POSITIVE,
         "at the length of training, on the prompts of the sweep"),
    ),
    "alignment": (
        ("cos_e", _RUN, "cosine", _COS, "E to the best matrix, worst task"),
        ("cos_inverse", _RUN, "cosine", _COS, "E to the inverse covariance, worst task"),
        ("spread", _RUN, "1", _POSITIVE, "coefficient of variation of |omega|"),
    ),
    "circuits": (
        ("kq", (*_HEAD, "coordinate", "query_coordinate"), "logits", _ANY, "KQ[:, :d]"),
        ("ov", (*_RUN, "task", "head", "coordinate"), "1", _ANY, "OV"),
        ("e", (*_RUN, "task", "key_coordinate", "query_coordinate"), "1", _ANY,
         "matrix of the step of gradient descent"),
    ),
    "sweep": (
        ("risk_by_length", (*_RUN, "length"), "squared label", _POSITIVE,
         "prompts of n points, the network not retuned; GD, ridge and one head at their best for "
         "n, linear attention divided by n or by the L of training"),
    ),
}  # fmt: skip
VARIABLES = tuple(
    Variable(name, dims, units, low, high, group, about)
    for group, rows in _GROUPS.items()
    for name, dims, units, (low, high), about in rows
)


def coordinates(task: Task) -> list[str]:
    """Names of the entries of z: x0, x1, ..., then y0, y1, ..."""
    return [f"x{i}" for i in range(task.d)] + [f"y{t}" for t in range(task.n_tasks)]


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of matrices [..., i, j]; NaN where one is zero."""
    over = np.sqrt((a**2).sum((-2, -1)) * (b**2).sum((-2, -1)))
    return np.divide((a * b).sum((-2, -1)), over, out=np.full(over.shape, np.nan), where=over > 0)


def mean_diagonal(matrices: np.ndarray, task: Task) -> np.ndarray:
    """Mean diagonal of [..., task, d, d] over the coordinates of each task, [..., task]."""
    return np.einsum("...tii,ti->...t", matrices, task.masks) / task.masks.sum(axis=1)


def of_circuits(kq: np.ndarray, ov: np.ndarray, task: Task) -> xr.Dataset:
    """Everything that circuits [run, head, coordinate, ...] say without prompts."""
    d, tasks = task.d, np.arange(task.n_tasks)
    kq = kq[..., :d].astype(float)
    ov = ov.astype(float)
    omega = np.einsum("rhii->rh", kq[:, :, :d]) / d
    mu = ov[:, :, tasks, d + tasks]
    e = np.einsum("rht,rhij->rtij", mu, kq[:, :, :d])
    e += np.einsum("rhti,rhtj->rtij", ov[..., :d], kq[:, :, d:])
    weight = np.abs(mu) / np.abs(mu).sum(axis=1, keepdims=True)
    off_kq = 1.0 - d * omega**2 / (kq**2).sum((-2, -1))
    ov_x = 1.0 - mu**2 / (ov**2).sum(-1)
    size = (weight * np.abs(omega)[..., None]).sum(axis=1)
    square = (weight * omega[..., None] ** 2).sum(axis=1)
    signed = (weight * np.sign(mu) * omega[..., None] ** 2).sum(axis=1)
    cos = cosine(e, closed.matrices(task, debiased=True))
    run, head = "run", "head"
    return xr.Dataset(
        {
            "off_kq": (run, (weight * off_kq[..., None]).sum(axis=1).mean(-1)),
            "off_e": (run, (1.0 - cos**2).mean(axis=-1)),
            "cos_e": (run, cos.min(axis=-1)),
            "cos_inverse": (run, cosine(e, np.linalg.inv(task.covariance)).min(axis=-1)),
            "zero_sum": (run, np.abs((weight * np.sign(mu)).sum(axis=1)).mean(-1)),
            "ov_x": (run, (weight * ov_x).sum(axis=1).mean(-1)),
            "moment_2": (run, (np.abs(signed) / square).mean(-1)),
            "spread": (run, (np.sqrt(np.maximum(square - size**2, 0.0)) / size).mean(-1)),
            "eta": (run, mean_diagonal(e, task).mean(-1)),
            "omega": ((run, head), omega),
            "mu": ((run, head, "task"), mu),
            "kq": ((run, head, "coordinate", "query_coordinate"), kq),
            "ov": ((run, "task", head, "coordinate"), ov.swapaxes(1, 2)),
            "e": ((run, "task", "key_coordinate", "query_coordinate"), e),
        }
    )


def of_predictions(
    predicted: np.ndarray, eta: np.ndarray, prompts: Prompts, task: Task
) -> xr.Dataset:
    """Risk and distances to gradient descent of predictions [run, prompt, task], `eta` [run].

    The step is eta Gamma / (mean diagonal of Gamma): a multiple of the identity where Sigma is.
    """
    predicted = predicted.astype(float)
    size = (predicted**2).mean((1, 2))
    steps = closed.matrices(task, debiased=True)
    steps /= mean_diagonal(steps, task)[:, None, None]
    found = {"risk": ("run", ((predicted - prompts.y_q) ** 2).mean((1, 2)))}
    for name, seen in (("to_gd", prompts), ("to_dgd", closed.centred(prompts))):
        wanted = eta[:, None, None] * closed.gd(seen, steps)
        found[name] = ("run", ((predicted - wanted) ** 2).mean((1, 2)) / size)
    return xr.Dataset(found)
