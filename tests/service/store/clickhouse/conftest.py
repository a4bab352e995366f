"""Two services' stores in one database."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.limits import Retention


@pytest.fixture
def url(clickhouse: str) -> str:
    return f"{clickhouse}/test_{uuid.uuid4().hex}"


@pytest.fixture
def replicas(url: str) -> Iterator[list[ClickHouseStore]]:
    stores = [ClickHouseStore(url, Retention(), sleep=lambda _: None) for _ in range(2)]
    yield stores
    for store in stores:
        store.close()
