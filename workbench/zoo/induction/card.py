"""The card of the shipped laboratory: plain Markdown, every number read from its own files."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.zoo.trajectory import Results

_TEXT = """# {name}

A laboratory: {runs} small attention-only networks, two with two layers and two with one, with what
was measured while they learned and their weights at {checkpoints} steps. In every text each word
has a favourite successor, new in every text, that follows it with probability {favour:g}; else a
word chain goes on that is the same in all texts. What a favourite is can only be found in the
context: where the word stood before. Networks of two layers learn that all at once, with heads
that look for the earlier copy (Olsson et al. 2022, arXiv 2209.11895); networks of one layer do not.

```python
import workbench as wb
from workbench import zoo

model = wb.load("zoo:{name}")  # {default} as a GPT-2 without MLPs
early = wb.load("zoo:{name}/{default}", revision="step200")  # the same run before the change
zoo.revisions("{name}/{default}")  # {revisions}
results = zoo.laboratory("{name}")  # trajectories by stack, weights by stack and step
```

`workbench app` shows the trajectories at `/lab/{name}`: drag the step. `workbench study induction`
trains more seeds and controls and reads the laws.

## Recipe

{states} words and `<s>`, texts of {length} tokens, {texts} fresh ones per step; {heads} heads per
layer, width {d_model}, learned positions, LayerNorm before attention, no MLP, untied output. Adam
with betas (0.9, 0.98), constant rate {rate:g}, {steps} steps. Everything is in `laboratory.json`.
{seconds:.0f} CPU seconds on one thread. Trained with {versions}.

## Runs

In nats per token: loss above that of the exact oracle, and the score of learning in context (loss
late in the text minus loss early). Scores of the best head: weight on what followed the earlier
copy, and, in the first layer, weight on the token before, both on repeated random words.

{table}

## Limits

- Rates, sizes and the language were found by trying, so that all seeds change within {steps} steps.
- Texts have at most {length} tokens; there are no positions for longer ones.
- A word that is not in the vocabulary becomes `<s>`.

## Reproduce

`workbench zoo train {name}` makes this folder again. On the same processor and the same version of
torch the trajectories and weights are the same bytes.
"""


def write(results: Results) -> str:
    """The card of what was trained with `recipe.shipped`."""
    from workbench.zoo.induction.shipped import DEFAULT_RUN

    about = results.about
    settings = next(iter(about["settings"].values()))
    steps = results.steps(results.stack_of(DEFAULT_RUN))
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    return _TEXT.format(
        **{key: settings[key] for key in ("texts", "heads", "d_model", "rate", "steps")},
        **settings["language"],
        name=about["name"],
        runs=sum(map(len, about["runs"].values())),
        checkpoints=len(steps),
        default=DEFAULT_RUN,
        revisions=f"step{steps[0]}, step{steps[1]}, ..., step{steps[-1]}",
        seconds=sum(about["cpu_seconds"].values()),
        versions=versions,
        table="\n".join(_rows(results)),
    )


def _rows(results: Results) -> Iterator[str]:
    """Every run halfway through the change and at its end."""
    yield "| run | step | excess | in context | what followed | token before |"
    yield "|" + "---|" * 6
    for data in results.trajectories.values():
        for i in range(data.sizes["run"]):
            for step in (300, int(data["step"][-1])):
                one = data.isel(run=i).sel(step=step)
                numbers = (
                    float(one["excess"]), float(one["icl"]), float(one["prefix"].max()),
                    float(one["previous"].isel(layer=0).max()),
                )  # fmt: skip
                cells = (one["run"].item(), step, *(f"{number:.3f}" for number in numbers))
                yield f"| {' | '.join(map(str, cells))} |"
