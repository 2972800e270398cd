"""Laboratories for the app: which there are, and one training run as curves over its steps.

A laboratory is what `workbench.zoo.trajectory.Results` reads: shipped ones go by their name, those
under the folder served by the folders that lead to them, `~studies~active-dormant~laboratory`.
Nothing here knows what was trained.  A trajectory says it itself:

- dims `layer` and `head` are chosen on the page, `stream` is the one behind the chosen layer's
  block, every other labelled dim gives one curve per label;
- attributes: `units`, `long_name`, and `group`, which names the figure a curve belongs to;
- NAME_low and NAME_high are a band around the variable that stands before them;
- variables of the groups "circuits" and "sweep" are matrices and lines (`training_shapes`);
- `pattern` (..., probe, query, key) are maps; `probe_id` their tokens as ids into the coordinate
  `token`, of which `trigger` marks some.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench import zoo
from workbench.app.store import store
from workbench.app.training_shapes import is_matrix, is_sweep, places
from workbench.app.training_shapes import words as worded
from workbench.app.urls import is_run_id
from workbench.errors import WorkbenchError
from workbench.heads import Head
from workbench.zoo.trajectory import ABOUT, Results

DEEPEST = 4  # folders between the one served and a laboratory
MOST_LABELS = (
    24  # of a variable with more labels than this, such as one per token, nothing is shown
)
MOST_CURVES, MOST_PANELS = 8, 5  # in a figure, and figures on the page
_BAND = ("_low", "_high")
# What the app reads of `laboratory.json`, beside what `Results` itself looks at.
_FIELDS = {"created": str, "versions": dict}


@dataclass(frozen=True)
class Entry:
    """One laboratory in a list; `problem` says why it cannot be opened."""

    id: str
    about: Mapping
    problem: str = ""

    @property
    def title(self) -> str:
        """The name of a shipped one, the path of another."""
        return self.id.removeprefix("~").replace("~", "/")


@dataclass(frozen=True, eq=False)
class Curve:
    """One number over the logged steps, `values` [step]; `band` its 10-90 % or like quantiles."""

    name: str
    units: str
    about: str
    group: str
    values: np.ndarray
    band: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def drawn(self) -> bool:
        """Whether there is anything to see: neither missing nor zero all along."""
        return bool((np.abs(np.nan_to_num(self.values)) > 1e-6).any())


@dataclass(frozen=True, eq=False)
class Trained:
    """One run of a laboratory, seen in one head; `published` by curve, measured `where`.

    `phases` are the steps at which they begin, by word; `meanings` says what the words mean.
    `title` names the run on the page: its label, with the stack where another has the same one.
    """

    stack: str
    label: str
    setting: str
    head: str
    steps: np.ndarray
    curves: dict[str, Curve]
    published: dict[str, pd.Series]
    where: str
    phases: dict[str, int]
    meanings: dict[str, str]
    title: str

    @property
    def id(self) -> str:
        """`STACK/RUN`, as in the address."""
        return f"{self.stack}/{self.label}"


@dataclass(frozen=True)
class Panel:
    """Curves that share a figure: they have one group and one unit."""

    title: str
    units: str
    names: tuple[str, ...]


def entries() -> list[Entry]:
    """Every laboratory the app can open: shipped ones, then those under the folder served."""
    return [_entry(name, path) for name, path in _places().items()]


def _entry(name: str, path: Path) -> Entry:
    try:
        return Entry(name, open_laboratory(name).about)
    except WorkbenchError as error:
        return Entry(name, {"name": path.name}, str(error))


def open_laboratory(name: str) -> Results:
    """The laboratory of that name; raises `WorkbenchError` for a bad or unknown one."""
    path = _places().get(name)
    if path is None:
        raise WorkbenchError(
            f"laboratory {name[:60]!r} is neither shipped nor under the folder served here; choose "
            "one on the home page."
        )
    return _results(path, (path / ABOUT).stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _results(path: Path, _stamp: int) -> Results:
    """Kept until `laboratory.json` is written anew, which the stamp tells."""
    results = Results(path)
    for field, kind in _FIELDS.items():
        if not isinstance(results.about.get(field), kind):
            raise WorkbenchError(
                f"{ABOUT} in {path} has no {field!r} that can be read; train the laboratory again."
            )
    runs = results.about["runs"]
    if bad := [stack for stack in results.stacks if not runs.get(stack)]:
        raise WorkbenchError(
            f"{ABOUT} in {path} lists no runs of {', '.join(map(str, bad)) or 'any stack'}; train "
            "the laboratory again."
        )
    return results


def _places() -> dict[str, Path]:
    """Folder of every laboratory, by its name in the address."""
    places = {name: zoo.path(name) for name in zoo.laboratories()}
    kept = store()
    # A run served alone has no neighbours.
    return places if kept.only else places | dict(_under(kept.root))


def _under(root: Path) -> Iterator[tuple[str, Path]]:
    """Laboratories below `root`, not through links and not inside runs."""
    for folder, inner, files in os.walk(root):
        path = Path(folder)
        parts = path.relative_to(root).parts
        inner[:] = sorted(n for n in inner if is_run_id(n)) if len(parts) < DEEPEST else []
        if ABOUT in files and parts:
            yield "".join(f"~{part}" for part in parts), path
        if ABOUT in files or "manifest.json" in files:
            inner.clear()


def runs_of(results: Results) -> list[str]:
    """Every run as `STACK/RUN`, in the order of training."""
    return [f"{stack}/{run}" for stack in results.stacks for run in results.about["runs"][stack]]


def choose(results: Results, run: str) -> str:
    """The run of an address, without one the first; raises `WorkbenchError` for an unknown one."""
    known = runs_of(results)
    if run and run not in known:
        raise WorkbenchError(
            f"run {run[:60]!r} is not in this laboratory; it has {', '.join(known)}."
        )
    return run or known[0]


def companion(results: Results, run: str) -> str:
    """The run to lay beside one: of another setting, in its stack, else of its depth, else of any.

    Where no settings were logged only the depth tells runs apart.  "none" if there is no such run.
    """
    own, stack = data_of(results, run), run.split("/")[0]
    found: dict[int, str] = {}
    for other in runs_of(results):
        data = data_of(results, other)
        deeper = data.sizes.get("layer") != own.sizes.get("layer")
        if _setting(data) != _setting(own) or (deeper and not _setting(own)):
            found.setdefault(0 if other.split("/")[0] == stack else 1 + deeper, other)
    return found[min(found)] if found else "none"


def data_of(results: Results, run: str) -> xr.Dataset:
    """The trajectory of one run, over step; raises `WorkbenchError` where only its name is kept."""
    stack, _, label = run.partition("/")
    data = results.trajectories[stack]
    there = data["run"].to_numpy().tolist()
    if label not in there:
        raise WorkbenchError(
            f"{ABOUT} in {results.path} lists run {run}, but its trajectory has "
            f"{', '.join(there)}; train the laboratory again."
        )
    return data.isel(run=there.index(label))


def _setting(data: xr.Dataset) -> str:
    return str(data["setting"].item()) if "setting" in data.coords else ""


def heads_of(data: xr.Dataset) -> list[str]:
    """Labels of the heads, `L0H0` first; empty for a laboratory without heads."""
    if "head" not in data.dims or "layer" not in data.dims:
        return []
    places = itertools.product(data["layer"].to_numpy(), data["head"].to_numpy())
    return [str(Head(int(layer), int(head))) for layer, head in places]


def head_in(data: xr.Dataset, label: str) -> str:
    """The head of an address; without one, that whose pattern changed most in training."""
    known = heads_of(data)
    if label and label not in known:
        raise WorkbenchError(f"this run has no head {label}; it has {', '.join(known) or 'none'}.")
    if label or not known or "pattern" not in data:
        return label or (known[0] if known else "")
    change = abs(data["pattern"].isel(step=-1) - data["pattern"].isel(step=0)).astype("float64")
    moved = change.mean([d for d in change.dims if d not in ("layer", "head")])
    return known[int(moved.transpose("layer", "head").to_numpy().argmax())]


def same_head(results: Results, run: str, label: str) -> str:
    """The head of that label in another run, or its own choice where it has no such head."""
    data = data_of(results, run)
    return head_in(data, label if label in heads_of(data) else "")


def at_layer(data: xr.Dataset, label: str) -> xr.Dataset:
    """The trajectory in the layer of a head, all heads of it; the stream behind its block."""
    if not label:
        return data
    layer = heads_of(data).index(label) // data.sizes["head"]
    return data.isel({"layer": layer} | ({"stream": layer + 1} if "stream" in data.dims else {}))


def at_head(data: xr.Dataset, label: str) -> xr.Dataset:
    """The trajectory in one head; of the streams, that behind its layer's block."""
    if not label:
        return data
    return at_layer(data, label).isel(head=heads_of(data).index(label) % data.sizes["head"])


