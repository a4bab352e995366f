"""How the command line reaches a service: its token and certificates, from the environment."""

from __future__ import annotations

import ssl
from pathlib import Path

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from moescope.service.auth.tokens import TokenError, read_secret
from moescope.service.settings import SettingsError


class ClientSettings(BaseSettings):
    """The same variables as the capturer's.

    Attributes:
        token: bearer token (``MOESCOPE_TOKEN``).
        token_file: file with it (``MOESCOPE_TOKEN_FILE``), read at each request.
        ca_file: PEM file of the authority that the service's certificate is checked with
            (``MOESCOPE_CA_FILE``); the system's when absent.
        cert_file, key_file: PEM files of our own certificate, where the service wants one
            (``MOESCOPE_CERT_FILE``, ``MOESCOPE_KEY_FILE``).
    """

    model_config = SettingsConfigDict(
        env_prefix="MOESCOPE_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    token: SecretStr | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def headers(self) -> dict[str, str]:
        """The header that a request needs, if any.

        Raises:
            SettingsError: the token's file can't be used.
        """
        if self.token is not None:
            token = self.token.get_secret_value()
            if not (token.isprintable() and token.isascii()):
                raise SettingsError("MOESCOPE_TOKEN: only printable ASCII characters can be in a token")
            return {"Authorization": f"Bearer {token}"}
        if self.token_file is None:
            return {}
        try:
            return {"Authorization": f"Bearer {read_secret(self.token_file)}"}
        except TokenError as error:
            raise SettingsError(f"MOESCOPE_TOKEN_FILE: {error}") from error

    def context(self) -> ssl.SSLContext:
        """What an HTTPS connection is checked with.

        Raises:
            SettingsError: a file can't be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as error:
            names = "MOESCOPE_CA_FILE, MOESCOPE_CERT_FILE, MOESCOPE_KEY_FILE"
            raise SettingsError(f"{names}: a file can't be used: {error}") from error
        return context


def client_settings() -> ClientSettings:
    """From the environment.

    Raises:
        SettingsError: a value that can't be used.
    """
    try:
        return ClientSettings()
    except ValidationError as error:
        raise SettingsError(f"MOESCOPE_*: {error}") from None
