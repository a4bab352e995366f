"""Settings of the service: one typed object, from flags, environment and a TOML file, in this order."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)


class MetricsLevel(StrEnum):
    """How fine-grained ``/metrics`` is; each level includes the ones before."""

    RANK = "rank"
    LAYER_RANK = "layer_rank"
    LAYER_EXPERT = "layer_expert"


class LogLevel(StrEnum):
    """Least severe messages that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """``text`` for people, ``json`` for collectors: one object a line."""

    TEXT = "text"
    JSON = "json"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SERVE_FLAGS: Final = _names(
    """
    host port token_file tokens_file open_read insecure tls_cert tls_key tls_client_ca window_s min_tokens
    stale_after_s expire_after_s history_mib store store_mib max_body_mib metrics_level log_level log_format
    """
)
"""Settings that `moescope serve` has a flag for."""

OTHER_VARIABLES: Final = _names(
    """
    endpoint interval server on_error trace_rate trace_opt_in trace_mib ca_file cert_file key_file listen url
    """
)
"""Names that vLLM's workers, the command line or the compose file take from variables with our prefix."""

_CLICKHOUSE: Final = "clickhouse"  # scheme of its URLs
_CLICKHOUSE_TLS: Final = "clickhouses"
_CLICKHOUSE_URL: Final = f"{_CLICKHOUSE}://user:password@host:8123/database"


class SettingsError(ValueError):
    """Settings that can't be used; the message says which and what to do."""


class ClickHouseUrl(SecretStr):
    """The URL of a store in ClickHouse. It is secret because it has a password."""


def store_named(text: str) -> Path | ClickHouseUrl:
    """The store that a text names: a folder, or a ClickHouse.

    Raises:
        ValueError: it is the URL of something else.
    """
    scheme, found, _ = text.partition("://")
    if not found:
        return Path(text)
    if scheme in (_CLICKHOUSE, _CLICKHOUSE_TLS):
        return ClickHouseUrl(text)
    raise ValueError(
        f"a store at {scheme}:// is not known: give a folder, or {_CLICKHOUSE_URL} ({_CLICKHOUSE_TLS}:// for "
        "TLS)"
    )


