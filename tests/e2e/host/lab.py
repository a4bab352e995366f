"""One child process with a vLLM engine, which lives through one fault after another."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, cast

from devkit.root_cause import explain
from devkit.vllm_server import ENVIRONMENT

START_S: Final = 300.0
FAULT_S: Final = 120.0
LAST_WORDS_S: Final = 10.0
"""How long a child that hangs may take to say where."""


class Lab:
    """Runs faults in a child process (see ``child.py``), each with a deadline of its own.

    A fault that hangs, or ends the child, fails alone: the next one gets a new child. The failure shows what
    the child has printed since that fault began, and where its threads were if it hung.

    Attributes:
        capture_at_start: whether capture was open after the start with a bad setting.
        plain: the requests' tokens without capture.
        reloaded: the same once the weights were reloaded, where the child does that.
        output: what the child had printed when it had started.
    """

    def __init__(
        self, model: Path, log: Path, child: str = "tests.e2e.host.child", fault_s: float = FAULT_S
    ) -> None:
        self._model, self._log = model, log
        self._module, self._fault_s = child, fault_s
        self._child: subprocess.Popen[bytes] | None = None
        self._printed = 0  # bytes of the log from before this fault
        self._connection: Connection
        self.capture_at_start: bool
        self.plain: list[list[int]]
        self.reloaded: list[list[int]] | None
        self.output: str

    def start(self) -> None:
        """Start the child and serve the requests without capture."""
        ours, theirs = Pipe()
        python = [sys.executable, "-X", "faulthandler"]
        with theirs, self._log.open("wb") as output:
            self._child = subprocess.Popen(
                [*python, "-m", self._module, str(self._model), str(theirs.fileno())],
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=os.environ | ENVIRONMENT,  # the threads of OpenMP are numbered when torch is imported
            )
        self._connection, self._printed = ours, 0
        started = self._answer(START_S, "the start")
        self.capture_at_start, self.plain = started["capture_at_start"], started["plain"]
        self.reloaded = started.get("reloaded")
        self.output = self._log.read_text(errors="replace")

    def run(self, name: str) -> dict[str, Any]:
        """What the engine did with this fault.

        Raises:
            AssertionError: it hangs, or its process has ended.
        """
        if self._child is None:
            self.start()
        self._printed = self._log.stat().st_size
        with contextlib.suppress(ConnectionError):  # an ended child is told by the answer
            self._connection.send(name)
        return self._answer(self._fault_s, name)

    def close(self) -> None:
        """End the child and all that it started."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
            self._child = None
            self._connection.close()

    def _answer(self, seconds: float, what: str) -> dict[str, Any]:
        try:
            if self._connection.poll(seconds):
                return cast(dict[str, Any], self._connection.recv())
            problem = f"{what}: no answer in {seconds:g} s"
            self._ask_where()
        except (EOFError, ConnectionError):
            problem = f"{what}: the child has ended"
        self.close()
        raise AssertionError(explain(self._log, problem, self._printed))

    def _ask_where(self) -> None:
        """Have the child print the stack of each of its threads, which ends it."""
        assert self._child is not None
        self._child.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(LAST_WORDS_S)
