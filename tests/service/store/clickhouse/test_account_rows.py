"""Accounts that several services keep: what they tell each other, and what of it can't be read."""

from __future__ import annotations

import pytest

from moescope.service.store.clickhouse import account_rows, news
from moescope.service.store.clickhouse.rolling import Rolling
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.codec import encode_account
from moescope.service.store.limits import Retention
from tests.service.frames import EPOCH
from tests.service.store.accounts import BORN, key, posting
from tests.service.store.rewriting import rewrite


def test_what_was_told_is_remembered_for_a_while_only(
    replicas: list[ClickHouseStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer starts again and again."""
    monkeypatch.setattr(news, "OVERLAP_US", 1)
    one, two = replicas
    told = []
    for second in range(0, 600, 5):
        two.save([posting([2, 0], second, epoch=EPOCH + second * 10**9)])
        told += [item.account.latest.epoch for item in one.news()]
        assert len(one._news.seen) <= 1, second
    assert told == [EPOCH + second * 10**9 for second in range(0, 600, 5)]
    assert one.news() == []


def test_an_account_of_a_newer_moescope_holds_no_other_news_up(
    replicas: list[ClickHouseStore], log: pytest.LogCaptureFixture
) -> None:
    """Services that share a store are upgraded one by one."""
    one, two = replicas
    for second in range(1, 4):
        two.save([posting([2 * second, 0], second, dp_rank=rank) for rank in (0, 1)])
        rewrite(two, "account", "account", "dp_rank = 0", lambda blob: b"\x02" + blob[1:])
        assert [item.key for item in one.news()] == [key(1)]
    assert one.news() == []
    [line] = [record.getMessage() for record in log.records]
    assert "the account of ('prod', 'tiny', 0, 0, 0) can't be read" in line
    assert "upgrade it" in line


@pytest.mark.parametrize("seconds", [-1, 0])
def test_a_newer_frame_that_was_written_earlier_is_news(
    replicas: list[ClickHouseStore], seconds: int
) -> None:
    """By the clock of another replica, or of a server that was slow to show it."""
    one, two = replicas
    two.save([posting([2, 0], 1)])
    assert [item.at for item in one.news()] == [BORN + 1]
    two.save([posting([4, 0], 2)])
    _write_at(two, "seq > 1001", f"(SELECT min(written) FROM account) + {seconds} * 1000000")
    assert [item.at for item in one.news()] == [BORN + 2]
    assert one.news() == []


def test_news_are_heard_after_the_servers_clock_was_set_back(
    replicas: list[ClickHouseStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = replicas
    monkeypatch.setattr(news, "_SERVER_US", f"({news._SERVER_US} + 3600000000)")
    two.save([posting([2, 0], 1)])
    _write_at(two, "1", "written + 3600000000")
    assert [item.at for item in one.news()] == [BORN + 1]
    monkeypatch.undo()
    two.save([posting([2, 0], 2), posting([2, 0], 2, dp_rank=1)])
    assert {item.key: item.at for item in one.news()} == {key(0): BORN + 2, key(1): BORN + 2}
    assert one.news() == []
    two.save([posting([4, 0], 3)])
    assert [item.at for item in one.news()] == [BORN + 3]


def test_a_row_that_another_replica_does_not_have_yet_is_news_later(
    replicas: list[ClickHouseStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is asked by way of a balancer is another one from one question to the next."""
    one, two = replicas
    two.save([posting([2, 0], 1)])
    monkeypatch.setattr(news, "postings", lambda *_: iter(()))
    assert one.news() == []
    monkeypatch.undo()
    assert [item.at for item in one.news()] == [BORN + 1]


def test_accounts_are_read_of_the_rows_that_are_news(replicas: list[ClickHouseStore]) -> None:
    """The last minute has an account of each second, of each worker."""
    one, two = replicas
    for second in range(1, 5):
        two.save([posting([2 * second, 0], second, dp_rank=rank) for rank in (0, 1)])
    assert len(one.news()) == 2
    two.save([posting([10, 0], 5, dp_rank=1)])
    answers = []
    rows = one._connection.rows
    one._connection.rows = lambda *args: answers.append(rows(*args)) or answers[-1]  # type: ignore[method-assign]
    assert [item.key for item in one.news()] == [key(1)]
    with_account = [row for answer in answers for row in answer if isinstance(row[-1], bytes)]
    assert [row[2] for row in with_account] == [1]


def test_what_another_kept_before_this_one_kept_more_is_news(replicas: list[ClickHouseStore]) -> None:
    """Its row is replaced by the row of the newer frame, and may have known of another start."""
    one, two = replicas
    two.save([posting([2, 0], 1)])
    one.save([posting([4, 0], 2)])
    assert [item.account.latest.seq for item in one.news()] == [1001]


def test_unreadable_news_alone_are_not_asked_for_again_and_again(replicas: list[ClickHouseStore]) -> None:
    one, two = replicas
    epochs = [EPOCH + second * 10**9 for second in range(0, 300, 60)]
    two.save([posting([2, 0], (epoch - EPOCH) / 1e9, epoch=epoch) for epoch in epochs])
    for epoch in epochs:
        rewrite(two, "account", "account", f"epoch = {epoch}", lambda _: b"\x02")
    assert one.news() == []
    assert len(one._news.seen) == len(epochs)
    asked = []
    rows = one._connection.rows
    one._connection.rows = lambda sql, *args: asked.append(sql) or rows(sql, *args)  # type: ignore[method-assign]
    assert one.news() == []
    assert not any("birth_ms" in sql for sql in asked)


def test_a_name_that_is_no_text_costs_its_account_only(
    replicas: list[ClickHouseStore], log: pytest.LogCaptureFixture
) -> None:
    one, two = replicas
    two.save([posting([2, 0], 5)])
    state = posting([4, 0], 5, dp_rank=1).account
    version = [state.latest.epoch, state.latest.seq]
    born_ms = round(BORN * 1000)
    row = [b"pr\xffd", "tiny", 1, 0, 0, *version, born_ms, born_ms, "other", encode_account(state)]
    one._connection.insert("account", account_rows.COLUMNS, [row])
    assert [item.key for item in one.accounts()] == [key(0)]
    assert "the account of ('pr\ufffdd', 'tiny', 1, 0, 0) can't be read" in log.text


def test_a_life_whose_clock_is_behind_is_kept_as_the_newest(replicas: list[ClickHouseStore]) -> None:
    """After more lives than are read at once, and when all of them are older than history is kept."""
    one, two = replicas
    for second in range(70):
        one.save([posting([2, 0], second, epoch=EPOCH + (second + 1) * 10**9)])
    one.save([posting([6, 0], 100, epoch=EPOCH - 10**15)])
    kept = [item for item in two.accounts() if item.account.latest.epoch == EPOCH - 10**15]
    assert [item.at - BORN for item in kept] == [100]
    Rolling(one._connection, Retention()).keep(int((BORN + 10**9) * 1000))
    [left] = two.accounts()
    assert left.account.latest.epoch == EPOCH - 10**15


def _write_at(store: ClickHouseStore, where: str, written: str) -> None:
    """Say of rows of accounts that the server had them at another time."""
    store._connection.command(
        f"ALTER TABLE account UPDATE written = {written} WHERE {where} SETTINGS mutations_sync = 1"
    )
