"""What the attention heads of a real model do.

    import workbench as wb

    model = wb.load("zoo:NAME")
    stats = wb.capture(model, ["some text"])

Every public name below is imported from its module on first use, so that importing this package
costs nothing: no torch, no transformers, no numpy.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.arrays import view as view
    from workbench.capturing import capture as capture
    from workbench.capturing import plan as plan
    from workbench.errors import CaptureError as CaptureError
    from workbench.errors import SchemaError as SchemaError
    from workbench.errors import WorkbenchError as WorkbenchError
    from workbench.heads import Head as Head
    from workbench.intervene import intervening as intervening
    from workbench.interventions import Intervention as Intervention
    from workbench.models import Model as Model
    from workbench.models import load as load
    from workbench.parameters import Parameters as Parameters
    from workbench.prompts import Prompt as Prompt
    from workbench.runs import open_run as open_run
    from workbench.stats import HeadStats as HeadStats
    from workbench.stream_edits import StreamEdit as StreamEdit

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "Head",
    "HeadStats",
    "Intervention",
    "Model",
    "Parameters",
    "Prompt",
    "SchemaError",
    "StreamEdit",
    "WorkbenchError",
    "__version__",
    "capture",
    "intervening",
    "load",
    "open_run",
    "plan",
    "view",
]

# public name -> (module, name in that module)
_PUBLIC = {
    "CaptureError": ("workbench.errors", "CaptureError"),
    "Head": ("workbench.heads", "Head"),
    "HeadStats": ("workbench.stats", "HeadStats"),
    "Intervention": ("workbench.interventions", "Intervention"),
    "Model": ("workbench.models", "Model"),
    "Parameters": ("workbench.parameters", "Parameters"),
    "Prompt": ("workbench.prompts", "Prompt"),
    "SchemaError": ("workbench.errors", "SchemaError"),
    "StreamEdit": ("workbench.stream_edits", "StreamEdit"),
    "WorkbenchError": ("workbench.errors", "WorkbenchError"),
    "capture": ("workbench.capturing", "capture"),
    "intervening": ("workbench.intervene", "intervening"),
    "load": ("workbench.models", "load"),
    "open_run": ("workbench.runs", "open_run"),
    "plan": ("workbench.capturing", "plan"),
    "view": ("workbench.arrays", "view"),
}


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


# A checkout whose links were lost (a zip file, Windows): find the real folders beside this one.
_root = Path(__file__).parent.parent
if (_root / "pyproject.toml").exists() and not (_root / "workbench" / "probes").is_dir():
    __path__.append(str(_root))
