"""Snapshots on a GPU are of one moment and lose no counts; neither steps nor the reader wait."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from moescope.capture.frames.snapshot import Snapshot
from moescope.capture.frames.step_history import StepHistory
from moescope.capture.frames.taker import SnapshotTaker
from moescope.capture.wire import unpack_step_loads
from tests.gpu.toy import EP_SIZE, Toy


def test_every_snapshot_is_of_one_moment_while_steps_race_with_the_reader() -> None:
    toy = Toy()
    toy.forward(256)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        toy.forward(256)
    toy.new_input()
    history = StepHistory(version=0)
    taker = SnapshotTaker(toy.buffers.flat, toy.capturer, 0.001, ring=toy.ring, history=history)
    seen: list[Snapshot] = []
    faults: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                snapshot = taker.collect()
                if snapshot is not None:
                    seen.append(snapshot)
                time.sleep(0.0002)
        except BaseException as fault:  # noqa: BLE001 - shown by the test
            faults.append(fault)

    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # holds for all threads
    reader = threading.Thread(target=read)
    reader.start()
    total = 0
    for number in range(1500):
        valid = 1 + number % 256
        taker.step_begins()
        toy.begin(valid)
        graph.replay()
        toy.capturer.end_step()
        taker.step_ends()
        total += valid
        if number % 100 == 0:
            time.sleep(0.01)  # idle, so that the reader takes some between steps
    stop.set()
    reader.join()
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    seen.append(_last(taker))

    assert not faults
    assert len(seen) > 10
    tokens = [snapshot.totals.tokens for snapshot in seen]
    assert tokens == sorted(tokens)
    assert tokens[-1] == total
    rows_start, ranks_start = 2 * toy.buffers.num_counts, toy.buffers.ep_slots_start
    for snapshot in seen:
        rows = snapshot.flat[rows_start:ranks_start].reshape(2, 3)
        assert rows.sum(axis=0).tolist() == [snapshot.totals.tokens] * 3
        assert rows[1].tolist() == [snapshot.totals.decode_tokens] * 3
        slots = snapshot.totals.tokens * sum(layer.top_k for layer in toy.layers)
        assert snapshot.flat[:rows_start].sum() == snapshot.flat[ranks_start:].sum() == slots
    steps, loads = unpack_step_loads(history.pack(), 3, EP_SIZE)
    assert history.lost == 0
    assert steps.tolist() == list(range(1500))
    top_k = [layer.top_k for layer in toy.layers]
    assert loads.sum(axis=2).tolist() == [[(1 + step % 256) * k for k in top_k] for step in steps]


def _last(taker: SnapshotTaker) -> Snapshot:
    taker.flush()
    newest: Snapshot | None = None
    for _ in range(2):
        newest = taker.collect() or newest
        torch.cuda.synchronize()
    newest = taker.collect() or newest
    assert newest is not None
    return newest


def test_a_first_snapshot_from_another_thread_before_any_step() -> None:
    toy = Toy()
    taker = SnapshotTaker(toy.buffers.flat, toy.capturer, 60, ring=toy.ring, history=StepHistory(version=0))
    taken: list[Snapshot | None] = []

    def read() -> None:
        taken.append(taker.collect())
        torch.cuda.synchronize()
        taken.append(taker.collect())

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    first = next(snapshot for snapshot in taken if snapshot is not None)
    assert (first.totals.tokens, first.flat.sum()) == (0, 0)


CHILD = """
import threading, torch
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.frames.taker import SnapshotTaker
from moescope.capture.counting.staging import TraceStaging
from moescope.capture.tracing.assembly import TraceAssembly
from moescope.capture.wire import MoeLayer
from tests.capture.frames.bench import Source

layers, device = [MoeLayer(0, 8, 2)], torch.device("cuda", 1)
torch.cuda.set_device(device)
taker = SnapshotTaker(CountBuffers(layers, device).flat, Source(), 60)
assembly = TraceAssembly(TraceStaging(layers, 8, device), sharded=False)
assembly.start()
taken = []
def read():
    while not any(taken):
        taken.append(taker.collect())
thread = threading.Thread(target=read)
thread.start()
thread.join()
assembly.stop(5)
assert not torch._C._cuda_hasPrimaryContext(0), "a context on device 0"
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_threads_of_a_worker_on_another_device_leave_device_0_alone() -> None:
    subprocess.run([sys.executable, "-c", CHILD], check=True, timeout=120)


def test_graphs_can_be_captured_while_the_reader_is_paused() -> None:
    toy = Toy()
    toy.forward(64)
    taker = SnapshotTaker(
        toy.buffers.flat, toy.capturer, 0.0001, ring=toy.ring, history=StepHistory(version=0)
    )
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            taker.flush()
            taker.collect()

    reader = threading.Thread(target=read)
    reader.start()
    taker.step_begins()
    taker.step_ends()
    taker.pause()
    for _ in range(50):
        toy.forward(64)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            toy.forward(64)
    taker.resume()
    stop.set()
    reader.join()
    assert toy.capturer.disabled_reason is None
