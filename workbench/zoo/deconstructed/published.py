"""What Xue et al. 2025 (arXiv 2510.11602, table 1) measured at 500M parameters; not run here.

SlimPajama, 15 billion tokens, 24 layers: mean accuracy on seven tasks in percent, perplexity on
WikiText, and on LAMBADA the accuracy in percent, the last word of a passage that only its context
gives away.
"""

from __future__ import annotations

import pandas as pd

from workbench.zoo.deconstructed.recipe import HYBRID, STANDARD, UNIFORM, VARIANTS

COLUMNS = ("nlu_accuracy", "wikitext_perplexity", "lambada_accuracy")
SKIP = "skip"
_STANDARD = (51.9, 38.1, 22.9)
_TABLE = {
    UNIFORM: (
        (40.0, 993.5, 0.0), (50.2, 47.9, 18.5), (39.3, 9e4, 0.0), (48.0, 84.8, 1.3),
        (50.0, 79.1, 1.4), (49.4, 79.9, 3.3),
    ),
    HYBRID: (
        (48.7, 45.8, 20.8), (51.6, 39.4, 23.7), (52.9, 39.4, 23.8), (49.8, 39.3, 22.0),
        (52.6, 38.5, 20.3), (51.8, 38.7, 23.8),
    ),
    SKIP: (
        (37.8, 2e5, 0.0), (39.8, 2e6, 0.0), (37.5, 5e5, 0.0), (39.5, 2e4, 0.0),
        (39.2, 2e5, 0.0), (39.7, 7e4, 0.0),
    ),
}  # fmt: skip


def table() -> pd.DataFrame:
    """One row per configuration and variant."""
    rows = [
        (configuration, variant, *numbers)
        for configuration, lines in _TABLE.items()
        for variant, numbers in zip(VARIANTS, lines, strict=True)
    ]
    every = [(STANDARD, STANDARD, *_STANDARD), *rows]
    return pd.DataFrame(every, columns=["configuration", "variant", *COLUMNS])
