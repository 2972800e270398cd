"""How much does a model's loss fall with what stands in its context?

Two curves, both in nats.  `token_losses`: the loss of the i-th token of a text; its mean fall from
an early to a late token is the ICL score of Olsson et al. 2022 (arXiv 2209.11895).
`example_losses`: the loss of an answer behind n solved examples of its task (Brown et al. 2020,
arXiv 2005.14165), the same queries at every n.

Controls: the tokens of a text in random order; examples whose answers are shuffled (after Min et
al. 2022, arXiv 2202.12837); examples of another task; `controls.untrained`.  Cost: one forward pass
per text, and one per query, number of examples and context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import bootstrap

from workbench.circuits.effects import next_token_loss
from workbench.errors import WorkbenchError
from workbench.models import Model
from workbench.prompts import Prompt

Ids = tuple[int, ...]
Pair = tuple[Ids, Ids]
Progress = Callable[[int, int, str], None]
# The paper compares the tokens 50 and 500; here each stands for the tokens around it, 50 in all.
EARLY, LATE, WIDTH = 50, 500, 50
SHORTEST = 12  # tokens
OWN, ANSWERS, OTHER = "its own task", "answers shuffled", "another task"


def as_ids(model: Model, prompts: object) -> list[Ids]:
    """Token ids of every prompt, as the model sees them."""
    return [tuple(int(i) for i in one.ids) for one in model.encode(prompts)]


def positions(model: Model) -> int | None:
    """How many tokens a text may have; None where the model names no limit."""
    config = getattr(model.net.config, "text_config", model.net.config)
    longest = getattr(config, "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def fitting_period(model: Model, most: int) -> int:
    """The longest period up to `most` of which a begin token and two copies have positions, and
    for which the vocabulary has different tokens."""
    longest = positions(model)
    places = most if longest is None else (longest - 1) // 2
    return min(most, places, len(model.plain_ids()))


def shuffled(texts: Sequence[Ids], seed: int = 0) -> list[Ids]:
    """The same texts with the tokens behind the first in random order."""
    rng = np.random.default_rng(seed)
    return [(*text[:1], *(int(i) for i in rng.permutation(text[1:]))) for text in texts]


def token_losses(
    model: Model, texts: Sequence[Ids], progress: Progress | None = None
) -> xr.DataArray:
    """Loss of every token given those before it, dims (text, index), nats.

    `texts` are token ids, all cut to the length of the shortest and to the model's positions;
    `index` counts from 1, the first token that is predicted.  Raises `WorkbenchError` for texts of
    fewer than 12 tokens and as `effects.next_token_loss` does.
    """
    length = min((len(text) for text in texts), default=0)
    if length < SHORTEST:
        raise WorkbenchError(
            f"the shortest of {len(texts)} texts has {length} tokens; a curve over the token index "
            f"needs {SHORTEST} or more in each."
        )
    length = min(length, positions(model) or length)
    rows = []
    for number, text in enumerate(texts, 1):
        rows.append(next_token_loss(model, Prompt(token_ids=text[:length])))
        if progress:
            progress(number, len(texts), "texts")
    return xr.DataArray(
        np.stack(rows).astype(float),
        dims=("text", "index"),
        coords={"index": np.arange(1, length)},
        attrs={"units": "nats"},
    )


def curve(losses: xr.DataArray) -> pd.DataFrame:
    """Mean over the first dim with its standard error, one row per label of the other dim.

    Columns: that dim, `loss`, `se` (both nats; NaN for one text) and `n`.
    """
    along, over = map(str, losses.dims)
    n = losses.sizes[along]
    se = losses.std(along, ddof=1) / np.sqrt(n) if n > 1 else losses.mean(along) * np.nan
    return pd.DataFrame(
        {
            over: losses[over].to_numpy(),
            "loss": losses.mean(along).to_numpy(),
            "se": se.to_numpy(),
            "n": n,
        }
    )


@dataclass(frozen=True)
class Change:
    """A mean difference of losses in nats with its 95 % bootstrap interval over `n` texts.

    `low` and `high` are NaN for one text.
    """

    value: float
    low: float
    high: float
    n: int


def spans(last: int) -> tuple[range, range]:
    """Token indices that count as early and as late in texts whose last index is `last`.

    From 524 on the 50 indices around 50 and those around 500; in shorter texts both in proportion.

    >>> spans(2000), spans(48)
    ((range(25, 75), range(475, 525)), (range(2, 7), range(44, 49)))
    """
    end = min(last + 1, LATE + WIDTH // 2)
    scale = end / (LATE + WIDTH // 2)
    width = max(1, round(WIDTH * scale))
    begin = max(1, round((EARLY - WIDTH // 2) * scale))
    return range(begin, begin + width), range(end - width, end)


def icl_score(losses: xr.DataArray, seed: int = 0) -> Change:
    """Loss at late minus loss at early tokens of `token_losses`, nats; below 0 context helps.

    Olsson et al. 2022, with the mean over `spans` in the place of two single tokens.
    """
    early, late = spans(int(losses["index"].max()))
    differences = losses.sel(index=list(late)).mean("index") - losses.sel(index=list(early)).mean(
        "index"
    )
    return mean_change(differences.to_numpy(), seed)


def mean_change(differences: np.ndarray, seed: int = 0) -> Change:
    """Mean of paired differences [text] with its interval."""
    n = len(differences)
    if n < 2:
        return Change(float(np.mean(differences)), np.nan, np.nan, n)
    found = bootstrap(
        (differences,), np.mean, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Change(float(np.mean(differences)), float(found.low), float(found.high), n)


@dataclass(frozen=True)
class Episode:
    """Solved examples of one task and a query, each a (question, answer) of token ids.

    Episodes of one `task` are no control for each other.
    """

    task: str
    examples: tuple[Pair, ...]
    query: Pair
    begin: Ids = ()


def dictionary(
    keys: Sequence[int],
    values: Sequence[int],
    *,
    size: int,
    examples: int,
    episodes: int,
    seed: int = 0,
    begin: Ids = (),
) -> list[Episode]:
    """Look-up tasks: every episode gives `size` keys a value each, drawn uniformly from `values`.

    The keys of the examples and of the query are drawn uniformly and with repetition, so that the
    query is among n examples with probability 1 - (1 - 1/size)^n: see `dictionary_floor`.
    """
    if len(keys) < size or not len(values):
        raise WorkbenchError(
            f"a dictionary of {size} keys was asked for, but there are {len(keys)} keys and "
            f"{len(values)} values to draw from."
        )
    rng = np.random.default_rng(seed)
    found = []
    for number in range(episodes):
        own = rng.choice(np.asarray(keys), size, replace=False)
        meant = rng.choice(np.asarray(values), size)
        at = rng.integers(size, size=examples + 1)
        pairs = [((int(own[i]),), (int(meant[i]),)) for i in at]
        found.append(Episode(f"dictionary {number}", tuple(pairs[:-1]), pairs[-1], begin))
    return found


def dictionary_floor(count: np.ndarray, size: int, values: int) -> np.ndarray:
    """Least loss any predictor reaches in `dictionary` behind `count` examples, nats.

    The answer is known if the key was seen, else uniform: (1 - 1/size)^count ln(values).

    >>> dictionary_floor(np.array([0, 1]), 2, 8).round(3).tolist()
    [2.079, 1.04]
    """
    return (1 - 1 / size) ** np.asarray(count, float) * np.log(values)


def counts_to(most: int) -> list[int]:
    """Numbers of examples that are measured: 0, powers of two, `most`.

    >>> counts_to(12)
    [0, 1, 2, 4, 8, 12]
    """
    return sorted({0, most, *(2**i for i in range(most.bit_length()) if 2**i <= most)})


def contexts(episodes: Sequence[Episode], seed: int = 0) -> dict[str, list[Episode]]:
    """The episodes as they are and as controls: answers shuffled among the examples of an episode;
    examples of the next episode of another task, where there is one for each."""
    rng = np.random.default_rng(seed)
    mixed = []
    for one in episodes:
        order = rng.permutation(len(one.examples))
        pairs = [(q, one.examples[i][1]) for (q, _), i in zip(one.examples, order, strict=True)]
        mixed.append(replace(one, examples=tuple(pairs)))
    found = {OWN: list(episodes), ANSWERS: mixed}
    others = [_next_other(episodes, number) for number in range(len(episodes))]
    if all(other is not None for other in others):
        found[OTHER] = [
            replace(one, examples=other.examples)
            for one, other in zip(episodes, others, strict=True)
            if other is not None
        ]
    return found


def _next_other(episodes: Sequence[Episode], number: int) -> Episode | None:
    """The first episode of another task after this one, going round."""
    later = [*episodes[number + 1 :], *episodes[:number]]
    return next((other for other in later if other.task != episodes[number].task), None)


def example_losses(
    model: Model,
    episodes: Sequence[Episode],
    counts: Sequence[int],
    progress: Progress | None = None,
) -> xr.DataArray:
    """Mean loss per answer token of every query behind its first n examples, nats.

    Dims (episode, examples); the query is the same at every n.  Raises `WorkbenchError` for an
    episode with fewer examples than the largest count, for an answer without tokens or with
    nothing before it, and for a context longer than the model's positions.
    """
    most, fewest = max(counts), min((len(one.examples) for one in episodes), default=0)
    if not episodes or most > fewest:
        raise WorkbenchError(
            f"{most} examples are asked for, but one of {len(episodes)} episodes has {fewest}; "
            "give more examples or smaller counts."
        )
    losses = np.empty((len(episodes), len(counts)))
    for row, one in enumerate(episodes):
        question, answer = one.query
        for column, count in enumerate(counts):
            shown = [i for pair in one.examples[:count] for part in pair for i in part]
            before = (*one.begin, *shown, *question)
            _refuse_query(model, one.task, len(before), len(answer), count)
            prompt = Prompt(token_ids=(*before, *answer))
            losses[row, column] = next_token_loss(model, prompt)[-len(answer) :].mean()
        if progress:
            progress(row + 1, len(episodes), "queries")
    return xr.DataArray(
        losses,
        dims=("episode", "examples"),
        coords={"examples": list(counts)},
        attrs={"units": "nats"},
    )


def _refuse_query(model: Model, task: str, before: int, answer: int, count: int) -> None:
    """Raise for a query whose loss would be that of other tokens than its answer, or of none."""
    if not before or not answer:
        raise WorkbenchError(
            f"a query of task {task!r} has {before} tokens before its answer and {answer} in it; "
            "both need one or more."
        )
    longest = positions(model)
    if longest is not None and before + answer > longest:
        raise WorkbenchError(
            f"a query of task {task!r} behind {count} examples has {before + answer} tokens, more "
            f"than the {longest} positions of {model.name}; give fewer or shorter examples."
        )
