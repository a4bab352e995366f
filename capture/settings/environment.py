"""The capturer's settings, parsed once from ``MOESCOPE_*`` variables of vLLM's environment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from moescope.capture.protocol import INGEST_PATH, MAX_NAME
from moescope.capture.settings.access import NO_ACCESS, Access, encodable, printable, read_text
from moescope.capture.settings.attachment import ATTACHMENT, parse_flag
from moescope.capture.settings.sampling import TraceSampling
from moescope.capture.settings.surroundings import Surroundings

DEFAULT_ENDPOINT = "http://127.0.0.1:9890"
ROLES = ("prefill", "decode")
DEFAULT_TRACE_MIB = 256
DEFAULT_KEPT_IDS_MIB = 32

T = TypeVar("T")


class SettingsError(ValueError):
    """A setting that can't be used; the message names the variable and says what it takes."""


class OnError(StrEnum):
    """What an unknown row layout does.

    At start-up nobody is served yet and somebody watches: stopping there is the loudest word, and costs
    nothing. In traffic it would cost requests, while capture that has ended says so in each frame, in a
    metric and in an alert, and its totals stay those of the moment before. So `RAISE_AT_START` is the
    default.
    """

    RAISE_AT_START = "raise-at-start"
    """Until the worker first serves, as `RAISE`; from then on, as `DISABLE`."""
    RAISE = "raise"
    """Stop the server with an AssertionError, whenever the layout shows."""
    DISABLE = "disable"
    """Turn capture off for good, loudly, and serve on."""


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """How the capturer of one vLLM worker behaves.

    Attributes:
        endpoint: base URL of the service (``MOESCOPE_ENDPOINT``).
        interval: seconds between snapshots while the worker is busy (``MOESCOPE_INTERVAL``).
        token: bearer token for the service, or None (``MOESCOPE_TOKEN``, or the file that
            ``MOESCOPE_TOKEN_FILE`` names). Never shown.
        on_error: what an unknown row layout does (``MOESCOPE_ON_ERROR``).
        server: name of this vLLM deployment (``MOESCOPE_SERVER``); without one, empty, it gets that of
            `capture.seam.deployment`.
        pool: the operator's name for the deployments of one model that are regarded as one
            (``MOESCOPE_POOL``).
        role: ``prefill`` or ``decode``, where vLLM's configuration doesn't tell it (``MOESCOPE_ROLE``).
        surroundings: what launchers put into the environment.
        traces: which requests' routing is traced: a share of them (``MOESCOPE_TRACE_RATE``, 0 to 1), and
            those that ask for it (``MOESCOPE_TRACE_OPT_IN``); none by default.
        trace_bytes: memory for traces in each worker (``MOESCOPE_TRACE_MIB``); what doesn't fit is dropped.
        leave_fast_kernels: leave layers alone where a callback makes vLLM take a slower kernel: they are
            uncovered then (``MOESCOPE_LEAVE_FAST_KERNELS``).
        kept_ids_bytes: on a GPU, the most that a step's expert ids may take until one kernel counts them
            (``MOESCOPE_KEPT_IDS_MIB``); beyond it there are several launches a step, with the same counts.
        access: files with the token and certificates, for what changes while vLLM runs.
    """

    endpoint: str = DEFAULT_ENDPOINT
    interval: float = 1.0
    token: str | None = field(default=None, repr=False)
    on_error: OnError = OnError.RAISE_AT_START
    server: str = ""
    traces: TraceSampling = field(default_factory=TraceSampling)
    trace_bytes: int = DEFAULT_TRACE_MIB << 20
    kept_ids_bytes: int = DEFAULT_KEPT_IDS_MIB << 20
    access: Access = NO_ACCESS
    leave_fast_kernels: bool = False
    pool: str = ""
    role: str = ""
    surroundings: Surroundings = field(default_factory=Surroundings)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> CaptureSettings:
        """Parse the variables; those that are absent or empty take their defaults.

        Raises:
            SettingsError: values that can't be used; the message has a sentence for each of them.
        """
        settings, wrong = cls.read(environment)
        if wrong:
            raise SettingsError("; ".join(wrong))
        return settings

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> tuple[CaptureSettings, list[str]]:
        """The settings, and what is wrong with the values that can't be used: those take their defaults.

        A worker that can't count for a bad value reports that with all the others. Without a usable endpoint
        it reports to the default one, and shows it no token.
        """
        wrong: list[str] = []

        def value(parse: Callable[[str], T], name: str, default: str) -> T:
            return _or_else(wrong, lambda: parse(environment.get(name) or default), lambda: parse(default))

        def mib(name: str, default: int, least: int) -> int:
            return value(lambda text: _mib(name, text, least=least), name, str(default))

        endpoint = value(_endpoint, "MOESCOPE_ENDPOINT", DEFAULT_ENDPOINT)
        is_meant = not wrong
        _or_else(wrong, lambda: _flag(ATTACHMENT, environment), lambda: True)
        settings = cls(
            endpoint=endpoint,
            interval=value(_interval, "MOESCOPE_INTERVAL", "1"),
            token=_or_else(wrong, lambda: _token(environment), lambda: None),
            on_error=value(_on_error, "MOESCOPE_ON_ERROR", OnError.RAISE_AT_START.value),
            server=value(partial(_name, "MOESCOPE_SERVER"), "MOESCOPE_SERVER", ""),
            pool=value(partial(_name, "MOESCOPE_POOL"), "MOESCOPE_POOL", ""),
            role=value(_role, "MOESCOPE_ROLE", ""),
            surroundings=Surroundings.from_environment(environment),
            traces=TraceSampling(
                rate=value(_rate, "MOESCOPE_TRACE_RATE", "0"),
                opt_in=_or_else(wrong, lambda: _flag("MOESCOPE_TRACE_OPT_IN", environment), lambda: False),
            ),
            trace_bytes=mib("MOESCOPE_TRACE_MIB", DEFAULT_TRACE_MIB, 1) << 20,
            kept_ids_bytes=mib("MOESCOPE_KEPT_IDS_MIB", DEFAULT_KEPT_IDS_MIB, 0) << 20,
            access=_or_else(wrong, lambda: _access(environment), lambda: NO_ACCESS),
            leave_fast_kernels=_or_else(
                wrong, lambda: _flag("MOESCOPE_LEAVE_FAST_KERNELS", environment), lambda: False
            ),
        )
        return settings if is_meant else replace(settings, token=None, access=NO_ACCESS), wrong


