"""Small files that an operator names: what can't be used is told at once, whatever it is."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from moescope.service.files.text import MAX_BYTES, FileError, check_regular, parse_toml, read_text, stamp


def test_the_mark_that_some_editors_put_first_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert read_text(path) == "a = 1\n"
    assert parse_toml("\ufeffa = 1") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read: No such file"),
        (b"\xffa", "not text in UTF-8: byte 0"),
        (b"a" * (MAX_BYTES + 1), "larger"),
    ],
)
def test_what_can_not_be_used_says_why(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_text(path)


@pytest.mark.parametrize("check", [read_text, check_regular])
@pytest.mark.parametrize("name", ["pipe", "folder", "a\0b", "/dev/zero", "/dev/null", "x" * 300])
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, name: str, check: Callable[[Path], object]
) -> None:
    """A pipe that nobody writes to made check-config wait without end."""
    path = tmp_path / name
    if name == "pipe":
        os.mkfifo(path)
    if name == "folder":
        path.mkdir()
    found: list[str] = []

    def run() -> None:
        try:
            check(path)
        except FileError as error:
            found.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert found, "it waits, or takes it"


@pytest.mark.parametrize("text", ["a = " + "[" * 10_000, "a\0 = 1", "a = '\0'", "[[a", "\ud800"])
def test_what_is_no_toml_is_told(text: str) -> None:
    with pytest.raises(FileError, match="not valid TOML"):
        parse_toml(text)


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert stamp(path) is None
    assert stamp(Path("a\0b")) is None
    path.write_text("a")
    first = stamp(path)
    path.write_text("ab")
    assert first is not None
    assert stamp(path) != first
