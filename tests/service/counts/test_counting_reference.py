"""Accounts merged in any order and grouping, against plain sums and comparisons of all that was taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from moescope.capture.wire import Frame
from moescope.service.counts.account import Account, Verdict
from moescope.service.counts.account_state import AccountState
from moescope.service.counts.choosing import STALE_AFTER_S
from moescope.service.counts.merging import merge_accounts
from tests.service.frames import EPOCH, frame, producer

S = 10**9
SERVICES = 4
MAX_EPOCHS = 16
WAYS = st.tuples(st.integers(0, SERVICES - 1), st.sampled_from([0, 0, 0, 3, 14, 15, 16, 40]))


@dataclass(frozen=True)
class Taken:
    """A frame that a service accepted, and when; ``made_at`` is when its totals were true, as it knew."""

    at: float
    service: int
    made: Frame
    made_at: float


@dataclass
class Story:
    """What services know that have not heard of each other, and all that they accepted."""

    taken: list[Taken] = field(default_factory=list)
    accounts: dict[int, Account] = field(default_factory=dict)

    def send(self, at: float, service: int, made: Frame) -> None:
        account = self.accounts.setdefault(service, Account(MAX_EPOCHS))
        if account.post(made, at=at) is not Verdict.ACCEPTED:
            return
        before = [
            item.at - item.made.uptime_ns / S
            for item in self.taken
            if (item.service, item.made.epoch) == (service, made.epoch)
        ]
        made_at = min(at, min(before) + made.uptime_ns / S) if before else at
        self.taken.append(Taken(at, service, made, made_at))

    @property
    def states(self) -> list[AccountState]:
        return [account.state() for account in self.accounts.values()]

    def counting(self) -> int:
        """The start that counts: the newest, or the one that all newer ones were silent for long before."""
        of = {
            item.made.epoch: [one for one in self.taken if one.made.epoch == item.made.epoch]
            for item in self.taken
        }
        began = {
            epoch: (min(one.at - one.made.uptime_ns / S for one in taken), epoch)
            for epoch, taken in of.items()
        }
        heard = {epoch: max(one.at for one in taken) for epoch, taken in of.items()}
        going = {
            epoch: max((one.made_at for one in taken if not one.made.ended), default=0.0)
            for epoch, taken in of.items()
        }
        newest_first = sorted(of, key=lambda epoch: began[epoch], reverse=True)
        found = newest_first[0]
        for n, epoch in enumerate(newest_first):
            if all(going[epoch] > heard[newer] + STALE_AFTER_S for newer in newest_first[:n]):
                found = epoch
        return found

    def newest(self) -> dict[int, Frame]:
        """Of each start the newest frame."""
        found: dict[int, Frame] = {}
        for item in sorted(self.taken, key=lambda item: item.made.seq):
            found[item.made.epoch] = item.made
        return found


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Starts that follow each other, overlap, begin at once or end early; frames go any number of ways."""
    sent: list[tuple[float, int, Frame]] = []
    for number in range(draw(st.integers(1, 4))):
        begin = 100.0 + draw(st.sampled_from([0, 0, 1, 10, 30, 60]))
        epoch = EPOCH + number + draw(st.sampled_from([0, -600, 600])) * S
        count, ends = draw(st.integers(1, 4)), draw(st.booleans())
        up, dp_size = 0, draw(st.sampled_from([1, 2]))
        for seq in range(1, count + 1):
            up += draw(st.sampled_from([1, 9, 16, 40]))
            made = frame(
                {0: [2 * seq, 2 * number]},
                who=producer(host=f"h{number}", pid=number, dp_size=dp_size),
                epoch=epoch,
                seq=seq,
                after_s=up,
                uptime_ns=up * S,
                decode={0: [seq, number]},
                state=draw(st.sampled_from(["counting", "disabled"])),
                ended=ends and seq == count,
            )
            for service, delay in draw(st.lists(WAYS, max_size=3)):
                sent.append((begin + up + delay, service, made))
    story = Story()
    for at, service, made in sorted(sent, key=lambda item: item[0]):
        story.send(at, service, made)
    return story


def grouped(draw: st.DataObject, known: Sequence[AccountState]) -> AccountState:
    """All accounts merged, two by two, in an order and a grouping that is drawn."""
    left = list(draw.draw(st.permutations(known)))
    while len(left) > 1:
        at = draw.draw(st.integers(0, len(left) - 2))
        left[at : at + 2] = [merge_accounts(left[at], left[at + 1], MAX_EPOCHS)]
    return left[0]