def trained(results: Results, run: str, label: str) -> Trained:
    """A run with everything that is drawn of it, seen in one head."""
    data = data_of(results, run)
    head = head_in(data, label)
    stack, _, name = run.partition("/")
    setting, layers = _setting(data), data.sizes.get("layer", 0)
    code = zoo.code_of(results.about["name"], "published")
    layer = heads_of(data).index(head) // data.sizes["head"] if head else 0
    phases = code_about(results, "phases", data)
    return Trained(
        stack, name, setting, head, data["step"].to_numpy(),
        {curve.name: curve for curve in curves(at_head(data, head))},
        code.curves(setting, layers, layer) if code else {}, code.WHERE if code else "",
        phases.begin(data) if phases else {}, phases.WORDS if phases else {}, name,
    )  # fmt: skip


def code_about(results: Results, module: str, data: xr.Dataset) -> Any:
    """A module of the laboratory's package about its runs; None where it has none for this one."""
    code = zoo.code_of(results.about["name"], module)
    return code if code and set(code.NEEDS) <= {*data.variables} else None


def curves(data: xr.Dataset) -> list[Curve]:
    """Every curve of a run in a head, in the order of the trajectory; bands with their curves."""
    found: list[Curve] = []
    own: dict[str, int] = {}
    low: dict[str, np.ndarray] = {}
    for name, array in data.data_vars.items():
        spread = dict(_spread(array))
        if own and own.keys() == spread.keys() and _other_end(name) in data:
            low = spread
        elif low and str(name).endswith(_BAND[1]):
            for label, at in own.items():
                found[at] = replace(found[at], band=(low[label], spread[label]))
            low = {}
        else:
            own = {label: len(found) + i for i, label in enumerate(spread)}
            attrs = array.attrs
            found += [
                Curve(
                    f"{name} {label}".strip(), str(attrs.get("units", "")),
                    str(attrs.get("long_name", "")), str(attrs.get("group", "")), values,
                )
                for label, values in spread.items()
            ]  # fmt: skip
    return found


