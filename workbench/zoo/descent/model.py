"""The trained layer: that of the regression laboratory with its softmax taken out.

    prediction = sum_h O_h V_h (1/L) sum_l z_l (K_h z_l)'(Q_h z_q) / sqrt w

With or without softmax a layer has the parameters, circuits and start of
`workbench.zoo.regression.model`; only the label row of the output matrix exists, for nothing else
is read.  One head of this is the linear self-attention of von Oswald et al. 2022 (arXiv
2212.07677), whose matrices for gradient descent are in `construction`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from workbench.zoo.descent.shape import KINDS
from workbench.zoo.regression import model as softmax_model
from workbench.zoo.regression.model import Parameters, circuits
from workbench.zoo.regression.task import Prompts

Predict = Callable[[Parameters, Prompts], Tensor]


def predict_linear(parameters: Parameters, prompts: Prompts) -> Tensor:
    """Predictions [run, prompt, task] of linear attention, divided by the length."""
    kq, ov = circuits(parameters)
    z, x_q = torch.from_numpy(prompts.z), torch.from_numpy(prompts.x_q)
    moments = z.mT @ z / z.shape[1]
    asked = torch.einsum("rhij,bj->rhbi", kq[..., : x_q.shape[1]], x_q)
    seen = torch.einsum("bij,rhbj->rhbi", moments, asked)
    return torch.einsum("rhbi,rhti->rbt", seen, ov)


PREDICT: dict[str, Predict] = dict(zip(KINDS, (predict_linear, softmax_model.predict), strict=True))


def losses(kind: str, parameters: Parameters, prompts: Prompts) -> Tensor:
    """Half the mean squared error of every run, [run]; `kind` is a key of `PREDICT`."""
    errors = PREDICT[kind](parameters, prompts) - torch.from_numpy(prompts.y_q)
    return 0.5 * errors.square().mean(dim=(1, 2))


def planted(d: int, length: int, step: float) -> Parameters:
    """One run whose linear attention takes the step `step` on the sum: the construction."""
    w = d + 1
    reads = torch.zeros(w, w)
    reads[:d, :d] = torch.eye(d)
    out = torch.zeros(1, w)
    # circuits divides the scores by sqrt w, the layer by the length.
    out[0, d] = step * length * float(np.sqrt(w))
    parts = {"q": reads, "k": reads, "v": torch.eye(w), "o": out}
    return {name: value[None, None].clone() for name, value in parts.items()}
