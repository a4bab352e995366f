"""The store that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from moescope.service.settings import ClickHouseUrl, Settings
from moescope.service.store.clickhouse.access import Access
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.interface import Store
from moescope.service.store.limits import Retention
from moescope.service.store.sqlite.store import SqliteStore
from moescope.service.store.upkeep import MAINTENANCE_S
from moescope.service.store.writer import StoreWriter


def open_store(settings: Settings) -> Store:
    """The store that ``settings.store`` names, which must not be None.

    Raises:
        StoreError: the store can't be opened.
    """
    match settings.store:
        case None:
            raise AssertionError("no store is set")
        case Path() as folder:
            return SqliteStore(folder, retention_of(settings))
        case ClickHouseUrl() as url:
            return open_clickhouse(url, settings)


def open_clickhouse(url: ClickHouseUrl, settings: Settings) -> ClickHouseStore:
    """The store in a ClickHouse.

    Raises:
        StoreError: it can't be opened.
    """
    retention = retention_of(settings)
    # The default bounds a folder. A database that several services share is bounded only on request.
    limit = retention.max_bytes if "store_mib" in settings.model_fields_set else None
    proxy = settings.clickhouse_proxy
    access = Access(
        ca_file=settings.clickhouse_ca,
        proxy=None if proxy is None else proxy.get_secret_value(),
        cluster=settings.clickhouse_cluster,
        timeout_s=settings.clickhouse_timeout_s,
    )
    return ClickHouseStore(url.get_secret_value(), retention, limit, access=access)


def retention_of(settings: Settings) -> Retention:
    """How long what is kept."""
    return Retention(
        fine_s=settings.keep_1s_s,
        middle_s=settings.keep_10s_s,
        coarse_s=settings.keep_5min_s,
        trace_s=settings.keep_traces_s,
        max_bytes=settings.store_mib << 20,
    )


@contextmanager
def open_writer(
    settings: Settings, clock: Callable[[], float] | None = None, maintenance_s: float = MAINTENANCE_S
) -> Generator[StoreWriter | None]:
    """The store and the thread that writes to it; None without a store. Ends by writing what waits.

    Args:
        settings: which store.
        clock: seconds of Unix time; None: the store's, see :attr:`Store.clock`.
        maintenance_s: seconds from the end of one round of maintenance to the begin of the next.

    Raises:
        StoreError: the store can't be opened.
    """
    if settings.store is None:
        yield None
        return
    store = open_store(settings)
    writer = StoreWriter(store, clock or store.clock, maintenance_s)
    try:
        yield writer
    finally:
        writer.close()
