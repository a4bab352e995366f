"""Token and certificates with which a worker reaches the service; they are read again while vLLM runs."""

from __future__ import annotations

import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

MAX_BYTES: Final = 64 * 1024
"""More of a token's file is not read."""


@dataclass(frozen=True, slots=True)
class Access:
    """Files that may be replaced at any time.

    Attributes:
        token_file: file with the bearer token (``MOESCOPE_TOKEN_FILE``).
        ca_file: PEM file of the authority that the service's certificate is checked with
            (``MOESCOPE_CA_FILE``); the system's when None.
        cert_file, key_file: PEM files of the worker's own certificate, for a service with mutual TLS
            (``MOESCOPE_CERT_FILE``, ``MOESCOPE_KEY_FILE``).
    """

    token_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def token_now(self) -> str | None:
        """The token as the file has it now; None without a file, or if it can't be read."""
        if self.token_file is None:
            return None
        try:
            token = read_text(self.token_file).strip()
        except (OSError, ValueError):
            return None
        return token if printable(token) else None

    def context(self) -> ssl.SSLContext:
        """The TLS context of a new HTTPS connection.

        Raises:
            OSError: a file can't be read or used (``ssl.SSLError`` is one), or its key has a pass phrase.
        """
        for path in (self.ca_file, self.cert_file, self.key_file):
            if path is not None and not path.is_file():
                raise OSError(f"{path} is not there, or no regular file")  # a pipe would make vLLM wait
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file, password=self._no_pass_phrase)
        return context

    def _no_pass_phrase(self) -> NoReturn:
        """Called in place of a prompt at vLLM's terminal."""
        raise OSError(f"the key in {self.key_file or self.cert_file} has a pass phrase: give one without")


def read_text(path: Path) -> str:
    """The text of a small regular file, without the mark that some editors put first (BOM).

    Raises:
        OSError: it can't be read, or is no regular file: a pipe would make vLLM wait without end.
        ValueError: it is no text in UTF-8, or its name can't be one.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(None, "it is no regular file")
        return os.read(handle, MAX_BYTES).decode("utf-8-sig")
    finally:
        os.close(handle)


def printable(token: str) -> bool:
    """Whether the token can be sent in a header as it is."""
    return all(0x21 <= ord(character) <= 0x7E for character in token)


NO_ACCESS: Final = Access()


def encodable(text: str) -> str:
    """The text with a question mark for each byte that was not UTF-8.

    Python reads such a byte as a surrogate, and no frame with one can be encoded.
    """
    return text.encode(errors="replace").decode()
