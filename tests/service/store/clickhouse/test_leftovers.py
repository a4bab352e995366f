"""Documents that nothing needs any more, where several services keep them."""

from __future__ import annotations

from moescope.service.live.ledger import Ledger
from moescope.service.store.clickhouse.documents import Changes
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.records import PLACEMENT, Document, Forgotten, name_of
from tests.service.frames import EPOCH, frame, halves, producer
from tests.service.store.accounts import BORN, key, posting
from tests.service.store.clickhouse.several import KEPT, Peer
from tests.service.store.leaving import LIVES, leave, told

MOST = 4


def ledger(peer: Peer) -> Ledger:
    return peer.state._ledger


def test_what_another_service_keeps_meanwhile_stays(replicas: list[ClickHouseStore]) -> None:
    one, other = replicas
    first = posting([1, 2], 1, dp_rank=0)
    one.save([first, told(first)])
    later = posting([5, 5], 90, dp_rank=0, epoch=EPOCH + 10**9)
    other.save([later, told(later, b"newer")])
    one.save([Forgotten(key(0), LIVES, BORN + 60)])
    assert one.documents(PLACEMENT) == [(name_of(key(0)), b"newer")]


def test_words_that_something_is_gone_go_when_all_have_heard_them(replicas: list[ClickHouseStore]) -> None:
    store, _ = replicas
    removed, now = Document("baseline", "old", b"what it was"), Document("baseline", "new", b"")
    leave(store, removed)
    leave(store, removed, gone=True)
    store.save([now, Document("baseline", "new", None)])
    changes = Changes(store.connection, "baseline")
    assert {item.name for item in changes.read()} == {"old", "new"}
    store.maintain(BORN)
    names = "SELECT name FROM document WHERE kind = 'baseline'"
    assert {name for (name,) in store.connection.rows(names, "t")} == {"new"}, "the old one is back"
    assert store.documents("baseline") == []
    assert changes.read() == []
    assert set(changes._seen) == {"new"}


def test_pods_whose_names_change_leave_nothing_behind(url: str) -> None:
    """For ever: in the store and in each service's memory there is no more than there may be producers."""
    now = [BORN]
    few = {"max_producers": MOST, "stale_after_s": 1.0, "expire_after_s": 2.0}
    busy, idle = (Peer(url, lambda: now[0], **few) for _ in range(2))
    for day in range(4 * MOST):
        now[0] = BORN + 10 * day
        who = producer(server=f"pod-{day}", ep_size=2)
        at = {"epoch": EPOCH + day * 10**10, "after_s": 0.0, "placement": halves(4, 1)}
        assert busy.take(frame({0: [1, 2, 3, 4]}, who=who, **at)) == [KEPT]
        idle.hear()
    later = Peer(url, lambda: now[0], **few)
    kept = busy.store.documents(PLACEMENT)
    assert {name for name, _ in kept} == {name_of(item.key) for item in busy.store.accounts()}
    assert len(kept) == MOST
    for peer in (busy, idle, later):
        placements, members = ledger(peer).placements, set(ledger(peer).roster.members())
        assert set(placements._newest) <= members
        assert len(placements._newest) + len(ledger(peer).placement_news._early) <= MOST
    # The newest are known to all that know their producers.
    for peer in (busy, later):
        assert set(ledger(peer).placements._newest) == set(ledger(peer).roster.members())
    for peer in (busy, idle, later):
        peer.kill()


