"""Parts of the system that Python packages need and don't bring: shared libraries, a compiler, headers.

    python -m devkit.libraries vllm browser compiler

prints the Debian packages that are missing, one a line, and says on stderr what for. Nothing is imported:
`ldd` asks the dynamic loader.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

DEBIAN_HEADERS: Final = Path("/usr/include")
"""Where Debian's packages put the headers of its Pythons."""


class MissingLibraryError(RuntimeError):
    """Something can't start because libraries are missing; the message is one line."""


@dataclass(frozen=True)
class Missing:
    """Something that the system lacks.

    Attributes:
        what: such as "libnuma.so.1".
        needed_by: who can't do without it.
        package: Debian's package that has it, or None if none does.
        remedy: what to do instead, where there is no package.
    """

    what: str
    needed_by: str
    package: str | None
    remedy: str = ""

    def __str__(self) -> str:
        found_in = self.remedy if self.package is None else f"Debian's package {self.package}"
        return f"{self.needed_by} needs {self.what}, which is not installed: {found_in}"


def missing_for_vllm(env: Mapping[str, str] | None = None) -> list[Missing]:
    """Libraries that vLLM's and torch's own need; `env` is the environment of the process to start."""
    return missing_libraries("vLLM", [*_shared(_folder("vllm")), *_shared(_folder("torch") / "lib")], env)


def missing_for_browser() -> list[Missing]:
    """Libraries that Playwright's node needs: the program that drives a browser."""
    return missing_libraries("Playwright's node", [_folder("playwright") / "driver" / "node"])


def missing_compiler() -> list[Missing]:
    """What torch needs where vLLM compiles a model: a C++ compiler, and the headers of this Python."""
    compiler, headers = os.environ.get("CXX", "g++"), Path(sysconfig.get_path("include"))
    missing = [] if shutil.which(compiler) else [Missing(compiler, "torch's compiler", "g++")]
    if not (headers / "Python.h").exists():
        # A Python of pyenv, uv or conda looks for its headers in its own folder, where no package puts any.
        package = f"lib{headers.name}-dev" if headers.parent == DEBIAN_HEADERS else None
        remedy = "install this Python again with its headers, or take another (PYTHON=...)"
        missing.append(Missing(f"{headers}/Python.h", "torch's compiler", package, remedy))
    return missing


CHECKS: Final = {"vllm": missing_for_vllm, "browser": missing_for_browser, "compiler": missing_compiler}


def missing_libraries(
    needed_by: str, files: Sequence[Path], env: Mapping[str, str] | None = None
) -> list[Missing]:
    """What these libraries or programs need and the loader does not find.

    Libraries that are among the files are left out: whoever loads them loads those first.

    Raises:
        FileNotFoundError: a file isn't there.
    """
    if absent := [str(file) for file in files if not file.exists()]:
        raise FileNotFoundError(f"{needed_by} is not installed: {', '.join(absent)}")
    # Its status says that one of them is no dynamic program, which is none of our concern.
    found = subprocess.run(
        ["ldd", *map(str, files)], env=env, check=False, capture_output=True, text=True, errors="replace"
    )
    names = dict.fromkeys(re.findall(r"^\s*(\S+) => not found$", found.stdout, re.MULTILINE))
    beside = {file.name for file in files}
    return [Missing(name, needed_by, debian_package(name)) for name in names if name not in beside]


def debian_package(library: str) -> str:
    """The package that has a shared library, by Debian's rule for their names (policy, section 8.1).

    >>> debian_package("libnuma.so.1"), debian_package("libgcc_s.so.1"), debian_package("libx264.so.2")
    ('libnuma1', 'libgcc-s1', 'libx264-2')
    """
    name, _, version = library.partition(".so")
    version = version.removeprefix(".")
    hyphen = "-" if name[-1:].isdigit() and version else ""
    return f"{name}{hyphen}{version}".lower().replace("_", "-")


def require(missing: Iterable[Missing]) -> None:
    """Refuse to go on if something is missing.

    Raises:
        MissingLibraryError: names it, and the packages to install.
    """
    if listed := list(missing):
        raise MissingLibraryError("; ".join(map(str, listed)))


def _folder(package: str) -> Path:
    """Where a package is installed.

    Raises:
        FileNotFoundError: it isn't.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{package} is not installed: `make env`")
    return Path(spec.submodule_search_locations[0])


def _shared(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.so*"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is missing; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m devkit.libraries", description=__doc__)
    parser.add_argument("for_", nargs="+", choices=sorted(CHECKS), metavar="FOR", help="%(choices)s")
    missing = [one for name in parser.parse_args(arguments).for_ for one in CHECKS[name]()]
    for one in missing:
        print(f"[libraries] {one}", file=sys.stderr)
    for package in dict.fromkeys(one.package for one in missing if one.package is not None):
        print(package)
    return 0


if __name__ == "__main__":
    sys.exit(main())
