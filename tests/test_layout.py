"""The rules of the layout that a machine can check: import direction, sizes, packages, links."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = ("app", "circuits", "kernels", "probes", "studies")
MAX_FILE, MAX_FUNCTION = 400, 60

# Core values: what travels between the parts. No torch in them.
CORE = {
    "errors", "heads", "interventions", "names", "planning", "probing", "prompts", "provenance",
    "runfiles", "runs", "schema", "spec", "stats", "stream_edits", "tensorfile",
}  # fmt: skip
# What stands on top of everything. Every other module of workbench/ belongs to "models".
TOP = {
    "__init__",
    "__main__",
    "bench",
    "capture_bench",
    "checks",
    "cli",
    "commands",
    "demo",
    "doctor",
}
ALLOWED = {
    "kernels": {"kernels"},
    "core": {"core"},
    "probes": {"core", "probes"},
    "models": {"core", "kernels", "models", "probes"},
    "circuits": {"circuits", "core", "kernels", "models", "probes"},
    "top": {"circuits", "core", "kernels", "models", "probes", "top"},
}
HEAVY = {
    "accelerate",
    "sae_lens",
    "sentence_transformers",
    "torch",
    "transformer_lens",
    "transformers",
}
PROBE_LIBRARIES = {"numpy", "pandas", "scipy", "sklearn", "xarray"}
FORBIDDEN = {"kernels": {"transformers"}, "core": HEAVY, "probes": HEAVY}


def sources(*, tests: bool = False) -> list[Path]:
    """Every Python file of ours, under its real name."""
    folders = ["workbench", *LINKS, "tools", *(["tests"] if tests else [])]
    found = [p for f in folders for p in walk(ROOT / f) if p.suffix == ".py"]
    assert found, "no sources found"
    return sorted(found)


def walk(folder: Path) -> Iterator[Path]:
    """Files under a folder; does not follow links."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f != "__pycache__"]
        yield from (Path(parent, f) for f in files)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def module_of(path: Path) -> str:
    """probes/sinks.py -> workbench.probes.sinks"""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts if parts[0] == "workbench" else ["workbench", *parts])


@cache
def modules() -> frozenset[str]:
    ours = {module_of(p) for p in sources() if "tools" not in p.relative_to(ROOT).parts[:1]}
    return frozenset(ours | {"workbench", "workbench.kernels"})


def layer_of(module: str) -> str:
    name = module.removeprefix("workbench").lstrip(".").split(".")[0] or "__init__"
    if name in ("app", "studies") or name in TOP:
        return "top"
    if name in ("circuits", "kernels", "probes"):
        return name
    return "core" if name in CORE else "models"


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, imported module) for every import statement, at the top or inside a function."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in modules() else node.module


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_imports_point_one_way(layer: str) -> None:
    bad = []
    for path in sources():
        if path.is_relative_to(ROOT / "tools") or layer_of(module_of(path)) != layer:
            continue
        for line, name in imports_of(path):
            first = name.split(".")[0]
            if first in FORBIDDEN.get(layer, ()):
                bad.append(f"{where(path, line)} imports {first}; {layer} must not")
            if first != "workbench":
                continue
            if name == "workbench" and layer != "top" and not only_version(path, line):
                bad.append(f"{where(path, line)} imports the package; name the module instead")
            elif name != "workbench" and layer_of(name) not in ALLOWED[layer]:
                may = ", ".join(sorted(ALLOWED[layer]))
                bad.append(f"{where(path, line)} imports {name}; {layer} may import {may}")
    assert not bad, "\n".join(dict.fromkeys(bad))


def only_version(path: Path, line: int) -> bool:
    """`from workbench import __version__` is a constant, not a direction."""
    return any(
        isinstance(node, ast.ImportFrom)
        and node.lineno == line
        and [alias.name for alias in node.names] == ["__version__"]
        for node in ast.walk(tree_of(path))
    )


def test_probes_import_nothing_but_arrays_and_tables() -> None:
    allowed = PROBE_LIBRARIES | {"workbench"} | set(sys.stdlib_module_names)
    bad = [
        f"{where(path, line)} imports {name}; probes may import {sorted(PROBE_LIBRARIES)}"
        for path in sources()
        if path.is_relative_to(ROOT / "probes")
        for line, name in imports_of(path)
        if name.split(".")[0] not in allowed
    ]
    assert not bad, "\n".join(bad)


def test_nobody_imports_the_short_names() -> None:
    bad = [
        f"{where(path, line)} imports {name}; write workbench.{name}"
        for path in sources(tests=True)
        for line, name in imports_of(path)
        if name.split(".")[0] in LINKS
    ]
    assert not bad, "\n".join(bad)


def test_imports_are_absolute() -> None:
    bad = [
        where(path, node.lineno)
        for path in sources(tests=True)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not bad, f"relative imports: {bad}"


def test_files_are_short() -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in sources(tests=True)}
    bad = [f"{p.relative_to(ROOT)}: {n} lines" for p, n in lengths.items() if n > MAX_FILE]
    assert not bad, f"files of more than {MAX_FILE} lines:\n" + "\n".join(bad)


def test_functions_are_short() -> None:
    bad = [
        f"{where(path, node.lineno)} {node.name}: {length} lines"
        for path in sources()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION
    ]
    assert not bad, f"functions of more than {MAX_FUNCTION} lines:\n" + "\n".join(bad)


def packages_of_tree() -> set[str]:
    """Every folder of ours that holds Python files, or packages, as workbench.*"""
    found = set()
    for name in modules() | {"workbench"}:
        is_package = any(other.startswith(name + ".") for other in modules())
        folder = real_folder(name)
        if is_package or (folder / "__init__.py").exists():
            found.add(name)
    return found


def real_folder(module: str) -> Path:
    parts = module.split(".")[1:]
    return ROOT.joinpath(*(parts if parts and parts[0] in LINKS else ["workbench", *parts]))


def test_package_list_equals_the_tree() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]
    assert set(config["packages"]) == packages_of_tree()
    assert config["package-dir"] == {"workbench": "workbench"} | {
        f"workbench.{x}": x for x in LINKS
    }


def test_packages_have_an_init() -> None:
    missing = [
        str(folder.relative_to(ROOT))
        for name in sorted(packages_of_tree() - {"workbench.kernels"})
        if not ((folder := real_folder(name)) / "__init__.py").exists()
    ]
    assert not missing, f"packages without __init__.py: {missing}"


def test_kernels_has_no_init() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists(), "see kernels/README.md"


@pytest.mark.parametrize("name", LINKS)
def test_links_are_relative_and_committed(name: str) -> None:
    link = ROOT / "workbench" / name
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: links may have been replaced on the way")
    entry = git("ls-files", "--stage", f"workbench/{name}").split()
    assert entry, f"workbench/{name} is not committed"
    assert entry[0] == "120000", f"workbench/{name} is committed as {entry[0]}, not as a link"
    assert git("cat-file", "blob", entry[1]) == f"../{name}"
    if link.is_symlink():  # not on a checkout with core.symlinks=false
        assert str(link.readlink()) == f"../{name}"
        assert link.resolve() == ROOT / name


def git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
