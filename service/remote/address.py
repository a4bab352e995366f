"""The address of a ClickHouse, read so that no part of a password is ever quoted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

SCHEME: Final = "clickhouse"
TLS_SCHEME: Final = "clickhouses"
EXAMPLE: Final = f"{SCHEME}://user:password@host:8123/database"
_PORT: Final = 8123
_TLS_PORT: Final = 8443
_PLACE: Final = re.compile(
    r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?(?:/([A-Za-z_][A-Za-z0-9_]*)?/?)?"
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a ClickHouse is, and who asks."""

    secure: bool
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str

    @property
    def name(self) -> str:
        """For people: without user and password."""
        return f"{TLS_SCHEME if self.secure else SCHEME}://{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """``clickhouse://user:password@host:8123/database``; ``clickhouses://`` for TLS.

    User and password end at the last ``@``, so that a password may have any characters. Percent-encoded ones
    are decoded. Absent: the user ``default``, no password, port 8123 or 8443, the database ``moescope``.

    Raises:
        ValueError: it is no such address; the message quotes nothing of it.
    """
    scheme, found, rest = text.strip().partition("://")
    who, _, place = rest.rpartition("@")
    match = _PLACE.fullmatch(place)
    if not found or scheme.lower() not in (SCHEME, TLS_SCHEME):
        raise ValueError(f"expected {EXAMPLE}, {TLS_SCHEME}:// for TLS")
    if match is None:
        raise ValueError(
            "after the password and its @ this address of a ClickHouse has no host with, maybe, a port and a "
            f"database: expected {EXAMPLE}; the database is a word of letters, digits and _"
        )
    secure = scheme.lower() == TLS_SCHEME
    host, port, database = match.groups()
    number = int(port) if port else (_TLS_PORT if secure else _PORT)
    if not 0 < number < 1 << 16:
        raise ValueError("this address of a ClickHouse has a port that is none: they are 1 to 65535")
    user, _, password = who.partition(":")
    return Address(
        secure, host, number, unquote(user) or "default", unquote(password), database or "moescope"
    )
