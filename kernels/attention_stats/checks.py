"""The checks every call passes before a backend sees it, and one form for what can be said in
several. Shapes and dtypes; values only where a wrong one would be read as another key.

Dims: B batch, H query heads, Hkv key/value heads, Q queries, K keys, D head width, S segments,
F key features, G query features, N keys or offsets.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.kernels.attention_stats.terms import ACTIVATIONS, offset_of, pool_of
from workbench.kernels.attention_stats.variants import BIASES, MASKS, LowRankBias

Shape = tuple[int, int, int, int]


def check_qk(q: Any, k: Any) -> Shape:
    """(B, H, Q, K) of a pair of tensors that belong together."""
    for name, x in (("q", q), ("k", k)):
        if len(x.shape) != 4:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; expected 4 dims [batch, heads, tokens, width]."
            )
    if str(q.dtype) != str(k.dtype):
        raise ValueError(f"q has dtype {q.dtype} and k has dtype {k.dtype}; expected the same.")
    if kind_of(q) != "float":
        raise ValueError(f"q has dtype {q.dtype}; expected float16, bfloat16, float32 or float64.")
    if str(q.device) != str(k.device):
        raise ValueError(f"q is on {q.device} and k on {k.device}; expected the same device.")
    b, h, n_q, d = q.shape
    b_k, h_kv, n_k, d_k = k.shape
    if (b, d) != (b_k, d_k):
        raise ValueError(
            f"q has batch {b} and width {d}, k has {b_k} and {d_k}; expected the same."
        )
    if not h_kv or h % h_kv:
        raise ValueError(f"q has {h} heads and k has {h_kv}; expected a multiple of the key heads.")
    if not (d and n_k):
        raise ValueError(
            f"k has shape {tuple(k.shape)}; expected at least one key and one dimension."
        )
    return b, h, n_q, n_k


def check_terms(
    shape: Shape, terms: dict[str, Any], device: Any = None, kv_heads: int | None = None
) -> dict[str, Any]:
    """The terms in their one form; ValueError, one sentence, for a bad one.

    Filled in: query_offset, power, activation. Turned: key_lengths into key_valid, pool and horizon
    into pairs, offsets into a tuple, keys into [B, N], key_features into [B, 1 or Hkv, K, F].
    """
    b, h, n_q, n_k = shape
    if kv_heads is not None and (not kv_heads or h % kv_heads):
        raise ValueError(f"{h} heads are given with {kv_heads} of v; expected a multiple of those.")
    _check_numbers(terms)
    _check_activation(terms)
    _check_pairs(terms)
    out = dict(terms)
    out["query_offset"] = offset_of(n_q, n_k, terms["causal"], terms["query_offset"])
    exact = {
        "sink_logit": ("float", [(h,)]),
        "alibi": ("float", [(h,)]),
        "key_valid": ("bool", [(b, n_k)]),
        "key_lengths": ("int", [(b,)]),
        "query_valid": ("bool", [(b, n_q)]),
        "query_ids": ("int", [(b, n_q)]),
        "key_ids": ("int", [(b, n_k)]),
        "query_sequence": ("int", [(b, n_q)]),
        "key_sequence": ("int", [(b, n_k)]),
        "first_key": ("int", [(b,), (b, n_q)]),
        "lse": ("float", [(b, h, n_q)]),
    }
    for name, (kind, shapes) in exact.items():
        _check_array(name, terms.get(name), kind, shapes, device)
    _check_dense(shape, terms, device)
    _check_sequences(terms)
    _check_segments("key_segments", terms, b, n_k, device)
    _check_segments("query_segments", terms, b, n_q, device)
    _check_features(shape, terms, device, kv_heads)
    _check_keys("first_key", terms.get("first_key"), n_k)
    _fill(out, b, n_k, device)
    return out


def kind_of(x: Any) -> str:
    """'bool', 'int' or 'float' of a numpy array or torch tensor."""
    name = str(x.dtype).removeprefix("torch.")
    return "int" if name.startswith(("int", "uint")) else "float" if "float" in name else name


def _fill(out: dict[str, Any], b: int, n_k: int, device: Any) -> None:
    """One form for the arguments that may be given in several."""
    out["power"] = 2 if out.get("power") is None else out["power"]
    out["activation"] = out.get("activation") or "softmax"
    lengths = out.pop("key_lengths", None)
    if lengths is not None:
        inside = _range_like(n_k, lengths)[None] < lengths[:, None]
        valid = out.get("key_valid")
        out["key_valid"] = inside if valid is None else valid & inside
    if out.get("pool") is not None:
        out["pool"] = pool_of(out["pool"])
    if out.get("offsets") is not None:
        out["offsets"] = tuple(int(x) for x in out["offsets"])
        if not out["offsets"]:
            raise ValueError("offsets is empty; expected at least one distance in tokens.")
    keys = out.get("keys")
    if keys is not None:
        _check_array("keys", keys, "int", None, device)
        fits = len(keys.shape) == 1 or (len(keys.shape) == 2 and keys.shape[0] == b)
        if not fits or not keys.shape[-1]:
            raise ValueError(
                f"keys has shape {tuple(keys.shape)}; expected [N] or [{b}, N], N at least 1."
            )
        _check_keys("keys", keys, n_k)
        # By index: numpy and torch do not agree on what repeat means.
        out["keys"] = keys if len(keys.shape) == 2 else keys[None][[0] * b]
    features = out.get("key_features")
    if features is not None and len(features.shape) == 3:
        out["key_features"] = features[:, None]


def _range_like(n: int, x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return np.arange(n)
    import torch

    return torch.arange(n, device=x.device)


def _check_numbers(terms: dict[str, Any]) -> None:
    scale, softcap, power = terms.get("scale"), terms.get("softcap"), terms.get("power")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; expected a finite number or None.")
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap is {softcap}; expected a positive number or None.")
    if power is not None and not (math.isfinite(power) and power > 1):
        raise ValueError(f"power is {power}; expected a number above 1 or None (2).")
    for name in ("window", "waad_window", "local_window", "topk"):
        value = terms.get(name)
        if value is not None and int(value) < 1:
            what = "key" if name != "waad_window" else "token"
            raise ValueError(f"{name} is {value}; expected at least 1 {what} or None.")


def _check_activation(terms: dict[str, Any]) -> None:
    activation = terms.get("activation")
    if activation in (None, "softmax"):
        return
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}.")
    for name in ("sink_logit", "lse"):
        if terms.get(name) is not None:
            raise ValueError(
                f"{name} is given with activation {activation!r}, whose rows have no "
                f"denominator; expected softmax, or no {name}."
            )
    power = terms.get("power")
    if activation == "linear" and power is not None and power != int(power):
        raise ValueError(
            f"power is {power} with activation 'linear', whose weights may be negative; expected "
            f"a whole number."
        )


def _check_pairs(terms: dict[str, Any]) -> None:
    horizon, pool = terms.get("horizon"), terms.get("pool")
    if horizon is not None:
        lo, hi = horizon if len(horizon) == 2 else (-1, None)
        if lo < 0 or (hi is not None and hi < lo):
            raise ValueError(
                f"horizon is {tuple(horizon)}; expected (low, high) with 0 <= low <= high, or "
                f"high None for no end."
            )
    if pool is not None and min(pool_of(pool)) < 1:
        raise ValueError(f"pool is {pool}; expected at least 1, or a pair (queries, keys).")


def _check_array(name: str, x: Any, kind: str, shapes: list[tuple] | None, device: Any) -> None:
    if x is None:
        return
    if not hasattr(x, "dtype") or (device is not None and isinstance(x, np.ndarray)):
        expected = "an array" if device is None else "a tensor"
        raise ValueError(f"{name} is a {type(x).__name__}; expected {expected}.")
    if shapes is not None and tuple(x.shape) not in shapes:
        expected = " or ".join(str(list(s)) for s in shapes)
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {expected}.")
    if kind_of(x) != kind:
        raise ValueError(f"{name} has dtype {x.dtype}; expected {kind}.")
    if device is not None and str(x.device) != str(device):
        raise ValueError(f"{name} is on {x.device}; expected {device}, where q and k are.")


def _check_dense(shape: Shape, terms: dict[str, Any], device: Any) -> None:
    for name, kind, described in (("mask", "bool", MASKS), ("bias", "float", BIASES)):
        x = terms.get(name)
        if isinstance(x, described):
            if isinstance(x, LowRankBias):
                _check_array("bias.left", x.left, "float", None, device)
                _check_array("bias.right", x.right, "float", None, device)
            x.check(shape)
            continue
        _check_array(name, x, kind, None, device)
        if x is not None and not (len(x.shape) <= 4 and _broadcasts(x.shape, shape)):
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; expected one that broadcasts to "
                f"[batch, heads, queries, keys] = {list(shape)}."
            )


def _check_sequences(terms: dict[str, Any]) -> None:
    """Packed sequences are runs: what a query sees is then an interval."""
    given = {name: terms.get(name) for name in ("query_sequence", "key_sequence")}
    missing = [name for name, x in given.items() if x is None]
    if len(missing) == 1:
        raise ValueError(f"{missing[0]} is missing; expected both query_sequence and key_sequence.")
    for name, x in given.items():
        if x is not None and x.shape[1] > 1 and bool((x[:, 1:] < x[:, :-1]).any()):
            raise ValueError(
                f"{name} decreases along the tokens; expected one number per packed sequence, "
                f"rising from the first to the last."
            )


def _check_segments(name: str, terms: dict[str, Any], b: int, n: int, device: Any) -> None:
    x, n_segments = terms.get(name), terms.get("n_segments") or 0
    if x is None:
        return
    if n_segments < 1:
        raise ValueError(
            f"n_segments is {n_segments}; expected the number of segments in {name}, at least 1."
        )
    if len(x.shape) == 3:
        _check_array(name, x, "bool", [(b, n_segments, n)], device)
        return
    _check_array(name, x, "int", [(b, n)], device)
    if min(x.shape) and not (int(x.min()) >= -1 and int(x.max()) < n_segments):
        raise ValueError(
            f"{name} holds {int(x.min())} to {int(x.max())}; "
            f"expected -1 (none) to {n_segments - 1} (n_segments - 1)."
        )


def _check_features(shape: Shape, terms: dict[str, Any], device: Any, kv_heads: int | None) -> None:
    b, _, n_q, n_k = shape
    given = {
        "key_features": [(b, n_k, "F")] + ([(b, kv_heads, n_k, "F")] if kv_heads else []),
        "query_features": [(b, n_q, "G")],
        "v": [(b, kv_heads, n_k, "D")],
    }
    for name, shapes in given.items():
        x = terms.get(name)
        if x is None:
            continue
        _check_array(name, x, "float", None, device)
        if tuple(x.shape[:-1]) not in [s[:-1] for s in shapes] or not x.shape[-1]:
            expected = " or ".join("[" + ", ".join(map(str, s)) + "]" for s in shapes)
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {expected}.")


def _check_keys(name: str, x: Any, n_k: int) -> None:
    if x is not None and min(x.shape) and not (int(x.min()) >= 0 and int(x.max()) < n_k):
        raise ValueError(
            f"{name} holds {int(x.min())} to {int(x.max())}; "
            f"expected key indices from 0 to {n_k - 1}."
        )


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return all(a in (1, n) for a, n in zip(reversed(shape), reversed(to), strict=False))
