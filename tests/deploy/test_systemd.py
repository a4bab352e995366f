"""The units for systemd: their command, their settings, and what systemd says of them."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moescope.capture.settings.environment import CaptureSettings
from moescope.service.cli.commands import command_line
from moescope.service.settings_sources import load_settings

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"


def section(name: str, part: str) -> dict[str, list[str]]:
    """A section of a unit, where a name may stand several times."""
    text = (FOLDER / name).read_text().partition(f"[{part}]\n")[2].partition("\n[")[0]
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_service_starts_with_settings_that_can_be_used() -> None:
    unit = section("moescope.service", "Service")
    program, command, *flags = shlex.split(unit["ExecStart"][0])
    assert (Path(program).name, command, flags[0]) == ("moescope", "serve", "--config")
    text = CliRunner(env={"COLUMNS": "200"}).invoke(command_line(), ["serve", "--help"]).output
    assert "--config" in text
    settings = load_settings(FOLDER / Path(flags[1]).name, {})
    assert settings.tokens_file == Path("/etc/moescope/tokens.toml")
    assert settings.store == Path("/var/lib") / unit["StateDirectory"][0]
    assert not settings.insecure


def test_the_drop_in_is_what_a_worker_takes() -> None:
    env = dict(word.split("=", 1) for word in section("vllm-moescope.conf", "Service")["Environment"])
    assert env["MOESCOPE"] == "1"
    settings = CaptureSettings.from_environment({**env, "MOESCOPE_TOKEN_FILE": ""})
    assert settings.endpoint == "http://127.0.0.1:9890"
    assert "--target /opt/moescope/plugin" in (FOLDER / "vllm-moescope.conf").read_text()
    assert env["PYTHONPATH"] == "/opt/moescope/plugin"


@pytest.mark.parametrize("broken", [False, True])
def test_systemd_takes_the_unit(tmp_path: Path, broken: bool) -> None:
    """A name that systemd doesn't know is only a warning of it, so the warnings count."""
    tool = shutil.which("systemd-analyze")
    assert tool is not None
    text = (FOLDER / "moescope.service").read_text()
    text = text.replace("/opt/moescope/service/bin/moescope", shutil.which("true") or "")
    text = text.replace("User=moescope\n", "User=root\n")
    unit = tmp_path / "moescope.service"
    unit.write_text(text.replace("ProtectHome", "ProtectHouse") if broken else text)
    done = subprocess.run([tool, "verify", str(unit)], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if str(unit) in line]
    assert bool(said) is broken, done.stderr


def test_units_can_be_read() -> None:
    for name in ("moescope.service", "vllm-moescope.conf"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read(FOLDER / name)
        assert "Service" in parser.sections()
