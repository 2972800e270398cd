"""What the laboratory logs, against literal loops and cases with a known answer."""

import math

import numpy as np
import pytest
import xarray as xr

from workbench.zoo.backcopy import measure

RUNS, LAYERS, HEADS, TEXTS, N, TOKENS = 2, 2, 3, 4, 9, 6
ROW = ("run", "text", "query")
MAP = ("run", "layer", "head", "text", "query", "key")


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(8)


@pytest.fixture(scope="module")
def ids(rng):
    found = rng.integers(0, TOKENS - 1, size=(RUNS, TEXTS, N))
    found[..., 0] = TOKENS - 1
    return xr.DataArray(found, dims=ROW)


@pytest.fixture(scope="module")
def rows(ids):
    """The queries that hold token 0 or 1."""
    return ids < 2


@pytest.fixture(scope="module")
def scores(rng):
    return xr.DataArray(rng.normal(size=(RUNS, LAYERS, HEADS, TEXTS, N, N)), dims=MAP)


@pytest.fixture(scope="module")
def pattern(scores):
    weights = np.exp(scores.to_numpy()) * np.tril(np.ones((N, N)))
    # A null sink of logit 0: rows sum to less than one.
    return xr.DataArray(weights / (1 + weights.sum(-1, keepdims=True)), dims=MAP)


def loop(values, rows, first=0):
    """Mean of values(run, layer, head, text, query) over marked rows, [run, layer, head]."""
    out = np.zeros((RUNS, LAYERS, HEADS))
    for run in range(RUNS):
        places = [(b, q) for b in range(TEXTS) for q in range(first, N) if rows[run, b, q]]
        assert places
        for layer in range(LAYERS):
            for head in range(HEADS):
                out[run, layer, head] = np.mean([values(run, layer, head, *p) for p in places])
    return out


def test_sink_null_mass_and_entropy_by_loops(pattern, rows):
    a, marked = pattern.to_numpy(), rows.to_numpy()
    np.testing.assert_allclose(
        measure.sink_mass(pattern, rows), loop(lambda *i: a[(*i, 0)], marked, 2)
    )
    np.testing.assert_allclose(
        measure.null_mass(pattern, rows), loop(lambda *i: 1 - sum(a[i]), marked, 2)
    )
    entropy = loop(lambda *i: -sum(p * math.log(p) for p in a[i] if p > 0), marked, 2)
    np.testing.assert_allclose(measure.row_entropy(pattern, rows), entropy)


def test_sink_of_known_patterns(rows):
    """All on key 0 gives 1, uniform gives 1 / (q + 1), and early queries do not count."""
    size = (RUNS, LAYERS, HEADS, TEXTS, N, N)
    first, even = np.zeros(size), np.zeros(size)
    first[..., 2:, 0] = 1
    even[:] = np.tril(np.ones((N, N))) / np.arange(1, N + 1)[:, None]
    every = xr.ones_like(rows)
    assert (measure.sink_mass(xr.DataArray(first, dims=MAP), every) == 1).all()
    uniform = np.mean([1 / (q + 1) for q in range(2, N)])
    np.testing.assert_allclose(measure.sink_mass(xr.DataArray(even, dims=MAP), every), uniform)
    logs = np.mean([math.log(q + 1) for q in range(2, N)])
    np.testing.assert_allclose(measure.row_entropy(xr.DataArray(even, dims=MAP), every), logs)
    none = measure.sink_mass(xr.DataArray(first, dims=MAP), ~every)
    assert none.isnull().all()


def test_delta_logit_by_a_loop(scores, ids):
    found = measure.delta_logit(scores, ids, TOKENS + 1)
    s, x = scores.to_numpy(), ids.to_numpy()
    assert found.dims == ("run", "layer", "head", "token")
    for run, layer, head, token in np.ndindex(found.shape):
        margins = [
            s[run, layer, head, b, q, 0]
            - np.mean([s[run, layer, head, b, q, j] for j in range(1, q)])
            for b in range(TEXTS)
            for q in range(2, N)
            if x[run, b, q] == token
        ]
        value = float(found[run, layer, head, token])
        assert value == pytest.approx(np.mean(margins)) if margins else math.isnan(value)
    assert found.isel(token=TOKENS - 1).isnull().all(), "<s> stands at query 0 only"


