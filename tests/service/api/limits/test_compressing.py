"""Answers in JSON are compressed for who takes that, and are the same answers."""

from __future__ import annotations

import gzip

import httpx

from moescope.service.api.limits.compressing import LEAST_BYTES
from tests.service.conftest import Service
from tests.service.frames import frame

LARGE, SMALL, STREAM = "/openapi.json", "/v1/verdict", "/v1/live"


def _raw(service: Service, path: str, encoding: str) -> tuple[httpx.Headers, bytes]:
    with service.client.stream("GET", path, headers={"Accept-Encoding": encoding}) as response:
        return response.headers, b"".join(response.iter_raw())


def test_a_large_answer_is_compressed_for_who_takes_that(service: Service) -> None:
    plain_headers, plain = _raw(service, LARGE, "identity")
    headers, packed = _raw(service, LARGE, "br, gzip")
    assert headers["content-encoding"] == "gzip"
    assert headers["content-length"] == str(len(packed))
    assert gzip.decompress(packed) == plain
    assert len(packed) < len(plain) / 4
    assert "content-encoding" not in plain_headers
    assert plain_headers["vary"] == headers["vary"] == "Accept-Encoding"
    assert headers["content-type"] == plain_headers["content-type"] == "application/json"
    refused, body = _raw(service, LARGE, "gzip;q=0")
    assert ("content-encoding" in refused, body) == (False, plain)


def test_a_view_of_many_layers_is_compressed_and_head_says_so(service: Service) -> None:
    service.push(frame({layer: [100, 50, 50, 0] for layer in range(30)}))
    headers, packed = _raw(service, "/v1/view", "gzip")
    assert headers["content-encoding"] == "gzip"
    assert b'"layer":29' in gzip.decompress(packed)
    head = service.client.head("/v1/view", headers={"Accept-Encoding": "gzip"}).headers
    assert (head["content-encoding"], head["vary"]) == ("gzip", "Accept-Encoding")
    assert service.client.get("/healthz").status_code == 200, "the connection is still of use"


def test_small_answers_streams_and_what_is_compressed_already_are_left_alone(service: Service) -> None:
    headers, body = _raw(service, SMALL, "gzip")
    assert len(body) < LEAST_BYTES
    assert "content-encoding" not in headers
    with service.client.stream("GET", STREAM, headers={"Accept-Encoding": "gzip"}) as response:
        assert "content-encoding" not in response.headers
        assert next(response.iter_raw()).startswith(b"retry:")
    metrics, text = _raw(service, "/metrics", "gzip")
    assert metrics["content-encoding"] == "gzip"
    assert gzip.decompress(text).startswith(b"# ")
