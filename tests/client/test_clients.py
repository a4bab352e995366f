"""Both clients against a real service: they give the same, which is what the service has."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.client import (
    AsyncClient,
    Client,
    CutOffError,
    LeftOut,
    MoescopeError,
    ProblemError,
    Trace,
    TraceFilter,
    UnreachableError,
    synchronous,
)
from tests.client.service import push
from tests.service.conftest import Clock, Service
from tests.service.frames import frame
from tests.service.trace_parts import LAYERS, experts_of, part


class Both:
    """Asks with the synchronous client, or with the asynchronous one."""

    def __init__(self, url: str, asynchronous: bool, **options: Any) -> None:
        self._url, self._asynchronous, self._options = url, asynchronous, options

    def list(self, name: str, *arguments: Any, **named: Any) -> list[Any]:
        if not self._asynchronous:
            with Client(self._url, **self._options) as client:
                found: Iterator[Any] = getattr(client, name)(*arguments, **named)
                return [*found]

        async def collect() -> list[Any]:
            async with AsyncClient(self._url, **self._options) as client:
                found: AsyncIterator[Any] = getattr(client, name)(*arguments, **named)
                return [item async for item in found]

        return asyncio.run(collect())

    def trace(self, *arguments: Any, **named: Any) -> Trace:
        if not self._asynchronous:
            with Client(self._url, **self._options) as client:
                return client.trace(*arguments, **named)

        async def one() -> Trace:
            async with AsyncClient(self._url, **self._options) as client:
                return await client.trace(*arguments, **named)

        return asyncio.run(one())


@pytest.fixture(params=[False, True], ids=["synchronous", "asynchronous"])
def asynchronous(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_a_list_is_read_page_by_page(service: Service, clock: Clock, asynchronous: bool) -> None:
    push(service, *(part(n, tokens=n) for n in range(1, 8)))
    clock.now += 60
    push(service, part(8, who={"server": "other", "pool": "chat"}))
    both = Both(service.url, asynchronous)
    assert [each.names[-1] for each in both.list("traces", page_size=3)] == [f"x{n}" for n in range(8, 0, -1)]
    assert [each.names[-1] for each in both.list("traces", limit=4, page_size=3)] == ["x8", "x7", "x6", "x5"]
    assert [each.tokens for each in both.list("traces", TraceFilter(server="prod", min_tokens=6))] == [7, 6]
    since = datetime.fromtimestamp(clock.now - 30, UTC)
    assert [each.server for each in both.list("traces", TraceFilter(start=since))] == ["other"]
    assert [each.pool for each in both.list("traces", TraceFilter(pool="chat"))] == ["chat"]
    [exported] = both.list("export", TraceFilter(pool="chat"))
    assert exported.info.pool == "chat"
    until = TraceFilter(end=clock.now - 30.0, layer=1, expert=int(experts_of(7, 7)[0][0, 0]))
    assert "x7" in [each.names[-1] for each in both.list("traces", until, page_size=1)]
    [info] = both.list("traces", request_id="x3")
    assert (info.model, info.dp_rank, info.outcome, info.prompt_tokens) == ("tiny", 0, "ended", 4)


def test_a_trace_is_arrays(service: Service, asynchronous: bool) -> None:
    push(service, part(1, tokens=6, runs=[(3, 4), (9, 2)], cached_tokens=3, weights_version=2))
    push(service, part(2, tokens=5, request_id="cmpl-a/ä%-0"))
    both = Both(service.url, asynchronous)
    trace = both.trace("x1")
    assert trace.experts.dtype == np.int16
    assert trace.experts.shape == (11, 2, 4)
    assert trace.missing.tolist() == [0, 1, 2, 7, 8]
    assert not trace.is_whole
    computed = [3, 4, 5, 6, 9, 10]
    np.testing.assert_array_equal(trace.experts[computed][:, 1], experts_of(1, 6)[1])
    assert (trace.experts[[0, 7]] == -1).all()
    assert (trace.layers.tolist(), trace.num_experts.tolist(), trace.top_k.tolist()) == (
        [1, 3],
        [16, 64],
        [2, 4],
    )
    assert set(trace.weights_version[3:].tolist()) == {2}
    some = both.trace("x1", layers=[3], first=9, end=10)
    assert (some.experts.shape, some.first_position) == ((1, 1, 4), 9)
    odd = both.trace("cmpl-a/ä%-0")
    assert (odd.info.request_id, odd.is_whole) == ("cmpl-a/ä%-0", True)


def test_a_trace_that_is_removed_while_it_is_read(
    service: Service, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(service, part(1))
    for module in ("synchronous", "asynchronous"):
        monkeypatch.setattr(f"moescope.client.{module}.page_of", lambda _: ([], None))
    with pytest.raises(CutOffError, match="was removed"):
        Both(service.url, asynchronous).trace("x1")


def test_a_trace_that_lacks_a_layer_of_a_position_is_not_whole(service: Service, asynchronous: bool) -> None:
    """The second stage lost its last position, and doesn't tell how many it computed."""
    experts, stages = experts_of(1, 5), [{"pp_size": 2, "pp_rank": rank} for rank in range(2)]
    push(service, part(1, 5, experts[:1], layers=LAYERS[:1], who=stages[0]))
    push(service, part(1, 4, [experts[1][:4]], layers=LAYERS[1:], who=stages[1]))
    trace = Both(service.url, asynchronous).trace("x1")
    assert (trace.info.missing_stages, trace.info.missing_tokens) == (0, 0)
    assert (trace.experts[4, 1] == -1).all()
    assert not trace.is_whole
    zeros = {"form": "vllm", "missing": "zero", "decoder_layers": 5}
    assert not Both(service.url, asynchronous).trace("x1", **zeros).is_whole
    [exported] = Both(service.url, asynchronous).list("export", **zeros)
    assert not exported.is_whole


