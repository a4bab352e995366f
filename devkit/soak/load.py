"""Load: many ranks that send, with scrapes and queries beside them."""

from __future__ import annotations

import http.client
import threading
import time
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import httpx
import numpy as np

from devkit.soak.gate import Options, Outcome
from devkit.soak.serving import Meter, Serving, percentile, serving
from moescope.capture import wire

SENDERS: Final = 16
TOP_K: Final = 8
TOKENS_A_FRAME: Final = 500
SCRAPE_S: Final = 5.0
QUERY_S: Final = 2.0
QUERIES: Final = (
    "/v1/view?start=-60s&parts=counts",
    "/v1/balance?start=-60s",
    "/v1/ranks",
    "/v1/histogram?start=-60s",
    "/v1/trend?points=60",
)


@dataclass(frozen=True, slots=True)
class Fleet:
    """``ranks`` DP ranks, each an EP rank too, of ``layers`` x ``experts``, each sending ``hertz`` frames."""

    ranks: int
    layers: int
    experts: int
    hertz: float


class Rank:
    """One producer, whose totals after frame n are n times its share: cheap to make, easy to check."""

    def __init__(self, fleet: Fleet, rank: int, epoch: int) -> None:
        rng = np.random.default_rng(rank)
        popular = rng.dirichlet(np.full(fleet.experts, 2.0), fleet.layers)
        slots = TOKENS_A_FRAME * TOP_K
        self._share = np.floor(popular * slots).astype(np.int64)
        self._share[:, 0] += slots - self._share.sum(axis=1)
        self._rows = np.full(fleet.layers, TOKENS_A_FRAME, np.int64)
        self._layers = [wire.MoeLayer(3 + i, fleet.experts, TOP_K) for i in range(fleet.layers)]
        self._producer = wire.Producer(
            server="soak",
            model="soak/moe",
            dp_rank=rank,
            dp_size=fleet.ranks,
            ep_rank=rank,
            ep_size=fleet.ranks,
        )
        owners = np.arange(fleet.experts) * fleet.ranks // fleet.experts
        table = wire.PlacementTable(wire.pack_ids(np.arange(fleet.experts)), wire.pack_ids(owners))
        self._placement = wire.Placement(version=1, tables=[table], table_of_layer=[0] * fleet.layers)
        self._epoch = epoch
        self.sent = 0
        self.acknowledged = 0

    def next(self) -> bytes:
        """The next frame."""
        self.sent = seq = self.sent + 1
        return wire.encode_frame(
            wire.Frame(
                wire=(wire.WIRE_MAJOR, wire.WIRE_MINOR),
                producer=self._producer,
                epoch=self._epoch,
                seq=seq,
                captured_at_ns=time.time_ns(),
                layers=self._layers,
                counts=wire.pack_counts(self._share * seq),
                rows=wire.pack_counts(self._rows * seq),
                tokens=TOKENS_A_FRAME * seq,
                steps=seq,
                placement=self._placement,
            )
        )


@dataclass
class Tally:
    """What all threads measured; times in seconds."""

    ingest: list[float] = field(default_factory=list)
    scrape: list[float] = field(default_factory=list)
    query: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    late: float = 0.0


def drive(service: Serving, fleet: Fleet, seconds: float) -> tuple[Tally, list[Rank]]:
    """Send, scrape and ask for some seconds."""
    ranks = [Rank(fleet, rank, time.time_ns()) for rank in range(fleet.ranks)]
    tally, stop = Tally(), threading.Event()
    senders = min(SENDERS, fleet.ranks)
    threads = [
        threading.Thread(target=_send, args=(service, ranks[i::senders], fleet, i / senders, tally, stop))
        for i in range(senders)
    ]
    threads += [
        threading.Thread(target=_ask, args=(service, ("/metrics",), SCRAPE_S, tally.scrape, tally, stop)),
        threading.Thread(target=_ask, args=(service, QUERIES, QUERY_S, tally.query, tally, stop)),
    ]
    for thread in threads:
        thread.start()
    try:
        stop.wait(seconds)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    return tally, ranks


