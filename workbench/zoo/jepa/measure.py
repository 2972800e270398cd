"""What is logged of every run: the loss, and how much of each feature the encoder has.

strength       |E u_i|, the encoder's answer to feature i
learned        strength over that of the closed form at the end (`closed.strength`)
off            share of the energy of the encoder's Gram matrix between different features
gram           u_i' E'E u_j, what the representation keeps of the features
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.schema import INF, Variable

_RUN = ("run", "step")
_FEATURE = (*_RUN, "feature")
_MATRIX = ("feature_row", "feature_column")
_ANY, _POSITIVE, _SHARE = (-INF, INF), (0.0, INF), (0.0, 1.0)
_GROUPS = {
    "features": (("learned", _FEATURE, "share", _POSITIVE, "strength by that at the end"),),
    "strength": (("strength", _FEATURE, "1", _POSITIVE, "the encoder's answer to a feature"),),
    "loss": (("loss", _RUN, "squared target", _POSITIVE, "half the mean squared error"),),
    "mixing": (("off", _RUN, "share", _SHARE, "energy between different features"),),
    "circuits": (("gram", (*_RUN, *_MATRIX), "1", _ANY, "E'E between features"),),
}
VARIABLES = tuple(
    Variable(name, dims, units, low, high, group, about)
    for group, rows in _GROUPS.items()
    for name, dims, units, (low, high), about in rows
)


def of_encoders(encoders: np.ndarray, directions: np.ndarray, ends: np.ndarray) -> xr.Dataset:
    """All but the loss, from encoders [run, latent, coordinate], directions [run, coordinate,
    feature] and strengths at the end [run, feature]."""
    seen = encoders @ directions
    gram = seen.swapaxes(-1, -2) @ seen
    diagonal = np.diagonal(gram, axis1=-2, axis2=-1)
    off = 1.0 - (diagonal**2).sum(-1) / (gram**2).sum((-2, -1))
    strength = np.sqrt(diagonal)
    return xr.Dataset(
        {
            "learned": (("run", "feature"), strength / ends),
            "strength": (("run", "feature"), strength),
            "off": ("run", off),
            "gram": (("run", *_MATRIX), gram),
        }
    )
