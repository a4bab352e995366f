"""The asynchronous client."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote

import httpx

from moescope.client.errors import MoescopeError
from moescope.client.questions import (
    ATTEMPTS,
    DEFAULT_URL,
    Form,
    Missing,
    Parameters,
    Token,
    TokenAuth,
    TraceFilter,
    asked,
    check,
    newest,
    one_trace,
    page_of,
    path_of,
    trace_of,
    unreachable,
    waiting_s,
    whole_of,
    whole_path_of,
)
from moescope.client.records import LeftOut, RequestRouting, Trace, TraceInfo, info_of
from moescope.client.synchronous import Client

_ALL: Final = TraceFilter()


class AsyncClient:
    """Asks a service for traces; :class:`moescope.client.Client` documents its arguments and its methods."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: Token = None,
        verify: bool | str | ssl.SSLContext = True,
        timeout_s: float = 120.0,
    ) -> None:
        self._url = url
        self._options: dict[str, Any] = {"token": token, "verify": verify, "timeout_s": timeout_s}
        context = ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify
        self._http = httpx.AsyncClient(
            base_url=url, auth=TokenAuth(token), verify=context, timeout=timeout_s, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def traces(
        self,
        where: TraceFilter = _ALL,
        *,
        request_id: str | None = None,
        limit: int | None = None,
        page_size: int = 500,
    ) -> AsyncIterator[TraceInfo]:
        """Traced requests, newest first, page by page as they are wanted."""
        cursor, left, anchored = None, limit, where.anchored(time.time())
        while left is None or left > 0:
            size = page_size if left is None else min(page_size, left)
            params = {**where.params(), "request_id": request_id, "limit": size, "cursor": cursor}
            found, cursor = page_of(await self._get("/v1/traces", params))
            for item in found:
                yield info_of(item)
            left, where = None if left is None else left - len(found), anchored
            if cursor is None:
                return

    async def trace(
        self,
        request_id: str,
        *,
        server: str | None = None,
        model: str | None = None,
        dp_rank: int | None = None,
        layers: Sequence[int] | None = None,
        first: int | None = None,
        end: int | None = None,
        form: Form = "moescope",
        missing: Missing = "refuse",
        decoder_layers: int | None = None,
    ) -> Trace:
        """The routing of a request."""
        params = one_trace(server, model, dp_rank, layers, first, end, form, missing, decoder_layers)
        answer = await self._get(path_of(request_id, "npz"), params)
        where = TraceFilter(server=server, model=model, dp_rank=dp_rank)
        name = unquote(answer.headers["x-moescope-request-id"])
        found = [each async for each in self.traces(where, request_id=name, limit=1)]
        return await asyncio.to_thread(trace_of, newest(found, request_id), answer.content)

    async def routing(
        self,
        request_id: str,
        *,
        server: str | None = None,
        model: str | None = None,
        dp_rank: int | None = None,
        sample: int | None = None,
        layers: Sequence[int] | None = None,
        first: int | None = None,
        end: int | None = None,
        form: Form = "moescope",
        missing: Missing = "refuse",
        decoder_layers: int | None = None,
    ) -> RequestRouting:
        """The routing of a whole request."""
        params = one_trace(server, model, dp_rank, layers, first, end, form, missing, decoder_layers)
        answer = await self._get(whole_path_of(request_id, "npz"), {**params, "sample": sample})
        return await asyncio.to_thread(whole_of, answer.content)

    async def export(
        self,
        where: TraceFilter = _ALL,
        *,
        layers: Sequence[int] | None = None,
        form: Form = "moescope",
        missing: Missing = "refuse",
        decoder_layers: int | None = None,
        cursor: str = "",
        page_size: int = 1000,
    ) -> AsyncIterator[Trace | LeftOut]:
        """The routing of all requests that match, newest first; one request is held at a time.

        pyarrow reads a stream by itself, so that is done in a thread, by a synchronous client.
        """
        with Client(self._url, **self._options) as client:
            found = client.export(
                where,
                layers=layers,
                form=form,
                missing=missing,
                decoder_layers=decoder_layers,
                cursor=cursor,
                page_size=page_size,
            )
            while (trace := await asyncio.to_thread(next, found, None)) is not None:
                yield trace

    async def export_whole(
        self,
        where: TraceFilter = _ALL,
        *,
        layers: Sequence[int] | None = None,
        form: Form = "moescope",
        missing: Missing = "refuse",
        decoder_layers: int | None = None,
        cursor: str = "",
        page_size: int = 1000,
    ) -> AsyncIterator[RequestRouting | LeftOut]:
        """As :meth:`export`, but whole requests."""
        with Client(self._url, **self._options) as client:
            found = client.export_whole(
                where,
                layers=layers,
                form=form,
                missing=missing,
                decoder_layers=decoder_layers,
                cursor=cursor,
                page_size=page_size,
            )
            while (whole := await asyncio.to_thread(next, found, None)) is not None:
                yield whole

    async def _get(self, path: str, params: Parameters) -> httpx.Response:
        try:
            for attempt in range(ATTEMPTS):
                answer = await self._http.get(path, params=asked(params))
                wait = waiting_s(answer, attempt)
                if wait is None:
                    check(answer)
                    return answer
                await asyncio.sleep(wait)
        except httpx.HTTPError as error:
            raise unreachable(self._url, error) from error
        raise MoescopeError(f"{self._url} gave no answer")  # not reached: the last attempt never waits
