"""A connection of the synchronous client: what every question goes over."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import httpx

from moescope.client.errors import MoescopeError
from moescope.client.questions import (
    ATTEMPTS,
    DEFAULT_URL,
    Parameters,
    Token,
    TokenAuth,
    asked,
    check,
    unreachable,
    waiting_s,
)


class Connection:
    """Asks a service, and asks again while it is busy.

    Args:
        url: the service's address.
        token: bearer token with the scope ``read``, or what gives it at each request.
        verify: certificates to trust, or a context; False: any.
        timeout_s: the longest silence of the service, seconds.

    Variables of the environment for proxies are not read.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: Token = None,
        verify: bool | str | ssl.SSLContext = True,
        timeout_s: float = 120.0,
    ) -> None:
        self._url = url
        context = ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify
        self._http = httpx.Client(
            base_url=url, auth=TokenAuth(token), verify=context, timeout=timeout_s, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _get(self, path: str, params: Parameters) -> httpx.Response:
        with self._stream(path, params) as answer:
            answer.read()
            return answer

    @contextmanager
    def _stream(self, path: str, params: Parameters) -> Iterator[httpx.Response]:
        """An answer that is none of a busy service, and no problem."""
        try:
            for attempt in range(ATTEMPTS):
                with self._http.stream("GET", path, params=asked(params)) as answer:
                    if answer.is_success:
                        yield answer
                        return
                    answer.read()
                    wait = waiting_s(answer, attempt)
                    if wait is None:
                        check(answer)
                time.sleep(wait or 0)
        except httpx.HTTPError as error:
            raise unreachable(self._url, error) from error
        except OSError as error:
            raise MoescopeError(str(error)) from error
