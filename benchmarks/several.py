"""Several services on one ClickHouse: acknowledgements and ingest, and 90 days of many producers.

    python -m benchmarks.several --ranks 256 --services 1 2 3 --seconds 30
    python -m benchmarks.several --ranks 256 --days 90

The server is the tests' (chdb in a process, which runs one query at a time). Services and workers share this
machine with it. So figures are ratios side by side, not what a ClickHouse of its own gives.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import httpx
import numpy as np
from msgspec.structs import replace

from moescope.capture.wire import CONTENT_TYPE, Frame, Producer, encode_frame
from moescope.service.counts.account import Account
from moescope.service.store.clickhouse import history
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.codec import encode_totals
from moescope.service.store.limits import Retention
from moescope.service.store.records import Posting
from tests.service.frames import frame

LAYERS, EXPERTS = 58, 256
DAY_S = 86_400


@contextmanager
def server() -> Iterator[str]:
    """The URL of a ClickHouse."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.service.store.clickhouse.server", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield f"clickhouse://127.0.0.1:{process.stdout.readline().strip()}/b{uuid.uuid4().hex}"
            finally:
                process.kill()


@contextmanager
def service(store: str) -> Iterator[str]:
    """The address of a service."""
    command = [sys.executable, "-m", "moescope.service", "serve", "--port", "0", "--store", store]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "serves at " in line)
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield line.partition("serves at ")[2].split()[0]
        finally:
            process.kill()


def made(
    rank: int, ranks: int, seq: int, epoch: int, rng: np.random.Generator, layers: int = LAYERS
) -> Frame:
    """A frame of a rank, with all experts of so many layers."""
    who = Producer(server="bench", model="bench", dp_rank=rank, dp_size=ranks)
    counts = {layer: (rng.integers(0, 50, EXPERTS) * seq * 8).tolist() for layer in range(layers)}
    return frame(counts, who=who, top_k=8, seq=seq, epoch=epoch, after_s=seq)


def ingest(urls: Sequence[str], ranks: int, seconds: float) -> tuple[list[float], int]:
    """Acknowledgements in seconds, each rank once a second or as fast as it goes, and those that failed."""
    rng, epoch = np.random.default_rng(1), time.time_ns()
    frames = [made(rank, ranks, 1, epoch, rng) for rank in range(ranks)]
    took: list[float] = []
    failed = 0
    until = time.monotonic() + seconds

    def send(rank: int) -> None:
        nonlocal failed
        seq = 1
        with httpx.Client(base_url=urls[rank % len(urls)], timeout=60) as client:
            while (began := time.monotonic()) < until:
                body = encode_frame(replace(frames[rank], seq=seq))
                sent = time.monotonic()
                answer = client.post("/v1/ingest", content=body, headers={"content-type": CONTENT_TYPE})
                took.append(time.monotonic() - sent)
                failed += answer.status_code != 200
                seq += 1
                time.sleep(max(0.0, began + 1 - time.monotonic()))

    threads = [threading.Thread(target=send, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took, failed


def side_by_side(ranks: int, services: Sequence[int], seconds: float) -> None:
    """Ingest with so many services, one run after the other."""
    for count in services:
        with ExitStack() as stack:
            store = stack.enter_context(server())
            urls = [stack.enter_context(service(store)) for _ in range(count)]
            took, failed = ingest(urls, ranks, seconds)
        cuts = statistics.quantiles(took, n=100)
        print(
            f"{count} services, {ranks} ranks: {len(took) / seconds:.1f} frames/s, acknowledged in "
            f"{cuts[49] * 1000:.0f} ms (p50), {cuts[98] * 1000:.0f} ms (p99), {failed} failed",
            flush=True,
        )


def fill(store: ClickHouseStore, ranks: int, days: int, now: float) -> int:
    """A row every five minutes of each rank, of two layers, for so many days; how many."""
    rng, epoch = np.random.default_rng(2), int((now - days * DAY_S) * 1e9)
    written = 0
    for rank in range(ranks):
        account = Account(max_epochs=4)
        sent = made(rank, ranks, 1, epoch, rng, layers=2)
        account.post(sent, at=now - days * DAY_S + 1)
        totals, key = encode_totals(account.state().totals), sent.producer.key
        began_ms = round((now - days * DAY_S) * 1000)
        count = days * DAY_S // 300
        values = (
            f"'bench', 'bench', {rank}, 0, 0, {epoch}, {began_ms // 1000 + 1} + 300 * number AS at, "
            f"at * 1000, number + 1, {began_ms}, unhex('{totals.hex()}') FROM numbers({count - 1})"
        )
        columns = ", ".join(history.COLUMNS)
        store._connection.maintain(f"INSERT INTO life ({columns}) SELECT {values}")
        store.save([Posting(key, began_ms / 1000, now - 60, account.state())])
        written += count - 1
    return written


def past(ranks: int, days: int) -> None:
    """Start, maintenance, and a question over all of it."""
    with server() as url:
        now = time.time()
        store = ClickHouseStore(url, Retention(), sleep=lambda _: None)
        began = time.monotonic()
        rows = fill(store, ranks, days, now)
        print(
            f"{rows:,} rows of {ranks} ranks over {days} days, written in {time.monotonic() - began:.0f} s",
            flush=True,
        )
        for what in ("first", "second"):
            began = time.monotonic()
            store.maintain(now)
            print(f"maintenance, the {what} round: {time.monotonic() - began:.2f} s", flush=True)
        store.close()
        began = time.monotonic()
        with service(url) as address, httpx.Client(base_url=address, timeout=600) as client:
            print(f"the service has started after {time.monotonic() - began:.1f} s", flush=True)
            for start in (f"-{days}d", f"-{days - 1}d", f"-{days // 3}d", f"-{days}d"):
                began = time.monotonic()
                code = client.get("/v1/histogram", params={"start": start, "layer": 0}).status_code
                print(f"/v1/histogram?start={start}: {code} in {time.monotonic() - began:.2f} s", flush=True)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--services", type=int, nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--days", type=int, default=0)
    options = parser.parse_args()
    if options.services:
        side_by_side(options.ranks, options.services, options.seconds)
    if options.days:
        past(options.ranks, options.days)


if __name__ == "__main__":
    main()
