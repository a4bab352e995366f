"""The prometheus-client collector: runs the parts, sorts their samples into the catalogue's families.

One failing part never fails the scrape: its families are absent, ``moescope_scrape_part_success`` says so,
and the log says why.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from moescope.capture.wire import WIRE_MAJOR, WIRE_MINOR
from moescope.service.assessment import assess
from moescope.service.metrics import parts
from moescope.service.metrics.catalogue import CATALOGUE, Family, shown
from moescope.service.metrics.parts import Group, Sample
from moescope.service.settings import MetricsLevel, Settings
from moescope.service.state import LiveState
from moescope.service.window import merge

Part = Callable[[list[Group]], Iterable[Sample]]

_log = logging.getLogger(__name__)


class RoutingCollector(Collector):
    """Collects from a :class:`LiveState` at each scrape."""

    def __init__(self, state: LiveState, settings: Settings) -> None:
        self._state = state
        self._settings = settings
        self._parts: dict[str, Part] = {
            "ranks": _each(parts.rank_counters),
            "ep_ranks": _each(parts.ep_counters),
            "balance": self._balance,
            "capture": _each(parts.capture_health),
            "producers": _each(parts.producer_counters),
            "service": self._service,
        }
        if settings.metrics_level is not MetricsLevel.RANK:
            self._parts["dp_ranks"] = _each(parts.dp_counters)
        if settings.metrics_level is MetricsLevel.LAYER_EXPERT:
            self._parts["experts"] = _each(parts.expert_counters)

    def describe(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """The families, without samples, so that registering collects nothing."""
        return [_empty(family) for family in self._families()]

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """All families that have a sample."""
        began = time.perf_counter()
        families = {family.name: _empty(family) for family in self._families()}
        for name, labels, value in self._samples():
            if name in families:
                families[name].add_metric(labels, value)
        families["moescope_scrape_duration_seconds"].add_metric((), time.perf_counter() - began)
        yield from (family for family in families.values() if family.samples)

    def _families(self) -> list[Family]:
        return [family for family in CATALOGUE.values() if shown(family, self._settings.metrics_level)]

    def _samples(self) -> Iterator[Sample]:
        found: list[Group] | None = None
        for name, part in self._parts.items():
            try:
                found = parts.groups(self._state) if found is None else found
                samples = list(part(found))
            except Exception:  # noqa: BLE001 whatever it is, the other parts must be seen
                _log.exception("the part %s of the metrics can't be collected", name)
                yield "moescope_scrape_part_success", (name,), 0
                continue
            yield from samples
            yield "moescope_scrape_part_success", (name,), 1

    def _balance(self, found: list[Group]) -> Iterator[Sample]:
        yield "moescope_window_seconds", (), self._settings.window_s
        start = self._state.now() - self._settings.window_s
        for group in found:
            window = merge(self._state.spans(group.deployment, start, None))
            yield from parts.balance_gauges(group.deployment, assess(window, self._settings.min_tokens))

    def _service(self, _found: list[Group]) -> Iterator[Sample]:
        for (result, reason), count in sorted(self._state.frames().items()):
            yield "moescope_frames_total", (result, reason), count
        snapshots, nbytes = self._state.history_size()
        yield "moescope_history_snapshots", (), snapshots
        yield "moescope_history_bytes", (), nbytes
        yield "moescope_build_info", (version("moescope"), f"{WIRE_MAJOR}.{WIRE_MINOR}"), 1


def _each(part: Callable[[Group], Iterable[Sample]]) -> Part:
    """A part of one deployment as a part of them all."""

    def all_groups(found: list[Group]) -> Iterator[Sample]:
        for group in found:
            yield from part(group)

    return all_groups


def _empty(family: Family) -> CounterMetricFamily | GaugeMetricFamily:
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    return make(family.name, family.help, labels=family.labels, unit=family.unit)
