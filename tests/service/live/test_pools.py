"""Which deployments are in which pool."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moescope.service.live.pools import live_replicas, pools_of, replica_of
from moescope.service.live.state import LiveState
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame, producer

S = 10**9


def members(state: LiveState) -> dict[tuple[str, str], list[str]]:
    """Pool and model to the servers in it."""
    found = pools_of(live_replicas(state.producers()))
    return {key: [replica.deployment[0] for replica in replicas] for key, replicas in found.items()}


def test_a_pool_is_of_one_model_and_none_is_guessed(make_state: Callable[..., LiveState]) -> None:
    state = make_state()
    for server, model, pool in (("b", "m", "p"), ("a", "m", "p"), ("c", "n", "p"), ("d", "m", "")):
        state.ingest(frame({0: [1, 1]}, who=producer(server=server, model=model, pool=pool)))
    assert members(state) == {("p", "m"): ["a", "b"], ("p", "n"): ["c"]}


def test_a_worker_of_an_older_start_does_not_take_its_deployment_back(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    """After a restart in another pool, rank 1 of the former start, which lives on, is heard last."""
    state = make_state()

    def tell(dp_rank: int, pool: str, epoch: int, seq: int) -> None:
        clock.now += 1
        who = producer(dp_rank=dp_rank, dp_size=2, pool=pool)
        after = clock.now - epoch / S
        state.ingest(frame({0: [1, 1]}, who=who, epoch=epoch, seq=seq, after_s=after))

    for dp_rank in (0, 1):
        tell(dp_rank, "old", EPOCH, 1)
    restarted = int(clock.now * S)
    tell(0, "new", restarted, 1)
    tell(1, "old", EPOCH, 2)
    assert members(state) == {("new", "tiny"): ["prod"]}
    tell(1, "new", restarted, 1)
    assert members(state) == {("new", "tiny"): ["prod"]}


@pytest.mark.parametrize("role", ["", "prefill", "decode"])
def test_roles_are_those_that_workers_tell(make_state: Callable[..., LiveState], role: str) -> None:
    state = make_state()
    state.ingest(frame({0: [1, 1]}, who=producer(role=role)))
    assert replica_of(state.producers()).role == role


def test_the_state_of_a_replica_is_that_of_its_present_start(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state()

    def tell(dp_rank: int, dp_size: int, *, seq: int = 1, epoch: int = EPOCH, **fields: str) -> None:
        who = producer(dp_rank=dp_rank, dp_size=dp_size)
        after = clock.now - epoch / S
        state.ingest(frame({0: [1, 1]}, who=who, seq=seq, epoch=epoch, after_s=after, **fields))

    def now() -> str:
        return replica_of(state.producers()).state

    tell(0, 2)
    assert now() == "partial"  # DP rank 1 never reported
    tell(1, 2)
    assert now() == "counting"
    tell(1, 2, seq=2, state="disabled")
    assert now() == "partial"
    tell(0, 2, seq=2, state="disabled")
    assert now() == "disabled"
    clock.now += 60
    assert now() == "stale"
    tell(0, 1, epoch=int(clock.now * S))  # started again with one rank
    assert now() == "counting"


def test_a_replica_that_shut_down_in_order_is_in_no_pool(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state()
    for server in ("a", "b"):
        state.ingest(frame({0: [1, 1]}, who=producer(server=server, pool="p"), after_s=100))
    state.ingest(frame({0: [1, 1]}, who=producer(server="a", pool="p"), seq=2, after_s=101, ended=True))
    clock.now += 1
    assert members(state) == {("p", "tiny"): ["b"]}
    assert replica_of([item for item in state.producers() if item.gone]).state == "gone"


def test_a_dp_rank_that_did_not_come_back_makes_its_replica_partial(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state()

    def tell(dp_rank: int, epoch: int, seq: int = 1) -> None:
        clock.now += 1
        after = clock.now - epoch / S
        state.ingest(
            frame({0: [1, 1]}, who=producer(dp_rank=dp_rank, dp_size=2), seq=seq, epoch=epoch, after_s=after)
        )

    for dp_rank in (0, 1):
        tell(dp_rank, EPOCH)
    clock.now += 1
    restarted = int(clock.now * S)
    tell(0, restarted)
    replica = replica_of(state.producers())
    assert (replica.state, replica.missing_dp_ranks) == ("partial", [])
    tell(1, restarted)
    tell(0, restarted, 2)
    assert replica_of(state.producers()).state == "counting"


def test_missing_dp_ranks_are_of_the_sizes_that_were_told_last(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    """Elastic expert parallelism: rank 0 began last, and rank 1 is the first to tell that there are three."""
    state = make_state()

    def tell(dp_rank: int, dp_size: int, seq: int) -> None:
        clock.now += 1
        epoch = EPOCH + (1 - dp_rank) * S
        who = producer(dp_rank=dp_rank, dp_size=dp_size)
        state.ingest(frame({0: [1, 1]}, who=who, epoch=epoch, seq=seq, after_s=clock.now - epoch / S))

    for dp_rank in (0, 1):
        tell(dp_rank, 2, 1)
    assert replica_of(state.producers()).missing_dp_ranks == []
    tell(1, 3, 2)
    assert replica_of(state.producers()).missing_dp_ranks == [2]
