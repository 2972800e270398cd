"""Training of a zoo member: one frozen recipe in, one directory of weights, tokenizer and card out.

The same recipe gives the same bytes of weights on one kind of processor and version of torch: the
text of every step is drawn from (seed, step), and everything runs on one CPU thread.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.zoo import cards, measure, tasks

Progress = Callable[[int, int, str], None]
REACH = (64, 96, 128, 192, 256, 512, 1024)  # text lengths of the card's needle table, tokens
CARD_TEXTS = 64  # texts per task behind the card's numbers
REPORT_EVERY = 20  # steps between two calls of the progress callback


@dataclass(frozen=True)
class Stage:
    """A stretch of training: texts of the given lengths, about ``tokens`` of them per step."""

    steps: int
    lengths: tuple[int, ...]
    shares: tuple[tuple[str, float], ...]
    tokens: int = 1200


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights. Lengths and periods are in tokens."""

    name: str
    seed: int = 0
    # Model: a plain Llama, whose every head is its own key-value head.
    layers: int = 3
    heads: int = 8
    width: int = 64
    mlp: int = 192
    rope_theta: float = 10000.0
    max_positions: int = 16384
    init_std: float = 0.072
    embed_std: float = 1.0
    # Data
    stages: tuple[Stage, ...] = ()
    # Optimiser: AdamW, linear warm-up, then half a cosine to zero over all stages
    rate: float = 3e-3
    warmup: int = 50
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    eval_every: int = 100

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    @property
    def longest(self) -> int:
        """Longest training text in tokens."""
        return max(max(stage.lengths) for stage in self.stages)


def _shares(*shares: float) -> tuple[tuple[str, float], ...]:
    """Task shares in the order of the tasks; they sum to 1."""
    return tuple(zip(tasks.TASKS, shares, strict=True))


