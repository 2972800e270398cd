"""What the study of in-context learning curves takes from one model, kept as it is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from workbench.circuits import icl_curves
from workbench.circuits.controls import untrained
from workbench.circuits.icl_curves import Change, Episode, Ids, Pair
from workbench.commands.opening import open_model
from workbench.errors import WorkbenchError
from workbench.models import Model
from workbench.prompts import read_prompts
from workbench.runfiles import read_table, write_table
from workbench.zoo import tasks

ZOO = "zoo:mix-3l"
TRAINED, UNTRAINED = "trained", "untrained"
GIVEN, SHUFFLED = "as given", "shuffled"
KEYS = 4  # of a dictionary
LENGTH = 96  # tokens of a text of the zoo
PERIOD = 32  # of repeated random tokens, the texts of a model without a file
Step = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A model with its texts and few-shot episodes.

    `values` is the number of answers a dictionary draws from, 0 for tasks of a file.
    """

    model: Model
    texts: list[Ids]
    episodes: list[Episode]
    values: int


@dataclass(frozen=True)
class Measured:
    """Losses in nats: `tokens` (text, index) by (model, texts), `examples` (episode, examples) by
    (model, context), and `floor` [examples], the least loss possible, where it is known."""

    name: str
    tokens: dict[tuple[str, str], xr.DataArray]
    examples: dict[tuple[str, str], xr.DataArray]
    floor: np.ndarray | None

    def score(self, model: str, texts: str) -> Change:
        """The ICL score."""
        return icl_curves.icl_score(self.tokens[model, texts])

    def gain(self, model: str, context: str) -> Change:
        """Loss behind all examples minus that without any."""
        losses = self.examples[model, context]
        change = losses.isel(examples=-1) - losses.isel(examples=0)
        return icl_curves.mean_change(change.to_numpy())

    def above_floor(self, model: str) -> float:
        """Mean loss behind all examples of its task above the least possible, nats; NaN if that
        is not known."""
        if self.floor is None:
            return float("nan")
        return float(self.examples[model, icl_curves.OWN].isel(examples=-1).mean() - self.floor[-1])


