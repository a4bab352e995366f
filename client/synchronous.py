"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote

from moescope.client.arrow import Reader, arrow
from moescope.client.connection import Connection
from moescope.client.errors import CutOffError
from moescope.client.questions import (
    ATTEMPTS,
    Form,
    Missing,
    Parameters,
    TraceFilter,
    newest,
    one_trace,
    page_of,
    part_of,
    path_of,
    trace_of,
    whole_of,
    whole_path_of,
)
from moescope.client.records import ExportPart, LeftOut, RequestRouting, Trace, TraceInfo, info_of

_ALL: Final = TraceFilter()


class Client(Connection):
    """Asks a service for traces; see :class:`Connection` for its arguments.

    Every method raises :class:`MoescopeError`: ``UnreachableError``, ``ProblemError`` where the service
    refuses, ``CutOffError`` where an answer breaks off. A busy service (503) is asked again a few times.
    """

    def traces(
        self,
        where: TraceFilter = _ALL,
        *,
        request_id: str | None = None,
        limit: int | None = None,
        page_size: int = 500,
    ) -> Iterator[TraceInfo]:
        """Traced requests, newest first, page by page as they are wanted.

        Args:
            where: which ones.
            request_id: only those that this id finds.
            limit: most to give; None: all.
            page_size: how many to ask for at once, 1 to 1000.
        """
        cursor, left, anchored = None, limit, where.anchored(time.time())
        while left is None or left > 0:
            size = page_size if left is None else min(page_size, left)
            params = {**where.params(), "request_id": request_id, "limit": size, "cursor": cursor}
            found, cursor = page_of(self._get("/v1/traces", params))
            yield from map(info_of, found)
            left, where = None if left is None else left - len(found), anchored
            if cursor is None:
                return

    def trace(
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
        """The routing of a request.

        Args:
            request_id: any id that finds it.
            server, model, dp_rank: whose, where several have a request of this id.
            layers: only these decoder layers; None: all.
            first, end: only these positions, ``end`` not included.
            form: see :attr:`Trace.experts`.
            missing: with form ``vllm``: whether positions that nobody computed are refused, or 0.
            decoder_layers: with form ``vllm``: how many the model has, where its workers don't tell.
        """
        params = one_trace(server, model, dp_rank, layers, first, end, form, missing, decoder_layers)
        answer = self._get(path_of(request_id, "npz"), params)
        name = unquote(answer.headers["x-moescope-request-id"])
        where = TraceFilter(server=server, model=model, dp_rank=dp_rank)
        found = list(self.traces(where, request_id=name, limit=1))
        return trace_of(newest(found, request_id), answer.content)

    def routing(
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
        """The routing of a whole request, joined from the traces of all who computed some of it.

        Args:
            request_id: any id that finds it.
            server, model, dp_rank: only traces of these are joined; of all when absent.
            sample: which of several samples (``n`` > 1).
            layers, first, end, form, missing, decoder_layers: see :meth:`trace`.
        """
        params = one_trace(server, model, dp_rank, layers, first, end, form, missing, decoder_layers)
        return whole_of(self._get(whole_path_of(request_id, "npz"), {**params, "sample": sample}).content)

    def export(
        self,
        where: TraceFilter = _ALL,
        *,
        layers: Sequence[int] | None = None,
        form: Form = "moescope",
        missing: Missing = "refuse",
        decoder_layers: int | None = None,
        cursor: str = "",
        page_size: int = 1000,
    ) -> Iterator[Trace | LeftOut]:
        """The routing of all requests that match, newest first; one request is held at a time.

        Where an answer breaks off, it goes on after the last whole request. Requests that the service can't
        give are :class:`LeftOut`. All must be of one model. It needs pyarrow.

        Args:
            where: which ones.
            layers, form, missing, decoder_layers: see :meth:`trace`.
            cursor: of an answer before; empty: from the newest on.
            page_size: requests of one answer, 1 to 10,000.
        """
        params = one_trace(None, None, None, layers, None, None, form, missing, decoder_layers)
        for item in self._export(where, {**params, "limit": page_size}, cursor):
            assert not isinstance(item, RequestRouting)  # only a stream of whole requests has these
            yield item

    def export_whole(
        self,
        where: TraceFilter = _ALL,
        *,
        layers: Sequence[int] | None = None,
        form: Form = "moescope",
        missing: Missing = "refuse",
        decoder_layers: int | None = None,
        cursor: str = "",
        page_size: int = 1000,
    ) -> Iterator[RequestRouting | LeftOut]:
        """As :meth:`export`, but whole requests: each is there once, if its main trace matches.

        Args:
            where, layers, form, missing, decoder_layers, cursor, page_size: see :meth:`export`.
        """
        params = one_trace(None, None, None, layers, None, None, form, missing, decoder_layers)
        for item in self._export(where, {**params, "limit": page_size, "joined": True}, cursor):
            assert not isinstance(item, Trace)
            yield item

    def _export(
        self, where: TraceFilter, params: Parameters, cursor: str
    ) -> Iterator[Trace | RequestRouting | LeftOut]:
        params = {**params, "format": "arrow", "columns": "packed"}
        failed, anchored = 0, where.anchored(time.time())
        arrow()  # what is missing is said before anything is asked
        while True:
            reader: Reader | None = None
            try:
                asked_for = {**where.params(), **params, "cursor": cursor or None}
                with self._stream("/v1/traces/export", asked_for) as answer:
                    after = part_of(answer, 0).next_cursor
                    reader = Reader(answer.iter_bytes())
                    yield from reader
                if not after:
                    return
                cursor, failed, where = after, 0, anchored
            except CutOffError:
                whole = "" if reader is None else reader.cursor
                failed = 0 if whole else failed + 1
                if failed >= ATTEMPTS:
                    raise
                cursor, where = whole or cursor, anchored

    def export_file(
        self,
        file: Path,
        kind: Literal["ndjson", "arrow", "parquet"],
        where: TraceFilter = _ALL,
        *,
        layers: Sequence[int] | None = None,
        columns: Literal["layers", "packed"] = "layers",
        joined: bool = False,
        form: Form = "moescope",
        missing: Missing = "refuse",
        decoder_layers: int | None = None,
        cursor: str = "",
        page_size: int = 1000,
        progress: Callable[[int], None] = lambda _: None,
    ) -> ExportPart:
        """Write one answer of an export to a file, which is there when it is whole and not before.

        Args:
            file: where to.
            kind: the format.
            where, layers, form, missing, decoder_layers, cursor, page_size: see :meth:`export`.
            columns: of a table: a list for each layer, or one column of bytes.
            joined: whole requests, as :meth:`export_whole` gives them.
            progress: is called with the bytes written so far.
        """
        of_form = one_trace(None, None, None, layers, None, None, form, missing, decoder_layers)
        params = {**where.params(), **of_form, "limit": page_size, "format": kind, "cursor": cursor or None}
        if kind != "ndjson":
            params["columns"] = columns
        if joined:
            params["joined"] = True
        with self._stream("/v1/traces/export", params) as answer:
            return part_of(answer, _written(file, answer.iter_bytes(), progress))

    def download(
        self,
        request_id: str,
        file: Path,
        kind: str,
        params: Parameters,
        progress: Callable[[int], None] = lambda _: None,
        joined: bool = False,
    ) -> int:
        """Write one trace to a file of some format; its size in bytes.

        Args:
            request_id: any id that finds it.
            file: where to.
            kind: json, npz, parquet, arrow or raw.
            params: of the query.
            progress: is called with the bytes written so far.
            joined: the whole request, see :meth:`routing`.
        """
        path = whole_path_of(request_id, kind) if joined else path_of(request_id, kind)
        with self._stream(path, params) as answer:
            return _written(file, answer.iter_bytes(), progress)


def _written(file: Path, pieces: Iterator[bytes], progress: Callable[[int], None]) -> int:
    """Write a file by way of another one, which takes its place when it is whole; its size in bytes."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    nbytes = 0
    with unfinished.open("wb") as into:
        for piece in pieces:
            nbytes += into.write(piece)
            progress(nbytes)
    unfinished.replace(file)
    return nbytes
