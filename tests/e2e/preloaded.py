"""Starts of vLLM without its imports, which take ten of a start's fifteen seconds: forks of one process."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from devkit.processes import Started, launched
from devkit.vllm_server import ENVIRONMENT, VllmOptions, VllmServer
from tests.e2e.preloading import LONGEST

MODULES: Final = (
    *(f"vllm.entrypoints.cli.{name}" for name in ("main", "serve", "openai", "launch", "run_batch")),
    *(f"vllm.entrypoints.cli.{name}" for name in ("benchmark.main", "collect_env", "preload", "snapshot")),
    "vllm.entrypoints.cli.download_kernels",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.model_executor.models.qwen3_moe",
    "vllm.renderers.hf",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
)
"""What a server with the tests' checkpoint imports. Nothing of moescope: capture is imported by vLLM."""
READ_BY_IMPORTS: Final = {**ENVIRONMENT, "TORCH_COMPILE_DISABLE": "1"}
"""Variables that a fork can't change any more.

With TP vLLM has one small function of an eager model compiled, for a minute of all cores: not here.
"""
OURS: Final = ("MOESCOPE", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
"""What the variables begin with that no import of vLLM reads; those of test workers end in ``_FOLDER``."""


class Forked:
    """A server that was forked; its parent is asked for its exit status."""

    def __init__(self, pid: int, preloaded: Preloaded) -> None:
        self.pid = pid
        self._preloaded = preloaded
        self._status: int | None = None

    def poll(self) -> int | None:
        """Its exit status, None while it runs; that of a signal is its number below zero."""
        if self._status is None:
            self._status = self._preloaded.ask({"poll": self.pid})
        return self._status

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        while (status := self.poll()) is None:
            time.sleep(0.01)
        return status


class Preloaded:
    """A process that has imported vLLM, started with this."""

    def __init__(self, modules: Sequence[str] = MODULES) -> None:
        self._lock = threading.Lock()
        self._environment = _of_imports({**os.environ, **READ_BY_IMPORTS})
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.preloading", str(theirs.fileno()), *modules],
                cwd=Path(__file__).parents[2],
                env={**self._environment, "PYTHONPATH": str(Path(__file__).parents[2])},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._socket = ours
        atexit.register(self.close)
        assert ours.recv(LONGEST) == b"ready", "vLLM can't be imported"

    @property
    def pid(self) -> int:
        """The parent of all forks."""
        return self._process.pid

    def close(self) -> None:
        """End it, and with it all that it has started."""
        self._socket.close()
        self._process.wait()

    def launch(self, command: Sequence[str], output: IO[bytes], env: Mapping[str, str]) -> Started:
        """A fork that runs a script of Python, such as ``vllm``.

        It is a new process where the environment has something else for imports to read.
        """
        if _of_imports(env) != self._environment:
            return launched(command, output, env)
        order = {"command": list(command), "environment": dict(env), "folder": str(Path.cwd())}
        return Forked(self.ask(order, output.fileno()), self)

    def ask(self, message: dict[str, Any], *descriptors: int) -> Any:
        """The answer to a message of `tests.e2e.preloading`."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(message).encode()], descriptors)
            answer = self._socket.recv(LONGEST)
        assert answer, "the process that has imported vLLM has ended"
        return json.loads(answer)


def _of_imports(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(OURS) and not name.endswith("_FOLDER") and name != "PYTEST_CURRENT_TEST"
    }


@functools.cache
def preloaded() -> Preloaded:
    """That of this process of tests. It ends with it, and so do the servers."""
    return Preloaded()


def quick_server(options: VllmOptions, log: Path) -> VllmServer:
    """A server that starts within seconds, without torch's compiler unless the options ask for it."""
    chosen = dataclasses.replace(options, env={**READ_BY_IMPORTS, **options.env})
    return VllmServer(chosen, log=log, launch=preloaded().launch)
