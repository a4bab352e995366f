"""Kills a real service while frames and traces come, and checks what is left. The soak uses it too."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np

from devkit.processes import free_port
from moescope.capture import wire
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, TracePart, encode_part
from moescope.service.store.limits import Retention
from moescope.service.store.records import TraceQuery
from moescope.service.store.sqlite.store import SqliteStore
from tests.service.frames import EPOCH, frame, producer
from tests.service.trace_parts import experts_of, part

RANKS = 3
EXPERTS = 64


def counts_after(seq: int, dp_rank: int) -> list[int]:
    """The totals of a rank's frame: they say which frame it was."""
    return [2 * seq * (dp_rank + 1)] + [2 * (seq // (e + 1)) for e in range(1, EXPERTS)]


def trace_parts(number: int, dp_rank: int) -> list[TracePart]:
    """A trace in two parts, whose experts say which it is."""
    experts = experts_of(number, 40)
    who = {"dp_rank": dp_rank, "dp_size": RANKS}
    name = f"{dp_rank}/{number}"
    return [
        part(number, experts=[ids[:30] for ids in experts], runs=[(0, 30)], parts=2, who=who, name=name),
        part(
            number,
            experts=[ids[30:] for ids in experts],
            runs=[(30, 10)],
            part=1,
            parts=2,
            who=who,
            name=name,
        ),
    ]


class Pusher:
    """One rank: sends frames and traces, each trace until it is there; knows what was acknowledged.

    Attributes:
        acknowledged, sent: the last frame's number.
        traces: traces of which all parts were acknowledged; the next one may have arrived in part or whole.
    """

    def __init__(self, port: int, dp_rank: int) -> None:
        self.dp_rank = dp_rank
        self.traces = 0
        self.acknowledged = 0
        self.sent = 0
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        who = producer(dp_rank=self.dp_rank, dp_size=RANKS)
        with httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=60) as client:
            while not self._stop.is_set():
                seq = self.sent = self.sent + 1
                body = wire.encode_frame(
                    frame({0: counts_after(seq, self.dp_rank)}, seq=seq, who=who, after_s=seq / 1000)
                )
                if self._post(client, "/v1/ingest", body, wire.CONTENT_TYPE):
                    self.acknowledged = seq
                bodies = [encode_part(made) for made in trace_parts(self.traces + 1, self.dp_rank)]
                if all(self._post(client, "/v1/traces", body, TRACE_CONTENT_TYPE) for body in bodies):
                    self.traces += 1

    def _post(self, client: httpx.Client, path: str, body: bytes, content_type: str) -> bool:
        try:
            answer = client.post(path, content=body, headers={"content-type": content_type})
        except httpx.TransportError:
            time.sleep(0.01)
            return False
        assert answer.status_code == 200, answer.text
        return True


@contextlib.contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`moescope serve --store` as an operator starts it."""
    moescope = Path(sys.executable).with_name("moescope")
    command = [str(moescope), "serve", "--port", str(port), "--store", str(folder), "--log-level", "error"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=60).status_code == 200:
                    break
            assert process.poll() is None, "the service did not start"
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


def check(folder: Path, pushers: list[Pusher], acknowledged: list[tuple[int, int]]) -> None:
    """Each account is one of the frames sent, none before the last acknowledged; history agrees with it.

    Each trace that was acknowledged is there, once and whole, and at most the next one besides.
    """
    store = SqliteStore(folder, Retention())
    accounts = {item.key[2]: item for item in store.accounts()}
    for pusher, (acked, traces) in zip(pushers, acknowledged, strict=True):
        kept = accounts[pusher.dp_rank]
        seq = kept.account.latest.seq
        assert acked <= seq <= pusher.sent
        np.testing.assert_array_equal(kept.account.totals.counts, counts_after(seq, pusher.dp_rank))
        assert [item.epoch for item in kept.account.epochs] == [EPOCH]
        [newest] = store.totals_at(kept.key, [time.time() + 60])
        assert newest is not None
        np.testing.assert_array_equal(newest.totals.counts, kept.account.totals.counts)
        kept_traces = store.traced_requests(TraceQuery(dp_rank=pusher.dp_rank, limit=1 << 20))
        numbers = [int(found.names[-1].partition("/")[2]) for found in kept_traces]
        assert numbers[::-1] in (list(range(1, traces + 1)), list(range(1, traces + 2)))
        for found, number in list(zip(kept_traces, numbers, strict=True))[:20]:
            [trace] = store.traces(found.number, None)
            for ids, expected in zip(trace.experts, experts_of(number, 40), strict=True):
                np.testing.assert_array_equal(ids, expected)
    store.close()


def kill_and_check(folder: Path, kills: int) -> float:
    """Kill a service that takes frames and traces so often; the longest time until it was ready, seconds."""
    rng = random.Random(4)
    port = free_port()
    pushers: list[Pusher] = []
    slowest = 0.0
    try:
        for _ in range(kills):
            began = time.monotonic()
            with serving(folder, port) as process:
                slowest = max(slowest, time.monotonic() - began)
                pushers = pushers or [Pusher(port, rank) for rank in range(RANKS)]
                before = [pusher.acknowledged for pusher in pushers]
                deadline = time.monotonic() + 60
                while any(p.acknowledged <= was for p, was in zip(pushers, before, strict=True)):
                    assert time.monotonic() < deadline, "nothing is acknowledged"
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.3))
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            check(folder, pushers, [(pusher.acknowledged, pusher.traces) for pusher in pushers])
    finally:
        for pusher in pushers:
            pusher.stop()
    with serving(folder, port):
        for pusher in pushers:
            answer = httpx.get(
                f"http://127.0.0.1:{port}/v1/histogram", params={"dp_rank": pusher.dp_rank}, timeout=60
            ).json()
            [layer] = answer["layers"]
            seq = layer["counts"][0] // (2 * (pusher.dp_rank + 1))
            assert pusher.acknowledged <= seq <= pusher.sent
            assert layer["counts"] == counts_after(seq, pusher.dp_rank)
    return slowest
