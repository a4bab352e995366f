"""A service with a store, ended and started again: totals, epochs and history are those of before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moescope.service.store.records import StoreError
from moescope.service.store.sqlite.store import SqliteStore
from tests.service.conftest import Clock, Service
from tests.service.frames import EPOCH, frame, halves, producer

Start = Callable[..., Service]


@pytest.fixture
def restart(start_service: Start, store_setting: str) -> Callable[[], Service]:
    """A service over the test's store; the one before ends."""

    def started(**settings: Any) -> Service:
        start_service.end_all()  # type: ignore[attr-defined]
        return start_service(store=store_setting, min_tokens=1, **settings)

    return started


def push(service: Service, total: int, seq: int, **fields: Any) -> str:
    """A frame whose layer 0 has this many slots of expert 0 in all; returns what became of it."""
    after_s = service.clock.now - EPOCH / 1e9
    result: str = service.push(frame({0: [total, 0]}, seq=seq, after_s=after_s, **fields)).json()["result"]
    return result


def counts(answer: dict[str, Any]) -> list[int]:
    [layer] = answer["layers"]
    return list(layer["counts"])


def test_totals_and_epochs_survive(restart: Callable[[], Service]) -> None:
    service = restart()
    assert push(service, 10, seq=1) == "accepted"
    assert push(service, 6, seq=1, epoch=EPOCH + 10**9) == "accepted"
    before = service.get("/v1/ranks")
    service = restart()
    assert service.get("/v1/ranks") == before
    assert counts(service.get("/v1/histogram")) == [16, 0]
    assert push(service, 6, seq=1, epoch=EPOCH + 10**9) == "duplicate"
    assert push(service, 8, seq=2, epoch=EPOCH + 10**9) == "accepted"
    assert counts(service.get("/v1/histogram")) == [18, 0]


def test_a_window_before_the_restart(restart: Callable[[], Service], clock: Clock) -> None:
    service = restart()
    began = clock.now
    for n in range(1, 11):
        push(service, 10 * n, seq=n)
        clock.now += 10
    window = {"start": str(began + 20), "end": str(began + 50)}
    before = service.get("/v1/histogram", **window)
    assert counts(before) == [30, 0]
    service = restart()
    clock.now += 100
    push(service, 500, seq=11)
    assert service.get("/v1/histogram", **window) == before
    assert counts(service.get("/v1/histogram", start=str(began + 20))) == [500 - 30, 0]
    assert counts(service.get("/v1/histogram", start=str(began + 90), end=str(began + 150))) == [0, 0]


def test_a_window_from_when_there_were_other_ranks(restart: Callable[[], Service], clock: Clock) -> None:
    """Measured over the EP ranks of that time, of which only one got any slots."""
    service, began = restart(), clock.now
    for start, ranks in enumerate((4, 2)):
        for seq in (1, 2, 3):
            for rank in range(ranks):
                who = producer(dp_rank=rank, dp_size=ranks, ep_rank=rank, ep_size=ranks)
                placed, epoch = halves(4, 1, ranks), EPOCH + start * 10**11
                service.push(frame({0: [8 * seq, 0, 0, 0]}, who=who, epoch=epoch, seq=seq, placement=placed))
            clock.now += 10
    for _ in range(2):
        for begin, end, ranks in ((0, 20, 4), (40, 50, 2)):
            view = service.get("/v1/view", start=str(began + begin), end=str(began + end))
            assert (view["dp_size"], view["ep_size"]) == (ranks, ranks)
            assert view["layers"][0]["over_ep_ranks"]["imbalance_ratio"] == ranks
        service = restart()


def test_a_clock_that_went_ahead_and_was_set_back(restart: Callable[[], Service], clock: Clock) -> None:
    service, began = restart(), clock.now
    for n in range(1, 31):
        clock.now = began + 10 * n + (3600 if n in (11, 12) else 0)
        push(service, 2 * n, seq=n)
    for _ in range(2):  # from memory, then from the store
        for first, last in ((1, 9), (9, 14), (14, 20), (13, 30)):
            window = {"start": str(began + 10 * first), "end": str(began + 10 * last)}
            answer = service.get("/v1/histogram", **window)
            assert counts(answer) == [2 * (last - first), 0], (first, last)
        assert counts(service.get("/v1/histogram", start=str(began + 290))) == [2, 0]
        service = restart()
    # When the time comes that the clock once showed, what was counted then is long surpassed.
    clock.now = began + 10 * 12 + 3600
    answer = service.get("/v1/histogram", start=str(began + 300), end=str(clock.now))
    assert counts(answer) == [0, 0]
    for n in (31, 32):
        push(service, 2 * n, seq=n)
        clock.now += 10
    window = {"start": str(began + 300), "end": str(clock.now)}
    assert counts(service.get("/v1/histogram", **window)) == [4, 0]