class Settings(BaseSettings):
    """Everything that can be set. In the environment each name is upper case with ``MOESCOPE_`` before it."""

    model_config = SettingsConfigDict(
        env_prefix="MOESCOPE_", env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(9890, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    token: SecretStr | None = Field(None, description="Bearer token that may do everything.")
    token_file: Path | None = Field(
        None, description="File with a bearer token that may do everything; read again when it changes."
    )
    tokens_file: Path | None = Field(
        None, description="TOML file of tokens with scopes (ingest, read, admin); read again when it changes."
    )
    open_read: bool = Field(default=False, description="Let everybody read; sending still needs a token.")
    insecure: bool = Field(
        default=False, description="Allow listening beyond loopback without authentication."
    )
    tls_cert: Path | None = Field(None, description="PEM file with the certificate chain: serve HTTPS.")
    tls_key: Path | None = Field(None, description="PEM file with its key; absent: it is in tls_cert.")
    tls_client_ca: Path | None = Field(
        None, description="PEM file with the authority whose clients alone may connect (mutual TLS)."
    )
    header_timeout_s: float = Field(
        10.0, gt=0, description="Longest time that a request's head may take to arrive, seconds."
    )
    max_connections: int = Field(
        2048, ge=16, description="Most connections; beyond them those that never asked go first."
    )
    max_waiting_mib: int = Field(
        256, ge=1, description="Memory for all bodies that are arriving, MiB; beyond it senders wait."
    )
    max_unread_mib: int = Field(
        256, ge=1, description="Memory for all answers that wait to be read, MiB; the slowest reader goes."
    )
    max_frames_per_s: float = Field(
        100.0, gt=0, description="Most frames of a producer per second, on average; of traces ten times that."
    )
    max_bodies_per_client: int = Field(
        128, ge=1, description="Most bodies that arrive from one address at the same time."
    )
    max_queries: int = Field(4, ge=1, description="Most queries that are answered at a time; others wait.")
    window_s: float = Field(60.0, gt=0, description="Window of the gauges in /metrics, seconds.")
    min_tokens: int = Field(
        100, ge=0, description="Fewer tokens than this in a window are no sample of balance."
    )
    stale_after_s: float = Field(15.0, gt=0, description="A producer silent for longer is stale, seconds.")
    expire_after_s: float = Field(
        3600.0, gt=0, description="Counters of a rank that is silent for longer leave /metrics, seconds."
    )
    history_mib: int = Field(256, ge=1, description="Memory for past snapshots, MiB.")
    store: Path | ClickHouseUrl | None = Field(
        None,
        description=f"Folder that keeps totals, history and traces over restarts, or {_CLICKHOUSE_URL} for "
        "several services; absent: memory only.",
    )
    store_mib: int = Field(
        4096,
        ge=16,
        description="Most MiB of the folder on disk; the oldest goes. ClickHouse has no bound unless this is "
        "given.",
    )
    keep_1s_s: float = Field(3600.0, gt=0, description="Age up to which the store has every second, seconds.")
    keep_10s_s: float = Field(86400.0, gt=0, description="Age up to which the store has every 10 s, seconds.")
    keep_5min_s: float = Field(
        90 * 86400.0, gt=0, description="Age up to which it has every 5 minutes; older history is removed."
    )
    keep_traces_s: float = Field(7 * 86400.0, gt=0, description="Time to live of routing traces, seconds.")
    max_body_mib: int = Field(32, ge=1, description="Largest body that ingest takes, MiB.")
    body_timeout_s: float = Field(
        10.0, gt=0, description="Longest time that a body may take to arrive, seconds."
    )
    max_producers: int = Field(4096, ge=1, description="Most producers (vLLM workers) that are kept.")
    max_epochs: int = Field(
        8, ge=1, description="Epochs (starts) of a producer whose late frames still count."
    )
    metrics_level: MetricsLevel = Field(MetricsLevel.LAYER_RANK, description="Cardinality of /metrics.")
    metrics_max_series: int = Field(
        200_000, ge=1, description="Most series in /metrics; a family that does not fit is left out whole."
    )
    log_level: LogLevel = Field(LogLevel.INFO, description="Least severe messages to log.")
    log_format: LogFormat = Field(LogFormat.TEXT, description="Format of the log.")

    @field_validator("store", mode="before")
    @classmethod
    def _name_store(cls, value: object) -> object:
        return store_named(value) if isinstance(value, str) else value

    @property
    def authenticates(self) -> bool:
        """Whether anything is asked of clients: a token, or a certificate."""
        return any((self.token, self.token_file, self.tokens_file, self.tls_client_ca))

    @model_validator(mode="after")
    def _refuse_open_ingest(self) -> Self:
        if not self.authenticates and not self.insecure and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines and no token is set: set "
                "MOESCOPE_TOKEN_FILE (or MOESCOPE_TOKEN) here and in vLLM's environment, or listen on "
                "127.0.0.1, or accept the risk with --insecure"
            )
        return self

    @model_validator(mode="after")
    def _refuse_half_of_tls(self) -> Self:
        if self.tls_cert is None and (self.tls_key is not None or self.tls_client_ca is not None):
            raise ValueError("tls_key and tls_client_ca need tls_cert: set --tls-cert or MOESCOPE_TLS_CERT")
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``; names other than ``localhost`` count as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Settings from flags (None means not given), environment, and the TOML file, in this order.

    Raises:
        SettingsError: the file can't be read, or a value is unknown or not allowed.
    """
    from_file = {} if config is None else _read(config)
    given = {name: value for name, value in flags.items() if value is not None}

    class Sources(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 the base class asks for it
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 the base class asks for it
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, from_file)

    try:
        return Sources(**given)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def unknown_variables() -> list[str]:
    """Variables with our prefix that nothing of moescope takes, such as misspelt ones."""
    known = {f"MOESCOPE_{name.upper()}" for name in (*Settings.model_fields, *OTHER_VARIABLES)}
    return sorted(name for name in os.environ if name.startswith("MOESCOPE_") and name not in known)


def _read(config: Path) -> dict[str, Any]:
    try:
        with config.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"can't read the settings file {config}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{config} is not valid TOML: {error}") from error


def _explain(error: ValidationError) -> str:
    """One line for each bad setting, naming its flag and its variable."""
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if not name:
            lines.append(message)
        elif item["type"] == "extra_forbidden":
            lines.append(f"{name}: no such setting; there are {', '.join(sorted(Settings.model_fields))}")
        else:
            flag = f"--{name.replace('_', '-')}, " if name in SERVE_FLAGS else ""
            lines.append(f"{name}: {message}; set {flag}MOESCOPE_{name.upper()} or the file")
    return "\n".join(lines)
