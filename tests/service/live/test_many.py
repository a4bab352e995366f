"""Claims cost nothing: memory follows the members that were heard, and looks follow one deployment's size."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from moescope.service.counts.refusals import RefusedError
from moescope.service.live.state import LiveState
from moescope.service.live.step_joins import Joins
from tests.service.frames import frame, producer
from tests.service.live.step_frames import stepped

NAMES = 40


def test_marks_are_of_members_that_were_heard_and_not_of_those_that_are_claimed() -> None:
    """150 names that claimed 4,096 DP ranks, with two frames of 250 bytes each, took 2.4 GiB."""
    joins = Joins(lambda *_: True)
    tracemalloc.start()
    for name in range(NAMES):
        for first in (0, 5000):
            joins.take(stepped(0, first, [[1, 1]] * 2, server=f"s{name}", dp_size=4096))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < NAMES * 200_000
    assert joins._nbytes < NAMES * 200_000


class Counting(dict):  # type: ignore[type-arg]
    """Counts how often all of it is gone through."""

    walks = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        Counting.walks += 1
        return super().__iter__()


@pytest.mark.parametrize("ask", ["series", "joins", "placement_history"])
def test_a_question_about_one_deployment_does_not_go_through_all(
    make_state: Callable[..., LiveState], ask: str
) -> None:
    """Scrapes grew with the square of the deployments: 4,096 took 47 s."""
    state = make_state()
    for name in range(8):
        state.ingest(frame({0: [1, 1]}, who=producer(server=f"s{name}")))
    roster = state._ledger.roster
    roster._entries = Counting(roster._entries)
    Counting.walks = 0
    wanted = (("s1", "tiny"), [None, None]) if ask == "series" else (("s1", "tiny"),)
    getattr(state, ask)(*wanted)
    assert Counting.walks == 0


def test_layers_of_a_deployment_are_bounded_over_all_of_its_workers(
    make_state: Callable[..., LiveState],
) -> None:
    """Each of many small frames may have 1,024 layers of its own: answers are made of all of them."""
    state = make_state()
    for pp_rank in range(2):
        counts = {layer: [1, 1] for layer in range(512 * pp_rank, 512 * (pp_rank + 1))}
        state.ingest(frame(counts, who=producer(pp_rank=pp_rank, pp_size=3)))
    with pytest.raises(RefusedError, match="have 1025 layers, above 1024"):
        state.ingest(frame({1024: [1, 1]}, who=producer(pp_rank=2, pp_size=3)))
    state.ingest(frame({1023: [1, 1]}, who=producer(pp_rank=2, pp_size=3)))
