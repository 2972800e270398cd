"""The helper of these tests, and a browser."""

import importlib.util
import sys
from pathlib import Path

# pytest's importlib mode does not make test folders importable; the helper is loaded by its path.
_spec = importlib.util.spec_from_file_location("study_made", Path(__file__).with_name("made.py"))
made = importlib.util.module_from_spec(_spec)
sys.modules["study_made"] = made
_spec.loader.exec_module(made)
