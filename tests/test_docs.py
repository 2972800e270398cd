"""The documents are true: links, commands, code, messages, sources, the demonstration text."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
import yaml

import workbench
from workbench import errors
from workbench.prompts import demo_paragraphs

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "kernels" / "README.md"]
)
GUIDES = (
    "README.md", "CONTRIBUTING.md", "docs/tutorial.md", "docs/sinks.md", "docs/errors.md",
)  # fmt: skip
# What the text of a document says about the output of its code, appended to that code.
CLAIMS = {
    "README.md": """
assert model.tokenizer.decode(model.generate(text, 6)) == " ".join(text.split()[:6])
with wb.intervening(model, [wb.Intervention.zero(heads["label"])]):
    assert model.tokenizer.decode(model.generate(text, 6)) != " ".join(text.split()[:6])
""",
    "docs/tutorial.md": """
assert len(heads) >= 2 and (induction["value"] < 0.1).sum() > 12, "few heads, most near the null"
assert untouched[0] > guess / 4 and silenced[0] < guess / 2, "the induction heads carry copying"
assert silenced[1] < 2 * untouched[1], "and not the chain"
assert alone[0] < guess / 2 and writer not in heads, "so does the previous-token head"
harmful = [copied for drawn, copied, _ in control if writer in drawn]
harmless = [copied for drawn, copied, _ in control if writer not in drawn]
assert max(harmful) < min(harmless), "controls are harmful when they draw it"
assert sinks["value"].iloc[2] > 3 * sinks["null"].iloc[2]
assert barred[1] > 1.2 * untouched[1] and barred[0] > 2 * untouched[0], "costs the chain only"
assert abs(idle[1] - untouched[1]) < (barred[1] - untouched[1]) / 4, "others do not mind"
assert silent[0] < 5 * untouched[0], "an idle head of the chain copies in the repeats"
assert str(wb.Head(*reach.index[0])) == writer, "reaches least far"
assert {str(wb.Head(*i)) for i in reach.index[-3:]} == set(parked), "and farthest"
assert returns.nlargest(1).index[0] == 0 and returns[0] > 5 * returns[1:].max()
assert Path("induction.svg").read_text().startswith("<svg")
""",
    "docs/sinks.md": """
assert mass["value"].max() > 5 * mass["null"].max() and len(found) == 0
cost = effect.set_index(["label", "domain"])
looks = cost["attention"].unstack()
assert looks.loc["L2H5", "chain"] > 0.5 and looks.loc["L2H5", "repeat"] < 0.2
copying = cost.loc[("L2H5", "repeat"), "low"]
assert abs(cost.loc[("L2H5", "chain"), "change"]) < 0.01 and copying > 0.05
assert looks.loc["L1H2"].max() < 0.1 and cost.loc[("L1H2", "repeat"), "low"] > 1
assert change["the sink key hidden"] > 3 * abs(change["another key hidden"])
assert abs(change["sink heads silenced"]) < change["the sink key hidden"]
assert change["window of 32"] > change["window of 32 and 4 first keys"]
""",
}
CODE_FOLDERS = ("workbench", "app", "circuits", "kernels", "probes", "studies")
ERROR_CLASSES = ("WorkbenchError", "CaptureError", "SchemaError")
WORDS_LOW, WORDS_HIGH = 90, 220
SHINGLE = 8


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def anchor(heading: str) -> str:
    """The anchor a Markdown host gives a heading: lower case, no punctuation, spaces to hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_resolve(path: Path) -> None:
    bad = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists():
            bad.append(f"{target}: no such file")
        elif fragment and fragment not in anchors(file):
            bad.append(f"{target}: no such heading")
    assert not bad, "\n".join(bad)


@cache
def anchors(file: Path) -> frozenset[str]:
    headings = re.findall(
        r"^#+ (.+)$", without_code(file.read_text(encoding="utf-8")), re.MULTILINE
    )
    return frozenset(anchor(h) for h in headings)


@pytest.mark.parametrize("name", GUIDES)
def test_paths_in_backticks_exist(name: str) -> None:
    """`workbench/schema.py`, `tests/`, but not patterns such as `kernels/<op>/naive.py`."""
    quoted = re.findall(r"`([\w./-]+)`", without_code(read(name)))
    folders = {*CODE_FOLDERS, "docs", "tests", "tools", ".ci"}
    named = {q for q in quoted if "/" in q and q.partition("/")[0] in folders}
    assert not [q for q in sorted(named) if not (ROOT / q).exists()]


@cache
def subcommands() -> frozenset[str]:
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, _, listed = done.stdout.partition("Commands")
    return frozenset(re.findall(r"^[\s│|]*([a-z][a-z-]*)\s{2,}\S", listed, re.MULTILINE))


@pytest.mark.parametrize("name", GUIDES)
def test_commands_exist(name: str) -> None:
    text = read(name)
    quoted = re.findall(r"`([^`\n]+)`", without_code(text))
    typed = "\n".join(blocks(text, "(?:sh|bash|console)")).splitlines()
    calls = [re.match(r"(?:\$ )?(?:\.venv/bin/)?workbench ([a-z]+)", c) for c in [*quoted, *typed]]
    used = {call[1] for call in calls if call}
    assert used <= subcommands(), f"{name}: {used - subcommands()} not in {subcommands()}"


@pytest.mark.parametrize("name", GUIDES)
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", read("Makefile"), re.MULTILINE))
    used = set(re.findall(r"(?:`|^|\$ )make ([a-z]+)", read(name), re.MULTILINE))
    assert used <= targets


