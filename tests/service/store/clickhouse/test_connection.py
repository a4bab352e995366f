"""The connection to ClickHouse: retries, URLs, passwords."""

from __future__ import annotations

from dataclasses import replace
from urllib.request import Request, urlopen

import pytest

from moescope.service.settings import Settings
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.limits import Retention
from moescope.service.store.records import Document, StoreError
from tests.service.store.accounts import posting, slots


def test_a_server_that_is_away_for_a_moment(replicas: list[ClickHouseStore], clickhouse: str) -> None:
    one, two = replicas
    _fail(clickhouse, times=2)
    one.save([posting([4, 0, 0, 0], 5)])
    assert slots(list(two.accounts())) == [4]
    _fail(clickhouse, times=4)
    with pytest.raises(StoreError, match=r"clickhouse://127\.0\.0\.1.*is the server up"):
        one.save([posting([6, 0, 0, 0], 6)])
    one.save([posting([6, 0, 0, 0], 6)])
    assert slots(list(two.accounts())) == [6]


@pytest.mark.parametrize(
    "bad",
    ["clickhouse://127.0.0.1:1/x", "clickhouse://127.0.0.1/a;b", "clickhouse:///x", "clickhouse://[::1/x"],
)
def test_a_url_that_leads_nowhere(bad: str) -> None:
    with pytest.raises(StoreError):
        ClickHouseStore(bad, Retention(), sleep=lambda _: None)


def test_long_lists_are_parameters_too(replicas: list[ClickHouseStore]) -> None:
    """A server takes 128 KiB in a field of a form: less than the names of the workers of a large fleet."""
    one, two = replicas
    server = "a fleet's name, é"
    states = [replace(posting([1, 0], 1), key=(server, "tiny", rank, 0, 0)) for rank in range(2)]
    one.save(states)
    keys = [(server, "tiny", rank, 0, 0) for rank in range(6000)]
    found = two.totals_of(keys, [states[0].at])
    assert [item is not None for item in found[0] + found[1] + found[-1]] == [True, True, False]
    names = [f"{n:060d}" for n in range(4000)]
    one.save([Document("kind", name, name.encode()) for name in names])
    assert [item.name for item in two.changed_documents("kind")] == names


def test_the_password_is_in_no_text() -> None:
    settings = Settings(store="clickhouse://me:secret@host/db")
    assert "secret" not in repr(settings)
    with pytest.raises(ValueError, match="postgres:// is not known"):
        Settings(store="postgres://me:secret@host/db")


def _fail(clickhouse: str, times: int) -> None:
    where = clickhouse.replace("clickhouse://", "http://")
    urlopen(Request(f"{where}/fail?times={times}&code=503", data=b"")).close()