def _other_end(name: Any) -> str:
    """Of the lower end of a band the name of its upper end, "" for any other variable."""
    stem, low, rest = str(name).rpartition(_BAND[0])
    return f"{stem}{_BAND[1]}" if low and not rest else ""


def _spread(array: xr.DataArray) -> Iterator[tuple[str, np.ndarray]]:
    """One (label, values [step]) per label of the dims besides `step`; nothing for maps."""
    inner = [str(d) for d in array.dims if d != "step"]
    if any(d not in array.coords for d in inner) or "step" not in array.dims:
        return
    if is_matrix(array) or is_sweep(array):
        return
    if np.prod([array.sizes[d] for d in inner]) > MOST_LABELS:
        return
    for label, place in places(array, inner):
        yield label, array.isel(place).to_numpy().astype(float)


def panels(runs: Sequence[Trained]) -> list[Panel]:
    """What is drawn of these runs: the first curves of the first groups; the table has them all."""
    groups: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for curve in run.curves.values():
            names = groups.setdefault((curve.group, curve.units), [])
            if curve.drawn and curve.name not in names and len(names) < MOST_CURVES:
                names.append(curve.name)
    drawn = {key: names for key, names in groups.items() if names}
    return [
        Panel(
            _title(group or units, names, [g for g, _ in drawn].count(group)), units, tuple(names)
        )
        for (group, units), names in drawn.items()
    ][:MOST_PANELS]


def _title(group: str, names: list[str], of_group: int) -> str:
    """The group; with the variable where it has several figures and this one shows a single one."""
    variables = {name.split(" ")[0] for name in names}
    said = f"{group}: {worded(variables.pop())}" if of_group > 1 and len(variables) == 1 else group
    return said[:1].upper() + said[1:]


def tokens_of(data: xr.Dataset, text: int) -> tuple[list[str], list[bool]]:
    """Tokens of one of the texts whose patterns were stored, and which of them are triggers."""
    n = data.sizes.get("query", 0)
    if "probe_id" not in data.coords or "token" not in data.coords:
        return [str(i) for i in range(n)], [False] * n
    ids = data["probe_id"].isel(probe=text).to_numpy()
    marks = data["trigger"].to_numpy() if "trigger" in data.coords else None
    names = [str(token) for token in data["token"].to_numpy()[ids]]
    return names, [bool(marks[i]) for i in ids] if marks is not None else [False] * n


def texts_of(data: xr.Dataset) -> int:
    """How many texts have patterns."""
    return data.sizes.get("probe", 0) if "pattern" in data else 0


def patterns_of(data: xr.Dataset, label: str, text: int) -> np.ndarray:
    """Patterns [step, query, key] of one head on one text; raises `WorkbenchError` without."""
    if text >= texts_of(data):
        raise WorkbenchError(
            f"text {text} has no patterns here; there are {texts_of(data)}, from 0 on."
        )
    return at_head(data, label)["pattern"].isel(probe=text).to_numpy().astype(float)


def scalars(one: Trained) -> pd.DataFrame:
    """The curves as a table, one row per step."""
    columns: dict[str, object] = {
        "stack": one.stack, "run": one.label, "setting": one.setting, "head": one.head,
        "step": one.steps,
    }  # fmt: skip
    for curve in one.curves.values():
        columns[curve.name] = curve.values
        if curve.band is not None:
            low, high = curve.band
            columns |= {f"{curve.name} low": low, f"{curve.name} high": high}
    return pd.DataFrame(columns)
