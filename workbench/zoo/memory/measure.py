"""The experiments: items drawn, stored, read; one table each, a row per setting.

Every table has the column `error` (squared, mean of lists and items, in squared lengths of a value)
or `items` (a capacity), and beside it `law`, the closed form.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from workbench.zoo.memory import closed, recipe, rules, task
from workbench.zoo.memory.recipe import Size

# A capacity at which the error is exactly the allowed one counts.
_ROUNDING = 1e-9
_BYTES = 1 << 26


def everything(size: Size, seed: int) -> dict[str, pd.DataFrame]:
    """Every table of one seed."""
    makers = {
        "interference": interference, "coherence": coherence, "capacity": capacity,
        "rules": of_rules, "ages": ages, "depth": depth, "heads": of_heads,
    }  # fmt: skip
    # A generator per table: the numbers of one do not depend on the others.
    return {
        name: make(size, np.random.default_rng([seed, i])).assign(seed=seed)
        for i, (name, make) in enumerate(makers.items())
    }


def interference(size: Size, rng: np.random.Generator) -> pd.DataFrame:
    """Hebb on random and on orthogonal keys, by width and load N / d_k."""
    rows = []
    for d in size.widths:
        lists = _lists(size, d)
        for items in sorted({max(2, round(load * d)) for load in size.loads}):
            values = task.unit(rng, lists, items, d)
            kinds = {"random": task.unit(rng, lists, items, d)}
            if items <= d:
                kinds["orthogonal"] = task.orthogonal(rng, lists, items, d)
            for kind, keys in kinds.items():
                error = rules.squared_errors(rules.hebb(keys, values), keys, values).mean()
                law = closed.average_error(items, d)
                rows.append({"keys": kind, "d": d, "n": items, "error": error, "law": law})
    return pd.DataFrame(rows)


def coherence(size: Size, rng: np.random.Generator) -> pd.DataFrame:
    """The largest error (not squared) of coherent keys, values alike or random."""
    rows = []
    for d in size.coherent_widths:
        for items in sorted({2, d // 8, d // 2}):
            keys = task.coherent(items, d)
            for kind, values in (
                ("alike", task.aligned(items, d)), ("random", task.unit(rng, 1, items, d)),
            ):  # fmt: skip
                error = np.sqrt(rules.squared_errors(rules.hebb(keys, values), keys, values)).max()
                law = closed.worst_error(items, d)
                rows.append({"values": kind, "d": d, "n": items, "error": error, "law": law})
    return pd.DataFrame(rows)


def capacity(size: Size, rng: np.random.Generator) -> pd.DataFrame:
    """How many items a memory holds by four criteria, by width.

    mean: E error^2 below eps^2.  largest: no item above eps, in the sure share of lists.  decoding:
    every item nearest to its own value, in that share.  guaranteed: no item above eps, coherent
    keys and values alike.  `law` is NaN where there is no closed form.
    """
    eps = recipe.EPS
    rows = []
    for d in size.mean_widths:
        found = _of_random(size, d, d // 2, rng, _mean_within)
        law = closed.average_capacity(eps, d)
        rows.append({"criterion": "mean", "d": d, "items": found, "law": law})
    for d in size.coherent_widths:
        found = largest(lambda n, d=d: _coherent_within(n, d), d)
        law = closed.guaranteed_capacity(eps, d)
        rows.append({"criterion": "guaranteed", "d": d, "items": found, "law": law})
    for d in size.largest_widths:
        found = _of_random(size, d, d, rng, _largest_within)
        rows.append({"criterion": "largest", "d": d, "items": found, "law": np.nan})
    for d in size.decoding_widths:
        law = largest(lambda n, d=d: closed.decoding_share(n, d) >= recipe.SURE, d * d)
        found = _of_random(size, d, 2 * law, rng, _decoded)
        rows.append({"criterion": "decoding", "d": d, "items": found, "law": law})
    return pd.DataFrame(rows)


def largest(holds: Callable[[int], bool], room: int) -> int:
    """The largest number of items from 1 to `room` that holds, where fewer hold too."""
    low, high = 1, room
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    assert low < room, f"all of {room} items hold"
    return low


def _lists(size: Size, d: int) -> int:
    """Fewer lists at larger widths, where each tells more."""
    return max(40, size.lists * 16 // d)


def _of_random(
    size: Size, d: int, room: int, rng: np.random.Generator,
    within: Callable[[np.ndarray, np.ndarray], bool],
) -> int:  # fmt: skip
    """A capacity of random items; the first of one draw are stored."""
    lists = _lists(size, d)
    keys, values = (task.unit(rng, lists, room, d) for _ in range(2))
    return largest(lambda n: within(keys[:, :n], values[:, :n]), room)


def _mean_within(keys: np.ndarray, values: np.ndarray) -> bool:
    errors = rules.squared_errors(rules.hebb(keys, values), keys, values)
    return bool(errors.mean() <= recipe.EPS**2)


def _largest_within(keys: np.ndarray, values: np.ndarray) -> bool:
    errors = rules.squared_errors(rules.hebb(keys, values), keys, values)
    return bool((errors.max(axis=1) <= recipe.EPS**2).mean() >= recipe.SURE)


def _coherent_within(items: int, d: int) -> bool:
    keys, values = task.coherent(items, d), task.aligned(items, d)
    errors = rules.squared_errors(rules.hebb(keys, values), keys, values)
    return bool(errors.max() <= recipe.EPS**2 * (1 + _ROUNDING))


def _decoded(keys: np.ndarray, values: np.ndarray) -> bool:
    """Whether the nearest value is the right one for every item, in enough lists."""
    items = keys.shape[1]
    right = []
    for part in np.array_split(np.arange(len(keys)), 1 + len(keys) * items**2 * 8 // _BYTES):
        said = rules.retrieve(rules.hebb(keys[part], values[part]), keys[part])
        nearest = (said @ values[part].swapaxes(1, 2)).argmax(axis=-1)
        right.append((nearest == np.arange(items)).all(axis=1))
    return bool(np.concatenate(right).mean() >= recipe.SURE)


def of_rules(size: Size, rng: np.random.Generator) -> pd.DataFrame:
    """Hebb, delta, delta asked at the wrong keys, pseudo-inverse, by number of items."""
    d = recipe.RULE_D
    rows = []
    for items in size.rule_items:
        lists = max(40, size.lists * 8 // items)
        keys, values = (task.unit(rng, lists, items, d) for _ in range(2))
        wrong = task.unit(rng, *keys.shape)
        hebb = closed.average_error(items, d)
        for rule, memory, law in (
            ("Hebb", rules.hebb(keys, values), hebb),
            ("delta", rules.delta(keys, values), closed.delta_errors(items, d).mean()),
            ("delta, wrong keys", rules.delta(keys, values, wrong), np.nan),
            ("pseudo-inverse", rules.pseudo_inverse(keys, values), closed.inverse_error(items, d)),
        ):
            error = rules.squared_errors(memory, keys, values).mean()
            rows.append({"rule": rule, "d": d, "n": items, "error": error, "law": law})
    return pd.DataFrame(rows)


def ages(size: Size, rng: np.random.Generator) -> pd.DataFrame:
    """Error of every item of the longest list by how many were stored after it."""
    d, items = recipe.RULE_D, max(size.rule_items)
    keys, values = (task.unit(rng, size.lists, items, d) for _ in range(2))
    later = items - 1 - np.arange(items)
    tables = []
    for rule, memory, law in (
        ("Hebb", rules.hebb(keys, values), np.full(items, closed.average_error(items, d))),
        ("delta", rules.delta(keys, values), closed.delta_errors(items, d)),
    ):
        error = rules.squared_errors(memory, keys, values).mean(axis=0)
        tables.append(pd.DataFrame({"rule": rule, "later": later, "error": error, "law": law}))
    return pd.concat(tables, ignore_index=True)


def depth(size: Size, rng: np.random.Generator) -> pd.DataFrame:
    """Error after each layer, with fresh keys in every layer and with the same ones."""
    d = recipe.DEPTH_D
    rows = []
    for items in size.depth_items:
        lists = size.lists * 32 // items
        values, first = (task.unit(rng, lists, items, d) for _ in range(2))
        for kind in ("fresh", "same"):
            said = values
            for layer in range(1, size.layers + 1):
                keys = first if kind == "same" or layer == 1 else task.unit(rng, *first.shape)
                said = rules.retrieve(rules.hebb(keys, said), keys)
                error = ((said - values) ** 2).sum(axis=-1).mean()
                law = closed.depth_error(items, d, layer)
                rows.append({"keys": kind, "n": items, "layers": layer, "error": error, "law": law})
    return pd.DataFrame(rows)


def of_heads(size: Size, rng: np.random.Generator) -> pd.DataFrame:
    """Error of averaged heads: fresh projections of random items and of orthogonal ones, copies.

    Copies are heads that all have the projection of the first.
    """
    d, d_head, items = recipe.HEADS_MODEL, recipe.HEADS_D, recipe.HEADS_ITEMS
    lists = size.lists // 5
    values = task.unit(rng, lists, items, d_head)
    rows = []
    for kind, x in (
        ("random", task.unit(rng, lists, items, d)),
        ("orthogonal", task.orthogonal(rng, lists, items, d)),
    ):
        overlap = 0.0 if kind == "orthogonal" else 1.0 / d
        total = np.zeros_like(values)
        for head in range(1, max(size.heads) + 1):
            keys = x @ (rng.standard_normal((lists, d, d_head)) / np.sqrt(d_head))
            said = rules.retrieve(rules.hebb(keys, values), keys)
            total += said
            if head == 1:
                copied = ((said - values) ** 2).sum(axis=-1).mean()
            if head in size.heads:
                error = ((total / head - values) ** 2).sum(axis=-1).mean()
                law = closed.heads_error(items, d_head, head, overlap)
                rows.append({"items": kind, "heads": head, "error": error, "law": law})
                if kind == "random":
                    rows.append({"items": "copies", "heads": head, "error": copied, "law": law})
    return pd.DataFrame(rows)
