"""Runs a layout, and tells which workers said that they belong together."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from devkit.frame_sink import FrameSink
from devkit.hosts.layouts import MODEL, Layout, Start
from devkit.hosts.network import Network
from devkit.processes import ProcessGroup
from devkit.root_cause import explain
from devkit.vllm_server import ENVIRONMENT
from moescope.capture.wire import Frame

HOSTS: Final = ("gpu-0", "gpu-1")
_SMALL: Final = (
    *("--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "4"),
    *("--block-size", "32", "--kv-cache-memory-bytes", str(8 << 20), "--enforce-eager"),
    *("--distributed-executor-backend", "uni", "--worker-cls", "moescope.capture.worker.RoutingWorker"),
)

Workers = dict[str, set[tuple[int, int]]]
"""(DP rank, TP rank) of the workers, by the name of their deployment."""


class NoFramesError(RuntimeError):
    """Workers are missing; the message says how a server ended, or how many came."""


@dataclass(frozen=True)
class Seen:
    """What a layout's workers said: the latest frame of each, and how long it took to have them."""

    frames: tuple[Frame, ...]
    seconds: float

    @property
    def workers(self) -> Workers:
        """By the name that they gave their deployment."""
        found: Workers = {}
        for frame in self.frames:
            found.setdefault(frame.producer.server, set()).add(
                (frame.producer.dp_rank, frame.producer.tp_rank)
            )
        return found


def expected(layout: Layout, network: Network) -> Workers:
    """By the name that they should give it."""
    found: Workers = {}
    for start in layout.starts:
        for name, workers in start.workers.items():
            if workers:
                found.setdefault(_addressed(name, network), set()).update(workers)
    return found


def run(layout: Layout, network: Network, model: Path, folder: Path, timeout: float = 300.0) -> Seen:
    """Start all servers of the layout, wait for a frame of each of their workers, and stop them.

    Raises:
        NoFramesError: a server ended, or the time is over.
    """
    begin = time.monotonic()
    number = sum(len(workers) for start in layout.starts for workers in start.workers.values())
    sink = FrameSink(network.gateway)
    with ExitStack() as stack:
        stack.callback(sink.close)
        groups = [
            _serve(start, network, model, folder / f"{index}.log", sink.url)
            for index, start in enumerate(layout.starts)
        ]
        for group in groups:
            stack.callback(group.stop)
        while len(frames := _latest(sink.frames)) < number:
            for group in groups:
                if group.exit_code() is not None:
                    raise NoFramesError(explain(group.log, f"{layout.name}: status {group.exit_code()}"))
            if time.monotonic() - begin > timeout:
                raise NoFramesError(f"{layout.name}: {len(frames)} of {number} workers after {timeout} s")
            time.sleep(0.1)
    return Seen(frames, time.monotonic() - begin)


def _serve(start: Start, network: Network, model: Path, log: Path, url: str) -> ProcessGroup:
    """Start one server on its host."""
    vllm = str(Path(sys.executable).with_name("vllm"))
    arguments = (_addressed(argument, network) for argument in start.arguments)
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "MOESCOPE_ENDPOINT": url,
        "MOESCOPE_INTERVAL": "0.2",
        **network.environment(start.host),
        **start.environment,
    }
    for variable in ("PYTHONDONTWRITEBYTECODE", "MOESCOPE_SERVER"):
        environment.pop(variable, None)
    return ProcessGroup(
        network.on(start.host, [vllm, "serve", str(model), *_SMALL, *arguments]), log, environment
    )


def _addressed(text: str, network: Network) -> str:
    for host in HOSTS:
        text = text.replace(f"{{{host}}}", network.address(host))
    return text


def _latest(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """That of each process."""
    return tuple({(frame.producer.host, frame.producer.pid): frame for frame in tuple(frames)}.values())
