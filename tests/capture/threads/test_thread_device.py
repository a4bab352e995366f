"""The capturer's threads use the worker's device, not device 0."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from moescope.capture.frames import taker
from moescope.capture.frames.builder import FrameBuilder
from moescope.capture.frames.sender import FrameSender
from moescope.capture.threads import thread_device
from moescope.capture.tracing import assembly
from moescope.capture.wire import Producer
from tests.capture.frames.bench import Bench
from tests.capture.traces import Driver


class Nowhere:
    def post(self, body: bytes) -> None: ...

    def close(self) -> None: ...


@contextmanager
def chosen(module: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], torch.device | None]]:
    """Yields a function that tells which device the thread of a name chose first; for threads of `module`."""
    devices: dict[str, torch.device] = {}

    def note(device: torch.device) -> None:
        devices.setdefault(threading.current_thread().name, device)

    monkeypatch.setattr(module, "use_device", note)
    yield devices.get


def test_the_device_is_set_in_the_calling_thread_if_it_is_a_cuda_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    thread_device.use_device(torch.device("cpu"))
    thread_device.use_device(torch.device("cuda", 3))
    assert devices == [torch.device("cuda", 3)]


def test_the_senders_thread_uses_the_device_of_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with chosen(taker, monkeypatch) as device_of:
        bench = Bench()
        builder = FrameBuilder(Producer(server="s", model="m", dp_rank=0, dp_size=1), 1, [], [], None)
        sender = FrameSender(bench.taker, builder, Nowhere(), 0.05)
        sender.start()
        sender.stop()
    assert device_of("moescope-sender") == bench.flat.device


def test_the_thread_that_takes_in_rows_uses_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with chosen(assembly, monkeypatch) as device_of:
        driver = Driver()
        driver.assembly.start()
        driver.assembly.stop(5)
    assert device_of("moescope-rows") == driver.staging.rows.device
