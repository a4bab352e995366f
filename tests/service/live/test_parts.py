"""Which names look like parts of one deployment."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

from moescope.service.live.parts import MOST_PARTS, Part, other_parts, told
from moescope.service.live.state import LiveState
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame, halves, producer


def say(state: LiveState, server: str, ranks: list[int], size: int = 4, model: str = "tiny") -> None:
    for rank in ranks:
        who = producer(
            server=server, model=model, dp_rank=rank, dp_size=size, ep_rank=rank, ep_size=size, host=server
        )
        state.ingest(frame({0: [8] * 4}, who=who, placement=halves(4, 1, size) if size > 1 else None))


def found(state: LiveState) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    parts = other_parts(state.producers())
    return {name: [(part.server, part.dp_ranks) for part in others] for (name, _), others in parts.items()}


def test_names_that_have_each_others_missing_ranks_are_found(make_state: Callable[..., LiveState]) -> None:
    state = make_state()
    say(state, "a", [0, 1])
    say(state, "b", [2, 3])
    assert found(state) == {"a": [("b", (2, 3))], "b": [("a", (0, 1))]}
    said = told(other_parts(state.producers()), state.deployments())
    assert said.count("MOESCOPE_SERVER") == 1
    assert "server=a and server=b have each other's missing DP ranks" in said


def test_one_name_a_rank_and_one_rank_that_never_came(make_state: Callable[..., LiveState]) -> None:
    state = make_state()
    for rank, name in enumerate("abc"):
        say(state, name, [rank])
    assert found(state)["a"] == [("b", (1,)), ("c", (2,))]


def test_what_is_whole_or_of_another_shape_is_no_part(make_state: Callable[..., LiveState]) -> None:
    state = make_state()
    say(state, "whole", [0, 1, 2, 3])
    say(state, "a", [0, 1])
    say(state, "of two", [0], size=2)
    say(state, "other model", [2, 3], model="other")
    say(state, "same ranks", [1, 2])
    assert found(state) == {}
    assert told(other_parts(state.producers()), state.deployments()) == ""


def test_who_left_is_no_part(make_state: Callable[..., LiveState], clock: Clock) -> None:
    """A pod was renamed: its former name has expired. And ranks beyond the present sizes are none."""
    state = make_state(expire_after_s=60)
    say(state, "former", [2, 3])
    clock.now += 61
    say(state, "a", [0, 1])
    assert found(state) == {}
    say(state, "b", [0, 1, 2, 3])
    for rank in (0, 1):
        who = producer(server="b", dp_rank=rank, dp_size=2, ep_rank=rank, ep_size=2)
        state.ingest(frame({0: [8] * 4}, who=who, epoch=EPOCH + 10**12, placement=halves(4, 1)))
    assert found(state) == {}


def test_many_parts_are_named_up_to_a_bound_and_in_linear_time(make_state: Callable[..., LiveState]) -> None:
    """300 names of 1,024 DP ranks took 4 s in each answer that names them."""
    state = make_state()
    for rank in range(200):
        state.ingest(frame({0: [1, 1]}, who=producer(server=f"s{rank:03d}", dp_rank=rank, dp_size=512)))
    with mock.patch.object(Part, "missing", new_callable=mock.PropertyMock) as missing:
        missing.return_value = frozenset(range(512))
        found = other_parts(state.producers())
    assert missing.call_count <= 400
    assert {len(parts) for parts in found.values()} == {MOST_PARTS}
