"""Whole requests with both clients: joined answers one by one, and as an export."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from moescope.client import AsyncClient, Client, LeftOut, ProblemError, RequestRouting
from tests.client.service import push
from tests.service.conftest import Service
from tests.service.disaggregated import DECODE, LOADED, PREFILL, TRUTH, some


class Both:
    """Asks with the synchronous client, or with the asynchronous one."""

    def __init__(self, url: str, asynchronous: bool) -> None:
        self._url, self._asynchronous = url, asynchronous

    def routing(self, name: str, **named: Any) -> RequestRouting:
        if not self._asynchronous:
            with Client(self._url) as client:
                return client.routing(name, **named)

        async def one() -> RequestRouting:
            async with AsyncClient(self._url) as client:
                return await client.routing(name, **named)

        return asyncio.run(one())

    def export(self, **named: Any) -> list[RequestRouting | LeftOut]:
        if not self._asynchronous:
            with Client(self._url) as client:
                found: Iterator[RequestRouting | LeftOut] = client.export_whole(**named)
                return [*found]

        async def collect() -> list[RequestRouting | LeftOut]:
            async with AsyncClient(self._url) as client:
                found: AsyncIterator[RequestRouting | LeftOut] = client.export_whole(**named)
                return [item async for item in found]

        return asyncio.run(collect())


@pytest.fixture(params=[False, True], ids=["synchronous", "asynchronous"])
def both(service: Service, request: pytest.FixtureRequest) -> Both:
    return Both(service.url, bool(request.param))


def disaggregated(service: Service) -> None:
    push(service, some(1, 0, 40, who=PREFILL, weights_version=7, finish_reason="length"))
    push(
        service,
        some(
            2,
            39,
            60,
            who=DECODE,
            cached_tokens=39,
            taken_over=LOADED,
            weights_version=3,
            finish_reason="stop",
            lora="",
            ended_s=2,
        ),
    )


def test_a_whole_request_is_arrays_and_where_they_come_from(service: Service, both: Both) -> None:
    disaggregated(service)
    whole = both.routing("x")
    assert (whole.experts.dtype, whole.experts.shape, whole.is_whole) == (np.int16, (60, 2, 4), True)
    np.testing.assert_array_equal(whole.experts[:, 1], TRUTH[1][:60])
    decode, prefill = whole.parts
    assert (decode.kind, decode.server, decode.positions) == ("main", "d", ((39, 60),))
    assert (prefill.kind, prefill.role, prefill.positions) == ("same_id", "prefill", ((0, 39),))
    assert (decode.finish_reason, prefill.finish_reason, decode.tokens) == ("stop", "length", 21)
    assert (whole.info.server, whole.info.finish_reason, whole.info.tokens) == ("d", "stop", 21)
    assert whole.part_of.tolist() == [1] * 39 + [0] * 21
    assert whole.weights_version.tolist() == [7] * 39 + [3] * 21
    assert (whole.missing, whole.absent, decode.missing_tokens) == ((), None, 0)


def test_all_parameters(service: Service, both: Both) -> None:
    disaggregated(service)
    decode = both.routing("x", server="d", model="tiny", dp_rank=0)
    [missing] = decode.missing
    assert (missing.first, missing.end, missing.why, decode.is_whole) == (0, 39, "kv_transfer", False)
    assert (decode.part_of[:39] == -1).all()
    some_rows = both.routing("x", layers=[3], first=30, end=45)
    assert (some_rows.experts.shape, some_rows.first_position, some_rows.is_whole) == ((15, 1, 4), 30, False)
    assert some_rows.part_of.tolist() == [1] * 9 + [0] * 6
    vllm = both.routing("x", form="vllm", decoder_layers=5)
    assert (vllm.experts.dtype, vllm.experts.shape) == (np.uint8, (60, 5, 4))
    zeros = both.routing("x", server="d", form="vllm", missing="zero", decoder_layers=5)
    assert (zeros.experts[:39] == 0).all()
    assert not zeros.is_whole
    with pytest.raises(ProblemError, match="no sample 1") as caught:
        both.routing("x", sample=1)
    assert caught.value.kind == "no-such-sample"


@pytest.mark.parametrize("page_size", [1, 1000])
def test_an_export_of_whole_requests(service: Service, both: Both, page_size: int) -> None:
    """It equals the single answers; a prefill instance's trace is in that of its request."""
    push(service, some(9, 0, 50, name="z"))
    disaggregated(service)
    push(service, some(3, 20, 60, name="y", cached_tokens=20))
    found = both.export(page_size=page_size)
    assert [item.info.names[-1] for item in found if isinstance(item, RequestRouting)] == ["y", "x", "z"]
    for item in found:
        assert isinstance(item, RequestRouting)
        alone = both.routing(item.info.request_id if item.info.names[-1] != "x" else "x")
        for name in ("experts", "layers", "num_experts", "top_k", "times_computed", "weights_version"):
            np.testing.assert_array_equal(getattr(item, name), getattr(alone, name), err_msg=name)
        assert (item.parts, item.missing, item.is_whole) == (alone.parts, alone.missing, alone.is_whole)
        assert (item.info.tokens, item.info.server) == (alone.info.tokens, alone.info.server)


def test_an_export_of_some_layers(service: Service, both: Both) -> None:
    disaggregated(service)
    [whole] = both.export(layers=[3])
    assert isinstance(whole, RequestRouting)
    assert (whole.layers.tolist(), whole.experts.shape) == ([3], (60, 1, 4))
    np.testing.assert_array_equal(whole.experts[:, 0], TRUTH[1][:60])


def test_what_an_export_leaves_out_is_said(service: Service, both: Both) -> None:
    push(service, some(1, 0, 30, name="z"), some(2, 30, 60, name="z", ended_s=2, cached_tokens=30))
    main, other = both.export()
    assert isinstance(main, RequestRouting)
    assert isinstance(other, LeftOut)
    assert "nothing_shared" in other.why