def test_delta_logit_of_planted_scores(ids):
    """The query's own key and later ones, however large, do not count; key 0 does, once."""
    s = np.zeros((RUNS, LAYERS, HEADS, TEXTS, N, N))
    s[...] = np.triu(np.full((N, N), 1000.0))
    s[..., 2:, 0] = 5.0
    s[..., 2:, 1:] += 2.0
    found = measure.delta_logit(xr.DataArray(s, dims=MAP), ids, TOKENS)
    seen = [t for t in range(TOKENS - 1) if (ids[..., 2:] == t).any(("text", "query")).all()]
    assert len(seen) > 2
    np.testing.assert_allclose(found.isel(token=seen), 3.0)


def test_spread_is_over_types_not_over_occurrences():
    by_token = xr.DataArray(np.r_[np.arange(11.0), np.nan, 500.0], dims="token")
    mean, low, high = measure.spread(by_token, np.r_[np.ones(12, bool), False])
    assert (float(mean), float(low), float(high)) == pytest.approx((5.0, 1.0, 9.0))


def test_excess_by_a_loop_and_zero_for_the_oracle(rng, rows):
    dims = (*ROW, "token")
    oracle = rng.dirichlet(np.full(TOKENS, 0.3), size=(RUNS, TEXTS, N))
    oracle[0, 0, 3] = np.eye(TOKENS)[2]
    guess = rng.dirichlet(np.ones(TOKENS), size=(RUNS, TEXTS, N))
    truth, log_p = xr.DataArray(oracle, dims=dims), xr.DataArray(np.log(guess), dims=dims)
    risk, excess = measure.excess(log_p, truth, rows)
    for run in range(RUNS):
        terms = []
        for b, q in zip(*np.nonzero(rows.to_numpy()[run]), strict=True):
            p, g = oracle[run, b, q], guess[run, b, q]
            cross = -sum(p[v] * math.log(g[v]) for v in range(TOKENS))
            terms.append((cross, cross + sum(v * math.log(v) for v in p if v > 0)))
        assert np.mean(terms, axis=0) == pytest.approx([float(risk[run]), float(excess[run])])
    _, nothing = measure.excess(np.log(truth.clip(1e-300)), truth, rows)
    np.testing.assert_allclose(nothing, 0, atol=1e-12)


def test_norms_by_role(rng, rows):
    norms = xr.DataArray(
        rng.uniform(1, 2, size=(RUNS, LAYERS, TEXTS, N)), dims=("run", "layer", "text", "key")
    )
    triggers = rows.rename(query="key").copy()
    triggers[:, :, 0] = False
    found = measure.role_mean(norms, triggers)
    assert found.dims == ("run", "layer", "role")
    assert tuple(found["role"].to_numpy()) == measure.ROLES
    x, tr = norms.to_numpy(), triggers.to_numpy()
    for run, layer in np.ndindex(RUNS, LAYERS):
        groups = {"begin": [], "trigger": [], "other": []}
        for b, k in np.ndindex(TEXTS, N):
            role = "begin" if k == 0 else "trigger" if tr[run, b, k] else "other"
            groups[role].append(x[run, layer, b, k])
        for role, values in groups.items():
            assert float(found[run, layer].sel(role=role)) == pytest.approx(np.mean(values))


def test_every_variable_is_declared_once_with_units_and_dims():
    names = [v.name for v in measure.VARIABLES]
    assert len(set(names)) == len(names)
    for variable in measure.VARIABLES:
        assert variable.dims[:2] == ("run", "step") and variable.units and variable.about
        assert variable.low < variable.high
