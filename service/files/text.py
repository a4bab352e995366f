"""Small files of text, such as tokens and settings."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Any, Final

MAX_BYTES: Final = 1 << 20
"""The largest file of tokens or settings that is read: about 5,000 tokens."""


class FileError(ValueError):
    """A file that can't be used; the message says why and doesn't name it."""


def read_text(path: Path) -> str:
    """The text of a regular file, UTF-8, without the mark that some editors put first (BOM).

    A pipe or a device is refused: opening one may wait without end, and it can't be read again.

    Raises:
        FileError: it can't be read, is no text, or is larger than `MAX_BYTES`.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise FileError(f"it can't be read: {error.strerror}") from error
    except ValueError as error:  # a name with NUL
        raise FileError(f"it can't be read: {error}") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise FileError("it is no regular file: give one, which is read again whenever it changes")
        with os.fdopen(handle, "rb", closefd=False) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileError(f"it can't be read: {error.strerror}") from error
    finally:
        os.close(handle)
    if len(content) > MAX_BYTES:
        raise FileError(f"it is larger than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"it is not text in UTF-8: byte {error.start}") from error


def check_regular(path: Path) -> None:
    """Check that a library may open a file by its name: a pipe would make it wait without end.

    Raises:
        FileError: it isn't there, or is no regular file.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise FileError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:  # a name with NUL
        raise FileError(f"{path} can't be read: {error}") from error
    if not stat.S_ISREG(mode):
        raise FileError(f"{path} is no regular file")


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML document.

    Raises:
        FileError: it is none, or nested too deeply.
    """
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as error:
        raise FileError(f"it is not valid TOML: {error}") from error
    except RecursionError:
        raise FileError("it is not valid TOML: nested too deeply") from None


def stamp(path: Path) -> object:
    """What changes whenever a file does; None: there is none, or it can't be looked at."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return (status.st_mtime_ns, status.st_ino, status.st_size)
