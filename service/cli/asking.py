"""Asking a service on behalf of a command, which ends where the service is not there or refuses."""

from __future__ import annotations

from typing import Any

from moescope.service.cli.terminal import ending_at
from moescope.service.client.http import (
    Parameters,
    ServiceUnavailableError,
    get_bytes,
    get_json,
    send_json,
)


def ask(url: str, path: str, params: Parameters, timeout_s: float = 10.0) -> dict[str, Any]:
    """The object at ``path`` of the service at ``url``; ``timeout_s`` is the longest silence, seconds."""
    with ending_at(ServiceUnavailableError):
        return get_json(url, path, params, timeout_s)


def download(url: str, path: str, params: Parameters, timeout_s: float) -> bytes:
    """What is at ``path``, for a file."""
    with ending_at(ServiceUnavailableError):
        return get_bytes(url, path, params, timeout_s)


def change(method: str, url: str, path: str, params: Parameters, body: dict[str, Any] | None) -> Any:
    """POST or DELETE; the answer, None if it is empty."""
    with ending_at(ServiceUnavailableError):
        return send_json(method, url, path, params, body)
