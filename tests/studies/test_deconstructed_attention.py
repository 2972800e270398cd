"""The deconstructed-attention study: quick end to end, laws that fail without their effect."""

import json
import time

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from workbench import cli
from workbench.studies import deconstructed_attention as study
from workbench.studies import deconstructed_attention_figures as figures
from workbench.studies import registry
from workbench.studies import study as frame
from workbench.zoo.claims import findings
from workbench.zoo.deconstructed import laws, recipe, training
from workbench.zoo.deconstructed.claims import CLAIMS
from workbench.zoo.deconstructed.recipe import HYBRID, STANDARD, UNIFORM, VARIANTS, setting_of
from workbench.zoo.trajectory import Results

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
BY_NAME = {claim.name: claim for claim in CLAIMS}
NOTHING = {"chain": 1.2, "copy": 3.0, "recall": 3.0}
BLIND = {"chain": 0.02, "copy": 2.6, "recall": 2.6}
PLACES = {"chain": 0.02, "copy": 0.05, "recall": 2.0}
ALL = {"chain": 0.02, "copy": 0.03, "recall": 0.05}
# What the paper found, in the terms of this language.
ENDS = {
    STANDARD: ALL, "uniform-mlp": BLIND, "uniform-approximate": ALL,
    "uniform-non-approximate": BLIND | {"recall": 1.9}, "uniform-rnd-emb-qk": PLACES,
    "uniform-fixed-seq-qk": PLACES, "uniform-static-emb-qk": PLACES,
    **{setting_of(HYBRID, variant): ALL for variant in VARIANTS},
}  # fmt: skip


def made(setting, end):
    """A run with planted risks and heads: 2 steps, 4 layers, 1 head."""
    hybrid = setting.startswith(HYBRID)
    values = {f"excess_{r}": ("step", [NOTHING[r], end[r]]) for r in NOTHING}
    # A network without mixing has no context to lose.
    skip = end if setting == "uniform-mlp" else NOTHING
    values |= {f"skip_{r}": ("step", [NOTHING[r], skip[r]]) for r in NOTHING}
    head = ("step", "layer", "head")
    recall = np.zeros((2, 4, 1))
    recall[1, 1::2] = 0.9 if hybrid else 0.1
    score = np.full((2, 4, 1), 2.0)
    score[1] = 3.0 if hybrid else 9.0
    values |= {"recall_mass": (head, recall), "largest_score": (head, score)}
    return xr.Dataset(values, coords={"run": f"{setting}-s0", "setting": setting})


def planted(**ends):
    runs = {s: [made(s, end)] for s, end in (ENDS | ends).items()}
    linear = {v: ([1e-6], [0.3]) for v in ("approximate", "non-approximate")}
    return laws.Evidence(runs, linear, dict.fromkeys(runs, 100))


