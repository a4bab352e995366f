"""What tests, the devkit and benchmarks take from this repository is there.

Much of them runs on GPUs only, or in programs of its own: without this a renamed module or attribute would
show there, where a run is dear.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.imports import imported

ROOT = Path(__file__).parents[1]
FOLDERS = ("tests", "devkit", "benchmarks")
PACKAGES = ("capture", "client", "service", "dashboards")
SOURCES = {
    str(path.relative_to(ROOT)): path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py"))
}
ON_GPUS = [name for name in SOURCES if name.startswith(("tests/gpu/", "benchmarks/gpu_"))]
# Private attributes of others that are meant: torch's, vLLM's, Python's.
OF_OTHERS = {"_sleep", "_all_instances", "_prepare_inputs", "_capture_descs", "_exit", "_replace", "_asdict"}


def file_of(module: tuple[str, ...]) -> Path | None:
    """The file of one of our modules; None if there is none. A folder without one stands for itself."""
    base = ROOT.joinpath(*(module[1:] if module[0] == "moescope" else module))
    for candidate in (base.with_suffix(".py"), base / "__init__.py", base):
        if candidate.exists():
            return candidate
    return None


@functools.cache
def top_names(path: Path) -> frozenset[str]:
    """The names that a module has at its top, in branches too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    return frozenset(found)


def missing(text: str) -> Iterator[str]:
    """The imports of a source that name something of ours that isn't there."""
    for node, name in imported(ast.parse(text)):
        parts = tuple(name.split("."))
        ours = parts[0] in FOLDERS or (parts[0] == "moescope" and parts[1:2] and parts[1] in PACKAGES)
        if not ours or file_of(parts) is not None:
            continue
        module = file_of(parts[:-1])
        in_a_module = module is not None and module.is_file() and isinstance(node, ast.ImportFrom)
        if module is None or not in_a_module or parts[-1] not in top_names(module):
            yield name


@functools.cache
def private_names() -> frozenset[str]:
    """Every private name that capture, the devkit, tests or benchmarks define: functions and attributes."""
    found: set[str] = set()
    for folder in ("capture", *FOLDERS):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    found.add(node.name)
                elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    if isinstance(node.value, ast.Name) and node.value.id == "self":
                        found.add(node.attr)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found.add(node.target.id)  # in a class's body
    return frozenset(found)


def private_uses(text: str) -> set[str]:
    """The private attributes that a source takes from another object than itself."""
    return {
        node.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_imported_is_there(name: str) -> None:
    assert list(missing(SOURCES[name].read_text())) == []


@pytest.mark.parametrize("name", ON_GPUS)
def test_private_attributes_that_gpu_code_reads_are_there(name: str) -> None:
    assert private_uses(SOURCES[name].read_text()) - private_names() - OF_OTHERS == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from moescope.capture.seam import model", ["moescope.capture.seam.model"]),
        ("from moescope.capture.seam.survey import gone", ["moescope.capture.seam.survey.gone"]),
        ("import moescope.capture.gone", ["moescope.capture.gone"]),
        ("def f():\n    from tests.gone import x", ["tests.gone.x"]),
        ("from moescope.capture.seam import survey\nfrom moescope.capture.wire import Frame", []),
        ("import torch, moescope\nfrom tests import imports", []),
    ],
)
def test_an_import_of_what_is_gone_is_found(source: str, found: list[str]) -> None:
    assert list(missing(source)) == found


def test_a_private_attribute_of_another_object_is_found() -> None:
    assert private_uses("a._b._c = self._own.d(x.__class__, cls._e)") == {"_b", "_c"}
