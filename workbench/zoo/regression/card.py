"""The card of the trained laboratory: plain Markdown, every number read from its own files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from workbench.zoo.regression import fates, phases
from workbench.zoo.trajectory import Results

_HEAD = """# {name}

A laboratory: {runs} small networks and what was measured while they learned. A prompt is {length}
labelled points of a linear function that is new each time, with noise, and a point without a label;
the network is one layer of softmax attention and nothing else, and has to predict that label. The
best predictors are known in closed form. Two heads or more become one step of gradient descent with
the mean label taken off; one head, and heads that all start with one sign, stay on a plateau (He et
al. 2025, arXiv 2503.12734). It is meant as ground truth for tools that follow circuits through
training, together with the runs in which the effect does not come.

```python
from workbench import zoo

results = zoo.laboratory("{name}")
run = results.trajectories["two-heads"].sel(run="h2-s0")
run["kq"], run["ov"], run["e"]  # circuits of every head, and what they add up to, at every step
run["risk_by_length"]  # with the predictors beside it: run["risk_by_length_baseline"]
results.weights("two-heads")["q"]  # final parameters, [run, head, ...]
```

`workbench app` shows the trajectories at `/lab/{name}`: drag the step. The networks read points,
not tokens; they do not open as language models.
"""

_TAIL = """
## Limits

- The recipe was found by trying; the laws say that the effects are there under this recipe, not
  that they are under any.
- The runs of a stack see the same prompts and differ by their start alone.
- The risks over prompt lengths are of {sweep} prompts, the same ones cut to every length: compare
  curves of one step with each other and with the predictors beside them, not their third digit.
- Fates and phases are bounds on logged scalars (`fates`, `phases`), not theorems.

## Reproduce

`workbench zoo train {name}` makes this folder again ({seconds:.0f} CPU seconds of training on one
thread here, and the laws). On the same processor and the same version of torch the trajectories and
weights are the same bytes.
"""


def write(results: Results) -> str:
    """The card of what was trained with `recipe.small`."""
    from workbench.zoo.regression.training import SWEEP

    about = results.about
    values = {
        "name": about["name"],
        "runs": sum(map(len, about["runs"].values())),
        "length": next(iter(about["settings"].values()))["task"]["length"],
        "sweep": SWEEP,
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
        "No positions, no biases, no residual, no MLP; initial values are PyTorch's, or given "
        "signs. Fresh prompts at every step, Adam, the rate falls as half a cosine to 2 %. "
        "Everything is in `laboratory.json`.",
        "",
        "| stack | heads | coordinates | tasks | points | correlation | noise | steps | runs "
        "| CPU s |",
        "|" + "---|" * 10,
    )
    for name, s in about["settings"].items():
        task = s["task"]
        yield _row(
            (name, s["heads"], task["d"], len(task["supports"]), task["length"],
             f"{task['correlation']:g}", f"{task['noise']:g}", s["steps"],
             len(about["runs"][name]), f"{about['cpu_seconds'][name]:.0f}")
        )  # fmt: skip
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    yield from ("", f"Trained with {versions}.")


def _laws(results: Results) -> Iterator[str]:
    """Every claim with its mark, the worst run and the control that comes nearest."""
    from workbench.zoo import claims
    from workbench.zoo.regression import laws, recipe, training
    from workbench.zoo.regression.claims import CLAIMS

    evidence = laws.look(training.runs(results, recipe.small()))
    found = [finding.law for finding in claims.findings(evidence, CLAIMS)]
    held = sum(law.held for law in found)
    yield from (
        "## Laws",
        "",
        f"{held} of {len(found)} are held: the value, that of the worst run, meets the mark, and "
        "the null, the same statistic of the control that comes nearest, does not. "
        "`workbench study icl-regression` draws them.",
        "",
        "| law | statistic | mark | value | control | null | verdict | source |",
        "|" + "---|" * 8,
    )
    for law in found:
        yield _row(
            (law.name, law.statistic, str(law.mark), f"{law.value:.3g}", law.control,
             f"{law.null:.3g}", law.verdict, law.source)
        )  # fmt: skip


def _runs(results: Results) -> Iterator[str]:
    """Where every run ends, and when its phases begin."""
    words = "; ".join(f"{word}: {about}" for word, about in fates.WORDS.items())
    yield from (
        "## Runs",
        "",
        f"At the last step: risk on the prompts of evaluation, eta, zero_sum. Fates: {words}; none "
        "for runs on correlated coordinates and on two tasks. Then the steps at which phases "
        "begin.",
        "",
        "| run | fate | risk | eta | zero_sum | " + " | ".join(phases.WORDS) + " |",
        "|" + "---|" * (5 + len(phases.WORDS)),
    )
    for data in results.trajectories.values():
        for i in range(data.sizes["run"]):
            yield _ending(data.isel(run=i))


def _ending(run: xr.Dataset) -> str:
    last, begun = run.isel(step=-1), phases.begin(run)
    numbers = [f"{float(last[name]):.3f}" for name in ("risk", "eta", "zero_sum")]
    steps = [begun.get(word, np.nan) for word in phases.WORDS]
    return _row(
        (str(run["run"].item()), fates.fate(run), *numbers,
         *("" if np.isnan(step) else f"{step:.0f}" for step in steps))
    )  # fmt: skip


def _row(cells: tuple[object, ...]) -> str:
    # In Markdown a bar ends a cell.
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"
