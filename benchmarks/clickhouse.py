"""A store in ClickHouse with much in it: 90 days of many producers, and millions of rows of traces.

    python -m benchmarks.clickhouse --ranks 256 --days 90
    python -m benchmarks.clickhouse --rows 10000000 --folder /tmp/traces

With ``--folder`` the database is there, and one that has rows already is measured as it is, so that two
versions can be compared. Maintenance changes it.

The server is the tests' (chdb in a process, which runs one query at a time), on this machine: a frame beside
maintenance waits there for the statement that runs, where a ClickHouse runs both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from msgspec.structs import replace

from benchmarks.several import made, server, service
from benchmarks.store import arriving, encoded, routing
from moescope.capture.wire import CONTENT_TYPE, MoeLayer, encode_frame
from moescope.capture.wire.traces import decode_part
from moescope.service.counts.account import Account
from moescope.service.store.clickhouse import history, trace_rows
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.codec import encode_totals
from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, Posting, TraceQuery

DAY_S = 86_400
TRACED, TOKENS, LAYERS = 200, 20, 48
"""Requests that are traced, their tokens and layers; what the store has are copies of them."""
AT_ONCE = 100
"""Copies that are made by one statement."""


def fill(store: ClickHouseStore, ranks: int, days: int, now: float, layers: int, dense: bool) -> int:
    """A row every five minutes of each rank, of so many layers, for so many days; how many.

    The totals of a rank are the same bytes in each row. If rows are to be ``dense``, as many bytes by chance
    follow them, which no reader looks at: then rows of the server compress as little as those of real totals.
    """
    rng, epoch = np.random.default_rng(2), int((now - days * DAY_S) * 1e9)
    written = 0
    for rank in range(ranks):
        account = Account(max_epochs=4)
        sent = made(rank, ranks, 1, epoch, rng, layers)
        account.post(sent, at=now - days * DAY_S + 1)
        totals, key = encode_totals(account.state().totals), sent.producer.key
        began_ms = round((now - days * DAY_S) * 1000)
        chance = f"randomString({len(totals) * dense}, number)"
        count = days * DAY_S // 300
        values = (
            f"'bench', 'bench', {rank}, 0, 0, {epoch}, {began_ms // 1000 + 1} + 300 * number AS at, "
            f"at * 1000, number + 1, {began_ms}, concat(unhex('{totals.hex()}'), {chance}) "
            f"FROM numbers({count - 1})"
        )
        columns = ", ".join(history.COLUMNS)
        store._connection.maintain(f"INSERT INTO life ({columns}) SELECT {values}")
        store.save([Posting(key, began_ms / 1000, now - 60, account.state())])
        written += count - 1
    return written


@contextmanager
def sending(address: str, layers: int) -> Iterator[list[float]]:
    """A worker that sends twenty frames a second; gets how long each took to be acknowledged, seconds."""
    rng, took, ending = np.random.default_rng(3), list[float](), threading.Event()
    first = made(0, 1, 1, time.time_ns(), rng, layers)
    first = replace(first, producer=replace(first.producer, server="beside"))

    def send() -> None:
        seq = 1
        with httpx.Client(base_url=address, timeout=600) as client:
            while not ending.wait(0.05):
                body = encode_frame(replace(first, seq=seq))
                began = time.perf_counter()
                client.post(
                    "/v1/ingest", content=body, headers={"content-type": CONTENT_TYPE}
                ).raise_for_status()
                took.append(time.perf_counter() - began)
                seq += 1

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield took
    finally:
        ending.set()
        thread.join()


def told(name: str, took: Sequence[float]) -> None:
    """Print the quantiles of some durations."""
    cuts = statistics.quantiles(took, n=100, method="inclusive")
    print(
        f"{name}: p50 {cuts[49] * 1e3:.0f} ms, p99 {cuts[98] * 1e3:.0f} ms, longest {max(took) * 1e3:.0f} ms "
        f"({len(took)})",
        flush=True,
    )


def count(store: ClickHouseStore, table: str) -> int:
    """Rows of a table."""
    [(found,)] = store.connection.rows(f"SELECT toInt64(count()) FROM {table}", "i")  # noqa: S608 - of this file
    return int(found)


def past(ranks: int, days: int, layers: int, dense: bool, folder: Path | None) -> None:
    """Start, maintenance beside frames, and windows over all of it."""
    with server(folder) as (url, _):
        now = time.time()
        store = ClickHouseStore(url, Retention())
        rows = count(store, "life") or fill(store, ranks, days, now, layers, dense)
        print(f"{rows:,} rows of {ranks} ranks over {days} days, {layers} layers of 256 experts", flush=True)
        began = time.monotonic()
        with service(url) as (address, _):
            print(f"a service has started after {time.monotonic() - began:.1f} s", flush=True)
            with sending(address, layers) as took:
                time.sleep(5)
            told("acknowledged", took)
            for what in ("first", "second"):
                with sending(address, layers) as took:
                    began = time.monotonic()
                    store.maintain(now)
                    lasted = time.monotonic() - began
                    time.sleep(max(0.0, 3 - lasted))
                told(f"beside the {what} round of maintenance, {lasted:.2f} s", took)
            with httpx.Client(base_url=address, timeout=600) as client:
                for start in (days, days - 1, -(-days // 3), days):
                    began = time.monotonic()
                    query = {"start": f"-{start}d", "layer": 0, "server": "bench"}
                    client.get("/v1/histogram", params=query).raise_for_status()
                    print(f"/v1/histogram?start=-{start}d: {time.monotonic() - began:.2f} s", flush=True)
        began = time.monotonic()
        with service(url):
            print(f"a service has started again after {time.monotonic() - began:.1f} s", flush=True)
        store.close()


def copy(connection: Connection, table: str, columns: Sequence[str], times: int) -> None:
    """Copy the rows of a table, each time as those of other requests of a second later."""
    later_ms = {name: f"{name} + 1000 * k" for name in ("started_ms", "ended_ms", "stored_ms")}
    step = "k * 1000 * bitShiftLeft(toInt64(1), 21)"
    other = {
        **later_ms,
        "request_id": "concat(request_id, '-', toString(k))",
        "names": "arrayMap(name -> concat(name, '-', toString(k)), names)",
        "number": "number + 1000000 * k",
        "come": f"come + {step}",
        "earlier": f"earlier - {step}",
    }
    chosen = ", ".join(other.get(name, name) for name in columns)
    for first in range(1, times, AT_ONCE):
        copies = f"toInt64(arrayJoin(range({first}, {min(times, first + AT_ONCE)}))) AS k"
        connection.maintain(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {chosen} FROM "  # noqa: S608 - of this file
            f"(SELECT *, {copies} FROM {table} WHERE number < 1000000)"
        )


def fill_traces(store: ClickHouseStore, times: int) -> None:
    """So many copies of some requests."""
    layers = [MoeLayer(number, 256, 8) for number in range(LAYERS)]
    experts, _ = routing(TRACED * TOKENS, layers, np.random.default_rng(0))
    bodies, _, _ = encoded(arriving(experts, TRACED, 50), layers)
    store.save([ArrivedPart(decode_part(body), time.time()) for body in bodies])
    copy(store.connection, "routing", trace_rows.ROUTING_COLUMNS, times)
    copy(store.connection, "trace_part", trace_rows.PART_COLUMNS, times)


def traced(rows: int, folder: Path | None) -> None:
    """Questions by id and by expert among so many rows of routing."""
    times = max(1, rows // (TRACED * LAYERS))
    with server(folder) as (url, _):
        store = ClickHouseStore(url, Retention(), sleep=lambda _: None)
        if not count(store, "routing"):
            fill_traces(store, times)
        print(
            f"{count(store, 'routing'):,} rows of routing, {TRACED * times:,} requests of {TOKENS} tokens",
            flush=True,
        )
        rng = np.random.default_rng(1)

        def by_id() -> None:
            request, times_copied = f"r{rng.integers(TRACED)}", int(rng.integers(times))
            name = f"{request}-{times_copied}" if times_copied else request
            [found] = store.traced_requests(TraceQuery(name=name, limit=2))
            for worker in store.traces(found.number, None):
                _ = worker.positions, worker.experts

        def by_expert() -> None:
            query = TraceQuery(layer=int(rng.integers(LAYERS)), expert=int(rng.integers(256)), limit=100)
            assert len(store.traced_requests(query)) == query.limit

        def by_no_expert() -> None:
            assert not store.traced_requests(TraceQuery(layer=0, expert=999, limit=100))

        told("by request id, whole trace", seconds(by_id, 50))
        told("by layer and expert, the 100 newest", seconds(by_expert, 50))
        told("by an expert that no token took", seconds(by_no_expert, 3))
        store.close()


def seconds(ask: Callable[[], object], times: int) -> list[float]:
    """How long a question takes, some times, after it was asked once."""
    took = []
    for _ in range(times + 1):
        began = time.perf_counter()
        ask()
        took.append(time.perf_counter() - began)
    return took[1:]


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2, help="layers of a row of history")
    parser.add_argument("--days", type=int, default=0)
    parser.add_argument(
        "--dense", action="store_true", help="rows of history compress as little as real ones"
    )
    parser.add_argument("--rows", type=int, default=0, help="rows of routing")
    parser.add_argument("--folder", type=Path, help="of the database; one that is filled is taken as it is")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if options.days:
        past(options.ranks, options.days, options.layers, options.dense, options.folder)
    if options.rows:
        traced(options.rows, options.folder)


if __name__ == "__main__":
    main()
