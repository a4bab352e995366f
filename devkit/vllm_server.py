"""A real ``vllm serve`` on CPUs, for the demo and the end-to-end tests.

with VllmServer(VllmOptions(model=folder, data_parallel_size=2, expert_parallel=True), log=path) as server:
    httpx.post(f"{server.url}/v1/completions", json={"model": MODEL_NAME, "prompt": "Hello"})
"""

from __future__ import annotations

import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil  # type: ignore[import-untyped]

from devkit.libraries import MissingLibraryError, missing_for_vllm, require
from devkit.processes import Launch, ProcessGroup, free_port, launched
from devkit.root_cause import explain

MODEL_NAME: Final = "tiny-moe"

ENVIRONMENT: Final[Mapping[str, str]] = {
    # Nothing is fetched and nothing reported.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # One thread a rank: with more, the ranks of a tiny model only spin against each other on few cores.
    "OMP_NUM_THREADS": "1",
    # Threads that there are nevertheless (numba's, which look for drafts) sleep while they wait. By default
    # they spin, for three quarters of the time of two ranks that draft on two cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The engine runs its worker in its own process (with `--distributed-executor-backend uni`), as it does on
    # one GPU a rank; on CPUs it would start another process, which takes longer and spins while it waits.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The compile cache's key is the same with and without capture.
    "VLLM_DISABLE_COMPILE_CACHE": "1",
}


class VllmStartError(RuntimeError):
    """vLLM did not become ready; the message begins with the root cause, where its log says it."""


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """What to serve and how; each field is one of ``vllm serve``'s options.

    ``worker_class`` None is vLLM's own. ``port`` 0 takes a free one. ``env`` is added to this process's
    environment and to :data:`ENVIRONMENT`, ``extra_args`` to the command line. ``python`` is the interpreter
    of the environment that has the vLLM, this one's if None.
    """

    model: Path
    port: int = 0
    data_parallel_size: int = 1
    expert_parallel: bool = False
    worker_class: str | None = None
    prefix_caching: bool = True
    max_num_batched_tokens: int | None = None
    max_model_len: int = 2048
    max_num_seqs: int = 32
    kv_cache_bytes: int = 64 << 20
    block_size: int = 32
    seed: int = 0
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    python: Path | None = None

    def command(self, port: int) -> list[str]:
        """The command line."""
        arguments = {
            "--served-model-name": MODEL_NAME,
            "--host": "127.0.0.1",
            "--port": str(port),
            "--data-parallel-size": str(self.data_parallel_size),
            "--api-server-count": "1",
            "--distributed-executor-backend": "uni",
            "--dtype": "float32",
            "--max-model-len": str(self.max_model_len),
            "--max-num-seqs": str(self.max_num_seqs),
            "--block-size": str(self.block_size),
            "--kv-cache-memory-bytes": str(self.kv_cache_bytes),
            "--seed": str(self.seed),
        }
        if self.worker_class is not None:
            arguments["--worker-cls"] = self.worker_class
        if self.max_num_batched_tokens is not None:
            arguments["--max-num-batched-tokens"] = str(self.max_num_batched_tokens)
        return [
            str((self.python or Path(sys.executable)).with_name("vllm")),
            "serve",
            str(self.model),
            *(part for pair in arguments.items() for part in pair),
            "--enforce-eager",
            "--disable-uvicorn-access-log",
            "--enable-prefix-caching" if self.prefix_caching else "--no-enable-prefix-caching",
            *(["--enable-expert-parallel"] if self.expert_parallel else []),
            *self.extra_args,
        ]

    def environment(self) -> dict[str, str]:
        """The server's environment variables."""
        inherited = dict(os.environ)
        # Without cached bytecode the import of vLLM's thousands of modules takes three times as long.
        inherited.pop("PYTHONDONTWRITEBYTECODE", None)
        return {**inherited, **ENVIRONMENT, **self.env}


@dataclass(frozen=True)
class Progress:
    """How far a start is: seconds since its begin and the log's last line."""

    seconds: float
    line: str

    @property
    def text(self) -> str:
        """The line's message, without the process, level, time and place that vLLM puts before it."""
        return re.sub(r"^(\(\S+ pid=\d+\) *)?(\w+ \d\d-\d\d [\d:]+ \[\S+\] *)?", "", self.line)


class VllmServer:
    """Starts on entry, returns when requests are answered, and stops on exit with every process it started.

    Attributes:
        options: what was asked for.
        log: the file with all output.
        started_after: seconds from the start to the first good answer of ``/health``.
    """

    def __init__(
        self,
        options: VllmOptions,
        *,
        log: Path,
        start_timeout: float = 300.0,
        on_progress: Callable[[Progress], None] | None = None,
        launch: Launch = launched,
    ) -> None:
        self.options = options
        self.log = log
        self.port = options.port or free_port()
        self.started_after: float | None = None
        self._start_timeout = start_timeout
        self._on_progress = on_progress
        self._launch = launch
        self._group: ProcessGroup | None = None

    @property
    def url(self) -> str:
        """The address, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until ready; whatever goes wrong, nothing is left running.

        Raises:
            VllmStartError: a shared library is missing, it ended by itself, or took longer than the start's
                time limit.
        """
        if self._group is not None:
            raise RuntimeError("already started")
        environment = self.options.environment()
        try:
            require(missing_for_vllm(environment))
        except MissingLibraryError as error:
            raise VllmStartError(str(error)) from error
        self._group = ProcessGroup(self.options.command(self.port), self.log, environment, self._launch)
        try:
            self._wait_until_ready(self._group)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of the server; nothing to do when it isn't running."""
        if self._group is not None:
            self._group.stop()
            self._group = None

    def processes(self) -> list[psutil.Process]:
        """The server's processes that run now."""
        return self._group.alive() if self._group else []

    def exit_code(self) -> int | None:
        """The exit status when the server ended by itself, else None."""
        return self._group.exit_code() if self._group else None

    def _wait_until_ready(self, group: ProcessGroup) -> None:
        begin = time.monotonic()
        while not self._healthy():
            seconds = time.monotonic() - begin
            code = group.exit_code()
            if code is not None:
                raise VllmStartError(
                    explain(group.log, f"vLLM ended with status {code} after {seconds:.0f} s")
                )
            if seconds > self._start_timeout:
                raise VllmStartError(explain(group.log, f"vLLM wasn't ready after {seconds:.0f} s"))
            if self._on_progress is not None:
                self._on_progress(Progress(seconds, group.last_line()))
            time.sleep(0.2)
        self.started_after = time.monotonic() - begin

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
