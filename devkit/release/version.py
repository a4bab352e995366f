"""The version is in pyproject.toml. Files that deploy moescope name it as an image's tag: these follow it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
VERSION: Final = r"\d+\.\d+\.\d+"
# Tags of our images; a chart's own version and that of what it installs.
TAG: Final = re.compile(rf"(?<=[\s/]moescope:)(?P<a>{VERSION})|(?<=[\s/]moescope-vllm:)(?P<b>{VERSION})")
CHART: Final = re.compile(rf"(?m)(?<=^version: )(?P<a>{VERSION})|(?<=^appVersion: )(?P<b>{VERSION})")


class VersionError(ValueError):
    """No version, or one that can't follow the present one."""


def current(root: Path = ROOT) -> str:
    """The version of pyproject.toml, such as "0.1.0"."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


def followers(root: Path = ROOT) -> Iterator[tuple[Path, re.Pattern[str]]]:
    """The files that may name the version, each with the pattern that finds it."""
    folders = [path for name in ("deploy", "docs") for path in (root / name).rglob("*")]
    files = [root / "docker-compose.yml", *root.glob("Dockerfile*"), *folders]
    for path in sorted(files):
        if path.suffix in {".yaml", ".yml", ".md", ".json", ".tpl"} or path.name.startswith("Dockerfile"):
            yield path, CHART if path.name == "Chart.yaml" else TAG


def strays(root: Path = ROOT) -> list[str]:
    """What names another version than pyproject.toml, a line each."""
    version = current(root)
    return [
        f"{path.relative_to(root)} says {found.group()}, the version is {version}"
        for path, pattern in followers(root)
        for found in pattern.finditer(path.read_text())
        if found.group() != version
    ]


def change(new: str, root: Path = ROOT) -> list[Path]:
    """Put another version into pyproject.toml and into what follows it; the files that were written.

    Raises:
        VersionError: it is no version, or not above the present one.
    """
    old = current(root)
    if not re.fullmatch(VERSION, new):
        raise VersionError(f"{new!r} is no version: give three numbers, such as 1.2.0")
    if _numbers(new) < _numbers(old):
        raise VersionError(f"{new} comes before the present version, {old}")
    project = root / "pyproject.toml"
    written = [project]
    project.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{new}"', project.read_text(), count=1))
    for path, pattern in followers(root):
        text = path.read_text()
        if (changed := pattern.sub(new, text)) != text:
            path.write_text(changed)
            written.append(path)
    return written


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
