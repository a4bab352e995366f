"""A real Prometheus over restarts of the service: its rates are the fleet's, whatever became of the store."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import yaml

from devkit.processes import free_port
from moescope.capture import wire
from moescope.service.store.sqlite.backup import back_up, restore
from tests.prometheus import running_prometheus
from tests.service.conftest import Clock, Service, open_service
from tests.service.frames import frame, halves, producer

RANKS = 2
PER_S = 50
PAST = 10**8
"""Tokens that each rank had computed before the test."""
SCRAPES = "500ms"
SCRAPE_S = 0.5


class Fleet:
    """Ranks in their second life that have computed for long, and go on at a steady rate.

    Frames leave four times a second; the first ones are late ones of the former life.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._began = time.monotonic()
        self._epoch = time.time_ns() - 10**13
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Fleet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        acknowledged = [1] * RANKS  # a service that is gone has had them
        seq = 1
        with httpx.Client(timeout=5) as client:
            while not self._stop.wait(0.25):
                seq += 1
                life = self._epoch - 10**13 if seq == 2 else self._epoch
                for rank in range(RANKS):
                    body = wire.encode_frame(self._frame(rank, life, seq, acknowledged[rank]))
                    try:
                        answer = client.post(
                            f"{self.url}/v1/ingest", content=body, headers={"content-type": wire.CONTENT_TYPE}
                        )
                    except httpx.TransportError:
                        continue
                    if answer.status_code == 200:
                        acknowledged[rank] = seq

    def _frame(self, rank: int, epoch: int, seq: int, acknowledged: int) -> wire.Frame:
        tokens = PAST * (rank + 1) + int((time.monotonic() - self._began) * PER_S)
        return frame(
            {0: [tokens, tokens]},
            who=producer(dp_rank=rank, dp_size=RANKS, ep_rank=rank, ep_size=RANKS),
            epoch=epoch,
            seq=seq,
            after_s=(time.time_ns() - epoch) / 1e9,
            placement=halves(2, 1),
            acknowledged=acknowledged,
        )


class Deployment:
    """A service at an address that stays, and its fleet."""

    def __init__(self, folder: Path, store: bool) -> None:
        self.port = free_port()
        self.folder = folder
        self._store = folder / "store" if store else None
        self._end: Callable[[], None] = lambda: None
        self.start()

    def start(self) -> Service:
        store = "none" if self._store is None else self._store
        service, self._end = open_service(Clock(), time.time, port=self.port, store=store, min_tokens=1)
        return service

    def stop(self) -> None:
        self._end()
        self._end = lambda: None

    @property
    def store(self) -> Path:
        assert self._store is not None
        return self._store


def wipe(it: Deployment) -> None:
    shutil.rmtree(it.store)


def put_backup_back(it: Deployment) -> None:
    restore(it.folder / "backup.sqlite", it.store, force=True)


def nothing(_: Deployment) -> None:
    """The service only starts again."""


VARIANTS: dict[str, tuple[bool, Callable[[Deployment], None]]] = {
    "memory": (False, nothing),
    "store": (True, nothing),
    "wiped": (True, wipe),
    "restored": (True, put_backup_back),
}


@contextmanager
def running(folder: Path) -> Iterator[dict[str, Deployment]]:
    with ExitStack() as stack:
        found = {}
        for name, (store, _) in VARIANTS.items():
            (folder / name).mkdir()
            found[name] = Deployment(folder / name, store)
            stack.callback(found[name].stop)
            stack.enter_context(Fleet(f"http://127.0.0.1:{found[name].port}"))
        yield found


def test_rates_over_a_restart_are_those_of_the_fleet(tmp_path: Path) -> None:
    with running(tmp_path) as deployments:
        jobs = [
            {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{item.port}"]}]}
            for name, item in deployments.items()
        ]
        every = {"scrape_interval": SCRAPES, "scrape_timeout": SCRAPES}
        config = {"global": every, "scrape_configs": jobs}
        with running_prometheus(yaml.safe_dump(config), tmp_path) as prometheus:
            wait_for_samples(prometheus, 6)
            back_up(deployments["restored"].store, tmp_path / "restored" / "backup.sqlite")
            wait_for_samples(prometheus, 12)
            began = time.monotonic()
            for name, (_, act) in VARIANTS.items():
                deployments[name].stop()
                act(deployments[name])
                deployments[name].start()
            away = time.monotonic() - began
            wait_for_samples(prometheus, 12)
            for family in ("moescope_tokens_total", "moescope_ep_rank_slots_total"):
                each = 2 if "slots" in family else 1
                rises = query(prometheus, f"sum by (job) (increase({family}[5m]))")
                last, first = (
                    query(prometheus, f"{end} by (job) ({end}_over_time(timestamp({family})[5m:{SCRAPES}]))")
                    for end in ("max", "min")
                )
                for name in VARIANTS:
                    true = RANKS * PER_S * each * (last[name] - first[name])
                    # A scrape at either end, each up to a scrape and a frame from where it is thought to be.
                    a_scrape = RANKS * PER_S * each * 6 * SCRAPE_S
                    lost = 0.0 if name == "store" else RANKS * PER_S * each * (away + 2 * SCRAPE_S)
                    assert true - a_scrape - lost < rises[name] < true + a_scrape, (name, family, away)


def wait_for_samples(prometheus: httpx.Client, more: int) -> None:
    """Wait until every job has so many scrapes more that worked."""
    before = query(prometheus, "sum by (job) (sum_over_time(up[10m]))")
    deadline = time.monotonic() + 120
    while any(
        query(prometheus, "sum by (job) (sum_over_time(up[10m]))").get(name, 0) < before.get(name, 0) + more
        for name in VARIANTS
    ):
        assert time.monotonic() < deadline, "Prometheus does not scrape"
        time.sleep(0.2)


def query(prometheus: httpx.Client, text: str) -> dict[str, float]:
    answer = prometheus.get("/api/v1/query", params={"query": text}).json()
    assert answer["status"] == "success", answer
    return {item["metric"]["job"]: float(item["value"][1]) for item in answer["data"]["result"]}
