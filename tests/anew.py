"""A module once more, for tests that change what it imports."""

from __future__ import annotations

import importlib.util
from types import ModuleType


def executed_anew(module: ModuleType) -> ModuleType:
    """The module made once more from its code, with its imports as they are now; the first stays imported."""
    spec = importlib.util.find_spec(module.__name__)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
