"""Pools and roles on the series of deployments, and how far replicas are apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moescope.service.settings import MetricsLevel
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, producer
from tests.service.metrics.scraped import push_both, series_of


def test_the_place_of_a_deployment_is_on_all_its_series_and_nowhere_else(
    start_service: Callable[..., Service],
) -> None:
    service = start_service(min_tokens=1, metrics_level=MetricsLevel.LAYER_EXPERT)
    push_both(service)
    service.push(
        frame(
            {0: [4, 0, 2, 0]},
            who=producer(server="b", pool='c"hat', role="decode", dp_size=2, ep_size=2),
            placement=halves(4, 1),
        )
    )
    of_b = 0
    for name, labels in series_of(service):
        known = dict(labels)
        expected = {}
        if known.get("server") == "b":
            expected, of_b = {"pool": 'c"hat', "role": "decode"}, of_b + 1
        assert {key: known[key] for key in ("pool", "role") if key in known} == expected, name
    assert of_b > 20


def test_replicas_of_a_pool_tell_how_far_their_routing_is_apart(service: Service) -> None:
    for server, counts in (("a", [100, 0, 0, 0]), ("b", [0, 50, 0, 50]), ("c", [0, 50, 0, 50])):
        service.push(frame({0: counts}, who=producer(server=server, pool="chat")))
    service.push(frame({0: [0, 0, 9, 0]}, who=producer(server="d", pool="chat", role="decode")))
    service.push(frame({0: [0, 0, 9, 0]}, who=producer(server="e")))
    series = series_of(service)
    found = {
        dict(labels)["server"]: value
        for (name, labels), value in series.items()
        if name == "moescope_replica_divergence_bits"
    }
    assert found == {"a": 1.0, "b": pytest.approx(0.3112781), "c": pytest.approx(0.3112781)}
    answer = service.get("/v1/pools/chat")["deployments"]
    medians = {item["server"]: item["divergence"]["median"] for item in answer}
    assert medians == {**found, "d": None}


def test_a_deployment_that_moves_to_another_pool_has_one_place(service: Service) -> None:
    service.push(frame({0: [4, 2]}, who=producer(pool="old")))
    service.clock.now += 1
    service.push(frame({0: [4, 2]}, who=producer(pool="new"), epoch=EPOCH + 100 * 10**9))
    pools = {value for _, labels in series_of(service) for key, value in labels if key == "pool"}
    assert pools == {"new"}
