"""Tests mirror the packages: what is in capture/live is tested in tests/capture/live, and so on."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(
    folder.relative_to(ROOT).as_posix()
    for package in ("capture", "client", "service", "dashboards")
    for folder in [ROOT / package, *(ROOT / package).rglob("*/")]
    if any(path.stem != "__init__" for path in folder.glob("*.py"))
)

# Package folder to why its tests are elsewhere, and where.
ELSEWHERE = {
    "capture": ("its modules are what vLLM runs: only a real vLLM shows that they work", "tests/e2e"),
}


def has_tests(folder: Path) -> bool:
    return any(folder.glob("test_*.py"))


@pytest.mark.parametrize("package", [name for name in PACKAGES if name not in ELSEWHERE])
def test_a_package_folder_has_tests_in_the_folder_of_its_name(package: str) -> None:
    assert has_tests(ROOT / "tests" / package), f"tests/{package} has no test_*.py"


@pytest.mark.parametrize("package", ELSEWHERE)
def test_an_exception_is_one(package: str) -> None:
    assert package in PACKAGES
    assert not has_tests(ROOT / "tests" / package), f"{package} needs no exception any more"
    assert has_tests(ROOT / ELSEWHERE[package][1])


@pytest.mark.parametrize("top", ["capture", "client", "service"])
def test_a_folder_of_tests_is_that_of_a_package(top: str) -> None:
    tests = ROOT / "tests" / top
    folders = [tests, *(path.parent for path in tests.rglob("test_*.py"))]
    assert {folder.relative_to(ROOT / "tests").as_posix() for folder in folders} <= {*PACKAGES}
