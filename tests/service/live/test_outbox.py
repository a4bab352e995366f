"""What waits for the store: little, whatever happens while nobody takes it."""

from __future__ import annotations

from dataclasses import replace

from moescope.service.live.outbox import Outbox
from moescope.service.store.records import Forgotten
from tests.service.store.accounts import key, posting


def test_of_a_producer_that_is_forgotten_only_that_waits() -> None:
    outbox = Outbox()
    other = posting([2, 0], 1, dp_rank=1)
    for second in range(3):
        outbox.post(posting([2, 0], second, began_again=second == 1))
        outbox.post(other)
        outbox.forget(Forgotten(key()))
    assert outbox.take() == [other, other, other, Forgotten(key())]
    assert outbox.take() == []


def test_a_new_history_that_was_not_kept_is_said_again_once() -> None:
    outbox = Outbox()
    lost = posting([2, 0], 1, began_again=True)
    outbox.not_kept([lost], lambda _: True)
    later = posting([4, 0], 2)
    outbox.post(later)
    outbox.post(later)
    assert outbox.take() == [replace(later, began_again=True), later]


def test_of_a_producer_that_is_gone_no_new_history_is_remembered() -> None:
    """Its record says that its history goes: should it come back, there is none that must go."""
    outbox = Outbox()
    outbox.not_kept([posting([2, 0], 1, began_again=True), Forgotten(key())], lambda _: False)
    assert outbox.take() == [Forgotten(key())]
    back = posting([4, 0], 2)
    outbox.post(back)
    assert outbox.take() == [back]


class _Counted(tuple[str, str, int, int, int]):
    """A key that counts how often it is compared."""

    __slots__ = ()
    compared = 0

    def __ne__(self, other: object) -> bool:
        _Counted.compared += 1
        return super().__ne__(other)

    __hash__ = tuple.__hash__


def test_a_round_of_news_looks_through_what_waits_of_those_alone_of_whom_something_waits() -> None:
    outbox, found = Outbox(), posting([2, 0], 1)
    many = [replace(found, key=_Counted(("prod", "tiny", rank, 0, 0))) for rank in range(200)]
    for item in many:
        outbox.post_newest(item)
    assert _Counted.compared == 0
    outbox.post_newest(many[7])
    assert _Counted.compared == 200
    assert outbox.take() == [*many[:7], *many[8:], many[7]]
    outbox.post_newest(many[7])
    assert (_Counted.compared, outbox.take()) == (200, [many[7]])
