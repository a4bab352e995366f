"""Token and certificates with which a worker reaches the service; they are read again while vLLM runs."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final


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
            token = self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return token if printable(token) else None

    def context(self) -> ssl.SSLContext:
        """The TLS context of a new HTTPS connection.

        Raises:
            OSError: a file can't be read or used (``ssl.SSLError`` is one).
        """
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


def printable(token: str) -> bool:
    """Whether the token can be sent in a header as it is."""
    return all(0x21 <= ord(character) <= 0x7E for character in token)


NO_ACCESS: Final = Access()