def _send(
    service: Serving, ranks: list[Rank], fleet: Fleet, phase: float, tally: Tally, stop: threading.Event
) -> None:
    parts = urlsplit(service.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    period = 1 / (fleet.hertz * len(ranks))
    due = time.monotonic() + phase * period
    turn = 0
    while not stop.wait(max(0.0, due - time.monotonic())):
        tally.late = max(tally.late, time.monotonic() - due)
        due += period
        rank = ranks[turn % len(ranks)]
        turn += 1
        body = rank.next()
        began = time.perf_counter()
        try:
            connection.request("POST", "/v1/ingest", body, {"Content-Type": wire.CONTENT_TYPE})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            tally.failures.append(repr(error))
            connection.close()
            continue
        tally.ingest.append(time.perf_counter() - began)
        if response.status == 200:
            rank.acknowledged = rank.sent
        else:
            tally.failures.append(answer.decode("utf-8", "replace")[:300])
    connection.close()


def _ask(
    service: Serving,
    paths: tuple[str, ...],
    period: float,
    times: list[float],
    tally: Tally,
    stop: threading.Event,
) -> None:
    turn = 0
    with httpx.Client(base_url=service.url, timeout=60) as client:
        while not stop.wait(period):
            began = time.perf_counter()
            answer = client.get(paths[turn % len(paths)])
            turn += 1
            times.append(time.perf_counter() - began)
            if answer.status_code != 200 and "no-deployments" not in answer.text:
                tally.failures.append(f"{answer.request.url}: {answer.text[:300]}")


def lost(service: Serving, ranks: list[Rank]) -> int:
    """Frames that were acknowledged and are not in the totals, or are there more than once."""
    balance = httpx.get(f"{service.url}/v1/balance", timeout=60).json()
    tokens = dict(zip(balance["dp_ranks"], balance["dp_tokens"]["loads"], strict=True))
    frames = [abs(tokens.get(n, 0) / TOKENS_A_FRAME - rank.acknowledged) for n, rank in enumerate(ranks)]
    slots = sum(rank.acknowledged for rank in ranks) * TOKENS_A_FRAME * TOP_K
    layers = httpx.get(f"{service.url}/v1/histogram", timeout=60).json()["layers"]
    return round(sum(frames)) + sum(sum(layer["counts"]) != slots for layer in layers)


def load(options: Options) -> Outcome:
    """16 ranks, two frames a second each, 64 layers x 256 experts, with a store."""
    fleet = Fleet(16, 64, 256, 2)
    store = options.folder / "load-store"
    with serving(options.folder, store=store) as service:
        meter = Meter(service.process.pid)
        tally, ranks = drive(service, fleet, options.seconds)
        meter.stop()
        gone = lost(service, ranks)
    ingest, scrape = percentile(tally.ingest, 99), percentile(tally.scrape, 99)
    slope = meter.slope(0.4)
    steady = options.seconds >= 300
    passed = not gone and not tally.failures and ingest <= 50 and scrape <= 250 and (not steady or slope <= 1)
    growth = f"memory {meter.rss_mib[-1]:.0f} MiB, {slope:+.2f} MiB/min in the last 60 % of the time"
    return Outcome(
        passed,
        f"{options.seconds:g} s: {len(tally.ingest)} frames, {gone} lost, {len(tally.failures)} "
        f"refused; ingest p50 "
        f"{percentile(tally.ingest, 50):.1f} p99 {ingest:.1f} ms, scrape p50 "
        f"{percentile(tally.scrape, 50):.0f} p99 "
        f"{scrape:.0f} ms, queries p99 {percentile(tally.query, 99):.0f} ms; {meter.cores:.2f} "
        f"cores, {growth}"
        f"{'' if steady else ' (too short to judge)'}{_first(tally)}",
    )


def large(options: Options) -> Outcome:
    """256 ranks at 1 Hz, 58 layers x 256 experts, in memory; then fewer and more ranks, to compare costs."""
    rows = []
    passed = True
    for ranks in (8, 64, 256) if options.quick else (8, 32, 64, 128, 256, 512):
        fleet = Fleet(ranks, 58, 256, 1)
        with serving(options.folder) as service:
            meter = Meter(service.process.pid)
            tally, made = drive(service, fleet, 15 if options.quick else 30)
            meter.stop()
            gone = lost(service, made)
        sent = len(tally.ingest) / (meter.at[-1] - meter.at[0]) / ranks
        if ranks == 256:
            passed = not gone and not tally.failures and meter.cores <= 0.5 and max(meter.rss_mib) <= 500
        rows.append(
            f"{ranks} ranks: {meter.cores:.2f} cores, {max(meter.rss_mib):.0f} MiB, ingest p99 "
            f"{percentile(tally.ingest, 99):.0f} ms, scrape p99 {percentile(tally.scrape, 99):.0f} ms, "
            f"{sent:.2f} frames/s a rank, {gone} lost{_first(tally)}"
        )
    return Outcome(passed, "; ".join(rows))


def _first(tally: Tally) -> str:
    return f"; first failure: {tally.failures[0]}" if tally.failures else ""
