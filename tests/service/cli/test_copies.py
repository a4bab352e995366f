"""`moescope backup` and `restore`, as operators run them."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from moescope.service.store.sqlite.schema import APPLICATION_ID
from moescope.service.store.sqlite.store import FILE
from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.frames import frame


def test_a_url_is_no_folder_to_copy_and_its_password_stays_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOESCOPE_STORE", "clickhouse://user:hidden@127.0.0.1:1/db")
    for command in ("backup", "restore"):
        done = run(command, tmp_path / "copy.sqlite")
        assert done.returncode == 2
        assert "its own BACKUP" in done.stderr
        assert "hidden" not in done.output
    done = run("backup", tmp_path / "copy.sqlite", "--store", "postgres://user:hidden@127.0.0.1/db")
    assert done.returncode == 2
    assert "a store at postgres:// is not known: give a folder" in done.stderr
    assert "hidden" not in done.output
    checked = run("check-config")
    assert "whether ClickHouse answers was not tried" in checked.stderr
    assert "hidden" not in checked.output


def test_backup_while_frames_come_and_restore(start_service: Callable[..., Service], tmp_path: Path) -> None:
    folder, file = tmp_path / "store", tmp_path / "copy.sqlite"
    service = start_service(store=folder, use_clock=time.time, max_frames_per_s=10_000)
    stop, sent = threading.Event(), [0]

    def push() -> None:
        while not stop.is_set():
            n = sent[0] + 1
            assert service.push(frame({0: [n, n]}, seq=n)).status_code == 200
            sent[0] = n

    thread = threading.Thread(target=push)
    thread.start()
    try:
        while sent[0] < 20:
            time.sleep(0.01)
        before = sent[0]
        done = run("backup", file, "--store", folder)
        after = sent[0]
    finally:
        stop.set()
        thread.join()
    assert done.returncode == 0, done.output
    assert "1 producers" in done.stdout
    assert run("backup", file, "--store", folder).returncode == 2, "a file is never overwritten"
    taken = run("restore", file, "--store", folder, "--force").stderr
    assert "failed: another service has it" in taken
    start_service.end_all()  # type: ignore[attr-defined]

    other = tmp_path / "other"
    assert run("restore", file, "--store", other).returncode == 0
    assert "give --force" in run("restore", file, "--store", other).stderr
    done = run("restore", file, "--store", other, "--force")
    assert (done.returncode, len(list(other.glob("*.before-restore-*")))) == (0, 1)
    service = start_service(store=other)
    [layer] = service.get("/v1/histogram")["layers"]
    assert before <= layer["counts"][0] <= after + 1
    assert not list(tmp_path.glob(".*.part"))


def test_a_copy_that_is_none_or_damaged_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    file = tmp_path / "copy"
    assert "there is no file" in run("restore", file, "--store", folder).stderr
    file.write_bytes(b"no database at all" * 100)
    assert "failed" in run("restore", file, "--store", folder).stderr
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as other, other:
        other.execute("CREATE TABLE t (x)")
    assert (
        "no copy of a moescope store" in run("restore", tmp_path / "other.sqlite", "--store", folder).stderr
    )
    with closing(sqlite3.connect(tmp_path / "newer.sqlite")) as newer, newer:
        newer.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        newer.execute("PRAGMA user_version = 999")
    assert "has schema 999" in run("restore", tmp_path / "newer.sqlite", "--store", folder).stderr
    assert not (folder / FILE).exists()
    assert "there is no store" in run("backup", tmp_path / "x", "--store", folder).stderr
