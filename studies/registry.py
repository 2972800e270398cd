"""Every study there is, by name."""

from __future__ import annotations

from workbench.errors import WorkbenchError
from workbench.studies.active_dormant import STUDY as ACTIVE_DORMANT
from workbench.studies.icl_regression import STUDY as ICL_REGRESSION
from workbench.studies.sinks import STUDY as SINKS
from workbench.studies.study import Study

STUDIES = {study.name: study for study in (ACTIVE_DORMANT, ICL_REGRESSION, SINKS)}


def find(name: str) -> Study:
    """The study of this name."""
    if name not in STUDIES:
        raise WorkbenchError(f"there is no study {name!r}; known: {', '.join(STUDIES)}.")
    return STUDIES[name]
