"""When placements came into force, whoever reports them in whatever order."""

from __future__ import annotations

from moescope.capture import wire
from moescope.service.live.placements import KEPT, Placements
from tests.service.frames import EPOCH, frame, placement, producer


def _frame(dp_rank: int, version: int, epoch: int = EPOCH, first: int = 0, **who: int) -> wire.Frame:
    where = placement(range(4), [first, 0, 1, 1], 1, version)
    return frame(
        {0: [1, 1, 1, 1]},
        who=producer(dp_rank=dp_rank, dp_size=2, ep_size=2, **who),
        epoch=epoch,
        placement=where,
    )


def _told(known: Placements) -> list[tuple[int, float, float]]:
    return [(item.placement.version, item.at, item.everywhere_at) for item in known.history("prod", "tiny")]


def test_the_first_worker_tells_and_the_last_one_makes_it_so_everywhere() -> None:
    known, now = Placements(), EPOCH / 1e9
    known.note(_frame(0, 1), now + 1)
    known.note(_frame(1, 1), now + 2)
    known.note(_frame(0, 2, first=1), now + 10)
    known.note(_frame(1, 1), now + 11)  # late: it has not adopted it yet
    known.note(_frame(1, 2, first=1), now + 12)
    known.note(_frame(1, 2, first=1), now + 13)
    assert _told(known) == [(1, now + 1, now + 2), (2, now + 10, now + 12)]


def test_a_restarted_server_counts_versions_anew() -> None:
    known, now = Placements(), EPOCH / 1e9
    known.note(_frame(0, 7, first=1), now + 1)
    known.note(_frame(0, 1, epoch=EPOCH + 60 * 10**9), now + 61)
    assert _told(known) == [(7, now + 1, now + 1), (1, now + 61, now + 61)]


def test_pipeline_stages_are_apart_and_memory_is_bounded() -> None:
    known = Placements()
    known.note(_frame(0, 1), 0.0)
    known.note(_frame(0, 1, pp_rank=1, pp_size=2), 0.0)
    for version in range(2, 2 * KEPT):
        known.note(_frame(0, version, first=version % 2), float(version))
    found = known.history("prod", "tiny")
    assert [item.pp_rank for item in found] == [0] * KEPT + [1]
    assert found[KEPT - 1].placement.version == 2 * KEPT - 1
    assert known.rearrangements("prod", "tiny") == 2 * KEPT - 2
    known.forget(producer(dp_rank=0, dp_size=2).key)
    assert [item.pp_rank for item in known.history("prod", "tiny")] == [1]
    assert known.rearrangements("prod", "tiny") == 0
    known.forget(producer(dp_rank=0, dp_size=2, pp_rank=1, pp_size=2).key)
    assert known.history("prod", "tiny") == known.newest([]) == []


def test_a_stage_is_remembered_until_its_last_producer_is_forgotten() -> None:
    known = Placements()
    known.note(_frame(0, 1), 1.0)
    known.note(_frame(1, 1), 2.0)
    known.forget(producer(dp_rank=0, dp_size=2).key)
    assert _told(known) == [(1, 1.0, 2.0)]
    known.forget(producer(dp_rank=1, dp_size=2).key)
    assert _told(known) == []


def test_a_worker_that_does_not_know_tells_nothing() -> None:
    known = Placements()
    known.note(frame({0: [1, 1]}), 1.0)
    assert known.history("prod", "tiny") == []
