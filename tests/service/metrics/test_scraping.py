"""A scrape whose parts fail or break the catalogue, and scrapes at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from moescope.service.api.limits.shared_runs import SharedRuns
from moescope.service.live.state import LiveState
from moescope.service.metrics.collector import RoutingCollector
from moescope.service.metrics.instruments import Instruments
from moescope.service.metrics.parts.ranks import Group
from moescope.service.metrics.samples import Sample, Table
from moescope.service.settings import MetricsLevel, Settings
from tests.service.conftest import Clock, Service
from tests.service.frames import frame
from tests.service.metrics.scraped import push_both, series_of, text_of
from tests.waiting import wait_until


def test_a_failing_part_never_fails_the_scrape(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_group: Group) -> list[Sample]:
        raise RuntimeError("broken")

    monkeypatch.setattr("moescope.service.metrics.parts.ranks.capture_health", fail)
    settings = Settings()
    state = LiveState(settings, clock)
    state.ingest(frame({0: [1, 1]}))
    text = text_of(state, settings)
    assert 'moescope_scrape_part_success{part="capture"} 0.0' in text
    assert 'moescope_scrape_part_success{part="ranks"} 1.0' in text
    assert 'moescope_tokens_total{dp_rank="0",model="tiny",server="prod"} 1.0' in text
    assert "moescope_snapshot_age_seconds{" not in text


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Sample("moescope_no_such_thing", (), 1), "there is no family moescope_no_such_thing"),
        (Sample("moescope_steps_total", ("a", "b"), 1), "moescope_steps_total has 3 labels, not 2"),
        (
            Table("moescope_steps_total", ("a", "b"), (("c", ("d",)),), np.ones(1)),
            "moescope_steps_total has 3 labels, not 4",
        ),
    ],
)
def test_a_sample_that_breaks_the_catalogue_is_told(
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: Sample | Table,
    words: str,
) -> None:
    right = Sample("moescope_steps_total", ("a", "b", "c"), 7)
    monkeypatch.setattr("moescope.service.metrics.parts.ranks.capture_health", lambda _: [wrong, right])
    settings = Settings()
    state = LiveState(settings, clock)
    state.ingest(frame({0: [1, 1]}))
    registry = CollectorRegistry()
    registry.register(RoutingCollector(state, settings, Instruments()))
    for _ in range(2):
        text = generate_latest(registry).decode()
        assert 'moescope_scrape_part_success{part="capture"} 0.0' in text
        assert 'moescope_scrape_part_success{part="ranks"} 1.0' in text
        assert 'moescope_steps_total{dp_rank="c",model="b",server="a"} 7.0' in text
        assert "moescope_no_such_thing" not in text
    [line] = [record.getMessage() for record in caplog.records]  # not one for each scrape
    assert line.endswith(words)


def test_a_sample_that_the_level_hides_is_no_fault(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = Sample("moescope_layer_expert_slots_total", ("a", "b", "0", "0"), 1)
    monkeypatch.setattr("moescope.service.metrics.parts.ranks.capture_health", lambda _: [hidden])
    settings = Settings(metrics_level=MetricsLevel.RANK)
    state = LiveState(settings, clock)
    state.ingest(frame({0: [1, 1]}))
    text = text_of(state, settings)
    assert 'moescope_scrape_part_success{part="capture"} 1.0' in text
    assert "moescope_layer_expert_slots_total" not in text


def test_scrapes_at_once_share_runs(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a scraper that gives up and comes again, runs would pile up."""
    push_both(service)
    gather, call, asked = RoutingCollector._gather, SharedRuns.__call__, []

    async def asking(runs: SharedRuns[Any, Any], form: Any) -> Any:
        asked.append(form)
        return await call(runs, form)

    def slow(collector: RoutingCollector, *places: Any) -> Any:
        wait_until(lambda: len(asked) >= 20, "not all have come")
        return gather(collector, *places)

    monkeypatch.setattr(SharedRuns, "__call__", asking)
    monkeypatch.setattr(RoutingCollector, "_gather", slow)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: service.client.get("/metrics"), range(20)))
    assert all(answer.text.count("moescope_tokens_total{") == 2 for answer in answers)
    made = series_of(service)["moescope_scrape_duration_seconds_count", ()]
    assert made == 2, "the first one's, and that of all who came during it"