def test_readme_names_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(re.findall(r"make (?:demo|test)", read("README.md")))


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_python_blocks_run_as_written(name: str, tmp_path: Path) -> None:
    """All blocks of one document in order, in a fresh interpreter and an empty folder."""
    written = blocks(read(name), "python")
    assert written, f"{name} has no Python block"
    code = "\n".join([*written, CLAIMS[name]])
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning:workbench", "-c", code],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, f"{name}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    print(done.stdout)


@cache
def sources() -> tuple[tuple[str, str], ...]:
    """(path, text) of every Python file of ours under its real name; the links are not followed."""
    walks = [walk for folder in CODE_FOLDERS for walk in os.walk(ROOT / folder)]
    files = [Path(parent, name) for parent, _, names in walks for name in names]
    return tuple(
        (str(file.relative_to(ROOT)), file.read_text(encoding="utf-8"))
        for file in files
        if file.suffix == ".py"
    )


@cache
def raised() -> tuple[tuple[str, str], ...]:
    """(class, message) of every raise of one of our errors; {} stands for what is filled in."""
    return tuple(found for _, code in sources() for found in messages_in(ast.parse(code)))


def messages_in(tree: ast.Module) -> list[tuple[str, str]]:
    """Messages the error classes are called with, raised or returned."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    return [
        (node.func.id, message_of(node.args[0]))
        for node in calls
        if isinstance(node.func, ast.Name) and node.func.id in ERROR_CLASSES
    ]


def message_of(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(message_of(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return message_of(node.left) + message_of(node.right)
    return "{}"


def documented() -> list[tuple[str, str]]:
    """(class, message) of every entry of docs/errors.md; `...` stands for what is filled in."""
    found = []
    for section in re.split(r"^## ", read("docs/errors.md"), flags=re.MULTILINE)[1:]:
        name = section.split()[0].strip("`")
        found += [(name, m) for m in re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)]
    return found


def matches(written: str, message: str) -> bool:
    parts = [re.escape(part.strip()) for part in written.split("...")]
    return re.search(".*?".join(parts), message, re.DOTALL) is not None


def test_documented_messages_are_raised() -> None:
    entries = documented()
    assert {name for name, _ in entries} == set(ERROR_CLASSES)
    stale = [
        f"{name}: {text}"
        for name, text in entries
        if not any(kind == name and matches(text, message) for kind, message in raised())
    ]
    listed = sum(any(k == name and matches(t, m) for name, t in entries) for k, m in raised())
    print(f"docs/errors.md: {len(entries)} entries cover {listed} of {len(raised())} messages")
    assert not stale, "no longer raised:\n" + "\n".join(stale)


def test_error_classes_are_the_three() -> None:
    ours = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert ours == set(ERROR_CLASSES)


def test_matching_notices_a_changed_message() -> None:
    written = "there is no model ... in the zoo"
    assert matches(written, "there is no model {} in the zoo; known names: {}.")
    assert not matches(written, "the zoo has no model {}.")


def bibliography() -> list[str]:
    return re.split(r"^@", read("docs/bibliography.bib"), flags=re.MULTILINE)[1:]


def test_bibliography_is_well_formed() -> None:
    entries = bibliography()
    keys = [re.match(r"\w+\{([\w-]+),", entry) for entry in entries]
    assert all(keys)
    assert len({k[1] for k in keys if k}) == len(entries)
    for entry in entries:
        body = re.sub(r"^%.*$", "", entry, flags=re.MULTILINE)
        assert body.count("{") == body.count("}"), body
        missing = [f for f in ("title", "author", "year") if not re.search(rf"\n\s+{f}\s+= ", body)]
        assert not missing, body


def test_works_named_in_the_code_are_in_the_bibliography() -> None:
    known = set(re.findall(r"eprint\s+= \{(\d{4}\.\d{4,5})\}", read("docs/bibliography.bib")))
    cited = re.compile(r"arxiv[:\s.]*(?:org/abs/)?(\d{4}\.\d{4,5})", re.IGNORECASE)
    named = [(path, number) for path, code in sources() for number in cited.findall(code)]
    assert named
    assert not [f"{path}: {number}" for path, number in named if number not in known]


def test_citation_file_agrees_with_the_package() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == workbench.__version__
    assert citation["license"] == project["license"]
    assert [a["name"] for a in citation["authors"]] == [a["name"] for a in project["authors"]]


def test_a_dozen_paragraphs_of_readable_length() -> None:
    counts = [len(str(p.text).split()) for p in demo_paragraphs()]
    assert len(counts) == 12
    assert min(counts) >= WORDS_LOW and max(counts) <= WORDS_HIGH, counts


def test_paragraphs_are_prose_without_their_comment() -> None:
    for prompt in demo_paragraphs():
        assert not str(prompt.text).startswith("#")
        assert str(prompt.text)[-1] in '."'
    assert read("workbench/data/paragraphs.txt").startswith("# ")


def test_paragraphs_do_not_repeat_one_another() -> None:
    """No two share eight words in a row; the control, a paragraph with itself, does."""
    texts = [str(p.text).lower().split() for p in demo_paragraphs()]
    runs = [{tuple(t[i : i + SHINGLE]) for i in range(len(t) - SHINGLE + 1)} for t in texts]
    assert runs[0] & runs[0]
    assert not [(i, j) for i, j in combinations(range(len(runs)), 2) if runs[i] & runs[j]]
