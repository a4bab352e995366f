"""A mebibyte of the disk that is kept for opening the store when nothing else is free.

SQLite can't open a database whose log has to be read again on a full disk. The reserve is given up then, so
that a service that is started again serves what it knows, and made again when there is space.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

NAME: Final = "reserve"
BYTES: Final = 1 << 20


def set_aside(folder: Path) -> None:
    """Take the space, unless it is taken already or would be a large part of what is free."""
    path = folder / NAME
    with contextlib.suppress(OSError):
        if path.exists() or shutil.disk_usage(folder).free < 4 * BYTES:
            return
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            os.posix_fallocate(handle, 0, BYTES)
        except OSError:
            path.unlink()
        finally:
            os.close(handle)


def give_up(folder: Path) -> bool:
    """Free the space; whether there was any."""
    try:
        (folder / NAME).unlink()
    except OSError:
        return False
    return True
