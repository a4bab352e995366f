"""Who may do what over HTTP: the rule for every route, and the sessions of browsers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from moescope.service.auth.book import TokenBook
from moescope.service.auth.tokens import Scope, Token, read_secret, read_tokens, whole_access
from moescope.service.settings import Settings

SESSION_S: Final = 12 * 3600
"""How long a browser stays signed in, seconds."""
COOKIE: Final = "moescope_session"

_COOKIE_BYTES: Final = 32 + 8 + 32  # signature, end, hidden digest
_OPEN: Final = frozenset({"/", "/healthz", "/readyz"})
_INGEST: Final = frozenset({("POST", "/v1/ingest"), ("POST", "/v1/traces")})
_ASKING: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def needed(method: str, path: str) -> Scope | None:
    """The scope that a request needs; None: anybody may.

    Open are the probes and the page's files, which hold no numbers. What is not listed here and changes
    something needs ``admin``: a new route is closed until someone thinks about it.
    """
    if (method, path) in _INGEST:
        return Scope.INGEST
    if method in _ASKING:
        return None if path in _OPEN or path.startswith("/page/") else Scope.READ
    if path == "/v1/session":
        return Scope.READ if method == "POST" else None
    return Scope.ADMIN


SECURITY_SCHEMES: Final[dict[str, Any]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A token of the service's."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "What POST /v1/session gives for a token; for asking only.",
    },
}
"""OpenAPI's names for the ways to show who one is."""


def security_of(method: str) -> list[dict[str, list[str]]]:
    """OpenAPI's ``security`` of an operation that needs a token: any one of these will do."""
    return [{"bearer": []}, {"session": []}] if method in _ASKING else [{"bearer": []}]


def tokens_needed(book: TokenBook, settings: Settings) -> Callable[[str, str], bool]:
    """Whether a request of a method and path needs a token, at a service with these settings."""

    def needs(method: str, path: str) -> bool:
        right = needed(method, path)
        if right is None or not book:
            return False
        return not (right is Scope.READ and settings.open_read and method != "POST")

    return needs


def open_book(settings: Settings) -> TokenBook:
    """The tokens that the settings name.

    Raises:
        TokenError: a file can't be used.
    """
    fixed = [] if settings.token is None else [whole_access(settings.token.get_secret_value())]
    sources: dict[Path, Callable[[Path], list[Token]]] = {}
    if settings.token_file is not None:
        sources[settings.token_file] = lambda path: [whole_access(read_secret(path), "token_file")]
    if settings.tokens_file is not None:
        sources[settings.tokens_file] = read_tokens
    return TokenBook(fixed, sources)


class Sessions:
    """Sessions of browsers, which show a cookie instead of a token. A session allows nothing but reading.

    The cookie holds the end of the session, the digest of the token's digest, and a signature. Both are keyed
    with a secret of this process. A session is over at its end, and when its token is.
    """

    def __init__(self, book: TokenBook, clock: Callable[[], float] = time.time) -> None:
        self._book = book
        self._clock = clock
        self._key = secrets.token_bytes(32)

    def begin(self, token: Token) -> str:
        """A value for the cookie."""
        body = token.digest + int(self._clock() + SESSION_S).to_bytes(8, "big")
        # The token's digest is hidden too, so that a stolen cookie can't be compared with a file of tokens.
        return base64.urlsafe_b64encode(self._sign(body) + body[32:] + self._hide(token)).decode()

    def find(self, value: str) -> Token | None:
        """The token of a session that is valid now."""
        try:
            data = base64.urlsafe_b64decode(value.encode("ascii"))
        except ValueError:
            return None
        if len(data) != _COOKIE_BYTES:
            return None
        signature, end, hidden = data[:32], data[32:40], data[40:]
        found = None
        for token in self._book.tokens:
            if hmac.compare_digest(self._hide(token), hidden):
                found = token
        if found is None or not hmac.compare_digest(self._sign(found.digest + end), signature):
            return None
        return found if self._clock() < int.from_bytes(end, "big") else None

    def _sign(self, body: bytes) -> bytes:
        return hmac.new(self._key, body, hashlib.sha256).digest()

    def _hide(self, token: Token) -> bytes:
        return hmac.new(self._key, b"hidden" + token.digest, hashlib.sha256).digest()