def _or_else(wrong: list[str], value: Callable[[], T], default: Callable[[], T]) -> T:
    """The value, or the default where it can't be used; `wrong` then gets the reason."""
    try:
        return value()
    except SettingsError as error:
        wrong.append(str(error))
        return default()


def _endpoint(text: str) -> str:
    if "@" in text.partition("//")[2].partition("/")[0]:  # it would be in logs, and the service never see it
        raise SettingsError(
            "MOESCOPE_ENDPOINT: no user or password goes into it; a token goes into MOESCOPE_TOKEN_FILE"
        )
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, usable = urlsplit(""), False
    if not (usable and text.isascii() and text.isprintable() and " " not in text):
        raise SettingsError(f"MOESCOPE_ENDPOINT: {text!r} is no URL such as {DEFAULT_ENDPOINT}")
    if parts.query or parts.fragment or text[-1] in "?#":  # paths are appended, so it would get lost
        raise SettingsError("MOESCOPE_ENDPOINT: no query (?) or fragment (#) goes into it, only a path")
    return text.rstrip("/").removesuffix(INGEST_PATH)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.05 <= seconds <= 3600:
        raise SettingsError(f"MOESCOPE_INTERVAL: {text!r} is no number of seconds from 0.05 to 3600")
    return seconds


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= 1:
        raise SettingsError(f"MOESCOPE_TRACE_RATE: {text!r} is no share of the requests from 0 to 1")
    return rate


def _flag(name: str, environment: Mapping[str, str]) -> bool:
    try:
        return parse_flag(environment.get(name) or "0")
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from None


def _mib(name: str, text: str, *, least: int) -> int:
    try:
        mib = int(text)
    except ValueError:
        mib = -1
    if not least <= mib <= 1 << 20:
        raise SettingsError(f"{name}: {text!r} is no number of MiB from {least} to {1 << 20}")
    return mib


def _on_error(text: str) -> OnError:
    try:
        return OnError(text.strip().lower())
    except ValueError:
        raise SettingsError(f"MOESCOPE_ON_ERROR: {text!r} is none of {', '.join(OnError)}") from None


def _name(variable: str, text: str) -> str:
    text = text.strip()
    if encodable(text) != text:  # what isn't UTF-8 comes as surrogates, and no frame can have those
        raise SettingsError(f"{variable}: it is not UTF-8")
    if len(text) > MAX_NAME:
        raise SettingsError(f"{variable}: {len(text)} characters, at most {MAX_NAME} are allowed")
    return text


def _role(text: str) -> str:
    role = text.strip().lower()
    if role not in ("", *ROLES):
        raise SettingsError(f"MOESCOPE_ROLE: {text!r} is none of {', '.join(ROLES)}")
    return role


def _access(environment: Mapping[str, str]) -> Access:
    """The files, which must be there when vLLM starts: a typing error is to show then."""
    names = ("TOKEN_FILE", "CA_FILE", "CERT_FILE", "KEY_FILE")
    paths = {name: environment.get(f"MOESCOPE_{name}") for name in names}
    if paths["KEY_FILE"] and not paths["CERT_FILE"]:
        raise SettingsError("MOESCOPE_KEY_FILE: it needs MOESCOPE_CERT_FILE")
    token_file, *others = (Path(path) if path else None for path in paths.values())
    # A token of the environment is never replaced.
    access = Access(None if environment.get("MOESCOPE_TOKEN") else token_file, *others)
    try:
        access.context()
    except OSError as error:
        raise SettingsError(f"MOESCOPE_CA_FILE, MOESCOPE_CERT_FILE, MOESCOPE_KEY_FILE: {error}") from error
    return access


def _token(environment: Mapping[str, str]) -> str | None:
    token = environment.get("MOESCOPE_TOKEN") or ""
    path = environment.get("MOESCOPE_TOKEN_FILE")
    if path and not token:
        try:
            token = read_text(Path(path))
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or "it is no text"
            raise SettingsError(f"MOESCOPE_TOKEN_FILE: {path!r} can't be read: {said}") from error
    token = token.strip()
    if not printable(token):
        raise SettingsError("MOESCOPE_TOKEN: only printable ASCII without spaces is allowed")
    return token or None
