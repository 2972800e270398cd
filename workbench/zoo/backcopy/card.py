"""The card of a trained laboratory: plain Markdown, every number read from its own files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import xarray as xr

from workbench.zoo.backcopy import laws
from workbench.zoo.trajectory import Results

_HEAD = """# {name}

A laboratory: {runs} small networks and what was measured while they learned. The text is a random
word chain of {states} words with one rule on top: after each of the {triggers} most frequent words,
the triggers, comes the word before it again. The next-word distribution is known exactly. A
transformer learns the chain in its MLP and the rule in a head, and that head, idle on every other
word, learns to attend to the begin token `<s>` and to empty that token's value (Guo et al. 2024,
arXiv 2410.13835). It is meant as ground truth for tools that look at attention sinks, together with
the controls in which the effect cannot be.

```python
import workbench as wb
from workbench import zoo

results = zoo.laboratory("{name}")  # trajectories by stack, final weights
model = wb.load("zoo:{name}")  # the run {default} as a GPT-2, with its tokenizer
model = wb.load("zoo:{name}/no-copy-s0")  # any softmax run without a null sink
```

`workbench app` shows the trajectories at `/lab/{name}`: drag the step.
"""

_TAIL = """
## Limits

- The recipe was found by trying: rates, sizes and numbers of steps were chosen so that every seed
  passes. The laws say that the effects are there under this recipe, not that they are under any.
- Texts have at most {length} tokens; there are no positions for longer ones.
- A word that is not in the vocabulary becomes `<s>`.
- The patterns are those of one text, the same random numbers in every run.
- At this size the norm of the residual says no more than the sign of its slope, by optimiser.

## Reproduce

`workbench zoo train {name}` makes this folder again ({seconds:.0f} CPU seconds on one thread here).
On the same processor and the same version of torch the trajectories and weights are the same bytes.
"""


def write(results: Results) -> str:
    """The card of what was trained with `recipe.small`."""
    from workbench.zoo.backcopy.shipped import DEFAULT_RUN

    about = results.about
    settings = list(about["settings"].values())
    values = {
        "name": about["name"],
        "runs": sum(map(len, about["runs"].values())),
        "states": settings[0]["states"],
        "triggers": settings[0]["triggers"],
        "length": max(s["length"] for s in settings),
        "default": DEFAULT_RUN,
        "seconds": sum(about["cpu_seconds"].values()),
    }
    parts = [
        _HEAD.format(**values),
        "\n".join(_stacks(about)),
        "\n".join(_laws(results)),
        "\n".join(_runs(results)),
        _TAIL.format(**values),
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _stacks(about: dict[str, Any]) -> Iterator[str]:
    """Recipe and versions, one row per stack."""
    yield from (
        "## Recipe",
        "",
        "Pre-LN, learned positions, ReLU MLP of four times the width, no biases, untied output; "
        "initial values are PyTorch's. Fresh texts at every step, constant rate; AdamW with betas "
        "(0.9, 0.99), SGD with momentum 0.9, both with weight decay 1e-4. Everything is in "
        "`laboratory.json`.",
        "",
        "| stack | layers | width | attention | optimiser | rate | texts | steps | runs | CPU s |",
        "|" + "---|" * 10,
    )
    for name, s in about["settings"].items():
        cells = (
            name, s["layers"], s["d_model"], s["attention"], s["optimiser"], f"{s['rate']:g}",
            f"{s['texts']} x {s['length']}", s["steps"], ", ".join(about["runs"][name]),
            f"{about['cpu_seconds'][name]:.0f}",
        )  # fmt: skip
        yield _row(cells)
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    yield from ("", f"Trained with {versions}.")


def _laws(results: Results) -> Iterator[str]:
    """Every claim with its mark, the worst seed and the control that comes nearest."""
    found = [finding.law for finding in laws.check(results)]
    held = sum(law.held for law in found)
    yield from (
        "## Laws",
        "",
        f"{held} of {len(found)} are held: the value, that of the worst seed, meets the mark, and "
        "the null, the same statistic of the control that comes nearest, does not.",
        "",
        "| law | statistic | mark | value | control | null | verdict | source |",
        "|" + "---|" * 8,
    )
    for law in found:
        yield _row(
            (
                law.name, law.statistic, str(law.mark), f"{law.value:.3g}", law.control,
                f"{law.null:.3g}", law.verdict, law.source,
            )
        )  # fmt: skip


def _runs(results: Results) -> Iterator[str]:
    """Where every run ends, in the head with the largest sink."""
    yield from (
        "## Runs",
        "",
        "At the last step, in the head with the largest sink: mean weight on `<s>` at words that "
        "are no triggers and at triggers, mass of the null sink, `<s>`'s value norm beside that of "
        "other words, excess risk (nats) at words that are no triggers and at triggers.",
        "",
        "| run | head | off | on | null sink | value ratio | excess off | excess on |",
        "|" + "---|" * 8,
    )
    for data in results.trajectories.values():
        for i in range(data.sizes["run"]):
            yield _ending(data.isel(run=i))


def _ending(run: xr.Dataset) -> str:
    head = laws.head_of(run)
    last = head.isel(step=-1)
    names = ("sink_off", "sink_on", "null_off")
    numbers = [float(last[name]) for name in names]
    numbers += [laws.value_ratio(run), float(last["excess_off"]), float(last["excess_on"])]
    label = f"L{int(head['layer'])}H{int(head['head'])}"
    return _row((str(run["run"].item()), label, *(f"{value:.3f}" for value in numbers)))


def _row(cells: tuple[object, ...]) -> str:
    # In Markdown "||" ends a cell and <s> strikes out what follows.
    texts = [str(cell).replace("|", "\\|").replace("<s>", "`<s>`") for cell in cells]
    return f"| {' | '.join(texts)} |"
