"""The process that vLLM was started as, found from one of its workers: its command line tells servers apart.

It needs the standard library only: a plugin looks before vLLM has begun. It works on Linux; elsewhere nothing
is found.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

from moescope.capture.settings.access import read_text

PROC: Final = Path("/proc")
DEFAULT_PORT: Final = "8000"
"""Where ``vllm serve`` listens without ``--port``."""
_TITLE: Final = re.compile(r"\S*::(EngineCore|Worker|APIServer)")
"""What vLLM calls its own processes; the prefix is a setting of vLLM's."""
_SPAWNED: Final = ("--multiprocessing-fork", "multiprocessing.forkserver")
_SERVERS: Final = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.api_server")
_PARENT: Final = re.compile(r"^PPid:\s*(\d+)", re.MULTILINE)
_OWN_TO_EACH: Final = (("/", "dev"), ("/", "proc"))
"""Folders in which a path, such as that of a pipe, means something else in each process."""
_MOST_ANCESTORS: Final = 32


@dataclass(frozen=True)
class Launch:
    """The first process above a worker that vLLM did not start: ``vllm serve``, or a program that uses vLLM.

    Attributes:
        pid: its process id.
        arguments: its command line.
        folder: where it is in /proc.
    """

    pid: int
    arguments: tuple[str, ...]
    folder: Path

    @property
    def is_server(self) -> bool:
        """Whether it is vLLM's own API server, which has one engine."""
        return _serves(self.arguments)

    def options(self) -> dict[str, str]:
        """Its options: those of the file that ``--config`` names, and over them the command line's.

        Names have dashes, as in ``data-parallel-size``; an option without a value has an empty one.
        """
        given = _options(self.arguments)
        has_file = self.is_server and bool(given.get("config"))
        return (self._configured(given["config"]) if has_file else {}) | given

    def address(self) -> str | None:
        """The port of its API, or its Unix socket's path; None where it isn't known to listen.

        Before the port is the address that it listens at, such as ``10.0.0.4:8000``, if it was given one:
        at another address of the host another server may have the port.
        """
        options = self.options()
        if options.get("uds"):
            return self._absolute(options["uds"])
        port = options.get("port", "")
        if not port and self.is_server:
            port = DEFAULT_PORT
        if not port.isdecimal() or port == "0":
            return None
        host = _literal(options.get("host", ""))
        return f"{host}:{port}" if host else port

    def _absolute(self, path: str) -> str:
        """A path that begins in the folder that the process works in, as one that begins at the root."""
        with contextlib.suppress(OSError):
            folder = os.fsencode((self.folder / "cwd").readlink()).decode(errors="replace")
            return os.path.normpath(PurePath(folder) / path)
        return path

    def _configured(self, path: str) -> dict[str, str]:
        """The options of a YAML file; none where it can't be read."""
        if PurePath(path).parts[:2] in _OWN_TO_EACH:
            return {}
        with contextlib.suppress(Exception):
            import yaml  # type: ignore[import-untyped]

            # A relative path begins in the folder that the process works in.
            found: Any = yaml.safe_load(read_text(self.folder / "cwd" / path))
            if isinstance(found, Mapping):
                return {
                    str(name).replace("_", "-"): "" if value is True else str(value)
                    for name, value in found.items()
                    if value is not False
                }
        return {}


def _literal(host: str) -> str:
    """An address of one interface; empty for a name, for loopback, and for all interfaces."""
    with contextlib.suppress(ValueError):
        number = ipaddress.ip_address(host.strip().strip("[]"))
        if not (number.is_loopback or number.is_unspecified):
            return f"[{number}]" if number.version == 6 else str(number)
    return ""


def find_launch(pid: int, proc: Path = PROC) -> Launch | None:
    """What the process with this id, a worker or another process of vLLM, was started by.

    The same for all workers of one start on one host, but for those that Ray started. None where it can't be
    told; nothing raises.
    """
    with contextlib.suppress(OSError):
        for ancestor in _line(pid, proc):
            arguments = _arguments(proc / str(ancestor))
            if arguments and not _is_vllms(arguments):
                return Launch(ancestor, arguments, proc / str(ancestor))
    return None


def started_with(pid: int, variable: str, proc: Path = PROC) -> str | None:
    """A variable of the environment that a process was started with.

    Raises:
        OSError: it can't be read.
    """
    for entry in (proc / str(pid) / "environ").read_bytes().split(b"\0"):
        name, _, value = entry.decode(errors="replace").partition("=")
        if name == variable:
            return value
    return None


def _line(pid: int, proc: Path) -> Iterator[int]:
    """The process itself, its parent, that one's parent, and so on."""
    for _ in range(_MOST_ANCESTORS):
        if pid <= 0:
            return
        yield pid
        parent = _PARENT.search((proc / str(pid) / "status").read_text(encoding="utf-8", errors="replace"))
        pid = 0 if parent is None else int(parent[1])


def _arguments(folder: Path) -> tuple[str, ...]:
    parts = (folder / "cmdline").read_bytes().split(b"\0")
    return tuple(part.decode(errors="replace") for part in parts if part)


def _is_vllms(arguments: Sequence[str]) -> bool:
    """Whether vLLM started the process: it has a title, or was just spawned and has none yet."""
    return bool(_TITLE.match(arguments[0])) or any(
        argument == mark or mark in argument for argument in arguments for mark in _SPAWNED
    )


def _serves(arguments: Sequence[str]) -> bool:
    if any(first == "-m" and second in _SERVERS for first, second in itertools.pairwise(arguments)):
        return True
    if any(PurePath(argument).name == "api_server.py" for argument in arguments[:3]):
        return True
    # Python, its options, the script or `-m vllm.entrypoints.cli.main`, then the command.
    before = arguments[: arguments.index("serve")] if "serve" in arguments else ()
    return any(PurePath(argument).name in ("vllm", "vllm.entrypoints.cli.main") for argument in before)


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """Long options by name, the last of each; those without a value have an empty one."""
    found: dict[str, str] = {}
    for number, argument in enumerate(arguments):
        if not argument.startswith("--"):
            continue
        name, equals, value = argument[2:].partition("=")
        if not equals:
            following = arguments[number + 1] if number + 1 < len(arguments) else ""
            value = "" if following.startswith("--") else following
        found[name.replace("_", "-")] = value
    return found
