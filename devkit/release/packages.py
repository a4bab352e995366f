"""Builds the wheel and the sdist of a commit, twice, and what tells others what is in them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from devkit.release.version import ROOT

SUMS: Final = "SHA256SUMS"
CYCLONEDX: Final = "cyclonedx-bom>=7,<8"
"""The tool that writes the software bill of materials, as uv's ``--from`` takes it."""


class ReleaseError(RuntimeError):
    """A step of a release failed; the message says what to do."""


def uv() -> str:
    """The program uv.

    Raises:
        ReleaseError: it isn't installed.
    """
    found = shutil.which("uv") or str(ROOT / ".kit" / "uv")
    if not Path(found).exists():
        raise ReleaseError("uv is not installed: `make env` fetches it")
    return found


def run(*command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """Run a command; what it prints.

    Raises:
        ReleaseError: it failed; with the end of what it said.
    """
    words = [str(word) for word in command]
    given = os.environ | (env or {})
    links = given.get("UV_FIND_LINKS") or given.get("PIP_FIND_LINKS")
    done = subprocess.run(
        words,
        cwd=cwd,
        env=given | ({"UV_FIND_LINKS": links} if links else {}),
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ReleaseError(f"`{' '.join(words)}` failed:\n{(done.stderr or done.stdout)[-2000:]}")
    return done.stdout.strip()


def commit_time(root: Path = ROOT) -> int:
    """When HEAD was committed, Unix seconds: the date of everything that is built of it."""
    return int(run("git", "log", "-1", "--format=%ct", cwd=root))


def build(out: Path, root: Path = ROOT) -> list[Path]:
    """The sdist and the wheel of HEAD, made in a clone, so that nothing else gets into them.

    Args:
        out: an empty folder for them, or one that is made.
    """
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="moescope-release-") as temporary:
        tree = Path(temporary) / "tree"
        run("git", "clone", "--quiet", root, tree)
        run(uv(), "build", "--out-dir", out, ".", cwd=tree, env={"SOURCE_DATE_EPOCH": str(commit_time(tree))})
    return archives(out)


def archives(folder: Path) -> list[Path]:
    """The sdist and the wheel in a folder."""
    return sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")])


def sums(paths: Sequence[Path]) -> dict[str, str]:
    """The SHA-256 of each file, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def build_twice(out: Path, root: Path = ROOT) -> list[Path]:
    """The sdist and the wheel of HEAD, after a second build gave the same bytes.

    Raises:
        ReleaseError: it gave others.
    """
    made = build(out, root)
    with TemporaryDirectory(prefix="moescope-again-") as temporary:
        again = sums(build(Path(temporary), root))
    if differing := [name for name, digest in sums(made).items() if again.get(name) != digest]:
        raise ReleaseError(f"two builds of one commit differ: {', '.join(differing)}")
    return made


def install(wheel: Path, folder: Path, extra: str = "") -> Path:
    """A new environment with the wheel and nothing but what it asks for; its Python.

    Args:
        extra: such as "[service]".
    """
    run(uv(), "venv", "--quiet", "--clear", "--python", sys.executable, folder)
    python = folder / "bin" / "python"
    run(
        uv(), "pip", "install", "--quiet", "--python", python, f"moescope{extra} @ {wheel.resolve().as_uri()}"
    )
    return python


def bill_of_materials(python: Path, out: Path, root: Path = ROOT) -> Path:
    """What an environment consists of, as CycloneDX JSON, beside the archives."""
    tool = (uv(), "tool", "run", "--quiet", "--from", CYCLONEDX, "cyclonedx-py", "environment")
    flags = ("--pyproject", root / "pyproject.toml", "--output-reproducible", "--output-file", out, python)
    run(*tool, *flags, env={"SOURCE_DATE_EPOCH": str(commit_time(root))})
    return out


def write_sums(folder: Path) -> Path:
    """SHA256SUMS of all files in a folder, for ``sha256sum --check``."""
    target = folder / SUMS
    files = sorted(
        path for path in folder.iterdir() if path.is_file() and path.name[0] != "." and path != target
    )
    target.write_text("".join(f"{digest}  {name}\n" for name, digest in sums(files).items()))
    return target
