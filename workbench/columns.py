"""Statistics of a site's columns and of its map as a whole, over several calls: joined as they
come, so a long generation stays small.

A decoding step sees all earlier keys again; kept one by one, its columns would cost the square of
the text.  Counts, sums, maxima, bins and blocks join by adding or comparing.  The rest joins
exactly as well, from what stands beside it (n, m: count and mean of a key in two calls):

    variance   n V = na Va + nb Vb + (mb - ma)^2 na nb / (na + nb)       (Chan et al. 1979)
    entropy    sum p log p = M (log M - H), which adds, with M the mass of the key
    mean       n m = na ma + nb mb
"""

from __future__ import annotations

import numpy as np

_SUMS = ("key_mass", "key_count", "fai_count")
_EMPTY = dict.fromkeys(_SUMS, 0.0) | {"key_max": -np.inf, "key_entropy": 0.0}
# Divided and multiplied at every call: float32 would add up its rounding over a generation.
_WIDE = ("key_var", "key_entropy", "fai")

Arrays = dict[str, np.ndarray]


class Columns:
    """Running [row, head, key] arrays: sums are added, maxima compared, means, variances and
    entropies joined by weight, norms written once."""

    def __init__(self) -> None:
        self._arrays: Arrays = {}
        self._n = 0

    def add(self, first_key: int, keys: Arrays) -> None:
        """The columns of one call whose keys start at absolute position `first_key`."""
        if not keys:
            return
        stop = first_key + next(iter(keys.values())).shape[2]
        fresh = not self._arrays and first_key == 0
        self._n = max(self._n, stop)
        if fresh:
            self._arrays = dict(keys)
            return
        parts = {
            name: self._room(name, values, stop)[:, :, first_key:stop]
            for name, values in keys.items()
        }
        joined = {name: _join(name, parts, keys) for name in keys}
        for name, values in joined.items():
            parts[name][...] = values

    def _room(self, name: str, values: np.ndarray, stop: int) -> np.ndarray:
        """The running array of `name` with at least `stop` keys; doubles, so that growing is
        cheap."""
        old = self._arrays.get(name, values[:, :, :0])
        more = max(stop, 2 * old.shape[2]) - old.shape[2] if old.shape[2] < stop else 0
        dtype = np.float64 if name in _WIDE else np.float32
        if more or old.dtype != dtype:
            fill = np.full((*values.shape[:2], more), _EMPTY.get(name, np.nan), dtype=dtype)
            self._arrays[name] = np.concatenate([old, fill], axis=2, dtype=dtype)
        return self._arrays[name]

    def result(self) -> Arrays:
        """Every array [row, head, key], `key_mean` among them where its sum and count are."""
        found = {name: array[:, :, : self._n] for name, array in self._arrays.items()}
        return with_mean(found)


def with_mean(keys: Arrays) -> Arrays:
    """`keys` and `key_mean` = key_mass / key_count, NaN where no query can see the key."""
    if "key_mass" not in keys or "key_count" not in keys:
        return keys
    return {**keys, "key_mean": _mean(keys["key_mass"], keys["key_count"])}


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _join(name: str, old: Arrays, new: Arrays) -> np.ndarray:
    if name in _SUMS:
        return old[name] + new[name]
    if name == "key_max":
        return np.maximum(old[name], new[name])
    if name == "fai":
        weights = [part["fai_count"].astype(np.float64) for part in (old, new)]
        total = sum(np.nan_to_num(p[name]) * w for p, w in zip((old, new), weights, strict=True))
        return _mean(np.asarray(total), weights[0] + weights[1])
    if name == "key_var":
        return _join_variance(old, new)
    if name == "key_entropy":
        return _join_entropy(old, new)
    return new[name]


def _join_variance(old: Arrays, new: Arrays) -> np.ndarray:
    (na, nb) = (part["key_count"].astype(np.float64) for part in (old, new))
    (sa, sb) = (part["key_mass"].astype(np.float64) for part in (old, new))
    (va, vb) = (np.nan_to_num(part["key_var"].astype(np.float64)) for part in (old, new))
    apart = sb / np.maximum(nb, 1) - sa / np.maximum(na, 1)
    squares = na * va + nb * vb + apart**2 * na * nb / np.maximum(na + nb, 1)
    return _mean(squares, na + nb)


def _join_entropy(old: Arrays, new: Arrays) -> np.ndarray:
    total, p_log_p = 0.0, 0.0
    for part in (old, new):
        mass = part["key_mass"].astype(np.float64)
        p_log_p = p_log_p + mass * (np.log(np.where(mass > 0, mass, 1.0)) - part["key_entropy"])
        total = total + mass
    mass = np.asarray(total)
    some = np.where(mass > 0, mass, 1.0)
    # Rounding can push the entropy of a key that one query looks at below zero.
    return np.where(mass > 0, np.maximum(0.0, np.log(some) - p_log_p / some), 0.0)


class Maps:
    """Running statistics of the whole map: bins and block sums are added, block maxima compared,
    at the place where the call's positions lie."""

    def __init__(self) -> None:
        self._arrays: Arrays = {}

    def add(self, q0: int, k0: int, maps: Arrays, pool: int | None) -> None:
        """Those of one call that begins at the absolute positions q0 and k0; blocks are those of
        absolute positions already."""
        for name, values in maps.items():
            at = (q0 // pool, k0 // pool) if pool and name.startswith("block") else (0,)
            if name not in self._arrays and not any(at):
                self._arrays[name] = values
                continue
            old = self._arrays.get(name, np.zeros((*values.shape[:2], *[0] * len(at)), np.float32))
            size = values.shape[2:]
            grow = [
                max(0, a + n - have) for a, n, have in zip(at, size, old.shape[2:], strict=True)
            ]
            whole = np.pad(old, [(0, 0), (0, 0), *((0, n) for n in grow)])
            part = whole[:, :, *(slice(a, a + n) for a, n in zip(at, size, strict=True))]
            part[...] = np.maximum(part, values) if name == "block_max" else part + values
            self._arrays[name] = whole

    def result(self) -> Arrays:
        """Arrays [row, head, bin] and [row, head, query block, key block]."""
        return self._arrays
