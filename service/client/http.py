"""Asking a running service over the standard library's HTTP."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import SplitResult, urlencode, urlsplit

from moescope.service.client.settings import DEFAULT_URL, ClientSettings, client_settings

_Value = str | int | float | Sequence[int] | None
Parameters = Mapping[str, _Value]
"""Parameters of a query. One that is None is left out, a list gives its name once a number."""


class ServiceUnavailableError(Exception):
    """The service can't be asked, or refuses; the message says what to do.

    Attributes:
        status: HTTP status of its answer; None: no moescope service answered.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


def get_json(url: str, path: str, params: Parameters, timeout_s: float = 10.0) -> dict[str, Any]:
    """GET an object from ``path`` of the service at ``url``.

    Raises:
        ServiceUnavailableError: no service there, or it answers with a problem.
        SettingsError: a setting of the client can't be used.
    """
    body = _parsed(get_bytes(url, path, params, timeout_s))
    if not isinstance(body, dict):
        raise ServiceUnavailableError(f"what answers at {url} is not a moescope service")
    return body


def get_bytes(url: str, path: str, params: Parameters, timeout_s: float = 10.0) -> bytes:
    """GET the body at ``path`` of the service at ``url``, whatever its type.

    Raises:
        ServiceUnavailableError: no service there, or it answers with a problem.
        SettingsError: a setting of the client can't be used.
    """
    return _exchange("GET", url, path, params, b"", None, timeout_s)


def get_json_lines(url: str, path: str, params: Parameters, timeout_s: float) -> Iterator[dict[str, Any]]:
    """GET lines of JSON, each an object, as they come from ``path`` of the service at ``url``.

    Args:
        url, path, params: of the request.
        timeout_s: longest time between two lines, seconds.

    Raises:
        ServiceUnavailableError: no service there, or it answers with a problem or with something else.
        SettingsError: a setting of the client can't be used.
    """
    with closing(Connection(url, client_settings(), timeout_s)) as connection:
        for line in connection.lines(_target(path, params), "application/x-ndjson"):
            found = _parsed(line)
            if not isinstance(found, dict):
                raise ServiceUnavailableError(f"what answers at {url} is not a moescope service")
            yield found


def send_json(method: str, url: str, path: str, params: Parameters, body: Any) -> Any:
    """Change something at the service by POST or DELETE; the answer, None if it is empty.

    Raises:
        ServiceUnavailableError: no service there, or it answers with a problem.
        SettingsError: a setting of the client can't be used.
    """
    content = b"" if body is None else json.dumps(body).encode()
    answer = _exchange(method, url, path, params, content, "application/json", 60.0)
    if not answer:
        return None
    parsed = _parsed(answer)
    if parsed is None:
        raise ServiceUnavailableError(f"what answers at {url} is not a moescope service")
    return parsed


class Connection:
    """A connection to a service, which opens with the first request and stays open between them.

    Args:
        url: address of the service.
        settings: token and certificates.
        timeout_s: longest time that the service may be silent, seconds.

    Raises:
        ServiceUnavailableError: ``url`` is no address of a service.
        SettingsError: the files of the certificates can't be used.
    """

    def __init__(self, url: str, settings: ClientSettings, timeout_s: float) -> None:
        try:
            parts = address(url)
        except ValueError as error:
            raise ServiceUnavailableError(str(error)) from None
        self._url = url
        self._settings = settings
        self._prefix = parts.path.rstrip("/")
        host = parts.hostname or ""
        # A port is always given: without one http.client would take the end of an IPv6 address for it.
        if parts.scheme == "http":
            self._connection = http.client.HTTPConnection(host, parts.port or 80, timeout=timeout_s)
        else:
            self._connection = http.client.HTTPSConnection(
                host, parts.port or 443, timeout=timeout_s, context=settings.context()
            )

    def exchange(self, method: str, target: str, body: bytes = b"", content_type: str | None = None) -> bytes:
        """Send one request with the token; the body of the answer.

        Args:
            method: GET, POST or DELETE.
            target: path below the service's address, with its query.
            body: empty: the request has none.
            content_type: of the body.

        Raises:
            ServiceUnavailableError: no service there, or it refuses; the next exchange connects anew.
            SettingsError: the token's file can't be used.
        """
        headers = self._settings.headers()
        if content_type is not None:
            headers["Content-Type"] = content_type
        try:
            self._connection.request(method, self._prefix + target, body or None, headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            self._connection.close()
            raise ServiceUnavailableError(_why_silent(self._url, error)) from error
        if not 200 <= response.status < 300:
            raise _refusal(self._url, response.status, answer)
        return answer

    def lines(self, target: str, accept: str) -> Iterator[bytes]:
        """GET an answer line by line, as the lines come; see :meth:`exchange`.

        Args:
            target: path below the service's address, with its query.
            accept: the media type wanted.
        """
        try:
            self._connection.request(
                "GET", self._prefix + target, None, {**self._settings.headers(), "Accept": accept}
            )
            response = self._connection.getresponse()
            if not 200 <= response.status < 300:
                answer = response.read()
                raise _refusal(self._url, response.status, answer)
            yield from response
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            self._connection.close()
            raise ServiceUnavailableError(_why_silent(self._url, error)) from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def address(url: str) -> SplitResult:
    """The parts of a service's address: ``http`` or ``https``, a host, and at will a port and a path.

    Raises:
        ValueError: it is no such address.
    """
    message = f"{url} is not an http address; give one such as {DEFAULT_URL}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:  # such as a port that is no number
        raise ValueError(message) from error
    printable = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not printable:
        raise ValueError(message)
    if parts.username is not None:
        raise ValueError(
            f"{parts.hostname}: no user or password goes into the address: use MOESCOPE_TOKEN_FILE"
        )
    if parts.query or parts.fragment or url[-1] in "?#":
        raise ValueError(f"{url}: no query (?) or fragment (#) goes into the address, only a path")
    return parts


def _exchange(
    method: str,
    url: str,
    path: str,
    params: Parameters,
    body: bytes,
    content_type: str | None,
    timeout_s: float,
) -> bytes:
    """One request on a connection of its own."""
    with closing(Connection(url, client_settings(), timeout_s)) as connection:
        return connection.exchange(method, _target(path, params), body, content_type)


def _target(path: str, params: Parameters) -> str:
    query = urlencode({name: value for name, value in params.items() if value is not None}, doseq=True)
    return f"{path}{'?' if query else ''}{query}"


def _why_silent(url: str, error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {url} is not trusted ({error.verify_message}): name its authority's PEM "
            "file in MOESCOPE_CA_FILE, and the host in --url as the certificate does"
        )
    why = str(error) or type(error).__name__
    return (
        f"no service answers at {url} ({why}): start one with `moescope serve`, or name another with --url "
        "or MOESCOPE_URL"
    )


def _refusal(url: str, status: int, answer: bytes) -> ServiceUnavailableError:
    return ServiceUnavailableError(_detail(answer) or f"{url} answers {status}", status)


def _detail(body: bytes) -> str | None:
    """What a problem document says, if it is one."""
    problem = _parsed(body)
    return str(problem["detail"]) if isinstance(problem, dict) and "detail" in problem else None


def _parsed(body: bytes) -> Any:
    """The JSON of an answer; None if it is none, or nested too deeply."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
