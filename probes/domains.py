"""Is a head a sink on one kind of text and at work on another, on some tokens and not on others?

Active-dormant heads (Guo et al. 2024, arXiv 2410.13835, section 4): a head parks on the first token
where its input gives it nothing to do, and looks elsewhere where it does (L16H25 of Llama-2-7B on
Wikipedia and on GitHub).  `domain_sink_rate` and `domain_contrast` compare kinds of text,
`token_activity` and `activity_contrast` kinds of querying token.  Whether the head also matters
there is asked in `workbench.circuits.domains`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.sparse import csr_array
from scipy.stats import binomtest, false_discovery_control, fisher_exact

from workbench.errors import WorkbenchError
from workbench.probes import null_mass, uniform
from workbench.probes.pooling import counted_rows
from workbench.probes.sinks import first_token_above
from workbench.stats import HeadStats

SHUFFLES = 200
Domains = Mapping[int, str] | Sequence[str]
Classes = str | Mapping[int, str]


def domain_names(prompts: Sequence[int], domains: Domains) -> list[str]:
    """The domain of every prompt, in order, from a mapping prompt -> name or one name per prompt.

    Raises `WorkbenchError` when a prompt has none, or there are fewer than two domains.

    >>> domain_names([4, 7], {4: "code", 7: "prose"}), domain_names([4, 7], ["code", "prose"])
    (['code', 'prose'], ['code', 'prose'])
    """
    if isinstance(domains, Mapping):
        missing = [p for p in prompts if p not in domains]
        if missing:
            raise WorkbenchError(
                f"prompt {missing[0]} has no domain; the mapping has {len(domains)} of "
                f"{len(prompts)} prompts."
            )
        names = [str(domains[p]) for p in prompts]
    else:
        if isinstance(domains, str) or len(domains) != len(prompts):
            raise WorkbenchError(
                f"domains={str(domains)[:60]!r} is not one name for each of {len(prompts)} "
                "prompts; give a list of as many names, or a mapping from prompt to name."
            )
        names = [str(name) for name in domains]
    if len(set(names)) < 2:
        raise WorkbenchError(f"all prompts are of the domain {names[0]!r}; two are compared.")
    return names


def domain_sink_rate(
    stats: HeadStats,
    domains: Domains,
    *,
    epsilon: float = 0.3,
    T: int = 64,
    renormalised: bool = False,
) -> pd.DataFrame:
    """Gu's sink rate of every head on every domain: share of its prompts with alpha_1 > epsilon.

    `domains`: a name per prompt (list, or mapping from prompt).  Columns: `layer, head, label,
    domain, rate` (0..1), `low, high` (Wilson's 95 % interval), `n` prompts, `null`, the head's rate
    over all prompts: what shuffled names give on average.  `epsilon`, `T` and `null_mass` as in
    `first_token_sink_rate`.  Raises `WorkbenchError` as that does, and for names that do not fit.
    """
    above, names, settings = _above(stats, domains, epsilon, T, renormalised)
    sinks, counts = _tally(above, _membership(names)[None])
    order = sorted(set(names))
    rows = []
    for at, head in enumerate(stats.heads()):
        total = counts[0, at].sum()
        for d, name in enumerate(order):
            k, n = int(sinks[0, at, d]), int(counts[0, at, d])
            interval = binomtest(k, n).proportion_ci(method="wilson") if n else (np.nan, np.nan)
            null = sinks[0, at].sum() / total if total else np.nan
            rate = k / n if n else np.nan
            rows.append((*head.index, str(head), name, rate, *interval, n, null))
    columns = ["layer", "head", "label", "domain", "rate", "low", "high", "n", "null"]
    table = pd.DataFrame(rows, columns=columns)
    table.attrs.update(settings)
    return table


def domain_contrast(
    stats: HeadStats,
    domains: Domains,
    *,
    epsilon: float = 0.3,
    T: int = 64,
    renormalised: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Heads whose sink rate differs most between two domains, each with a test.

    Columns: `layer, head, label`; `dormant_on`, `active_on`, the domains of highest and lowest rate
    with `dormant_rate`, `active_rate` and their `difference` (0..1); `p`, Fisher's exact test of
    the two, times the number of pairs of domains there were to choose from (at most 1); `q`, p
    after Benjamini and Hochberg over all heads; `null`, the mean largest difference over 200
    shufflings of the names (`seed`).  Arguments and errors as in `domain_sink_rate`.
    """
    above, names, settings = _above(stats, domains, epsilon, T, renormalised)
    sinks, counts = (a[0] for a in _tally(above, _membership(names)[None]))
    order = np.array(sorted(set(names)))
    high, low, difference = _largest(sinks, counts)
    pairs = len(list(combinations(order, 2)))
    p = np.full(len(above), np.nan)
    for at in np.flatnonzero(np.isfinite(difference)):
        both = [(sinks[at, d], counts[at, d] - sinks[at, d]) for d in (high[at], low[at])]
        p[at] = min(1.0, np.asarray(fisher_exact(np.array(both)))[1] * pairs)
    q = np.full_like(p, np.nan)
    q[np.isfinite(p)] = false_discovery_control(p[np.isfinite(p)])
    heads = stats.heads()
    each = np.arange(len(heads))
    rate = sinks / np.where(counts > 0, counts, np.nan)
    table = pd.DataFrame(
        {
            "layer": [head.layer for head in heads],
            "head": [head.head for head in heads],
            "label": [str(head) for head in heads],
            "dormant_on": order[high],
            "dormant_rate": rate[each, high],
            "active_on": order[low],
            "active_rate": rate[each, low],
            "difference": difference,
            "p": p,
            "q": q,
            "null": _shuffled(above, names, seed),
        }
    )
    table.attrs.update(settings, shuffles=SHUFFLES, seed=seed)
    return table.sort_values("difference", ascending=False, ignore_index=True)


def _above(
    stats: HeadStats, domains: Domains, epsilon: float, T: int, renormalised: bool
) -> tuple[np.ndarray, list[str], dict]:
    """Gu's indicator [head, prompt] in the order of `stats.heads()`, names, settings."""
    names = domain_names([int(p) for p in stats.data["prompt"]], domains)
    above, _, used = first_token_above(stats, epsilon, T, renormalised)
    settings = {"epsilon": epsilon, "T": used, "null_mass": null_mass.said(renormalised)}
    return _by_head(stats, above.transpose("layer", "head", "prompt")), names, settings


def _by_head(stats: HeadStats, values: xr.DataArray) -> np.ndarray:
    """Values with dims (layer, head, ...) as [head, ...] in the order of `stats.heads()`."""
    at = [head.index for head in stats.heads()]
    layers, heads = (xr.DataArray(list(index), dims="at") for index in zip(*at, strict=True))
    full = values.reindex({"layer": np.unique(layers)})
    return full.sel(layer=layers, head=heads).transpose("at", ...).to_numpy()


def _membership(names: Sequence[str]) -> np.ndarray:
    """[prompt, domain], 1 where the prompt is of the domain; domains in sorted order."""
    return (np.array(names)[:, None] == np.array(sorted(set(names)))).astype(float)


def _tally(values: np.ndarray, member: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts [.., head, type] of `values` [head, item]; NaN counts nowhere.

    `member` [.., item, type] is 1 where an item (a prompt, a query) is of a type.
    """
    known = np.isfinite(values)
    return np.where(known, values, 0.0) @ member, known.astype(float) @ member


def _largest(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Type of highest mean, of lowest mean, and their difference, over the last dim."""
    known = counts > 0
    rate = sums / np.where(known, counts, 1)
    high = np.where(known, rate, -np.inf).argmax(-1)
    low = np.where(known, rate, np.inf).argmin(-1)
    top, bottom = (np.take_along_axis(rate, i[..., None], -1)[..., 0] for i in (high, low))
    return high, low, np.where(known.sum(-1) > 1, top - bottom, np.nan)


def _shuffled(above: np.ndarray, names: Sequence[str], seed: int) -> np.ndarray:
    """Mean largest difference [head] when the names are dealt out anew."""
    rng = np.random.default_rng(seed)
    member = _membership(names)
    found = np.stack([member[rng.permutation(len(names))] for _ in range(SHUFFLES)])
    return _largest(*_tally(above, found))[2].mean(0)


def token_activity(
    stats: HeadStats,
    *,
    threshold: float = 0.89,
    by: Classes = "id",
    renormalised: bool = False,
) -> pd.DataFrame:
    """Where each head is dormant: mean weight on the first token, per type of querying token.

    `by`: "id" (every token for itself), "role" (of the token table), or a mapping from token id to
    the name of a class; ids it does not name are left out.  Columns: `layer, head, label, token`
    (the class, the role, or the token's text; with `by="id"` also `id`), `first_mass` (0..1), `n`
    queries, `dormant`: first_mass > `threshold` (.89 in the code of Guo et al. 2024, arXiv
    2410.13835, who ask it of one query at the end of a fixed text), `null`, that of uniform
    attention over the visible keys of the same queries.  Query 0 is left out: it sees the first
    token alone.  Needs `first_mass, n_visible`, and `null_mass` for `renormalised`.  Raises
    `WorkbenchError` when nothing is left.
    """
    kept, types = _typed(stats, by)
    value, control = _first_mass(stats, renormalised)
    member = _one_hot(kept["code"].to_numpy(), len(types))
    sums, counts = _tally(_at_queries(stats, value, kept), member)
    control_sums, _ = _tally(_at_queries(stats, control, kept), member)
    at, kind = np.nonzero(counts)
    means = sums[at, kind] / counts[at, kind]
    heads = stats.heads()
    table = pd.DataFrame(
        {
            "layer": [heads[i].layer for i in at],
            "head": [heads[i].head for i in at],
            "label": [str(heads[i]) for i in at],
        }
    )
    for name in types.columns:
        table[name] = types[name].to_numpy()[kind]
    table["first_mass"], table["n"] = means, counts[at, kind].astype(int)
    table["dormant"] = means > threshold
    table["null"] = control_sums[at, kind] / counts[at, kind]
    table.attrs.update(threshold=threshold, null_mass=null_mass.said(renormalised))
    return table


def activity_contrast(
    stats: HeadStats, *, by: Classes, renormalised: bool = False, seed: int = 0
) -> pd.DataFrame:
    """Heads dormant on one type of querying token and active on another, largest contrast first.

    Columns: `layer, head, label`; `dormant_on`, `active_on`, the types of largest and least mean
    weight on the first token, with `dormant_mass`, `active_mass` and their `difference` (0..1);
    `null`, the mean largest difference over 200 shufflings of the types over the queries (`seed`).
    Arguments and errors as in `token_activity`.
    """
    kept, types = _typed(stats, by)
    values = _at_queries(stats, _first_mass(stats, renormalised)[0], kept)
    codes = kept["code"].to_numpy()
    sums, counts = _tally(values, _one_hot(codes, len(types)))
    high, low, difference = _largest(sums, counts)
    rng = np.random.default_rng(seed)
    shuffled = (_one_hot(rng.permutation(codes), len(types)) for _ in range(SHUFFLES))
    null = np.mean([_largest(*_tally(values, member))[2] for member in shuffled], axis=0)
    means = sums / np.where(counts > 0, counts, np.nan)
    heads, each, names = stats.heads(), np.arange(len(sums)), types["token"].to_numpy()
    table = pd.DataFrame(
        {
            "layer": [head.layer for head in heads],
            "head": [head.head for head in heads],
            "label": [str(head) for head in heads],
            "dormant_on": names[high],
            "dormant_mass": means[each, high],
            "active_on": names[low],
            "active_mass": means[each, low],
            "difference": difference,
            "null": null,
        }
    )
    table.attrs.update(null_mass=null_mass.said(renormalised), shuffles=SHUFFLES, seed=seed)
    return table.sort_values("difference", ascending=False, ignore_index=True)


def _typed(stats: HeadStats, by: Classes) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The querying tokens that have a type, with its number `code`; and the types, with `token`
    (and `id`)."""
    tokens = stats.tokens.loc[stats.tokens["position"] > 0]
    if by == "id":
        names = tokens["id"].where(tokens["id"] >= 0)
    elif by == "role":
        names = tokens["role"]
    elif isinstance(by, Mapping):
        names = tokens["id"].map(dict(by))
    else:
        raise WorkbenchError(f'by={by!r} names no types; give "id", "role" or a mapping from ids.')
    kept = tokens.loc[names.notna(), ["prompt", "position", "text"]]
    if kept.empty:
        raise WorkbenchError("no token after the first is of a type that is asked about.")
    codes, found = pd.factorize(names[names.notna()], sort=True)
    kept = kept.assign(code=codes)
    types = pd.DataFrame({"token": found})
    if by == "id":
        texts = kept.groupby("code")["text"].first()
        types = pd.DataFrame({"id": found.astype(int), "token": texts.to_numpy()})
    return kept, types


def _first_mass(stats: HeadStats, renormalised: bool) -> tuple[xr.DataArray, xr.DataArray]:
    """Weight on the first token of every counted query, and that of uniform attention."""
    value = stats["first_mass"].astype("float64")
    if renormalised:
        value = null_mass.without_null(stats, value)
    counted = counted_rows(stats, value)
    control = uniform.at_key(uniform.visible_span(stats), 0)
    return value.where(counted), control.where(counted)


def _at_queries(stats: HeadStats, value: xr.DataArray, kept: pd.DataFrame) -> np.ndarray:
    """A row statistic at the tokens of `kept`, [head, token]; NaN where it was not captured."""
    prompt = value.indexes["prompt"].get_indexer(kept["prompt"])
    query = value.indexes["query"].get_indexer(kept["position"])
    found = _by_head(stats, value)[:, prompt, query]
    return np.where((prompt >= 0) & (query >= 0), found, np.nan)


def _one_hot(codes: np.ndarray, n: int) -> csr_array:
    """[token, type], 1 where the token is of the type."""
    rows = np.arange(len(codes))
    return csr_array((np.ones(len(codes)), (rows, codes)), shape=(len(codes), n))
