"""What a DP rank computed, from workers that tell of it one after the other."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from moescope.service.counts.account import Account
from moescope.service.counts.rank_work import RankWork, work_of
from moescope.service.counts.totals import Totals
from tests.service.frames import EPOCH, frame


def told(tokens: int, decode: int | None, seq: int = 1, steps: int = 4) -> Totals:
    """What a worker tells; ``decode`` None: it tells no phases."""
    account = Account(max_epochs=4)
    named = {} if decode is None else {"decode": {0: [decode] * 2}, "decode_steps": 1, "mixed_steps": 1}
    account.post(frame({0: [tokens] * 2}, seq=seq, steps=steps, **named))
    return account.totals


def test_the_most_that_any_worker_tells_counts() -> None:
    work = work_of([told(100, 40), told(90, 38), None])
    assert (work.tokens, work.prefill_tokens, work.decode_tokens, work.unknown_tokens) == (100, 60, 40, 0)
    assert (work.steps, work.prefill_steps, work.unknown_steps) == (4, 2, 0)
    assert work_of([None]) == work_of([]) == RankWork()


def test_what_one_worker_lost_of_a_former_start_another_has() -> None:
    # One lost decode tokens of its first start, the other has not told of the second one yet.
    work = work_of([told(110, 40), told(100, 50)])
    assert (work.prefill_tokens, work.decode_tokens, work.tokens, work.unknown_tokens) == (70, 50, 120, 0)


def test_what_no_worker_tells_the_phase_of_is_unknown() -> None:
    work = work_of([told(100, 40), told(150, None)])
    assert (work.tokens, work.prefill_tokens, work.decode_tokens, work.unknown_tokens) == (150, 60, 40, 50)
    assert work_of([told(100, None)]).unknown_steps == 4


more = st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 9), st.integers(0, 5))


@given(st.lists(more, max_size=30))
def test_nothing_ever_falls(steps: list[tuple[int, int, int, int]]) -> None:
    """Each of three workers goes on in its own time; some start again, and forget nothing."""
    accounts = [Account(max_epochs=4) for _ in range(3)]
    state = [[EPOCH, 0, 0, 0] for _ in range(3)]  # epoch, seq, prefill, decode
    seen = [RankWork()]
    for who, prefill, decode, again in steps:
        mine = state[who]
        if not again:
            mine[:] = [mine[0] + 10**9, 0, 0, 0]
        mine[1:] = [mine[1] + 1, mine[2] + prefill, mine[3] + decode]
        counts, of_decode = {0: [mine[2] + mine[3]] * 2}, {0: [mine[3]] * 2}
        steps_told = {"steps": mine[1], "mixed_steps": mine[1]}
        accounts[who].post(frame(counts, decode=of_decode, epoch=mine[0], seq=mine[1], **steps_told))
        seen.append(work_of(account.totals for account in accounts if account.latest is not None))
    for before, after in pairwise(seen):
        change = after.minus(before)
        assert min(change.tokens, change.steps, change.prefill_tokens, change.decode_tokens) >= 0
        assert (after.unknown_tokens, after.unknown_steps) == (0, 0)
