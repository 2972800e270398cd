"""Where the runs of the laboratory end, in one word each, for whoever lays them side by side.

The words and their bounds are those of the laws (`laws.fate`).  They are about one task on
uncorrelated coordinates; a run on anything else has no word.
"""

from __future__ import annotations

import xarray as xr

from workbench.zoo.regression import laws

NEEDS = ("risk", "setting")  # of a run, for this to be asked
# From the best end to the worst; the viewer colours them in this order.
WORDS = {
    "solved": "at the risk of debiased gradient descent by half of its steps",
    "late": "left the plateau of one head in the second half",
    "stuck": "on the plateau of one head at its last step",
}
_PLAIN = {*laws.RANDOM, *laws.TWO, *laws.CONTROLS, "h1"}


def fate(run: xr.Dataset) -> str:
    """One of `WORDS`, or "" for a run to which its bounds do not apply."""
    return laws.fate(run) if str(run["setting"].item()) in _PLAIN else ""
