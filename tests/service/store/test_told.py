"""What workers tell of a request besides its experts: it comes back from every store, and lives don't mix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from moescope.capture.wire.traces import TakenOver, TracePart
from moescope.service.store.interface import Store
from moescope.service.store.records import ArrivedPart, TracedRequest, TraceQuery
from moescope.service.store.worker_trace import Told, Worker, WorkerTrace, newest_life
from tests.service.frames import EPOCH
from tests.service.store.accounts import BORN, LATER
from tests.service.trace_parts import experts_of, part

Open = Callable[..., Store]
TAKEN = [TakenOver(0, 16, "cmpl-a-0-00000001"), TakenOver(16, 2, "", "not_traced")]


def _save(store: Store, *parts: TracePart, at: float = BORN) -> None:
    store.save([ArrivedPart(item, at) for item in parts])


def _found(store: Store, **query: Any) -> list[TracedRequest]:
    return store.traced_requests(TraceQuery(**query))


def _raw(steps: Sequence[int]) -> bytes:
    return np.array(steps, "<i8").tobytes()


def test_what_is_told_of_a_request_comes_back(open_store: Open) -> None:
    told = {
        "lora": "sql",
        "finish_reason": "length",
        "accepted_drafts": 7,
        "rejected_drafts": 3,
        "taken_over": TAKEN,
    }
    store = open_store()
    _save(store, part(1, who={"role": "decode", "pool": "chat"}, **told), part(2))
    plain, found = _found(open_store())
    assert (found.role, found.pool) == ("decode", "chat")
    assert {name: getattr(found, name) for name in told} == told | {"taken_over": tuple(TAKEN)}
    assert (plain.role, plain.lora, plain.finish_reason, plain.taken_over) == ("", "", "", ())
    assert [item.taken_over for item in _found(open_store(), taken_over=False)] == [(), ()]


def test_several_parts_and_workers_tell_of_one_request(open_store: Open) -> None:
    """Only the last stage knows why it ended; each part of a trace tells the same."""
    store = open_store()
    for pp_rank, reason, outcome in ((0, "", "ended"), (1, "stop", "cut_off")):
        who = {"pp_rank": pp_rank, "pp_size": 2}
        both = [
            part(
                1,
                runs=[(10 * n, 10)],
                part=n,
                parts=2,
                who=who,
                started_step=4,
                finish_reason=reason,
                outcome=outcome,
                taken_over=TAKEN[: 1 + pp_rank],
                accepted_drafts=5,
                ended_at_ns=EPOCH + (2 - pp_rank) * 10**9,
            )
            for n in (1, 0)
        ]
        _save(store, *both)
    [found] = _found(store)
    assert (found.finish_reason, found.outcome, found.accepted_drafts) == ("stop", "cut_off", 5)
    assert (found.taken_over, found.ended_at, found.tokens) == (tuple(TAKEN), BORN + 2, 20)


def test_steps_come_back(open_store: Open) -> None:
    steps = [3] * 8 + [4, 5, 7, 7, 8, 9, 10, 2**40]
    store = open_store()
    ids = experts_of(1, 16)
    halves = [
        part(
            1,
            experts=[array[8 * n : 8 * n + 8] for array in ids],
            runs=[(8 * n, 8)],
            steps=_raw(steps[8 * n : 8 * n + 8]),
            part=n,
            parts=2,
        )
        for n in (0, 1)
    ]
    _save(store, *halves)
    _save(store, part(2))
    untold, told = [store.traces(item.number, None)[0] for item in _found(store)]
    assert told.steps(0, 16).tolist() == steps
    assert told.steps(6, 11).tolist() == steps[6:11]
    assert told.steps(3, 3).tolist() == []
    assert untold.steps(2, 5).tolist() == [-1, -1, -1]


def _experts(workers: Sequence[WorkerTrace]) -> dict[Worker, list[int]]:
    return {worker.worker: worker.experts[0][:, 0].tolist() for worker in workers}


def _worker(trace: int, tp_rank: int = 0, tp_size: int = 2, epoch: int = EPOCH, **fields: Any) -> TracePart:
    """The trace of a request named "same" in one of several workers, whose experts tell its number."""
    ids = [np.full_like(array, trace) for array in experts_of(1, 10)]
    who = {"tp_rank": tp_rank, "tp_size": tp_size}
    names = {"request_id": "same", "client_ids": ["mine"]}
    return part(trace, experts=ids, who=who, epoch=epoch, **names, **fields)


@pytest.mark.parametrize("epochs", [(EPOCH, EPOCH), (EPOCH, LATER)])
def test_an_id_that_comes_again_to_one_worker_is_another_request(
    open_store: Open, epochs: tuple[int, int]
) -> None:
    store = open_store()
    for trace, epoch in zip((2, 3), epochs, strict=True):
        _save(store, _worker(trace, tp_size=1, epoch=epoch, lora=f"of {trace}"), at=BORN + trace)
    for trace, found in zip((3, 2), _found(store, name="mine"), strict=True):
        assert (found.tokens, found.lora, found.request_id) == (10, f"of {trace}", "same")
        [ids] = _experts(store.traces(found.number, None)).values()
        assert ids == [trace] * 10
    assert store.usage().traces == 2
    assert [item.lora for item in _found(store, layer=1, expert=2)] == ["of 2"]


def test_an_id_that_comes_again_to_several_workers_is_told_by_its_first_step(open_store: Open) -> None:
    """In any order of coming, also while one worker's newer trace is missing."""
    store = open_store()
    _save(
        store,
        _worker(2, tp_rank=0, started_step=5),
        _worker(3, tp_rank=1, started_step=90),
        _worker(2, tp_rank=1, started_step=5),
    )
    newer, older = sorted(_found(store, name="mine"), key=lambda item: item.tokens)
    assert (newer.tokens, older.tokens) == (10, 20)
    assert _experts(store.traces(newer.number, None)) == {Worker(0, 1, EPOCH): [3] * 10}
    assert _experts(store.traces(older.number, None)) == {Worker(0, n, EPOCH): [2] * 10 for n in (0, 1)}


