"""Residual stream of one tower: norms and directions per token, and the few largest activations.

Stream level 0 is what enters block 0, level l + 1 what leaves block l (before the final norm): the
convention of Sun et al. (arXiv 2402.17762) and Gu et al. (arXiv 2410.10781).  Directions are those
of the first positions of a prompt, where primary sinks sit; a later token that points the same way
is a secondary one (Wong et al. 2025, arXiv 2512.22213).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from workbench.errors import WorkbenchError
from workbench.spec import Spec

if TYPE_CHECKING:
    from workbench.assemble import Span

N_TOP = 3
# A primary sink is one of these first positions (three begin a chat template).
N_CANDIDATES = 3
# Dimensions left out of `resid_cos_trimmed`: massive activations are of this number at most.
N_TRIMMED = 3
# Positions worked on at a time, so that no second copy of a long stream is made.
_STRIP = 4096
_COSINES = ("resid_cos", "resid_cos_trimmed")
_EXTREMES = ("resid_median", "resid_top_value", "resid_top_dim", "resid_top_position")


class ResidualRecorder:
    """Collects what `want` names of the hidden states while its hooks are in place.

    `sink_dims` are the dimensions of `resid_phi`.  Raises `WorkbenchError` for one that the stream
    does not have.
    """

    def __init__(
        self, net: nn.Module, spec: Spec, kind: str, want: tuple[str, ...], sink_dims: tuple = ()
    ) -> None:
        self.stack = _stack(net, spec, kind)
        self.want = want
        self.sink_dims = list(sink_dims)
        # A cache makes later passes the next positions of the same text; a tower that is called
        # again sees another image.
        self._grows = kind == "text"
        # Per level: [row, query] of every pass.
        self.norms: dict[int, list[np.ndarray]] = {}
        self.phi: dict[int, list[np.ndarray]] = {}
        # Extremes need whole prompts; decoding steps add norms and directions only (said in the
        # provenance of a generation).
        self._spans: list[Span] | None = None
        self._extremes: dict[int, list[tuple[float, np.ndarray, np.ndarray, np.ndarray]]] = {}
        # Per level and prompt: states of the first positions, cosines [2, candidate, query].
        self._first: dict[int, list[torch.Tensor]] = {}
        self._cosines: dict[int, list[list[np.ndarray]]] = {}

    @contextmanager
    def hooks(self, spans: list[Span] | None) -> Iterator[None]:
        """Record inside the block; `spans` cut padding away before medians and maxima are taken."""
        self._spans = spans
        with ExitStack() as stack:
            for i, block in enumerate(self.stack):
                if i == 0:
                    hook = block.register_forward_pre_hook(self._before, with_kwargs=True)
                    stack.callback(hook.remove)
                stack.callback(block.register_forward_hook(self._after(i + 1)).remove)
            yield

    def _before(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if isinstance(hidden, torch.Tensor):
            self._see(0, hidden)

    def _after(self, level: int) -> Any:
        def hook(_module: nn.Module, _args: tuple, out: Any) -> None:
            self._see(level, out[0] if isinstance(out, tuple) else out)

        return hook

    @torch.no_grad()
    def _see(self, level: int, hidden: torch.Tensor) -> None:
        hidden = hidden.detach()
        if hidden.dim() == 2:
            # Packed vision towers have no batch dimension.
            hidden = hidden[None]
        hidden = hidden.float()
        first = level not in self.norms
        self.norms.setdefault(level, []).append(hidden.norm(dim=-1).cpu().numpy())
        if self.sink_dims:
            self.phi.setdefault(level, []).append(_phi(hidden, self.sink_dims).cpu().numpy())
        extremes, cosines = (any(w in self.want for w in ws) for ws in (_EXTREMES, _COSINES))
        if first:
            prompts = [hidden[row, a:b] for row, a, b in self._bounds(hidden)]
            if extremes:
                self._extremes[level] = [_extremes(prompt) for prompt in prompts]
            if cosines:
                self._first[level] = [prompt[:N_CANDIDATES].clone() for prompt in prompts]
                self._cosines[level] = [
                    [_cosines(h, c)] for h, c in zip(prompts, self._first[level], strict=True)
                ]
        elif cosines and self._grows and len(self._first[level]) == hidden.shape[0]:
            for row, first_states in enumerate(self._first[level]):
                self._cosines[level][row].append(_cosines(hidden[row], first_states))

    def _bounds(self, hidden: torch.Tensor) -> list[tuple[int, int, int]]:
        """(row, start, stop) of every prompt of a pass."""
        if self._spans:
            return [(s.row, s.start, s.stop) for s in self._spans]
        return [(row, 0, hidden.shape[1]) for row in range(hidden.shape[0])]

    def dataset(self, spans: list[Span], n_query: int, want: tuple[str, ...]) -> xr.Dataset:
        """`resid_*` variables with dims prompt, stream, candidate, query, rank; only what was
        asked for."""
        made = {
            **self._per_token("resid_norm", self.norms, spans, n_query),
            **self._per_token("resid_phi", self.phi, spans, n_query),
            **self._directions(len(spans), n_query),
            **self._tops(len(spans)),
        }
        data = xr.Dataset({name: value for name, value in made.items() if name in want})
        if not data.data_vars:
            return data
        sizes = {
            "stream": len(self.stack) + 1, "query": n_query, "rank": N_TOP,
            "candidate": N_CANDIDATES,
        }  # fmt: skip
        coords: dict[str, Any] = {dim: np.arange(n) for dim, n in sizes.items() if dim in data.dims}
        return data.assign_coords({**coords, "prompt": [span.prompt for span in spans]})

    def _per_token(
        self, name: str, seen: dict[int, list[np.ndarray]], spans: list[Span], n_query: int
    ) -> dict[str, Any]:
        if not seen:
            return {}
        found = np.full((len(spans), len(self.stack) + 1, n_query), np.nan, dtype=np.float32)
        for level, parts in seen.items():
            whole = np.concatenate(parts, axis=1)
            for i, span in enumerate(spans):
                own = whole[span.row, span.start : span.stop]
                found[i, level, : len(own)] = own
        return {name: (("prompt", "stream", "query"), found)}

    def _directions(self, n_prompts: int, n_query: int) -> dict[str, Any]:
        if not self._cosines:
            return {}
        shape = (2, n_prompts, len(self.stack) + 1, N_CANDIDATES, n_query)
        found = np.full(shape, np.nan, dtype=np.float32)
        for level, prompts in self._cosines.items():
            for i, parts in enumerate(prompts):
                own = np.concatenate(parts, axis=2)[..., :n_query]
                found[:, i, level, : own.shape[1], : own.shape[2]] = own
        dims = ("prompt", "stream", "candidate", "query")
        return {name: (dims, own) for name, own in zip(_COSINES, found, strict=True)}

    def _tops(self, n_prompts: int) -> dict[str, Any]:
        if not self._extremes:
            return {}
        shape = (n_prompts, len(self.stack) + 1)
        median = np.full(shape, np.nan, dtype=np.float32)
        tops = np.full((3, *shape, N_TOP), np.nan, dtype=np.float32)
        for level, rows in self._extremes.items():
            for i, (middle, *triple) in enumerate(rows):
                median[i, level] = middle
                for top, values in zip(tops, triple, strict=True):
                    top[i, level, : len(values)] = values
        made: dict[str, Any] = {"resid_median": (("prompt", "stream"), median)}
        for name, top in zip(("value", "dim", "position"), tops, strict=True):
            made[f"resid_top_{name}"] = (("prompt", "stream", "rank"), top)
        return made


def _cosines(hidden: torch.Tensor, first: torch.Tensor) -> np.ndarray:
    """Cosines [2, candidate, query] of states [query, d] with those of the first positions
    [candidate, d]: in all dimensions, and without those in which the candidate's is largest.

    NaN where a state is zero: it has no direction.
    """
    found = torch.empty(2, len(first), len(hidden))
    for i, candidate in enumerate(first):
        largest = candidate.abs().topk(min(N_TRIMMED, len(candidate))).indices
        trimmed = candidate.index_fill(0, largest, 0.0)
        for a in range(0, len(hidden), _STRIP):
            strip = hidden[a : a + _STRIP]
            at = slice(a, a + len(strip))
            found[0, i, at] = _cosine(strip, candidate)
            found[1, i, at] = _cosine(strip.index_fill(1, largest, 0.0), trimmed)
    return found.numpy()


def _cosine(states: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    # Divided by the larger norm first: products of massive activations overflow.
    unit = one / one.norm()
    return ((states / states.norm(dim=-1, keepdim=True)) @ unit).clamp(-1, 1).cpu()


def _phi(hidden: torch.Tensor, dims: list[int]) -> torch.Tensor:
    """Largest |activation| in `dims` over the root mean square of all dimensions, [row, query]."""
    if max(dims) >= hidden.shape[-1]:
        raise WorkbenchError(
            f"sink_dims names dimension {max(dims)}, but the residual stream has "
            f"{hidden.shape[-1]}; give dimensions below that."
        )
    rms = hidden.square().mean(dim=-1).sqrt()
    return hidden[..., dims].abs().amax(dim=-1) / rms


def _extremes(hidden: torch.Tensor) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Median |activation| of one prompt [position, d_model], and its largest activations with dim
    and position, one per dimension: several sinks that share one would hide the others."""
    size = hidden.abs()
    largest, where = size.max(dim=0)
    dim = largest.topk(min(N_TOP, len(largest))).indices
    position = where[dim]
    values = hidden[position, dim]
    # numpy's median averages the two middle values; torch's takes the lower one.
    return (
        float(np.median(size.cpu().numpy())),
        values.cpu().numpy(),
        dim.cpu().numpy(),
        position.cpu().numpy(),
    )


def _stack(net: nn.Module, spec: Spec, kind: str) -> list[nn.Module]:
    """All blocks of the tower in order, those without attention included; empty if there is no
    single stack."""
    lists = {(site.block or "").rpartition(".")[0] for site in spec.of(kind)}
    if len(lists) != 1 or "" in lists:
        return []
    return list(net.get_submodule(lists.pop()))  # type: ignore[call-overload]
