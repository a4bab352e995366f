"""The prometheus-client collector: runs the parts, sorts their samples into the catalogue's families.

One failing part never fails the scrape: ``moescope_scrape_part_success`` is 0 for it, and the log says why.
If the part raised, its families are absent. If it gave samples that don't fit the catalogue, only these are.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from moescope.capture.wire import WIRE_MAJOR, WIRE_MINOR
from moescope.service.drift.watch import DriftWatch
from moescope.service.live.pools import Replica
from moescope.service.live.producers import Deployment, resized_at
from moescope.service.live.state import LiveState
from moescope.service.logs import Throttle
from moescope.service.measures.balance import GAUGES
from moescope.service.metrics.catalogue import CATALOGUE
from moescope.service.metrics.families import Gathered, fault_of, metric_of, shape_of
from moescope.service.metrics.instruments import Instruments
from moescope.service.metrics.limit import admit
from moescope.service.metrics.parts import ranks, steps
from moescope.service.metrics.parts.drift import drift_gauges
from moescope.service.metrics.parts.memo import Made, made_of
from moescope.service.metrics.parts.pools import labels_of, replica_gauges
from moescope.service.metrics.parts.ranks import Found, Group
from moescope.service.metrics.samples import Pairs, Sample, Table
from moescope.service.settings import MetricsLevel, Settings
from moescope.service.windows.assessment import assess
from moescope.service.windows.replica_window import LayerRouting, routing_of
from moescope.service.windows.shared_sums import SharedSums
from moescope.service.windows.window import merge_spans

Part = Callable[[list[Group]], Iterable[Found]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """What is asked of the store at each scrape.

    Attributes:
        trouble: why frames can't be kept now; None: they can.
        unreadable: how often something was met there that can't be read, by what it is.
    """

    trouble: Callable[[], str | None]
    unreadable: Callable[[], Mapping[str, int]]


class RoutingCollector(Collector):
    """Collects from a :class:`LiveState` and the service's own instruments at each scrape."""

    def __init__(
        self,
        state: LiveState,
        settings: Settings,
        instruments: Instruments,
        drift: DriftWatch | None = None,
        store: StoreHealth | None = None,
    ) -> None:
        self._store = store
        self._state = state
        self._settings = settings
        self._instruments = instruments
        self._drift = drift
        self._lock = threading.Lock()
        self._overflow: Counter[str] = Counter()
        self._known: dict[Deployment, Made] = {}
        self._windows: dict[Deployment, Made] = {}
        self._sums: dict[Deployment, SharedSums] = {}
        self._throttle = Throttle(state.now)
        self._families = [family for family in CATALOGUE.values() if family.shown(settings.metrics_level)]
        self._parts: dict[str, Part] = {
            # First, so that its window is freed before the others make the totals, which are as large.
            "balance": self._balance,
            "ranks": _each("ranks", ranks.rank_counters, counters=True),
            "phases": _each("phases", steps.phase_counters, counters=True),
            "drafts": _each("drafts", steps.draft_counters, counters=True),
            "ep_ranks": _each("ep_ranks", ranks.ep_counters, counters=True),
            "stragglers": self._stragglers,
            "drift": self._drifts,
            "capture": _both(_each("", ranks.snapshot_ages), _each("capture", ranks.capture_health)),
            "producers": _each("producers", ranks.producer_counters),
            "traces": _each("traces", ranks.trace_counters),
            "service": self._service,
            "history": self._history,
        }
        if settings.metrics_level is not MetricsLevel.RANK:
            self._parts["dp_ranks"] = _each("dp_ranks", ranks.dp_counters, counters=True)
        self._shows_experts = settings.metrics_level is MetricsLevel.LAYER_EXPERT
        if self._shows_experts:
            self._parts["experts"] = _each("experts", ranks.expert_counters, counters=True)

    def describe(self) -> Iterable[Metric]:
        """The families, without samples, so that registering collects nothing."""
        return [metric_of(family, Gathered(), {}) for family in self._families]

    def collect(self) -> Iterator[Metric]:
        """All families that have a sample and fit under the limit."""
        places: dict[Deployment, Pairs] = {}
        gathered = self._gather(places)
        for family in self._families:
            found = gathered.get(family.name)
            if found is not None:
                yield metric_of(family, found, places)

    def _gather(self, places: dict[Deployment, Pairs]) -> dict[str, Gathered]:
        gathered = {family.name: Gathered() for family in self._families}
        for item in self._samples(places):
            if item.family not in gathered:
                continue  # its family is not shown at this level
            if isinstance(item, Table):
                gathered[item.family].tables.append(item)
            else:
                gathered[item.family].samples.append(item)
        gathered["moescope_ingest_duration_seconds"].histogram = self._instruments.ingest
        gathered["moescope_scrape_duration_seconds"].histogram = self._instruments.scrape
        return self._within_limit({name: found for name, found in gathered.items() if len(found)})

    def _within_limit(self, gathered: dict[str, Gathered]) -> dict[str, Gathered]:
        """The families that fit, and those that tell how many series are shown, may be, and were left out."""
        limit = self._settings.metrics_max_series
        admission = admit({name: len(found) for name, found in gathered.items()}, limit)
        with self._lock:
            new = admission.overflow.keys() - self._overflow.keys()
            self._overflow.update(admission.overflow)
            overflow = {family.name: self._overflow[family.name] for family in self._families}
        if new:
            _log.warning(
                "%s left out of /metrics: over %d series in all; raise metrics_max_series, or choose a "
                "coarser metrics_level",
                ", ".join(sorted(new)),
                limit,
            )
        kept = {name: found for name, found in gathered.items() if name in admission.families}
        begun = self._state.begun
        told = [
            Sample("moescope_overflowed_series_total", (name,), lost, begun)
            for name, lost in overflow.items()
        ]
        kept["moescope_overflowed_series_total"] = Gathered(told)
        for name, value in (
            ("moescope_exposed_series", admission.series + len(told) + 2),
            ("moescope_max_exposed_series", limit),
        ):
            kept[name] = Gathered([Sample(name, (), value)])
        return kept

    def _samples(self, places: dict[Deployment, Pairs]) -> Iterator[Found]:
        """All samples; the labels of deployments are noted in ``places``."""
        found: list[Group] | None = None
        for name, part in self._parts.items():
            try:
                if found is None:
                    found = self._groups()
                    told = ((group.deployment, labels_of(group.replica)) for group in found)
                    places.update((deployment, pairs) for deployment, pairs in told if pairs)
                samples = list(part(found))
            except Exception:  # noqa: BLE001 whatever it is, the other parts must be seen
                if self._throttle.allows(name):
                    _log.exception("the part %s of /metrics can't be collected (logged once a minute)", name)
                yield Sample("moescope_scrape_part_success", (name,), 0)
                continue
            fitting = self._fitting(name, samples)
            yield from fitting
            yield Sample("moescope_scrape_part_success", (name,), len(fitting) == len(samples))
        for sums in self._sums.values():
            sums.drop_ends()

    def _groups(self) -> list[Group]:
        """All deployments; those of which nothing but the age changed have what was made of them before."""
        known, self._known = self._known, {}
        before, self._sums = self._sums, {}
        found = []
        for group in ranks.groups(self._state):
            made = made_of(known.get(group.deployment), group.spans)
            self._known[group.deployment] = made
            by_part = made.parts.setdefault(group.counters, {})
            sums = self._sums[group.deployment] = before.pop(group.deployment, None) or SharedSums()
            found.append(replace(group, made=by_part, experts=self._shows_experts, sums=sums))
        return found

    def _fitting(self, name: str, samples: list[Found]) -> list[Found]:
        """The samples of a part that the catalogue allows; the log says what is wrong with the others."""
        shapes = [shape_of(item) for item in samples]
        wrong = {shape: fault for shape in dict.fromkeys(shapes) if (fault := fault_of(*shape)) is not None}
        if wrong and self._throttle.allows(name):
            _log.error(
                "the part %s of /metrics breaks the catalogue, which is a bug: please report it "
                "(logged once a minute): %s",
                name,
                "; ".join(wrong.values()),
            )
        if not wrong:
            return samples
        return [item for item, shape in zip(samples, shapes, strict=True) if shape not in wrong]

    def _balance(self, found: list[Group]) -> Iterator[Found]:
        yield Sample("moescope_window_seconds", (), self._settings.window_s)
        start = self._state.now() - self._settings.window_s
        routings: list[tuple[Replica, dict[int, LayerRouting]]] = []
        known, self._windows = self._windows, {}
        for group in found:
            # What was counted at other sizes has no balance with what was counted at these.
            begin = max(start, resized_at(group.producers))
            spans = self._state.spans(group.deployment, begin, None)
            made = made_of(known.get(group.deployment), spans)
            self._windows[group.deployment] = made
            by_part = made.parts.setdefault(True, {})
            gauges = by_part.get("balance")
            if gauges is None or group.replica.pool:
                assessed = assess(merge_spans(spans, sums=group.sums), self._settings.min_tokens, GAUGES)
                if group.replica.pool:
                    routings.append((group.replica, routing_of(assessed.window)))
                gauges = list(ranks.balance_gauges(group.deployment, assessed))
                if assessed.window.conflict is None:
                    gauges += steps.straggler_gauge(group.deployment, spans)
                by_part["balance"] = gauges
            yield from gauges
        yield from replica_gauges(routings)

    def _stragglers(self, found: list[Group]) -> Iterator[Found]:
        return steps.straggler_samples(self._state, found)

    def _drifts(self, found: list[Group]) -> Iterator[Found]:
        if self._drift is None:
            return
        for group in found:
            yield from drift_gauges(group.deployment, self._drift.latest(group.deployment))

    def _service(self, _found: list[Group]) -> Iterator[Found]:
        for labels, count in sorted(self._state.frames().items()):
            yield Sample("moescope_frames_total", labels, count, self._state.begun)
        snapshots, nbytes = self._state.history_size()
        yield Sample("moescope_ingest_bytes_total", (), self._instruments.ingest_bytes, self._state.begun)
        yield Sample("moescope_history_snapshots", (), snapshots)
        yield Sample("moescope_history_bytes", (), nbytes)
        if self._store is not None:
            yield Sample("moescope_store_ready", (), self._store.trouble() is None)
            for kind, count in sorted(self._store.unreadable().items()):
                yield Sample("moescope_store_unreadable_total", (kind,), count, self._state.begun)
        yield Sample("moescope_build_info", (version("moescope"), f"{WIRE_MAJOR}.{WIRE_MINOR}"), 1)

    def _history(self, found: list[Group]) -> Iterator[Found]:
        now, reaches = self._state.now(), self._state.reaches()
        for group in found:
            span = max(0.0, now - reaches.get(group.deployment, now))
            yield Sample("moescope_history_span_seconds", group.deployment, span)
            if span < min(self._settings.window_s, now - group.created) and self._throttle.allows("span"):
                _log.warning(
                    "windows of %s (%s) reach back %.0f s only, where the gauges want %.0f s: the memory for "
                    "past snapshots is too small. Set history_mib to %d, or keep a store (logged once a "
                    "minute)",
                    *group.deployment,
                    span,
                    self._settings.window_s,
                    math.ceil(self._state.history_wanted() / 2**20),
                )


def _each(name: str, part: Callable[[Group], Iterable[Found]], counters: bool = False) -> Part:
    """A part of one deployment as a part of them all.

    Args:
        name: what it made is kept under; empty: it changes by itself, with time, so nothing is kept.
        part: the part of one deployment.
        counters: it has nothing but counters.
    """

    def of(group: Group) -> Iterable[Found]:
        if not name:
            return part(group)
        made = group.made.get(name)
        if made is None:
            made = group.made[name] = list(part(group))
        return made

    def all_groups(found: list[Group]) -> Iterator[Found]:
        for group in found:
            if group.counters or not counters:
                yield from of(group)

    return all_groups


def _both(one: Part, other: Part) -> Part:
    """Two parts as one."""
    return lambda found: chain(one(found), other(found))