def test_a_placement_that_is_heard_before_the_account_waits_for_it(url: str) -> None:
    now = [BORN]
    one, other = (Peer(url, lambda: now[0]) for _ in range(2))
    who = producer(ep_size=2)
    assert one.take(frame({0: [1, 2, 3, 4]}, who=who, placement=halves(4, 1))) == [KEPT]
    other.state.hear_placements(other.store.documents(PLACEMENT))
    assert not ledger(other).placements._newest
    assert set(ledger(other).placement_news._early) == {who.key}
    other.hear()
    assert set(ledger(other).placements._newest) == {who.key}
    assert not ledger(other).placement_news._early
    # One whose account doesn't come is dropped.
    told_of = producer(server="nobody", ep_size=2)
    three = Peer(url, lambda: now[0])
    assert three.take(frame({0: [1, 2, 3, 4]}, who=told_of, placement=halves(4, 1))) == [KEPT]
    [early] = [item for item in three.store.documents(PLACEMENT) if "nobody" in item[0]]
    other.state.hear_placements([early])
    three.store.connection.command("TRUNCATE TABLE account")
    other.hear()
    assert set(ledger(other).placement_news._early) == {told_of.key}
    now[0] += 61
    other.hear()
    assert not ledger(other).placement_news._early
    for peer in (one, other, three):
        peer.kill()


def test_a_placement_of_one_that_another_service_forgot_is_kept_again_when_it_is_back(url: str) -> None:
    """Whoever has it here didn't forget it, and its worker tells nothing new."""
    now = [BORN]
    one, other = (Peer(url, lambda: now[0]) for _ in range(2))
    who = producer(ep_size=2)
    assert one.take(frame({0: [1, 2, 3, 4]}, who=who, placement=halves(4, 1))) == [KEPT]
    one.hear()
    other.hear()
    other.store.save([Forgotten(who.key, LIVES, now[0])])
    assert one.store.documents(PLACEMENT) == []
    one.hear()
    assert one.store.documents(PLACEMENT) == [], "nothing has come of it"
    now[0] += 2
    assert one.take(frame({0: [2, 3, 4, 5]}, seq=2, who=who, placement=halves(4, 1))) == [KEPT]
    assert [name for name, _ in one.store.documents(PLACEMENT)] == [name_of(who.key)]
    assert not ledger(one).placement_news._untold
    for peer in (one, other):
        peer.kill()


def test_an_old_placement_that_is_heard_before_the_account_waits_for_it_too(url: str) -> None:
    """A service that was cut off for minutes keeps both late, and between two questions of another one."""
    now = [BORN]
    one, other = (Peer(url, lambda: now[0]) for _ in range(2))
    who = producer(ep_size=2)
    assert one.take(frame({0: [1, 2, 3, 4]}, who=who, placement=halves(4, 1))) == [KEPT]
    now[0] += 300
    placed = other.store.changed_documents(PLACEMENT)
    other.state.hear_placements((item.name, item.content) for item in placed)
    other.hear()
    assert set(ledger(other).placements._newest) == {who.key}
    for peer in (one, other):
        peer.kill()


def test_of_an_early_placement_the_newest_waits_where_there_is_room_for_one(url: str) -> None:
    now = [BORN]
    one, other = Peer(url, lambda: now[0]), Peer(url, lambda: now[0], max_producers=1)
    who = producer(ep_size=2)
    for seq, version in ((1, 1), (2, 2)):
        now[0] += 2
        moved = halves(4, 1, version=version)
        assert one.take(frame({0: [seq, 2, 3, 4]}, seq=seq, who=who, placement=moved)) == [KEPT]
        other.state.hear_placements(other.store.documents(PLACEMENT))
    [(_, early)] = ledger(other).placement_news._early.values()
    assert early.placement == moved
    for peer in (one, other):
        peer.kill()


def test_a_placement_that_could_not_be_kept_goes_with_its_producer(url: str) -> None:
    now = [BORN]
    one = Peer(url, lambda: now[0])
    who = producer(ep_size=2)
    one.state.ingest(frame({0: [1, 2, 3, 4]}, who=who, placement=halves(4, 1)))
    records = one.state.take_records()
    assert any(isinstance(item, Document) for item in records)
    ledger(one)._forget(who.key)
    one.state.not_kept(records)
    assert not any(isinstance(item, Document) for item in one.state.take_records())
    one.kill()
