"""A file in memory whose content is taken while it is written."""

from __future__ import annotations

import io

from typing_extensions import Buffer  # the standard library has it from Python 3.12 on


class Sink(io.RawIOBase):
    """A file that keeps what is written until :meth:`take` gets it. It can't seek."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._written = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Buffer) -> int:
        """Take bytes."""
        self._parts.append(bytes(data))
        self._written += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        """Bytes that were written."""
        return self._written

    def take(self) -> bytes:
        """What was written since the last call."""
        taken, self._parts = b"".join(self._parts), []
        return taken
