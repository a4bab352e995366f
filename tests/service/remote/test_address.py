"""Addresses of stores: what they mean, and that no message has a password."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moescope.service.remote.address import Address, parse_address
from moescope.service.settings import ClickHouseUrl, Settings, SettingsError, store_named
from moescope.service.settings_sources import load_settings
from moescope.service.store.clickhouse.access import Access
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.records import StoreError
from tests.service.cli.running import run

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clickhouse://h", Address(False, "h", 8123, "default", "", "moescope")),
        ("clickhouses://h/", Address(True, "h", 8443, "default", "", "moescope")),
        ("ClickHouse://me:pw@h.x:9000/db/", Address(False, "h.x", 9000, "me", "pw", "db")),
        ("clickhouse://me@[::1]:8123/db", Address(False, "[::1]", 8123, "me", "", "db")),
        ("clickhouse://me:a/b#c?d[e]f@g:h@h/db", Address(False, "h", 8123, "me", "a/b#c?d[e]f@g:h", "db")),
        ("clickhouse://m%3Ae:p%2Fw%25@h/db", Address(False, "h", 8123, "m:e", "p/w%", "db")),
    ],
)
def test_an_address(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert isinstance(store_named(text), ClickHouseUrl)


SLIPS = [
    "clickhouse:/me:{}@host",
    "clickhouse:me:{}@host/db",
    "clickhouse//me:{}@host/db",
    "clickhouse:///me:{}@host/db",
    "clickhouse://me:{}@host:port/db",
    "clickhouse://me:{}@host:99999/db",
    "clickhouse://me:{}@/db",
    "clickhouse://me:{}@host/a b",
    "clickhouse://me:{}@host/db?secure=1",
    "clickhouse://me:{}",
    "clickhouse ://me:{}@host",
    "http://me:{}@host:8123/db",
    "postgres://me:{}@host/db",
    "me:{}@host/db",
    "me:{}@x://host",
    "//me:{}@host:8123/db",
    " clickhouses:/me:{}@host",
    "{}@host/db",
]


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.parametrize("around", ["", "/", "#", "?", "[", "]", "@", ":", "%", "%zz", " ", "ü"])
def test_a_slip_tells_no_password(slip: str, around: str) -> None:
    text = slip.format(around + SECRET + around)
    assert SECRET not in _refusal(store_named, text)
    if not _refusal(store_named, text) and not text.startswith("/"):  # that nothing tells from a folder
        assert SECRET not in f"{store_named(text)} {parse_address(text).name} {parse_address(text)!r}"


@given(
    st.text(max_size=12),
    st.text(max_size=12),
    st.sampled_from(["{}:{}@", "{}:{}", "{}{}", "/{}:{}@h", "{}@{}:"]),
    st.sampled_from(["clickhouse://", "clickhouses://", "clickhouse:", "clickhouse:/", "http://", ""]),
)
@example("me", "/", "{}:{}@", "clickhouse://")
@example("me", "[", "{}:{}@", "clickhouse://")
def test_any_address_is_one_or_is_refused_without_a_word_of_it(
    user: str, more: str, shape: str, scheme: str
) -> None:
    text = scheme + shape.format(user, f"{SECRET}{more}") + "host:8123/db"
    for check in (store_named, lambda store: Settings(store=store), _loaded):
        assert SECRET not in _refusal(check, text), text


def _loaded(store: str) -> object:
    return load_settings(None, {"store": store})


def _refusal(check: Callable[[str], object], text: str) -> str:
    """What is said of a setting that is refused; nothing of one that is taken."""
    try:
        check(text)
    except (ValueError, SettingsError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("password", [f"a{odd}b-hunter2" for odd in "/#?[@"])
def test_a_server_that_is_away_tells_no_password(password: str) -> None:
    with pytest.raises(StoreError) as told:
        Connection(f"clickhouse://me:{password}@127.0.0.1:1/db", sleep=lambda _: None)
    assert SECRET not in str(told.value)
    assert "clickhouse://127.0.0.1:1 failed" in str(told.value)


def test_the_commands_tell_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for slip in SLIPS:
        monkeypatch.setenv("MOESCOPE_STORE", slip.format(SECRET))
        for command in (["check-config"], ["backup", "copy.sqlite"], ["restore", "copy.sqlite"]):
            told = run(*command)
            assert SECRET not in f"{told.stdout}{told.stderr}", (slip, command)


def test_what_is_wrong_with_the_way_is_told_without_its_password(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    for way, expected in (
        (Access(ca_file=ca), "clickhouse_ca: .*No such file"),
        (Access(ca_file=Path(__file__)), "clickhouse_ca: .*can't be used"),
        (Access(proxy=f"socks5://me:{SECRET}@proxy"), "clickhouse_proxy: expected http"),
        (Access(proxy=f"http://me:{SECRET}@127.0.0.1:1"), "failed"),
    ):
        with pytest.raises(StoreError, match=expected) as told:
            Connection("clickhouses://127.0.0.1:1/db", sleep=lambda _: None, access=way)
        assert SECRET not in str(told.value) + repr(way)