def test_vllms_form(service: Service, asynchronous: bool) -> None:
    push(service, part(1, tokens=6))
    both = Both(service.url, asynchronous)
    with pytest.raises(ProblemError, match="Give decoder_layers") as caught:
        both.trace("x1", form="vllm")
    assert (caught.value.status, caught.value.kind) == (409, "unknown-depth")
    trace = both.trace("x1", form="vllm", decoder_layers=5)
    assert (trace.experts.dtype, trace.experts.shape) == (np.uint8, (6, 5, 4))
    np.testing.assert_array_equal(trace.experts[:, 3], experts_of(1, 6)[1])
    [exported] = both.list("export", form="vllm", decoder_layers=5)
    np.testing.assert_array_equal(exported.experts, trace.experts)
    assert exported.num_experts.tolist() == [0, 16, 0, 64, 0]


@pytest.mark.parametrize("page_size", [1, 3, 1000])
def test_an_export_is_the_traces(service: Service, asynchronous: bool, page_size: int) -> None:
    push(service, *(part(n, tokens=3 * n) for n in range(1, 6)))
    push(service, part(6, tokens=4, runs=[(2, 4)], cached_tokens=2, weights_version=1))
    both = Both(service.url, asynchronous)
    found = both.list("export", page_size=page_size)
    assert [trace.info.names[-1] for trace in found] == ["x6", "x5", "x4", "x3", "x2", "x1"]
    for trace in found:
        alone = both.trace(trace.info.request_id)
        for name in ("experts", "layers", "num_experts", "top_k", "times_computed", "weights_version"):
            np.testing.assert_array_equal(getattr(trace, name), getattr(alone, name), err_msg=name)
            assert getattr(trace, name).dtype == getattr(alone, name).dtype
        assert trace.first_position == alone.first_position
        for name in ("request_id", "server", "prompt_tokens", "tokens", "stored_at", "outcome"):
            assert getattr(trace.info, name) == getattr(alone.info, name), name


def test_a_long_trace_comes_in_batches(service: Service, asynchronous: bool) -> None:
    layers = [MoeLayer(n, 64, 8) for n in range(48)]
    push(service, part(1, tokens=4000, layers=layers))
    [trace] = Both(service.url, asynchronous).list("export")
    for at, ids in enumerate(experts_of(1, 4000, layers)):
        np.testing.assert_array_equal(trace.experts[:, at], ids)


def test_what_an_export_leaves_out_is_said(service: Service, asynchronous: bool) -> None:
    push(service, part(1), part(2, layers=[MoeLayer(1, 16, 4)]), part(3))
    x3, left_out, x1 = Both(service.url, asynchronous).list("export")
    assert isinstance(left_out, LeftOut)
    assert (left_out.client_id, "choose server and model" in left_out.why) == ("x2", True)
    assert (x3.info.names[-1], x1.info.names[-1]) == ("x3", "x1")


def test_tokens_and_refusals(start_service: Callable[..., Service], asynchronous: bool) -> None:
    service = start_service(token="the-only-token-there-is")
    asked: list[str] = []

    def token() -> str:
        asked.append("once")
        return "the-only-token-there-is"

    with pytest.raises(ProblemError) as caught:
        Both(service.url, asynchronous).list("traces")
    assert caught.value.status == 401
    with pytest.raises(ProblemError, match="--store") as caught:
        Both(service.url, asynchronous, token=token).list("traces")
    assert (caught.value.status, asked) == (404, ["once"])


def test_no_service_is_said(asynchronous: bool) -> None:
    with pytest.raises(UnreachableError, match=r"no service answers at http://127\.0\.0\.1:1"):
        Both("http://127.0.0.1:1", asynchronous).list("traces")


