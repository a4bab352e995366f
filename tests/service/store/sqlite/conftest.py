"""Stores with traces, to be damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart
from moescope.service.store.sqlite.store import SqliteStore
from tests.service.store.sqlite.damage import NOW, whole_store
from tests.service.trace_parts import part


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a store that was closed in order; see :mod:`tests.service.store.sqlite.damage`."""
    return whole_store(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[SqliteStore]:
    """Two whole traces and a part of a third one, each in a segment of its own."""
    store = SqliteStore(tmp_path, Retention())
    store.save([ArrivedPart(item, NOW) for item in (part(1), part(2), part(3, part=0, parts=2))])
    yield store
    store.close()
