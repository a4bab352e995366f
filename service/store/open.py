"""The store that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from moescope.service.settings import Settings
from moescope.service.store.retention import Retention
from moescope.service.store.sqlite import SqliteStore
from moescope.service.store.writer import StoreWriter


@contextmanager
def open_writer(settings: Settings, clock: Callable[[], float]) -> Generator[StoreWriter | None]:
    """The store and the thread that writes to it; None without a store. Ends by writing what waits.

    Raises:
        StoreError: the store can't be opened.
    """
    if settings.store is None:
        yield None
        return
    retention = Retention(
        fine_s=settings.keep_1s_s,
        middle_s=settings.keep_10s_s,
        coarse_s=settings.keep_5min_s,
        trace_s=settings.keep_traces_s,
        max_bytes=settings.store_mib << 20,
    )
    writer = StoreWriter(SqliteStore(settings.store, retention), clock)
    try:
        yield writer
    finally:
        writer.close()
