"""Every study there is, by name."""

from __future__ import annotations

from workbench.errors import WorkbenchError
from workbench.studies.active_dormant import STUDY as ACTIVE_DORMANT
from workbench.studies.associative_memory import STUDY as ASSOCIATIVE_MEMORY
from workbench.studies.checkpoints import STUDY as CHECKPOINTS
from workbench.studies.deconstructed_attention import STUDY as DECONSTRUCTED_ATTENTION
from workbench.studies.gradient_descent import STUDY as GRADIENT_DESCENT
from workbench.studies.icl_curves import STUDY as ICL_CURVES
from workbench.studies.icl_regression import STUDY as ICL_REGRESSION
from workbench.studies.induction import STUDY as INDUCTION
from workbench.studies.jepa_mae import STUDY as JEPA_MAE
from workbench.studies.minimal_transformers import STUDY as MINIMAL_TRANSFORMERS
from workbench.studies.random_features import STUDY as RANDOM_FEATURES
from workbench.studies.scan_and_snap import STUDY as SCAN_AND_SNAP
from workbench.studies.sinks import STUDY as SINKS
from workbench.studies.staircase import STUDY as STAIRCASE
from workbench.studies.study import Study
from workbench.studies.testtime import STUDY as TEST_TIME_REGRESSION

STUDIES = {
    study.name: study
    for study in (
        ACTIVE_DORMANT,
        ASSOCIATIVE_MEMORY,
        CHECKPOINTS,
        DECONSTRUCTED_ATTENTION,
        GRADIENT_DESCENT,
        ICL_CURVES,
        ICL_REGRESSION,
        INDUCTION,
        JEPA_MAE,
        MINIMAL_TRANSFORMERS,
        RANDOM_FEATURES,
        SCAN_AND_SNAP,
        SINKS,
        STAIRCASE,
        TEST_TIME_REGRESSION,
    )
}


def find(name: str) -> Study:
    """The study of this name."""
    if name not in STUDIES:
        raise WorkbenchError(f"there is no study {name!r}; known: {', '.join(STUDIES)}.")
    return STUDIES[name]
