"""What producers send: POST /v1/ingest takes frames, POST /v1/traces takes parts of traces."""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from fastapi import APIRouter, Request

from moescope.capture.wire import CONTENT_TYPE, Frame, WireError, WireVersionError, decode_frame
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, TracePart, decode_part
from moescope.service.api.limits.crew import Crew
from moescope.service.api.limits.intake import Intake
from moescope.service.api.limits.keeping import Keeper, Kept
from moescope.service.api.limits.limits import Limits
from moescope.service.api.params.bodies import REFUSALS, described_body
from moescope.service.api.params.checked import CheckedRoute
from moescope.service.api.params.stored import NO_STORE
from moescope.service.api.problems import RefusedFrameError, documented
from moescope.service.api.schemas.receipts import Receipt, TraceReceipt
from moescope.service.counts.account import Verdict
from moescope.service.counts.refusals import RefusedError
from moescope.service.live.state import LiveState
from moescope.service.metrics.instruments import Instruments
from moescope.service.settings import Settings
from moescope.service.store.interface import Store
from moescope.service.store.records import ArrivedPart, StoreError

_DECODERS: Final = 2
"""Bodies that are decoded at a time: a large one, and the small ones of others beside it."""


def ingest_router(
    state: LiveState,
    settings: Settings,
    instruments: Instruments,
    keeper: Keeper,
    store: Store | None,
    limits: Limits,
) -> APIRouter:
    """The routes that take frames and parts of traces, and answer when ``keeper`` has kept them.

    Without ``store`` frames change ``state`` only, and traces are refused.
    """
    router = APIRouter(route_class=CheckedRoute)
    intake = Intake(state, settings, limits)
    decoding, counting = Crew(_DECODERS), Crew(1)  # one frame is counted at a time, and kept in that order

    @router.post(
        "/v1/ingest",
        tags=["ingest"],
        openapi_extra=described_body(CONTENT_TYPE),
        responses=documented(*REFUSALS),
    )
    async def ingest(request: Request) -> Receipt:
        """Take one cumulative frame of a producer: msgpack, as `moescope.capture.wire` defines it.

        Sending a frame twice, late or out of order is harmless. The service that has a store answers when
        the totals are kept there.
        """
        async with intake.body_of(request, CONTENT_TYPE, "frame") as body:
            instruments.took_in(len(body))
            frame, read_s = await decoding.run(partial(_decode_frame, body, instruments))
            limits.admit("frame", frame.producer.key)
            count = partial(_count_frame, frame, read_s, state, instruments, keeper)
            verdict, handed = await counting.run(count)
            await _keep_frame(keeper, handed)
        return Receipt(result=verdict.value, epoch=frame.epoch, seq=frame.seq)

    @router.post(
        "/v1/traces",
        tags=["traces"],
        openapi_extra=described_body(TRACE_CONTENT_TYPE),
        responses=documented(*REFUSALS),
    )
    async def take(request: Request) -> TraceReceipt:
        """Take a part of a trace: msgpack, as `moescope.capture.wire.traces` defines it.

        It answers when the part is kept; sending it twice is harmless.
        """
        async with intake.body_of(request, TRACE_CONTENT_TYPE, "trace") as body:
            if store is None:
                raise RefusedFrameError("no_store", 409, "Traces are not kept here", NO_STORE)
            part = await decoding.run(partial(_decode_part, body))
            limits.admit("trace", part.producer.key)
            await _keep_part(keeper, ArrivedPart(part, state.now()))
        return TraceReceipt(trace=part.trace, part=part.part, parts=part.parts)

    return router


def _decode_frame(body: bytes, instruments: Instruments) -> tuple[Frame, float]:
    """The frame that a body holds, and how long it took to read it, seconds."""
    began = time.perf_counter()
    try:
        frame = decode_frame(body)
    except WireError as error:
        instruments.ingest.observe(time.perf_counter() - began)
        if isinstance(error, WireVersionError):
            raise RefusedFrameError("version", 415, "Another wire version", str(error)) from error
        raise RefusedFrameError("malformed", 400, "Not a frame", str(error)) from error
    return frame, time.perf_counter() - began


def _count_frame(
    frame: Frame, read_s: float, state: LiveState, instruments: Instruments, keeper: Keeper
) -> tuple[Verdict, Kept]:
    """What the state made of a frame that was read in ``read_s`` seconds, and what is to be kept of it."""
    began = time.perf_counter() - read_s
    try:
        verdict, records = state.take(frame)
    except RefusedError as error:
        status = 503 if error.reason == "too_many_producers" else 409
        raise RefusedFrameError(error.reason, status, "The frame can't be counted", str(error)) from error
    finally:
        instruments.ingest.observe(time.perf_counter() - began)
    return verdict, keeper.hand_over(records)


async def _keep_frame(keeper: Keeper, handed: Kept) -> None:
    try:
        await keeper.kept(handed)
    except StoreError as error:
        raise RefusedFrameError("store_failed", 503, "The frame could not be kept", str(error)) from error


def _decode_part(body: bytes) -> TracePart:
    """The part of a trace that a body holds."""
    try:
        return decode_part(body)
    except WireVersionError as error:
        raise RefusedFrameError("version", 415, "Another wire version", str(error)) from error
    except WireError as error:
        raise RefusedFrameError("malformed", 400, "Not a trace", str(error)) from error


async def _keep_part(keeper: Keeper, arrived: ArrivedPart) -> None:
    try:
        await keeper.keep([arrived])
    except RefusedError as error:
        raise RefusedFrameError(error.reason, 409, "The part contradicts its trace", str(error)) from error
    except StoreError as error:
        raise RefusedFrameError("store_failed", 503, "The trace could not be kept", str(error)) from error
