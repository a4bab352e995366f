"""Tests share helper modules with public names: nothing is imported from a test module, nothing private."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.imports import imported

ROOT = Path(__file__).parents[1]
FOLDERS = ("tests", "devkit", "benchmarks")
SOURCES = {
    str(path.relative_to(ROOT)): path
    for name in FOLDERS
    for path in sorted((ROOT / name).rglob("*.py"))
    if path != Path(__file__)  # whose examples are wrong on purpose
}


def all_imported(text: str) -> Iterator[str]:
    """Dotted names of all that a source imports, also in programs that it holds as text."""
    tree = ast.parse(text)
    yield from (name for _, name in imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _of_a_program(node.value)


def _of_a_program(text: str) -> Iterator[str]:
    if "import" in text:
        with contextlib.suppress(SyntaxError):  # prose
            yield from all_imported(text)


def wrong(text: str) -> list[str]:
    """What a source imports from a test module, or from a helper of tests although it is private there."""
    names = [name for name in all_imported(text) if name.startswith("tests.")]
    return [name for name in names if any(part.startswith(("test_", "_")) for part in name.split(".")[1:])]


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_imported_from_test_modules_and_nothing_private(name: str) -> None:
    assert wrong(SOURCES[name].read_text()) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from tests.service.test_logs import x", ["tests.service.test_logs.x"]),
        ("import tests.service.test_logs", ["tests.service.test_logs"]),
        ("from tests.service import test_logs as logs", ["tests.service.test_logs"]),
        ("from tests.service.frames import _hidden", ["tests.service.frames._hidden"]),
        ("def f():\n    from tests._x import y", ["tests._x.y"]),
        ("CHILD = 'from tests.test_a import b'", ["tests.test_a.b"]),
        ("from tests.service.frames import frame\nfrom devkit.demo_tables import _x", []),
        ("'''What tests.test_a can import is prose.'''", []),
    ],
)
def test_an_import_that_must_not_be_is_found(source: str, found: list[str]) -> None:
    assert wrong(source) == found
