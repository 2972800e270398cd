"""Which heads of a model park on a sink, what does that cost, and what removes it?

Everything the workbench measures of attention sinks, on any model: the first position and its
control, what is written from there, the residual stream, what the model loses without it.  Without
`--model`: the MiniLM encoder, if it is installed, and the models of the zoo, for which the laws
marked required must hold.  Every law has the same architecture untrained, or another position, as a
control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.provenance import digest
from workbench.studies import sinks_published as published
from workbench.studies.study import DEFAULT, QUICK, Content, Finding, Picture, Progress, Study

if TYPE_CHECKING:
    from workbench.studies.sinks_measure import Measured

RUNS = "runs"
_STEPS = 9  # of a subject, at most
NOTES = (
    "The share of a sink falls with the length of the text: compare models at equal lengths.",
    "Marks are ours where a paper gives none; they lie between what trained and untrained models "
    "showed. Not held is a result: small models have no massive activations and no secondary "
    "sinks, which the papers find in models of billions of parameters.",
    "Three claims were restated after their first form was read: what a window costs (mark .05; "
    "at .01 the untrained model passed), what parked heads cost (sink heads against the mean of "
    "the others; an untrained model passed before), and heads at work on one kind of text (three "
    "forms; texts of repeats were added, mark .03). Read these as exploration, not as tests.",
    "Effects on a decoder are changes of the next-token loss, on an encoder one minus the cosine "
    "between its final hidden states without and with the change, both from position 8 on.",
    "The untrained control has the same architecture and the random weights its class starts with; "
    "it sees the same texts.",
    "A window (StreamingLLM) is measured with absolute positions: a mask, no re-rotated keys.",
    "Published values are those of their papers, marked not run here; their texts and lengths "
    "differ from ours.",
)


@dataclass(frozen=True)
class Config:
    """`model` is what `workbench.load` takes, "" for the models that are here; `prompts` a file of
    texts for it; `texts` how many of ours are used."""

    size: str = DEFAULT
    model: str = ""
    prompts: str = ""
    texts: int = 12

    def to_json(self) -> dict[str, Any]:
        """Every field; a file of prompts counts by what is in it."""
        fields = asdict(self)
        if self.prompts:
            try:
                text = Path(self.prompts).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                raise WorkbenchError(
                    f"prompt file {self.prompts!r} cannot be read; give a .txt or .jsonl file."
                ) from None
            fields["prompts"] = digest([text])
        return fields


def run(config: Config, folder: Path, progress: Progress) -> Content:
    """Measure every model, read the laws, draw the figures."""
    # Listing the studies loads no torch.
    from workbench.studies.sinks_measure import measure
    from workbench.studies.sinks_subjects import subjects

    every: list[Measured] = []
    chosen = subjects(config.model, config.prompts, config.texts)
    (folder / RUNS).mkdir(exist_ok=True)
    total = _STEPS * len(chosen)
    for number, subject in enumerate(chosen):
        done = iter(range(_STEPS * number, total))

        def step(what: str, done: Any = done, name: str = subject.name) -> None:
            progress(next(done), total, f"{name}: {what}")

        every.append(measure(subject, folder / RUNS, step))
    progress(total, total, "laws")
    return Content(
        findings=findings(every, required=not config.model),
        pictures=pictures(every, config.model),
        tables=tables(every, config.model),
        notes=NOTES,
        seeds=[0],
        facts={m.name: ", ".join(f"{k} {v}" for k, v in m.facts.items()) for m in every},
        banner=f"Quick look: {config.texts} texts per model." if config.size == QUICK else "",
    )


def findings(every: Sequence[Measured], *, required: bool) -> list[Finding]:
    """Every claim for every model, model by model."""
    from workbench.studies import sinks_laws as laws

    found = []
    for measured in every:
        for claim in laws.CLAIMS:
            law, n = claim.law(measured)
            found.append(Finding(law, claim.says, required and claim.required, n))
    return found


def tables(every: Sequence[Measured], model: str) -> dict[str, pd.DataFrame]:
    """The numbers of all models below each other, by what they say."""
    parts: dict[str, list[pd.DataFrame]] = {}
    for measured in every:
        for name, table in measured.tables.items():
            parts.setdefault(name.replace(" ", "-"), []).append(table.assign(subject=measured.name))
    joined = {name: _joined(tables) for name, tables in parts.items()}
    return joined | {"published": published.expected(model)}


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    # An empty table has columns without a type.
    full = [table for table in tables if len(table)]
    return pd.concat(full, ignore_index=True) if full else tables[0]


def pictures(every: Sequence[Measured], model: str) -> list[Picture]:
    """What can be drawn of these models: of each, of all together, and what papers report."""
    from workbench.studies import sinks_figures as figures

    found = [picture for measured in every for picture in _of_one(measured)]
    found += [
        Picture(
            "changed-texts", "What the sink depends on",
            "Bars are standard deviations over texts; position 4 is the control. A sink that "
            "stays without the special token belongs to the position, one that goes to the token.",
            figures.changed_texts(every),
        ),
        Picture(
            "by-length", "The share of the sink by the length of the text",
            "Texts cut to their first tokens; bars are standard deviations over texts. Dotted: "
            "what uniform attention gives.", figures.by_length(every),
        ),
        Picture(
            "heads", "Where heads park, the value is small",
            "One point per head. Right of the dotted line are the sink heads; below the other one "
            "the sink writes less than other tokens.", figures.heads(every),
        ),
        Picture(
            "residual", "The norm of the first token through the layers",
            "Mean over texts. Dotted: untrained.", figures.residual(every),
        ),
    ]  # fmt: skip
    expected = published.expected(model)
    if len(expected):
        table = figures.rows(expected.drop(columns="repeat"), (26, 30, 26, 50, 14))
        found.append(Picture("published", "What the papers report", "Not run here.", table))
    return found


def _of_one(measured: Measured) -> list[Picture]:
    """The figures of one model."""
    from workbench.studies import sinks_figures as figures

    name = measured.name
    found = [
        Picture(
            f"mass-{name}", f"{name}: where the first position is looked at",
            "Mean over queries of the weight on position 0. White is none, dark blue all.",
            figures.mass(measured),
        ),
        Picture(
            f"received-{name}", f"{name}: attention received by position",
            "Mean over texts, layers and heads, over the queries that can see the key.",
            figures.received(measured),
        ),
        Picture(
            f"changes-{name}", f"{name}: what the model loses",
            "Mean over texts. Grey: the same changes of the untrained model.",
            figures.changes(measured),
        ),
    ]  # fmt: skip
    sinks = measured.tables["secondary"]
    if len(sinks.query("model == 'trained' and label_relative == 'secondary'")):
        found.append(
            Picture(
                f"levels-{name}", f"{name}: levels of the secondary sinks",
                "How many tokens begin to point along the first one at a layer, and for how many "
                "layers.", figures.levels(measured),
            )
        )  # fmt: skip
    return found


STUDY = Study(
    name="sinks",
    question="Which heads of a model park on a sink, what does that cost, and what removes it?",
    paper=f"{published.XIAO}; {published.GU}; {published.GUO}",
    cost="2 CPU min for the models that are here; --quick half a minute",
    needs="nothing; a model of yours with --model and --prompts",
    configs={QUICK: Config(QUICK, texts=4), DEFAULT: Config()},
    run=run,
)
