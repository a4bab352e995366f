"""The folders of the packages: what each may import, as the tables of CONTRIBUTING.md say.

Those tables are the rule and their rows are in order: a row imports from rows above it only, so there can be
no circle. The test reads the imports of every module, those within functions and under TYPE_CHECKING too.
Where tests are is the matter of `test_folders.py`, what they import from each other of `test_helpers.py`.
"""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path

import pytest

from tests.imports import imported

ROOT = Path(__file__).parents[1]
PACKAGES = ("capture", "client", "service", "dashboards")
MOST_AT_THE_TOP = {"capture": 6, "service": 8}
# Modules that import a part of moescope in a function, and why they may.
LATE = {
    "capture/attach/mixin.py": "vLLM serves on where the rest of moescope can't be imported",
    "capture/attach/plugin.py": "vLLM loads it in every process: the others import nothing",
    "capture/counting/strategies.py": "Triton is there on GPUs only",
    "service/cli/__init__.py": "says in one line which extra is missing, before anything of it is imported",
    "service/cli/trace_client.py": "the other commands don't wait for httpx and numpy",
    "service/cli/trace_export.py": "it only names the client's types",
    "service/cli/serve.py": "the other commands don't wait for FastAPI and numpy",
}


def modules() -> list[Path]:
    """Every module of the packages, relative to the root."""
    return sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def rooms() -> dict[str, list[str]]:
    """Each room, a folder or a module, of CONTRIBUTING.md's tables and the rooms that it imports, in order.

    Names are relative to the package that heads the table, or begin with another package's name.
    """
    found: dict[str, list[str]] = {}
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Who imports whom")[2].partition("\n## ")[0]
    for part in section.split("\n### ")[1:]:
        heading, _, table = part.partition("\n")
        package = heading.strip("/ ")
        for name, column in re.findall(r"^\| `([a-z_/.]+)` \| ([^|]*) \| [^|]+ \|$", table, re.MULTILINE):
            full = f"{package}/{name}"
            assert full not in found, f"{full} has two rows"
            named = re.findall(r"`([a-z_/.]+)`", column)
            found[full] = [each if each.split("/")[0] in PACKAGES else f"{package}/{each}" for each in named]
    return found


def room_of(path: Path, names: list[str]) -> str:
    """The row that a module belongs to: its own, else that of its folder."""
    for name in (str(path), f"{path.parent}/"):
        if name in names:
            return name
    raise AssertionError(f"CONTRIBUTING.md has no row for {path} or its folder")


def file_of(module: str) -> Path | None:
    """The file of a module's dotted name, relative to the root; None for what isn't of moescope."""
    if not module.startswith("moescope."):
        return None
    base = Path(*module.split(".")[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


@functools.cache
def imports(path: Path) -> list[tuple[ast.Import | ast.ImportFrom, Path]]:
    """Each import of a module of moescope in the file at `path`: the statement and the imported file."""
    found = []
    for statement, name in imported(tree_of(path)):
        # The name may be a module, or something that a module defines.
        if target := file_of(name) or file_of(name.rpartition(".")[0]):
            found.append((statement, target))
    return found


def test_every_room_imports_what_its_row_says_and_nothing_else() -> None:
    rows = rooms()
    found: dict[str, set[str]] = {name: set() for name in rows}
    for path in modules():
        if len(tree_of(path).body) < 2:  # only a docstring: the __init__ of a folder
            continue
        own = room_of(path, list(rows))
        found[own] |= {room_of(target, list(rows)) for _, target in imports(path)} - {own}
    said = {name: set(targets) for name, targets in rows.items()}
    differences = {
        name: f"imports {sorted(found[name] - said[name])} against its row; "
        f"its row names {sorted(said[name] - found[name])}, which it doesn't import"
        for name in rows
        if found[name] != said[name]
    }
    assert not differences


def test_rows_import_only_from_rows_above_them() -> None:
    order = list(rooms())
    upward = [
        f"{name} imports {target}"
        for name, targets in rooms().items()
        for target in targets
        if order.index(target) >= order.index(name)
    ]
    assert not upward


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_in_a_circle(package: str) -> None:
    graph = {path: {target for _, target in imports(path)} for path in modules() if path.parts[0] == package}
    while free := [path for path, targets in graph.items() if not targets & (graph.keys() - {path})]:
        for path in free:
            del graph[path]
    assert not graph, "these import each other"


def test_imports_are_at_the_top_of_their_module() -> None:
    late = {
        str(path)
        for path in modules()
        for node, _ in imports(path)
        if node.col_offset > 0  # within a function, a class, or an `if`
    }
    assert late == set(LATE)


@pytest.mark.parametrize(("package", "most"), MOST_AT_THE_TOP.items())
def test_few_modules_are_at_the_top(package: str, most: int) -> None:
    assert len(list((ROOT / package).glob("*.py"))) <= most


def test_the_service_knows_nothing_of_capture_but_the_wire() -> None:
    beyond = [
        f"{path} imports {target}"
        for path in modules()
        if path.parts[0] != "capture"
        for _, target in imports(path)
        if target.parts[0] == "capture" and target.parts[1] != "wire"
    ]
    assert not beyond


def test_the_distribution_has_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in modules()}
    assert set(settings["packages"]) == {"moescope." + ".".join(folder.parts) for folder in folders}
    assert not [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()]
