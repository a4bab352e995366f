"""kill -9 of the real service at random moments: what it acknowledged is there, once."""

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
from moescope.service.store.retention import Retention
from moescope.service.store.sqlite import SqliteStore
from tests.service.frames import EPOCH, frame, producer

KILLS = 20
RANKS = 3
EXPERTS = 64


def counts_after(seq: int, dp_rank: int) -> list[int]:
    """The totals of a rank's frame: they say which frame it was."""
    return [2 * seq * (dp_rank + 1)] + [2 * (seq // (e + 1)) for e in range(1, EXPERTS)]


class Pusher:
    """One rank: sends frame after frame, and knows which were acknowledged."""

    def __init__(self, port: int, dp_rank: int) -> None:
        self.dp_rank = dp_rank
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
        with httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=5) as client:
            while not self._stop.is_set():
                seq = self.sent = self.sent + 1
                body = wire.encode_frame(
                    frame({0: counts_after(seq, self.dp_rank)}, seq=seq, who=who, after_s=seq / 1000)
                )
                try:
                    answer = client.post(
                        "/v1/ingest", content=body, headers={"content-type": wire.CONTENT_TYPE}
                    )
                except httpx.TransportError:
                    time.sleep(0.01)
                    continue
                assert answer.status_code == 200, answer.text
                self.acknowledged = seq


@contextlib.contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`moescope serve --store` as an operator starts it."""
    moescope = Path(sys.executable).with_name("moescope")
    command = [str(moescope), "serve", "--port", str(port), "--store", str(folder), "--log-level", "error"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            assert process.poll() is None, "the service did not start"
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


def check(folder: Path, pushers: list[Pusher], acknowledged: list[int]) -> None:
    """Each account is one of the frames sent, none before the last acknowledged; history agrees with it."""
    store = SqliteStore(folder, Retention())
    accounts = {item.key[2]: item for item in store.accounts()}
    for pusher, acked in zip(pushers, acknowledged, strict=True):
        kept = accounts[pusher.dp_rank]
        seq = kept.account.latest.seq
        assert acked <= seq <= pusher.sent
        np.testing.assert_array_equal(kept.account.totals.counts, counts_after(seq, pusher.dp_rank))
        assert [item.epoch for item in kept.account.epochs] == [EPOCH]
        [newest] = store.totals_at(kept.key, [time.time() + 60])
        assert newest is not None
        np.testing.assert_array_equal(newest.totals.counts, kept.account.totals.counts)
    store.close()


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    rng = random.Random(4)
    port = free_port()
    pushers: list[Pusher] = []
    try:
        for _ in range(KILLS):
            with serving(tmp_path, port) as process:
                pushers = pushers or [Pusher(port, rank) for rank in range(RANKS)]
                before = [pusher.acknowledged for pusher in pushers]
                deadline = time.monotonic() + 10
                while any(p.acknowledged <= was for p, was in zip(pushers, before, strict=True)):
                    assert time.monotonic() < deadline, "nothing is acknowledged"
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.3))
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            check(tmp_path, pushers, [pusher.acknowledged for pusher in pushers])
    finally:
        for pusher in pushers:
            pusher.stop()
    with serving(tmp_path, port):
        for pusher in pushers:
            answer = httpx.get(
                f"http://127.0.0.1:{port}/v1/histogram", params={"dp_rank": pusher.dp_rank}
            ).json()
            [layer] = answer["layers"]
            seq = layer["counts"][0] // (2 * (pusher.dp_rank + 1))
            assert pusher.acknowledged <= seq <= pusher.sent
            assert layer["counts"] == counts_after(seq, pusher.dp_rank)
