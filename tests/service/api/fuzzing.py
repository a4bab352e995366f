"""Hostile bodies and queries for a service, and what must be true of its answers. The soak uses it too."""

from __future__ import annotations

import http.client
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from moescope.capture import wire
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE
from tests.service.conftest import Service
from tests.service.hostile import BOMBS, NASTY, bodies, good_frame, good_part

NAMED = re.compile(
    r"^(not a (frame|trace) of wire version 1: .+|the (frame|trace) has wire version .+|"
    r"[a-z_]+(\.[a-z_]+)*(\[\d+\])*(\.\w+)*: .+)$",
    re.DOTALL,
)
ALLOWED = {200, 400, 409, 413, 415, 429}


@contextmanager
def connection_to(service: Service) -> Iterator[http.client.HTTPConnection]:
    """A connection that many requests share."""
    parts = urlsplit(service.url)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)) as connection:
        yield connection


def send(
    connection: http.client.HTTPConnection, path: str, kind: str, body: bytes
) -> tuple[int, dict[str, Any]]:
    """Post a body; the answer's status and JSON."""
    connection.request("POST", path, body, {"content-type": kind})
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.will_close:
        connection.close()
    return response.status, answer


def check(status: int, answer: dict[str, Any], body: bytes) -> None:
    """An answer is one of those allowed, and a refusal names what is wrong."""
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
        name = quote(found["request_id"], safe="")
        for path in (f"/v1/traces/{name}", f"/v1/requests/{name}/routing"):
            for kind in ("json", "npz", "raw", "parquet"):
                assert service.client.get(f"{path}.{kind}").status_code < 500, (path, kind)


UNKNOWN = ("window", "Layer", "", "x" * 300, "layer[]", "\x00")
"""Names of parameters that no route takes."""
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
    takes = {
        path: [
            item["name"]
            for item in document["paths"][path]["get"].get("parameters", [])
            if item["in"] == "query"
        ]
        for path in paths
    }
    statuses: Counter[int] = Counter()

    @hypothesis_settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(paths), st.data(), WORDS)
    def one(path: str, data: st.DataObject, name: str) -> None:
        # A name that isn't known ends the question, so most questions have known ones only.
        known = st.sampled_from(takes[path] or UNKNOWN)
        names = data.draw(st.sampled_from([known, known, known, known | st.sampled_from(UNKNOWN)]))
        params = data.draw(st.dictionaries(names, WORDS, max_size=4))
        part = "".join(f"%{byte:02x}" for byte in name.encode("utf-8", "replace"))
        answer = service.client.get(re.sub(r"\{[^}]*\}", part or "x", path), params=params)
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (path, params, answer.text)
        if answer.status_code >= 400:
            assert answer.json()["detail"]

    one()
    return statuses
