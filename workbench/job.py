"""A capture, decided before anything runs: what is asked, whether it can be had, what it costs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from workbench.errors import WorkbenchError
from workbench.heads import Head, parse_heads
from workbench.kernels.attention_stats import passes
from workbench.models import Model
from workbench.parameters import Parameters
from workbench.planning import Plan, Request, Shape, make_batches, plan_capture
from workbench.prompts import as_prompts
from workbench.schema import SCHEMA, expand_want, kernel_want
from workbench.stats import ROLES

PADDING = ("right", "left", "packed")
_DEFAULT_BATCH_TOKENS = 4096


class Job:
    """One capture, decided: encoded prompts, statistics, batches, roles; made by `_prepare`."""

    def __init__(self, model: Model, prompts: object, settings: dict[str, Any]) -> None:
        if not isinstance(model, Model):
            raise WorkbenchError(
                f"capture takes what wb.load returns, got {type(model).__name__}; write "
                "wb.capture(wb.load(net), prompts)."
            )
        self.model = model
        self.settings = settings
        self.kind = settings["kind"] or model.spec.main
        self.sites = model.spec.of(self.kind)
        self.generate = _checked_generate(settings["generate"])
        self.want = expand_want(settings["want"])
        self.parameters = used_parameters(settings["parameters"], self.want)
        self.pattern_heads = _pattern_heads(model, self.kind, settings["patterns"])
        if self.pattern_heads and "pattern" not in self.want:
            self.want = (*self.want, "pattern")
        if "pattern" in self.want and not self.pattern_heads:
            raise WorkbenchError(
                "want holds 'pattern' but no head is named; say which in patterns=, such as 'L5H1'."
            )
        if settings["padding"] not in PADDING:
            raise WorkbenchError(
                f"padding={settings['padding']!r} is not one of {', '.join(PADDING)}."
            )
        from_start = [name for name in self.want if SCHEMA[name].group == "blocks"]
        if from_start and settings["padding"] != "right":
            raise WorkbenchError(
                f"{from_start[0]} counts from the start of a row, where padding="
                f"{settings['padding']!r} puts no prompt; use padding='right'."
            )
        self.prompts = as_prompts(prompts)
        self.encoded = model.encode(self.prompts)
        self._refuse_what_cannot_be()
        names = dict.fromkeys(name for e in self.encoded for name in e.segments)
        clash = [name for name in names if name in ROLES or name == "last"]
        if clash:
            raise WorkbenchError(
                f"segment name {clash[0]!r} is the name of a role; call the segment something else."
            )
        self.roles = (*ROLES, *names)
        self.batches = self._batches(settings["batch_size"])

    def _refuse_what_cannot_be(self) -> None:
        """Arguments this model or tower would ignore are refused by name."""
        settings, spec = self.settings, self.model.spec
        if self.sites[0].tap == "returned":
            asked = [n for n in ("positions", "generate", "patterns") if settings[n] is not None]
            if asked or settings["keep_qk"]:
                raise WorkbenchError(
                    f"{(*asked, 'keep_qk')[0]}= is not available for {self.model.name}: a "
                    f"{spec.family} model is read from the maps it returns."
                )
        own_rows = (self.kind == "text" and not self.model.is_seq2seq) or self.kind == "encoder"
        if settings["positions"] is not None and not own_rows:
            raise WorkbenchError(
                f"positions= is not available for the {self.kind} tower of this {spec.family} "
                "model: its rows are not the tokens of the prompt."
            )
        places = position_places(self.model.net)
        for i, e in enumerate(self.encoded):
            if places is not None and len(e) + self.generate > places:
                grown = f" and {self.generate} to generate" if self.generate else ""
                raise WorkbenchError(
                    f"prompt {i} has {len(e)} tokens{grown}, but {self.model.name} has {places} "
                    "positions; shorten it."
                )
        texts = [e for e in self.encoded if len(e)]
        if texts and not self.model.accepts("input_ids"):
            raise WorkbenchError(
                f"{self.model.name} takes no tokens; give Prompt(images=...) with its processor, "
                "or workbench.capturing.capture_inputs with the network's own arguments."
            )

    def _batches(self, batch_size: int | None) -> tuple[tuple[int, ...], ...]:
        lengths = [max(1, len(e)) for e in self.encoded]
        if batch_size is not None and batch_size < 1:
            raise WorkbenchError(
                f"batch_size={batch_size} is not a number of prompts; give 1 or more."
            )
        # Generation and images run alone: their rows have no common length.
        alone = [bool(e.extra) or bool(self.generate) for e in self.encoded]
        if batch_size is None:
            batch_size = max(1, min(16, _DEFAULT_BATCH_TOKENS // max(lengths)))
        return make_batches(lengths, batch_size, alone)

    def plan(self) -> Plan:
        net = self.model.net
        config = getattr(net.config, "text_config", net.config)
        width = next(
            (
                getattr(config, n)
                for n in ("hidden_size", "d_model", "n_embd")
                if hasattr(config, n)
            ),
            1024,
        )
        parameters = sum(p.numel() for p in net.parameters())
        shape = Shape(
            self.model.spec,
            self.kind,
            int(width),
            parameters,
            4,
            self.model.backend == "eager",
            os.cpu_count() or 1,
        )
        request = Request(
            self.want,
            sweeps_of(self.want, self.parameters, self._forward_gives_lse()),
            self.parameters,
            len(self.roles),
            len(self.pattern_heads),
            self.settings["keep_qk"],
            self.generate,
        )
        lengths = [max(1, len(e)) + self.generate for e in self.encoded]
        return plan_capture(
            shape, request, lengths, self.batches, available_memory(self.model.device)
        )

    def _forward_gives_lse(self) -> bool:
        """Whether the model's own attention is a fused kernel that says its log-sum-exp."""
        plain = all(not s.softcap and not s.sink_logit and s.tap == "registry" for s in self.sites)
        return plain and self.model.backend == "sdpa"


