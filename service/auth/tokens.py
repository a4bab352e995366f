"""Bearer tokens: what one allows, and the files that hold them. Of a token only its SHA-256 is kept."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from moescope.service.files.text import FileError, parse_toml, read_text

MIN_LENGTH: Final = 16
"""Shortest token in a file of tokens; ``moescope token`` makes them longer."""
_PRINTABLE: Final = re.compile(r"[\x21-\x7e]+")
NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a token is called in logs and in the file of tokens."""
_KEYS: Final = frozenset({"name", "scopes", "sha256", "file", "expires"})


class Scope(StrEnum):
    """What a token allows: sending frames and traces, asking, or everything."""

    INGEST = "ingest"
    READ = "read"
    ADMIN = "admin"


class TokenError(ValueError):
    """A file of tokens that can't be used; the message says which and what to do, and holds no token."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept: ``digest`` is SHA-256 of it, ``expires`` seconds of Unix time or None.

    ``file`` has the token itself, where a file of tokens names one.
    """

    name: str
    scopes: frozenset[Scope]
    digest: bytes = field(repr=False)
    expires: float | None = None
    file: Path | None = None

    def allows(self, scope: Scope) -> bool:
        """Whether it has the scope; ``admin`` has all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def expired(self, now: float) -> bool:
        """Whether its time is over at ``now``, seconds of Unix time."""
        return self.expires is not None and now >= self.expires


def digest_of(text: str) -> bytes:
    """SHA-256 of a token."""
    return hashlib.sha256(text.encode()).digest()


def new_token() -> str:
    """A token of 256 random bits, recognisable by its beginning."""
    return f"mscp_{secrets.token_urlsafe(32)}"


def whole_access(text: str, name: str = "token") -> Token:
    """The one token of a simple set-up, which may do everything."""
    return Token(name, frozenset({Scope.ADMIN}), digest_of(text))


def read_secret(path: Path) -> str:
    """A file's only token.

    Raises:
        TokenError: it can't be read, is empty, or holds more than one token.
    """
    try:
        text = read_text(path).strip()
    except FileError as error:
        raise TokenError(f"the token file {path}: {error}; write one token into it") from error
    if not _PRINTABLE.fullmatch(text):
        raise TokenError(f"the token file {path} must hold one token of printable ASCII without spaces")
    return text


def read_tokens(path: Path) -> list[Token]:
    """The tokens of a TOML file with a ``[[tokens]]`` table for each.

    Each has ``name``, ``scopes`` (of ingest, read, admin), and ``sha256`` of the token in hex, or ``file``
    with it, relative to this file; and may have ``expires``, a date or an instant with its offset.

    Raises:
        TokenError: names the file, the entry and the key.
    """
    try:
        text = read_text(path)
    except FileError as error:
        raise TokenError(f"the file of tokens {path}: {error}") from error
    return tokens_of(path, text)


def tokens_of(path: Path, text: str) -> list[Token]:
    """The tokens of :func:`read_tokens`, of the text that ``path`` has or is to have.

    Raises:
        TokenError: see :func:`read_tokens`.
    """
    try:
        document = parse_toml(text)
    except FileError as error:
        raise TokenError(f"the file of tokens {path}: {error}") from error
    entries = document.pop("tokens", None)
    if document or not isinstance(entries, list) or not entries:
        raise TokenError(f"{path} must hold [[tokens]] tables and nothing else; `moescope token` prints one")
    tokens = [_token(path, number, entry) for number, entry in enumerate(entries, 1)]
    for kind, values in (
        ("name", [token.name for token in tokens]),
        ("token", [token.digest for token in tokens]),
    ):
        if len(set(values)) < len(values):
            raise TokenError(f"{path}: two entries have the same {kind}: remove one of them")
    return tokens


def _token(path: Path, number: int, entry: object) -> Token:
    where = f"{path}: tokens[{number}]"
    if not isinstance(entry, dict):
        raise TokenError(f"{where} is not a table: begin each token with [[tokens]]")
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise TokenError(f"{where}: {unknown[0]}: no such key; there are {', '.join(sorted(_KEYS))}")
    name = entry.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise TokenError(f"{where}: name: 1 to 64 letters, digits, dots, dashes or underscores are needed")
    scopes, file = _scopes(where, entry.get("scopes")), entry.get("file")
    return Token(
        name,
        scopes,
        _digest(where, path, entry),
        _expiry(where, entry),
        None if file is None else path.parent / str(file),
    )


def _scopes(where: str, given: object) -> frozenset[Scope]:
    known = {scope.value for scope in Scope}
    if not isinstance(given, list) or not given or not {str(item) for item in given} <= known:
        raise TokenError(f"{where}: scopes: a list of {', '.join(sorted(known))} is needed")
    return frozenset(Scope(item) for item in given)


def _digest(where: str, path: Path, entry: dict[str, Any]) -> bytes:
    given, file = entry.get("sha256"), entry.get("file")
    if (given is None) == (file is None):
        raise TokenError(f"{where}: give sha256 (of the token, in hex) or file (with the token), one of them")
    if file is not None:
        try:
            text = read_secret(path.parent / str(file))
        except TokenError as error:
            raise TokenError(f"{where}: file: {error}") from error
        if len(text) < MIN_LENGTH:
            raise TokenError(f"{where}: file: the token is shorter than {MIN_LENGTH} characters")
        return digest_of(text)
    if not isinstance(given, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", given):
        raise TokenError(f"{where}: sha256: 64 hexadecimal digits are needed")
    return bytes.fromhex(given)


def _expiry(where: str, entry: dict[str, Any]) -> float | None:
    given = entry.get("expires")
    if given is None:
        return None
    if isinstance(given, datetime) and given.tzinfo is not None:
        return given.timestamp()
    if isinstance(given, date) and not isinstance(given, datetime):
        return datetime(given.year, given.month, given.day, tzinfo=UTC).timestamp()
    raise TokenError(f"{where}: expires: a date, or an instant such as 2027-01-31T12:00:00Z, is needed")
