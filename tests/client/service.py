"""A real service for tests of the client."""

from __future__ import annotations

from typing import Any

from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, encode_part
from tests.service.conftest import Service


def push(service: Service, *parts: Any) -> None:
    for made in parts:
        headers = {"content-type": TRACE_CONTENT_TYPE}
        answer = service.client.post("/v1/traces", content=encode_part(made), headers=headers)
        assert answer.status_code == 200, answer.text
