"""What an import costs, counted in modules: the light parts stay light."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import workbench

HEAVY = ("dash", "numpy", "pandas", "plotly", "scipy", "sklearn", "torch", "transformers", "xarray")
CORE = {
    "errors", "heads", "interventions", "names", "probing", "prompts", "provenance", "runfiles",
    "runs", "schema", "spec", "stats", "stream_edits", "tensorfile",
}  # fmt: skip
MODELS = ("sae_lens", "torch", "transformer_lens", "transformers", "triton")


def loaded(root: Path, code: str) -> set[str]:
    """The top-level modules a fresh interpreter holds after running `code`."""
    report = (
        "import json, sys\n"
        "print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        cwd=root, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_package_is_free(root: Path) -> None:
    assert not loaded(root, "import workbench") & {*HEAVY, *MODELS}


def test_package_takes_less_than_100_ms(root: Path) -> None:
    def measure() -> float:
        command = [sys.executable, "-X", "importtime", "-c", "import workbench"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        total = re.search(r"\|\s*(\d+) \|\s*workbench$", done.stderr, re.MULTILINE)
        assert total, done.stderr[-2000:]
        return int(total.group(1)) / 1000

    best = min(measure() for _ in range(3))
    print(f"import workbench: {best:.1f} ms")
    assert best < 100


def test_package_leaves_no_trace(root: Path) -> None:
    """No hooks, no environment, no logging, no threads."""
    code = (
        "import logging, os, sys, threading\n"
        "def state():\n"
        "    return (sys.excepthook, dict(os.environ), list(sys.path), list(sys.meta_path),\n"
        "            list(logging.root.handlers), threading.active_count())\n"
        "before = state()\n"
        "import workbench\n"
        "assert before == state()"
    )
    loaded(root, code)


@pytest.mark.parametrize("command", ["--help", "--version"])
def test_command_line_is_light(root: Path, command: str) -> None:
    code = (
        "import sys\n"
        "from workbench.cli import main\n"
        f"sys.argv = ['workbench', {command!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert not loaded(root, code) & {*HEAVY, *MODELS}


def test_probes_and_core_load_no_model_library(root: Path) -> None:
    core = sorted(p.stem for p in (root / "workbench").glob("*.py") if p.stem in CORE)
    assert len(core) > 8
    code = "\n".join(f"import workbench.{name}" for name in [*core, "probes"])
    assert not loaded(root, code) & set(MODELS)


def test_viewer_loads_no_model_library(root: Path) -> None:
    assert not loaded(root, "import workbench.app.server") & set(MODELS)


def test_public_names_agree() -> None:
    assert sorted([*workbench._PUBLIC, "__version__"]) == sorted(workbench.__all__)
    assert set(workbench.__all__) <= set(dir(workbench))


@pytest.mark.parametrize("name", sorted(workbench._PUBLIC))
def test_public_name_exists(name: str) -> None:
    value = getattr(workbench, name)
    module, attribute = workbench._PUBLIC[name]
    assert callable(value)
    assert value is getattr(sys.modules[module], attribute)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        workbench.lod  # noqa: B018 - the access is the test


def test_no_public_name_is_also_a_module(root: Path) -> None:
    """Importing a submodule binds it on the package, over any function of the same name."""
    modules = {p.stem for p in (root / "workbench").iterdir()}
    assert not modules & set(workbench.__all__)


def test_one_module_per_file(root: Path) -> None:
    """A folder reached by its short name would be a second copy of every class in it."""
    loaded(
        root,
        "import sys, workbench.probes, workbench.kernels.attention_stats\n"
        "assert not {'probes', 'kernels', 'app', 'circuits', 'studies'} & set(sys.modules)",
    )


def test_transformers_loads_beside_our_kernels_folder(root: Path) -> None:
    """With the root on sys.path; a kernels/__init__.py would break this."""
    assert "transformers" in loaded(root, "from transformers import LlamaForCausalLM")
