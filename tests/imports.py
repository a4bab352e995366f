"""The imports in a source, for the tests that say what may import what."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def imported(tree: ast.AST) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Each name that a source imports, dotted and in full, with its statement.

    Imports within functions and under TYPE_CHECKING are among them. ``from a.b import c`` gives ``a.b.c``,
    whether ``c`` is a module or something that ``a.b`` defines.

    Raises:
        AssertionError: an import is relative.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)
