"""Asking a running service, with the standard library only."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlencode, urlsplit


class ServiceUnavailableError(Exception):
    """The service can't be asked, or refuses; the message says what to do."""


def get_json(url: str, path: str, params: dict[str, str | None], timeout_s: float = 10.0) -> dict[str, Any]:
    """GET ``path`` of the service at ``url``; parameters that are None are left out.

    Raises:
        ServiceUnavailableError: no service there, or it answers with a problem.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ServiceUnavailableError(f"{url} is not an http address; give one such as http://127.0.0.1:9890")
    query = urlencode({name: value for name, value in params.items() if value is not None})
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=timeout_s)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}{path}{'?' if query else ''}{query}")
        response = connection.getresponse()
        body = json.loads(response.read())
    except (OSError, http.client.HTTPException) as error:
        raise ServiceUnavailableError(
            f"no service answers at {url} ({error}): start one with `moescope serve`, or give --url"
        ) from error
    except ValueError as error:
        raise ServiceUnavailableError(f"what answers at {url} is not a moescope service") from error
    finally:
        connection.close()
    if not isinstance(body, dict):
        raise ServiceUnavailableError(f"what answers at {url} is not a moescope service")
    if response.status != 200:
        raise ServiceUnavailableError(str(body.get("detail", f"{url} answers {response.status}")))
    return body
