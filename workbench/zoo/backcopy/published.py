"""The curve of the full-size setting as its authors saved it, to lay beside one of ours.

Guo et al. 2024 (arXiv 2410.13835): one layer, softmax, AdamW, three triggers, d_model 256, 256
positions, 512 texts per step, characters of Tiny Shakespeare.  Numbers read from the curves they
published with their code.  Their network has one more symbol, which never occurs, and their mean
weight on `<s>` counts queries 0 and 1, which adds about 1 / (.75 length).  Not run here: see
`recipe.full`.
"""

from __future__ import annotations

import pandas as pd
import xarray as xr

# step, backcopy risk, bigram risk, weight on <s> off triggers, ||W_O v_0||, logit margin, ||h_0||
_ROWS = (
    (0, 4.296, 4.427, 0.022, 5.20, -0.12, 24.3),
    (60, 2.739, 2.540, 0.021, 7.94, -0.15, 30.4),
    (140, 2.304, 2.324, 0.054, 9.15, 0.04, 30.5),
    (200, 1.046, 2.296, 0.223, 8.74, 0.89, 28.3),
    (240, 0.608, 2.277, 0.448, 7.19, 2.26, 26.3),
    (300, 0.442, 2.259, 0.560, 5.52, 3.46, 25.4),
    (500, 0.190, 2.240, 0.648, 4.85, 5.45, 25.4),
    (1_000, 7.4e-3, 2.232, 0.779, 3.51, 9.70, 27.0),
    (5_000, 1.5e-4, 2.2297, 0.807, 1.87, 13.9, 47.2),
    (10_000, 7.8e-5, 2.2292, 0.811, 1.42, 16.8, 72.2),
)
_COLUMNS = ("step", "risk_on", "risk_off", "sink_off", "value_begin", "delta_logit_off", "resid")
# Names of our own curves, in the order of the columns after the step.
_CURVES = dict(zip(_COLUMNS[1:], ("risk_on", "risk_off", "sink_off", "value_norm begin",
                                  "delta_logit_off", "resid_norm begin"), strict=True))  # fmt: skip
WHERE = (
    "Guo et al. 2024, not run here: d_model 256, 256 positions, 512 texts per step, characters of "
    "Tiny Shakespeare. Compare shapes, not heights."
)
STEPS = tuple(row[0] for row in _ROWS)
STEPS_DEEP = (0, 1_000, 2_000, 4_000, 6_000, 8_000, 10_000)
# Three layers, ||h_0|| after block 0, at STEPS_DEEP.
_DEEP = {
    "adamw": (24.3, 34.4, 43.2, 57.4, 85.1, 116.8, 140.7),
    "sgd": (24.3, 29.1, 26.3, 23.9, 22.4, 21.5, 20.4),
    "relu-deep": (23.4, 23.6, 23.9, 23.9, 24.2, 24.1, 24.5),
}


def curve() -> pd.DataFrame:
    """The one-layer curve, one row per step."""
    return pd.DataFrame(_ROWS, columns=list(_COLUMNS))


def residuals() -> pd.DataFrame:
    """||h_0|| after block 0 of three layers, by setting; one row per step."""
    return pd.DataFrame({"step": STEPS_DEEP, **_DEEP})


def ours(run: xr.Dataset) -> pd.DataFrame:
    """A one-layer run of ours with the columns of `curve`."""
    one = run.isel(layer=0, head=0)
    return pd.DataFrame(
        {
            "step": one["step"].to_numpy(),
            "risk_on": one["risk_on"],
            "risk_off": one["risk_off"],
            "sink_off": one["sink_off"],
            "value_begin": one["value_norm"].sel(role="begin"),
            "delta_logit_off": one["delta_logit_off"],
            "resid": one["resid_norm"].sel(stream=1, role="begin"),
        }
    )


def beside(run: xr.Dataset) -> pd.DataFrame:
    """Our one-layer run and theirs, one row per step both have: columns NAME and NAME_published."""
    return ours(run).merge(curve(), on="step", suffixes=("", "_published"))


def curves(setting: str, n_layers: int, layer: int) -> dict[str, pd.Series]:
    """What was published of a setting, by the name of our curve, each over step.

    Names are those of the variables, with the role behind: `value_norm begin`.  Nothing but the
    residual after block 0 was published of three layers; of other settings, nothing.
    """
    if setting == "main" and n_layers == 1:
        table = curve()
        return {
            ours: pd.Series(table[theirs].to_numpy(), index=STEPS)
            for theirs, ours in _CURVES.items()
        }
    if setting in _DEEP and n_layers == 3 and layer == 0:
        return {"resid_norm begin": pd.Series(_DEEP[setting], index=STEPS_DEEP)}
    return {}
