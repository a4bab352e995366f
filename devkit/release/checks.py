"""What a machine can check of a release; docs/release.md has the rest."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from devkit.matrix.document import PAGE
from devkit.release import changelog, version
from devkit.release.packages import run
from devkit.release.version import ROOT

_PROVEN: Final = re.compile(r"^\| (\d+)\.(\d+)\.\d+ \| .*\| passes", re.MULTILINE)


def findings(root: Path = ROOT) -> Iterator[tuple[str, list[str]]]:
    """Each check with what is wrong; nothing where all is well."""
    number = version.current(root)
    text = (root / "CHANGELOG.md").read_text()
    dirty = run("git", "status", "--porcelain", cwd=root).splitlines()
    yield "nothing is uncommitted", dirty
    tags = run("git", "tag", "--list", f"v{number}", cwd=root)
    yield f"v{number} was not released before", [f"there is a tag {tags}"] if tags else []
    yield "everything names the one version", version.strays(root)
    yield "CHANGELOG.md has the usual form", changelog.complaints(text)
    missing = f"\n## [{number}] - " not in text
    yield (
        f"CHANGELOG.md has a part for {number}",
        [f"run: python -m devkit.release prepare {number}"] if missing else [],
    )
    yield "moescope[vllm] asks for the series that docs/versions.md proves", unproven(root)


def proven() -> list[tuple[int, int]]:
    """The series of vLLM (major, minor) that have a row that passes in docs/versions.md, in order."""
    return sorted({(int(major), int(minor)) for major, minor in _PROVEN.findall(PAGE.read_text())})


def unproven(root: Path = ROOT) -> list[str]:
    """What the extra ``vllm`` asks for, if that is not what was run."""
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["vllm"]
    (asked,) = [requirement for requirement in extras if requirement.startswith("vllm")]
    series = proven()
    (major, first), (_, last) = series[0], series[-1]
    wanted = f"vllm>={major}.{first},<{major}.{last + 1}"
    gaps = [f"{major}.{minor}" for minor in range(first, last + 1) if (major, minor) not in series]
    return [f"{asked} is not {wanted}"] * (asked != wanted) + [f"{gap} was not run" for gap in gaps]
