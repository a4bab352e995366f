"""Whether the files that SQLite writes to are still those that have their names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from moescope.service.store.records import StoreError


class Presence:
    """The files of an open database, as they were when it was opened.

    Once they are removed or replaced under their names, SQLite goes on writing to files that nobody will find
    again. So nothing may be acknowledged then.

    Args:
        paths: the files, all of which are there and stay open.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files = {path: _identity(path) for path in paths}

    def check(self) -> None:
        """Check that all files are there, at a few microseconds each.

        Raises:
            StoreError: one is not, or another one has its name.
        """
        for path, identity in self._files.items():
            if _identity(path) != identity:
                raise StoreError(
                    f"the store's file {path} was removed or replaced while the service ran: nothing is kept "
                    "any more; put it back as it was, or start the service again"
                )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
