"""Whatever one request brings, the event loop is free meanwhile.

`python -m devkit.soak stall` measures what others wait.

What is measured here is CPU time of threads, which a busy machine does not make longer.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import uvicorn

from devkit.soak import costly, questions
from devkit.soak.load import Fleet, Rank
from moescope.capture import wire
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, decode_part
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart
from moescope.service.store.sqlite.store import SqliteStore
from tests.service.conftest import Service
from tests.service.loop_meter import LoopMeter, metered_loops

LOOP_S = 0.1
"""Most CPU time of the loop's thread in one callback."""
THREAD_S = 1.5
"""Most CPU time that one body takes of a thread that others wait for; the worst today takes 0.3 s."""
HEAVY = {"phases", "steps x cells", "long trace"}  # of 30 MB, and like others


@pytest.fixture
def served(start_service: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service in asyncio's loop with two ranks of 58 layers x 256 experts, traces and a baseline."""
    monkeypatch.setattr(uvicorn.Config, "get_loop_factory", lambda _: asyncio.new_event_loop)
    service = start_service(time.time, store=tmp_path, min_tokens=1, metrics_level="layer_expert")
    ranks = [Rank(Fleet(2, questions.LAYERS, questions.EXPERTS, 1), rank, time.time_ns()) for rank in (0, 1)]
    for rank in ranks:
        for _ in range(2):
            service.push_bytes(rank.next()).raise_for_status()
    questions.keep(service.client, "soak", 2048, 2)
    return service


def _check(meter: LoopMeter, what: str) -> None:
    assert meter.longest < LOOP_S, (what, meter.longest, meter.callback)


def test_the_event_loop_is_free_while_bodies_are_taken_and_questions_answered(
    served: Service,
) -> None:
    with metered_loops() as meter:
        for kind in costly.BODIES:
            if kind.name in HEAVY:
                continue
            content_type = TRACE_CONTENT_TYPE if kind.trace else wire.CONTENT_TYPE
            answer = served.client.post(
                kind.path, content=kind.make(1), headers={"content-type": content_type}
            )
            assert answer.status_code == 200, (kind.name, answer.text)
            _check(meter, kind.name)
        for path in questions.questions_about("soak"):
            answer = served.client.get(path)
            assert answer.status_code in (200, 400), (path, answer.text)
            _check(meter, path)
        assert meter.longest > 0, "nothing was measured"


def test_no_body_takes_long_of_a_thread_that_others_wait_for() -> None:
    taken: dict[str, tuple[float, float]] = {}
    for kind in costly.BODIES:
        if kind.name in HEAVY:
            continue
        with tempfile.TemporaryDirectory() as folder:
            store = SqliteStore(Path(folder), Retention())
            state = LiveState(Settings(store=Path(folder), port=0), time.time, store)
            bodies = [kind.make(1)] if kind.trace else [kind.make(1), kind.make(2)]
            for body in bodies:
                began = time.thread_time()
                if kind.trace:
                    records = [ArrivedPart(decode_part(body), time.time())]
                else:
                    state.ingest(wire.decode_frame(body))
                    records = state.take_records()  # type: ignore[assignment]
                counted = time.thread_time()
                store.save(records)
                taken[kind.name] = counted - began, time.thread_time() - counted
            store.close()
    assert all(seconds < THREAD_S for pair in taken.values() for seconds in pair), taken