def subject(model: str, prompts: str, n: int, examples: int) -> Subject:
    """The named model, or the one that is here, with `n` texts and episodes of `examples` each."""
    if prompts and not model:
        raise WorkbenchError("--prompts belongs to a model; name it with --model.")
    opened = open_model(model or ZOO)
    if (model or ZOO) == ZOO and not prompts:
        rng = np.random.default_rng(0)
        rows = tasks.repeat(rng, n, LENGTH).ids
        texts = [tuple(int(i) for i in row) for row in rows]
        keys, values = tasks.kind_ids("key"), tasks.kind_ids("value")
    else:
        period = icl_curves.fitting_period(opened, PERIOD)
        texts = icl_curves.as_ids(opened, opened.repeated_tokens(period, n))
        ids = np.unique([i for text in texts for i in text[1:]])
        keys, values = ids[::2], ids[1::2]
    begin = _begin(opened)
    if prompts and holds_tasks(prompts):
        return Subject(opened, texts, read_tasks(opened, prompts, n, examples), 0)
    longest = icl_curves.positions(opened)
    if longest is not None:
        # A begin token, pairs of two tokens, and the query with its answer.
        examples = min(examples, (longest - len(begin) - 2) // 2)
    if prompts:
        texts = icl_curves.as_ids(opened, read_prompts(prompts))
    episodes = icl_curves.dictionary(
        keys.tolist(), values.tolist(), size=KEYS, examples=examples, episodes=n, begin=begin
    )
    return Subject(opened, texts, episodes, len(values))


def _begin(model: Model) -> Ids:
    begin = getattr(model.tokenizer, "bos_token_id", None)
    return () if begin is None else (int(begin),)


def holds_tasks(path: str) -> bool:
    """Whether a file is one of tasks: JSON lines with `examples`."""
    with Path(path).open(encoding="utf-8") as file:
        return Path(path).suffix == ".jsonl" and '"examples"' in file.readline()


def read_tasks(model: Model, path: str, n: int, most: int) -> list[Episode]:
    """Episodes of the tasks in a file, one task per line: {"task": ..., "examples": [[question,
    answer], ...]}.

    Questions and answers are tokenised piece by piece and put behind each other as they are
    written, blanks and line ends included.  Every episode draws its query and up to `most` examples
    of a task without repetition; the tasks take turns until there are `n` episodes.  Raises
    `WorkbenchError` for a line that is no task, and a task of fewer than three examples.
    """
    if model.tokenizer is None:
        raise WorkbenchError(f"{model.name} has no tokenizer, so tasks in words cannot be given.")
    found: dict[str, list[Pair]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            where = f"{Path(path).name} line {number}"
            name, pairs = _task(line, where)
            if name in found:
                raise WorkbenchError(f"{where}: task {name!r} stands there twice; name each once.")
            found[name] = [(_ids(model, q), _ids(model, a)) for q, a in pairs]
    examples = min(most, *(len(pairs) - 1 for pairs in found.values()))
    rng = np.random.default_rng(0)
    episodes, names, begin = [], list(found), _begin(model)
    for number in range(n):
        name = names[number % len(names)]
        drawn = rng.permutation(len(found[name]))[: examples + 1]
        pairs = [found[name][i] for i in drawn]
        episodes.append(Episode(name, tuple(pairs[1:]), pairs[0], begin))
    return episodes


def _task(line: str, where: str) -> tuple[str, list[tuple[str, str]]]:
    try:
        value = json.loads(line)
        pairs = [(str(question), str(answer)) for question, answer in value["examples"]]
        name = str(value["task"])
    except (ValueError, KeyError, TypeError):
        raise WorkbenchError(
            f'{where} is no task; write {{"task": "name", "examples": [["question", "answer"], '
            "...]} on one line."
        ) from None
    if len(pairs) < 3 or not all(answer for _, answer in pairs):
        raise WorkbenchError(
            f"{where}: task {name!r} has {len(pairs)} examples; give three or more, each with an "
            "answer."
        )
    return name, pairs


def _ids(model: Model, text: str) -> Ids:
    return tuple(int(i) for i in model.tokenizer(text, add_special_tokens=False)["input_ids"])


def measure(chosen: Subject, folder: Path, step: Step) -> Measured:
    """Every curve of the model and of its untrained copy, from `folder` where it is there already.

    Calls `step` once per curve.
    """
    folder.mkdir(exist_ok=True)
    both = {TRAINED: chosen.model, UNTRAINED: untrained(chosen.model)}
    episodes = icl_curves.contexts(chosen.episodes)
    counts = icl_curves.counts_to(min(len(one.examples) for one in chosen.episodes))
    texts = {GIVEN: chosen.texts, SHUFFLED: icl_curves.shuffled(chosen.texts)}
    tokens, examples = {}, {}
    for label, model in both.items():
        for kind, own in texts.items():
            step(f"{label}, texts {kind}")
            path = folder / _file("tokens", label, kind)
            tokens[label, kind] = _kept(path, lambda m=model, t=own: icl_curves.token_losses(m, t))
        for context, many in episodes.items():
            step(f"{label}, {context}")
            path = folder / _file("examples", label, context)
            examples[label, context] = _kept(
                path, lambda m=model, e=many: icl_curves.example_losses(m, e, counts)
            )
    floor = None
    if chosen.values:
        floor = icl_curves.dictionary_floor(np.array(counts), KEYS, chosen.values)
    return Measured(chosen.model.name, tokens, examples, floor)


def curves(chosen: Subject) -> int:
    """How often `measure` calls `step`."""
    return 2 * (2 + len(icl_curves.contexts(chosen.episodes)))


def size(found: Measured) -> str:
    """How much was measured, in words."""
    tokens, examples = found.tokens[TRAINED, GIVEN], found.examples[TRAINED, icl_curves.OWN]
    most = int(examples["examples"].max())
    return (
        f"{tokens.sizes['text']} of {tokens.sizes['index'] + 1} tokens; "
        f"{examples.sizes['episode']} queries behind up to {most} examples"
    )


def _file(*parts: str) -> str:
    return "-".join(part.replace(" ", "-") for part in parts) + ".parquet"


def _kept(path: Path, make: Callable[[], xr.DataArray]) -> xr.DataArray:
    """Losses as a table with one column per label of the second dim, kept in a file."""
    if not path.is_file():
        losses = make()
        along, over = map(str, losses.dims)
        table = pd.DataFrame(losses.to_numpy(), columns=[str(v) for v in losses[over].to_numpy()])
        write_table(path, table.assign(dims=f"{along},{over}"))
    table = read_table(path)
    along, over = str(table.pop("dims").iloc[0]).split(",")
    labels = [int(name) for name in table.columns]
    return xr.DataArray(table.to_numpy(), dims=(along, over), coords={over: labels})


def table(losses: dict[tuple[str, str], xr.DataArray], kind: str) -> pd.DataFrame:
    """Means and standard errors of all curves below each other; `kind` names what differs."""
    parts: Sequence[pd.DataFrame] = [
        icl_curves.curve(one).assign(model=model, **{kind: what})
        for (model, what), one in losses.items()
    ]
    return pd.concat(parts, ignore_index=True)
