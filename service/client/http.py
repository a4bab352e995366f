"""Asking a running service over the standard library's HTTP."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any
from urllib.parse import urlencode, urlsplit

from moescope.service.client.settings import ClientSettings, client_settings
from moescope.service.settings import SettingsError


class ServiceUnavailableError(Exception):
    """The service can't be asked, or refuses; the message says what to do."""


def get_json(url: str, path: str, params: dict[str, str | None], timeout_s: float = 10.0) -> dict[str, Any]:
    """GET an object from ``path`` of the service at ``url``; parameters that are None are left out.

    Raises:
        ServiceUnavailableError: no service there, or it answers with a problem.
    """
    try:
        body = json.loads(get_bytes(url, path, params, timeout_s))
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ServiceUnavailableError(f"what answers at {url} is not a moescope service")
    return body


def get_bytes(url: str, path: str, params: dict[str, str | None], timeout_s: float = 10.0) -> bytes:
    """GET ``path`` of the service at ``url``, whatever it is; parameters that are None are left out.

    Raises:
        ServiceUnavailableError: no service there, or it answers with a problem.
    """
    return _exchange("GET", url, path, params, None, {}, timeout_s)


def send_json(method: str, url: str, path: str, params: dict[str, str | None], body: Any) -> Any:
    """Change something at the service: POST or DELETE; the answer, None if empty.

    Raises:
        ServiceUnavailableError: no service there, or it answers with a problem.
    """
    headers = {"Content-Type": "application/json"}
    content = None if body is None else json.dumps(body).encode()
    answer = _exchange(method, url, path, params, content, headers, 60.0)
    return json.loads(answer) if answer else None


def _exchange(
    method: str,
    url: str,
    path: str,
    params: dict[str, str | None],
    body: bytes | None,
    headers: dict[str, str],
    timeout_s: float,
) -> bytes:
    query = urlencode({name: value for name, value in params.items() if value is not None})
    try:
        settings = client_settings()
        headers = {**settings.headers(), **headers}
        connection = connection_to(url, settings, timeout_s)
        base = urlsplit(url).path.rstrip("/")
    except SettingsError as error:
        raise ServiceUnavailableError(str(error)) from error
    try:
        connection.request(
            method,
            f"{base}{path}{('&' if '?' in path else '?') if query else ''}{query}",
            body,
            headers,
        )
        response = connection.getresponse()
        answer = response.read()
    except ssl.SSLCertVerificationError as error:
        raise ServiceUnavailableError(
            f"the certificate of {url} is not trusted ({error.verify_message}): name its authority's PEM "
            "file in MOESCOPE_CA_FILE, and the host in --url as the certificate does"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise ServiceUnavailableError(
            f"no service answers at {url} ({error}): start one with `moescope serve`, or give --url"
        ) from error
    finally:
        connection.close()
    if not 200 <= response.status < 300:
        raise ServiceUnavailableError(_detail(answer) or f"{url} answers {response.status}")
    return answer


def connection_to(url: str, settings: ClientSettings, timeout_s: float) -> http.client.HTTPConnection:
    """A connection to the service at ``url``, which opens with the first request.

    Raises:
        ServiceUnavailableError: it is no address of one.
        SettingsError: the settings' files can't be used.
    """
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:  # such as a port that is no number
        scheme, host, port = "", None, None
    if scheme not in ("http", "https") or not host:
        raise ServiceUnavailableError(f"{url} is not an http address; give one such as http://127.0.0.1:9890")
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=settings.context())


def _detail(body: bytes) -> str | None:
    """What a problem document says, if it is one."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return None