def test_an_id_that_comes_again_to_workers_that_do_not_tell_its_first_step(open_store: Open) -> None:
    """The newest computation only; what began after another one had ended is not put together with it."""
    store = open_store()
    later = {"started_at_ns": EPOCH + 5 * 10**9, "ended_at_ns": EPOCH + 6 * 10**9}
    _save(store, *(_worker(2, tp_rank=n) for n in (0, 1)), _worker(3, tp_rank=0, epoch=LATER, **later))
    [found] = _found(store, name="mine")
    assert _experts(store.traces(found.number, None)) == {Worker(0, 0, LATER): [3] * 10}
    _save(store, _worker(3, tp_rank=1, epoch=LATER + 7, **later))
    [found] = _found(store, name="mine")
    assert found.tokens == 20
    workers = store.traces(found.number, None)
    assert _experts(workers) == {Worker(0, 0, LATER): [3] * 10, Worker(0, 1, LATER + 7): [3] * 10}


def _told(tp_rank: int, number: int, step: int, started: int, ended: int) -> Told:
    return Told(Worker(0, tp_rank, 1), number, step, started, ended)


def test_the_newest_life_is_one_trace_a_worker_and_clocks_may_differ_where_steps_agree() -> None:
    assert newest_life([]) == []
    one, other = _told(0, 1, 7, 1000, 2000), _told(1, 1, 7, 3000, 4000)
    assert newest_life([one, other]) == [0, 1]
    assert newest_life([one, other._replace(started_step=8)]) == [1]
    assert newest_life([one._replace(started_step=-1, ended_ms=3000), other]) == [0, 1]
    assert newest_life([one, one._replace(number=2), other]) == [1, 2]
    assert newest_life([one, other._replace(started_ms=90_000, ended_ms=91_000)]) == [1]


def test_clocks_of_old_workers_may_differ_unless_the_id_came_again() -> None:
    """They don't tell the step that a request began with; a second trace of a worker is of another life."""
    one, other = _told(0, 1, -1, 1000, 2000), _told(1, 1, -1, 3000, 4000)
    assert newest_life([one, other]) == [0, 1]
    assert newest_life([one, other._replace(started_step=7)]) == [0, 1]
    assert newest_life([one, other, other._replace(number=2, started_ms=5000, ended_ms=6000)]) == [2]
    assert newest_life([one, other._replace(started_ms=90_000, ended_ms=91_000)]) == [1]


def test_requests_of_one_pool(open_store: Open) -> None:
    store = open_store()
    _save(store, part(1, who={"pool": "chat"}), part(2, who={"pool": "code"}), part(3))
    assert [item.names[-1] for item in _found(store, pool="chat")] == ["x1"]
    assert [item.number for item in store.listed(TraceQuery(pool="code"))] == [_found(store)[1].number]
    assert [item.names[-1] for item in _found(store, pool="")] == ["x3"]
    assert len(_found(store)) == 3


def test_what_workers_have_not_brought_yet_is_said(open_store: Open) -> None:
    """Two stages of two workers each, which share 10 and 10 tokens."""
    store = open_store()

    def bring(pp_rank: int, tp_rank: int) -> tuple[int, int, int]:
        who = {"pp_rank": pp_rank, "pp_size": 2, "tp_rank": tp_rank, "tp_size": 2}
        told = {"started_step": 3, "computed_tokens": 20}
        _save(store, part(1, runs=[(10 * tp_rank, 10)], who=who, **told))
        [found] = _found(store)
        return found.tokens, found.missing_stages, found.missing_tokens

    assert bring(0, 1) == (10, 1, 10)
    assert bring(1, 0) == (10, 0, 20)
    assert bring(1, 1) == (20, 0, 10)
    assert bring(0, 0) == (20, 0, 0)


def test_a_request_whose_parts_did_not_all_come_is_incomplete(open_store: Open) -> None:
    store = open_store()
    _save(store, part(1, part=1, parts=2))
    assert _found(store) == []
    _save(store, part(3))
    assert store.why_absent("x1") == "incomplete"
    assert store.why_absent("x3") is None
    assert store.why_absent("x2") is None


def test_a_request_that_was_removed_is_remembered_by_all_its_names(open_store: Open) -> None:
    store = open_store(keep_traces_s=1000)
    first, second = part(1), part(2)
    _save(store, first)
    _save(store, second, at=BORN + 500)
    store.maintain(BORN + 1001)
    store = open_store(keep_traces_s=1000)
    for name in (first.request_id, *first.client_ids):
        assert store.why_absent(name) == "expired"
    assert [item.request_id for item in _found(store)] == [second.request_id]
    _save(store, first, at=BORN + 1002)  # it came again
    assert len(_found(store, name="x1")) == 1
    store.maintain(BORN + 3000)
    assert (store.why_absent("x1"), store.why_absent("x2"), _found(store)) == ("expired", "expired", [])


def test_of_an_id_that_came_again_only_the_old_one_is_over(open_store: Open) -> None:
    store = open_store(keep_traces_s=1000)
    _save(store, _worker(2, tp_size=1))
    _save(store, _worker(3, tp_size=1), at=BORN + 900)
    store.maintain(BORN + 1001)
    [found] = _found(store, name="mine")
    assert _experts(store.traces(found.number, None)) == {Worker(0, 0, EPOCH): [3] * 10}
