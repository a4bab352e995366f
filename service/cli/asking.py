"""Asking a service on behalf of a command, which ends where the service is not there or refuses."""

from __future__ import annotations

from typing import Any, Final

from moescope.service.cli.terminal import ending_at, working
from moescope.service.client.http import (
    Parameters,
    ServiceUnavailableError,
    get_bytes,
    get_json,
    get_json_lines,
    send_json,
)
from moescope.service.settings import SettingsError

_SILENT_S: Final = 60.0  # of a service that has others to answer first


def ask(url: str, path: str, params: Parameters, timeout_s: float = 10.0) -> dict[str, Any]:
    """The object at ``path`` of the service at ``url``; ``timeout_s`` is the longest silence, seconds."""
    with ending_at(ServiceUnavailableError, SettingsError):
        return get_json(url, path, params, timeout_s)


def ask_working(url: str, path: str, params: Parameters, timeout_s: float) -> dict[str, Any]:
    """The same for a question that may take long: a terminal is told that it is being asked."""
    with working(f"asking {url}"):
        return ask(url, path, params, timeout_s)


def ask_telling(url: str, path: str, params: Parameters, doing: str) -> dict[str, Any]:
    """The answer at ``path``, which may take long: a terminal is told how far it is.

    Args:
        url, path, params: of the question.
        doing: what the service does meanwhile, such as "reading requests".
    """
    with ending_at(ServiceUnavailableError, SettingsError), working(doing) as say_how_far:
        for line in get_json_lines(url, path, params, _SILENT_S):
            if "answer" in line:
                answer: dict[str, Any] = line["answer"]
                return answer
            if "problem" in line:
                raise ServiceUnavailableError(line["problem"]["detail"], line["problem"]["status"])
            progress = line["progress"]
            say_how_far(f"{doing}: {progress['read']} of {progress['total']}")
        raise ServiceUnavailableError(f"the answer of {url} ends too early: ask again, or see its log")


def download(url: str, path: str, params: Parameters, timeout_s: float) -> bytes:
    """What is at ``path``, for a file."""
    with ending_at(ServiceUnavailableError, SettingsError):
        return get_bytes(url, path, params, timeout_s)


def change(method: str, url: str, path: str, params: Parameters, body: dict[str, Any] | None) -> Any:
    """POST or DELETE; the answer, None if it is empty."""
    with ending_at(ServiceUnavailableError, SettingsError):
        return send_json(method, url, path, params, body)
