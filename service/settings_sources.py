"""Where settings come from: flags, the environment and a TOML file; the first of them that has one wins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from moescope.service.files.text import FileError, parse_toml, read_text
from moescope.service.nearest import hint
from moescope.service.settings import OTHER_VARIABLES, SERVE_FLAGS, Settings, SettingsError


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
            given_there = _without_link(env_settings())
            return (
                init_settings,
                InitSettingsSource(settings_cls, given_there),
                InitSettingsSource(settings_cls, from_file),
            )

    try:
        return Sources(**given)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def unknown_variables() -> list[str]:
    """What to say of each variable with our prefix that nothing of moescope takes, such as misspelt ones."""
    names = sorted(f"MOESCOPE_{name.upper()}" for name in (*Settings.model_fields, *OTHER_VARIABLES))
    ours = {name for name in os.environ if name.startswith("MOESCOPE_")}
    wrong = sorted(ours - set(names) - set(_links(ours)))
    return [f"{name}: no variable of moescope.{hint(name, names) or ' Is it misspelt?'}" for name in wrong]


def _links(names: Set[str]) -> Iterator[str]:
    """Those variables that Kubernetes adds for services that are called moescope, or moescope-something.

    It tells each container where the services of its namespace are (service links), by variables such as
    ``MOESCOPE_SERVICE_HOST`` and ``MOESCOPE_PORT=tcp://10.0.0.1:9890``.
    """
    for service in {name.removesuffix("_SERVICE_HOST") for name in names if name.endswith("_SERVICE_HOST")}:
        yield from (name for name in names if name.startswith((f"{service}_SERVICE_", f"{service}_PORT")))


def _without_link(values: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's settings, but for ``MOESCOPE_PORT`` where it is Kubernetes' (`_links`)."""
    linked = str(values.get("port", "")).startswith(("tcp://", "udp://", "sctp://"))
    return {name: value for name, value in values.items() if not (linked and name == "port")}


def _read(config: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_text(config))
    except FileError as error:
        raise SettingsError(f"the settings file {config}: {error}") from error


def _explain(error: ValidationError) -> str:
    """One line for each bad setting, naming its flag and its variable."""
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if not name:
            lines.append(message)
        elif item["type"] == "extra_forbidden":
            known = sorted(Settings.model_fields)
            lines.append(f"{name}: no such setting.{hint(name, known)} There are {', '.join(known)}")
        else:
            flag = f"--{name.replace('_', '-')}, " if name in SERVE_FLAGS else ""
            lines.append(f"{name}: {message}; set {flag}MOESCOPE_{name.upper()} or the file")
    return "\n".join(lines)
