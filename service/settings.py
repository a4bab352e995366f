"""Settings of the service: one typed object."""

from __future__ import annotations

import ipaddress
import re
import socket
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

import platformdirs
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, SettingsConfigDict

from moescope.service.remote.address import EXAMPLE, SCHEME, TLS_SCHEME, parse_address


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
    endpoint interval server pool role on_error leave_fast_kernels trace_rate trace_opt_in trace_mib
    kept_ids_mib ca_file cert_file key_file listen url
    """
)
"""Names that vLLM's workers, the command line or the compose file take from variables with our prefix."""


class SettingsError(ValueError):
    """Settings that can't be used; the message says which and what to do."""


class ClickHouseUrl(SecretStr):
    """The URL of a store in ClickHouse. It is secret because it has a password."""


NO_STORE: Final = "none"
"""What the setting ``store`` is for memory only."""


def default_store(port: int) -> Path | None:
    """The folder of a service that is told none: in the user's data folder, by host and port.

    So services of one user don't meet, on one host or with one home folder on several. None: without a port
    of its own (0) a service would never find its folder again.

    Raises:
        SettingsError: the user has no home folder, neither by HOME nor in the system's list of users.
    """
    if port == 0:
        return None
    try:
        data = platformdirs.user_data_path("moescope").expanduser()
    except RuntimeError:
        raise SettingsError(
            "store: the user of this service has no home folder to keep it in: name a folder with --store or "
            "MOESCOPE_STORE, or keep all in memory with --no-store or MOESCOPE_STORE=none"
        ) from None
    return data / f"{socket.gethostname()}-{port}"


def _store_of(others: dict[str, Any]) -> Path | None:
    return default_store(others.get("port", 0))  # absent: it was refused


def store_named(text: str) -> Path | ClickHouseUrl | None:
    """The store that a text names: a folder, a ClickHouse, or none.

    Raises:
        ValueError: it is the address of something else, or may be one with a slip. Nothing of it is quoted
            that may be a password.
    """
    if text == NO_STORE:
        return None
    scheme = re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme is not None and scheme[1].lower() in (SCHEME, TLS_SCHEME):
        parse_address(text)
        return ClickHouseUrl(text)
    if scheme is not None:
        raise ValueError(
            f"a store at {scheme[1]}:// is not known: give a folder, or {EXAMPLE} ({TLS_SCHEME}:// for TLS)"
        )
    is_plain = re.match(r"/(?!/)|\.{1,2}/|~", text) is not None
    if not is_plain and re.search(r"[:@]", text):
        raise ValueError(
            f"this may be an address with a slip: expected {EXAMPLE} ({TLS_SCHEME}:// for TLS), or a folder; "
            "a folder whose name has : or @ begins with / or ./"
        )
    return Path(text)


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
    tls_key: Path | None = Field(
        None, description="PEM file with the key of tls_cert; absent: tls_cert has it too."
    )
    tls_client_ca: Path | None = Field(
        None, description="PEM file with the authority whose clients alone may connect (mutual TLS)."
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Longest time that a handshake of TLS, or a request's head, may take to arrive, seconds.",
    )
    max_connections: int = Field(
        2048, ge=16, description="Most connections; beyond it those without a whole request go first."
    )
    max_waiting_mib: int = Field(
        256, ge=1, description="Memory for all bodies that are arriving, MiB; beyond it senders wait."
    )
    max_unread_mib: int = Field(
        256, ge=1, description="Memory for all answers that wait to be read, MiB; beyond it slow readers go."
    )
    max_frames_per_s: float = Field(
        100.0,
        gt=0,
        description="Most frames per second of a producer, on average; ten times that of trace parts.",
    )
    max_bodies_per_client: int = Field(
        128, ge=1, description="Most bodies that arrive from one address at the same time."
    )
    max_download_mib: int = Field(
        128, ge=16, description="Memory for all downloads of traces, MiB; beyond it they wait."
    )
    max_question_mib: int = Field(
        320,
        ge=16,
        description="Memory for what a question holds of the store, MiB; beyond it the question is refused. "
        "Those that hold over 16 MiB are answered one at a time.",
    )
    request_counts_mib: int = Field(
        64,
        ge=1,
        description="Memory for the slots per expert of traced requests, by which questions under "
        "/v1/requests compare them, MiB; the newest that fit are compared. Taken with the first question.",
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
    history_mib: int | None = Field(
        None,
        ge=1,
        description="Memory for past snapshots, MiB. Absent: 256; without a store as much as 8 snapshots of "
        "each producer take, if that is more, up to a quarter of the memory.",
    )
    store: Path | ClickHouseUrl | None = Field(
        default_factory=_store_of,
        description=f"Folder that keeps totals, history and traces over restarts, {EXAMPLE} for "
        f"several services, or {NO_STORE}: memory only, as with port 0.",
        json_schema_extra={"default": "moescope/HOST-PORT in the user's data folder"},
    )
    store_mib: int = Field(
        4096,
        ge=16,
        description="Most MiB of the folder on disk; the oldest goes first. ClickHouse: none unless given.",
    )
    clickhouse_ca: Path | None = Field(
        None,
        description="PEM file with the authority of ClickHouse's certificate, for clickhouses://; absent: "
        "those that the system trusts.",
    )
    clickhouse_proxy: SecretStr | None = Field(
        None,
        description="URL of a proxy to reach ClickHouse by; absent: none, whatever http_proxy says. With "
        "clickhouse:// it sees the password.",
    )
    clickhouse_cluster: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]{1,128}$",
        description="ClickHouse's cluster whose servers have replicas of all tables; absent: one server. It "
        "is chosen when the database is made.",
    )
    clickhouse_timeout_s: float = Field(
        20.0, gt=0, description="Longest time that ClickHouse may be silent while it is asked, seconds."
    )
    keep_1s_s: float = Field(3600.0, gt=0, description="Age up to which the store has every second, seconds.")
    keep_10s_s: float = Field(86400.0, gt=0, description="Age up to which the store has every 10 s, seconds.")
    keep_5min_s: float = Field(
        90 * 86400.0, gt=0, description="Age up to which the store has every 5 minutes, seconds; older goes."
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
    def store_is_default(self) -> bool:
        """Whether nobody has named the store."""
        return "store" not in self.model_fields_set

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


def default_of(field: FieldInfo) -> object:
    """The default of a setting, in words where it depends on others."""
    if field.default is not PydanticUndefined:
        return field.default
    extra = field.json_schema_extra
    return extra["default"] if isinstance(extra, dict) else None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``; names other than ``localhost`` count as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