@given(stories(), st.data())
def test_what_counts_and_how_much_is_what_a_plain_look_at_all_frames_says(
    story: Story, data: st.DataObject
) -> None:
    if not story.taken:
        return
    merged = grouped(data, story.states)
    newest = story.newest()
    latest = newest[story.counting()]
    assert merged.latest.epoch == latest.epoch
    assert (merged.latest.seq, merged.latest.ended) == (latest.seq, latest.ended)
    assert merged.latest.producer == latest.producer
    assert merged.latest.state == latest.state
    assert merged.totals.dp_size == latest.producer.dp_size
    assert merged.totals.tokens == sum(made.tokens for made in newest.values())
    assert merged.totals.steps == sum(made.steps for made in newest.values())
    assert merged.epochs_seen == len(newest)
    assert {life.epoch: life.seq for life in merged.epochs} == {
        epoch: made.seq for epoch, made in newest.items()
    }
    restored = Account.restored(merged, MAX_EPOCHS).state()
    assert (restored.latest, restored.totals.tokens) == (merged.latest, merged.totals.tokens)


def all_said(state: AccountState) -> dict[str, object]:
    """What services say of a rank."""
    totals, base = state.totals, state.base
    assert totals.decode is not None
    return {
        "latest": (state.latest.epoch, state.latest.seq, state.latest.state, state.latest.traces),
        "sizes": (totals.dp_size, totals.ep_size),
        "counts": (
            totals.counts.tolist(),
            totals.decode.counts.tolist(),
            totals.tokens,
            totals.unphased_tokens,
        ),
        "switches": totals.switches,
        "former": totals.former_tokens,
        "weights": totals.weights,
        "seen": state.epochs_seen,
        "conflicts": state.conflicts,
        "base": None if base is None else (base.restarts, base.totals.tokens),
        "lives": {
            life.epoch: (*life.instants, life.lag, life.ended, life.seq, life.overlaps)
            for life in state.epochs
        },
        "others": {(item.epoch, item.seq, item.state) for item in state.others},
    }


@given(stories(), st.data())
def test_services_that_hear_of_each_other_in_any_order_come_to_say_the_same(
    story: Story, data: st.DataObject
) -> None:
    if not story.taken:
        return
    states = story.states
    pairs = [(one, other) for one in range(len(states)) for other in range(len(states)) if one != other]
    for _ in range(2):
        for one, other in data.draw(st.permutations(pairs)):
            states[one] = merge_accounts(states[one], states[other], MAX_EPOCHS)
    for state in states[1:]:
        assert all_said(state) == all_said(states[0])


def test_what_may_be_of_former_weights_is_told_alike() -> None:
    """One service took a start for one whose weights were changed back, as it had heard another between."""

    def told(number: int, seq: int, up: int, version: int) -> Frame:
        return frame(
            {0: [2 * seq, 2 * number]},
            who=producer(host=f"h{number}", pid=number),
            epoch=EPOCH + number,
            seq=seq,
            after_s=up,
            uptime_ns=up * S,
            decode={0: [seq, number]},
            weights_version=version,
        )

    story = Story()
    for at, service, made in (
        (101.0, 0, told(0, 1, 1, 0)),
        (101.0, 0, told(1, 1, 1, 1)),
        (101.0, 1, told(1, 1, 1, 1)),
        (117.0, 0, told(0, 2, 17, 0)),
        (117.0, 1, told(0, 2, 17, 0)),
    ):
        story.send(at, service, made)
    one, other = story.states
    found = merge_accounts(one, other, MAX_EPOCHS).totals.weights
    assert found == merge_accounts(other, one, MAX_EPOCHS).totals.weights
    assert found.tokens == 2


def test_switches_of_capture_do_not_rise_by_telling_each_other() -> None:
    """The start that counts is disabled, and an older one that some services heard alone is not."""

    def told(number: int, seq: int, state: str) -> Frame:
        counts, up = {0: [2 * seq, 2 * number]}, seq * S
        who = producer(host=f"h{number}", pid=number)
        decode = {0: [seq, number]}
        return frame(counts, who=who, epoch=EPOCH + number, seq=seq, uptime_ns=up, decode=decode, state=state)

    newer, older, late = told(1, 1, "disabled"), told(0, 2, "counting"), told(0, 1, "counting")
    story = Story()
    for at, service, made in (
        (111.0, 0, newer),
        (111.0, 1, newer),
        (112.0, 1, older),
        (112.0, 2, older),
        (114.0, 0, late),
    ):
        story.send(at, service, made)
    states = story.states
    found = []
    for _ in range(4):
        for one, other in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)):
            states[one] = merge_accounts(states[one], states[other], MAX_EPOCHS)
        found.append([state.totals.switches for state in states])
    assert found[1:] == [[3, 3, 3]] * 3
