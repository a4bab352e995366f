"""Several services on one ClickHouse: acknowledgements, and what each process spends on a frame.

    python -m benchmarks.several --ranks 256 --services 1 2 3 --seconds 30

Each rank sends a frame a second to one of the services. All of it runs on this machine: workers, services and
the server, which is the tests' (chdb in a process, which runs one query at a time). So where the cores don't
suffice, a run says how the processes share them, and CPU seconds a frame are what can be compared: a service
spends them on the frames that come to it, and on the news of those that come to others.
"""

from __future__ import annotations

import argparse
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
from msgspec.structs import replace

from moescope.capture.wire import CONTENT_TYPE, Frame, Producer, encode_frame
from tests.service.frames import frame

LAYERS, EXPERTS = 58, 256
WARM_S = 5.0
"""Seconds before it is measured: the first frame of each rank takes longer, and so does its connection."""


@contextmanager
def server(kept: Path | None = None) -> Iterator[tuple[str, int]]:
    """The URL of a ClickHouse, and its process; with a folder what is in its database stays there."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, name = (temporary, uuid.uuid4().hex) if kept is None else (str(kept), "ench")
        command = [sys.executable, "-m", "tests.service.store.clickhouse.server", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                url = f"clickhouse://127.0.0.1:{process.stdout.readline().strip()}/b{name}"
                yield url, process.pid
            finally:
                process.kill()


@contextmanager
def service(store: str) -> Iterator[tuple[str, int]]:
    """The address of a service, and its process."""
    command = [sys.executable, "-m", "moescope.service", "serve", "--port", "0", "--store", store]
    env = {**os.environ, "MOESCOPE_MAX_BODIES_PER_CLIENT": "4096"}  # all workers are at one address here
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "serves at " in line)
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield line.partition("serves at ")[2].split()[0], process.pid
        finally:
            process.kill()


def made(
    rank: int, ranks: int, seq: int, epoch: int, rng: np.random.Generator, layers: int = LAYERS
) -> Frame:
    """A frame of a rank, with all experts of so many layers."""
    who = Producer(server="bench", model="bench", dp_rank=rank, dp_size=ranks)
    counts = {layer: (rng.integers(0, 50, EXPERTS) * seq * 8).tolist() for layer in range(layers)}
    return frame(counts, who=who, top_k=8, seq=seq, epoch=epoch, after_s=seq)


@dataclass
class Ingest:
    """What workers saw, and what processes spent meanwhile.

    Attributes:
        took: acknowledgements of frames, seconds.
        failed: frames that were answered something else.
        cpu: CPU seconds of each process.
    """

    took: list[float] = field(default_factory=list)
    failed: int = 0
    cpu: Sequence[float] = ()


def ingest(urls: Sequence[str], ranks: int, seconds: float, pids: Sequence[int]) -> Ingest:
    """Each rank sends a frame a second, or as fast as it goes; measured once all have for some seconds."""
    rng, epoch = np.random.default_rng(1), time.time_ns()
    frames = [made(rank, ranks, 1, epoch, rng) for rank in range(ranks)]
    unused = ssl.create_default_context()  # one for all: making it takes longer than many frames
    found = Ingest()
    begin = time.monotonic() + WARM_S
    until = begin + seconds

    def send(rank: int) -> None:
        seq = 1
        due = begin - WARM_S + rank / ranks  # workers are not in step with each other
        with httpx.Client(base_url=urls[rank % len(urls)], timeout=60, verify=unused) as client:
            while due < until:
                time.sleep(max(0.0, due - time.monotonic()))
                body = encode_frame(replace(frames[rank], seq=seq))
                sent = time.monotonic()
                answer = client.post("/v1/ingest", content=body, headers={"content-type": CONTENT_TYPE})
                if sent >= begin:
                    found.took.append(time.monotonic() - sent)
                    found.failed += answer.status_code != 200
                seq += 1
                due = max(due + 1, time.monotonic())

    threads = [threading.Thread(target=send, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, begin - time.monotonic()))
    before = [cpu_s(pid) for pid in pids]
    for thread in threads:
        thread.join()
    found.cpu = np.subtract([cpu_s(pid) for pid in pids], before).tolist()
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has spent."""
    spent = psutil.Process(pid).cpu_times()
    return float(spent.user + spent.system)


def side_by_side(ranks: int, services: Sequence[int], seconds: float) -> None:
    """Ingest with so many services, one run after the other."""
    for count in services:
        with ExitStack() as stack:
            store, engine = stack.enter_context(server())
            urls, pids = zip(*(stack.enter_context(service(store)) for _ in range(count)), strict=True)
            found = ingest(urls, ranks, seconds, [*pids, engine, os.getpid()])
        cuts = statistics.quantiles(found.took, n=100, method="inclusive")
        used, frames = np.array(found.cpu), len(found.took) - found.failed
        each = ", ".join(f"{item / seconds:.2f}" for item in used[:-2])
        print(
            f"{count} services, {ranks} ranks: {frames / seconds:.1f} frames/s, acknowledged in "
            f"{cuts[49] * 1000:.0f} ms (p50), {cuts[98] * 1000:.0f} ms (p99), {found.failed} failed\n"
            f"  cores: services {each}; store {used[-2] / seconds:.2f}; workers {used[-1] / seconds:.2f}\n"
            f"  CPU a frame: all services {used[:-2].sum() / frames * 1000:.2f} ms, "
            f"store {used[-2] / frames * 1000:.2f} ms, workers {used[-1] / frames * 1000:.2f} ms",
            flush=True,
        )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--services", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    print(f"{LAYERS} layers of {EXPERTS} experts, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    side_by_side(options.ranks, options.services, options.seconds)


if __name__ == "__main__":
    main()
