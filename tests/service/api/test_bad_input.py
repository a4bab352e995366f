"""Whatever is sent: an answer below 500 that names what is wrong, no harm to what is counted, bounded memory.

``python -m devkit.soak bad-input`` runs over ten thousand cases of it.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from moescope.capture import wire
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE
from tests.service.conftest import Service
from tests.service.frames import frame, producer
from tests.service.hostile import BOMBS, NASTY, bodies, good_frame, good_part

EXAMPLES = 150
NAMED = re.compile(
    r"^(not a (frame|trace) of wire version 1: .+|the (frame|trace) has wire version .+|"
    r"[a-z_]+(\.[a-z_]+)*(\[\d+\])*(\.\w+)*: .+)$",
    re.DOTALL,
)
ALLOWED = {200, 400, 409, 413, 415, 429}


@contextmanager
def connection_to(service: Service) -> Iterator[http.client.HTTPConnection]:
    parts = urlsplit(service.url)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)) as connection:
        yield connection


def send(
    connection: http.client.HTTPConnection, path: str, kind: str, body: bytes
) -> tuple[int, dict[str, Any]]:
    connection.request("POST", path, body, {"content-type": kind})
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.will_close:
        connection.close()
    return response.status, answer


def check(status: int, answer: dict[str, Any], body: bytes) -> None:
    assert status in ALLOWED, (status, answer, body[:300])
    if status in (400, 409):
        assert NAMED.match(answer["detail"]), (answer["detail"], body[:300])
        assert len(answer["detail"]) < 5000


def fuzz(service: Service, path: str, examples: int) -> Counter[int]:
    """Send so many bodies; the statuses of the answers."""
    good, kind = {
        "/v1/ingest": (good_frame, wire.CONTENT_TYPE),
        "/v1/traces": (good_part, TRACE_CONTENT_TYPE),
    }[path]
    statuses: Counter[int] = Counter()
    with connection_to(service) as connection:

        @hypothesis_settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(bodies(good))
        def one(body: bytes) -> None:
            status, answer = send(connection, path, kind, body)
            statuses[status] += 1
            check(status, answer, body)

        one()
        for body in BOMBS:
            status, answer = send(connection, path, kind, body)
            statuses[status] += 1
            check(status, answer, body)
    return statuses


def check_what_is_answered(service: Service) -> None:
    """Everything that can be asked is answered, and /metrics can be read, with numbers in it only."""
    families = list(text_string_to_metric_families(service.client.get("/metrics").text))
    assert families
    for family in families:
        for sample in family.samples:
            assert math.isfinite(sample.value), sample
    for deployment in service.get("/v1/ranks")["deployments"][:20]:
        names = {"server": deployment["server"], "model": deployment["model"]}
        for path in ("/v1/histogram", "/v1/balance", "/v1/view", "/v1/trend"):
            assert service.client.get(path, params=names).status_code < 500, (path, names)
    assert service.client.get("/healthz").status_code == 200


def check_traces(service: Service) -> None:
    """Whatever was kept of hostile parts can be read, in every format."""
    for found in service.get("/v1/traces", limit=1000)["traces"]:
        path = f"/v1/traces/{quote(found['request_id'], safe='')}"
        for kind in ("json", "npz", "raw", "parquet"):
            assert service.client.get(f"{path}.{kind}").status_code < 500, (path, kind)


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


QUERY = ("server", "model", "start", "end", "step", "layer", "dp_rank", "expert", "limit", "cursor", "window")
WORDS = st.one_of(
    st.sampled_from(
        [
            *map(str, NASTY[:14]),
            "-5m",
            "now",
            "1e999",
            "-1e999s",
            "NaN",
            "9" * 400,
            "\x00",
            "٣",
            "-0.0000001s",
            "%",
        ]
    ),
    st.text(max_size=12),
)


def fuzz_queries(service: Service, examples: int) -> Counter[int]:
    """Ask every route that can be asked for with so many query strings each; the statuses of the answers."""
    document = service.get("/openapi.json")
    paths = sorted(path for path, item in document["paths"].items() if "get" in item and path != "/v1/live")
    assert len(paths) > 15
    statuses: Counter[int] = Counter()

    @hypothesis_settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(paths), st.dictionaries(st.sampled_from(QUERY), WORDS, max_size=4), WORDS)
    def one(path: str, params: dict[str, str], name: str) -> None:
        part = "".join(f"%{byte:02x}" for byte in name.encode("utf-8", "replace"))
        answer = service.client.get(re.sub(r"\{[^}]*\}", part or "x", path), params=params)
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (path, params, answer.text)
        if answer.status_code >= 400:
            assert answer.json()["detail"]

    one()
    return statuses


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