def test_a_series_adds_up_over_a_restart(restart: Callable[[], Service], clock: Clock) -> None:
    service = restart()
    began = clock.now
    for n in range(1, 31):
        if n == 17:
            service = restart()
        push(service, 2 * n * n, seq=n)
        clock.now += 1
    end = began + 29
    answer = service.get("/v1/histogram", start=str(began), end=str(end), step="4s")
    assert [(item["start"] - began, item["end"] - began) for item in answer["series"]] == [
        (0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 24), (24, 28), (28, 29),
    ]  # fmt: skip
    expected = [
        2 * (b + 1) ** 2 - 2 * (a + 1) ** 2
        for a, b in zip([*range(0, 29, 4)], [*range(4, 29, 4), 29], strict=True)
    ]
    assert [counts(item)[0] for item in answer["series"]] == expected
    assert sum(expected) == counts(answer)[0]
    assert [item["tokens"] for item in answer["series"]] == [value // 2 for value in expected]
    assert not any(item["truncated"] for item in answer["series"])


def test_a_series_of_one_dp_rank_and_some_layers(service: Service) -> None:
    for rank in range(2):
        who = producer(dp_rank=rank, dp_size=2)
        service.push(frame({0: [2, 0], 4: [0, 2 + rank * 2]}, rows=[1, 1 + rank], who=who))
    now = service.clock.now
    answer = service.get("/v1/histogram", start=str(now - 300), step="150", dp_rank=1, layer=4)
    assert [item["layers"] for item in answer["series"]] == [
        [{"layer": 4, "tokens": 0, "counts": [0, 0], "not_conserved": None}],
        [{"layer": 4, "tokens": 2, "counts": [0, 4], "not_conserved": None}],
    ]


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ({"step": "10s"}, "step-without-start"),
        ({"start": "-1h", "step": "1s"}, "too-many-steps"),
        ({"start": "-1h", "step": "soon"}, "bad-step"),
        ({"start": "-1h", "step": "0s"}, "bad-step"),
    ],
)
def test_bad_steps(service: Service, query: dict[str, str], kind: str) -> None:
    service.push(frame({0: [2, 0]}))
    response = service.client.get("/v1/histogram", params=query)
    assert response.status_code == 400
    assert response.json()["type"] == f"urn:moescope:problem:{kind}"


def test_thinned_memory_asks_the_store(start_service: Start, clock: Clock, tmp_path: Path) -> None:
    """Memory for few snapshots: the store knows what memory has thinned out."""
    service = start_service(store=tmp_path / "store", min_tokens=1, history_mib=1)
    began = clock.now
    wide = [0] * 1023
    for n in range(1, 400):
        service.push(frame({0: [2 * n, *wide]}, seq=n, after_s=100 + n))
        clock.now += 1
    answer = service.get("/v1/histogram", start=str(began + 11), end=str(began + 17))
    assert counts(answer)[0] == 12
    assert answer["window"]["used_start"] == {"earliest": began + 11, "latest": began + 11}


@pytest.mark.parametrize("store_setting", ["sqlite"], indirect=True)
def test_a_frame_that_cannot_be_kept_is_not_acknowledged(
    restart: Callable[[], Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = restart()
    save = SqliteStore.save
    monkeypatch.setattr(SqliteStore, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    answer = service.push(frame({0: [2, 0]}))
    assert answer.status_code == 503
    assert "disk full" in answer.json()["detail"]
    monkeypatch.setattr(SqliteStore, "save", save)
    assert service.push(frame({0: [2, 0]})).json()["result"] == "duplicate"
    assert counts(restart().get("/v1/histogram")) == [2, 0]  # the duplicate was kept for the first


def test_a_new_shape_that_could_not_be_kept_at_first_still_begins_a_history_of_its_own(
    start_service: Start, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(store=tmp_path, min_tokens=1)
    service.push(frame({0: [4, 4]}))
    clock.now += 100
    new = frame({0: [2, 2, 2]}, epoch=EPOCH + 10**11, after_s=8)
    with monkeypatch.context() as broken:
        broken.setattr(SqliteStore, "save", _fail)
        assert service.push(new).status_code == 503
    assert service.push(new).json()["result"] == "duplicate"
    # Between the new epoch's start and its first frame the store has nothing, and nothing of the old shape.
    window = {"start": str(clock.now - 4), "end": str(clock.now)}
    assert counts(service.get("/v1/histogram", **window)) == [0, 0, 0]


def _fail(*_: object) -> None:
    raise StoreError("the disk is full")
