"""Exports of many traces: how fast the service makes them, and the most memory that takes.

    python -m benchmarks.export --tokens 1000000

The store is filled as in `benchmarks.store`, with synthetic routing. Then a service is started over it, in a
process of its own, and exports are read over HTTP, answer by answer, and written to files. A line has tokens
and MB of ids (a byte an id) per second, and per second of the service's CPU, which tells more on a busy
machine; the size of the files; and the most memory that the service held beyond what it held before. The
first one also loads pyarrow. For comparison the disk's speed is measured with a file of the size of the ids.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.store import arriving, encoded, routing, store_all
from moescope.capture.wire import MoeLayer
from moescope.client import Client
from moescope.service.store.limits import Retention
from moescope.service.store.sqlite.store import SqliteStore
from moescope.service.store.writer import StoreWriter

KINDS = (
    ("arrow", "packed"),
    ("arrow", "layers"),
    ("parquet", "packed"),
    ("parquet", "layers"),
    ("ndjson", "layers"),
)


class Memory(threading.Thread):
    """Watches the memory of a process: the most that it held, MiB."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__()
        self.most = 0.0
        self.stopping = threading.Event()
        self._process = process

    @property
    def now(self) -> float:
        """What it holds now."""
        return float(self._process.memory_info().rss) / 2**20

    def run(self) -> None:
        """Watch until stopped."""
        while not self.stopping.wait(0.02):
            self.most = max(self.most, self.now)


def fill(folder: Path, tokens: int, requests: int, layers: list[MoeLayer]) -> None:
    """Store the traces, and end with all of them in the database."""
    experts, _ = routing(tokens, layers, np.random.default_rng(0))
    bodies, _, _ = encoded(arriving(experts, requests, 256), layers)
    writer = StoreWriter(SqliteStore(folder, Retention(max_bytes=1 << 40)))
    store_all(writer, bodies, 32)
    writer.close()


def disk_speed(folder: Path, nbytes: int) -> float:
    """MB/s of writing a file of so many bytes, and of waiting until it is on the disk."""
    block, path = os.urandom(1 << 20), folder / "speed"
    began = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(max(1, nbytes >> 20)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return nbytes / seconds / 1e6


def export(client: Client, folder: Path, kind: str, columns: str) -> tuple[float, int, int]:
    """Export all; seconds, tokens and bytes of the files."""
    began, cursor, tokens, nbytes, number = time.perf_counter(), "", 0, 0, 0
    while True:
        file = folder / f"part-{number}.{kind}"
        part = client.export_file(file, kind, columns=columns, cursor=cursor, page_size=10_000)  # type: ignore[arg-type]
        tokens, nbytes, number = tokens + part.tokens, nbytes + part.nbytes, number + 1
        file.unlink()
        cursor = part.next_cursor
        if not cursor:
            return time.perf_counter() - began, tokens, nbytes


def serve(store: Path) -> tuple[subprocess.Popen[str], str]:
    """A service over the store, in a process of its own, and its address."""
    command = [sys.executable, "-m", "moescope.service", "serve", "--port", "0", "--store", str(store)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "http://" in line:
            return process, "http://" + line.partition("http://")[2].split()[0].strip('",.')
    raise SystemExit("the service did not start")


def measured(
    client: Client, service: psutil.Process, folder: Path, kind: str, columns: str, position: int
) -> str:
    """A line for one export; a position has so many bytes of ids."""
    memory, cpu_s = Memory(service), -sum(service.cpu_times()[:2])
    before = memory.now
    memory.start()
    seconds, tokens, nbytes = export(client, folder, kind, columns)
    memory.stopping.set()
    memory.join()
    cpu_s += sum(service.cpu_times()[:2])
    speeds = [
        f"{tokens / each:.0f} tokens, {tokens * position / each / 1e6:.1f} MB" for each in (seconds, cpu_s)
    ]
    return (
        f"{kind:8}{columns:7} {speeds[0]} a second; {speeds[1]} a second of CPU; "
        f"files {nbytes / 1e6:.0f} MB; memory +{memory.most - before:.0f} MiB"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--request-tokens", type=int, default=200)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--only", nargs="+", default=[kind for kind, _ in KINDS], help="these formats")
    options = parser.parse_args()
    layers = [MoeLayer(n, options.experts, options.top_k) for n in range(options.layers)]
    requests = options.tokens // options.request_tokens
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder / "store", options.tokens, requests, layers)
        position = options.layers * options.top_k
        print(
            f"{options.tokens} tokens of {options.layers} x {options.top_k} of {options.experts}, "
            f"{requests} requests; this disk writes {disk_speed(folder, options.tokens * position):.0f} MB/s"
        )
        process, url = serve(folder / "store")
        try:
            with Client(url, timeout_s=600) as client:
                for kind, columns in (each for each in KINDS if each[0] in options.only):
                    service = psutil.Process(process.pid)
                    print(measured(client, service, folder, kind, columns, position), flush=True)
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
