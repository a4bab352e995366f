"""The service's certificate, and whose clients' certificates it takes."""

from __future__ import annotations

import logging
import ssl

from moescope.service.files.certificates import load_authority, load_chain
from moescope.service.files.text import FileError, stamp
from moescope.service.settings import Settings

_log = logging.getLogger(__name__)


class TlsError(ValueError):
    """Certificates that can't be used; the message says which files and why."""


class Tls:
    """A context for connections; its certificate may be renewed while it is used.

    With ``tls_client_ca`` only clients with a certificate of that authority get a connection (mutual TLS).

    Raises:
        TlsError: a file can't be read or used.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.tls_cert is not None
        self._cert, self._key = settings.tls_cert, settings.tls_key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._seen = self._look()
        self._load()
        if settings.tls_client_ca is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
            try:
                load_authority(self.context, settings.tls_client_ca)
            except FileError as error:
                raise TlsError(f"tls_client_ca: {error}") from error

    def reload(self) -> bool:
        """Read certificate and key again, for connections from now on; on a fault keep those from before."""
        try:
            self._load()
        except TlsError as error:
            _log.error("the certificate was not read again, the one from before is used: %s", error)
            return False
        _log.info("read the certificate again")
        return True

    def reload_if_changed(self) -> None:
        """Read certificate and key again if one of their files has changed."""
        now = self._look()
        if now != self._seen:
            self._seen = now
            self.reload()

    def _load(self) -> None:
        # First on a context that nobody uses: files that don't fit each other harm nobody there.
        for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
            try:
                load_chain(context, self._cert, self._key)
            except FileError as error:
                raise TlsError(f"tls_cert {self._cert}, tls_key {self._key}: {error}") from error

    def _look(self) -> list[object]:
        return [None if path is None else stamp(path) for path in (self._cert, self._key)]