# Copying by prefix matching does not form within thousands of steps on texts of 48 tokens and more
# (one key in fifty is the right one before anything is learned), and forms in 400 on texts of 24:
# hence the short first stage.
RECIPES: dict[str, Recipe] = {
    "mix-3l": Recipe(
        name="mix-3l",
        stages=(
            Stage(600, (24, 32), _shares(0.6, 0.1, 0.1, 0.1, 0.1)),
            Stage(2800, (32, 48, 64, 96, 128), _shares(0.25, 0.2, 0.1, 0.25, 0.2), tokens=900),
        ),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of a zoo member."""
    if name not in RECIPES:
        known = ", ".join(sorted(RECIPES))
        raise WorkbenchError(f"there is no recipe {name!r}; known recipes: {known}.")
    return RECIPES[name]


def read_recipe(file: Path) -> Recipe:
    """The recipe in a ``recipe.json`` written by :func:`train`."""
    fields = json.loads(Path(file).read_text(encoding="utf-8"))
    fields["betas"] = tuple(fields["betas"])
    fields["stages"] = tuple(
        Stage(s["steps"], tuple(s["lengths"]), tuple(map(tuple, s["shares"])), s["tokens"])
        for s in fields["stages"]
    )
    return Recipe(**fields)


def build(settings: Recipe) -> Any:
    """A ``LlamaForCausalLM`` with random weights, drawn from the recipe's seed; eager attention."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    known = tasks.index()
    config = LlamaConfig(
        vocab_size=len(known),
        hidden_size=settings.width,
        intermediate_size=settings.mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        initializer_range=settings.init_std,
        tie_word_embeddings=False,
        bos_token_id=known[tasks.BOS],
        pad_token_id=known[tasks.PAD],
        eos_token_id=None,
        use_cache=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
        # Large embeddings keep the words apart while everything else is still small.
        torch.nn.init.normal_(model.model.embed_tokens.weight, std=settings.embed_std)
    return model


def tokenizer(max_positions: int) -> Any:
    """Words split at white space, ``<bos>`` put in front, as a ``PreTrainedTokenizerFast``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = tasks.index()
    words = Tokenizer(models.WordLevel(known, unk_token=tasks.UNK))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single=f"{tasks.BOS} $A",
        pair=f"{tasks.BOS} $A $B",
        special_tokens=[(tasks.BOS, known[tasks.BOS])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=tasks.BOS,
        pad_token=tasks.PAD,
        unk_token=tasks.UNK,
        model_max_length=max_positions,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def train(settings: Recipe, out_dir: Path | str, progress: Progress | None = None) -> Path:
    """Train and write weights, tokenizer, recipe, curve and card to ``out_dir``; returns it.

    ``progress(step, total, message)`` is called now and then; the message has the rate and the
    time left. Everything is written beside ``out_dir`` and renamed at the end, so an interrupted
    training leaves nothing. A directory that holds something else than a zoo model is refused.
    """
    target = Path(out_dir).resolve()
    if target.exists() and not (target / "recipe.json").is_file() and not _empty(target):
        raise WorkbenchError(
            f"{target} exists and holds no zoo model (no recipe.json); name another directory."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with one_thread():
            model = build(settings)
            began = time.monotonic()
            curve = _fit(model, settings, progress or _silent)
            seconds = time.monotonic() - began
            _write(model, settings, curve, seconds, scratch / "new")
        if target.exists():
            target.rename(scratch / "old")
        (scratch / "new").rename(target)
    finally:
        # Interrupted between the two renames: put back what was there.
        if (scratch / "old").exists() and not target.exists():
            (scratch / "old").rename(target)
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _empty(folder: Path) -> bool:
    """True for a directory without entries."""
    return folder.is_dir() and not any(folder.iterdir())


def _silent(step: int, total: int, message: str) -> None:
    """The progress callback of a caller who wants none."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread inside (sums in a fixed order), the caller's number afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _optimiser(model: Any, settings: Recipe) -> tuple[Any, Any]:
    """AdamW (no decay on norms) and its schedule: linear warm-up, then half a cosine to zero."""
    import torch

    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=settings.rate,
        betas=settings.betas,
    )

    def factor(step: int) -> float:
        rise = min((step + 1) / max(settings.warmup, 1), 1.0)
        return rise * 0.5 * (1.0 + math.cos(math.pi * step / settings.steps))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def texts(settings: Recipe, step: int) -> tasks.Batch:
    """The training texts of one step, decided by (seed, step) alone."""
    at, stage = step, settings.stages[0]
    for stage in settings.stages:
        if at < stage.steps:
            break
        at -= stage.steps
    rng = np.random.default_rng([settings.seed, step])
    length = int(rng.choice(stage.lengths))
    return tasks.mixture(rng, max(1, stage.tokens // length), length, dict(stage.shares))


def _loss(model: Any, batch: tasks.Batch) -> Any:
    """Mean next-token cross-entropy over all positions, in nats; a scalar tensor."""
    import torch

    ids = torch.as_tensor(batch.ids)
    logits = model(ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _fit(model: Any, settings: Recipe, progress: Progress) -> list[dict[str, float]]:
    """Train in place; returns the curve, one row per evaluation (the last step included)."""
    import torch

    optimiser, schedule = _optimiser(model, settings)
    curve: list[dict[str, float]] = []
    began = time.monotonic()
    for step in range(settings.steps):
        model.train()
        loss = _loss(model, texts(settings, step))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimiser.step()
        schedule.step()
        done, last = step + 1, step + 1 == settings.steps
        if done % settings.eval_every == 0 or last:
            curve.append(_point(model, settings, done, float(loss.detach())))
        if done % REPORT_EVERY == 0 or last:
            rate = done / max(time.monotonic() - began, 1e-9)
            left = (settings.steps - done) / rate
            known = f", induction {curve[-1]['induction']:.2f}" if curve else ""
            message = (
                f"loss {float(loss.detach()):.3f}{known}, {rate:.1f} steps/s, {left:.0f} s left"
            )
            progress(done, settings.steps, message)
    model.eval()
    return curve


def _point(model: Any, settings: Recipe, step: int, loss: float) -> dict[str, float]:
    """One row of the curve: accuracies per task and the best head of each mechanism."""
    found = measure.measure(model, texts=8, length=min(settings.longest, 96))
    row = {
        "step": step,
        "loss": loss,
        "repeat_accuracy": found["repeat_accuracy"],
        "needle_accuracy": found["needle_accuracy"],
        "echo_accuracy": found["echo_accuracy"],
        "chunk_accuracy": found["chunk_accuracy"],
        "grammar_accuracy": found["grammar_accuracy"],
        "markov_excess": found["markov_excess"],
        "sink": float(found["sink"].max()),
        "sink_rate": found["sink_rate"],
        "induction": float(found["induction"].max()),
        "previous": float(found["previous"].max()),
    }
    return {key: round(value, 5) for key, value in row.items()}


def _write(
    model: Any, settings: Recipe, curve: list[dict[str, float]], seconds: float, folder: Path
) -> None:
    """Save model, tokenizer, recipe, curve and card into a new folder."""
    folder.mkdir()
    model.save_pretrained(folder)
    tokenizer(settings.max_positions).save_pretrained(folder)
    _write_json(folder / "recipe.json", asdict(settings))
    _write_json(folder / "curve.json", curve)
    length = min(settings.longest, 96)
    found = measure.measure(model, texts=CARD_TEXTS, length=length)
    control = measure.measure(measure.untrained(model), texts=CARD_TEXTS, length=length)
    reach = measure.needle_by_length(model, REACH)
    facts = {
        "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": _versions(),
    }
    text = cards.write(asdict(settings), found, control, reach, curve, facts)
    (folder / "CARD.md").write_text(text, encoding="utf-8")


def _versions() -> str:
    """Versions of what decides the numbers."""
    names = ("torch", "transformers", "numpy")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _write_json(file: Path, value: Any) -> None:
    """Indented JSON with a final newline."""
    file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def smaller(settings: Recipe, steps: int) -> Recipe:
    """The same recipe with every stage cut to ``steps``, for tests and dry runs."""
    stages = tuple(replace(stage, steps=min(stage.steps, steps)) for stage in settings.stages)
    return replace(settings, stages=stages, eval_every=steps * len(stages))
