"""How commands reach a service: its address, the token, and what they say when they can't."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from moescope.service.client.settings import DEFAULT_URL, client_settings
from moescope.service.settings import Settings
from tests.service.cli.asking_commands import COMMANDS
from tests.service.cli.listing import every_command
from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.frames import frame
from tests.service.traffic import push_fleet


def test_the_commands_send_the_token_of_the_environment(
    start_service: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(token="the-only-token-there-is", min_tokens=1)
    service.push(frame({0: [200, 200]}), authorization="Bearer the-only-token-there-is")
    done = run("ranks", "--url", service.url)
    assert (done.returncode, "MOESCOPE_TOKEN_FILE" in done.stderr) == (6, True)
    path = tmp_path / "token"
    path.write_text("the-only-token-there-is\n")
    monkeypatch.setenv("MOESCOPE_TOKEN_FILE", str(path))
    assert "tiny on prod" in run("ranks", "--url", service.url).stdout
    monkeypatch.setenv("MOESCOPE_TOKEN_FILE", str(tmp_path / "none"))
    done = run("ranks", "--url", service.url)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "can't be read" in done.stderr


@pytest.mark.parametrize(
    ("url", "words", "code"),
    [
        ("http://127.0.0.1:1", "start one with `moescope serve`", 5),
        ("ftp://x", "http://127.0.0.1:9890", 2),
        ("http://gpu-7:http", "http://127.0.0.1:9890", 2),
        ("http://[::1", "http://127.0.0.1:9890", 2),
    ],
)
def test_no_service_is_said_in_one_line(url: str, words: str, code: int) -> None:
    done = run("balance", "--url", url)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_that_no_header_can_hold_is_named(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESCOPE_TOKEN", "line\nbreak")
    for arguments in (["ranks"], ["baseline", "pin", "one"]):
        done = run(*arguments, "--url", service.url)
        assert done.returncode == 2
        assert "MOESCOPE_TOKEN" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_problem_of_the_service_is_passed_on(service: Service) -> None:
    done = run("balance", "--url", service.url)
    assert (done.returncode, done.stdout) == (7, "")
    assert "MOESCOPE=1" in done.stderr


@pytest.fixture
def nowhere() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def test_no_command_that_asks_a_service_is_left_out() -> None:
    asking = {
        name
        for name, command in every_command().items()
        if any("--url" in parameter.opts for parameter in command.params)
    }
    known = {" ".join(command[:count]) for command in COMMANDS for count in (1, 2)}
    assert len(asking) > 10
    assert asking <= known, f"COMMANDS lacks {asking - known}"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_takes_the_address_from_its_flag_else_from_the_environment(
    nowhere: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOESCOPE_URL", nowhere)
    assert f"no service answers at {nowhere} (" in run(*command).output
    monkeypatch.setenv("MOESCOPE_URL", "http://never-asked.invalid")
    assert f"no service answers at {nowhere} (" in run(*command, "--url", nowhere).output


def test_a_service_is_found_by_the_variable(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.push(frame({0: [200, 200]}))
    monkeypatch.setenv("MOESCOPE_URL", f"{service.url}/")
    assert "tiny on prod" in run("ranks").stdout
    monkeypatch.setenv("MOESCOPE_URL", "bad")  # the flag wins, so that nobody asks for it
    assert "tiny on prod" in run("ranks", "--url", service.url).stdout


def test_without_flag_and_variable_the_address_is_that_of_a_service_without_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings()
    assert f"http://{settings.host}:{settings.port}" == DEFAULT_URL
    for nothing in (None, ""):
        if nothing is not None:
            monkeypatch.setenv("MOESCOPE_URL", nothing)
        assert client_settings().url == DEFAULT_URL


@pytest.mark.parametrize("bad", ["ftp://x", "gpu-7:9890", "http://", "http://gpu-7:http", "http://gpu-7:0"])
def test_a_bad_address_names_where_it_came_from(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"{bad} is not an http address; give one such as {DEFAULT_URL}\n"
    done = run("ranks", "--url", bad)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"moescope: --url: {said}")
    monkeypatch.setenv("MOESCOPE_URL", bad)
    done = run("ranks")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"moescope: MOESCOPE_URL: {said}")


def test_the_variable_is_known_to_the_check_of_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESCOPE_URL", DEFAULT_URL)
    assert "no variable" not in run("check-config").stderr


def test_files_that_cant_be_written_are_named(service: Service, tmp_path: Path) -> None:
    push_fleet(service, skew=0.8)
    file = tmp_path / "none" / "file"
    for command in (["report", "--output", file], ["advise", "--export", file]):
        done = run(*command, "--url", service.url)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"moescope: {file} can't be written: ")
