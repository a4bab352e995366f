"""`moescope serve` where it can't start, as its users run it."""

from __future__ import annotations

from pathlib import Path

from tests.service.cli.running import run
from tests.service.conftest import Service


def test_a_taken_port_is_said_in_one_line(service: Service) -> None:
    done = run("serve", "--port", service.url.rpartition(":")[2])
    assert done.returncode == 2
    assert done.stderr.startswith("moescope: can't listen on 127.0.0.1:")
    assert "--port" in done.stderr
    assert done.stderr.count("\n") == 1


def test_open_ingest_is_refused() -> None:
    done = run("serve", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "MOESCOPE_TOKEN" in done.stderr


def test_bad_settings_are_named(tmp_path: Path) -> None:
    config = tmp_path / "moescope.toml"
    config.write_text("min_tokens = -4\n")
    done = run("serve", "--config", str(config))
    assert done.returncode == 2
    assert done.stderr.startswith("moescope: min_tokens: ")
