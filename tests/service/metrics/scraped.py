"""A deployment of two DP ranks, and what a scrape says of it."""

from __future__ import annotations

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from moescope.capture import wire
from moescope.service.live.state import LiveState
from moescope.service.metrics.collector import RoutingCollector
from moescope.service.metrics.instruments import Instruments
from moescope.service.settings import Settings
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer

LOADS = np.array([[[200, 100], [150, 50]]])
"""Slots of one step's tokens, by layer and EP rank."""

PART_SUCCESS = "moescope_scrape_part_success"

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def rank(dp_rank: int) -> wire.Producer:
    return producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=2, ep_size=2)


def push_both(service: Service, scale: int = 1, seq: int = 1) -> None:
    for dp_rank in (0, 1):
        counts = {0: [100 * scale, 100 * scale, 60 * scale, 40 * scale], 3: [150 * scale, 0, 50 * scale, 0]}
        made = frame(
            counts,
            who=rank(dp_rank),
            seq=seq,
            rows=[150 * scale, 150 * scale],  # layer 3 masks slots
            placement=halves(4, 2, version=4),
            uncovered=[wire.UncoveredLayer(5, "monolithic kernel")],
            idle_steps=7,
            accepted_drafts=11 * scale,
            rejected_drafts=5 * scale,
            drops={"steps_lost": 2},
            traces={"captured": 5, "delivered": 3, "dropped_buffer_full": 1},
            step_loads=wire.pack_step_loads(seq - 1, seq, np.array([seq - 1]), LOADS, 4),
        )
        assert service.push(made).status_code == 200


def series_of(service: Service, accept: str = "text/plain") -> Series:
    response = service.client.get("/metrics", headers={"accept": accept})
    parse = parse_openmetrics if "openmetrics" in accept else parse_text
    samples = [sample for family in parse(response.text) for sample in family.samples]
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples), "a series occurs twice"
    failed = [labels for (name, labels), value in found.items() if name == PART_SUCCESS and not value]
    assert not failed, "these parts raised, or break the catalogue: the log says why"
    return found


def value_of(series: Series, name: str, **labels: str) -> float | None:
    deployment = {} if "server" in labels else {"server": "prod", "model": "tiny"}
    return series.get((name, tuple(sorted({**deployment, **labels}.items()))))


def names_of(series: Series) -> set[str]:
    return {name for name, _ in series}


def text_of(state: LiveState, settings: Settings) -> str:
    registry = CollectorRegistry()
    registry.register(RoutingCollector(state, settings, Instruments()))
    return generate_latest(registry).decode()
