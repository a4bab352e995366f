"""Whatever is sent: an answer below 500 that names what is wrong, no harm to what is counted, bounded memory.

``python -m devkit.soak bad-input`` runs over ten thousand cases of it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from moescope.capture import wire
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE
from tests.service.api.fuzzing import (
    check,
    check_traces,
    check_what_is_answered,
    connection_to,
    fuzz,
    fuzz_queries,
    send,
)
from tests.service.conftest import Service
from tests.service.frames import frame, producer
from tests.service.hostile import BOMBS, good_frame, good_part

EXAMPLES = 150


def test_hostile_frames(start_service: Callable[..., Service]) -> None:
    service = start_service(max_frames_per_s=1e9, min_tokens=1)
    statuses = fuzz(service, "/v1/ingest", EXAMPLES)
    assert statuses[400] > EXAMPLES / 3
    assert statuses[200], "none was good enough: the generator finds nothing"
    check_what_is_answered(service)


def test_hostile_traces(start_service: Callable[..., Service], tmp_path: Any) -> None:
    service = start_service(max_frames_per_s=1e9, store=tmp_path)
    statuses = fuzz(service, "/v1/traces", EXAMPLES)
    assert statuses[400] > EXAMPLES / 3
    assert statuses[200]
    check_traces(service)
    check_what_is_answered(service)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": float("nan")}, "$.tokens"),
        ({"counts": b"\xff" * 128}, "counts: value 0 is negative"),
        ({"seq": 0}, "$.seq"),
        ({"epoch": 2**64 - 1}, "$.epoch"),
        ({"drops": {str(i): i for i in range(1_000_000)}}, "$.drops"),
        ({"layers": [[i, 8192, 1] for i in range(1025)]}, "$.layers"),
        ({"layers": [[0, 8192, 1]] * 2}, "layers: ids must rise strictly"),
        ({"layers": [[7, 8, 1]] * 1000}, "characters)"),
        ({"producer": {**good_frame()["producer"], "server": "x" * 10**6}}, "$.producer.server"),
    ],
)
def test_what_is_wrong_is_named(service: Service, change: dict[str, Any], words: str) -> None:
    answer = service.push_bytes(msgspec.msgpack.encode({**good_frame(), **change}))
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["detail"]


def test_a_refused_frame_leaves_no_trace_and_a_late_one_no_harm(service: Service) -> None:
    service.push(frame({0: [10, 10]}, seq=7))
    before = service.get("/v1/histogram")["layers"]
    for seq, counts, status in ((8, [9, 10], 409), (3, [1, 1], 200), (7, [99, 99], 200), (9, [10, 9], 409)):
        assert service.push(frame({0: counts}, seq=seq)).status_code == status
    assert service.push(frame({0: [10, 10, 0]}, seq=10)).status_code == 409
    assert service.get("/v1/histogram")["layers"] == before


def test_labels_by_the_thousand_stay_within_the_cap(start_service: Callable[..., Service]) -> None:
    service = start_service(max_producers=300, metrics_max_series=2000)
    refused = 0
    for number in range(330):
        who = producer(server=f"fleet-{number}\n\"'\\", model="m" * 256, dp_rank=0)
        drops = {f"reason-{number}-{i}": 1 for i in range(60)}
        refused += service.push(frame({0: [1, 1]}, who=who, drops=drops)).status_code == 503
    assert refused == 30
    text = service.client.get("/metrics").text
    assert len([line for line in text.splitlines() if line and line[0] != "#"]) <= 2000 + 100
    check_what_is_answered(service)


def test_hostile_queries(start_service: Callable[..., Service], tmp_path: Any) -> None:
    service = start_service(store=tmp_path, min_tokens=1)
    service.push_bytes(msgspec.msgpack.encode(good_frame()))
    body = msgspec.msgpack.encode(good_part())
    service.client.post("/v1/traces", content=body, headers={"content-type": TRACE_CONTENT_TYPE})
    statuses = fuzz_queries(service, EXAMPLES)
    assert statuses[200] > 10


@pytest.mark.parametrize("number", [2**53, 2**63 - 1, 2**63, 2**64, 10**30, -1])
def test_numbers_that_are_too_large(
    start_service: Callable[..., Service], tmp_path: Any, number: int
) -> None:
    """Every integer that a route takes, at the ends of what computers call integers."""
    service = start_service(store=tmp_path)
    tried = 0
    for path, item in service.get("/openapi.json")["paths"].items():
        for parameter in item.get("get", {}).get("parameters", []):
            if parameter["in"] == "query" and "integer" in json.dumps(parameter["schema"]):
                params = {"layer": 0, "expert": 0, parameter["name"]: number}
                answer = service.client.get(re.sub(r"\{[^}]*\}", "x", path), params=params)
                assert answer.status_code < 500, (path, params)
                tried += 1
    assert tried > 15


def test_many_senders_of_nonsense_at_once_leave_the_service_answering(service: Service) -> None:
    def run() -> None:
        with connection_to(service) as connection:
            for body in BOMBS * 3:
                check(*send(connection, "/v1/ingest", wire.CONTENT_TYPE, body), body)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert service.push(frame({0: [1, 1]})).status_code == 200
    for thread in threads:
        thread.join()
    assert service.client.get("/metrics").status_code == 200
