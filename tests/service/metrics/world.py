"""Workers, services and a Prometheus in one thread: what counters show against what was computed."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from moescope.service.counts.refusals import RefusedError
from moescope.service.live.state import LiveState
from moescope.service.metrics.collector import RoutingCollector
from moescope.service.metrics.instruments import Instruments
from moescope.service.metrics.text.writer import Writer
from moescope.service.settings import MetricsLevel, Settings
from moescope.service.store.limits import Retention
from moescope.service.store.sqlite.backup import back_up, restore
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.frames import frame, halves, producer

RANKS = 3
COUNTERS = (
    "moescope_tokens_total",
    "moescope_phase_tokens_total",
    "moescope_ep_rank_slots_total",
    "moescope_layer_ep_rank_slots_total",
    "moescope_layer_dp_rank_slots_total",
    "moescope_layer_expert_slots_total",
)
"""Families of which a sum over all series is the tokens computed, or twice as many: slots of one layer."""


@dataclass
class Worker:
    """One DP rank; each of its tokens goes to both of its experts."""

    rank: int
    epoch: int
    tells: bool
    seq: int = 0
    acknowledged: int = 0
    tokens: int = 0
    service: int = 0


@dataclass
class Prometheus:
    """What `increase` over all time says of each family, by the rules of Prometheus.

    A series that falls began again at zero. With ``created`` also one whose zero lies after its last sample.
    """

    use_created: bool
    last: dict[str, tuple[float, float]] = field(default_factory=dict)
    increase: Counter[str] = field(default_factory=Counter)

    def take(self, instance: int, text: str, now: float) -> None:
        samples = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                series, _, number = line.rpartition(" ")
                samples[series] = float(number)
        for series, value in samples.items():
            name, _, labels = series.partition("{")
            if name not in COUNTERS:
                continue
            at, before = self.last.get(f"{instance} {series}", (None, value))
            zero = samples.get(f"{name.removesuffix('_total')}_created{{{labels}")
            began_again = self.use_created and zero is not None and (at is None or zero > at)
            fell = value < before
            self.increase[name] += value if fell or began_again else value - before
            self.last[f"{instance} {series}"] = (now, value)


class Service:
    """A service whose requests are calls."""

    def __init__(self, clock: Callable[[], float], folder: Path | None) -> None:
        settings = Settings(
            port=0, store="none" if folder is None else folder, metrics_level=MetricsLevel.LAYER_EXPERT
        )
        self.store = None if folder is None else SqliteStore(folder, Retention())
        self.state = LiveState(settings, clock, self.store)
        if self.store is not None:
            kept = list(self.store.accounts())
            self.state.restore(kept, self.store.unbroken)
            self.keep()
        self._registry = CollectorRegistry()
        self._registry.register(RoutingCollector(self.state, settings, Instruments()))

    def keep(self) -> None:
        """Write what has changed, as is done before a frame is acknowledged."""
        if self.store is not None:
            self.store.save(self.state.take_records())

    def scrape(self) -> str:
        """The exposition of OpenMetrics."""
        return Writer().write(self._registry.collect(), openmetrics=True).decode()

    def close(self) -> None:
        """End as after SIGTERM."""
        if self.store is not None:
            self.store.close()


class World:
    """Three workers, a service that has a store or not, a second one without, and their Prometheus.

    Attributes:
        computed: tokens of all workers over all time.
    """

    def __init__(self, folder: Path, keeps: bool, tells: bool = True) -> None:
        self.now = 1_700_000_000.0
        self.computed = 0
        self.boot = 0
        self.model = 2
        self._folder, self._keeps, self._tells = folder, keeps, tells
        self._copies = 0
        self.workers = [Worker(rank, self._epoch(), tells) for rank in range(RANKS)]
        self.services: list[Service | None] = [self._service(0), None]
        self.prometheus = [Prometheus(use_created) for use_created in (False, True)]

    def compute(self, rank: int, tokens: int) -> None:
        self.now += 1
        self.workers[rank].tokens += tokens
        self.computed += tokens

    def send(self, rank: int) -> None:
        """A worker sends a frame to its service, if that is there."""
        self.now += 0.25
        worker = self.workers[rank]
        service = self.services[worker.service]
        worker.seq += 1
        if service is None:
            return
        slots = [worker.tokens, worker.tokens, *[0] * (self.model - 2)]
        made = frame(
            {0: slots},
            who=producer(dp_rank=rank, ep_rank=rank % 2, dp_size=RANKS, ep_size=2),
            epoch=worker.epoch,
            seq=worker.seq,
            after_s=self.now - worker.epoch / 1e9,
            decode={0: slots},
            placement=halves(self.model, 1),
            acknowledged=worker.acknowledged if worker.tells else None,
        )
        try:
            service.state.ingest(made)
        except RefusedError:
            return
        service.keep()
        worker.acknowledged = worker.seq

    def start_worker(self, rank: int) -> None:
        self.now += 2
        self.workers[rank] = Worker(rank, self._epoch(), self._tells, service=self.workers[rank].service)

    def another_model(self, experts: int) -> None:
        """All workers start again with another shape; the former ones have been silent for long."""
        self.now += 60
        self.model = experts
        for rank in range(RANKS):
            self.start_worker(rank)

    def move(self, rank: int, service: int) -> None:
        """A worker's frames go to another service from now on."""
        if self.services[service] is None:
            self.services[service] = self._service(service)
        self.workers[rank].service = service

    def scrape(self) -> None:
        self.now += 0.25
        for instance, service in enumerate(self.services):
            if service is not None:
                text = service.scrape()
                for prometheus in self.prometheus:
                    prometheus.take(instance, text, self.now)
        self.check()

    def check(self) -> None:
        """No family has risen by more than was computed."""
        for prometheus in self.prometheus:
            for name in COUNTERS:
                most = self.computed * (2 if "slots" in name else 1)
                assert prometheus.increase[name] <= most, (name, prometheus.use_created)

    def stop(self, kill: bool = False) -> None:
        """End the first service; ``kill``: without its doing anything."""
        service = self.services[0]
        assert service is not None
        if kill and self._keeps:
            self._turn_to_copy()
        service.close()
        self.services[0] = None
        self.now += 3

    def start(self) -> None:
        self.services[0] = self._service(0)

    def wipe(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def back_up(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        back_up(self.folder, file)

    def restore(self, file: Path) -> None:
        restore(file, self.folder, force=True)

    def copy_to(self, folder: Path) -> None:
        """What a file system's own snapshot would have."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)

    def copy_back(self, folder: Path) -> None:
        self.wipe()
        shutil.copytree(folder, self.folder)

    @property
    def folder(self) -> Path:
        """The store's folder."""
        return self._folder / f"store-{self._copies}"

    @property
    def has_store(self) -> bool:
        """Whether there is a database now."""
        return (self.folder / FILE).exists()

    def _turn_to_copy(self) -> None:
        """Go on with what is in the files now: whatever the service that runs writes is not."""
        before = self.folder
        self._copies += 1
        shutil.copytree(before, self.folder)

    def _service(self, number: int) -> Service:
        return Service(lambda: self.now, self.folder if self._keeps and number == 0 else None)

    def _epoch(self) -> int:
        return int(self.now * 1e9)