def sweeps_of(want: tuple[str, ...], parameters: dict[str, Any], lse: bool) -> tuple[str, ...]:
    """The sweeps over the map that the kernels need for `want`."""
    found = passes(kernel_want(want), lse=lse, horizon=parameters.get("horizon"))
    # The margins look at scores, not at weights: a sweep of their own.
    return (*found, "rows") if "sink_margin" in want else found


def used_parameters(parameters: object, want: tuple[str, ...]) -> dict[str, Any]:
    """The parameters `want` is defined with, by name; raises `WorkbenchError` for anything else."""
    if parameters is None:
        parameters = Parameters()
    if not isinstance(parameters, Parameters):
        raise WorkbenchError(
            f"parameters={parameters!r} is no wb.Parameters; write wb.Parameters(pool=32) or the "
            "like."
        )
    return parameters.used(want)


def _checked_generate(generate: int | None) -> int:
    if generate is None:
        return 0
    if not hasattr(generate, "__index__") or int(generate) < 1:
        raise WorkbenchError(
            f"generate={generate!r} is not a number of tokens; give 1 or more, or None."
        )
    return int(generate)


def _pattern_heads(model: Model, kind: str, patterns: object) -> tuple[Head, ...]:
    if patterns is None:
        return ()
    n_layers, n_heads = model.spec.n_layers(kind), model.spec.n_heads(kind)
    heads = parse_heads(patterns, n_layers, n_heads, kind)  # type: ignore[arg-type]
    foreign = [str(head) for head in heads if head.kind != kind]
    if foreign:
        raise WorkbenchError(
            f"patterns names {foreign[0]}, but the {kind} tower is captured; give kind= its tower."
        )
    return heads


def available_memory(device: torch.device) -> int:
    """Free bytes on the device the model runs on."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def position_places(net: Any) -> int | None:
    """Rows of the table of learned positions of a language model; None where they are computed.

    BART and RoBERTa keep a few rows for padding; those count here as positions, so a text that is
    too long by these few is left to the model's own error.
    """
    tables = [
        module.num_embeddings
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Embedding)
        and name.endswith((".wpe", "position_embeddings", ".embed_positions"))
        and "vision" not in name
    ]
    return min(tables) if tables else None


def settings_of(arguments: dict[str, Any]) -> dict[str, Any]:
    names = (
        "want",
        "batch_size",
        "positions",
        "generate",
        "kind",
        "patterns",
        "keep_qk",
        "padding",
        "parameters",
    )
    return {name: arguments[name] for name in names}
