"""Tables a study has computed and need not compute again when it is called once more.

FOLDER/NAME/TABLE.parquet    one file per table
FOLDER/NAME/tables.json      their names, written last: without it the part is computed anew
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from workbench.runfiles import read_json, read_table, write_json, write_table

_ABOUT = "tables.json"


def kept(
    folder: Path, name: str, make: Callable[[], Mapping[str, pd.DataFrame]]
) -> dict[str, pd.DataFrame]:
    """The tables of this part, read from `folder` or made and written there."""
    place = folder / name
    if (place / _ABOUT).is_file():
        names = read_json(place / _ABOUT)["tables"]
        return {table: read_table(place / f"{table}.parquet") for table in names}
    place.mkdir(parents=True, exist_ok=True)
    made = dict(make())
    for table, rows in made.items():
        write_table(place / f"{table}.parquet", rows)
    write_json(place / _ABOUT, {"tables": list(made)})
    return made


def stacked(parts: Sequence[Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """The same tables of several parts, one below another."""
    return {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}
