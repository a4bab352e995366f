"""A folder that is moved: whole, once, whatever happens in between."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from moescope.capture.wire import Frame
from moescope.service.drift.baseline import KIND, Baseline
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.limits import Retention
from moescope.service.store.moving import progress
from moescope.service.store.records import Document, StoreError, TraceQuery
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.frames import EPOCH, frame, producer
from tests.service.store.clickhouse.several import KEPT, Peer
from tests.service.store.moving.folders import (
    BORN,
    LONG,
    RANKS,
    SECONDS,
    TRACES,
    check,
    counts_of,
    make_folder,
    move,
    rows,
)

ALL = {
    "account": RANKS,
    "life": 2 * RANKS,
    "snapshot": RANKS * SECONDS,
    "trace_part": TRACES,
    "routing": 2 * TRACES,
    "gone": 0,
}


def change(folder: Path, statement: str, *values: object) -> None:
    """Change a folder behind a service's back."""
    with closing(sqlite3.connect(folder / FILE)) as connection, connection:
        assert connection.execute(statement, values).rowcount >= 1


def test_all_is_there_and_counted_on_both_sides(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    found = move(tmp_path, url)
    assert found.differs == []
    assert not found.left_out
    assert found.ours["snapshots", ""] == RANKS * SECONDS
    slots = sum(sum(counts_of(rank, SECONDS - 1)) * 2 for rank in range(RANKS))
    assert found.theirs["producers", "slots"] == found.theirs["producers", "slots by start"] == slots
    assert found.theirs["documents: placement", ""] == 1
    assert found.theirs["producers", "dropped: steps_lost"] == RANKS * (5 + 11)
    assert found.theirs["producers", "traces dropped_refused"] == 1 + 2
    assert found.theirs["producers", "starts"] == 2 * RANKS
    assert found.theirs["requests", ""] == found.theirs["traces", ""] == TRACES
    assert found.theirs["parts", "slots"] == sum(range(TRACES + 1)) * 6
    check(url)
    assert rows(url) == ALL


@pytest.mark.parametrize("steps", [1, 9, 19, 24, 30])
def test_killed_in_the_middle_it_goes_on(url: str, tmp_path: Path, steps: int) -> None:
    """kill -9 after so many steps of two rows each: in the history, in the traces, behind them."""
    make_folder(tmp_path)
    command = [sys.executable, "-m", "tests.service.store.moving.folders", str(tmp_path), url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(steps)]
        process.kill()
    assert all(said), said
    heard: list[str] = []
    found = move(tmp_path, url, say=heard.append)
    assert found.differs == []
    check(url)
    assert rows(url) == ALL
    if steps > 18:  # all of the history was there
        assert not any(line.startswith("history") for line in heard)


def test_moved_again_nothing_is_doubled(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    assert move(tmp_path, url).differs == []
    with closing(ClickHouseStore(url, LONG)) as store:
        for name, kept in store.documents(progress.MOVING):  # as if it had been killed at the very end
            noted = progress.msgspec.msgpack.decode(kept, type=progress.Progress)
            noted.done_ms, noted.requests, noted.history, noted.last = 0, 0, (0, 0), 0
            progress.note(store.connection, name, noted)
    assert move(tmp_path, url).differs == []
    check(url)
    assert rows(url) == ALL


def test_a_service_that_wrote_to_the_folder_meanwhile(url: str, tmp_path: Path) -> None:
    """Then all of the folder is moved again, and what came is there too."""
    make_folder(tmp_path)
    assert move(tmp_path, url).differs == []
    change(tmp_path, "DELETE FROM snapshot WHERE producer = 1 AND at_ms % 2000 = 0")
    with closing(SqliteStore(tmp_path, LONG)) as store:
        store.save([Document("baseline", "another", b"more")])
    found = move(tmp_path, url)
    assert found.differs == []
    assert found.ours["documents: baseline", ""] == 2
    assert found.ours["snapshots", ""] == RANKS * SECONDS - SECONDS // 2


def test_a_baseline_that_was_pinned_in_the_folder_meanwhile_is_moved_too(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    assert move(tmp_path, url).differs == []
    with closing(SqliteStore(tmp_path, LONG)) as store:
        store.save([Document("baseline", "another", b"more")])
    assert move(tmp_path, url).differs == []
    with closing(ClickHouseStore(url, LONG)) as store:
        assert ("another", b"more") in store.documents("baseline")


@pytest.mark.parametrize(
    ("theirs", "right"),
    [
        ((("again", 5.0),), 7.0),
        ((("again", 9.0),), 9.0),
        ((("again", 5.0), ("again", None)), None),  # the word that it is gone is of now
    ],
)
def test_of_two_pins_of_a_name_the_newer_one_counts(
    url: str, tmp_path: Path, theirs: tuple[tuple[str, float | None], ...], right: float | None
) -> None:
    """A folder goes back into use after it was moved, and is moved again."""
    make_folder(tmp_path)
    with closing(SqliteStore(tmp_path, LONG)) as store:
        store.save([_pin("again", 3.0)])
    assert move(tmp_path, url).differs == []
    with closing(ClickHouseStore(url, LONG)) as database, closing(SqliteStore(tmp_path, LONG)) as store:
        for name, at in theirs:
            database.save([_pin(name, at)])
        store.save([_pin("again", 7.0)])
    for _ in range(2):
        assert move(tmp_path, url).differs == []
        with closing(ClickHouseStore(url, LONG)) as database:
            kept = dict(database.documents("baseline")).get("again")
        assert kept == _pin("again", right).content


def test_a_pin_that_is_newer_than_the_word_that_it_is_gone_is_back(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    with closing(ClickHouseStore(url, LONG)) as database:
        database.save([_pin("again", 1.0)])
        database.save([_pin("again", None)])
        later = database.clock() + 5
    with closing(SqliteStore(tmp_path, LONG)) as store:
        store.save([_pin("again", later)])
    assert move(tmp_path, url, merge=True).differs == []
    with closing(ClickHouseStore(url, LONG)) as database:
        assert dict(database.documents("baseline"))["again"] == _pin("again", later).content


def _pin(name: str, at: float | None) -> Document:
    """A baseline that was pinned at an instant, or the word that it is gone."""
    made = Baseline("prod", "tiny", name, "", 1.0, 2.0, at or 0.0, 3, (), b"", b"")
    return Document(KIND, name, None if at is None else made.document().content)


def test_what_cannot_be_read_is_left_out_and_told(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    change(tmp_path, "UPDATE producer SET account = substr(account, 1, 30) WHERE dp_rank = 1")
    change(tmp_path, "UPDATE snapshot SET totals = x'00' WHERE producer = 1 AND at_ms = ?", int(BORN * 1000))
    change(tmp_path, "UPDATE trace_part SET runs = x'c1' WHERE trace = 3")
    change(tmp_path, "UPDATE request SET outcome = 'unheard of' WHERE id = 5")
    found = move(tmp_path, url)
    assert found.differs == []
    assert {kind: len(which) for kind, which in found.left_out.items()} == {
        "producers": 1,
        "snapshots": 1,
        "requests": 1,
        "traces": 1,
    }
    assert "'prod', 'tiny', 1" in found.left_out["producers"][0]
    assert found.ours["snapshots", ""] == RANKS * SECONDS - 1
    with closing(ClickHouseStore(url, LONG)) as store:
        kept = {int(item.names[-1][1:]) for item in store.traced_requests(TraceQuery(limit=100))}
        assert kept == set(range(1, TRACES + 1)) - {3, 5}
        # What a service shows of a store that lost an account: counters begin at zero.
        accounts = {item.key[2]: item.account for item in store.accounts()}
        assert set(accounts) == {0, 2}
        for account in accounts.values():
            assert account.base is not None
            assert account.base.totals.counts.tolist() == account.totals.counts.tolist()


def test_a_database_with_other_data_is_refused_unless_it_may_be_merged_with(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "one")
    make_folder(tmp_path / "two", name="other")
    assert move(tmp_path / "one", url).differs == []
    with pytest.raises(StoreError, match=r"has data already \(3 producers, .*give --merge"):
        move(tmp_path / "two", url)
    assert rows(url) == ALL
    found = move(tmp_path / "two", url, merge=True)
    assert found.differs == []
    assert rows(url) == {table: 2 * count for table, count in ALL.items()}
    with closing(ClickHouseStore(url, LONG)) as store:
        assert len(list(store.accounts())) == 2 * RANKS
        assert len(store.documents("baseline")) == 2


def test_two_folders_with_history_of_the_same_producers_are_refused(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "one")
    make_folder(tmp_path / "two")
    assert move(tmp_path / "one", url).differs == []
    with pytest.raises(StoreError, match="history of 3 of these producers from another folder"):
        move(tmp_path / "two", url, merge=True)
    check(url)


def test_what_the_database_says_itself_of_a_document_stays(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    with closing(ClickHouseStore(url, LONG)) as store:
        store.save([Document("baseline", "pinned prod", b"newer"), Document("aged", "aged", None)])
    assert move(tmp_path, url, merge=True).differs == []
    assert move(tmp_path, url, merge=True).differs == [], "asked once more"
    with closing(ClickHouseStore(url, LONG)) as store:
        assert store.documents("baseline") == [("pinned prod", b"newer")]
        assert store.documents("aged") == []


def _frame(rank: int, second: int) -> Frame:
    """What a rank's later start tells after so many seconds of the folder's."""
    told = [10 * (second - SECONDS // 2 + 1) * (rank + 1)] * 8
    who = producer(dp_rank=rank, dp_size=RANKS)
    return frame({0: told, 4: told}, epoch=EPOCH + 10**10, seq=second + 1, who=who)


def test_services_that_run_on_the_database_hear_of_it(url: str, tmp_path: Path) -> None:
    """One knows the ranks already, since they came to it; another knows nothing."""
    make_folder(tmp_path)
    now = [BORN + SECONDS + 10]
    busy, idle = (Peer(url, lambda: now[0], stale_after_s=1e6) for _ in range(2))
    for rank in range(RANKS):
        assert busy.take(_frame(rank, SECONDS + 3)) == [KEPT]
    now[0] += 2
    assert move(tmp_path, url, merge=True).differs == []
    for _ in range(2):
        now[0] += 2
        for peer in (busy, idle):
            peer.hear()
    later = Peer(url, lambda: now[0], stale_after_s=1e6)
    expected = [16 * 10 * (rank + 1) * 2 for rank in range(RANKS)]
    for peer in (busy, idle, later):
        totals = [int(item.totals.counts[:2].sum()) for item in peer.state.producers()]
        assert totals == expected
        # From the folder's middle to its end, over the start in between; then up to what came since.
        for since, until, seconds in ((3, 9, 6), (9, SECONDS - 1, 2), (3, SECONDS + 11, 12)):
            spans = peer.state.spans(("prod", "tiny"), BORN + since, BORN + until)
            assert [int(item.span.delta.counts[0]) for item in spans] == [
                10 * seconds * (rank + 1) for rank in range(RANKS)
            ]
    for peer in (busy, idle, later):
        peer.kill()


def test_what_is_too_old_is_left_to_its_age(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    found = move(tmp_path, url, retention=Retention())
    assert found.differs == []
    assert found.too_old == {"snapshots": RANKS * (SECONDS - 1), "requests": TRACES}
    assert rows(url)["snapshot"] == RANKS, "the newest of each stays"


def test_a_folder_of_an_older_moescope(url: str, tmp_path: Path) -> None:
    for path in sorted((Path(__file__).parents[1] / "sqlite" / "upgrade").glob("schema*.sqlite")):
        folder = tmp_path / path.stem
        folder.mkdir()
        shutil.copy(path, folder / FILE)
        there = f"{url}_{path.stem}"
        assert move(folder, there).differs == []
        with closing(SqliteStore(folder, LONG)) as one, closing(ClickHouseStore(there, LONG)) as other:
            mine, its = (store.traced_requests(TraceQuery()) for store in (one, other))
            assert len(mine) == len(its) == 3
            for a, b in zip(mine, its, strict=True):
                assert (a.names, a.tokens, a.started_at) == (b.names, b.tokens, b.started_at)
                [x], [y] = one.traces(a.number, None), other.traces(b.number, None)
                assert [ids.tolist() for ids in x.experts] == [ids.tolist() for ids in y.experts]


def test_a_name_that_was_removed_is_known_as_such(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    with closing(SqliteStore(tmp_path, LONG)) as store:
        store._retention = Retention(trace_s=10, fine_s=1e10, middle_s=1e10, coarse_s=1e10)
        store.maintain(BORN + 15.5)
        assert store.why_absent("x3") == "expired"
    found = move(tmp_path, url)
    assert found.differs == []
    assert found.theirs["removed names", ""] == 4 * 5
    with closing(ClickHouseStore(url, LONG)) as store:
        assert store.why_absent("x3") == "expired"
        assert store.why_absent("x30") is None


def test_a_folder_that_a_service_has_is_not_moved(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    with (
        closing(SqliteStore(tmp_path, LONG)),
        pytest.raises(StoreError, match=r"a service has it\. Stop the service first"),
    ):
        move(tmp_path, url)
    with pytest.raises(StoreError, match="there is no store in"):
        move(tmp_path / "none", url)


def test_what_lacks_is_noticed_and_written_by_another_run(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    losing: list[Callable[[str], None]] = []

    def lose(said: str) -> None:
        if said == "documents" and not losing:
            losing.append(lose)
            with closing(ClickHouseStore(url, LONG)) as store:
                store.connection.command("DELETE FROM snapshot WHERE dp_rank = 1 AND at_ms % 2000 = 0")
                store.connection.command("DELETE FROM routing WHERE layer = 3 AND request_id LIKE '%x7%'")

    found = move(tmp_path, url, say=lose)
    assert {place[0] for place in found.differs} == {"snapshots", "parts"}
    assert move(tmp_path, url).differs == []
    check(url)


def test_a_folder_that_lost_something_shows_counters_from_zero(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    change(tmp_path, "UPDATE document SET content = x'00' WHERE kind = 'run'")
    assert move(tmp_path, url).differs == []
    with closing(ClickHouseStore(url, LONG)) as store:
        bases = [item.account.base for item in store.accounts()]
        assert all(base is not None and abs(base.at - time.time()) < 600 for base in bases)


def test_a_damaged_file_says_what_to_do(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="it is damaged: start the service again, which puts it aside"):
        move(tmp_path, url)