class Breaking(BaseHTTPRequestHandler):
    """Passes a service's answers on, but breaks off the first ones of exports, and is busy before."""

    service: Service
    breaks: list[int]
    busy: list[int]
    asked: list[str]

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.busy:
            self.busy.pop()
            self.send_response(503)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        answer = self.service.client.get(self.path)
        self.send_response(answer.status_code)
        for name in ("x-moescope-requests", "x-moescope-tokens", "x-moescope-next-cursor"):
            self.send_header(name, answer.headers.get(name, ""))
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        end = self.breaks.pop(0) if self.breaks else len(answer.content)
        self.wfile.write(answer.content[:end])
        self.close_connection = end < len(answer.content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def breaking(service: Service) -> Iterator[tuple[str, type[Breaking]]]:
    handler = type("Handler", (Breaking,), {"service": service, "breaks": [], "busy": [], "asked": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_export_that_breaks_off_goes_on_after_the_last_whole_request(
    service: Service, breaking: tuple[str, type[Breaking]], asynchronous: bool
) -> None:
    # Each of 1500 positions is 768 bytes: a request has several batches of a MiB.
    layers = [MoeLayer(n, 64, 8) for n in range(48)]
    push(service, *(part(n, tokens=1500, layers=layers) for n in range(1, 5)))
    whole = len(service.client.get("/v1/traces/export?format=arrow&columns=packed").content)
    url, handler = breaking
    handler.breaks[:] = [whole * 6 // 10, 100, whole // 100]
    found = Both(url, asynchronous).list("export")
    assert [trace.info.names[-1] for trace in found] == ["x4", "x3", "x2", "x1"]
    for trace, number in zip(found, (4, 3, 2, 1), strict=True):
        np.testing.assert_array_equal(trace.experts[:, 7], experts_of(number, 1500, layers)[7])
    assert "cursor" not in handler.asked[0]
    assert all("cursor=" in path for path in handler.asked[1:])
    assert len(handler.asked) == 4


def test_an_export_that_always_breaks_off_ends(
    service: Service, breaking: tuple[str, type[Breaking]], asynchronous: bool
) -> None:
    push(service, part(1))
    url, handler = breaking
    handler.breaks[:] = [50] * 10
    with pytest.raises(CutOffError, match="broke off"):
        Both(url, asynchronous).list("export")
    assert len(handler.asked) == 4


def test_a_busy_service_is_asked_again(
    service: Service, breaking: tuple[str, type[Breaking]], asynchronous: bool
) -> None:
    push(service, part(1))
    url, handler = breaking
    handler.busy[:] = [1, 1]
    assert len(Both(url, asynchronous).list("traces")) == 1
    handler.busy[:] = [1] * 10
    with pytest.raises(ProblemError) as caught:
        Both(url, asynchronous).list("traces")
    assert (caught.value.status, len(handler.busy)) == (503, 6)


def test_a_file_is_there_when_it_is_whole(
    service: Service, breaking: tuple[str, type[Breaking]], tmp_path: Path
) -> None:
    push(service, *(part(n) for n in range(1, 4)))
    url, handler = breaking
    handler.breaks[:] = [1000]
    seen: list[int] = []
    file = tmp_path / "part.ndjson"
    with Client(url) as client:
        with pytest.raises(CutOffError):
            client.export_file(file, "ndjson")
        assert not file.exists()
        told = client.export_file(file, "ndjson", page_size=2, progress=seen.append)
    assert (told.requests, told.tokens, told.nbytes) == (2, 20, file.stat().st_size)
    assert (seen[-1], bool(told.next_cursor)) == (told.nbytes, True)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".unfinished")]


def test_without_pyarrow_it_says_what_to_install(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    push(service, part(1))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with Client(service.url) as client, pytest.raises(MoescopeError, match=r"moescope\[client,parquet\]"):
        next(client.export())


def test_relative_times_are_one_window_over_all_pages(
    start_service: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_700_000_100.0]
    service = start_service(lambda: now[0], store=str(tmp_path / "s"))
    monkeypatch.setattr(synchronous.time, "time", lambda: now[0])
    push(service, part(1), part(2), part(3))
    now[0] += 60
    with Client(service.url) as client:
        found = client.traces(TraceFilter(start="-1m"), page_size=1)
        exported = client.export(TraceFilter(start="-1m"), page_size=1)
        next(found), next(exported)
        now[0] += 60
        assert len([*found]) == len([*exported]) == 2


def test_the_frames_of_a_service_say_how_many_layers(service: Service, asynchronous: bool) -> None:
    push(service, part(1, tokens=3))
    service.push(
        frame(
            {layer.layer: [2] * layer.num_experts for layer in LAYERS},
            rows=[16, 64],
            tokens=64,
            decoder_layers=6,
        )
    )
    assert Both(service.url, asynchronous).trace("x1", form="vllm").experts.shape == (3, 6, 4)
