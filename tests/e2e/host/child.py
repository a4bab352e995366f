"""One real vLLM engine that lives through faults: ``python -m tests.e2e.host.child MODEL CONNECTION``.

It starts with a bad setting and says whether capture is open, and which tokens the requests give without it.
Then it takes names of faults from the connection, a file descriptor, and answers each of them. For a fault
the worker's capture is closed, the fault injected, capture opened anew on the loaded model, and the same
requests served. The answer has the tokens, what was logged and what arrived.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import numpy as np

from devkit.frame_sink import FrameSink
from devkit.vllm_server import ENVIRONMENT
from moescope.capture.worker import RoutingWorker
from tests.e2e.host.faults import CASES
from tests.e2e.host.injecting import Case
from tests.e2e.small_engine import SMALL_ENGINE
from tests.waiting import wait_until

WORKERS: list[Worker] = []


class Worker(RoutingWorker):  # type: ignore[misc]
    """The worker as it ships, which this process can reach."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        WORKERS.append(self)


class Lines(logging.Handler):
    """What capture logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Engine:
    """The engine, and how it is used."""

    def __init__(self, model: str) -> None:
        from vllm import LLM, SamplingParams

        self._llm = LLM(
            model=model,
            worker_cls=f"{Worker.__module__}.{Worker.__name__}",
            **SMALL_ENGINE,
        )
        self._prompts = [f"{index} is the number of this prompt " * (1 + index % 3) for index in range(8)]
        self._parameters = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
        (self.worker,) = WORKERS
        self.lines = Lines()  # only now: vLLM sets up logging anew while it starts
        logging.getLogger("vllm.moescope").addHandler(self.lines)

    def serve(self) -> tuple[list[list[int]], int]:
        """The requests' tokens, and how many tokens were computed."""
        outputs = self._llm.generate(self._prompts, self._parameters, use_tqdm=False)
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        computed = sum(
            len(output.prompt_token_ids) + len(output.outputs[0].token_ids) - 1 for output in outputs
        )
        return tokens, computed

    def run(self, case: Case) -> dict[str, Any]:
        """One fault, from the opening of capture to its close."""
        sink = FrameSink()
        self.lines.lines.clear()
        with case.inject() as variables:
            os.environ.update({"MOESCOPE_ENDPOINT": sink.url, "MOESCOPE_INTERVAL": "0.05", **variables})
            self.worker._moescope_open()
            if self.worker._capture is not None:
                self.worker._capture.warm_up_begins()
                self.worker._capture.serving_begins()
            tokens, computed = self.serve()
            wait_for(case, sink, self.lines.lines, computed)
            bound = sum(router.capture_fn is not None for router in self._routers())
            seconds, patience = self._close()
        for name in variables:
            os.environ.pop(name, None)
        return {
            "tokens": tokens,
            "computed": computed,
            "log": list(self.lines.lines),
            "frame": None if not sink.frames else describe(sink.frames[-1]),
            "open": self.worker._capture is not None,
            "bound": bound,
            "left_bound": sum(router.capture_fn is not None for router in self._routers()),
            "close_seconds": seconds,
            "close_patience": patience,
        }

    def plain(self) -> list[list[int]]:
        """The tokens without any capture."""
        self._close()
        return self.serve()[0]

    def _close(self) -> tuple[float, float]:
        """Seconds that closing capture took, and those that it was ready to wait for its threads."""
        joined: list[float | None] = []
        original = threading.Thread.join

        def join(thread: threading.Thread, timeout: float | None = None) -> None:
            joined.append(timeout)
            original(thread, timeout)

        begin = time.monotonic()
        with mock.patch.object(threading.Thread, "join", join):
            self.worker._moescope_close()
        patience = sum(math.inf if timeout is None else timeout for timeout in joined)
        return time.monotonic() - begin, patience

    def _routers(self) -> list[Any]:
        from vllm.model_executor.layers.fused_moe.layer import MoERunner

        return [
            module.router for module in self.worker.get_model().modules() if isinstance(module, MoERunner)
        ]


def wait_for(case: Case, sink: FrameSink, lines: list[str], computed: int) -> None:
    """Wait for all that must show; what does not show in time is missed by the test."""

    def shown() -> bool:
        logged = case.shows is None or any(re.search(case.shows, line) for line in list(lines))
        frame = sink.frames[-1] if sink.frames else None
        state = case.state is None or (frame is not None and frame.state == case.state)
        exact = not (case.exact or case.unseen) or (frame is not None and frame.tokens == computed)
        drops = all(frame is not None and frame.drops.get(reason) for reason in case.drops)
        return logged and state and exact and drops

    with contextlib.suppress(AssertionError):
        wait_until(shown, "not all of it shows")


def describe(frame: Any) -> dict[str, Any]:
    """What the test asks of a frame."""
    return {
        "state": frame.state,
        "reason": frame.state_reason,
        "tokens": frame.tokens,
        "rows": np.frombuffer(frame.rows, dtype="<i8").tolist(),
        "drops": frame.drops,
    }


def main(model: str, connection: str) -> None:
    os.environ.update(ENVIRONMENT)
    # A silent endpoint is given up sooner than in production, so that the run stays short.
    from moescope.capture.delivery import transport

    transport.HttpTransport.__init__.__defaults__ = (1.0, *transport.HttpTransport.__init__.__defaults__[1:])  # type: ignore[index]
    os.environ["MOESCOPE_INTERVAL"] = "soon"
    engine = Engine(model)
    with Connection(int(connection)) as tests:
        tests.send({"capture_at_start": engine.worker._capture is not None, "plain": engine.plain()})
        with contextlib.suppress(EOFError):
            while True:
                tests.send(engine.run(CASES[tests.recv()]))
    os._exit(0)


if __name__ == "__main__":
    # Under this name, so that vLLM's import of the worker class gives the same module.
    from tests.e2e.host import child

    child.main(*sys.argv[1:])
