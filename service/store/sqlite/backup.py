"""Copies of a store: taken while a service writes to it, put back while none does."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from moescope.service.store.records import StoreError
from moescope.service.store.sqlite.connections import lock_folder
from moescope.service.store.sqlite.continuation import unmark
from moescope.service.store.sqlite.schema import APPLICATION_ID, MIGRATIONS
from moescope.service.store.sqlite.store import FILE


@dataclass(frozen=True, slots=True)
class Contents:
    """What a store, or a copy of one, holds."""

    schema: int
    producers: int
    snapshots: int
    requests: int
    nbytes: int

    def __str__(self) -> str:
        return (
            f"{self.producers} producers, {self.snapshots} snapshots, {self.requests} traced requests, "
            f"{self.nbytes / 2**20:.1f} MiB, schema {self.schema}"
        )


def back_up(folder: Path, target: Path) -> Contents:
    """Copy the store in ``folder`` to the new file ``target``, as of one moment; a service may go on writing.

    Raises:
        StoreError: there is no store, the file exists already, or it can't be written.
    """
    source = folder / FILE
    if not source.is_file():
        raise StoreError(f"there is no store in {folder}: {source} is missing")
    if target.exists():
        raise StoreError(f"{target} exists already: choose another file, or remove it")
    with _failures(f"the backup of {source} to {target}"), _beside(target) as part:
        with closing(sqlite3.connect(source, timeout=10)) as old, closing(sqlite3.connect(part)) as new:
            old.backup(new)  # all pages in one step: the writer goes on, into its log
            new.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
            unmark(new)
        contents = examine(part)
        _sync(part)
        part.rename(target)
        _sync(target.parent)
    return contents


def restore(file: Path, folder: Path, force: bool) -> tuple[Contents, Path | None]:
    """Put a copy into ``folder``, which no service may have.

    Returns what the copy holds, and where the store is now that was there before, if there was one.

    Raises:
        StoreError: the copy is damaged or of a newer moescope, a service has the folder, or it has a store
            already and ``force`` isn't given.
    """
    contents = examine(file)
    target = folder / FILE
    with _failures(f"putting {file} into {folder}"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = lock_folder(folder)
        try:
            aside = None
            if target.exists():
                if not force:
                    raise StoreError(f"{folder} has a store already: choose another folder, or give --force")
                aside = target.with_name(f"{FILE}.before-restore-{time.time_ns() // 1_000_000}")
            with _beside(target) as part:
                shutil.copyfile(file, part)
                with closing(sqlite3.connect(part)) as copy:
                    unmark(copy)
                _sync(part)
                if aside is not None:
                    for suffix in ("-wal", "-shm", ""):
                        old = target.with_name(FILE + suffix)
                        if old.exists():
                            old.rename(aside.with_name(aside.name + suffix))
                part.rename(target)
                _sync(folder)
        finally:
            os.close(lock)
    return contents, aside


def examine(file: Path) -> Contents:
    """What a store's file holds, after every page of it was looked at.

    Raises:
        StoreError: it is none, it is damaged, or it is of a newer moescope.
    """
    if not file.is_file():
        raise StoreError(f"there is no file {file}")
    address = f"{file.resolve().as_uri()}?mode=ro"
    with _failures(f"reading {file}"), closing(sqlite3.connect(address, uri=True)) as found:
        [application] = found.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            raise StoreError(f"{file} is no copy of a moescope store")
        [schema] = found.execute("PRAGMA user_version").fetchone()
        if schema > len(MIGRATIONS):
            raise StoreError(f"{file} has schema {schema}, this moescope knows {len(MIGRATIONS)}: upgrade it")
        [verdict] = found.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise StoreError(f"{file} is damaged: {verdict}")
        tables = {name for (name,) in found.execute("SELECT name FROM sqlite_schema")}
        producers, snapshots, requests = (
            found.execute(f"SELECT count(*) FROM {table}").fetchone()[0] if table in tables else 0
            for table in ("producer", "snapshot", "request")
        )
    return Contents(schema, producers, snapshots, requests, file.stat().st_size)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A file in the same folder, which is gone afterwards unless it was renamed."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _failures(what: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        # A taken folder is an OSError of number 0, which is not worth showing.
        reason = error.strerror if isinstance(error, OSError) and not error.errno else error
        raise StoreError(f"{what} failed: {reason}") from error
