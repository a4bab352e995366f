"""One kept-alive HTTP connection to the service, with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Protocol
from urllib.parse import urlsplit

from moescope.capture.delivery.reply import TimedResponse
from moescope.capture.protocol import CONTENT_TYPE, INGEST_PATH
from moescope.capture.settings.access import NO_ACCESS, Access

TIMEOUT = 5.0
MAX_REPLY = 64 * 1024
_TOO_LARGE = (
    "; that is not the service's answer but a proxy's, which doesn't pass {} bytes on: raise its limit "
    "to the service's, which is max_body_mib, 32 by default (nginx: client_max_body_size 32m)"
)


class DeliveryError(Exception):
    """A frame or a part of a trace was not delivered; the message says why.

    Attributes:
        kind: the status that the service answered with, or the name of the error that came instead.
        permanent: whether sending it again soon would be in vain.
    """

    def __init__(self, message: str, kind: str, permanent: bool) -> None:
        super().__init__(message)
        self.kind = kind
        self.permanent = permanent


class Transport(Protocol):
    """What senders need of a connection to the service (see `HttpTransport`)."""

    def post(self, body: bytes) -> None:
        """Deliver one frame or part of a trace.

        Raises:
            DeliveryError: it was not delivered.
        """

    def close(self) -> None:
        """Let go of the connection."""


class HttpTransport:
    """Posts frames or parts of traces. Not for several threads at once.

    Args:
        endpoint: base URL of the service.
        token: bearer token, or None.
        access: files. The token is read again when the service refuses it; certificates are read for each
            HTTPS connection.
        timeout: seconds for each of connecting, sending and receiving the whole answer.
        path, content_type: of the requests.
    """

    def __init__(
        self,
        endpoint: str,
        token: str | None,
        timeout: float = TIMEOUT,
        path: str = INGEST_PATH,
        content_type: str = CONTENT_TYPE,
        access: Access = NO_ACCESS,
    ) -> None:
        parts = urlsplit(endpoint)
        self._endpoint = endpoint
        self._access = access
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        # Always given: without a port http.client would take the last part of an IPv6 address for one.
        self._port = parts.port or (443 if self._secure else 80)
        self._path = parts.path + path
        self._timeout = timeout
        self._headers = {"Content-Type": content_type}
        self._set_token(token)
        self._connection: http.client.HTTPConnection | None = None

    def post(self, body: bytes) -> None:
        """Deliver one frame or part of a trace.

        The service or a proxy closes a connection over which nothing was sent for a while. If a connection
        that was used before has ended, the body is sent once more at once, over a new one. It may arrive
        twice, which is harmless.

        Raises:
            DeliveryError: the service can't be reached, or refuses.
        """
        used_before = self._connection is not None
        try:
            try:
                response, reply = self._exchange(body)
            except ConnectionError:  # http.client.RemoteDisconnected is one
                if not used_before:
                    raise
                self.close()
                response, reply = self._exchange(body)
        except Exception as error:  # such as UnicodeError of a host's name: whatever it is, it is tried again
            self.close()
            raise DeliveryError(
                f"the service at {self._endpoint} can't be reached: {error!r}{self._advice(error)}",
                type(error).__name__,
                permanent=False,
            ) from error
        if not 200 <= response.status < 300:
            if response.status == 401:
                self._set_token(self._access.token_now())
            permanent = 400 <= response.status < 500 and response.status not in (408, 425, 429)
            too_large = response.status == 413 and not _is_problem_of_ours(reply)
            raise DeliveryError(
                f"the service at {self._endpoint} answered {response.status}: {_explanation(reply)}"
                f"{_TOO_LARGE.format(len(body)) if too_large else ''}",
                str(response.status),
                permanent,
            )
        if not _is_receipt(reply):
            raise DeliveryError(
                f"what answers at {self._endpoint} is no moescope service: {response.status} with "
                f"{_explanation(reply)!r}",
                "not_a_service",
                permanent=True,
            )

    def _exchange(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        """Send a request and read its answer, over the connection if there is one."""
        if self._connection is None:
            self._connection = self._connect()
        if self._connection.sock is not None:
            self._connection.sock.settimeout(self._timeout)  # reading the last answer has reduced it
        self._connection.request("POST", self._path, body, self._headers)
        response = self._connection.getresponse()
        reply = response.read(MAX_REPLY)
        if response.will_close or not response.isclosed():
            self.close()
        return response, reply

    def _advice(self, error: Exception) -> str:
        """What may be wrong with TLS where the connection ends without an answer."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return "; name the authority of its certificate in MOESCOPE_CA_FILE, and the host as it does"
        if not isinstance(error, ConnectionError | ssl.SSLError) or isinstance(error, ConnectionRefusedError):
            return ""
        if self._secure:
            return (
                "; if it asks for certificates (tls_client_ca), MOESCOPE_CERT_FILE needs a valid one of its "
                "authority"
            )
        return "; if it speaks HTTPS, MOESCOPE_ENDPOINT needs https://"

    def _set_token(self, token: str | None) -> None:
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def _connect(self) -> http.client.HTTPConnection:
        """A connection that isn't open yet. Certificates are read anew: they are renewed while vLLM runs."""
        connection: http.client.HTTPConnection
        if self._secure:
            context = self._access.context()
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout, context=context
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        connection.response_class = TimedResponse
        return connection

    def close(self) -> None:
        """Close the connection; the next frame opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _is_receipt(reply: bytes) -> bool:
    """Whether a service may have answered this: a JSON object, or nothing.

    Anything else, such as a web server's page, must not pass for a frame that was taken.
    """
    return not reply or isinstance(_parsed(reply), dict)


def _is_problem_of_ours(reply: bytes) -> bool:
    """Whether a service refused, not something that stands before it, such as a proxy."""
    problem = _parsed(reply)
    return isinstance(problem, dict) and str(problem.get("type")).startswith("urn:moescope:")


def _explanation(reply: bytes) -> str:
    """The detail of a problem document, or the first of whatever was answered."""
    problem = _parsed(reply)
    detail = problem.get("detail") or problem.get("title") if isinstance(problem, dict) else None
    said = str(detail or reply[:200].decode("utf-8", "replace"))[:500]
    # It goes into vLLM's log, and a terminal obeys control characters.
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in said)


def _parsed(reply: bytes) -> object:
    """The JSON of an answer; None if it is none, or nested too deeply."""
    try:
        return json.loads(reply)
    except (ValueError, RecursionError):
        return None
