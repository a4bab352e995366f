"""The tokens that are valid now, from files that may change while the service runs.

Tokens are compared as SHA-256 digests, all of them for every request, each in constant time, so that neither
the answer's time nor the file tells how much of a guess was right.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from moescope.service.auth.tokens import Token, TokenError, digest_of
from moescope.service.files.text import stamp

_log = logging.getLogger(__name__)


class TokenBook:
    """The tokens that are valid now.

    Args:
        fixed: tokens that no file holds.
        sources: for each file of tokens how to read it; read at once, and again by :meth:`reload`.

    Raises:
        TokenError: a file can't be used.
    """

    def __init__(self, fixed: Iterable[Token], sources: dict[Path, Callable[[Path], list[Token]]]) -> None:
        self._fixed = tuple(fixed)
        self._sources = dict(sources)
        self._named: set[Path] = set()  # files that entries of the files name
        self._seen: dict[Path, object] = {}
        self.tokens: tuple[Token, ...] = self._read()

    def __bool__(self) -> bool:
        return bool(self.tokens)

    def find(self, text: str) -> Token | None:
        """The token that this is, expired or not."""
        return self.find_digest(digest_of(text))

    def find_digest(self, digest: bytes) -> Token | None:
        """The token with this digest, expired or not."""
        found = None
        for token in self.tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def reload(self) -> bool:
        """Read the files again; if one can't be used, keep what was valid and say so in the log."""
        try:
            self.tokens = self._read()
        except TokenError as error:
            _log.error("the tokens were not read again, those from before stay valid: %s", error)
            return False
        _log.info("read %d tokens: %s", len(self.tokens), ", ".join(token.name for token in self.tokens))
        return True

    def reload_if_changed(self) -> None:
        """Read the files again if one of them has changed."""
        if self._sources and self._look() != self._seen:
            self.reload()

    def _read(self) -> tuple[Token, ...]:
        while True:
            # Noted before it is read, so that a file that can't be used is logged once and not every second.
            self._seen = self._look()
            read = [token for path, source in self._sources.items() for token in source(path)]
            named = {token.file for token in read if token.file is not None}
            if named == self._named:
                return (*self._fixed, *read)
            self._named = named  # these are stamped too before they are read

    def _look(self) -> dict[Path, object]:
        return {path: stamp(path) for path in (*self._sources, *self._named)}
