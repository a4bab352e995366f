"""How the command line reaches a service: its address, token and certificates, from the environment."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from moescope.service.auth.tokens import TokenError, read_secret
from moescope.service.files.certificates import load_chain, trusting
from moescope.service.files.text import FileError
from moescope.service.settings import SettingsError

DEFAULT_URL: Final = "http://127.0.0.1:9890"
"""Where a service is that was started without settings."""


class ClientSettings(BaseSettings):
    """Variables of the environment. All but ``MOESCOPE_URL`` are the capturer's too.

    ``url`` is not checked here: where a command has its flag --url, a bad variable does no harm.
    """

    model_config = SettingsConfigDict(
        env_prefix="MOESCOPE_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    url: str = Field(
        default=DEFAULT_URL, description="Address of the running service; the flag --url wins over it."
    )
    token: SecretStr | None = Field(default=None, description="Bearer token, where the service asks for one.")
    token_file: Path | None = Field(
        default=None, description="File with the token; read again at each request."
    )
    ca_file: Path | None = Field(
        default=None,
        description="PEM file of the authority that the service's certificate is checked with; the system's "
        "where it is not set.",
    )
    cert_file: Path | None = Field(
        default=None, description="PEM file of the client's own certificate, where the service wants one."
    )
    key_file: Path | None = Field(
        default=None, description="PEM file with its key, where that is a file of its own."
    )

    def bearer(self) -> str | None:
        """The token, if there is one.

        Raises:
            SettingsError: the token's file can't be used.
        """
        if self.token is not None:
            token = self.token.get_secret_value()
            if not (token.isprintable() and token.isascii()):
                raise SettingsError("MOESCOPE_TOKEN: only printable ASCII characters can be in a token")
            return token
        if self.token_file is None:
            return None
        try:
            return read_secret(self.token_file)
        except TokenError as error:
            raise SettingsError(f"MOESCOPE_TOKEN_FILE: {error}") from error

    def headers(self) -> dict[str, str]:
        """The header that a request needs, if any.

        Raises:
            SettingsError: the token's file can't be used.
        """
        token = self.bearer()
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def context(self) -> ssl.SSLContext:
        """What an HTTPS connection is checked with.

        Raises:
            SettingsError: a file can't be used.
        """
        try:
            context = trusting(self.ca_file)
            if self.cert_file is not None:
                load_chain(context, self.cert_file, self.key_file)
        except FileError as error:
            names = "MOESCOPE_CA_FILE, MOESCOPE_CERT_FILE, MOESCOPE_KEY_FILE"
            raise SettingsError(f"{names}: {error}") from error
        return context


def client_settings() -> ClientSettings:
    """The settings that the environment holds now.

    Raises:
        SettingsError: a value that can't be used.
    """
    try:
        return ClientSettings()
    except ValidationError as error:
        raise SettingsError(f"MOESCOPE_*: {error}") from None