def verdicts(evidence):
    return {f.law.name: f.law.verdict for f in findings(evidence, CLAIMS)}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick study by the command: (folder, output, CPU seconds)."""
    folder = tmp_path_factory.mktemp("studies") / "quick"
    began = time.process_time()
    result = CliRunner().invoke(
        cli.app, ["study", "deconstructed-attention", "--quick", "--out", str(folder)]
    )
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)
    return folder, result, time.process_time() - began


def test_laws_and_settings_fit_together():
    assert len(BY_NAME) == len(CLAIMS)
    trained = {stack.name for stack in recipe.small()}
    assert {setting for claim in CLAIMS for setting in claim.needs} <= trained
    assert study.Config().laws() == list(BY_NAME)
    some = study.Config("quick").laws()
    assert some and not any(BY_NAME[name].whole for name in some)
    assert json.dumps(study.Config().to_json()) and registry.find(study.STUDY.name) is study.STUDY


def test_what_the_paper_found_holds_every_law():
    assert set(verdicts(planted()).values()) == {"held"}


@pytest.mark.parametrize(
    ("ends", "lost"),
    [
        ({STANDARD: PLACES}, "standard attention finds all three rules"),
        ({"uniform-mlp": PLACES}, "without mixing there is no context"),
        ({"uniform-mlp": NOTHING}, "without mixing the chain is learned"),
        ({"uniform-fixed-seq-qk": ALL}, "fixed maps lose recall"),
        ({"hybrid-fixed-seq-qk": PLACES}, "hybrids that mix everywhere recover"),
        ({"uniform-rnd-emb-qk": BLIND}, "fixed maps keep copying"),
        ({"uniform-static-emb-qk": ALL}, "static queries and keys lose recall"),
        ({"uniform-non-approximate": ALL}, "one score per key loses context"),
        ({"uniform-approximate": PLACES}, "the polynomial is the best uniform variant"),
        ({"hybrid-mlp": BLIND}, "mixing in every other layer brings context"),
    ],
)
def test_laws_fail_where_their_effect_is_taken_away(ends, lost):
    assert verdicts(planted(**ends))[lost] == "not held"


def test_laws_about_layers_and_forms_fail_without_their_effect():
    evidence = planted()
    whole = evidence.runs["hybrid-mlp"][0]
    kept = whole.assign({f"skip_{r}": whole[f"excess_{r}"] for r in NOTHING})
    evidence.runs["hybrid-mlp"][0] = kept
    run = evidence.runs["hybrid-rnd-emb-qk"][0]
    evidence.runs["hybrid-rnd-emb-qk"][0] = run.assign(
        recall_mass=run["recall_mass"].shift(layer=-1)
    )
    gate = evidence.runs["uniform-non-approximate"][0]
    evidence.runs["uniform-non-approximate"][0] = gate.assign(
        largest_score=gate["largest_score"] / 4
    )
    evidence.linear["approximate"][0][0] = 0.01
    found = verdicts(evidence)
    for name in (
        "skipping costs every hybrid its context", "in hybrids the standard layers recall",
        "hybrids have smaller scores", "the polynomial in linear time",
    ):  # fmt: skip
        assert found[name] == "not held", name


def test_no_law_of_a_network_holds_before_training():
    runs = {s: [r.isel(step=[0]) for r in runs] for s, runs in planted().runs.items()}
    evidence = laws.Evidence(runs, {}, {})
    found = verdicts(evidence)
    assert "held" not in found.values(), found


def test_the_worst_run_decides_and_missing_settings_do_not_hold():
    evidence = planted()
    evidence.runs["uniform-mlp"].append(made("uniform-mlp", ALL))
    law, n = BY_NAME["without mixing there is no context"].law(evidence)
    assert n == 2 and law.value == ALL["copy"] and not law.held
    none = laws.Evidence({}, {}, {})
    assert set(verdicts(none).values()) == {"not applicable"}


@pytest.mark.slow
def test_quick_is_quick_says_so_and_its_laws_hold(quick):
    folder, result, seconds = quick
    print(f"{seconds:.1f} CPU seconds")
    lines = result.stdout.splitlines()
    assert lines[-1] == "laws: 2 held, 0 not held, 14 not applicable"
    assert any(line.startswith("setting  Quick look") for line in lines)
    about = json.loads((folder / "study.json").read_text())
    assert about["finished"] and about["seeds"] == [0]
    assert about["facts"]["parameters"] == "76176 to 76176 in each of 3 settings"
    sizes = pd.read_parquet(folder / "tables" / "parameters.parquet")
    assert (sizes["of_standard"] == 1).all()
    risks = pd.read_parquet(folder / "tables" / "risks.parquet").set_index("setting")
    assert risks.loc["uniform-mlp", "excess_copy"] > 2 > 0.5 > risks.loc[STANDARD, "excess_copy"]
    heads = pd.read_parquet(folder / "tables" / "heads.parquet")
    assert {"layer", "head", "mixer", "entropy", "run"} <= set(heads)
    text = (folder / "report.html").read_text()
    for words in ("Orderings are compared, never numbers", "A softmax over the whole text"):
        assert words in text


@pytest.mark.slow
def test_axes_are_named_and_hover_says_what(quick):
    results = Results(quick[0] / study.LABORATORY)
    evidence = training.look(results, recipe.quick())
    drawn = frame.pictures(study.PLATES, evidence, evidence.runs)
    assert [picture.name for picture in drawn] == ["abilities", "courses", "maps", "indicators"]
    for picture in drawn:
        assert any(axis.title.text for axis in picture.figure.select_xaxes()), picture.name
        assert any(axis.title.text for axis in picture.figure.select_yaxes()), picture.name
        assert all(trace.hovertemplate for trace in picture.figure.data), picture.name
    shown = figures.maps(evidence)
    assert len(shown.data) == 4 * 2
    np.testing.assert_allclose(np.array(shown.data[0].z).sum(axis=1), 1, atol=5e-3)
    points = figures.abilities(evidence).data[0]
    assert list(points.customdata) == ["standard-s0", "uniform-mlp-s0", "uniform-rnd-emb-qk-s0"]


def test_the_figure_beside_the_paper_shows_every_configuration():
    drawn = {trace.name: trace for trace in figures.beside(planted()).data}
    assert {name: len(trace.x) for name, trace in drawn.items()} == {
        UNIFORM: 6, HYBRID: 6, "skip": 6, STANDARD: 1
    }  # fmt: skip
    assert drawn[STANDARD].x[0] == 22.9 and drawn["skip"].y[0] == NOTHING["recall"]
