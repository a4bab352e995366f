"""What a store keeps of where experts are goes with the producer whose word it is."""

from __future__ import annotations

from collections.abc import Callable

from moescope.service.store.interface import Store
from moescope.service.store.records import PLACEMENT, Document, Forgotten, name_of
from tests.service.frames import EPOCH
from tests.service.store.accounts import BORN, key, posting
from tests.service.store.leaving import LIVES, leave, told


def test_it_goes_with_its_producer(open_store: Callable[..., Store]) -> None:
    store = open_store()
    one, other = posting([1, 2], 1, dp_rank=0), posting([1, 2], 1, dp_rank=1)
    store.save([one, other, told(one), told(other), Document("baseline", name_of(one.key), b"stays")])
    store.save([Forgotten(key(0), LIVES, BORN + 60)])
    assert store.documents(PLACEMENT) == [(name_of(key(1)), b"there")]
    assert store.documents("baseline") == [(name_of(key(0)), b"stays")]
    # In one batch, whichever comes first; and a producer that is back.
    store.save([one, told(one), Forgotten(key(0), LIVES, BORN + 60)])
    assert store.documents(PLACEMENT) == [(name_of(key(1)), b"there")]
    back = posting([5, 5], 90, dp_rank=0, epoch=EPOCH + 10**9)
    store.save([Forgotten(key(0), LIVES, BORN + 60), back, told(back, b"again")])
    assert dict(store.documents(PLACEMENT)) == {name_of(key(0)): b"again", name_of(key(1)): b"there"}


def test_what_an_earlier_moescope_left_is_removed(open_store: Callable[..., Store]) -> None:
    store = open_store()
    here = posting([1, 2], 1, dp_rank=1)
    store.save([here])
    for item in (posting([1, 2], 1, dp_rank=0), here):
        leave(store, told(item))
    leave(store, Document(PLACEMENT, "of a newer moescope", b"unknown"))
    store.maintain(BORN + 5)
    assert dict(store.documents(PLACEMENT)) == {
        name_of(key(1)): b"there",
        "of a newer moescope": b"unknown",
    }
