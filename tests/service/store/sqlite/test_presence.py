"""Files that are removed or replaced under the service: nothing is acknowledged that nobody will find."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moescope.service.store.limits import Retention
from moescope.service.store.records import StoreError
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.conftest import Service
from tests.service.frames import frame
from tests.service.store.accounts import posting
from tests.waiting import wait_until


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "store", Retention())
    yield made
    made.close()


def _replace(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def _move_folder(path: Path) -> None:
    path.parent.rename(path.parent.parent / "moved")


def _new_folder(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.mkdir()


@pytest.mark.parametrize("harm", [Path.unlink, _replace, _move_folder, _new_folder])
@pytest.mark.parametrize("name", [FILE, f"{FILE}-wal", f"{FILE}-shm", "lock"])
def test_nothing_is_kept_in_files_without_a_name(
    store: SqliteStore, tmp_path: Path, harm: Callable[[Path], None], name: str
) -> None:
    kept = posting([1, 1], 0.0)
    store.save([kept])
    harm(tmp_path / "store" / name)
    for attempt in (lambda: store.save([kept]), store.news, lambda: store.maintain(kept.at)):
        with pytest.raises(StoreError, match=r"removed or replaced .* start the service again"):
            attempt()


def test_a_frame_is_refused_and_the_log_says_so_within_a_second(
    start_service: Callable[..., Service], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Long before the next maintenance, which would notice too."""
    service = start_service(store=tmp_path / "store", maintenance_s=3600)
    assert service.push(frame({0: [1, 1]})).status_code == 200
    shutil.rmtree(tmp_path / "store")
    wait_until(lambda: "was removed or replaced while the service ran" in caplog.text, "no line", every=0.1)
    answer = service.push(frame({0: [2, 2]}, seq=2))
    assert answer.status_code == 503
    assert "start the service again" in answer.json()["detail"]


def test_files_that_stay_are_no_trouble(store: SqliteStore) -> None:
    kept = posting([1, 1], 0.0)
    for _ in range(3):
        store.save([kept])
        store.maintain(kept.at)
        assert store.news() == ()
